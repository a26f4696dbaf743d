"""One training at a time: an execution waits, or is refused, while another one of its pipeline is ahead of it.

Whoever has left PrepareData already is ahead; of those that have not, the one that started first. So of any number of
executions that start at the same moment exactly one goes on.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pipeline_steps.contract.errors import StepError

Policy = Literal["wait", "refuse"]
GUARDING_STEP = "PrepareData"
RUNNING = ("Executing", "Stopping")
POLL_SECONDS = 10.0
OLDEST_DAYS = 40  # a training may take 28 days, and wait for another one before


@dataclass(frozen=True)
class Run:
    """An execution that has not ended. `past_preparation`: it is on its way to train, or trains."""

    arn: str
    started: datetime
    past_preparation: bool


def ahead_of(own_arn: str, runs: Iterable[Run]) -> list[Run]:
    """Those of `runs` that go before the execution `own_arn`, which is one of them; the oldest first.

    Raises StepError if it is not among them.
    """
    running = sorted(runs, key=lambda run: (run.started, run.arn))
    own = next((run for run in running if run.arn == own_arn), None)
    if own is None:
        raise StepError(
            f"{own_arn} is not among the running executions of its pipeline ({', '.join(run.arn for run in running) or 'none'}); "
            "was it stopped?"
        )
    older = running[: running.index(own)]
    return [run for run in running if run in older or (run.past_preparation and run is not own)]


def wait_for_turn(
    own_arn: str, policy: Policy, max_wait_hours: float, running: Callable[[str], Iterable[Run]] | None = None
) -> float:
    """Return when no execution is ahead of `own_arn`: at once, or after the others have ended. Returns seconds waited.

    Raises StepError if another one is ahead and the policy is to refuse, or after `max_wait_hours`.
    """
    running = running or _running
    began, told = time.monotonic(), ""
    while ahead := ahead_of(own_arn, running(own_arn)):
        other = f"{ahead[0].arn} (started {ahead[0].started.astimezone(UTC):%Y-%m-%d %H:%M} UTC)"
        if policy == "refuse":
            raise StepError(
                f"refused: {other} is under way, and retraining.overlap is 'refuse'; start this run again when the other "
                "one has ended, or set retraining.overlap to 'wait'"
            )
        if time.monotonic() - began > max_wait_hours * 3600:
            raise StepError(
                f"{other} has not ended after {max_wait_hours:g} hours (retraining.max_wait_hours); see whether it still "
                "works, stop it if not, and start this run again"
            )
        if told != ahead[0].arn:
            print(f"waiting for {other}, and {len(ahead) - 1} more ahead of this run", flush=True)
            told = ahead[0].arn
        time.sleep(POLL_SECONDS)
    waited = time.monotonic() - began
    if told:
        print(f"waited {waited:.0f} s for its turn", flush=True)
    return waited


def _running(own_arn: str) -> list[Run]:
    import boto3

    client: Any = boto3.client("sagemaker")
    pipeline = own_arn.split("/")[1]
    pages = client.get_paginator("list_pipeline_executions").paginate(
        PipelineName=pipeline, CreatedAfter=datetime.now(UTC) - timedelta(days=OLDEST_DAYS)
    )
    found = [one for page in pages for one in page["PipelineExecutionSummaries"]]
    return [
        Run(one["PipelineExecutionArn"], one["StartTime"], _past_preparation(client, one["PipelineExecutionArn"]))
        for one in found
        if one["PipelineExecutionStatus"] in RUNNING
    ]


def _past_preparation(client: Any, arn: str) -> bool:
    steps = client.list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"]
    return any(step["StepName"] != GUARDING_STEP for step in steps)
