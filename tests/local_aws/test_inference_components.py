"""Inference components: several models on one endpoint, adapters on a base, copies that come and go."""

import io
import os
import signal
import tarfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.local_aws.endpoints import SOURCE, Load, create
from tests.local_aws.sagemaker_server import ROLE, Server, running_server
from tests.local_aws.test_deployments import alarm
from tests.local_aws.test_endpoints import serving_processes

RESOURCES = {"NumberOfAcceleratorDevicesRequired": 1, "MinMemoryRequiredInMb": 1024}


@pytest.fixture(scope="module")
def server() -> Server:
    server = running_server()
    server.put("endpoint/model/weights", "W")
    return server


@pytest.fixture(scope="module")
def endpoint(server: Server) -> Iterator[str]:
    name = f"shared-{uuid.uuid4().hex[:8]}"
    variant = {"VariantName": "AllTraffic", "InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
    server.sagemaker.create_endpoint_config(
        EndpointConfigName=name, ExecutionRoleArn=ROLE, ProductionVariants=[variant]
    )
    assert create(server, name, name)["EndpointStatus"] == "InService"
    yield name
    server.wait_for(lambda: not components(server, name))
    server.sagemaker.delete_endpoint(EndpointName=name)


@pytest.fixture
def name(server: Server, endpoint: str) -> Iterator[str]:
    name = f"component-{uuid.uuid4().hex[:8]}"
    yield name
    for one in [*sorted(components(server, endpoint), key=lambda one: one != f"{name}-adapter")]:
        described(server, one)
        server.sagemaker.delete_inference_component(InferenceComponentName=one)
        server.wait_for(lambda one=one: one not in components(server, endpoint))  # type: ignore[misc]


def components(server: Server, endpoint: str) -> list[str]:
    listed = server.sagemaker.list_inference_components(EndpointNameEquals=endpoint)["InferenceComponents"]
    return [one["InferenceComponentName"] for one in listed]


def described(server: Server, name: str) -> Any:
    """What Describe returns once nothing is in progress."""

    def now() -> Any:
        return server.sagemaker.describe_inference_component(InferenceComponentName=name)

    server.wait_for(lambda: now()["InferenceComponentStatus"] not in ("Creating", "Updating"))
    return now()


def model(server: Server, answer: str, faults: str = "") -> dict[str, Any]:
    """The specification of a component whose container answers so."""
    name = f"model-{uuid.uuid4().hex[:8]}"
    container = {
        "Image": "web",
        "ModelDataSource": SOURCE,
        "Environment": {"ANSWER": answer, "LOCAL_AWS_FAULTS": faults},
    }
    server.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    return {"ModelName": name, "ComputeResourceRequirements": RESOURCES}


def make(server: Server, endpoint: str, name: str, specification: dict[str, Any], copies: int | None = 1) -> Any:
    runtime = {} if copies is None else {"RuntimeConfig": {"CopyCount": copies}}
    server.sagemaker.create_inference_component(
        InferenceComponentName=name, EndpointName=endpoint, Specification=specification, **runtime
    )
    return described(server, name)


def ask(server: Server, endpoint: str, component: str, body: str = "hi") -> str:
    once = server.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
    answer = once.invoke_endpoint(EndpointName=endpoint, InferenceComponentName=component, Body=body)["Body"].read()
    return str(answer.decode())


def archive(server: Server, content: str) -> str:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        entry = tarfile.TarInfo("weights")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content.encode()))
    return server.put(f"adapters/{content}.tar.gz", file.getvalue())


def test_two_components_answer_each_by_its_name(server: Server, endpoint: str, name: str) -> None:
    first = make(server, endpoint, name, model(server, "one"))
    assert (first["InferenceComponentStatus"], first["VariantName"]) == ("InService", "AllTraffic")
    assert first["RuntimeConfig"] == {"DesiredCopyCount": 1, "CurrentCopyCount": 1}
    make(server, endpoint, f"{name}-2", model(server, "two"))
    assert ask(server, endpoint, name).startswith("one|W|hi")
    assert ask(server, endpoint, f"{name}-2").startswith("two")
    with pytest.raises(ClientError, match="Inference Component Name header is required"):
        server.runtime.invoke_endpoint(EndpointName=endpoint, Body=b"hi")
    with pytest.raises(ClientError, match="Inference Component nobody of endpoint"):
        ask(server, endpoint, "nobody")
    with pytest.raises(ClientError, match="holds the inference components"):
        server.sagemaker.delete_endpoint(EndpointName=endpoint)


