"""Queues, dashboards and budgets as CloudFormation makes, changes and deletes them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.conftest import ACCOUNT
from tests.local_aws.test_cloudformation import deploy, outputs_of

Client = Callable[[str], Any]
STACK = "operations-types"


def resources(body: str, budget: int, seconds: int) -> dict[str, Any]:
    return {
        "Queue": {
            "Type": "AWS::SQS::Queue",
            "Properties": {"MessageRetentionPeriod": seconds, "SqsManagedSseEnabled": True},
        },
        "Dashboard": {
            "Type": "AWS::CloudWatch::Dashboard",
            "Properties": {"DashboardName": "page", "DashboardBody": body},
        },
        "Budget": {
            "Type": "AWS::Budgets::Budget",
            "Properties": {
                "Budget": {
                    "BudgetName": "all",
                    "BudgetType": "COST",
                    "TimeUnit": "MONTHLY",
                    "BudgetLimit": {"Amount": budget, "Unit": "USD"},
                },
                "NotificationsWithSubscribers": [
                    {
                        "Notification": {
                            "ComparisonOperator": "GREATER_THAN",
                            "NotificationType": "ACTUAL",
                            "Threshold": 80,
                        },
                        "Subscribers": [{"SubscriptionType": "EMAIL", "Address": "ann@example.com"}],
                    }
                ],
            },
        },
    }


OUTPUTS = {"Queue": {"Value": {"Fn::GetAtt": ["Queue", "Arn"]}}, "Url": {"Value": {"Ref": "Queue"}}}


def test_queue_dashboard_and_budget_are_made_changed_and_deleted(client: Client) -> None:
    widget = {"type": "text", "properties": {"markdown": "hello"}}
    stack = deploy(client, STACK, resources(json.dumps({"widgets": [widget]}), 100, 600), OUTPUTS)
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    outputs = outputs_of(stack)
    sqs, cloudwatch, budgets = client("sqs"), client("cloudwatch"), client("budgets")

    def attributes() -> dict[str, str]:
        found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=outputs["Url"], AttributeNames=["All"])["Attributes"]
        return found

    assert attributes()["QueueArn"] == outputs["Queue"]
    assert attributes()["MessageRetentionPeriod"] == "600" and attributes()["SqsManagedSseEnabled"] == "true"
    assert json.loads(cloudwatch.get_dashboard(DashboardName="page")["DashboardBody"]) == {"widgets": [widget]}
    assert budgets.describe_budget(AccountId=ACCOUNT, BudgetName="all")["Budget"]["BudgetLimit"]["Amount"] == "100"

    stack = deploy(client, STACK, resources('{"widgets": []}', 250, 1200), OUTPUTS)
    assert stack["StackStatus"] == "UPDATE_COMPLETE"
    assert attributes()["MessageRetentionPeriod"] == "1200"
    assert json.loads(cloudwatch.get_dashboard(DashboardName="page")["DashboardBody"]) == {"widgets": []}
    assert budgets.describe_budget(AccountId=ACCOUNT, BudgetName="all")["Budget"]["BudgetLimit"]["Amount"] == "250"
    (told,) = budgets.describe_notifications_for_budget(AccountId=ACCOUNT, BudgetName="all")["Notifications"]
    assert told["Threshold"] == 80.0

    client("cloudformation").delete_stack(StackName=STACK)
    with pytest.raises(ClientError, match="doesn't exist"):
        budgets.describe_budget(AccountId=ACCOUNT, BudgetName="all")
    assert cloudwatch.list_dashboards(DashboardNamePrefix="page")["DashboardEntries"] == []
    with pytest.raises(ClientError, match="does not exist"):
        attributes()


@pytest.mark.parametrize(
    ("body", "said"),
    [("no json", "no JSON object"), ("{}", "no JSON object"), ('{"widgets": [{"type": "text"}]}', "lack type or properties")],
)  # fmt: skip
def test_a_dashboard_that_cloudwatch_would_refuse_fails_the_deployment(client: Client, body: str, said: str) -> None:
    page = {"Type": "AWS::CloudWatch::Dashboard", "Properties": {"DashboardBody": body}}
    stack = deploy(client, f"bad-{abs(hash(body))}", {"Page": page})
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    events = client("cloudformation").describe_stack_events(StackName=stack["StackName"])["StackEvents"]
    assert [event for event in events if said in event.get("ResourceStatusReason", "")]
