"""Old runs that nobody needs any more: found by policy, shown with their size, and only then deleted.

A run is the folder runs/<execution>/ of the artifact bucket: model, adapter, evaluation and reports. Its execution stays in
the history, and so do datasets and base models. The bucket is versioned: what is deleted can be brought back until the
bucket's lifecycle rule ends old versions, and takes up space until then.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli import executions, packages
from cli.aws import Deployment
from cli.console import CommandError

CACHE_DAYS = 30  # an execution of the same data may reuse a step's result for that long (pipeline/sdk.py)
RUN = re.compile(r"/runs/([a-z0-9]+)/")
JOB = re.compile(r"pipelines-([a-z0-9]+)-")  # as the service names the jobs of an execution
KEYS_AT_ONCE = 1000  # of DeleteObjects
READERS = 8  # executions that are read at the same time


@dataclass(frozen=True)
class StoredRun:
    """A run with files. `kept_because` is empty for one that may go."""

    id: str
    last_changed: datetime
    objects: int
    size_bytes: int
    kept_because: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "last_changed": self.last_changed.isoformat()}


def plan(deployment: Deployment, keep_last: int, older_than_days: int) -> list[StoredRun]:
    """Every run that has files, the newest first, and why it is kept if it is.

    Kept are: the newest `keep_last`, what changed less than `older_than_days` ago, what runs, every run that a model
    package or a model of the endpoint names, and what a kept run has reused.
    """
    stored = _stored(deployment)
    order = sorted(stored, key=lambda run_id: max(at for at, _ in stored[run_id]), reverse=True)
    reasons: dict[str, str] = {}
    for run_id in order[:keep_last]:
        reasons[run_id] = f"one of the newest {keep_last}"
    limit = datetime.now(UTC) - timedelta(days=older_than_days)
    for run_id in order:
        if max(at for at, _ in stored[run_id]) > limit:
            reasons.setdefault(run_id, f"younger than {older_than_days} days")
    reasons |= _named(deployment) | _running(deployment)
    reasons = _reused(deployment, [run_id for run_id in order if run_id in reasons]) | reasons
    return [
        StoredRun(
            run_id,
            max(at for at, _ in stored[run_id]),
            len(stored[run_id]),
            sum(size for _, size in stored[run_id]),
            reasons.get(run_id, ""),
        )
        for run_id in order
    ]


def delete(deployment: Deployment, runs: list[StoredRun]) -> int:
    """Delete the files of these runs; returns their number. Raises CommandError naming what could not be deleted."""
    bucket, deleted, failed = deployment.artifact_bucket, 0, []
    for run in runs:
        keys = [str(found["Key"]) for found in _objects(deployment, f"runs/{run.id}/")]
        for start in range(0, len(keys), KEYS_AT_ONCE):
            batch = [{"Key": key} for key in keys[start : start + KEYS_AT_ONCE]]
            answer = deployment.s3.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
            failed += [f"{one['Key']}: {one['Code']} {one.get('Message', '')}" for one in answer.get("Errors", [])]
            deleted += len(batch) - len(answer.get("Errors", []))
    if failed:
        raise CommandError(
            f"{deleted} files were deleted, {len(failed)} were not: {'; '.join(failed[:5])}\nRun the command again"
        )
    return deleted


def _objects(deployment: Deployment, prefix: str) -> Iterator[dict[str, Any]]:
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(Bucket=deployment.artifact_bucket, Prefix=prefix)
    return (found for page in pages for found in page.get("Contents", []))


def _stored(deployment: Deployment) -> dict[str, list[tuple[datetime, int]]]:
    """Each run with files, and when each of these was written and its size in bytes."""
    found: dict[str, list[tuple[datetime, int]]] = {}
    for one in _objects(deployment, "runs/"):
        run_id = one["Key"].split("/")[1]
        found.setdefault(run_id, []).append((one["LastModified"], one["Size"]))
    return found


def _named(deployment: Deployment) -> dict[str, str]:
    """The runs that model packages (of any approval) and the models behind endpoints name, with the reason."""
    sagemaker, found = deployment.sagemaker, {}
    prefixes = {deployment.settings.name, deployment.settings.endpoint_name}
    for prefix in prefixes:
        for page in sagemaker.get_paginator("list_models").paginate(NameContains=prefix):
            for model in page["Models"]:
                described = sagemaker.describe_model(ModelName=model["ModelName"])
                found.update(dict.fromkeys(_runs_in(described), f"the model {model['ModelName']} holds it"))
    for arn in packages.arns(deployment):
        described = sagemaker.describe_model_package(ModelPackageName=arn)
        status = described["ModelApprovalStatus"]
        words = f"version {arn.rsplit('/', 1)[-1]} is registered ({status})"
        found.update(dict.fromkeys(_runs_in(described), words))
    return found


def _running(deployment: Deployment) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in deployment.settings.pipeline_names:
        pages = deployment.sagemaker.get_paginator("list_pipeline_executions").paginate(PipelineName=name)
        for one in (one for page in pages for one in page["PipelineExecutionSummaries"]):
            if one["PipelineExecutionStatus"] in executions.RUNNING:
                arn = one["PipelineExecutionArn"]
                found[arn.rsplit("/", 1)[-1]] = f"it is {one['PipelineExecutionStatus']}"
    return found


def _reused(deployment: Deployment, kept: list[str]) -> dict[str, str]:
    """The runs whose results the kept ones have taken over, with the reason.

    A job's name tells whose it is, also where a result was taken over from an execution that had taken it over itself.
    """
    name = deployment.settings.finetune_pipeline_name
    pipeline = deployment.sagemaker.describe_pipeline(PipelineName=name)["PipelineArn"]

    def sources(run_id: str) -> dict[str, str]:
        try:
            view = executions.describe(deployment, f"{pipeline}/execution/{run_id}")
        except deployment.sagemaker.exceptions.ResourceNotFound:
            return {}  # of another pipeline, which reuses nothing
        reused = {step.reused_from.rsplit("/", 1)[-1] for step in view.steps if step.reused_from}
        made_by = {match[1] for step in view.steps if step.job and (match := JOB.match(step.job[1]))}
        return dict.fromkeys((reused | made_by) - {run_id}, f"{run_id} uses it")

    with ThreadPoolExecutor(READERS) as readers:
        return {source: words for found in readers.map(sources, kept) for source, words in found.items()}


def _runs_in(described: dict[str, Any]) -> set[str]:
    return set(RUN.findall(json.dumps(described, default=str)))


def render(runs: list[StoredRun]) -> Group:
    """What goes, then what stays and why, with sizes."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("run", "last changed (UTC)", "files", "size", ""):
        table.add_column(heading, justify="right" if heading in ("files", "size") else "left")
    for run in sorted(runs, key=lambda one: bool(one.kept_because)):
        what = Text(f"stays: {run.kept_because}", style="dim") if run.kept_because else Text("goes", style="red")
        table.add_row(run.id, f"{run.last_changed:%Y-%m-%d %H:%M}", f"{run.objects:,}", size(run.size_bytes), what)
    gone = [run for run in runs if not run.kept_because]
    words = f"{len(gone)} of {len(runs)} runs go, {size(sum(run.size_bytes for run in gone))} of "
    return Group(table, Text(words + size(sum(run.size_bytes for run in runs))))


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
