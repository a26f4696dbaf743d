"""The SageMaker Python SDK, used offline: for the graph (steps, parameters, references, conditions) and nothing else.

Jobs are the service's own requests inside a `RequestStep`, so the definition holds what the service receives.
Nothing here reaches the network or reads credentials, and the same input gives the same bytes.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import boto3
from sagemaker.core import image_uris
from sagemaker.core.workflow.parameters import Parameter
from sagemaker.core.workflow.pipeline_context import PipelineSession
from sagemaker.core.workflow.properties import Properties, PropertyFile
from sagemaker.mlops.workflow.pipeline import Pipeline
from sagemaker.mlops.workflow.retry import (
    SageMakerJobExceptionTypeEnum,
    SageMakerJobStepRetryPolicy,
    StepExceptionTypeEnum,
    StepRetryPolicy,
)
from sagemaker.mlops.workflow.steps import CacheConfig, ConfigurableRetryStep, Step, StepTypeEnum

from config.settings import Images

Request = dict[str, Any]

# The SDK turns on the INFO log of everything at import; a synth says nothing unless something is wrong.
for _noisy in ("botocore", "sagemaker"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)

# Faults of the service and of its capacity pass with time; an error of our own code does not and is not retried.
RETRY_POLICIES = (
    StepRetryPolicy(
        exception_types=[StepExceptionTypeEnum.SERVICE_FAULT, StepExceptionTypeEnum.THROTTLING],
        interval_seconds=5,
        backoff_rate=2.0,
        max_attempts=5,
    ),
    SageMakerJobStepRetryPolicy(
        exception_types=[SageMakerJobExceptionTypeEnum.RESOURCE_LIMIT],
        failure_reason_types=[
            SageMakerJobExceptionTypeEnum.INTERNAL_ERROR,
            SageMakerJobExceptionTypeEnum.CAPACITY_ERROR,
        ],
        interval_seconds=60,
        backoff_rate=2.0,
        max_attempts=5,
    ),
)

# How long an earlier execution's result may stand in for a step whose inputs are content-addressed.
CACHE_FOR_30_DAYS = CacheConfig(enable_caching=True, expire_after="P30D")


class RequestStep(ConfigurableRetryStep):  # type: ignore[misc]
    """A pipeline step whose arguments are the service's own request, pipeline variables included.

    `describe_shape` is botocore's output shape of the matching Describe call; it types `properties`.
    """

    def __init__(
        self,
        name: str,
        step_type: StepTypeEnum,
        request: Request,
        *,
        describe_shape: str,
        property_files: Sequence[PropertyFile] = (),
        cache: CacheConfig | None = None,
        retry: bool = True,
        depends_on: Sequence[Step] = (),
    ) -> None:
        super().__init__(
            name,
            step_type,
            depends_on=list(depends_on) or None,
            retry_policies=list(RETRY_POLICIES) if retry else None,
        )
        self._request = request
        self._property_files = list(property_files)
        self._cache = cache
        self._properties = Properties(step_name=name, step=self, shape_name=describe_shape)

    @property
    def arguments(self) -> Request:
        return self._request

    @property
    def properties(self) -> Properties:
        return self._properties

    @property
    def property_files(self) -> list[PropertyFile]:
        return self._property_files

    def to_request(self) -> Request:
        request: Request = super().to_request()
        if self._property_files:
            request["PropertyFiles"] = [file.expr for file in self._property_files]
        if self._cache:
            request.update(self._cache.config)
        return request


class _OfflineSession(PipelineSession):  # type: ignore[misc]
    """A session that never asks AWS for the default bucket."""

    def default_bucket(self) -> str:
        return "unused"


def definition_json(name: str, parameters: Sequence[Parameter], steps: Sequence[Step], region: str) -> str:
    """The pipeline's definition as the service stores it: JSON, deterministic, without nulls."""
    session = _OfflineSession(
        boto_session=boto3.Session(
            # Clients are built, never called; without stand-in keys botocore would look for real ones.
            aws_access_key_id="offline",
            aws_secret_access_key="offline",
            region_name=region,
        ),
        sagemaker_config={
            "SchemaVersion": "1.0",
            "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
        },
    )
    pipeline = Pipeline(
        name,
        parameters=list(parameters),
        steps=list(steps),
        sagemaker_session=session,
        pipeline_experiment_config=None,
    )
    return json.dumps(_without_nulls(json.loads(pipeline.definition())), separators=(",", ":"))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def training_image(images: Images, region: str, instance_type: str) -> str:
    """URI of the Hugging Face training image; the processing steps use it too, so that all see the same libraries."""
    if images.training_image_uri:
        return images.training_image_uri
    return str(
        image_uris.retrieve(
            "huggingface",
            region,
            version=images.training_transformers_version,
            base_framework_version=f"pytorch{images.training_pytorch_version}",
            py_version="py312",
            image_scope="training",
            instance_type=instance_type,
        )
    )


def serving_image(images: Images, region: str) -> str:
    """URI of the DJL LMI image (vLLM inside)."""
    return str(image_uris.retrieve("djl-lmi", region, version=images.serving_version, image_scope="inference"))
