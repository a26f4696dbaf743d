"""Pipeline executions: start, watch, sum up. Works on executions that anyone started."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli import jumpstart
from cli.aws import Deployment
from cli.console import CommandError, console, escape, plain
from pipeline_steps.contract.progress import Progress, parse

RUNNING = ("Executing", "Stopping")
MARKS = {"Succeeded": "[green]✔[/]", "Failed": "[red]✘[/]", "Executing": "[cyan]▶[/]", "Stopped": "[yellow]■[/]"}
LOG_GROUPS = {"ProcessingJob": "/aws/sagemaker/ProcessingJobs", "TrainingJob": "/aws/sagemaker/TrainingJobs"}
POLL_SECONDS = 1.0
EVENT_SECONDS = 30  # S3 -> EventBridge -> pipeline takes about one second on local AWS


@dataclass
class StepView:
    """One step as it is shown: `seconds` up to now or to its end, `detail` from its newest progress line."""

    name: str
    type: str
    status: str
    seconds: float
    reason: str = ""
    note: str = ""  # what a job that succeeded had to say
    job: tuple[str, str] | None = None  # (kind of job, name)
    cached: bool = False
    reused_from: str = ""  # ARN of the execution whose result a cached or not selected step has
    package: str | None = None  # ARN of the model package that it registered
    progress: Progress | None = None


@dataclass
class ExecutionView:
    arn: str
    status: str
    reason: str
    seconds: float  # from its start to its last change, or to now while it runs
    steps: list[StepView] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.status in RUNNING

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def start(
    deployment: Deployment, parameters: dict[str, str], pipeline: str | None = None, description: str = ""
) -> str:
    """Start `pipeline` (`<name>-finetune`) with `parameters` over its defaults; returns the execution's ARN."""
    if pipeline is None:
        jumpstart.check_parameters(deployment.settings, parameters)
    try:
        answer = deployment.sagemaker.start_pipeline_execution(
            PipelineName=pipeline or deployment.settings.main_pipeline_name,
            PipelineParameters=[{"Name": name, "Value": value} for name, value in parameters.items()],
            **({"PipelineExecutionDescription": description} if description else {}),
        )
    except ClientError as error:
        raise CommandError(f"the execution was not started: {error}") from error
    return str(answer["PipelineExecutionArn"])


def arn_of(deployment: Deployment, execution: str) -> str:
    """ARN of an execution that is named by its ARN, or by its id in `<name>-finetune`. Raises CommandError."""
    arn = execution
    if not execution.startswith("arn:"):
        pipeline = deployment.sagemaker.describe_pipeline(PipelineName=deployment.settings.main_pipeline_name)
        arn = f"{pipeline['PipelineArn']}/execution/{execution}"
    try:
        deployment.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
    except ClientError as error:
        raise CommandError(f"there is no execution {execution}: {error}; 'finetune status' shows the newest") from None
    return arn


def newest(deployment: Deployment, pipeline: str | None = None) -> str | None:
    """ARN of the execution of a pipeline (`<name>-finetune`) that started last, or None."""
    summaries = newest_ones(deployment, pipeline or deployment.settings.main_pipeline_name, 1)
    return summaries[0]["PipelineExecutionArn"] if summaries else None


def newest_ones(deployment: Deployment, pipeline: str, most: int) -> list[Any]:
    """Summaries of the executions of a pipeline that started last, the newest first."""
    answer = deployment.sagemaker.list_pipeline_executions(
        PipelineName=pipeline, SortBy="CreationTime", SortOrder="Descending", MaxResults=most
    )
    return list(answer["PipelineExecutionSummaries"])


