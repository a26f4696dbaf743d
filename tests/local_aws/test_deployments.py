"""Updates of endpoints: traffic in steps, alarms that take a bad model back, and no failed request while it goes well."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from local_aws import deployments
from local_aws.sagemaker_api import ValidationException
from local_aws.serving_process import EndpointFailed
from tests.local_aws.endpoints import Load, config, create, invoke
from tests.local_aws.sagemaker_server import BUCKET, Server, running_server

CANARY = {"Type": "CANARY", "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 20}, "WaitIntervalInSeconds": 120}


@pytest.fixture(scope="module")
def server() -> Server:
    server = running_server()
    server.put("endpoint/model/weights", "W")
    return server


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    name = f"deploy-{uuid.uuid4().hex[:8]}"
    yield name
    try:
        server.endpoint(name)
        server.sagemaker.delete_endpoint(EndpointName=name)
    except ClientError:
        return
    server.wait_for(lambda: not server.sagemaker.list_endpoints(NameContains=name)["Endpoints"])


def alarm(server: Server, endpoint: str, metric: str = "Invocation5XXErrors", **fields: Any) -> str:
    """An alarm on the endpoint's variant that goes off with the first error in a minute; returns its name."""
    name = f"{endpoint}-{metric}"
    dimensions = [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": "AllTraffic"}]
    settings: dict[str, Any] = {
        "Namespace": "AWS/SageMaker",
        "MetricName": metric,
        "Dimensions": dimensions,
        "Statistic": "Sum",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
    }
    if "ExtendedStatistic" in fields:
        del settings["Statistic"]
    server.client("cloudwatch").put_metric_alarm(AlarmName=name, **settings | fields)
    return name


def update(server: Server, name: str, new: str, routing: dict[str, Any], *alarms: str, **policy: Any) -> None:
    deployment: dict[str, Any] = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, **policy}}
    if alarms:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": alarm} for alarm in alarms]}
    server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=new, DeploymentConfig=deployment)


def answering(server: Server, answer: str, faults: str = "", **fields: Any) -> str:
    """A configuration whose container answers so, with these faults."""
    return config(server, Environment={"ANSWER": answer, "LOCAL_AWS_FAULTS": faults}, **fields)