def test_an_adapter_uses_the_copies_of_its_base_and_survives_their_death(
    server: Server, endpoint: str, name: str
) -> None:
    make(server, endpoint, name, model(server, f"base-{name}"))
    wanted: dict[str, Any] = {
        "BaseInferenceComponentName": name,
        "Container": {"ArtifactUrl": archive(server, "tuned")},
    }
    adapter = make(server, endpoint, f"{name}-adapter", wanted, copies=None)
    assert adapter["InferenceComponentStatus"] == "InService", adapter
    assert adapter["Specification"]["Container"]["ArtifactUrl"] == wanted["Container"]["ArtifactUrl"]
    assert ask(server, endpoint, f"{name}-adapter") == "tuned|hi"
    assert ask(server, endpoint, name).startswith(f"base-{name}|")

    for process in serving_processes(f"base-{name}"):
        os.kill(process, signal.SIGKILL)

    def answers_again() -> bool:
        try:
            return ask(server, endpoint, f"{name}-adapter") == "tuned|hi"
        except ClientError:
            return False

    server.wait_for(answers_again)
    bad = {**wanted, "Container": {"ArtifactUrl": archive(server, "bad")}}
    server.sagemaker.update_inference_component(InferenceComponentName=f"{name}-adapter", Specification=bad)
    after = described(server, f"{name}-adapter")
    assert (after["InferenceComponentStatus"], after["Specification"]["Container"]["ArtifactUrl"]) == (
        "InService",
        wanted["Container"]["ArtifactUrl"],
    )
    assert "refused the adapter" in after["FailureReason"]
    assert ask(server, endpoint, f"{name}-adapter") == "tuned|hi"
    with pytest.raises(ClientError, match=f"is the base of the adapters {name}-adapter"):
        server.sagemaker.delete_inference_component(InferenceComponentName=name)


def rolling(server: Server, name: str, specification: dict[str, Any], *alarms: str) -> Any:
    policy = {"MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 50}, "WaitIntervalInSeconds": 60}
    deployment: dict[str, Any] = {"RollingUpdatePolicy": policy}
    if alarms:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": alarm} for alarm in alarms]}
    server.sagemaker.update_inference_component(
        InferenceComponentName=name, Specification=specification, DeploymentConfig=deployment
    )
    return described(server, name)


def load(server: Server, endpoint: str, name: str) -> Load:
    return Load(server, endpoint, per_second=30, component=name)


def test_a_rolling_update_replaces_the_copies_without_a_failed_request(
    server: Server, endpoint: str, name: str
) -> None:
    make(server, endpoint, name, model(server, "old"), copies=2)
    new = model(server, "new")
    with load(server, endpoint, name) as requests:
        time.sleep(0.3)
        after = rolling(server, name, new)
    assert (after["InferenceComponentStatus"], after["Specification"]["ModelName"]) == ("InService", new["ModelName"])
    assert after["RuntimeConfig"] == {"DesiredCopyCount": 2, "CurrentCopyCount": 2}
    assert [one for one in requests.failures if one.error] == []
    assert set(requests.answers) == {"old", "new"}


def test_a_rolling_update_is_taken_back_by_its_alarm(server: Server, endpoint: str, name: str) -> None:
    old = model(server, "old")
    make(server, endpoint, name, old)
    watched = alarm(server, name, Dimensions=[{"Name": "InferenceComponentName", "Value": name}])
    with load(server, endpoint, name):
        after = rolling(server, name, model(server, "new", "error_share=0.5"), watched)
    assert (after["InferenceComponentStatus"], after["Specification"]["ModelName"]) == ("InService", old["ModelName"])
    assert "ALARM" in after["FailureReason"]
    assert ask(server, endpoint, name).startswith("old")


def test_a_component_without_copies_has_no_capacity_and_an_alarm_wakes_it(
    server: Server, endpoint: str, name: str
) -> None:
    make(server, endpoint, name, model(server, "awake"))
    scaling, cloudwatch = server.client("application-autoscaling"), server.client("cloudwatch")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{name}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=0, MaxCapacity=2)
    step = {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}
    policy = scaling.put_scaling_policy(
        **target,
        PolicyName=f"{name}-wake",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "Cooldown": 60,
            "StepAdjustments": [step],
        },
    )
    cloudwatch.put_metric_alarm(
        AlarmName=f"{name}-wake",
        AlarmActions=[policy["PolicyARN"]],
        Namespace="AWS/SageMaker",
        MetricName="NoCapacityInvocationFailures",
        Dimensions=[{"Name": "InferenceComponentName", "Value": name}],
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
    )
    server.sagemaker.update_inference_component_runtime_config(
        InferenceComponentName=name, DesiredRuntimeConfig={"CopyCount": 0}
    )
    assert described(server, name)["RuntimeConfig"] == {"DesiredCopyCount": 0, "CurrentCopyCount": 0}
    with pytest.raises(ClientError, match="has no capacity to process this request"):
        ask(server, endpoint, name)
    server.wait_for(lambda: described(server, name)["RuntimeConfig"]["CurrentCopyCount"] == 1)
    assert ask(server, endpoint, name).startswith("awake")
    cloudwatch.delete_alarms(AlarmNames=[f"{name}-wake"])
    scaling.deregister_scalable_target(**target)