def the_running(deployment: Deployment) -> str:
    """ARN of the one execution of `<name>-finetune` that runs. Raises CommandError if there is none, or more than one."""
    name = deployment.settings.main_pipeline_name
    pages = deployment.sagemaker.get_paginator("list_pipeline_executions").paginate(PipelineName=name)
    found = [
        str(one["PipelineExecutionArn"])
        for page in pages
        for one in page["PipelineExecutionSummaries"]
        if one["PipelineExecutionStatus"] in RUNNING
    ]
    if not found:
        raise CommandError(f"no execution of {name} runs; `finetune history` shows those that ran")
    if len(found) > 1:
        raise CommandError(f"{len(found)} executions of {name} run; name one of them:\n" + "\n".join(found))
    return found[0]


def written(
    deployment: Deployment, view: ExecutionView, step_name: str, output: str, file: str
) -> dict[str, Any] | None:
    """The JSON file that a processing step wrote to one of its outputs; None where it has written none, or it was deleted."""
    step = next((one for one in view.steps if one.name == step_name and one.job), None)
    if step is None or step.status != "Succeeded":
        return None
    assert step.job
    job = deployment.sagemaker.describe_processing_job(ProcessingJobName=step.job[1])
    outputs = {one["OutputName"]: one["S3Output"]["S3Uri"] for one in job["ProcessingOutputConfig"]["Outputs"]}
    if output not in outputs:
        return None
    bucket, _, prefix = outputs[output].removeprefix("s3://").partition("/")
    try:
        answer = deployment.s3.get_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}/{file}")
    except deployment.s3.exceptions.NoSuchKey:
        return None
    content: dict[str, Any] = json.loads(answer["Body"].read())
    return content


def parameters(deployment: Deployment, arn: str) -> dict[str, str]:
    """The parameters that an execution runs with."""
    answer = deployment.sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=arn)
    return {one["Name"]: one["Value"] for one in answer["PipelineParameters"]}


def wait_for_newer(deployment: Deployment, before: str | None) -> str:
    """ARN of the first execution that is newer than `before`."""
    deadline = time.monotonic() + EVENT_SECONDS
    while time.monotonic() < deadline:
        arn = newest(deployment)
        if arn and arn != before:
            return arn
        time.sleep(0.2)
    raise CommandError(
        f"no execution started within {EVENT_SECONDS} s; see server.log of local AWS for what became of the event"
    )


def describe(deployment: Deployment, arn: str) -> ExecutionView:
    """The execution with its steps in the order they started."""
    execution = deployment.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
    pages = deployment.sagemaker.get_paginator("list_pipeline_execution_steps").paginate(
        PipelineExecutionArn=arn, SortOrder="Ascending"
    )
    steps = [_step_view(step) for page in pages for step in page["PipelineExecutionSteps"]]
    status = execution["PipelineExecutionStatus"]
    end = datetime.now(UTC) if status in RUNNING else execution["LastModifiedTime"]
    seconds = round((end - execution["CreationTime"]).total_seconds(), 1)
    view = ExecutionView(arn, status, execution.get("FailureReason", ""), seconds, steps)
    if not view.running:
        for step in steps:
            if step.job and step.job[0] == "ProcessingJob" and step.status == "Succeeded":
                job = deployment.sagemaker.describe_processing_job(ProcessingJobName=step.job[1])
                step.note = job.get("ExitMessage", "")
    return view


def _step_view(step: Any) -> StepView:
    kind, content = next(iter(step.get("Metadata", {}).items()), ("", {}))
    arn = content.get("Arn", "") if isinstance(content, dict) else ""
    end = step.get("EndTime") or datetime.now(UTC)
    return StepView(
        name=step["StepName"],
        type=kind or "-",
        status=step["StepStatus"],
        seconds=round((end - step["StartTime"]).total_seconds(), 1) if "StartTime" in step else 0.0,
        reason=step.get("FailureReason", ""),
        job=(kind, arn.rsplit("/", 1)[-1]) if kind in LOG_GROUPS else None,
        cached="CacheHitResult" in step,
        reused_from=(step.get("CacheHitResult") or step.get("SelectiveExecutionResult", {})).get(
            "SourcePipelineExecutionArn", ""
        ),
        package=arn if kind == "RegisterModel" else None,
    )


