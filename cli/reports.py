"""The report of an execution, wherever it ran and whoever started it: found through the execution's own steps."""

import contextlib
import json
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from cli import executions
from cli.aws import Deployment
from cli.console import CommandError
from cli.executions import ExecutionView
from pipeline_steps.contract import files

# The steps that write a report, and the output that holds it.
WRITERS = {"Evaluate": files.EVALUATION_OUTPUT, "Compare": files.COMPARISON_OUTPUT}


@dataclass(frozen=True)
class Written:
    """A finished job that wrote a report: the execution that it belongs to, its request, and where its output lies."""

    execution: str
    job: dict[str, Any]
    bucket: str
    prefix: str

    def input_uri(self, name: str) -> str:
        """S3 URI of one of the job's inputs."""
        return str(next(one["S3Input"]["S3Uri"] for one in self.job["ProcessingInputs"] if one["InputName"] == name))


def find(deployment: Deployment, execution: str | None) -> Written:
    """The report of `execution` (ARN or id); by default of the newest execution that has one.

    Raises CommandError that says why there is none.
    """
    if execution:
        arn = executions.arn_of(deployment, execution)
        found = _written(deployment, executions.describe(deployment, arn))
        if isinstance(found, str):
            raise CommandError(f"{arn} has no report: {found}")
        return found
    newest_reason = ""
    for arn in _newest_first(deployment):
        found = _written(deployment, executions.describe(deployment, arn))
        if not isinstance(found, str):
            return found
        newest_reason = newest_reason or f"; the newest, {arn}: {found}"
    name = deployment.settings.finetune_pipeline_name
    raise CommandError(
        f"no execution of {name} has a report yet{newest_reason or ': it has not run; see finetune start'}"
    )


def _newest_first(deployment: Deployment) -> Iterator[str]:
    pages = deployment.sagemaker.get_paginator("list_pipeline_executions").paginate(
        PipelineName=deployment.settings.finetune_pipeline_name, SortBy="CreationTime", SortOrder="Descending"
    )
    return (summary["PipelineExecutionArn"] for page in pages for summary in page["PipelineExecutionSummaries"])


def _written(deployment: Deployment, view: ExecutionView) -> Written | str:
    """The job that wrote the execution's report, or why there is none."""
    step = next((step for step in view.steps if step.name in WRITERS), None)
    if step is None:
        if view.running:
            return "it has not come to Evaluate yet; see 'finetune status --follow'"
        note = next((step.note for step in view.steps if step.note), "")
        return view.reason or note or f"it ended as {view.status} before Evaluate"
    if step.job is None and step.reused_from:  # the result of an earlier execution, which has the job
        return _written(deployment, executions.describe(deployment, step.reused_from))
    if step.status in ("Starting", "Executing", "Stopping"):
        return f"{step.name} is still at work; see 'finetune status --follow'"
    if step.job is None or step.status != "Succeeded":
        return f"{step.name} ended as {step.status}: {step.reason}"
    job = deployment.sagemaker.describe_processing_job(ProcessingJobName=step.job[1])
    outputs = {one["OutputName"]: one["S3Output"]["S3Uri"] for one in job["ProcessingOutputConfig"]["Outputs"]}
    bucket, _, prefix = outputs[WRITERS[step.name]].removeprefix("s3://").partition("/")
    return Written(view.arn, job, bucket, prefix.rstrip("/"))


def save(deployment: Deployment, written: Written, folder: Path) -> Path:
    """Download the report, and the data card that it links to, into `folder`; returns the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / files.REPORT_FILE
    _download(deployment, written, files.REPORT_FILE, report)
    with contextlib.suppress(FileNotFoundError):  # a comparison has none, and no link to one
        _download(deployment, written, files.DATA_CARD_PAGE, folder / files.DATA_CARD_PAGE)
    return report


def verdict(deployment: Deployment, written: Written) -> str:
    """The gate's message; nothing for a report without a gate."""
    try:
        key = f"{written.prefix}/{files.EVALUATION_FILE}"
        content = deployment.s3.get_object(Bucket=written.bucket, Key=key)["Body"].read()
    except deployment.s3.exceptions.NoSuchKey:
        return ""
    return str(json.loads(content)["gate"]["message"])


def _download(deployment: Deployment, written: Written, name: str, path: Path) -> None:
    key = f"{written.prefix}/{name}"
    try:
        deployment.s3.download_file(written.bucket, key, str(path))
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
            raise
        if name != files.REPORT_FILE:
            raise FileNotFoundError(key) from None
        raise CommandError(
            f"s3://{written.bucket}/{key} is gone; it was written, and has been deleted since: run the execution again"
        ) from None


def show(report: Path) -> bool:
    """Open the report in the user's browser; False where there is none."""
    return webbrowser.open(report.resolve().as_uri())