@pytest.mark.parametrize(
    ("routing", "shares"),
    [
        ({"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 60}, [1.0]),
        (CANARY, [0.2, 1.0]),
        (
            {
                "Type": "LINEAR",
                "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
                "WaitIntervalInSeconds": 60,
            },
            [0.5, 1.0],
        ),
    ],
)
def test_a_good_update_shifts_the_traffic_in_steps_without_a_failed_request(
    server: Server, name: str, routing: dict[str, Any], shares: list[float]
) -> None:
    create(server, name, answering(server, "old"))
    new = answering(server, "new")
    with Load(server, name) as load:
        time.sleep(0.5)
        update(server, name, new, routing, alarm(server, name), TerminationWaitInSeconds=30)
        described = server.endpoint(name)
        time.sleep(0.3)
    assert load.failures == []
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", new)
    assert "FailureReason" not in described
    assert "PendingDeploymentSummary" not in described
    assert described["LastDeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"] == routing
    in_order = [outcome.answer for outcome in sorted(load.outcomes, key=lambda outcome: outcome.started)]
    first, last = in_order.index("new"), len(in_order) - 1 - in_order[::-1].index("old")
    assert in_order[-1] == "new"
    if len(shares) > 1:  # both served, side by side, in that share
        together = in_order[first : last + 1]
        assert together.count("new") / len(together) == pytest.approx(shares[0], abs=0.1)
    else:
        assert last - first < 5  # requests that overtake each other on their way
    assert invoke(server, name, "hi").startswith("new")


def test_a_model_that_answers_500_is_taken_back_by_the_alarm_within_the_canarys_share(
    server: Server, name: str
) -> None:
    old = answering(server, "old")
    create(server, name, old)
    with Load(server, name) as load:
        time.sleep(0.5)
        began = len(load.outcomes)
        update(server, name, answering(server, "new", "error_share=1"), CANARY, alarm(server, name))
        described = server.endpoint(name)
        ended = len(load.outcomes)
        time.sleep(0.5)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", old)
    assert f"{name}-Invocation5XXErrors went into ALARM state" in described["FailureReason"]
    assert 1 <= len(load.failures) <= 0.2 * (ended - began) + 2
    assert {outcome.error for outcome in load.failures} == {"ModelError"}
    assert [outcome for outcome in load.outcomes[ended + 5 :] if outcome.answer != "old"] == []


def test_a_slow_model_is_taken_back_by_an_alarm_on_the_95th_percentile(server: Server, name: str) -> None:
    old = answering(server, "old")
    create(server, name, old)
    slow = alarm(server, name, "ModelLatency", ExtendedStatistic="p95", Threshold=300_000)
    with Load(server, name) as load:
        update(server, name, answering(server, "new", "slow_seconds=0.4"), CANARY, slow)
        described = server.endpoint(name)
    assert described["EndpointConfigName"] == old
    assert "ModelLatency went into ALARM" in described["FailureReason"]
    assert load.failures == []  # those who were slow were answered before their container ended


def test_a_model_that_dies_in_service_is_taken_back(server: Server, name: str) -> None:
    old = answering(server, "old")
    create(server, name, old)
    with Load(server, name) as load:
        routing = CANARY | {"WaitIntervalInSeconds": 180}
        update(server, name, answering(server, "new", "kill_after_seconds=1.5"), routing, alarm(server, name))
        described = server.endpoint(name)
    assert described["EndpointConfigName"] == old
    assert "ALARM" in described["FailureReason"] or "ping health check" in described["FailureReason"]
    assert len(load.failures) <= 0.2 * len(load.outcomes) + 2


def test_an_alarm_can_watch_the_new_fleet_alone(server: Server, name: str) -> None:
    create(server, name, answering(server, "old", "error_share=0.5"))
    new = answering(server, "new")
    dimensions = {"EndpointName": name, "VariantName": "AllTraffic", "EndpointConfigName": new}
    only_new = alarm(server, name, Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()])
    with Load(server, name) as load:
        update(server, name, new, CANARY, only_new)
        described = server.endpoint(name)
    assert load.failures
    assert described["EndpointConfigName"] == new


def test_a_pending_update_is_described_and_nothing_else_may_be_changed(server: Server, name: str) -> None:
    old = answering(server, "old")
    create(server, name, old)
    new = answering(server, "new")
    update(server, name, new, CANARY, alarm(server, name))

    def status() -> Any:
        pending = server.sagemaker.describe_endpoint(EndpointName=name).get("PendingDeploymentSummary")
        return pending and pending["ProductionVariants"][0]["VariantStatus"][0]["Status"]

    server.wait_for(lambda: status() == "Baking")
    described = server.sagemaker.describe_endpoint(EndpointName=name)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("Updating", old)
    pending = described["PendingDeploymentSummary"]
    assert pending["EndpointConfigName"] == new
    assert pending["ProductionVariants"][0]["CurrentInstanceCount"] == 1
    requests: list[Callable[[], Any]] = [
        lambda: server.sagemaker.delete_endpoint(EndpointName=name),
        lambda: server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=old),
        lambda: server.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredWeight": 2}]
        ),
    ]
    for request in requests:
        with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
            request()
    assert server.endpoint(name)["EndpointConfigName"] == new


def test_a_request_under_way_is_answered_by_the_old_fleet_before_it_ends(server: Server, name: str) -> None:
    create(server, name, answering(server, "old"))
    with Load(server, name, per_second=2, body="slow 1.5") as load:
        time.sleep(0.6)
        server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=answering(server, "new"))
        server.endpoint(name)
    assert load.failures == []
    assert load.answers["old"] >= 1


def test_a_rolling_update_replaces_instances_batch_by_batch(server: Server, name: str) -> None:
    two: dict[str, Any] = {"variant": {"InitialInstanceCount": 2}}
    create(server, name, answering(server, "old", **two))
    new = answering(server, "new", **two)
    policy = {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 60}
    with Load(server, name) as load:
        server.sagemaker.update_endpoint(
            EndpointName=name, EndpointConfigName=new, DeploymentConfig={"RollingUpdatePolicy": policy}
        )
        described = server.endpoint(name)
    assert load.failures == []
    assert described["EndpointConfigName"] == new
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert load.answers["old"] > 0 < load.answers["new"]


