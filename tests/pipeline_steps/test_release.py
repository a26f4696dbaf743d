"""What a release asks of AWS, checked against botocore's model, and how answers are compared."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps.contract import releases
from pipeline_steps.contract.errors import StepError
from pipeline_steps.release import alarms, components, scaling, variant
from pipeline_steps.release.job import DeployJob, ReleaseFailed, region_of
from pipeline_steps.release.package import Package
from pipeline_steps.release.requests import common_share

ARN = "arn:aws:sagemaker:us-east-1:123456789012:model-package/mistral/7"
PACKAGE = Package(
    ARN,
    {"Image": "djl-inference:1", "Environment": {"HF_MODEL_ID": "/opt/ml/model"}},
    "s3://b/runs/x/",
    "d" * 64,
    "b" * 64,
    [],
    datetime(2026, 1, 2, tzinfo=UTC),
)
SESSION = botocore.session.Session()


def job(**changes: Any) -> DeployJob:
    values: dict[str, Any] = {
        "model_package_arn": ARN, "model_package_group": "mistral", "endpoint_name": "mistral",
        "component_name": "mistral", "role_arn": "arn:aws:iam::123456789012:role/serving",
        "base_model_uri": "s3://b/base-models/m/", "adapters_uri": "s3://b/adapters",
        "captured_to": "s3://b/captured", "captured_percent": 0, "copy_to": None, "image_uri": None,
        "subnets": [], "security_groups": [], "volume_key": None,
        "inference_ami_version": "al2-ami-sagemaker-inference-gpu-3-1", "shape": "variant", "serve": "merged",
        "instance_type": "ml.g5.4xlarge", "instance_count": 4, "max_instance_count": None, "scale_to_zero": False,
        "target_invocations_per_minute": 60.0, "canary_instances": 1, "canary_wait_seconds": 600, "bake_seconds": 300,
        "max_error_share": 0.05, "max_p95_latency_seconds": 30.0, "quality_alarms": [], "min_answer_agreement": 0.5,
        "max_update_minutes": 90, "kept_releases": 3, "max_lora_rank": 64, "output": Path("unused"),
    }  # fmt: skip
    return DeployJob(**{**values, **changes})


def check(service: str, operation: str, request: dict[str, Any]) -> None:
    shape = SESSION.get_service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), f"{operation}: {report.generate_report()}"


def test_every_request_of_a_variants_release_is_one_that_the_service_accepts() -> None:
    check("sagemaker", "CreateModel", {"ModelName": "m", **variant.model_request(job(), PACKAGE)})
    configuration = {"EndpointConfigName": "c", **variant.configuration_request(job(), "m")}
    check("sagemaker", "CreateEndpointConfig", configuration | {"Tags": variant.tags(PACKAGE, "m")})
    for one in (job(), job(canary_instances=0), job(max_instance_count=8)):
        check("sagemaker", "UpdateEndpoint", variant.update_request(one, "c"))
    for request in alarms.requests(job(), "c", variant.fleet(job(), "c")):
        check("cloudwatch", "PutMetricAlarm", request)
    target = scaling.target_of_variant("mistral")
    check("application-autoscaling", "PutScalingPolicy", scaling.tracking(job(), target, "Metric"))


def test_every_request_of_a_components_release_is_one_that_the_service_accepts() -> None:
    shared = job(shape="inference_components", max_instance_count=6, scale_to_zero=True)
    configuration = {"EndpointConfigName": "c", **components.configuration_request(shared)}
    check("sagemaker", "CreateEndpointConfig", configuration)
    assert configuration["ProductionVariants"][0]["ManagedInstanceScaling"]["MinInstanceCount"] == 0
    check("sagemaker", "CreateModel", {"ModelName": "m", **components.base_model_request(shared, PACKAGE)})
    for adapter in (None, "s3://b/adapters/d/adapter.tar.gz"):
        wanted = components.specification(shared, "m", adapter)
        created = {"InferenceComponentName": "i", "EndpointName": "e", "Specification": wanted}
        check("sagemaker", "CreateInferenceComponent", created)
        updated = {"InferenceComponentName": "i", "Specification": wanted}
        check(
            "sagemaker", "UpdateInferenceComponent", updated | {"DeploymentConfig": components.rolling_update(shared)}
        )


def test_a_canary_is_a_number_of_instances_and_without_one_all_traffic_moves_at_once() -> None:
    policy = variant.update_request(job(), "c")["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    assert policy == {
        "TrafficRoutingConfiguration": {
            "Type": "CANARY",
            "CanarySize": {"Type": "INSTANCE_COUNT", "Value": 1},
            "WaitIntervalInSeconds": 600,
        },
        "TerminationWaitInSeconds": 300,
        "MaximumExecutionTimeoutInSeconds": 5400,
    }
    routing = variant.update_request(job(canary_instances=0), "c")["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    assert routing["TrafficRoutingConfiguration"] == {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 600}


def test_the_alarms_watch_the_new_instances_alone_and_stay_silent_without_traffic() -> None:
    errors, latency = alarms.requests(job(), "c", variant.fleet(job(), "c"))
    for alarm in (errors, latency):
        assert {"Name": "EndpointConfigName", "Value": "c"} in alarm["Dimensions"]
        assert alarm["TreatMissingData"] == "notBreaching"
    assert (errors["AlarmName"], errors["Statistic"], errors["Threshold"]) == ("c-5xx", "Average", 0.05)
    assert (latency["AlarmName"], latency["ExtendedStatistic"], latency["Threshold"]) == ("c-p95", "p95", 30_000_000)


def test_a_base_made_for_adapters_keeps_the_packages_settings() -> None:
    container = components.base_model_request(job(), PACKAGE)["Containers"][0]
    assert container["Environment"]["HF_MODEL_ID"] == "/opt/ml/model"
    assert container["Environment"]["OPTION_ENABLE_LORA"] == "true"
    assert container["ModelDataSource"]["S3DataSource"]["S3Uri"].endswith("/")


# ---------------------------------------------------------------- names


@given(st.from_regex(r"[a-z][a-z0-9-]{1,23}", fullmatch=True), st.integers(1, 10_000), st.integers())
def test_a_release_is_named_by_what_it_holds_in_at_most_63_signs(endpoint: str, version: int, content: int) -> None:
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:model-package/{endpoint}/{version}"
    name = releases.release_name(endpoint, arn, {"content": content})
    assert len(name) <= 57, "with the longest alarm's ending it still fits"
    assert releases.is_release(name, endpoint) and not releases.is_release(f"{name}x", endpoint)
    assert name == releases.release_name(endpoint, arn, {"content": content})
    assert name != releases.release_name(endpoint, arn, {"content": content + 1})
    assert (releases.group(arn), releases.version(arn)) == (endpoint, version)


def test_another_deployments_release_is_not_taken_for_ours() -> None:
    assert not releases.is_release("mistral-dev-v3-0a1b2c3d", "mistral")
    assert not releases.is_release("mistral-v3-0a1b2c3", "mistral")


def test_tags_that_do_not_name_a_whole_release_name_none() -> None:
    assert releases.Serving.of([{"Key": "model-package", "Value": ARN}]) is None
    tags = variant.tags(PACKAGE, "mistral-v7-0a1b2c3d")
    assert releases.Serving.of(tags) == releases.Serving(ARN, "mistral-v7-0a1b2c3d")
    assert json.dumps(tags).count(PACKAGE.model_digest) == 1


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("answer", "recorded", "share"),
    [
        ("the ferry leaves at nine", "the ferry leaves at nine", 1.0),
        ("the ferry leaves at nine", "the ferry leaves at ten", 0.8),
        ("something quite different", "the ferry leaves at ten", 0.0),
        ("", "", 1.0),
        ("", "the ferry", 0.0),
    ],
)
def test_answers_are_compared_by_the_words_that_they_share_in_order(answer: str, recorded: str, share: float) -> None:
    assert common_share(answer, recorded) == pytest.approx(share)


@given(st.text(), st.text())
def test_a_share_is_between_0_and_1_and_1_for_the_same_text(one: str, other: str) -> None:
    assert 0 <= common_share(one, other) <= 1
    assert common_share(one, one) == 1


# ---------------------------------------------------------------- whose fault it is


@pytest.mark.parametrize(
    "reason",
    [
        "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error.",
        "ResourceLimitExceeded: the account-level service limit is 0",
    ],
)
def test_a_lack_of_capacity_is_not_the_models_fault(reason: str) -> None:
    assert ReleaseFailed("an alarm rang").by_model
    assert not ReleaseFailed(reason).by_model


def test_a_copy_is_served_without_naming_the_package_of_the_other_account() -> None:
    source = {"S3Uri": "s3://here/models/d/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"Image": "djl-inference:1", "ModelDataSource": {"S3DataSource": source}, "Environment": {}}
    copy = replace(PACKAGE, container=container, model_uri="s3://here/models/d/", is_copy=True)
    for module in (variant, components):
        (served,) = module.model_request(job(), copy)["Containers"]
        assert "ModelPackageName" not in served and served["ModelDataSource"]["S3DataSource"] == source
        check("sagemaker", "CreateModel", {"ModelName": "m", **module.model_request(job(), copy)})
        assert module.model_request(job(), PACKAGE)["Containers"] == [{"ModelPackageName": ARN}]


def test_a_package_is_asked_in_the_region_of_its_arn() -> None:
    assert region_of(ARN.replace("us-east-1", "eu-west-1")) == "eu-west-1"
    with pytest.raises(StepError, match="'mistral/7' is not the ARN of a model package"):
        region_of("mistral/7")


@given(st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True), st.integers(1, 10**6))
def test_the_version_can_be_read_from_the_name_of_any_release(endpoint: str, version: int) -> None:
    name = releases.release_name(endpoint, f"{ARN.rsplit('/', 1)[0]}/{version}", {})
    assert releases.is_release(name, endpoint) and releases.released_version(name) == version
