"""The model package that is to be released: approved, of our group, unchanged since, with the answers it is known by."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps import s3
from pipeline_steps.contract import evaluation, files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import GoldenRequest
from pipeline_steps.release.job import Aws, found


@dataclass(frozen=True)
class Package:
    """`container`: what its inference specification says. `model_uri`: the folder with the model, with a slash at the end."""

    arn: str
    container: dict[str, Any]
    model_uri: str
    model_digest: str
    base_model_digest: str
    golden: list[GoldenRequest]


def read(aws: Aws, arn: str, group: str) -> Package:
    """The package, if it may be released: of the group, approved, and unchanged since. Raises StepError."""
    described = found(aws.sagemaker.describe_model_package, ModelPackageName=arn)
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
    refuse_changed(model_uri, described)
    training = training_report(model_uri)
    return Package(
        arn=arn,
        container=container,
        model_uri=model_uri,
        model_digest=training["model_digest"],
        base_model_digest=training["base_model_digest"],
        golden=golden_requests(described),
    )


def refuse_changed(model_uri: str, described: dict[str, Any]) -> None:
    """Raise StepError if anything below the model's prefix was written after the package was registered.

    S3 sets the time of an object itself, so what is there is what was evaluated and approved.
    """
    objects = list(s3.objects_below(model_uri))
    if not objects:
        raise StepError(f"{model_uri} holds nothing; the model of {described['ModelPackageArn']} was deleted")
    registered = described["CreationTime"]
    changed = [one.uri for one in objects if one.modified > registered]
    if changed:
        raise StepError(
            f"{len(changed)} of {len(objects)} objects below {model_uri} were written after {described['ModelPackageArn']} was "
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