def test_a_rolling_update_that_goes_wrong_brings_the_old_instances_back(server: Server, name: str) -> None:
    two: dict[str, Any] = {"variant": {"InitialInstanceCount": 2}}
    old = answering(server, "old", **two)
    create(server, name, old)
    # The second batch trips: by then one of the old instances is gone.
    policy = {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 60}
    watched = alarm(server, name, Threshold=30)
    with Load(server, name):
        server.sagemaker.update_endpoint(
            EndpointName=name,
            EndpointConfigName=answering(server, "new", "error_share=1", **two),
            DeploymentConfig={
                "RollingUpdatePolicy": policy,
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": watched}]},
            },
        )
        described = server.endpoint(name)
    assert described["EndpointConfigName"] == old
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert "ALARM" in described["FailureReason"]


def test_a_rollback_that_cannot_bring_the_old_instances_back_is_told(server: Server, name: str) -> None:
    weights = server.put(f"{name}/weights", "W")
    source = {"S3Uri": weights.removesuffix("weights"), "S3DataType": "S3Prefix", "CompressionType": "None"}
    two: dict[str, Any] = {"variant": {"InitialInstanceCount": 2}}
    old = answering(server, "old", ModelDataSource={"S3DataSource": source}, **two)
    create(server, name, old)
    policy = {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 60}
    watched = alarm(server, name, Threshold=30)  # the second batch trips: by then one of the old instances is gone
    with Load(server, name):
        server.sagemaker.update_endpoint(
            EndpointName=name,
            EndpointConfigName=answering(server, "new", "error_share=1", **two),
            DeploymentConfig={
                "RollingUpdatePolicy": policy,
                "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": watched}]},
            },
        )
        server.s3.delete_object(Bucket=BUCKET, Key=f"{name}/weights")
        described = server.endpoint(name)
    assert described["EndpointConfigName"] == old
    assert described["EndpointStatus"] == "UpdateRollbackFailed"
    assert "ALARM" in described["FailureReason"]
    assert "No S3 objects found" in described["FailureReason"]
    assert invoke(server, name, "hi").startswith("old")


def test_the_last_deployment_configuration_and_the_variants_properties_can_be_retained(
    server: Server, name: str
) -> None:
    create(server, name, answering(server, "old"))
    watched = alarm(server, name)
    update(server, name, answering(server, "a"), CANARY | {"WaitIntervalInSeconds": 0}, watched)
    server.endpoint(name)
    server.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=name,
        DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredWeight": 3, "DesiredInstanceCount": 2}],
    )
    variant = server.endpoint(name)["ProductionVariants"][0]
    assert (variant["CurrentWeight"], variant["DesiredWeight"], variant["CurrentInstanceCount"]) == (3, 3, 2)
    server.sagemaker.update_endpoint(
        EndpointName=name,
        EndpointConfigName=answering(server, "b"),
        RetainAllVariantProperties=True,
        RetainDeploymentConfig=True,
    )
    described = server.endpoint(name)
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert described["ProductionVariants"][0]["CurrentWeight"] == 3
    assert described["LastDeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"] == [{"AlarmName": watched}]


def test_two_variants_share_the_requests_by_weight(server: Server, name: str) -> None:
    one, other = answering(server, "one"), answering(server, "other")
    instance = {"InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
    server.sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {"VariantName": "one", "ModelName": one, "InitialVariantWeight": 3, **instance},
            {"VariantName": "other", "ModelName": other, "InitialVariantWeight": 1, **instance},
        ],
    )
    create(server, name, name)
    assert [invoke(server, name, "hi").split("|")[0] for _ in range(40)].count("one") == 30
    assert invoke(server, name, "hi", TargetVariant="other").startswith("other")
    server.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "one", "DesiredWeight": 0}]
    )
    server.endpoint(name)
    assert {invoke(server, name, "hi").split("|")[0] for _ in range(10)} == {"other"}


def test_instances_follow_the_requests_of_each_minute(server: Server, name: str) -> None:
    create(server, name, answering(server, "x"))
    scaling = server.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2)
    tracking = {
        "TargetValue": 5,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        "ScaleOutCooldown": 0,
    }
    scaling.put_scaling_policy(
        **target, PolicyName=name, PolicyType="TargetTrackingScaling", TargetTrackingScalingPolicyConfiguration=tracking
    )
    with Load(server, name) as load:

        def instances() -> int:
            return int(server.endpoint(name)["ProductionVariants"][0]["CurrentInstanceCount"])

        server.wait_for(lambda: instances() == 2)
    assert load.failures == []
    scaling.deregister_scalable_target(**target)
    assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []


