"""Least privilege, proven by running under it: local AWS enforces every policy, and each statement is needed by the run.

`make permissions` prints the table. The module takes the run of test_product.py where that came before, else makes one.
"""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from cli import permissions
from cli.aws import REPOSITORY, Deployment
from cli.permissions import Statement
from tests.end_to_end.test_product import upload_and_follow

# Allowing statements that a good run of the tiny product may not need, each with the reason why it stays.
NOT_NEEDED_IN_EVERY_RUN = {
    ("DeployRole", "AutoscalingRole"): "only a release with autoscaling registers a target",
    ("DeployRole", "RejectPackage"): "only a release that fails rejects its package (test_release.py makes one fail)",
    ("DeployRole", "WatchAlarms"): "a first release has nothing to go back to, and so no alarms",
    ("DeployRole", "ListParts"): "a first release has no earlier ones to clear away",
    ("ServingRole", "WatchAlarms"): "as above",
    ("PrepareRole", "FollowRuns"): "there is no other run to wait for",
}
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


def ended(describe: Any, status: str) -> str:
    """Wait for the end; returns why it ended so."""
    deadline = time.monotonic() + 300
    while describe()[status] in ("InProgress", "Executing", "Stopping"):
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.2)
    return str(describe().get("FailureReason", ""))