def follow(deployment: Deployment, arn: str) -> ExecutionView:
    """Show the execution until it ends: each step, its state and time, and a bar with the newest figures of its log."""
    logs = LogProgress(deployment)
    if not console.is_terminal:
        return _follow_in_lines(deployment, arn, logs)
    with Live(console=console, refresh_per_second=4) as live:
        for view in _views(deployment, arn, logs):
            live.update(render(view))
    return view


def _follow_in_lines(deployment: Deployment, arn: str, logs: "LogProgress") -> ExecutionView:
    """For a log file: one line for each change of a step, and for progress every ten seconds."""
    seen: dict[str, str] = {}
    last_progress, last_line = time.monotonic(), ""
    for view in _views(deployment, arn, logs):
        for step in view.steps:
            if step.note:
                console.print(f"{step.name}: {escape(step.note)}")
            if seen.get(step.name) != step.status:
                seen[step.name] = step.status
                console.print(f"{step.name}: {step.status} ({step.seconds:.0f} s) {escape(step.reason)}".rstrip())
            elif step.status == "Executing" and step.progress and time.monotonic() - last_progress > 10:
                last_progress = time.monotonic()
                line = f"  {step.name}: {_figures(step.progress)}"
                if line != last_line:
                    console.print(line)
                last_line = line
    return view


def _views(deployment: Deployment, arn: str, logs: "LogProgress") -> Iterator[ExecutionView]:
    while True:
        view = describe(deployment, arn)
        for step in view.steps:
            if step.job:
                step.progress = logs.newest(step)
        yield view
        if not view.running:
            return
        time.sleep(POLL_SECONDS)


def render(view: ExecutionView) -> Group:
    """The execution as a table: a line for each step, a bar below the one that is at long work."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("")
    table.add_column("step", min_width=12)
    table.add_column("state", min_width=10)
    table.add_column("time", justify="right", min_width=7)
    table.add_column("")
    for step in view.steps:
        at_work = step.status in ("Executing", "Starting")
        detail: Any = Text(_figures(step.progress) if step.progress else "", style="dim")
        if step.progress and at_work:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(ProgressBar(total=step.progress.total, completed=step.progress.done, width=24), detail)
            detail = grid
        elif step.reason or step.note:
            detail = Text(plain(step.reason or step.note), style="red" if step.reason else "")
        state = f"{step.status} (cached)" if step.cached else step.status
        table.add_row(MARKS.get(step.status, "·"), step.name, state, f"{step.seconds:.0f} s", detail)
    return Group(table)


def _figures(newest: Progress) -> str:
    figures = "  ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in newest.figures.items())
    return f"{newest.phase} {newest.done}/{newest.total}  {figures}".rstrip()


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class LogProgress:
    """Reads each job's log in CloudWatch from where it stopped and keeps its newest progress line."""

    def __init__(self, deployment: Deployment) -> None:
        self._logs = deployment.client("logs")
        self._tokens: dict[str, str] = {}
        self._newest: dict[str, Progress] = {}

    def newest(self, step: StepView) -> Progress | None:
        assert step.job
        kind, job = step.job
        if step.status == "Executing" or job not in self._newest:
            for message in self._messages(LOG_GROUPS[kind], job):
                if found := parse(message):
                    self._newest[job] = found
        return self._newest.get(job)

    def _messages(self, group: str, job: str) -> Iterator[str]:
        try:
            streams = self._logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
            for stream in streams:
                name = stream["logStreamName"]
                position = {"nextToken": self._tokens[name]} if name in self._tokens else {}
                answer = self._logs.get_log_events(
                    logGroupName=group, logStreamName=name, startFromHead=True, **position
                )
                self._tokens[name] = answer["nextForwardToken"]
                yield from (event["message"] for event in answer["events"])
        except self._logs.exceptions.ResourceNotFoundException:
            return  # the job has not written its first line yet
