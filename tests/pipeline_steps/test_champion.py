"""PrepareData looks for the approved model with which Evaluate compares the new one."""

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from pipeline_steps import s3
from pipeline_steps.contract.errors import StepError
from pipeline_steps.prepare_data import PrepareJob, champion

ARN = "arn:aws:sagemaker:us-east-1:123456789012:model-package/demo/3"
MODEL = "s3://bucket/runs/abc/model/job/output/model/"
URIS = {"test": "s3://bucket/datasets/d/test/"}
ASKED = {
    "ModelPackageGroupName": "demo",
    "ModelApprovalStatus": "Approved",
    "SortBy": "CreationTime",
    "SortOrder": "Descending",
    "MaxResults": 1,
}


def job(group: str | None = "demo") -> PrepareJob:
    return PrepareJob("raw", Path("out"), "instruction", model_package_group=group)


def registry(monkeypatch: pytest.MonkeyPatch, *, approved: bool, complete: bool = True) -> Stubber:
    """SageMaker's answers, validated by botocore; `complete`: the model's files are in S3."""
    client = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    stubber = Stubber(client)
    summary = {
        "ModelPackageGroupName": "demo",
        "ModelPackageArn": ARN,
        "CreationTime": 0,
        "ModelPackageStatus": "Completed",
        "ModelApprovalStatus": "Approved",
    }
    stubber.add_response("list_model_packages", {"ModelPackageSummaryList": [summary] if approved else []}, ASKED)
    source = {"S3DataSource": {"S3Uri": MODEL, "S3DataType": "S3Prefix", "CompressionType": "None"}}
    described: dict[str, Any] = {
        "ModelPackageName": "demo",
        "ModelPackageArn": ARN,
        "ModelPackageStatus": "Completed",
        "ModelPackageStatusDetails": {"ValidationStatuses": []},
        "CreationTime": 0,
        "InferenceSpecification": {"Containers": [{"Image": "image", "ModelDataSource": source}]},
    }
    if approved:
        stubber.add_response("describe_model_package", described, {"ModelPackageName": ARN})
    stubber.activate()
    monkeypatch.setattr(boto3, "client", lambda service: client)
    monkeypatch.setattr(s3, "exists", lambda uri: complete and uri == f"{MODEL}training.json")
    return stubber


def test_the_newest_approved_model_is_named_with_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    stubber = registry(monkeypatch, approved=True)
    assert champion(job(), URIS) == {"package": ARN, "model_uri": MODEL}
    stubber.assert_no_pending_responses()


def test_without_an_approved_model_the_input_is_something_small_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, approved=False)
    assert champion(job(), URIS) == {"package": "none", "model_uri": URIS["test"]}
    assert champion(job(group=None), URIS) == {"package": "none", "model_uri": URIS["test"]}


def test_an_approved_model_whose_files_are_gone_ends_the_run_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, approved=True, complete=False)
    with pytest.raises(StepError, match=r"model-package/demo/3 is not at .* set its approval status to Rejected"):
        champion(job(), URIS)
