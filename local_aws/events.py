"""EventBridge that delivers: events of S3, SageMaker and callers reach the targets of the rules that match.

moto keeps rules and matches patterns; its targets stop at logs and queues, and what fails there is swallowed. Here every
delivery runs in its own thread, is tried again, and ends in the rule's dead-letter queue and in the log if it fails.
"""

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import boto3
from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult
from moto.events.models import EventBus, EventsBackend, Rule, events_backends
from moto.s3 import notifications as s3_notifications
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.sns.models import sns_backends
from moto.sqs.models import sqs_backends

from local_aws import authorization, identity, neighbours
from local_aws.authorization import AccessDenied, Caller
from local_aws.request_actions import Place
from local_aws.settings import Settings

Event = dict[str, Any]
RETRY_SECONDS = 0.5
MOST_ATTEMPTS = 3  # of the 185 that AWS makes over a day: what fails here does not mend itself

log = logging.getLogger(__name__)
_settings: Settings


class TargetError(Exception):
    """A target cannot take the event; the message says why."""


def install(settings: Settings) -> None:
    """Take over the delivery of events from moto."""
    global _settings
    _settings = settings
    Rule.send_to_targets = _send_to_targets
    EventBus._remove_principals_statements = lambda bus, *principals: None  # AWS replaces statements by their ids alone
    EventsBackend._normalize_event_bus_arn = _own_bus(EventsBackend._normalize_event_bus_arn)
    s3_notifications._send_event_bridge_message = _send_s3_event
    S3Response.get_bucket_notification = _with_event_bridge(S3Response.get_bucket_notification)


def emit(source: str, detail_type: str, detail: dict[str, Any], resources: list[str]) -> None:
    """Send an event of an AWS service to the default bus."""
    event = {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": detail_type,
        "source": source,
        "account": _settings.account,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": _settings.region,
        "resources": resources,
        "detail": detail,
    }
    backend = events_backends[_settings.account][_settings.region]
    for rule in list(backend.event_buses["default"].rules.values()):
        _send_to_targets(rule, event)


def put_on_bus(name: str, event: Event, caller: Caller) -> None:
    """An event that a rule sends from one bus to another one, which is ours: what matches there gets it, as it is.

    Raises AccessDenied if the caller, or anybody of its account, may not; TargetError if there is no such bus.
    """
    told = {"events:source": event["source"], "events:detail-type": event["detail-type"]}
    arn = Place(_settings.region, _settings.account).arn("events", f"event-bus/{name}")
    authorization.authorize(caller, "events:PutEvents", arn, told)
    bus = events_backends[_settings.account][_settings.region].event_buses.get(name)
    if bus is None:
        raise TargetError(f"the event bus {arn} does not exist")
    for rule in list(bus.rules.values()):
        _send_to_targets(rule, event)


def client(service: str, credentials: dict[str, str] | None = None) -> Any:
    """A client of this very server, with the credentials of an assumed role if given."""
    keys = credentials or {}
    return boto3.client(
        service,
        region_name=_settings.region,
        endpoint_url=_settings.url,
        aws_access_key_id=keys.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=keys.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=keys.get("AWS_SESSION_TOKEN"),
    )


