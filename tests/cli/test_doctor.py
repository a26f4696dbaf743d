"""`finetune doctor`: every line says what was found and how to mend it, and nothing that was not looked at is ok."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import doctor, doctor_account
from cli.__main__ import app
from cli.aws import REPOSITORY, Deployment
from cli.console import CommandError
from config.settings import ReleaseSettings, TrainingSettings
from pipeline_steps.contract import files
from tests.cli import small_pipeline

REGISTRY = "763104351884.dkr.ecr.us-east-1.amazonaws.com"


@pytest.fixture(scope="module", autouse=True)
def deployed(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> None:
    small_pipeline.make(deployment, tmp_path_factory.mktemp("sample"))


def rows(found: Iterator[doctor_account.Row]) -> dict[str, tuple[str, str, str]]:
    return {check: (state, told, fix) for check, state, told, fix in found}


def account(deployment: Deployment) -> dict[str, tuple[str, str, str]]:
    return rows(doctor_account.findings(deployment, "dev"))


def test_what_is_missing_is_told_in_the_order_in_which_it_is_needed(deployment: Deployment) -> None:
    found = account(deployment)
    assert found["credentials"][0] == "ok" and found["region"][0] == "ok"
    assert found["CDK bootstrap"] == (
        "error",
        "this account and region are not bootstrapped",
        "npx cdk bootstrap (region us-east-1)",
    )
    assert found["stacks"] == (
        "warning",
        "not deployed: cli-pipeline, cli-triggers, cli-operations",
        "make deploy ENVIRONMENT=dev",
    )
    assert found["images, data, keys"][0] == "not checked"


def test_a_whole_deployment_has_no_error(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    cloudformation, ssm = deployment.client("cloudformation"), deployment.client("ssm")
    ssm.put_parameter(Name=doctor_account.BOOTSTRAP_PARAMETER, Value="21", Type="String")
    bucket = {"Resources": {"Bucket": {"Type": "AWS::S3::Bucket"}}}
    for stack in ("pipeline", "triggers", "operations"):
        cloudformation.create_stack(StackName=f"cli-{stack}", TemplateBody=json.dumps(bucket))
    assert account(deployment)["base model"][0] == "error"
    key = f"base-models/tiny/{files.BASE_MODEL_FILE}"
    marker = {"digest": "0123456789abcdef", "files": {"config.json": "0"}}
    deployment.s3.put_object(Bucket=deployment.artifact_bucket, Key=key, Body=json.dumps(marker))
    assert account(deployment)["base model"][:2] == ("error", "tiny lacks config.json")
    deployment.s3.put_object(Bucket=deployment.artifact_bucket, Key="base-models/tiny/config.json", Body=b"{}")

    found = account(deployment)
    assert {state for state, _, _ in found.values()} == {"ok"}, found
    assert found["base model"][1] == "tiny: 1 files, digest 0123456789ab"
    assert found["image"][1].endswith("/huggingface-pytorch-training:1")

    monkeypatch.setattr(Deployment, "named", lambda *_: deployment)
    finished = CliRunner().invoke(app, ["doctor", "--json", "-e", "local"], catch_exceptions=False)
    told = json.loads(finished.stdout)
    assert finished.exit_code == (1 if told["errors"] else 0)
    assert {one["check"] for one in told["findings"]} >= {"Python", "Node.js", "CDK CLI", "configuration", "quota"}


@pytest.mark.parametrize(
    ("training", "release", "state", "said"),
    [
        ({"instance_count": 9}, {}, "error", "ml.g5.12xlarge for training job usage: 8, and 9 are needed"),
        ({"spot": True, "max_wait_hours": 30}, {}, "ok", "ml.g5.12xlarge for spot training job usage: 8"),
        ({"instance_type": "ml.g9.large"}, {}, "not checked", "there is no quota 'ml.g9.large for training job usage'"),
        (
            {},
            {"instance_count": 5},
            "warning",
            "8; a release runs the old and the new instances side by side, up to 10",
        ),
        ({}, {"instance_count": 9}, "error", "ml.g5.4xlarge for endpoint usage: 8, and 9 are needed"),
    ],
)
def test_quotas_are_compared_with_what_the_configuration_uses_at_once(
    deployment: Deployment, training: dict[str, Any], release: dict[str, Any], state: str, said: str
) -> None:
    changes = {"training": TrainingSettings(**training), "release": ReleaseSettings(**release)}
    changed = Deployment(deployment.settings.model_copy(update=changes), deployment.endpoint_url)
    (found,) = [row for row in doctor_account.quotas(changed) if said in row[2]]
    assert found[1] == state
    assert (state == "ok") == (found[3] == "")


def test_an_image_a_key_and_a_network_that_are_not_there_are_errors(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    kms, ec2 = deployment.client("kms"), deployment.client("ec2")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    request: dict[str, Any] = {
        "ImageUri": f"{REGISTRY}/huggingface-pytorch-trainig:1",
        "ClusterConfig": {"VolumeKmsKeyId": key},
        "NetworkConfig": {"VpcConfig": {"Subnets": [subnet], "SecurityGroupIds": ["sg-1"]}},
    }
    monkeypatch.setattr(doctor_account, "_definitions", lambda _: [request])
    assert rows(doctor_account.images(deployment))["image"][0] == "error"
    assert rows(doctor_account.kms_keys(deployment))["KMS key"][:2] == ("ok", key)
    state, told, _ = rows(doctor_account.vpc_endpoints(deployment))["VPC endpoints"]
    assert state == "warning" and "has none for s3, sagemaker.api, sagemaker.runtime" in told

    kms.disable_key(KeyId=key)
    assert rows(doctor_account.kms_keys(deployment))["KMS key"][1] == f"{key} is Disabled"
    request["ClusterConfig"]["VolumeKmsKeyId"] = "00000000-0000-0000-0000-000000000000"
    assert rows(doctor_account.kms_keys(deployment))["KMS key"][0] == "error"
    request["NetworkConfig"]["VpcConfig"]["Subnets"] = ["subnet-0123456789"]
    assert rows(doctor_account.vpc_endpoints(deployment))["VPC"][0] == "error"
    pinned = f"{REGISTRY}/huggingface-pytorch-training@sha256:{'0' * 64}"
    request["ImageUri"] = pinned
    assert rows(doctor_account.images(deployment))["image"][:2] == ("ok", pinned)
    request["ImageUri"] = "docker.io/library/python:3.11"
    assert rows(doctor_account.images(deployment))["image"][0] == "not checked"


def test_what_may_not_be_asked_is_not_ok(deployment: Deployment) -> None:
    def denied(one: Deployment) -> Iterator[doctor_account.Row]:
        error = {"Error": {"Code": "AccessDeniedException", "Message": "no"}}
        raise doctor_account.ClientError(error, "ListServiceQuotas")
        yield

    (row,) = doctor_account._asked("quotas", denied, deployment)
    assert row[:2] == ("quotas", "not checked") and "may not call ListServiceQuotas" in row[2] and row[3]


def test_credentials_of_another_account_are_an_error(deployment: Deployment) -> None:
    other = Deployment(deployment.settings.model_copy(update={"account": "999999999999"}), deployment.endpoint_url)
    found = account(other)
    assert found["credentials"][0] == "error" and "999999999999" in found["credentials"][1]
    assert found["the account"][0] == "not checked" and "quota" not in found


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    assert doctor.python((3, 11)).state == "ok"
    assert doctor.python((3, 12)).state == "error"
    assert doctor.node(REPOSITORY / ".venv" / "bin" / "node").state == "ok"
    old = tmp_path / "node"
    old.write_text("#!/bin/sh\necho v20.1.0\n", encoding="utf-8")
    old.chmod(0o755)
    assert doctor.node(old).state == "warning"
    assert doctor.cdk_cli(REPOSITORY).state == "ok" and doctor.cdk_library(REPOSITORY).state == "ok"
    (tmp_path / "package.json").write_text('{"dependencies": {"aws-cdk": "2.0.0"}}', encoding="utf-8")
    assert doctor.cdk_cli(tmp_path).told == "it is not installed"
    assert doctor.steps_environment(tmp_path / "python").state == "warning"


def test_a_wrong_configuration_and_an_aws_that_does_not_run_end_the_examination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_running(*_: str) -> Deployment:
        raise CommandError("local AWS does not run")

    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\nspeed: fast\n", encoding="utf-8")
    found = doctor.examine(str(wrong), lambda _: None)
    assert found[-1].check == "configuration" and "speed: unknown key" in found[-1].told
    monkeypatch.setattr(Deployment, "named", not_running)
    assert doctor.examine("local", lambda _: None)[-1].state == "error"
