"""Local AWS with --keep: what it held is there again after a restart, and what cannot be is gone in order."""

import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

import local_aws
from local_aws import LocalAwsError, survival
from local_aws.request_actions import Place
from tests.local_aws.conftest import create_role
from tests.local_aws.sagemaker_server import processing
from tests.local_aws.test_pipelines import definition, step

LARGE = 3 * 2**20


def clients(aws: local_aws.LocalAws) -> Callable[[str], Any]:
    def make(service: str) -> Any:
        session = boto3.Session("local", "local", region_name="us-east-1")
        return session.client(service, endpoint_url=aws.url)  # type: ignore[call-overload]

    return make


def run(client: Callable[[str], Any], arn: str | None = None) -> dict[str, Any]:
    """Start the pipeline "kept" (or look at `arn`), wait for its end; returns what its step shows."""
    sagemaker = client("sagemaker")
    if arn is None:
        arn = sagemaker.start_pipeline_execution(PipelineName="kept", ClientRequestToken=uuid.uuid4().hex)[
            "PipelineExecutionArn"
        ]
    while (status := sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"]) in (
        "Executing",
        "Stopping",
    ):
        pass
    (shown,) = sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"]
    return {**shown, "arn": arn, "execution_status": status}


def test_state_survives_a_restart_and_processes_end(tmp_path: Path) -> None:
    images, kept = {"tools": Path(sys.prefix)}, tmp_path / "kept"
    with local_aws.start(tmp_path / "first", images, keep=kept) as aws:
        client = clients(aws)
        role = create_role(client, "sagemaker", "sagemaker.amazonaws.com")
        client("s3").create_bucket(Bucket="data")
        client("s3").put_bucket_versioning(Bucket="data", VersioningConfiguration={"Status": "Enabled"})
        for body in (b"old", b"new"):
            client("s3").put_object(Bucket="data", Key="small", Body=body)
        client("s3").put_object(Bucket="data", Key="large", Body=b"x" * LARGE)
        rule = {"Type": "AWS::Events::Rule", "Properties": {"EventPattern": {"source": ["mine"]}, "State": "ENABLED"}}
        stack = {
            "Resources": {"Bucket": {"Type": "AWS::S3::Bucket"}, "Rule": rule, "Topic": {"Type": "AWS::SNS::Topic"}}
        }
        client("cloudformation").create_stack(StackName="kept", TemplateBody=json.dumps(stack))
        queue = client("sqs").create_queue(QueueName="mail")["QueueUrl"]
        client("sqs").send_message(QueueUrl=queue, MessageBody="hello")
        client("ssm").put_parameter(Name="/p", Value="v", Type="String")
        key = client("kms").create_key()["KeyMetadata"]["KeyId"]
        secret = client("kms").encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
        request = processing("echo hello", RoleArn=role)
        cached = step("Work", "Processing", request, CacheConfig={"Enabled": True, "ExpireAfter": "P1D"})
        client("sagemaker").create_pipeline(
            PipelineName="kept", PipelineDefinition=json.dumps(definition(cached)), RoleArn=role
        )
        first = run(client)
        client("sagemaker").create_model_package_group(ModelPackageGroupName="models")
        shared = json.dumps({"Statement": []})
        client("sagemaker").put_model_package_group_policy(ModelPackageGroupName="models", ResourcePolicy=shared)
        client("events").create_event_bus(Name="mine")
        client("events").put_permission(
            EventBusName="mine", Action="events:PutEvents", Principal="111111111111", StatementId="s"
        )
        client("sagemaker").create_processing_job(ProcessingJobName="slow", **processing("sleep 600", RoleArn=role))
        resources = client("cloudformation").describe_stack_resources(StackName="kept")["StackResources"]

    with local_aws.start(tmp_path / "second", images, keep=kept) as aws:
        client = clients(aws)
        s3 = client("s3")
        assert s3.get_object(Bucket="data", Key="small")["Body"].read() == b"new"
        assert s3.get_object(Bucket="data", Key="large")["Body"].read() == b"x" * LARGE
        (old,) = [
            one for one in s3.list_object_versions(Bucket="data", Prefix="small")["Versions"] if not one["IsLatest"]
        ]
        assert s3.get_object(Bucket="data", Key="small", VersionId=old["VersionId"])["Body"].read() == b"old"
        after = client("cloudformation").describe_stack_resources(StackName="kept")["StackResources"]
        assert [one["PhysicalResourceId"] for one in after] == [one["PhysicalResourceId"] for one in resources]
        assert (
            client("sqs").receive_message(QueueUrl=client("sqs").get_queue_url(QueueName="mail")["QueueUrl"])[
                "Messages"
            ][0]["Body"]
            == "hello"
        )
        assert client("ssm").get_parameter(Name="/p")["Parameter"]["Value"] == "v"
        assert client("kms").decrypt(CiphertextBlob=secret)["Plaintext"] == b"secret"
        assert client("sagemaker").describe_processing_job(ProcessingJobName="slow")["ProcessingJobStatus"] == "Stopped"
        assert run(client, first["arn"])["execution_status"] == "Succeeded"
        again = run(client)  # on a kept pipeline and role, with the kept step cache
        assert again["CacheHitResult"] == {"SourcePipelineExecutionArn": first["arn"]}
        job = first["Metadata"]["ProcessingJob"]["Arn"].rsplit("/", 1)[-1]
        group = "/aws/sagemaker/ProcessingJobs"
        (stream,) = client("logs").describe_log_streams(logGroupName=group, logStreamNamePrefix=job)["logStreams"]
        lines = client("logs").get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])["events"]
        assert [line["message"] for line in lines] == ["hello"]
        policy = client("sagemaker").get_model_package_group_policy(ModelPackageGroupName="models")
        assert policy["ResourcePolicy"] == shared
        assert '"111111111111' in client("events").describe_event_bus(Name="mine")["Policy"].replace(
            "arn:aws:iam::", ""
        )
        # A kept stack is one that can be changed and deleted.
        client("cloudformation").delete_stack(StackName="kept")
        assert "kept" not in [one["Name"] for one in client("events").list_rules()["Rules"]]
        bucket = next(one["PhysicalResourceId"] for one in resources if one["ResourceType"] == "AWS::S3::Bucket")
        assert bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]

    with pytest.raises(
        survival.SurvivalError, match="of account 123456789012 in us-east-1, and this is 222222222222 in eu"
    ):
        survival.restore(kept, Place("eu-west-1", "222222222222"))

    with (kept / "state.pickle").open("r+b") as file:
        content = file.read().replace(b"moto ", b"mota ", 1)
        file.seek(0)
        file.write(content)
    with pytest.raises(LocalAwsError, match=r"was kept by another version .*: remove it to begin empty"):
        local_aws.start(tmp_path / "third", images, keep=kept)