def _own_bus(original: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    """moto takes the ARN of any account's bus for that of its own of the same name."""

    def normalize(self: Any, name: str | None) -> str:
        own = f":{self.region_name}:{self.account_id}:event-bus/"
        if name is not None and name.startswith("arn:") and own not in name:
            text = f"{name} is a bus of another account or region: only a rule's target may name one; name one of{own}"
            raise JsonRESTError("ValidationException", text)
        return original(self, name)

    return normalize


def _with_event_bridge(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """moto keeps that a bucket sends its events to EventBridge, and leaves it out of its answer."""

    def answer(self: Any) -> Any:
        configuration = self.backend.get_bucket_notification_configuration(self.bucket_name)
        if configuration is not None and configuration.event_bridge is not None:
            serialized = self.serialized
            self.serialized = lambda result: serialized(ActionResult({**result.result, "EventBridgeConfiguration": {}}))
        return original(self)

    return answer


def _send_s3_event(account_id: str, bucket: Any, event_name: Any, key: Any) -> None:
    tagging = s3_notifications.S3NotificationEvent.OBJECT_TAGGING_PUT_EVENT
    if event_name == tagging and not s3_backends[account_id]["aws"].tagger.get_tag_dict_for_resource(key.arn):
        return  # moto announces tags for every new object; AWS only where there are some
    detail = {
        "version": "0",
        "bucket": {"name": bucket.name},
        "object": {
            "key": key.name,
            "size": key.size,
            "etag": key.etag.replace('"', ""),
            "version-id": key.version_id,
            "sequencer": f"{time.time_ns():016X}",
        },
        "request-id": uuid.uuid4().hex[:16].upper(),
        "requester": account_id,
        "reason": str(getattr(event_name, "value", event_name)).split(":")[1],
    }
    emit("aws.s3", s3_notifications._detail_type(event_name), detail, [bucket.arn])


def _send_to_targets(rule: Rule, original_event: Event, transform_input: bool = True) -> None:
    if rule.state == "DISABLED" or not rule.event_pattern.matches_event(original_event):
        return
    if rule.scheduled_expression and not rule.event_pattern.get_pattern():
        return  # a rule that only fires by the clock
    for target in rule.targets:
        name = f"rule {rule.name} -> {target['Arn']}"
        log.info("%s: %s", name, original_event["detail-type"])
        deliver(name, target, json.loads(json.dumps(original_event, default=str)))


def deliver(name: str, target: dict[str, Any], event: Event) -> None:
    """Send `event` to a target in the background; `name` is who sends, for the log."""
    threading.Thread(target=_deliver, args=(name, target, event), name=name, daemon=True).start()


def _deliver(name: str, target: dict[str, Any], event: Event) -> None:
    attempts = min(MOST_ATTEMPTS, target.get("RetryPolicy", {}).get("MaximumRetryAttempts", MOST_ATTEMPTS) + 1)
    error: Exception | None = None
    for attempt in range(attempts):
        try:
            send(target, event)
            return
        except (TargetError, identity.RoleError, AccessDenied) as caught:
            error = caught
            break  # trying again changes nothing
        except Exception as caught:  # of any service; told below and never lost
            error = caught
            time.sleep(RETRY_SECONDS * 2**attempt)
    log.error("%s: not delivered: %s", name, error)
    _count_failure(name)
    queue = target.get("DeadLetterConfig", {}).get("Arn")
    if queue:
        _to_queue(
            _service_that_assumes(event),
            queue,
            json.dumps(event),
            {"ERROR_MESSAGE": str(error), "TARGET_ARN": target["Arn"]},
        )


def send(target: dict[str, Any], event: Event) -> None:
    """Hand `event` to one target of a rule, or of a schedule."""
    service = target["Arn"].split(":")[2]
    if service == "sagemaker":
        parameters = target.get("SageMakerPipelineParameters", {}).get("PipelineParameterList", [])
        credentials = identity.assume(target["RoleArn"], _service_that_assumes(event))
        answer = client("sagemaker", credentials).start_pipeline_execution(
            PipelineName=target["Arn"],
            PipelineParameters=[
                {"Name": parameter["Name"], "Value": str(_value(parameter["Value"], event))} for parameter in parameters
            ],
        )
        log.info("started %s", answer["PipelineExecutionArn"])
    elif service == "sns":
        publish(_service_that_assumes(event), target["Arn"], target_input(target, event))
    elif service == "sqs":
        _to_queue(_service_that_assumes(event), target["Arn"], target_input(target, event), {})
    elif service == "events":
        _to_bus(target, event)
    else:
        raise TargetError(f"targets of the service {service!r} are not implemented; known: events, sagemaker, sns, sqs")


def _to_bus(target: dict[str, Any], event: Event) -> None:
    """Hand the event to another bus, of this server or of a neighbour's, as the target's role."""
    if (event["region"], event["account"]) != (_settings.region, _settings.account):
        raise TargetError(
            f"the event came from a bus of account {event['account']} in {event['region']}; from there it is not sent on to "
            "a third one"
        )
    if "RoleArn" not in target:
        raise TargetError("a target that is an event bus needs a RoleArn: the role that may events:PutEvents on it")
    identity.check(target["RoleArn"], _service_that_assumes(event))
    caller = Caller(target["RoleArn"], "events")
    _, _, _, region, account, resource = target["Arn"].split(":", 5)
    place, name = Place(region, account), resource.removeprefix("event-bus/")
    if place == Place(_settings.region, _settings.account):
        put_on_bus(name, event, caller)
    elif refused := neighbours.ask(
        neighbours.at(place), "event", {"bus": name, "event": event}, neighbours.told(caller.principal, caller.name)
    ):
        raise TargetError(refused)


def _service_that_assumes(event: Event) -> str:
    return "scheduler.amazonaws.com" if event["source"] == "aws.scheduler" else "events.amazonaws.com"


def target_input(target: dict[str, Any], event: Event) -> str:
    """What the target receives: the event, a constant, a part of the event, or a template filled from it."""
    if "Input" in target:
        return str(target["Input"])
    if "InputPath" in target:
        return json.dumps(_value(target["InputPath"], event))
    transformer = target.get("InputTransformer")
    if transformer is None:
        return json.dumps(event)
    values = {name: _value_or_nothing(path, event) for name, path in transformer.get("InputPathsMap", {}).items()}

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            return match[0]
        value = values[match[1]]
        return value if isinstance(value, str) else json.dumps(value)

    return re.sub(r"<([A-Za-z0-9_.-]+)>", fill, transformer["InputTemplate"])


def _value(text: str, event: Event) -> Any:
    """`text` itself, or what a JSON path such as $.detail.object.key names in the event."""
    if not text.startswith("$."):
        return text
    value: Any = event
    for part in text[2:].split("."):
        if not isinstance(value, dict) or part not in value:
            raise TargetError(f"the path {text} names nothing in the event; its detail has {sorted(event['detail'])}")
        value = value[part]
    return value


def _value_or_nothing(path: str, event: Event) -> Any:
    """A template's variable whose path names nothing is left out of the text, and is no failure."""
    try:
        return _value(path, event)
    except TargetError:
        return ""


def publish(service: str, topic: str, message: str, **fields: str) -> None:
    """Publish to an SNS topic as a service, which the topic's policy and that of its key must allow. Raises AccessDenied."""
    sender = Caller(service)
    # Alarms come in the account's name, which a topic's default policy lets pass; events of EventBridge do not.
    owner = {"aws:SourceOwner": _settings.account} if service == "cloudwatch.amazonaws.com" else {}
    authorization.authorize(sender, "sns:Publish", topic, owner)
    found = sns_backends[_settings.account][_settings.region].topics.get(topic)
    _use_key(sender, getattr(found, "kms_master_key_id", None))
    client("sns").publish(TopicArn=topic, Message=message, **fields)


def _use_key(sender: Caller, key: str | None) -> None:
    """What a service does with the KMS key of an encrypted topic or queue."""
    if key:
        for action in ("kms:GenerateDataKey", "kms:Decrypt"):
            authorization.authorize(sender, action, key)


def _to_queue(service: str, arn: str, body: str, attributes: dict[str, str]) -> None:
    sender = Caller(service)
    authorization.authorize(sender, "sqs:SendMessage", arn)
    found = sqs_backends[_settings.account][_settings.region].queues.get(arn.rsplit(":", 1)[-1])
    _use_key(sender, getattr(found, "kms_master_key_id", None))
    queues = client("sqs")
    url = queues.get_queue_url(QueueName=arn.rsplit(":", 1)[-1])["QueueUrl"]
    values = {name: {"DataType": "String", "StringValue": value[:1024]} for name, value in attributes.items() if value}
    queues.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=values)


def _count_failure(name: str) -> None:
    rule = name.removeprefix("rule ").split(" -> ")[0]
    client("cloudwatch").put_metric_data(
        Namespace="AWS/Events",
        MetricData=[
            {"MetricName": "FailedInvocations", "Dimensions": [{"Name": "RuleName", "Value": rule}], "Value": 1.0}
        ],
    )
