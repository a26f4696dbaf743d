"""The model package that is to be released: approved, of our group, unchanged since, with the answers it is known by."""

import json
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline_steps import s3
from pipeline_steps.contract import evaluation, files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import GoldenRequest
from pipeline_steps.contract.progress import report
from pipeline_steps.release.job import Aws, DeployJob, delete_if_there, found


@dataclass(frozen=True)
class Package:
    """`container`: what its inference specification says. `model_uri`: the folder with the model, with a slash at the end.

    `is_copy`: the model was copied to this account and region, and `container` names the copy.
    """

    arn: str
    container: dict[str, Any]
    model_uri: str
    model_digest: str
    base_model_digest: str
    golden: list[GoldenRequest]
    registered: datetime
    is_copy: bool = False

    @property
    def served_container(self) -> dict[str, Any]:
        """What CreateModel is told. A copy is served without the registry: its account may be out of reach then."""
        return self.container if self.is_copy else {"ModelPackageName": self.arn}


def read(aws: Aws, arn: str, group: str) -> Package:
    """The package, if it may be released: of the group, approved, and unchanged since. Raises StepError."""
    described = found(aws.registry.describe_model_package, ModelPackageName=arn)
    if described is None:
        raise StepError(
            f"there is no model package {arn}; `finetune endpoints` and the model registry list those that exist"
        )
    if described.get("ModelPackageGroupName") != group:
        raise StepError(
            f"{arn} is of the group {described.get('ModelPackageGroupName')!r}; this deployment releases packages of "
            f"{group!r} only"
        )
    if described["ModelApprovalStatus"] != "Approved":
        why = described.get("ApprovalDescription")
        raise StepError(
            f"{arn} is {described['ModelApprovalStatus']}{f' ({why})' if why else ''}; only an Approved package is released: "
            "approve it first, with `finetune approve` or in the console, and its release starts by itself"
        )
    container = described["InferenceSpecification"]["Containers"][0]
    model_uri = container["ModelDataSource"]["S3DataSource"]["S3Uri"]
    registered = described["CreationTime"]
    refuse_changed(arn, model_uri, registered)
    training = training_report(model_uri)
    return Package(
        arn=arn,
        container=container,
        model_uri=model_uri,
        model_digest=training["model_digest"],
        base_model_digest=training["base_model_digest"],
        golden=golden_requests(described),
        registered=registered,
    )


def copied(package: Package, copy_to: str, image_uri: str) -> Package:
    """The package, with its model copied inside S3 to a folder of its own below the prefix `copy_to`.

    SageMaker takes a model from S3 and its image from ECR of its own region only. `image_uri` is that region's image.
    """
    model_uri = f"{copy_to.rstrip('/')}/{package.model_digest}/"
    if not s3.exists(model_uri + files.TRAINING_FILE):  # copied last
        names = {one.uri.removeprefix(package.model_uri) for one in s3.objects_below(package.model_uri)}
        for number, name in enumerate(sorted(names - {files.TRAINING_FILE}), start=1):
            s3.copy(package.model_uri + name, model_uri + name)
            report("copy model", number, len(names))
        # Nothing was written meanwhile, so what was copied is what was approved.
        refuse_changed(package.arn, package.model_uri, package.registered)
        s3.copy(package.model_uri + files.TRAINING_FILE, model_uri + files.TRAINING_FILE)
    source = {"S3Uri": model_uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {
        "Image": image_uri,
        "ModelDataSource": {"S3DataSource": source},
        "Environment": package.container.get("Environment", {}),
    }
    return replace(package, container=container, model_uri=model_uri, is_copy=True)


def delete_model(aws: Aws, job: DeployJob, name: str) -> None:
    """Delete a release's model, and the copy in S3 that it was served from unless another release is served from it too."""
    copy = _copy_of(aws, job, name)
    delete_if_there(aws.sagemaker.delete_model, ModelName=name)
    if copy is None:
        return
    pages = aws.sagemaker.get_paginator("list_models").paginate(NameContains=name.rsplit("-v", 1)[0])
    others = (one["ModelName"] for page in pages for one in page["Models"])
    if copy not in (_copy_of(aws, job, other) for other in others):
        s3.delete_all(copy)


def _copy_of(aws: Aws, job: DeployJob, name: str) -> str | None:
    """The folder below `copy_to` from which the model of this name is served, if it is served from one."""
    if job.copy_to is None:
        return None
    model = found(aws.sagemaker.describe_model, ModelName=name) or {}
    for container in model.get("Containers", []):
        uri = str(container.get("ModelDataSource", {}).get("S3DataSource", {}).get("S3Uri", ""))
        if uri.startswith(f"{job.copy_to.rstrip('/')}/"):
            return uri
    return None


def refuse_changed(arn: str, model_uri: str, registered: datetime) -> None:
    """Raise StepError if anything below the model's prefix was written after the package was registered.

    S3 sets the time of an object itself, so what is there is what was evaluated and approved.
    """
    objects = list(s3.objects_below(model_uri))
    if not objects:
        raise StepError(f"{model_uri} holds nothing; the model of {arn} was deleted")
    changed = [one.uri for one in objects if one.modified > registered]
    if changed:
        raise StepError(
            f"{len(changed)} of {len(objects)} objects below {model_uri} were written after {arn} was "
            f"registered ({registered:%Y-%m-%d %H:%M:%S}): {', '.join(changed[:3])}; they are not what was approved. "
            "Restore their earlier versions, or register the model again"
        )


def training_report(model_uri: str) -> dict[str, Any]:
    """FineTune's report, which lies beside the weights."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / files.TRAINING_FILE
        s3.download(model_uri + files.TRAINING_FILE, path)
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "model_digest" not in report:
        raise StepError(f"{model_uri}{files.TRAINING_FILE} names no model_digest; train with the present version")
    return report


def golden_requests(described: dict[str, Any]) -> list[GoldenRequest]:
    """The requests and answers that Evaluate recorded with this very model."""
    uri = described.get("ModelMetrics", {}).get("ModelQuality", {}).get("Statistics", {}).get("S3Uri")
    if uri is None:
        raise StepError(
            f"{described['ModelPackageArn']} names no evaluation (ModelMetrics.ModelQuality.Statistics); without recorded answers "
            "nobody can tell whether the endpoint serves this model: register it through the pipeline"
        )
    with tempfile.TemporaryDirectory() as scratch:
        s3.download(uri, Path(scratch) / files.EVALUATION_FILE)
        return evaluation.read(Path(scratch)).golden_requests
