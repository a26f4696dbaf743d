"""Events reach the targets of the rules that match them, and what cannot be delivered is kept."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from local_aws import events
from tests.local_aws.conftest import ACCOUNT, REGION, create_pipeline, create_role, wait_for

Client = Callable[[str], Any]


@pytest.fixture
def queue(client: Client, request: pytest.FixtureRequest) -> tuple[str, str]:
    """URL and ARN of a fresh queue."""
    name = request.node.name[:60].replace("[", "-").replace("]", "")
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
    services = {"Service": ["events.amazonaws.com", "scheduler.amazonaws.com"]}
    sends = {"Effect": "Allow", "Principal": services, "Action": "sqs:SendMessage", "Resource": arn}
    policy = json.dumps({"Statement": [sends]})
    url = client("sqs").create_queue(QueueName=name, Attributes={"Policy": policy})["QueueUrl"]
    return url, arn


def messages(client: Client, url: str) -> list[Any]:
    answer = client("sqs").receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
    return list(answer.get("Messages", []))


def notifying_bucket(client: Client, name: str) -> None:
    client("s3").create_bucket(Bucket=name)
    client("s3").put_bucket_notification_configuration(
        Bucket=name, NotificationConfiguration={"EventBridgeConfiguration": {}}
    )


def rule(client: Client, name: str, pattern: dict[str, Any], target: dict[str, Any]) -> None:
    client("events").put_rule(Name=name, EventPattern=json.dumps(pattern))
    client("events").put_targets(Rule=name, Targets=[{"Id": "one", **target}])


def test_a_new_object_starts_the_pipeline_with_its_key(client: Client) -> None:
    notifying_bucket(client, "arrivals")
    role = create_role(client, "starter", "events.amazonaws.com")
    create_pipeline(client, "on-arrival", role, [{"Name": "Key", "Type": "String"}])
    pattern = {
        "source": ["aws.s3"],
        "detail-type": ["Object Created"],
        "detail": {"bucket": {"name": ["arrivals"]}, "object": {"key": [{"wildcard": "in/*.manifest"}]}},
    }
    arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:pipeline/on-arrival"
    parameters = {"PipelineParameterList": [{"Name": "Key", "Value": "$.detail.object.key"}]}
    rule(client, "arrival", pattern, {"Arn": arn, "RoleArn": role, "SageMakerPipelineParameters": parameters})

    client("s3").put_object(Bucket="arrivals", Key="in/data.jsonl", Body=b"{}")
    client("s3").put_object(Bucket="arrivals", Key="in/a.manifest", Body=b"[]")

    sagemaker = client("sagemaker")
    started = wait_for(
        lambda: sagemaker.list_pipeline_executions(PipelineName="on-arrival")["PipelineExecutionSummaries"]
    )
    assert len(started) == 1
    values = sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=started[0]["PipelineExecutionArn"])
    assert values["PipelineParameters"] == [{"Name": "Key", "Value": "in/a.manifest"}]


def test_a_bucket_without_eventbridge_announces_nothing(client: Client, queue: tuple[str, str]) -> None:
    client("s3").create_bucket(Bucket="silent")
    notifying_bucket(client, "loud")
    rule(client, "both", {"source": ["aws.s3"], "detail": {"bucket": {"name": ["silent", "loud"]}}}, {"Arn": queue[1]})
    client("s3").put_object(Bucket="silent", Key="a", Body=b"")
    client("s3").put_object(Bucket="loud", Key="b", Body=b"")
    (message,) = wait_for(lambda: messages(client, queue[0]))
    assert json.loads(message["Body"])["detail"]["bucket"]["name"] == "loud"


def test_an_undeliverable_event_ends_in_the_dead_letter_queue_with_the_reason(
    client: Client, queue: tuple[str, str]
) -> None:
    notifying_bucket(client, "lost")
    role = create_role(client, "wrong-service", "lambda.amazonaws.com")
    target = {
        "Arn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:pipeline/anything",
        "RoleArn": role,
        "DeadLetterConfig": {"Arn": queue[1]},
    }
    rule(client, "failing", {"source": ["aws.s3"], "detail": {"bucket": {"name": ["lost"]}}}, target)
    client("s3").put_object(Bucket="lost", Key="a", Body=b"")
    (message,) = wait_for(lambda: messages(client, queue[0]))
    reason = message["MessageAttributes"]["ERROR_MESSAGE"]["StringValue"]
    assert "events.amazonaws.com cannot assume" in reason and "wrong-service" in reason


def test_an_events_parts_fill_an_input_template(client: Client, queue: tuple[str, str]) -> None:
    notifying_bucket(client, "templated")
    transformer = {
        "InputPathsMap": {"key": "$.detail.object.key", "size": "$.detail.object.size"},
        "InputTemplate": '"<key> has <size> bytes"',
    }
    pattern = {"source": ["aws.s3"], "detail": {"bucket": {"name": ["templated"]}}}
    rule(client, "templating", pattern, {"Arn": queue[1], "InputTransformer": transformer})
    client("s3").put_object(Bucket="templated", Key="x", Body=b"1234")
    (message,) = wait_for(lambda: messages(client, queue[0]))
    assert message["Body"] == '"x has 4 bytes"'


def test_a_rule_sends_events_to_another_bus_as_a_role_that_may(client: Client, queue: tuple[str, str]) -> None:
    role = create_role(client, "between-buses", "events.amazonaws.com")
    bus = client("events").create_event_bus(Name="second")["EventBusArn"]
    rule(client, "onwards", {"source": ["travels"]}, {"Arn": bus, "RoleArn": role})
    client("events").put_rule(Name="there", EventBusName="second", EventPattern=json.dumps({"account": [ACCOUNT]}))
    client("events").put_targets(Rule="there", EventBusName="second", Targets=[{"Id": "one", "Arn": queue[1]}])
    client("events").put_events(Entries=[{"Source": "travels", "DetailType": "x", "Detail": '{"a": 1}'}])
    (message,) = wait_for(lambda: messages(client, queue[0]), 60)
    event = json.loads(message["Body"])
    assert (event["source"], event["account"], event["detail"]) == ("travels", ACCOUNT, {"a": 1})


@pytest.mark.parametrize(
    ("bus", "role", "said"),
    [
        ("second", False, "needs a RoleArn"),
        ("no-such-bus", True, "event-bus/no-such-bus does not exist"),
    ],
)
def test_an_event_that_no_bus_takes_ends_in_the_dead_letter_queue(
    client: Client, queue: tuple[str, str], bus: str, role: bool, said: str
) -> None:
    arn = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/{bus}"
    sender = {"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/between-buses"} if role else {}
    rule(client, f"to-{bus}", {"source": [bus]}, {"Arn": arn, **sender, "DeadLetterConfig": {"Arn": queue[1]}})
    client("events").put_events(Entries=[{"Source": bus, "DetailType": "x", "Detail": "{}"}])
    (message,) = wait_for(lambda: messages(client, queue[0]), 60)
    assert said in message["MessageAttributes"]["ERROR_MESSAGE"]["StringValue"]


def test_a_disabled_rule_delivers_nothing(client: Client, queue: tuple[str, str]) -> None:
    pattern = {"source": ["tests"]}
    rule(client, "resting", pattern, {"Arn": queue[1]})
    put = {"Source": "tests", "DetailType": "x", "Detail": "{}"}
    client("events").put_events(Entries=[put])
    assert len(wait_for(lambda: messages(client, queue[0]))) == 1
    client("events").disable_rule(Name="resting")
    client("events").put_events(Entries=[put])
    client("sqs").send_message(QueueUrl=queue[0], MessageBody="after")
    assert [message["Body"] for message in wait_for(lambda: messages(client, queue[0]))] == ["after"]


@pytest.mark.parametrize(
    ("target", "received"),
    [
        ({"Input": '"constant"'}, '"constant"'),
        ({"InputPath": "$.detail.object"}, '{"key": "k"}'),
        ({}, '{"detail": {"object": {"key": "k"}}}'),
        ({"InputTransformer": {"InputTemplate": "<unknown>"}}, "<unknown>"),
        ({"InputTransformer": {"InputPathsMap": {"a": "$.detail.no"}, "InputTemplate": '"why: <a>"'}}, '"why: "'),
    ],
)
def test_target_input(target: dict[str, Any], received: str) -> None:
    assert events.target_input(target, {"detail": {"object": {"key": "k"}}}) == received


def test_a_path_that_names_nothing_is_told() -> None:
    with pytest.raises(events.TargetError, match=r"\$\.detail\.nowhere names nothing"):
        events.target_input({"InputPath": "$.detail.nowhere"}, {"detail": {"object": {}}})
