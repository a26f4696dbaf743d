"""Models, model packages, endpoint configurations and tags: what was sent comes back."""

import json
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.sagemaker_server import BUCKET, ROLE, Server, running_server


@pytest.fixture
def server() -> Server:
    return running_server()


@pytest.fixture
def group(server: Server) -> str:
    name = f"group-{uuid.uuid4().hex[:8]}"
    server.sagemaker.create_model_package_group(ModelPackageGroupName=name, Tags=[{"Key": "a", "Value": "1"}])
    return name


SOURCE = {"S3DataSource": {"S3Uri": f"s3://{BUCKET}/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}}
SPECIFICATION = {
    "Containers": [{"Image": "web", "ModelDataSource": SOURCE, "Environment": {"OPTION_TGI_COMPAT": "true"}}],
    "SupportedContentTypes": ["application/json"],
    "SupportedResponseMIMETypes": ["application/json"],
}


def package(server: Server, group: str, **fields: Any) -> str:
    response = server.sagemaker.create_model_package(
        ModelPackageGroupName=group, InferenceSpecification=SPECIFICATION, **fields
    )
    arn: str = response["ModelPackageArn"]
    return arn


def test_a_model_package_keeps_every_field(server: Server, group: str) -> None:
    fields = {
        "CustomerMetadataProperties": {"dataset": "abc"},
        "ModelMetrics": {"ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": "s3://b/e.json"}}},
        "MetadataProperties": {"GeneratedBy": "me"},
        "ModelPackageDescription": "a model",
        "Domain": "NATURAL_LANGUAGE_PROCESSING",
        "ModelCard": {"ModelCardContent": '{"intended_uses": {}}', "ModelCardStatus": "PendingReview"},
    }
    described = server.sagemaker.describe_model_package(ModelPackageName=package(server, group, **fields))
    assert {field: described[field] for field in fields} == fields
    assert described["InferenceSpecification"] == SPECIFICATION
    assert described["ModelPackageStatus"] == "Completed"
    assert described["ModelApprovalStatus"] == "PendingManualApproval"


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ("[]", "expected an object"), ('{"model_package_details": {}}', "model_package_details")],
)
def test_a_model_card_of_another_form_is_refused(server: Server, group: str, content: str, said: str) -> None:
    with pytest.raises(ClientError, match=f"ModelCardContent.*{said}"):
        package(server, group, ModelCard={"ModelCardContent": content, "ModelCardStatus": "Draft"})
    arn = package(server, group)
    with pytest.raises(ClientError, match=f"ModelCardContent.*{said}"):
        server.sagemaker.update_model_package(ModelPackageArn=arn, ModelCard={"ModelCardContent": content})


def test_versions_count_up_and_are_not_used_again(server: Server, group: str) -> None:
    arns = [package(server, group) for _ in range(2)]
    assert [arn.rsplit("/", 1)[-1] for arn in arns] == ["1", "2"]
    server.sagemaker.delete_model_package(ModelPackageName=arns[1])
    assert package(server, group).endswith(f"model-package/{group}/3")
    listed = server.sagemaker.list_model_packages(
        ModelPackageGroupName=group, SortBy="CreationTime", SortOrder="Descending"
    )
    assert [item["ModelPackageVersion"] for item in listed["ModelPackageSummaryList"]] == [3, 1]


def test_approval_changes_and_can_be_listed_by(server: Server, group: str) -> None:
    arn = package(server, group)
    package(server, group)
    server.sagemaker.update_model_package(
        ModelPackageArn=arn,
        ModelApprovalStatus="Approved",
        ApprovalDescription="good",
        CustomerMetadataProperties={"k": "v"},
    )
    described = server.sagemaker.describe_model_package(ModelPackageName=arn)
    assert (described["ModelApprovalStatus"], described["ApprovalDescription"]) == ("Approved", "good")
    assert described["CustomerMetadataProperties"] == {"k": "v"}
    approved = server.sagemaker.list_model_packages(ModelPackageGroupName=group, ModelApprovalStatus="Approved")
    assert [item["ModelPackageArn"] for item in approved["ModelPackageSummaryList"]] == [arn]


