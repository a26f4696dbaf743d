"""Changes of stacks: the second deployment, the one that fails, what is removed and what is kept."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

import local_aws
from tests.local_aws.test_cloudformation import deploy

Client = Callable[[str], Any]
CDK = Path(__file__).parents[2] / "node_modules" / ".bin" / "cdk"


def bucket(name: str, versions: str = "Enabled", **more: Any) -> dict[str, Any]:
    properties = {"BucketName": name, "VersioningConfiguration": {"Status": versions}, **more}
    return {"Type": "AWS::S3::Bucket", "Properties": properties}


def versions_of(client: Client, name: str) -> str:
    return str(client("s3").get_bucket_versioning(Bucket=name)["Status"])


def bucket_names(client: Client) -> list[str]:
    return [found["Name"] for found in client("s3").list_buckets()["Buckets"]]


def test_a_failed_update_puts_back_what_it_had_changed_and_names_the_resource(client: Client) -> None:
    deploy(client, "back", {"A": bucket("back-a"), "B": bucket("back-b")})
    wrong = {**bucket("back-b", WebsiteConfiguration={}), "DependsOn": "A"}
    stack = deploy(client, "back", {"A": bucket("back-a", "Suspended"), "B": wrong})
    assert stack["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    assert versions_of(client, "back-a") == "Enabled"
    events = client("cloudformation").describe_stack_events(StackName="back")["StackEvents"]
    failed = [event for event in events if event["LogicalResourceId"] == "B"]
    assert failed and "WebsiteConfiguration" in failed[0]["ResourceStatusReason"]
    assert deploy(client, "back", {"A": bucket("back-a", "Suspended")})["StackStatus"] == "UPDATE_COMPLETE"
    assert versions_of(client, "back-a") == "Suspended"


def test_what_an_update_removes_is_deleted_unless_it_is_to_be_retained_and_can_come_back(client: Client) -> None:
    kept = {**bucket("remove-kept"), "DeletionPolicy": "Retain"}
    deploy(client, "remove", {"Stays": bucket("remove-stays"), "Kept": kept, "Goes": bucket("remove-goes")})
    deploy(client, "remove", {"Stays": bucket("remove-stays")})
    assert "remove-kept" in bucket_names(client) and "remove-goes" not in bucket_names(client)
    deploy(client, "remove", {"Stays": bucket("remove-stays"), "Goes": bucket("remove-goes")})
    assert "remove-goes" in bucket_names(client)


def test_change_sets_of_one_name_belong_to_their_stacks(client: Client) -> None:
    cloudformation = client("cloudformation")
    for stack in ("namesake-a", "namesake-b"):
        cloudformation.create_change_set(
            StackName=stack,
            ChangeSetName="same",
            ChangeSetType="CREATE",
            TemplateBody=json.dumps({"Resources": {"Data": bucket(stack)}}),
        )
    cloudformation.delete_change_set(StackName="namesake-a", ChangeSetName="same")
    with pytest.raises(ClientError, match="ChangeSetNotFound"):
        cloudformation.describe_change_set(StackName="namesake-a", ChangeSetName="same")
    assert cloudformation.describe_change_set(StackName="namesake-b", ChangeSetName="same")["StackName"] == "namesake-b"


def test_a_stack_without_a_change_set_that_fails_leaves_nothing_and_says_why(client: Client) -> None:
    cloudformation = client("cloudformation")
    resources = {"Good": bucket("direct-good"), "Bad": {**bucket("direct-bad", Bogus=1), "DependsOn": "Good"}}
    cloudformation.create_stack(StackName="direct", TemplateBody=json.dumps({"Resources": resources}))
    stack = cloudformation.describe_stacks(StackName="direct")["Stacks"][0]
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    assert "Bad (AWS::S3::Bucket)" in stack["StackStatusReason"]
    assert "direct-good" not in bucket_names(client)


def test_a_stack_that_cannot_be_deleted_stays_and_says_why(client: Client) -> None:
    deploy(client, "full", {"Data": bucket("full-data")})
    client("s3").put_object(Bucket="full-data", Key="k", Body=b"x")
    client("cloudformation").delete_stack(StackName="full")
    stack = client("cloudformation").describe_stacks(StackName="full")["Stacks"][0]
    assert stack["StackStatus"] == "DELETE_FAILED" and "not empty" in stack["StackStatusReason"]


def test_properties_that_a_template_no_longer_holds_go_back_to_the_default(client: Client) -> None:
    bridge = {"EventBridgeConfiguration": {"EventBridgeEnabled": True}}
    deploy(client, "default", {"Data": bucket("default-data", NotificationConfiguration=bridge)})
    s3 = client("s3")
    assert "EventBridgeConfiguration" in s3.get_bucket_notification_configuration(Bucket="default-data")
    deploy(client, "default", {"Data": bucket("default-data")})
    assert "EventBridgeConfiguration" not in s3.get_bucket_notification_configuration(Bucket="default-data")


@pytest.mark.parametrize("expression", ["cron(0 12 * * *)", "rate(0 days)", "every day"])
def test_a_schedule_that_would_never_fire_is_refused(client: Client, expression: str) -> None:
    target = {"Arn": "arn:aws:sqs:us-east-1:123456789012:q", "RoleArn": "arn:aws:iam::123456789012:role/r"}
    with pytest.raises(ClientError, match="ValidationException"):
        client("scheduler").create_schedule(
            Name="never", ScheduleExpression=expression, FlexibleTimeWindow={"Mode": "OFF"}, Target=target
        )


APP = """
    import sys
    import aws_cdk as cdk
    from aws_cdk import aws_sqs as sqs
    app = cdk.App()
    for name in ("First", "Second"):
        stack = cdk.Stack(app, name, env=cdk.Environment(account="123456789012", region="us-east-1"))
        sqs.Queue(stack, "Queue", queue_name=name, visibility_timeout=cdk.Duration.seconds(int(sys.argv[1])))
    app.synth()
"""


def test_the_cdk_cli_deploys_a_second_time_with_changes_to_several_stacks(
    aws: local_aws.LocalAws, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "us-east-1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **keys, "AWS_ENDPOINT_URL": aws.url, "PATH": path, "CI": "1"}

    def cdk(*arguments: str) -> None:
        done = subprocess.run(
            [str(CDK), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    cdk("bootstrap", "aws://123456789012/us-east-1", "--app", "")
    for seconds in ("30", "60"):
        cdk("deploy", "--all", "--require-approval", "never", "--app", f"{sys.executable} app.py {seconds}")
        sqs = client("sqs")
        for name in ("First", "Second"):
            url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
            found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])["Attributes"]
            assert found["VisibilityTimeout"] == seconds


def test_whoever_looks_at_a_stack_that_is_deleted_brings_nothing_back(client: Client) -> None:
    queues = {f"Q{number}": {"Type": "AWS::SQS::Queue", "Properties": {}} for number in range(10)}
    outputs = {name: {"Value": {"Fn::GetAtt": [name, "Arn"]}, "Export": {"Name": f"watched-{name}"}} for name in queues}
    deploy(client, "watched", queues, outputs)
    deleted = threading.Event()

    def look() -> None:
        formation = client("cloudformation")
        while not deleted.is_set():
            with contextlib.suppress(ClientError):  # it is gone at the end
                formation.describe_stacks(StackName="watched")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    client("cloudformation").delete_stack(StackName="watched")
    deleted.set()
    for looker in lookers:
        looker.join()
    assert "QueueUrls" not in client("sqs").list_queues(QueueNamePrefix="watched")
