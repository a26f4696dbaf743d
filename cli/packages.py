"""Model packages as people decide on them: which one, how good, approved or rejected, and why."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli.aws import Deployment
from cli.console import CommandError, plain
from pipeline_steps.contract import releases


@dataclass(frozen=True)
class Metric:
    """A metric of the held-out rows; `interval` is the 95 % interval of the tuned model's improvement on the base."""

    base: float | None
    tuned: float | None
    interval: tuple[float, float] | None
    rows: int


@dataclass(frozen=True)
class Package:
    """A model package. `note` is its approval description; `ancestors` is what it names of its origin."""

    arn: str
    version: int
    status: str
    note: str
    created: datetime
    metrics: dict[str, Metric]
    ancestors: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "created": self.created.isoformat()}


def arns(deployment: Deployment, status: str | None = None) -> list[str]:
    """ARNs of the deployment's packages, or of those with this approval status; the newest first."""
    pages = deployment.sagemaker.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=deployment.settings.model_package_group_name,
        SortBy="CreationTime",
        SortOrder="Descending",
        **({"ModelApprovalStatus": status} if status else {}),
    )
    found = [str(one["ModelPackageArn"]) for page in pages for one in page["ModelPackageSummaryList"]]
    return sorted(found, key=releases.version, reverse=True)


def choose(deployment: Deployment, named: str | None, status: str | None = None) -> str:
    """ARN of the package that the user names by version or ARN; by default the newest (with this approval status)."""
    group = deployment.settings.model_package_group_name
    if not deployment.settings.trains and (named is None or named.isdigit()):
        return _elsewhere(deployment, named)
    if named is None:
        found = arns(deployment, status)
        if not found:
            what = f"{status} package" if status else "package"
            raise CommandError(f"the group {group} holds no {what}; `finetune start` trains and registers one")
        return found[0]
    if named.isdigit():
        found = [arn for arn in arns(deployment) if releases.version(arn) == int(named)]
        if not found:
            known = ", ".join(str(releases.version(arn)) for arn in arns(deployment)[:10]) or "none"
            raise CommandError(f"the group {group} has no version {named}; newest versions: {known}")
        return found[0]
    if ":model-package/" not in named or releases.group(named) != group:
        raise CommandError(f"{named!r} is neither a version number nor the ARN of a package of the group {group}")
    return named


def _elsewhere(deployment: Deployment, named: str | None) -> str:
    """ARN of a version in the account and region that registers it, where nothing of it can be listed."""
    registry = deployment.settings.registry
    if named is None:
        raise CommandError(
            f"name the version: the registry of {registry.name} is in account {registry.account}, {registry.region}, and cannot be "
            "listed from here"
        )
    partition = deployment.session.get_partition_for_region(registry.region)
    group = f"model-package/{registry.model_package_group_name}"
    return f"arn:{partition}:sagemaker:{registry.region}:{registry.account}:{group}/{named}"


def read(deployment: Deployment, arn: str) -> Package:
    """The package with the figures of its evaluation, as far as it names one."""
    try:
        described = deployment.sagemaker.describe_model_package(ModelPackageName=arn)
    except ClientError as error:
        raise CommandError(f"cannot read {arn}: {error}") from error
    uri = described.get("ModelMetrics", {}).get("ModelQuality", {}).get("Statistics", {}).get("S3Uri")
    return Package(
        arn=arn,
        version=releases.version(arn),
        status=described["ModelApprovalStatus"],
        note=described.get("ApprovalDescription", ""),
        created=described["CreationTime"],
        metrics=_metrics(deployment, uri) if uri else {},
        ancestors=described.get("CustomerMetadataProperties", {}),
    )


def _metrics(deployment: Deployment, uri: str) -> dict[str, Metric]:
    parts = urlsplit(uri)
    answer = deployment.s3.get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))
    content = json.loads(answer["Body"].read())
    return {
        name: Metric(
            one["values"].get("base", {}).get("value"),
            one["values"].get("tuned", {}).get("value"),
            (interval := one["improvements"].get("base", {}).get("interval")) and (interval[0], interval[1]),
            one["n"],
        )
        for name, one in content["metrics"].items()
    }


def require_approved(package: Package) -> None:
    if package.status != "Approved":
        raise CommandError(
            f"version {package.version} is {package.status}{f' ({package.note})' if package.note else ''}; only an Approved package "
            f"is released: `finetune approve {package.version}`"
        )


def decide(deployment: Deployment, arn: str, status: str, note: str) -> None:
    """Set the approval status with a note of why."""
    try:
        deployment.sagemaker.update_model_package(
            ModelPackageArn=arn, ModelApprovalStatus=status, ApprovalDescription=note[:1024]
        )
    except ClientError as error:
        raise CommandError(f"{arn} was not changed: {error}") from error


def render(package: Package) -> Group:
    """The package with what its evaluation measured, for whoever decides."""
    heading = Text(f"version {package.version}, {package.status}, registered {package.created:%Y-%m-%d %H:%M} UTC")
    lines: list[Any] = [Text(package.arn), heading]
    if package.note:
        lines.append(Text(plain(f"note: {package.note}")))
    if not package.metrics:
        return Group(*lines, Text("it names no evaluation"))
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("metric", "base", "tuned", "improvement, 95 % interval", "rows"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in package.metrics.items():
        interval = f"{metric.interval[0]:+.3f} .. {metric.interval[1]:+.3f}" if metric.interval else "-"
        table.add_row(name, _figure(metric.base), _figure(metric.tuned), interval, str(metric.rows))
    ancestors = ", ".join(
        f"{name.removesuffix('_digest').replace('_', ' ')} {package.ancestors[name][:12]}"
        for name in ("dataset_digest", "test_digest", "base_model_digest", "step_code")
        if name in package.ancestors
    )
    return Group(*lines, table, Text(ancestors, style="dim"))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
