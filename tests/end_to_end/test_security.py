"""Least privilege, proven by running under it: local AWS enforces every policy, and each statement is needed by the run.

`make permissions` prints the table. The module takes the run of test_product.py where that came before, else makes one.
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from cli import permissions
from cli.aws import REPOSITORY, Deployment
from cli.permissions import Statement
from tests.cli import hub_server
from tests.cli.hub_server import Hub
from tests.end_to_end.clients import finetune
from tests.end_to_end.test_product import upload_and_follow

# Allowing statements that a good run of the tiny product may not need, each with the reason why it stays.
NOT_NEEDED_IN_EVERY_RUN = {
    ("DeployRole", "RejectPackage"): "only a release that fails rejects its package (test_release.py makes one fail)",
    ("DeployRole", "WatchAlarms"): "a first release has nothing to go back to, and so no alarms",
    ("DeployRole", "ListParts"): "a first release has no earlier ones to clear away",
    ("ServingRole", "WatchAlarms"): "as above",
    ("PrepareRole", "FollowRuns"): "there is no other run to wait for",
}
# Allowed actions that such a run does not ask for, though it needs their statement, each with the reason why it stays.
NOT_ASKED_IN_EVERY_RUN = {
    **{
        ("DeployRole", action): "a first release has nothing to update, to take back or to clear away (test_release.py has)"
        for action in (
            "cloudwatch:PutMetricAlarm", "sagemaker:DeleteEndpoint", "sagemaker:DeleteEndpointConfig",
            "sagemaker:DeleteModel", "sagemaker:DescribeEndpointConfig", "sagemaker:UpdateEndpoint",
        )
    },
    ("PipelineRole", "sagemaker:AddTags"): "SageMaker tags what a pipeline makes; local AWS tags no package by itself",
    ("PipelineRole", "sagemaker:StopProcessingJob"): "only an execution that is stopped stops its jobs",
    ("PipelineRole", "sagemaker:StopTrainingJob"): "as above",
    ("PrepareRole", "sagemaker:DescribeModelPackage"): "there is no earlier package to look at",
    ("ServingRole", "kms:Encrypt"): "SageMaker asks for it of roles that write under a key; local AWS captures without it",
}  # fmt: skip
# Who works in a first run of `<name>-finetune`; the table shows the others' statements too.
ROLES = ("PrepareRole", "TrainRole", "EvaluateRole", "DeployRole", "ServingRole", "PipelineRole", "EventsRole")


@pytest.fixture(scope="module")
def exercised(deployment: Deployment) -> Deployment:
    """The deployment after a whole run: new data became a served model."""
    pipeline = deployment.settings.finetune_pipeline_name
    runs = deployment.sagemaker.list_pipeline_executions(PipelineName=pipeline)["PipelineExecutionSummaries"]
    if not any(run["PipelineExecutionStatus"] == "Succeeded" for run in runs):
        view = upload_and_follow(deployment, REPOSITORY / "examples" / "instruction", "instruction")
        assert view.status == "Succeeded", view.reason
    return deployment


@pytest.fixture(scope="module")
def statements(exercised: Deployment) -> list[Statement]:
    permissions.show(exercised)
    return permissions.statements(exercised)


def without_hash(owner: str) -> str:
    """A logical id without the hash that CDK adds."""
    return owner[:-8]


def role_of(deployment: Deployment, logical_id: str) -> str:
    roles = deployment.client("iam").list_roles()["Roles"]
    (name,) = [one["RoleName"] for one in roles if f"-{logical_id}" in one["RoleName"]]
    return str(name)


@contextmanager
def removed(deployment: Deployment, role: str, sid: str) -> Iterator[None]:
    """The role's policy without the statement, while the body runs."""
    iam = deployment.client("iam")
    (name,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
    whole = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    rest = [one for one in whole["Statement"] if one["Sid"] != sid]
    assert len(rest) == len(whole["Statement"]) - 1
    iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps({**whole, "Statement": rest}))
    try:
        yield
    finally:
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps(whole))


