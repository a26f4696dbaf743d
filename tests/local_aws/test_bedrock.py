"""A release to Bedrock: the step that has a registered model imported, against import jobs that look at the model."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pipeline_steps import to_bedrock
from pipeline_steps.contract import evaluation, files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.to_bedrock import ImportJob
from tests.evaluations import evaluation as sample_evaluation
from tests.local_aws.sagemaker_server import ACCOUNT, ANYTHING, BUCKET, Server, running_server

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Principal": {"Service": "bedrock.amazonaws.com"},
            "Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}},
        }
    ],
}
KEY = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{'1' * 8}-1111-1111-1111-{'1' * 12}"


def safetensors(kind: str = "BF16") -> bytes:
    header = json.dumps({"a": {"dtype": kind, "shape": [1], "data_offsets": [0, 2]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0\0"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = running_server()
    for name, value in {
        "AWS_ENDPOINT_URL": found.process.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(to_bedrock, "POLL_SECONDS", 0.05)
    return found


class Deployment:
    """A group, a role for Bedrock and an import job's flags, under a name of their own."""

    def __init__(self, server: Server, output: Path) -> None:
        self.server, self.name = server, f"m{uuid.uuid4().hex[:8]}"
        self.bedrock = server.client("bedrock")
        iam = self.iam = server.client("iam")
        role = iam.create_role(RoleName=self.name, AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
        self.allow(ANYTHING)
        server.sagemaker.create_model_package_group(ModelPackageGroupName=self.name)
        self.output = output
        self.job = ImportJob("", self.name, self.name, role, KEY, f"s3://{BUCKET}/{self.name}/bedrock", 5, 2, output)

    def allow(self, policy: dict[str, Any]) -> None:
        self.iam.put_role_policy(RoleName=self.name, PolicyName="p", PolicyDocument=json.dumps(policy))

    def package(self, status: str = "Approved", **changed: bytes | None) -> str:
        """A registered model; `changed` files replace its own, None leaves one out. Points in names are __."""
        prefix = f"{self.name}/runs/{uuid.uuid4().hex}"
        training = {"model_digest": uuid.uuid4().hex, "base_model_digest": "b" * 64}
        content: dict[str, bytes | None] = {
            "config.json": json.dumps({"architectures": ["MistralForCausalLM"]}).encode(),
            "model-00001-of-00002.safetensors": safetensors(),
            "model-00002-of-00002.safetensors": safetensors(),
            "model.safetensors.index.json": b"{}",
            "tokenizer.json": b"{}",
            "tokenizer_config.json": b"{}",
            "chat_template.jinja": b"{{ messages }}",
            "model.py": b"raise SystemExit",
            "adapter/adapter_model.safetensors": safetensors(),
            "training.json": json.dumps(training).encode(),
            **{name.replace("__", "."): body for name, body in changed.items()},
        }
        for name, body in content.items():
            if body is not None:
                self.server.put(f"{prefix}/model/{name}", body)
        evaluation.write(self.output / prefix, sample_evaluation(), [])
        recorded = self.server.put(
            f"{prefix}/evaluation.json", (self.output / prefix / files.EVALUATION_FILE).read_bytes()
        )
        source = {"S3Uri": f"s3://{BUCKET}/{prefix}/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
        arn: str = self.server.sagemaker.create_model_package(
            ModelPackageGroupName=self.name,
            ModelApprovalStatus=status,
            InferenceSpecification={
                "Containers": [{"Image": "web", "ModelDataSource": {"S3DataSource": source}}],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            ModelMetrics={"ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": recorded}}},
        )["ModelPackageArn"]
        return arn

    def release(self, package: str) -> dict[str, Any]:
        return to_bedrock.run(replace(self.job, model_package_arn=package))

    def models(self) -> list[str]:
        found = self.bedrock.list_imported_models(nameContains=self.name, sortOrder="Ascending")["modelSummaries"]
        return [one["modelName"] for one in found]


@pytest.fixture
def deployment(server: Server, tmp_path: Path) -> Deployment:
    return Deployment(server, tmp_path)


def test_an_approved_package_becomes_an_imported_model_once(deployment: Deployment) -> None:
    package = deployment.package()
    released = deployment.release(package)
    model = deployment.bedrock.get_imported_model(modelIdentifier=released["imported_model_arn"])
    assert model["modelName"] == released["release"] and model["modelKmsKeyArn"] == KEY
    assert released["action"] == "started" and released["architecture"] == "MistralForCausalLM"
    assert released["takes_messages"] is True, "the chat template came along"
    written = json.loads((deployment.output / files.DEPLOYMENT_FILE).read_text(encoding="utf-8"))
    assert written == released
    # Bedrock's role sees what it needs, in a place of its own.
    source = model["modelDataSource"]["s3DataSource"]["s3Uri"]
    names = {key.rsplit("/", 1)[1] for key in deployment.server.keys(source.removeprefix(f"s3://{BUCKET}/"))}
    assert names == {
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "chat_template.jinja",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    again = deployment.release(package)
    assert (again["action"], again["imported_model_arn"]) == ("unchanged", released["imported_model_arn"])
    with pytest.raises(ClientError, match="cannot be asked: local AWS imports models into Bedrock and serves none"):
        deployment.server.client("bedrock-runtime").invoke_model(modelId=model["modelArn"], body=b"{}")


def test_of_imported_models_so_many_are_kept_as_configured(deployment: Deployment) -> None:
    released = [deployment.release(deployment.package()) for _ in range(3)]
    assert deployment.models() == [one["release"] for one in released[1:]]
    assert released[2]["removed"] == [released[0]["release"]]


def test_a_failed_import_is_told_with_its_reason_and_can_be_tried_again(deployment: Deployment) -> None:
    package = deployment.package()
    deployment.allow({**ANYTHING, "Statement": [{**ANYTHING["Statement"][0], "Action": "s3:ListBucket"}]})  # type: ignore[dict-item, index]
    with pytest.raises(
        StepError, match=r"could not import .*s3:GetObject.*models that were imported before are untouched"
    ):
        deployment.release(package)
    assert deployment.models() == [] and not (deployment.output / files.DEPLOYMENT_FILE).exists()
    deployment.allow(ANYTHING)
    assert deployment.release(package)["action"] == "started"
    jobs = deployment.bedrock.list_model_import_jobs(nameContains=deployment.name)["modelImportJobSummaries"]
    assert {one["jobName"][-2:]: one["status"] for one in jobs} == {"-1": "Failed", "-2": "Completed"}


def test_a_second_run_joins_the_import_that_is_on_its_way(deployment: Deployment) -> None:
    package = deployment.package()
    with pytest.raises(StepError, match="was not done after 0 minutes"):
        to_bedrock.run(replace(deployment.job, model_package_arn=package, max_update_minutes=0))
    assert deployment.release(package)["action"] in ("joined", "unchanged")
    assert len(deployment.bedrock.list_model_import_jobs(nameContains=deployment.name)["modelImportJobSummaries"]) == 1


@pytest.mark.parametrize(
    ("status", "changed", "said"),
    [
        ("PendingManualApproval", {}, "is PendingManualApproval; only an Approved package is released"),
        (
            "Approved",
            {"config__json": b'{"architectures": ["GemmaForCausalLM"]}', "tokenizer__json": None},
            r"has no tokenizer\.json; the architecture GemmaForCausalLM; Bedrock imports LlamaForCausalLM, Mistral",
        ),
        ("Approved", {"config__json": None}, r"has no config\.json\. Release it to an endpoint"),
    ],
)
def test_what_bedrock_cannot_take_is_refused_before_anything_is_copied(
    deployment: Deployment, status: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(StepError, match=said):
        deployment.release(deployment.package(status, **changed))
    assert deployment.server.keys(f"{deployment.name}/bedrock") == []


def test_weights_of_another_type_fail_in_bedrock(deployment: Deployment) -> None:
    weights = {"model-00002-of-00002__safetensors": safetensors("F64")}
    with pytest.raises(StepError, match="has weights of F64; allowed: F32, F16, BF16"):
        deployment.release(deployment.package(**weights))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"importedModelName": "a--b"}, "must satisfy regular expression pattern|failed to satisfy constraint"),
        ({"roleArn": f"arn:aws:iam::{ACCOUNT}:role/sagemaker"}, "does not name this service"),
        ({"vpcConfig": {"subnetIds": ["a"], "securityGroupIds": ["b"]}}, "vpcConfig is not implemented by local AWS"),
    ],
)
def test_a_request_that_bedrock_would_refuse_is_refused(
    deployment: Deployment, changed: dict[str, Any], said: str
) -> None:
    request = {
        "jobName": "x", "importedModelName": "x", "roleArn": deployment.job.role_arn,
        "modelDataSource": {"s3DataSource": {"s3Uri": f"s3://{BUCKET}/x/"}},
    }  # fmt: skip
    with pytest.raises(ClientError, match=said):
        deployment.bedrock.create_model_import_job(**{**request, **changed})
    with pytest.raises(deployment.bedrock.exceptions.ResourceNotFoundException):
        deployment.bedrock.get_imported_model(modelIdentifier="nothing-of-that-name")
