"""What Deploy is asked to do, the clients it works with, and the words in which a release ends badly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from pipeline_steps.contract.errors import StepError

MODEL_START_SECONDS = 1200  # 15 GB from S3 and into the GPU
ROLLBACK_MINUTES = 15  # SageMaker's own way back, after it has given an update up
POLL_SECONDS = 2.0

# How the request for a thing is made: created now | moved to the new release | joined another run that moves it there |
# served already, but not yet seen to answer | nothing to do.
Action = Literal["created", "updated", "joined", "resumed", "unchanged"]


@dataclass(frozen=True)
class DeployJob:
    """Deploy's flags; the release's settings carry the names and meanings of ReleaseSettings in config/settings.py."""

    model_package_arn: str
    model_package_group: str
    endpoint_name: str
    component_name: str
    role_arn: str
    base_model_uri: str
    adapters_uri: str
    captured_to: str  # S3 prefix
    captured_percent: int  # of the requests; 0: none
    copy_to: str | None  # S3 prefix for the model, where the package's account and region are others
    image_uri: str | None  # with copy_to: the image in this region; None: the package's
    subnets: list[str]  # where models have their network interfaces; none: in SageMaker's own network
    security_groups: list[str]
    volume_key: str | None  # KMS key of the instances' volumes; None: their hardware encrypts them
    inference_ami_version: str
    shape: str
    serve: str
    instance_type: str
    instance_count: int
    max_instance_count: int | None
    scale_to_zero: bool
    target_invocations_per_minute: float
    canary_instances: int
    canary_wait_seconds: int
    bake_seconds: int
    max_error_share: float
    max_p95_latency_seconds: float
    quality_alarms: list[str]
    min_answer_agreement: float
    max_update_minutes: int
    kept_releases: int
    max_lora_rank: int
    output: Path

    @property
    def is_shared(self) -> bool:
        """Whether the endpoint may serve other deployments' adapters beside ours."""
        return self.endpoint_name != self.component_name


def region_of(arn: str) -> str:
    """The region in an ARN. Raises StepError for what is none."""
    parts = arn.split(":")
    if len(parts) < 6 or parts[0] != "arn":
        raise StepError(
            f"{arn!r} is not the ARN of a model package: arn:aws:sagemaker:REGION:ACCOUNT:model-package/GROUP/VERSION"
        )
    return parts[3]


def vpc_config(job: DeployJob) -> dict[str, Any]:
    """VpcConfig of what serves, if it is to be in a VPC."""
    if not job.subnets:
        return {}
    return {"VpcConfig": {"Subnets": job.subnets, "SecurityGroupIds": job.security_groups}}


def volume_key(job: DeployJob) -> dict[str, Any]:
    """KmsKeyId of an endpoint configuration, where SageMaker takes one."""
    return {"KmsKeyId": job.volume_key} if job.volume_key else {}


class Aws:
    """The clients of one run. Made together at the start: a client is made by one thread, and used by any.

    `registry` asks the region in which the package is; its account is that of the ARN.
    """

    def __init__(self, model_package_arn: str) -> None:
        self.sagemaker: Any = boto3.client("sagemaker")
        self.registry: Any = boto3.client("sagemaker", region_name=region_of(model_package_arn))
        # The service itself gives up after 60 s; a second try would hide the first failure.
        self.runtime: Any = boto3.client(
            "sagemaker-runtime", config=Config(read_timeout=70, retries={"max_attempts": 1})
        )
        self.cloudwatch: Any = boto3.client("cloudwatch")
        self.autoscaling: Any = boto3.client("application-autoscaling")


class ReleaseFailed(StepError):
    """The new model could not be brought to serve well. `by_model`: trying again would end the same way."""

    def __init__(self, message: str, *, by_model: bool = True) -> None:
        self.by_model = by_model and not _is_about_capacity(message)
        super().__init__(message)


def _is_about_capacity(reason: str) -> bool:
    return any(word in reason for word in ("InsufficientInstanceCapacity", "compute capacity", "ResourceLimitExceeded"))


def found(describe: Any, **name: str) -> dict[str, Any] | None:
    """What a Describe call tells of a resource, or None if there is none of that name."""
    try:
        answer: dict[str, Any] = describe(**name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return answer


def is_missing(error: ClientError) -> bool:
    code, text = error.response["Error"]["Code"], str(error).lower()
    words = ("could not find", "does not exist", "no scalable target found")
    return code in ("ResourceNotFound", "ObjectNotFoundException") or any(word in text for word in words)


def is_busy(error: ClientError) -> bool:
    """Whether a request was refused because somebody else changes the same thing at this moment."""
    return "in-progress" in str(error).lower() or "in progress" in str(error).lower()


def is_taken(error: ClientError) -> bool:
    """Whether a name is taken already."""
    return "already exist" in str(error).lower()


def create_once(create: Any, key: str, name: str, request: dict[str, Any]) -> None:
    """Create the resource; one of that name holds the same content, since the name is made of it."""
    try:
        create(**{key: name}, **request)
    except ClientError as error:
        if not is_taken(error):
            raise StepError(f"SageMaker refuses {name}: {error}") from error


def delete_if_there(delete: Any, **name: str) -> None:
    try:
        delete(**name)
    except ClientError as error:
        if not is_missing(error):
            raise