def test_without_any_one_statement_the_run_is_denied_something(statements: list[Statement]) -> None:
    assert len(statements) > 40
    of_the_run = [one for one in statements if without_hash(one.owner) in ROLES]
    assert {without_hash(one.owner) for one in of_the_run} == set(ROLES)
    idle = {(without_hash(one.owner), one.name) for one in of_the_run if not one.needs}
    assert idle <= NOT_NEEDED_IN_EVERY_RUN.keys(), f"nobody needs {sorted(idle - NOT_NEEDED_IN_EVERY_RUN.keys())}"


def test_no_statement_that_is_needed_allows_an_action_that_nobody_asks_for(statements: list[Statement]) -> None:
    of_the_run = [one for one in statements if without_hash(one.owner) in ROLES and one.needs]
    idle = {(without_hash(one.owner), action) for one in of_the_run for action in one.unused}
    assert idle <= NOT_ASKED_IN_EVERY_RUN.keys(), f"nobody asks for {sorted(idle - NOT_ASKED_IN_EVERY_RUN.keys())}"


def test_a_training_without_its_permission_to_read_fails_with_access_denied(exercised: Deployment) -> None:
    sagemaker = exercised.sagemaker
    name = sagemaker.list_training_jobs()["TrainingJobSummaries"][0]["TrainingJobName"]
    described = sagemaker.describe_training_job(TrainingJobName=name)
    kept = (
        "RoleArn", "AlgorithmSpecification", "HyperParameters", "InputDataConfig", "OutputDataConfig", "ResourceConfig",
        "StoppingCondition", "EnableNetworkIsolation",
    )  # fmt: skip
    again = f"again-{uuid.uuid4().hex[:8]}"
    with removed(exercised, role_of(exercised, "TrainRole"), "ReadArtifacts"):
        sagemaker.create_training_job(TrainingJobName=again, **{key: described[key] for key in kept})
        reason = ended(lambda: sagemaker.describe_training_job(TrainingJobName=again), "TrainingJobStatus")
    assert "AccessDenied" in reason and "is not authorized to perform: s3:GetObject on resource" in reason
    assert "because no identity-based policy allows the s3:GetObject action" in reason


def test_a_pipeline_without_its_permission_to_pass_roles_fails_in_its_first_step(exercised: Deployment) -> None:
    with removed(exercised, role_of(exercised, "PipelineRole"), "PassRoles"):
        pipeline = exercised.settings.finetune_pipeline_name
        arn = exercised.sagemaker.start_pipeline_execution(PipelineName=pipeline)["PipelineExecutionArn"]
        describe = exercised.sagemaker.describe_pipeline_execution
        reason = ended(lambda: describe(PipelineExecutionArn=arn), "PipelineExecutionStatus")
    assert "PrepareData" in reason and "AccessDenied" in reason and "iam:PassRole" in reason


FORBIDDEN = {
    "read the raw data": ("s3", "get_object", {"Bucket": "RAW", "Key": "instruction/dataset.manifest"}),
    "list the raw data": ("s3", "list_objects_v2", {"Bucket": "RAW"}),
    "write the raw data": ("s3", "put_object", {"Bucket": "RAW", "Key": "instruction/x.manifest", "Body": "{}"}),
    "delete an artifact": ("s3", "delete_object", {"Bucket": "ARTIFACTS", "Key": "base-models/x"}),
    "change a dataset": ("s3", "put_object", {"Bucket": "ARTIFACTS", "Key": "datasets/x", "Body": "x"}),
    "change the base model": ("s3", "put_object", {"Bucket": "ARTIFACTS", "Key": "base-models/x", "Body": "x"}),
    "register a model": ("sagemaker", "create_model_package", {"ModelPackageGroupName": "tiny"}),
    "approve a model": (
        "sagemaker", "update_model_package",
        {"ModelPackageArn": "arn:aws:sagemaker:us-east-1:123456789012:model-package/tiny/1", "ModelApprovalStatus": "Approved"},
    ),
    "delete the endpoint": ("sagemaker", "delete_endpoint", {"EndpointName": "tiny"}),
    "move the endpoint": ("sagemaker", "update_endpoint", {"EndpointName": "tiny", "EndpointConfigName": "x"}),
    "ask the endpoint": ("sagemaker-runtime", "invoke_endpoint", {"EndpointName": "tiny", "Body": "{}"}),
    "start the pipeline": ("sagemaker", "start_pipeline_execution", {"PipelineName": "tiny-finetune"}),
    "hide a bad model": ("cloudwatch", "delete_alarms", {"AlarmNames": ["tiny-x"]}),
    "invent metrics": ("cloudwatch", "put_metric_data", {"Namespace": "AWS/SageMaker", "MetricData": [{"MetricName": "m", "Value": 1}]}),
}  # fmt: skip
TELL_KEYS = 'printf "%s %s %s" $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_SESSION_TOKEN > /opt/ml/output/message'


