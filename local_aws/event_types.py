"""CloudFormation types of EventBridge: buses and who may send to them. Rules are moto's."""

import json
from typing import Any

from moto.events.models import events_backends

from local_aws.events import client

Properties = dict[str, Any]


def put_bus(name: str, properties: Properties, exists: bool) -> tuple[str, dict[str, str]]:
    """The bus's name and attributes."""
    events, tags = client("events"), properties.get("Tags", [])
    if not exists:
        events.create_event_bus(Name=name)
    arn = str(events.describe_event_bus(Name=name)["Arn"])
    _, _, _, region, account, _ = arn.split(":")
    events_backends[account][region].event_buses[name].description = properties.get("Description")  # moto has no update
    old = {tag["Key"] for tag in events.list_tags_for_resource(ResourceARN=arn)["Tags"]}
    if gone := sorted(old - {tag["Key"] for tag in tags}):
        events.untag_resource(ResourceARN=arn, TagKeys=gone)
    if tags:
        events.tag_resource(ResourceARN=arn, Tags=tags)
    return name, {"Arn": arn, "Name": name}


def delete_bus(name: str) -> None:
    client("events").delete_event_bus(Name=name)


def put_bus_policy(properties: Properties) -> str:
    """One statement of a bus's policy, given as such or as action, principal and condition; returns an id of it."""
    events = client("events")
    bus, sid = properties.get("EventBusName", "default"), properties["StatementId"]
    statement = properties.get("Statement")
    if statement is None:
        principal = properties["Principal"]
        statement = {
            "Effect": "Allow",
            "Principal": principal if principal == "*" else {"AWS": f"arn:aws:iam::{principal}:root"},
            "Action": properties["Action"],
            "Resource": events.describe_event_bus(Name=bus)["Arn"],
        }
        if condition := properties.get("Condition"):
            statement["Condition"] = {condition["Type"]: {condition["Key"]: condition["Value"]}}
    document = {"Version": "2012-10-17", "Statement": [{**statement, "Sid": sid}]}
    events.put_permission(EventBusName=bus, Policy=json.dumps(document))
    return f"{bus}|{sid}"


def delete_bus_policy(properties: Properties) -> None:
    bus, sid = properties.get("EventBusName", "default"), properties["StatementId"]
    client("events").remove_permission(EventBusName=bus, StatementId=sid)