def test_an_approval_reaches_eventbridge(server: Server, group: str) -> None:
    queue = server.queue_of_services(group)
    pattern = {
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Model Package State Change"],
        "detail": {"ModelPackageGroupName": [group], "ModelApprovalStatus": ["Approved"]},
    }
    events = server.client("events")
    events.put_rule(Name=group, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=group, Targets=[{"Id": "1", "Arn": f"arn:aws:sqs:us-east-1:123456789012:{group}"}])
    arn = package(server, group)
    server.sagemaker.update_model_package(ModelPackageArn=arn, ModelApprovalStatus="Approved")
    messages: list[Any] = []

    def arrived() -> bool:
        messages.extend(server.client("sqs").receive_message(QueueUrl=queue).get("Messages", []))
        return bool(messages)

    server.wait_for(arrived)
    event = json.loads(messages[0]["Body"])
    assert (event["resources"], event["detail"]["ModelPackageArn"]) == ([arn], arn)
    assert len(messages) == 1


def test_a_package_of_a_group_that_is_not_there_is_refused(server: Server) -> None:
    with pytest.raises(ClientError, match="model-package-group/nowhere does not exist"):
        package(server, "nowhere")


def test_uncompressed_model_data_must_end_with_a_slash(server: Server, group: str) -> None:
    source = {"S3DataSource": {**SOURCE["S3DataSource"], "S3Uri": f"s3://{BUCKET}/model"}}
    specification = {**SPECIFICATION, "Containers": [{"Image": "web", "ModelDataSource": source}]}
    with pytest.raises(ClientError, match="must end with a slash"):
        server.sagemaker.create_model_package(ModelPackageGroupName=group, InferenceSpecification=specification)


def test_a_group_that_holds_packages_is_not_deleted(server: Server, group: str) -> None:
    arn = package(server, group)
    with pytest.raises(ClientError, match="still holds 1 model packages"):
        server.sagemaker.delete_model_package_group(ModelPackageGroupName=group)
    server.sagemaker.delete_model_package(ModelPackageName=arn)
    server.sagemaker.delete_model_package_group(ModelPackageGroupName=group)
    with pytest.raises(ClientError, match="does not exist"):
        server.sagemaker.describe_model_package_group(ModelPackageGroupName=group)


def test_a_model_keeps_its_container_and_is_listed(server: Server, group: str) -> None:
    container = {"Image": "web", "ModelDataSource": SOURCE, "Environment": {"A": "b"}}
    server.sagemaker.create_model(ModelName=group, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    assert server.sagemaker.describe_model(ModelName=group)["PrimaryContainer"] == container
    assert [item["ModelName"] for item in server.sagemaker.list_models(NameContains=group)["Models"]] == [group]
    with pytest.raises(ClientError, match="already existing model"):
        server.sagemaker.create_model(ModelName=group, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    server.sagemaker.delete_model(ModelName=group)
    with pytest.raises(ClientError, match="Could not find model"):
        server.sagemaker.describe_model(ModelName=group)


@pytest.mark.parametrize("container", [{}, {"Image": "web", "ModelPackageName": "x"}])
def test_a_model_names_an_image_or_a_package(server: Server, container: dict[str, str]) -> None:
    with pytest.raises(ClientError, match="one of Image and ModelPackageName"):
        server.sagemaker.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer=container)


def test_an_endpoint_configuration_needs_its_model_and_knows_new_instance_types(server: Server, group: str) -> None:
    variant = {"VariantName": "v", "ModelName": group, "InstanceType": "ml.g6.4xlarge", "InitialInstanceCount": 1}
    with pytest.raises(ClientError, match="Could not find model"):
        server.sagemaker.create_endpoint_config(EndpointConfigName=group, ProductionVariants=[variant])
    server.sagemaker.create_model(ModelName=group, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "web"})
    variant["InferenceAmiVersion"] = "al2-ami-sagemaker-inference-gpu-3-1"
    server.sagemaker.create_endpoint_config(EndpointConfigName=group, ProductionVariants=[variant])
    described = server.sagemaker.describe_endpoint_config(EndpointConfigName=group)
    assert described["ProductionVariants"] == [variant]


def test_tags_are_added_listed_and_removed(server: Server, group: str) -> None:
    arn = server.sagemaker.describe_model_package_group(ModelPackageGroupName=group)["ModelPackageGroupArn"]
    server.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}])
    assert {tag["Key"] for tag in server.sagemaker.list_tags(ResourceArn=arn)["Tags"]} == {"a", "b"}
    server.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a"])
    assert server.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]
