"""CloudFormation types of operations: queues, dashboards and budgets, over their services' own APIs."""

import json
from typing import Any

from local_aws.events import client

Properties = dict[str, Any]

QUEUE_PROPERTIES = (
    "DelaySeconds KmsDataKeyReusePeriodSeconds KmsMasterKeyId MaximumMessageSize MessageRetentionPeriod "
    "ReceiveMessageWaitTimeSeconds RedrivePolicy SqsManagedSseEnabled VisibilityTimeout"
)


def put_queue(name: str, properties: Properties, exists: bool) -> tuple[str, dict[str, str]]:
    """The queue's URL and attributes."""
    sqs = client("sqs")
    name = name[:80]
    attributes = {key: _text(properties[key]) for key in QUEUE_PROPERTIES.split() if key in properties}
    tags = {tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])}
    if exists:
        url = str(sqs.get_queue_url(QueueName=name)["QueueUrl"])
        sqs.set_queue_attributes(QueueUrl=url, Attributes=attributes)
        if tags:
            sqs.tag_queue(QueueUrl=url, Tags=tags)
    else:
        url = str(sqs.create_queue(QueueName=name, Attributes=attributes, tags=tags)["QueueUrl"])
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    return url, {"Arn": arn, "QueueName": name, "QueueUrl": url}


def delete_queue(url: str) -> None:
    client("sqs").delete_queue(QueueUrl=url)


def put_dashboard(name: str, properties: Properties) -> str:
    """The dashboard's name. A body that is no JSON with widgets is refused, as CloudWatch refuses it."""
    body = properties["DashboardBody"]
    try:
        widgets = json.loads(body)["widgets"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"DashboardBody is no JSON object with a list of widgets: {error!r}") from None
    if without := [place for place, widget in enumerate(widgets) if not {"type", "properties"} <= widget.keys()]:
        raise ValueError(f"DashboardBody: the widgets {without} lack type or properties")
    client("cloudwatch").put_dashboard(DashboardName=name, DashboardBody=body)
    return name


def delete_dashboard(name: str) -> None:
    client("cloudwatch").delete_dashboards(DashboardNames=[name])


def put_budget(name: str, properties: Properties, exists: bool) -> str:
    """The budget's name. Nothing costs anything here, so it never tells anybody."""
    budgets, account = client("budgets"), _account()
    budget = {"BudgetName": name, **properties["Budget"]}
    if "BudgetLimit" in budget:
        budget["BudgetLimit"] = {**budget["BudgetLimit"], "Amount": str(budget["BudgetLimit"]["Amount"])}
    notifications = [
        {
            "Notification": {**one["Notification"], "Threshold": float(one["Notification"]["Threshold"])},
            "Subscribers": one["Subscribers"],
        }
        for one in properties.get("NotificationsWithSubscribers", [])
    ]
    if exists:  # the service's UpdateBudget knows no notifications
        delete_budget(name)
    tags = properties.get("ResourceTags", [])
    budgets.create_budget(
        AccountId=account, Budget=budget, NotificationsWithSubscribers=notifications, ResourceTags=tags
    )
    return str(budget["BudgetName"])


def delete_budget(name: str) -> None:
    client("budgets").delete_budget(AccountId=_account(), BudgetName=name)


def _account() -> str:
    return str(client("sts").get_caller_identity()["Account"])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
