"""A hand on an execution: stop it so that no job is left, or go on from where it failed."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from cli import executions
from cli.aws import Deployment
from cli.console import CommandError

# A job gets two minutes between SIGTERM and SIGKILL, and then saves what it has.
STOP_SECONDS = 600
POLL_SECONDS = 1.0


def stop(deployment: Deployment, arn: str) -> list[str]:
    """Stop an execution and wait until it and all of its jobs have ended; returns the jobs' names.

    Raises CommandError if it has ended already, or if something of it still runs after STOP_SECONDS.
    """
    view = executions.describe(deployment, arn)
    if view.status == "Executing":
        try:
            deployment.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=uuid.uuid4().hex)
        except ClientError as error:
            if executions.describe(deployment, arn).running:
                raise CommandError(f"{arn} was not stopped: {error}") from error
    elif not view.running:
        raise CommandError(f"{arn} has ended already as {view.status}; there is nothing to stop")
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        view = executions.describe(deployment, arn)
        jobs = list(_jobs(deployment, view))
        if not view.running and not any(at_work for _, at_work in jobs):
            return [name for name, _ in jobs]
        time.sleep(POLL_SECONDS)
    left = ", ".join(name for name, at_work in _jobs(deployment, view) if at_work) or "no job"
    raise CommandError(
        f"{arn} is {view.status} after {STOP_SECONDS} s, and {left} still runs; look at it in the console, and stop jobs with "
        "`aws sagemaker stop-training-job` or `stop-processing-job`"
    )


def _jobs(deployment: Deployment, view: executions.ExecutionView) -> Iterator[tuple[str, bool]]:
    """Every job of the execution, and whether it is at work: those of its steps, and those named after it."""
    execution_id = view.arn.rsplit("/", 1)[-1]
    of_steps = {step.job[1] for step in view.steps if step.job and not step.cached and not step.reused_from}
    sagemaker = deployment.sagemaker
    for kind, list_jobs in (
        ("ProcessingJob", sagemaker.get_paginator("list_processing_jobs")),
        ("TrainingJob", sagemaker.get_paginator("list_training_jobs")),
    ):
        for page in list_jobs.paginate(NameContains=execution_id):
            for job in page[f"{kind}Summaries"]:
                of_steps.discard(job[f"{kind}Name"])
                yield job[f"{kind}Name"], job[f"{kind}Status"] in ("InProgress", "Stopping")
    for name in sorted(of_steps):  # a job whose name does not hold the execution's id
        kind = next(step.job[0] for step in view.steps if step.job and step.job[1] == name)
        described: Any = (
            sagemaker.describe_processing_job(ProcessingJobName=name)
            if kind == "ProcessingJob"
            else sagemaker.describe_training_job(TrainingJobName=name)
        )
        yield name, described[f"{kind}Status"] in ("InProgress", "Stopping")


def retry(deployment: Deployment, arn: str) -> list[str]:
    """Run what did not succeed of an execution once more; returns the names of the steps that failed or were stopped.

    Raises CommandError where a retry is not possible, or could not come to another end.
    """
    view = executions.describe(deployment, arn)
    if view.running:
        raise CommandError(f"{arn} is {view.status}; only one that has failed or was stopped can be retried")
    if view.status == "Succeeded":
        raise CommandError(f"{arn} has succeeded; there is nothing to retry. `finetune start` runs it anew")
    if any(step.type == "Fail" and step.status == "Failed" for step in view.steps):
        raise CommandError(
            f"the gate has refused the model, and a retry would read the same evaluation again: {view.reason}\n"
            "Start a new execution with other data or parameters: `finetune start -p Name=Value`"
        )
    try:
        deployment.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=uuid.uuid4().hex)
    except ClientError as error:
        raise CommandError(f"{arn} was not retried: {error}") from error
    return [step.name for step in view.steps if step.status in ("Failed", "Stopped")]
