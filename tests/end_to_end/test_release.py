"""`<name>-deploy`: what is approved is served, and nothing else is; a bad model leaves the old one serving.

Goes on where test_product.py stopped: one package is served.
"""

import json
from typing import Any

import pytest

from cli import datasets, executions
from cli.aws import REPOSITORY, Deployment


def release(deployment: Deployment, package: str) -> executions.ExecutionView:
    answer = deployment.sagemaker.start_pipeline_execution(
        PipelineName=deployment.settings.deploy_pipeline_name,
        PipelineParameters=[{"Name": "ModelPackageArn", "Value": package}],
    )
    return executions.follow(deployment, answer["PipelineExecutionArn"])


def result(deployment: Deployment, view: executions.ExecutionView) -> Any:
    key = f"runs/{view.arn.rsplit('/', 1)[-1]}/deployment/deployment.json"
    return json.loads(deployment.s3.get_object(Bucket=deployment.artifact_bucket, Key=key)["Body"].read())


def served_package(deployment: Deployment) -> str:
    endpoint = deployment.sagemaker.describe_endpoint(EndpointName=deployment.settings.endpoint_name)
    assert endpoint["EndpointStatus"] == "InService"
    tags = deployment.sagemaker.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
    return next(str(tag["Value"]) for tag in tags if tag["Key"] == "model-package")


@pytest.fixture(scope="module")
def pending(deployment: Deployment) -> str:
    """ARN of a package that waits for approval: the same data with another parameter is trained again."""
    before = executions.newest(deployment)
    datasets.upload(deployment, REPOSITORY / "examples" / "instruction", "instruction")
    executions.follow(deployment, executions.wait_for_newer(deployment, before))
    parameters = {"ApprovalStatus": "PendingManualApproval", "Epoch": "4.0"}
    view = executions.follow(deployment, executions.start(deployment, parameters))
    assert view.status == "Succeeded", view.reason
    found = deployment.sagemaker.list_model_packages(
        ModelPackageGroupName=deployment.settings.model_package_group_name,
        ModelApprovalStatus="PendingManualApproval",
    )["ModelPackageSummaryList"]
    return str(found[0]["ModelPackageArn"])


def test_a_package_that_nobody_approved_is_not_released(deployment: Deployment, pending: str) -> None:
    before = served_package(deployment)
    view = release(deployment, pending)
    assert view.status == "Failed"
    assert "is PendingManualApproval; only an Approved package is released" in view.reason
    assert served_package(deployment) == before != pending


def test_an_approved_package_is_released_and_the_endpoint_names_it(deployment: Deployment, pending: str) -> None:
    deployment.sagemaker.update_model_package(ModelPackageArn=pending, ModelApprovalStatus="Approved")
    view = release(deployment, pending)
    assert view.status == "Succeeded", view.reason
    assert result(deployment, view)["action"] == "updated"
    assert served_package(deployment) == pending
    assert deployment.invoke({"inputs": "Hello", "parameters": {"max_new_tokens": 2}})


def test_releasing_what_is_served_changes_nothing(deployment: Deployment, pending: str) -> None:
    before = deployment.sagemaker.describe_endpoint(EndpointName=deployment.settings.endpoint_name)
    view = release(deployment, pending)
    assert view.status == "Succeeded", view.reason
    assert result(deployment, view)["action"] == "unchanged"
    after = deployment.sagemaker.describe_endpoint(EndpointName=deployment.settings.endpoint_name)
    assert after["EndpointConfigName"] == before["EndpointConfigName"]


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_serving(deployment: Deployment, pending: str) -> None:
    good = deployment.sagemaker.describe_model_package(ModelPackageName=pending)
    bucket, prefix = deployment.artifact_bucket, "runs/broken-model"
    deployment.s3.put_object(Bucket=bucket, Key=f"{prefix}/config.json", Body=b"{}")
    container = good["InferenceSpecification"]["Containers"][0]
    source = {"S3Uri": f"s3://{bucket}/{prefix}/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    broken = deployment.sagemaker.create_model_package(
        ModelPackageGroupName=deployment.settings.model_package_group_name,
        ModelApprovalStatus="Approved",
        InferenceSpecification={
            "Containers": [
                {
                    "Image": container["Image"],
                    "ModelDataSource": {"S3DataSource": source},
                    "Environment": container["Environment"],
                }
            ],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
    )["ModelPackageArn"]

    view = release(deployment, broken)

    assert view.status == "Failed"
    assert "rolled back" in view.reason
    assert served_package(deployment) == pending
    assert deployment.invoke({"inputs": "Hello", "parameters": {"max_new_tokens": 2}})
