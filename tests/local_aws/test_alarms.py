"""Alarms: what a metric's values make of a state, and what a change of state sets off."""

import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_aws.alarms import calculate, state_of, values_of
from local_aws.metrics import Point, metrics, statistic
from tests.local_aws.endpoints import Load, config, create
from tests.local_aws.sagemaker_server import ACCOUNT, Server, running_server

# Breaches, does not, missing; newest last, as in AWS's table.
X, OK, N = True, False, None


@pytest.mark.parametrize(
    ("points", "missing", "ignore", "breaching", "not_breaching"),
    [
        # AWS's table for 3 of 3 ("How alarm state is evaluated when data is missing").
        ([OK, N, N], "OK", "OK", "OK", "OK"),
        ([N, N, N], "INSUFFICIENT_DATA", None, "ALARM", "OK"),
        ([X, X, X], "ALARM", "ALARM", "ALARM", "ALARM"),
        ([X, N, N], "ALARM", None, "ALARM", "OK"),
        ([OK, X, X], "OK", "OK", "OK", "OK"),
    ],
)
def test_missing_data_is_treated_as_asked(
    points: list[bool | None], missing: str, ignore: str | None, breaching: str, not_breaching: str
) -> None:
    newest_first = points[::-1]
    assert state_of(newest_first, 3, "missing") == missing
    assert state_of(newest_first, 3, "ignore") == ignore
    assert state_of(newest_first, 3, "breaching") == breaching
    assert state_of(newest_first, 3, "notBreaching") == not_breaching


def test_some_of_the_datapoints_are_enough_if_the_alarm_says_so() -> None:
    assert state_of([X, OK, X], 2, "missing") == "ALARM"
    assert state_of([OK, OK, X], 2, "missing") == "OK"


@given(st.lists(st.sampled_from([X, OK]), min_size=1, max_size=6), st.integers(1, 6))
def test_without_gaps_the_state_counts_breaching_points(points: list[bool], needed: int) -> None:
    for treatment in ("missing", "ignore", "breaching", "notBreaching"):
        expected = "ALARM" if sum(points) >= needed else "OK"
        assert state_of(points, needed, treatment) == expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_a_percentile_lies_between_the_extremes(values: list[float], percent: float) -> None:
    points = [Point(0, value, 1, value, value) for value in values]
    found = statistic(points, f"p{percent}")
    assert found is not None
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6
    assert statistic(points, "p100") == max(values)
    assert statistic(points, "Maximum") == max(values)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("100*errors/calls", 25),
        ("FILL(none,0)+1", 1),
        ("errors/zero", None),
        ("-(errors - calls)", 3),
        ("none+1", None),
    ],
)
def test_metric_math(expression: str, value: float | None) -> None:
    assert calculate(expression, {"errors": 1, "calls": 4, "zero": 0, "none": None}) == value


def test_other_metric_math_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="SEARCH"):
        calculate("SEARCH('x')", {})


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=20),
    st.lists(st.floats(0.01, 30), min_size=1, max_size=30),
    st.floats(0.01, 5),
)
def test_no_data_point_is_passed_over_however_late_the_looks_are(
    moments: list[float], pauses: list[float], period: float
) -> None:
    name = uuid.uuid4().hex
    metrics.add("Tests", name, {}, [Point(moment, 1, 1, 1, 1) for moment in sorted(moments)])
    alarm = SimpleNamespace(
        namespace="Tests", metric_name=name, dimensions=[], statistic="Sum", extended_statistic=None,
        metric_data_queries=[], evaluation_periods=1,
    )  # fmt: skip
    looks = [-0.1, *itertools.accumulate(pauses)]
    seen = [values_of(alarm, period, before, now)[0] or 0 for before, now in itertools.pairwise(looks)]
    assert sum(seen) >= sum(moment <= looks[-1] for moment in moments)


# ---------------------------------------------------------------------- on a server


@pytest.fixture(scope="module")
def server() -> Server:
    server = running_server()
    server.put("endpoint/model/weights", "W")
    return server


@pytest.fixture
def alarm(server: Server) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(**fields: Any) -> str:
        name = f"alarm-{uuid.uuid4().hex[:8]}"
        settings: dict[str, Any] = {
            "Period": 60,
            "EvaluationPeriods": 1,
            "Threshold": 10,
            "ComparisonOperator": "GreaterThanThreshold",
            **fields,
        }
        server.client("cloudwatch").put_metric_alarm(AlarmName=name, **settings)
        made.append(name)
        return name

    yield make
    server.client("cloudwatch").delete_alarms(AlarmNames=made)


def state(server: Server, name: str) -> str:
    described = server.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"][0]
    return str(described["StateValue"])


def put(server: Server, metric: str, *values: float) -> None:
    server.client("cloudwatch").put_metric_data(
        Namespace="Tests", MetricData=[{"MetricName": metric, "Values": list(values)}]
    )