def test_copies_follow_the_requests_of_each_minute(server: Server, endpoint: str, name: str) -> None:
    make(server, endpoint, name, model(server, "x"))
    scaling = server.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{name}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2)
    scaling.put_scaling_policy(
        **target,
        PolicyName=name,
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 10,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerInferenceComponentInvocationsPerCopy"},
            "ScaleOutCooldown": 60,
            "ScaleInCooldown": 60,
        },
    )
    with load(server, endpoint, name):  # 30 a second are 30 in a minute of this server
        server.wait_for(lambda: described(server, name)["RuntimeConfig"]["CurrentCopyCount"] == 2)
    server.wait_for(lambda: described(server, name)["RuntimeConfig"]["CurrentCopyCount"] == 1, seconds=60)
    scaling.deregister_scalable_target(**target)


@pytest.mark.parametrize(
    ("specification", "runtime", "words"),
    [
        ({"ModelName": "x"}, {}, "needs ComputeResourceRequirements"),
        ({"ComputeResourceRequirements": RESOURCES}, {}, "needs one of ModelName and Container.Image"),
        (
            {"ModelName": "x", "ComputeResourceRequirements": RESOURCES},
            {"RuntimeConfig": {"CopyCount": 0}},
            "at least 1 when a component is created",
        ),
        ({"BaseInferenceComponentName": "nobody", "Container": {"ArtifactUrl": "s3://a/b"}}, {}, "Could not find"),
    ],
)
def test_a_component_that_cannot_be_made_is_refused(
    server: Server, endpoint: str, specification: Any, runtime: Any, words: str
) -> None:
    with pytest.raises(ClientError, match=words):
        server.sagemaker.create_inference_component(
            InferenceComponentName="refused", EndpointName=endpoint, Specification=specification, **runtime
        )


def test_a_component_that_does_not_come_up_is_failed_with_the_reason(server: Server, endpoint: str, name: str) -> None:
    failed = make(server, endpoint, name, model(server, "x", "exit_at_start"))
    assert failed["InferenceComponentStatus"] == "Failed"
    assert f"inference component {name} did not pass the ping health check" in failed["FailureReason"]


def test_a_configuration_for_components_needs_a_role(server: Server) -> None:
    variant = {"VariantName": "v", "InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
    with pytest.raises(ClientError, match="ExecutionRoleArn is required"):
        server.sagemaker.create_endpoint_config(EndpointConfigName="no-role", ProductionVariants=[variant])
