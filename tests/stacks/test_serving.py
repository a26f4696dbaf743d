"""Serving places: what each account has, and that what one side may do is what the other side allows, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest

from config.settings import load
from tests.stacks.test_synth import of_type, synth

REGISTRY, PLACE = "111111111111", "222222222222"


def synthesized(folder: Path, environment: str) -> dict[str, Any]:
    finished = synth(folder, environment)
    assert finished.returncode == 0, finished.stderr
    return {
        f"{path.name.removesuffix('.template.json')}/{id_}": resource
        for path in sorted(folder.glob("*.template.json"))
        for id_, resource in json.loads(path.read_text(encoding="utf-8"))["Resources"].items()
    }


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return synthesized(tmp_path_factory.mktemp("registry") / "out", "accounts")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return synthesized(tmp_path_factory.mktemp("place") / "out", "accounts/us")


def text(value: Any) -> str:
    return json.dumps(value).replace('{"Ref": "AWS::Partition"}', '"aws"')


def joined(value: Any) -> str:
    """An ARN that CDK joins of its parts."""
    return "".join(part if isinstance(part, str) else "aws" for part in value["Fn::Join"][1])


def foreign_statements(resources: dict[str, Any]) -> dict[str, Any]:
    """Statements of resource policies that name principals of other accounts, by Sid."""
    policies = [
        *(one["PolicyDocument"] for one in of_type(resources, "AWS::S3::BucketPolicy").values()),
        *(one["KeyPolicy"] for one in of_type(resources, "AWS::KMS::Key").values()),
        *(
            one["ModelPackageGroupPolicy"]
            for one in of_type(resources, "AWS::SageMaker::ModelPackageGroup").values()
            if "ModelPackageGroupPolicy" in one
        ),
    ]
    return {
        f"{one['Sid']} {one['Action']}": one
        for policy in policies
        for one in policy["Statement"]
        if f":iam::{PLACE}:root" in text(one.get("Principal"))
    }


def statements_of(resources: dict[str, Any], role: str) -> dict[str, Any]:
    policies = {id_: one for id_, one in of_type(resources, "AWS::IAM::Policy").items() if f"/{role}" in id_}
    return {one["Sid"]: one for policy in policies.values() for one in policy["PolicyDocument"]["Statement"]}


def test_the_registrys_account_has_no_endpoint_and_nothing_that_makes_one(registry: dict[str, Any]) -> None:
    assert not [id_ for id_ in registry if any(word in id_ for word in ("DeployRole", "ServingRole", "DeployPipeline"))]
    alarms = of_type(registry, "AWS::CloudWatch::Alarm")
    assert not [id_ for id_ in alarms if "Endpoint" in id_]
    assert "sagemaker:CreateEndpoint" not in text(registry)


def test_a_place_has_nothing_that_trains_and_no_raw_data(place: dict[str, Any]) -> None:
    pipelines = of_type(place, "AWS::SageMaker::Pipeline")
    assert [one["PipelineName"] for one in pipelines.values()] == [load("accounts/us").deploy_pipeline_name]
    assert not [id_ for id_ in place if any(word in id_ for word in ("TrainRole", "PrepareRole", "RawBucket"))]
    assert "sagemaker:CreateTrainingJob" not in text(place)
    assert "AWS::SageMaker::ModelPackageGroup" not in {one["Type"] for one in place.values()}


def test_an_approval_is_told_to_the_bus_of_every_place_and_kept_if_it_cannot_be(
    registry: dict[str, Any], place: dict[str, Any]
) -> None:
    (rule,) = [one for id_, one in of_type(registry, "AWS::Events::Rule").items() if "ApprovedPackage" in id_]
    assert [joined(target["Arn"]) for target in rule["Targets"]] == [
        f"arn:aws:events:us-east-1:{PLACE}:event-bus/mistral-7b-accounts-approvals",
        f"arn:aws:events:eu-west-1:{PLACE}:event-bus/mistral-7b-accounts-approvals",
    ]
    assert all("DeadLetterConfig" in target for target in rule["Targets"])
    tell = statements_of(registry, "ApprovalRole")["Tell"]
    assert tell["Action"] == "events:PutEvents" and [joined(one) for one in tell["Resource"]] == [
        joined(target["Arn"]) for target in rule["Targets"]
    ]
    (bus,) = of_type(place, "AWS::Events::EventBus").values()
    (policy,) = of_type(place, "AWS::Events::EventBusPolicy").values()
    assert bus["Name"] == "mistral-7b-accounts-approvals"
    assert policy["Statement"]["Action"] == "events:PutEvents"
    assert joined(policy["Statement"]["Principal"]["AWS"]) == f"arn:aws:iam::{REGISTRY}:root"


def test_on_that_bus_only_an_approval_of_the_registrys_own_group_starts_a_release(place: dict[str, Any]) -> None:
    (rule,) = [one for id_, one in of_type(place, "AWS::Events::Rule").items() if "ApprovedPackage" in id_]
    assert rule["EventBusName"] == "mistral-7b-accounts-approvals"
    assert rule["EventPattern"] == {
        "account": [REGISTRY],
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Model Package State Change"],
        "detail": {"ModelPackageGroupName": ["mistral-7b-accounts"], "ModelApprovalStatus": ["Approved"]},
    }


def test_one_role_of_each_place_may_read_models_and_reject_packages_and_that_is_all(
    registry: dict[str, Any], place: dict[str, Any]
) -> None:
    allowed = foreign_statements(registry)
    assert set(allowed) == {
        "PlacesReadModels s3:GetObject", "PlacesListModels s3:ListBucket", "PlacesReadModels kms:Decrypt",
        "PlacesReadPackages sagemaker:DescribeModelPackage", "PlacesRejectPackages sagemaker:UpdateModelPackage",
    }  # fmt: skip
    roles = [f"arn:aws:iam::{PLACE}:role/mistral-7b-accounts-{name}-deploy" for name in ("us", "eu")]
    for statement in allowed.values():
        assert [joined(one) for one in statement["Condition"]["ArnEquals"]["aws:PrincipalArn"]] == roles
    rejects = allowed["PlacesRejectPackages sagemaker:UpdateModelPackage"]["Condition"]["StringEquals"]
    assert rejects == {"sagemaker:ModelApprovalStatus": "Rejected"}
    assert text(allowed["PlacesReadModels s3:GetObject"]["Resource"]).endswith('"/runs/*"]]}')
    named = {id_: one["RoleName"] for id_, one in of_type(place, "AWS::IAM::Role").items() if "RoleName" in one}
    assert list(named.values()) == ["mistral-7b-accounts-us-deploy"] and "DeployRole" in next(iter(named))


def test_what_a_place_may_ask_of_the_registry_is_bound_to_its_account(place: dict[str, Any]) -> None:
    deploy = statements_of(place, "DeployRole")
    for sid in ("ReadRegistered", "ListRegistered"):
        assert deploy[sid]["Condition"]["StringEquals"] == {"aws:ResourceAccount": REGISTRY}
    assert joined(deploy["DecryptRegistered"]["Resource"]) == f"arn:aws:kms:us-east-1:{REGISTRY}:key/*"
    for sid in ("ReadPackage", "RejectPackage"):
        package = f"arn:aws:sagemaker:us-east-1:{REGISTRY}:model-package/mistral-7b-accounts/*"
        assert joined(deploy[sid]["Resource"]) == package
    everything = {role: statements_of(place, role) for role in ("ServingRole", "PipelineRole", "ApprovalRole")}
    assert REGISTRY not in text(everything), "what serves needs nothing of the other account"


def test_a_place_in_a_vpc_reaches_the_buckets_of_both_accounts(place: dict[str, Any]) -> None:
    endpoints = of_type(place, "AWS::EC2::VPCEndpoint").values()
    (of_s3,) = [one for one in endpoints if one["VpcEndpointType"] == "Gateway"]
    (statement,) = of_s3["PolicyDocument"]["Statement"]
    assert statement["Condition"]["StringEquals"]["aws:ResourceAccount"] == [PLACE, REGISTRY]
    asked = {one["ServiceName"].rsplit(".", 2)[-1] for one in endpoints}
    assert "api" in asked and not asked & {"bedrock-runtime", "experiments"}
