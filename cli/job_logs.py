"""The log of a step: what its jobs wrote, from CloudWatch, whole or as it is written."""

import difflib
import time
from collections.abc import Iterator

from cli import executions
from cli.aws import Deployment
from cli.console import CommandError
from cli.executions import LOG_GROUPS, StepView

POLL_SECONDS = 1.0


def of_step(deployment: Deployment, arn: str, name: str, follow: bool) -> Iterator[str]:
    """The log lines of a step's job, host by host where it has several; with `follow` until the job has ended.

    Raises CommandError where there is no such step, or none with a job.
    """
    step = _step(deployment, arn, name)
    log = JobLog(deployment, step)
    while True:
        running = step.status in ("Starting", "Executing", "Stopping")
        yield from log.new_lines()
        if not (follow and running):
            return
        time.sleep(POLL_SECONDS)
        step = _step(deployment, arn, name)


def _step(deployment: Deployment, arn: str, name: str) -> StepView:
    view = executions.describe(deployment, arn)
    found = [step for step in view.steps if step.name.lower() == name.lower()]
    if not found:
        names = [step.name for step in view.steps]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has run: {', '.join(names) or 'no step yet'}"
        raise CommandError(f"{arn} has no step {name!r}; {hint}")
    step = found[0]
    if step.job is None:
        told = step.reason or step.note
        raise CommandError(
            f"{step.name} is {step.status} and has no job, so there is no log{f'; it says: {told}' if told else ''}"
        )
    return step


class JobLog:
    """The log streams of one job, read on from where the last reading ended."""

    def __init__(self, deployment: Deployment, step: StepView) -> None:
        assert step.job
        kind, self._job = step.job
        self._group = LOG_GROUPS[kind]
        self._logs = deployment.client("logs")
        self._positions: dict[str, str] = {}

    def new_lines(self) -> Iterator[str]:
        """What was written since the last call, oldest first; of several hosts each line begins with its host."""
        try:
            pages = self._logs.get_paginator("describe_log_streams").paginate(
                logGroupName=self._group, logStreamNamePrefix=f"{self._job}/"
            )
            streams = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except self._logs.exceptions.ResourceNotFoundException:
            return  # no job has written a line yet
        for stream in streams:
            host = f"{stream.rsplit('/', 1)[-1].rsplit('-', 1)[0]}: " if len(streams) > 1 else ""
            for message in self._messages(stream):
                yield f"{host}{message}"

    def _messages(self, stream: str) -> Iterator[str]:
        while True:  # a page at a time, until the position stays where it is
            position = {"nextToken": self._positions[stream]} if stream in self._positions else {}
            answer = self._logs.get_log_events(
                logGroupName=self._group, logStreamName=stream, startFromHead=True, **position
            )
            yield from (event["message"] for event in answer["events"])
            reached = answer["nextForwardToken"]
            if not answer["events"] and self._positions.get(stream) == reached:
                return
            self._positions[stream] = reached