def test_an_alarm_follows_its_metric_and_tells_its_topic_and_eventbridge(
    server: Server, alarm: Callable[..., str]
) -> None:
    queues = server.client("sqs")
    arns, urls = {}, {}
    for name in ("alarm-topic", "alarm-events"):
        urls[name] = server.queue_of_services(name)
        arns[name] = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}"
    topic = server.client("sns").create_topic(Name="alarms")["TopicArn"]
    server.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arns["alarm-topic"])
    metric = uuid.uuid4().hex
    name = alarm(Namespace="Tests", MetricName=metric, Statistic="Average", Period=300, AlarmActions=[topic])
    pattern = {"source": ["aws.cloudwatch"], "detail": {"alarmName": [name]}}
    server.client("events").put_rule(Name=name, EventPattern=json.dumps(pattern))
    server.client("events").put_targets(Rule=name, Targets=[{"Id": "q", "Arn": arns["alarm-events"]}])

    assert state(server, name) == "INSUFFICIENT_DATA"
    put(server, metric, 2, 4)
    server.wait_for(lambda: state(server, name) == "OK")
    put(server, metric, 100)
    server.wait_for(lambda: state(server, name) == "ALARM")
    server.wait_for(lambda: state(server, name) == "INSUFFICIENT_DATA")  # five minutes without data

    def received(name: str) -> Any:
        messages = queues.receive_message(QueueUrl=urls[name], MaxNumberOfMessages=10).get("Messages", [])
        return [json.loads(message["Body"]) for message in messages]

    told: list[Any] = []
    server.wait_for(lambda: told.extend(received("alarm-topic")) or told != [])  # type: ignore[func-returns-value]
    message = json.loads(told[0]["Message"])
    assert (message["AlarmName"], message["NewStateValue"], message["OldStateValue"]) == (name, "ALARM", "OK")
    seen: list[Any] = []
    server.wait_for(lambda: seen.extend(received("alarm-events")) or len(seen) >= 3)  # type: ignore[func-returns-value]
    changes = {(event["detail"]["previousState"]["value"], event["detail"]["state"]["value"]) for event in seen}
    assert changes == {("INSUFFICIENT_DATA", "OK"), ("OK", "ALARM"), ("ALARM", "INSUFFICIENT_DATA")}
    assert {event["detail-type"] for event in seen} == {"CloudWatch Alarm State Change"}


def test_an_alarm_can_look_at_a_percentile_and_at_metric_math(server: Server, alarm: Callable[..., str]) -> None:
    metric = uuid.uuid4().hex
    p95 = alarm(Namespace="Tests", MetricName=metric, ExtendedStatistic="p95", Period=300)
    p50 = alarm(Namespace="Tests", MetricName=metric, ExtendedStatistic="p50", Period=300)
    stat = {"Metric": {"Namespace": "Tests", "MetricName": metric}, "Period": 300}
    share = [
        {"Id": "top", "MetricStat": {**stat, "Stat": "Maximum"}, "ReturnData": False},
        {"Id": "all", "MetricStat": {**stat, "Stat": "Sum"}, "ReturnData": False},
        {"Id": "share", "Expression": "100*top/all", "ReturnData": True},
    ]
    name = f"math-{metric}"
    server.client("cloudwatch").put_metric_alarm(
        AlarmName=name, Metrics=share, EvaluationPeriods=1, Threshold=50, ComparisonOperator="GreaterThanThreshold"
    )
    put(server, metric, *[1.0] * 18, 100.0, 100.0)
    server.wait_for(lambda: [state(server, p95), state(server, p50), state(server, name)] == ["ALARM", "OK", "OK"])


def test_a_state_that_is_set_by_hand_is_kept_until_the_next_evaluation(
    server: Server, alarm: Callable[..., str]
) -> None:
    metric = {"Namespace": "Tests", "MetricName": uuid.uuid4().hex, "Statistic": "Sum", "Period": 300}
    name = alarm(**metric, TreatMissingData="notBreaching")
    server.wait_for(lambda: state(server, name) == "OK")
    server.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="test")
    assert state(server, name) == "ALARM"
    server.wait_for(lambda: state(server, name) == "OK")


def test_an_endpoints_metrics_are_those_of_its_variant(server: Server) -> None:
    name = f"metrics-{uuid.uuid4().hex[:8]}"
    create(server, name, config(server, Environment={"ANSWER": "x", "LOCAL_AWS_FAULTS": "error_share=0.25"}))
    with Load(server, name, per_second=40) as load:
        server.wait_for(lambda: len(load.outcomes) >= 40)
    with Load(server, name, per_second=20, body="fail 400"):
        time.sleep(0.3)
    time.sleep(0.3)

    def total(metric: str, *statistics: str) -> dict[str, float]:
        dimensions = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": "AllTraffic"}]
        extended = [one for one in statistics if one.startswith("p")]
        found = server.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName=metric,
            Dimensions=dimensions,
            StartTime=time.time() - 600,
            EndTime=time.time() + 60,
            Period=3600,
            **({"ExtendedStatistics": extended} if extended else {"Statistics": list(statistics)}),
        )["Datapoints"]
        answer: dict[str, float] = found[0].get("ExtendedStatistics", found[0])
        return answer

    invocations = total("Invocations", "Sum")["Sum"]
    assert invocations > len(load.outcomes)
    assert total("Invocation5XXErrors", "Sum")["Sum"] == pytest.approx(0.25 * invocations, abs=1)
    assert total("Invocation4XXErrors", "Sum")["Sum"] >= 3
    assert total("Invocation4XXErrors", "SampleCount")["SampleCount"] == invocations
    latency = total("ModelLatency", "p50", "p95")
    assert 0 < latency["p50"] <= latency["p95"] < 5e6
    assert total("OverheadLatency", "Average")["Average"] > 0
    server.sagemaker.delete_endpoint(EndpointName=name)