def test_what_trains_cannot_touch_raw_data_artifacts_the_registry_or_the_endpoint(exercised: Deployment) -> None:
    name = f"forbidden-{uuid.uuid4().hex[:8]}"
    role = exercised.client("iam").get_role(RoleName=role_of(exercised, "TrainRole"))["Role"]["Arn"]
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:x"
    exercised.sagemaker.create_processing_job(
        ProcessingJobName=name,
        RoleArn=role,
        AppSpecification={"ImageUri": image, "ContainerEntrypoint": ["sh", "-c", TELL_KEYS]},
        ProcessingResources={"ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}},
    )
    describe = exercised.sagemaker.describe_processing_job
    assert ended(lambda: describe(ProcessingJobName=name), "ProcessingJobStatus") == ""
    session = boto3.Session(*describe(ProcessingJobName=name)["ExitMessage"].split(), region_name="us-east-1")
    buckets = {"RAW": exercised.raw_bucket, "ARTIFACTS": exercised.artifact_bucket}
    allowed = {}
    for what, (service, call, arguments) in FORBIDDEN.items():
        client: Any = session.client(service, endpoint_url=exercised.endpoint_url)  # type: ignore[call-overload]
        given = {
            key: buckets.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()
        }
        with pytest.raises(ClientError) as refused:
            getattr(client, call)(**given)
        code = refused.value.response["Error"]["Code"]
        if code not in ("AccessDenied", "AccessDeniedException"):
            allowed[what] = code
    assert allowed == {}


def test_data_outside_of_our_bucket_is_refused_before_anything_is_read_of_it(exercised: Deployment) -> None:
    s3, foreign = exercised.s3, f"foreign-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=foreign)
    s3.put_object(Bucket=foreign, Key="train/train.jsonl", Body=b'{"instruction": "stolen"}')
    manifest = "foreign.list"  # no upload's name, so that its event starts nothing
    content = json.dumps([{"prefix": f"s3://{foreign}/"}, "train/train.jsonl"])
    exercised.s3.put_object(Bucket=exercised.raw_bucket, Key=manifest, Body=content)
    published = s3.list_objects_v2(Bucket=exercised.artifact_bucket, Prefix="datasets/")["KeyCount"]
    arn = exercised.sagemaker.start_pipeline_execution(
        PipelineName=exercised.settings.finetune_pipeline_name,
        PipelineParameters=[{"Name": "DatasetManifest", "Value": manifest}],
    )["PipelineExecutionArn"]
    describe = exercised.sagemaker.describe_pipeline_execution
    reason = ended(lambda: describe(PipelineExecutionArn=arn), "PipelineExecutionStatus")
    assert "PrepareData" in reason and "AccessDenied" in reason and foreign in reason
    assert s3.list_objects_v2(Bucket=exercised.artifact_bucket, Prefix="datasets/")["KeyCount"] == published


# ---------------------------------------------------------------- secrets


def test_a_planted_secret_is_nowhere_but_in_secrets_manager(
    exercised: Deployment, aws_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_environment, of_manager = f"hf_{uuid.uuid4().hex}", f"hf_{uuid.uuid4().hex}"
    exercised.client("secretsmanager").create_secret(Name="hub-token", SecretString=of_manager)
    weights = hub_server.model_files()
    name = f"planted-{uuid.uuid4().hex[:8]}"
    command = ("import-model", "hf://org/model", "--name", name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with hub_server.running(Hub(weights, token=of_manager)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", of_environment)
        refused = finetune(exercised, *command)  # the wrong token: what is told of it must not hold it
        assert refused.returncode != 0 and "this token may not read it" in refused.stdout + refused.stderr
        monkeypatch.delenv("HF_TOKEN")
        imported = finetune(exercised, *command, "--token-secret", "hub-token")
        assert imported.returncode == 0, imported.stdout + imported.stderr
        hub.token = of_environment
        monkeypatch.setenv("HF_TOKEN", of_environment)
        again = finetune(exercised, "import-model", "hf://org/model", "--name", f"{name}-again")
        assert again.returncode == 0, again.stdout + again.stderr
    # A job that starts while the secrets are in the environment of who starts it, and tells its own.
    with pytest.MonkeyPatch.context() as planted:
        planted.setenv("HF_TOKEN", of_environment)
        told = environment_of_a_job(exercised)
    assert "TRAINING_JOB" in told or "PROCESSING_JOB" in told

    kept = [REPOSITORY / "build" / "base-models" / exercised.settings.name / one for one in (name, f"{name}-again")]
    assert all(folder.is_dir() for folder in kept)
    places = {
        "the command's output": "".join(one.stdout + one.stderr for one in (refused, imported, again)),
        "a job's environment": told,
        **{str(path): text_of(path) for folder in (aws_root, tmp_path, *kept) for path in folder.rglob("*")},
        **everything_told(exercised),
    }
    assert len(places) > 100
    for secret in (of_environment, of_manager):
        assert [place for place, text in places.items() if secret in text] == []
    assert exercised.client("secretsmanager").get_secret_value(SecretId="hub-token")["SecretString"] == of_manager
    for folder in kept:
        shutil.rmtree(folder)


def environment_of_a_job(deployment: Deployment) -> str:
    """What `env` says in a processing job."""
    name = f"environment-{uuid.uuid4().hex[:8]}"
    role = deployment.client("iam").get_role(RoleName=role_of(deployment, "TrainRole"))["Role"]["Arn"]
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:x"
    deployment.sagemaker.create_processing_job(
        ProcessingJobName=name,
        RoleArn=role,
        AppSpecification={
            "ImageUri": image,
            "ContainerEntrypoint": [
                "sh",
                "-c",
                "env | cut -c-60 | grep -v ^AWS_ | head -c 900 > /opt/ml/output/message",
            ],
        },
        ProcessingResources={"ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}},
    )
    describe = deployment.sagemaker.describe_processing_job
    assert ended(lambda: describe(ProcessingJobName=name), "ProcessingJobStatus") == ""
    return str(describe(ProcessingJobName=name)["ExitMessage"])


def text_of(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() and not path.is_symlink() else ""


def everything_told(deployment: Deployment) -> dict[str, str]:
    """Every object, log line, template, definition and job description of the deployment, by where it is."""
    s3, sagemaker = deployment.s3, deployment.sagemaker
    logs, cloudformation = deployment.client("logs"), deployment.client("cloudformation")
    found: dict[str, str] = {}
    for bucket in (one["Name"] for one in s3.list_buckets()["Buckets"]):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for one in page.get("Contents", []):
                content = s3.get_object(Bucket=bucket, Key=one["Key"])
                found[f"s3://{bucket}/{one['Key']}"] = content["Body"].read().decode("latin-1") + str(
                    content["Metadata"]
                )
    for group in (one["logGroupName"] for one in logs.describe_log_groups()["logGroups"]):
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group):
            found[f"log {group}"] = found.get(f"log {group}", "") + json.dumps([e["message"] for e in page["events"]])
    for stack in (one["StackName"] for one in cloudformation.describe_stacks()["Stacks"]):
        found[f"stack {stack}"] = json.dumps(cloudformation.get_template(StackName=stack), default=str)
    for one in sagemaker.list_pipelines()["PipelineSummaries"]:
        found[one["PipelineName"]] = str(sagemaker.describe_pipeline(PipelineName=one["PipelineName"]))
    for one in sagemaker.list_processing_jobs(MaxResults=100)["ProcessingJobSummaries"]:
        name = one["ProcessingJobName"]
        found[name] = str(sagemaker.describe_processing_job(ProcessingJobName=name))
    for one in sagemaker.list_training_jobs(MaxResults=100)["TrainingJobSummaries"]:
        name = one["TrainingJobName"]
        found[name] = str(sagemaker.describe_training_job(TrainingJobName=name))
    return found


def ended(describe: Any, status: str) -> str:
    """Wait for the end; returns why it ended so."""
    deadline = time.monotonic() + 300
    while describe()[status] in ("InProgress", "Executing", "Stopping"):
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.2)
    return str(describe().get("FailureReason", ""))