@pytest.mark.parametrize(
    ("deployment", "words"),
    [
        ({"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {"Type": "CANARY", "WaitIntervalInSeconds": 1}}}, "needs CanarySize"),
        (
            {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": CANARY | {"CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 60}}}},
            "CanarySize is 60 %, and must be at most 50%",
        ),
        (
            {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": CANARY | {"CanarySize": {"Type": "INSTANCE_COUNT", "Value": 1}}}},
            "1 of 1 instances",
        ),
        (
            {
                "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": CANARY},
                "RollingUpdatePolicy": {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 1},
            },
            "only one may be given",
        ),
        (
            {
                "BlueGreenUpdatePolicy": {
                    "TrafficRoutingConfiguration": CANARY | {"WaitIntervalInSeconds": 400},
                    "MaximumExecutionTimeoutInSeconds": 600,
                }
            },
            "must be larger than them",
        ),
        ({"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "nobody-made-it"}]}}, "do not exist: nobody-made-it"),
        ({"BlueGreenUpdatePolicy": {}}, "must not be null"),
    ],
)  # fmt: skip
def test_a_deployment_configuration_that_cannot_be_carried_out_is_refused(
    server: Server, deployment: dict[str, Any], words: str
) -> None:
    name = "deploy-refused"
    if not server.sagemaker.list_endpoints(NameContains=name)["Endpoints"]:
        create(server, name, answering(server, "old"))
    request = {"EndpointName": name, "EndpointConfigName": "x", "DeploymentConfig": deployment}
    request["EndpointConfigName"] = server.endpoint(name)["EndpointConfigName"]
    status, answer = server.post("UpdateEndpoint", json.dumps(request).encode())
    assert status == 400
    assert words in str(answer)
    assert server.endpoint(name)["EndpointStatus"] == "InService"


class NeverUp:
    """A fleet whose instances do not come up before they are stopped."""

    config_name, variants = "new", ()

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def start(self) -> None:
        assert self._stopped.wait(60)
        raise EndpointFailed("stopped")

    def stop(self, grace: float) -> None:
        self._stopped.set()


def test_instances_that_do_not_come_up_within_the_limit_of_the_deployment_are_given_up() -> None:
    old, routes = SimpleNamespace(config_name="old", variants=()), []
    endpoint = SimpleNamespace(name="e", fleet=old, traffic=SimpleNamespace(shift=routes.append))
    service = SimpleNamespace(settings=SimpleNamespace(time_factor=1.0), changed=threading.Condition())
    plan = deployments.Plan((1.0,), 0, 0, limit_seconds=0.2, alarms=())
    new: Any = NeverUp()
    deployment = deployments.Deployment(service, endpoint, new, plan, lambda *_: [], threading.Event())  # type: ignore[arg-type]
    with pytest.raises(deployments.RolledBack, match=r"took longer than MaximumExecutionTimeoutInSeconds \(0.2 s\)"):
        deployment.run()
    assert routes == [[(old, 1.0)]]  # no share of the traffic ever went to the new fleet


@given(
    st.sampled_from(["CANARY", "LINEAR"]),
    st.sampled_from(["CAPACITY_PERCENT", "INSTANCE_COUNT"]),
    st.integers(1, 120),
    st.integers(1, 20),
)
def test_the_shares_of_a_plan_rise_to_the_whole(kind: str, unit: str, value: int, instances: int) -> None:
    size = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}[kind]
    routing = {"Type": kind, size: {"Type": unit, "Value": value}, "WaitIntervalInSeconds": 1}
    try:
        plan = deployments.read({"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}, instances)
    except ValidationException as error:
        assert size in error.message
        return
    assert list(plan.shares) == sorted(set(plan.shares))
    assert plan.shares[0] > 0
    assert plan.shares[-1] == 1
    steps = [after - before for before, after in zip((0, *plan.shares), plan.shares, strict=False)]
    assert max(steps[:-1], default=0) <= 0.5 + 1e-9
