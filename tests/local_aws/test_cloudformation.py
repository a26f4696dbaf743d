"""Stacks: types that are made real, types that are refused, failures that leave nothing behind."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

Client = Callable[[str], Any]


def deploy(client: Client, name: str, resources: dict[str, Any], outputs: dict[str, Any] | None = None) -> Any:
    """As the CDK CLI does it: a change set, executed; returns the stack."""
    cloudformation = client("cloudformation")
    stacks = cloudformation.describe_stacks()["Stacks"]
    exists = any(stack["StackName"] == name and stack["StackStatus"].endswith("_COMPLETE") for stack in stacks)
    template = {"Resources": resources, "Outputs": outputs or {}}
    cloudformation.create_change_set(
        StackName=name,
        ChangeSetName=f"{name}-change",
        ChangeSetType="UPDATE" if exists else "CREATE",
        TemplateBody=json.dumps(template),
    )
    cloudformation.execute_change_set(StackName=name, ChangeSetName=f"{name}-change")
    cloudformation.delete_change_set(StackName=name, ChangeSetName=f"{name}-change")
    return cloudformation.describe_stacks(StackName=name)["Stacks"][0]


def outputs_of(stack: Any) -> dict[str, str]:
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


BUCKET = {
    "Type": "AWS::S3::Bucket",
    "Properties": {
        "VersioningConfiguration": {"Status": "Enabled"},
        "BucketEncryption": {
            "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        },
        "PublicAccessBlockConfiguration": {
            "BlockPublicAcls": True,
            "BlockPublicPolicy": True,
            "IgnorePublicAcls": True,
            "RestrictPublicBuckets": True,
        },
        "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
        "LifecycleConfiguration": {
            "Rules": [
                {
                    "Id": "old",
                    "Status": "Enabled",
                    "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
                    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
                }
            ]
        },
        "NotificationConfiguration": {"EventBridgeConfiguration": {"EventBridgeEnabled": True}},
    },
}


def test_a_buckets_configuration_can_be_read_back_through_s3(client: Client) -> None:
    stack = deploy(client, "bucket", {"Data": BUCKET}, {"Name": {"Value": {"Ref": "Data"}}})
    name = outputs_of(stack)["Name"]
    s3 = client("s3")
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values())
    encryption = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"][0]["ID"] == "old"
    ownership = s3.get_bucket_ownership_controls(Bucket=name)["OwnershipControls"]["Rules"]
    assert ownership == [{"ObjectOwnership": "BucketOwnerEnforced"}]


def test_a_type_that_is_not_implemented_is_refused_by_name(client: Client) -> None:
    with pytest.raises(ClientError, match=r"Unrecognized resource types: \[AWS::Braket::QuantumTask \(Task\)\]"):
        deploy(client, "unknown", {"Data": BUCKET, "Task": {"Type": "AWS::Braket::QuantumTask", "Properties": {}}})
    assert not [b for b in client("s3").list_buckets()["Buckets"] if b["Name"].startswith("unknown-")]


def test_a_property_that_is_not_implemented_rolls_the_stack_back_and_is_named(client: Client) -> None:
    website = {"Type": "AWS::S3::Bucket", "Properties": {"WebsiteConfiguration": {"IndexDocument": "index.html"}}}
    stack = deploy(client, "property", {"Data": BUCKET, "Site": website})
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    events = client("cloudformation").describe_stack_events(StackName="property")["StackEvents"]
    assert any("WebsiteConfiguration" in event.get("ResourceStatusReason", "") for event in events)
    assert not [b for b in client("s3").list_buckets()["Buckets"] if b["Name"].startswith("property-")]


def test_an_update_changes_a_resource_in_place_and_a_delete_removes_it(client: Client) -> None:
    def alarm(threshold: int) -> dict[str, Any]:
        return {
            "Type": "AWS::CloudWatch::Alarm",
            "Properties": {
                "AlarmName": "too-many",
                "Namespace": "Tests",
                "MetricName": "Count",
                "Statistic": "Sum",
                "Period": 60,
                "EvaluationPeriods": 1,
                "Threshold": threshold,
                "ComparisonOperator": "GreaterThanThreshold",
            },
        }

    def threshold() -> list[float]:
        return [a["Threshold"] for a in client("cloudwatch").describe_alarms(AlarmNames=["too-many"])["MetricAlarms"]]

    deploy(client, "alarm", {"Alarm": alarm(1)})
    assert threshold() == [1.0]
    assert deploy(client, "alarm", {"Alarm": alarm(5)})["StackStatus"] == "UPDATE_COMPLETE"
    assert threshold() == [5.0]
    client("cloudformation").delete_stack(StackName="alarm")
    assert threshold() == []


def test_what_one_stack_exports_another_imports(client: Client) -> None:
    export = {"Name": {"Value": {"Ref": "Data"}, "Export": {"Name": "shared-bucket"}}}
    name = outputs_of(deploy(client, "giver", {"Data": BUCKET}, export))["Name"]
    policy = {
        "Type": "AWS::S3::BucketPolicy",
        "Properties": {
            "Bucket": {"Fn::ImportValue": "shared-bucket"},
            "PolicyDocument": {
                "Statement": [
                    {
                        "Effect": "Deny",
                        "Principal": "*",
                        "Action": "s3:*",
                        "Resource": f"arn:aws:s3:::{name}/*",
                        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                    }
                ]
            },
        },
    }
    assert deploy(client, "taker", {"Policy": policy})["StackStatus"] == "CREATE_COMPLETE"
    assert "SecureTransport" in client("s3").get_bucket_policy(Bucket=name)["Policy"]
    client("s3").put_object(Bucket=name, Key="still", Body=b"writable")  # its condition does not hold here


def test_a_bus_takes_what_its_policies_and_rules_say_and_goes_with_its_stack(client: Client) -> None:
    events, account = client("events"), "arn:aws:iam::111111111111:root"
    bus = {"Type": "AWS::Events::EventBus", "Properties": {"Name": "taken", "Tags": [{"Key": "a", "Value": "1"}]}}

    def admits(sid: str, **properties: Any) -> dict[str, Any]:
        given = {"EventBusName": {"Ref": "Bus"}, "StatementId": sid, **properties}
        return {"Type": "AWS::Events::EventBusPolicy", "Properties": given}

    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": account},
        "Action": "events:PutEvents",
        "Resource": {"Fn::GetAtt": ["Bus", "Arn"]},
        "Condition": {"StringEquals": {"events:source": "aws.sagemaker"}},
    }
    rule = {
        "Type": "AWS::Events::Rule",
        "Properties": {
            "EventBusName": {"Ref": "Bus"},
            "EventPattern": {"account": ["111111111111"]},
            "State": "ENABLED",
        },
    }
    whole, parts = (
        admits("Whole", Statement=statement),
        admits("Parts", Action="events:PutEvents", Principal="111111111111"),
    )
    stack = deploy(client, "bus", {"Bus": bus, "Whole": whole, "Parts": parts, "Rule": rule})
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack

    def statements() -> dict[str, Any]:
        policy = json.loads(events.describe_event_bus(Name="taken").get("Policy", '{"Statement": []}'))
        return {one["Sid"]: one for one in policy["Statement"]}

    arn = events.describe_event_bus(Name="taken")["Arn"]
    both = {"Effect": "Allow", "Principal": {"AWS": account}, "Action": "events:PutEvents", "Resource": arn}
    assert statements() == {
        "Whole": {"Sid": "Whole", **both, "Condition": statement["Condition"]},
        "Parts": {"Sid": "Parts", **both},
    }
    (kept,) = events.list_rules(EventBusName="taken")["Rules"]
    assert json.loads(kept["EventPattern"]) == {"account": ["111111111111"]}

    bus["Properties"] = {"Name": "taken", "Description": "new", "Tags": [{"Key": "b", "Value": "2"}]}
    del statement["Condition"]
    assert deploy(client, "bus", {"Bus": bus, "Whole": whole, "Rule": rule})["StackStatus"] == "UPDATE_COMPLETE"
    assert statements() == {"Whole": {"Sid": "Whole", **both}}
    assert events.list_tags_for_resource(ResourceARN=arn)["Tags"] == [{"Key": "b", "Value": "2"}]
    assert events.describe_event_bus(Name="taken")["Description"] == "new"
    assert [one["Name"] for one in events.list_rules(EventBusName="taken")["Rules"]] == [kept["Name"]]
    client("cloudformation").delete_stack(StackName="bus")
    assert [one["Name"] for one in events.list_event_buses()["EventBuses"]] == ["default"]


def test_a_model_package_groups_policy_comes_changes_and_goes_with_its_property(client: Client) -> None:
    def group(**properties: Any) -> dict[str, Any]:
        named = {"ModelPackageGroupName": "shared-models", **properties}
        return {"Type": "AWS::SageMaker::ModelPackageGroup", "Properties": named}

    def policy(action: str) -> dict[str, Any]:
        principal = {"AWS": "arn:aws:iam::222222222222:root"}
        return {"Statement": [{"Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*"}]}

    def read() -> Any:
        return json.loads(
            client("sagemaker").get_model_package_group_policy(ModelPackageGroupName="shared-models")["ResourcePolicy"]
        )

    for action in ("sagemaker:DescribeModelPackage", "sagemaker:UpdateModelPackage"):
        deploy(client, "shared", {"Group": group(ModelPackageGroupPolicy=policy(action))})
        assert read() == policy(action)
    assert deploy(client, "shared", {"Group": group()})["StackStatus"] == "UPDATE_COMPLETE"
    with pytest.raises(ClientError, match="Cannot find a resource policy of Model Package Group arn:"):
        read()
    unknown = {"Statement": [{"Effect": "Allow", "NotPrincipal": "*", "Action": "*", "Resource": "*"}]}
    stack = deploy(client, "shared", {"Group": group(ModelPackageGroupPolicy=unknown)})
    assert stack["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE" and "NotPrincipal" in stack["StackStatusReason"]
    client("cloudformation").delete_stack(StackName="shared")


def test_every_type_that_a_cdk_app_of_ours_may_use_is_known() -> None:
    from moto.cloudformation import parsing

    from local_aws import cloudformation

    ours = {resource_type.name for resource_type in cloudformation.TYPES}
    assert {"AWS::SageMaker::Pipeline", "AWS::Scheduler::Schedule", "AWS::S3::Bucket"} <= ours
    assert not ours & set(parsing.NULL_MODELS)
