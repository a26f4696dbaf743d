"""Two accounts in two regions: what is approved in the one is served in the other, under the policies of both."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli import base_models, executions, local, permissions, releases
from cli.aws import REPOSITORY, Deployment
from config.settings import load
from pipeline_steps.contract import files
from tests.end_to_end.clients import finetune
from tests.end_to_end.test_product import upload_and_follow
from tests.end_to_end.test_release import copy_of

CONFIGURATION = str(Path(__file__).with_name("accounts.yaml"))
PLACE = f"{CONFIGURATION}/eu"
# Statements of the role that crosses that these releases need not, each with the reason why it stays.
NOT_NEEDED = {"WatchAlarms": "there is no canary, and so nothing that alarms are asked about"}


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Deployment, Deployment]]:
    """The account that registers and the one that serves, each deployed by itself, with the base model in the first."""
    folder = tmp_path_factory.mktemp("accounts")
    registry, place = load(CONFIGURATION), load(PLACE)
    with (
        local.running(place, folder / "place", neighbours=folder / "known") as of_place,
        local.running(registry, folder / "registry", neighbours=folder / "known") as of_registry,
    ):
        for settings, aws, environment in ((place, of_place, PLACE), (registry, of_registry, CONFIGURATION)):
            local.deploy(settings, aws.url, folder / f"{settings.region}.log", environment)
        deployment = Deployment(registry, of_registry.url)
        base_models.import_model(deployment, str(tiny_model), registry.base_model.name, print)
        yield deployment, Deployment(place, of_place.url)


@pytest.fixture(scope="module")
def registry(accounts: tuple[Deployment, Deployment]) -> Deployment:
    return accounts[0]


@pytest.fixture(scope="module")
def place(accounts: tuple[Deployment, Deployment]) -> Deployment:
    return accounts[1]


@pytest.fixture(scope="module")
def package(registry: Deployment, place: Deployment) -> str:
    """ARN of a package that was trained and approved in the one account and released in the other."""
    view = upload_and_follow(registry, REPOSITORY / "examples" / "instruction", "instruction")
    assert view.status == "Succeeded", view.reason
    assert [step.name for step in view.steps][-1] == "Register", "who registers does not release"
    group = registry.settings.model_package_group_name
    (found,) = registry.sagemaker.list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]
    arn = str(found["ModelPackageArn"])
    released = executions.follow(place, releases.wait_for_start(place, arn, time.time() - 60))
    assert released.status == "Succeeded", released.reason
    return arn


def failed_release(place: Deployment, package: str) -> str:
    """The reason for which a release of the package fails."""
    view = executions.follow(place, releases.start(place, package))
    assert view.status == "Failed"
    return view.reason


@contextmanager
def changed(put: Callable[[str], Any], policy: str, sid: str) -> Iterator[None]:
    """A resource policy without one statement, for a while."""
    document = json.loads(policy)
    rest = [one for one in document["Statement"] if one.get("Sid") != sid]
    assert len(rest) < len(document["Statement"])
    put(json.dumps({**document, "Statement": rest}))
    try:
        yield
    finally:
        put(policy)


def without_statement(registry: Deployment, where: str, sid: str) -> Any:
    group, bucket = registry.settings.model_package_group_name, registry.artifact_bucket
    if where == "group":
        put = lambda text: registry.sagemaker.put_model_package_group_policy(  # noqa: E731
            ModelPackageGroupName=group, ResourcePolicy=text
        )
        policy = registry.sagemaker.get_model_package_group_policy(ModelPackageGroupName=group)["ResourcePolicy"]
    elif where == "bucket":
        put = lambda text: registry.s3.put_bucket_policy(Bucket=bucket, Policy=text)  # noqa: E731
        policy = registry.s3.get_bucket_policy(Bucket=bucket)["Policy"]
    else:
        kms = registry.client("kms")
        (key,) = [
            one["TargetKeyId"]
            for one in kms.list_aliases()["Aliases"]
            if one["AliasName"] == f"alias/{registry.settings.name}"
        ]
        put = lambda text: kms.put_key_policy(KeyId=key, PolicyName="default", Policy=text)  # noqa: E731
        policy = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    return changed(put, policy, sid)


def test_what_is_approved_in_one_account_is_served_in_the_other_from_a_copy(
    registry: Deployment, place: Deployment, package: str
) -> None:
    assert package.startswith("arn:aws:sagemaker:us-east-1:111111111111:")
    endpoint = place.sagemaker.describe_endpoint(EndpointName=place.settings.endpoint_name)
    assert endpoint["EndpointStatus"] == "InService"
    assert endpoint["EndpointArn"].startswith("arn:aws:sagemaker:eu-west-1:222222222222:")
    serving = releases.serving(place)
    assert serving is not None and serving.package == package
    (container,) = place.sagemaker.describe_model(ModelName=serving.release)["Containers"]
    assert ".eu-west-1." in container["Image"]
    assert served_from(place).startswith(f"s3://{place.artifact_bucket}/models/")
    assert contents(place, served_from(place)) == contents(registry, model_uri(registry, package))
    answer = place.invoke({"inputs": "When does the ferry", "parameters": {"max_new_tokens": 4}})
    assert isinstance(answer[0]["generated_text"], str)
    assert registry.sagemaker.list_endpoints()["Endpoints"] == []


def contents(deployment: Deployment, prefix: str) -> dict[str, bytes]:
    """Each object below an S3 prefix, by the rest of its key."""
    bucket, _, folder = prefix.removeprefix("s3://").partition("/")
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    return {key.removeprefix(folder): deployment.s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_the_commands_work_where_the_thing_is_and_name_the_place_where_it_is_not(
    registry: Deployment, place: Deployment, package: str
) -> None:
    for command, told in (
        (("endpoints",), package),
        (("status",), "Succeeded"),
        (("deploy", "1"), "releasing version 1"),
        (("doctor",), "tiny-storage-eu, tiny-serving-eu, tiny-operations-eu"),
    ):
        assert told in said(place, PLACE, command, 0)
    for deployment, configuration, command, told in (
        (registry, CONFIGURATION, ("endpoints",), f"use -e {PLACE}"),
        (registry, CONFIGURATION, ("approve", "--yes", "--follow"), f"finetune status -e {PLACE}"),
        (place, PLACE, ("start",), f"use -e {CONFIGURATION} for this"),
        (place, PLACE, ("deploy",), "name the version"),
        (place, PLACE, ("rollback", "--yes"), "no earlier release is kept here"),
    ):
        assert told in said(deployment, configuration, command, 1)


def said(deployment: Deployment, configuration: str, command: tuple[str, ...], code: int) -> str:
    """What the command says, without line ends; its exit code must be `code`."""
    finished = finetune(deployment, *command, configuration=configuration)
    text = finished.stdout + finished.stderr
    assert finished.returncode == code, text
    return text.replace("\n", "")


@pytest.mark.parametrize(
    ("where", "sid", "action"),
    [
        ("group", "PlacesReadPackages", "sagemaker:DescribeModelPackage"),
        ("bucket", "PlacesListModels", "s3:ListBucket"),
        ("bucket", "PlacesReadModels", "s3:GetObject"),
        ("key", "PlacesReadModels", "kms:Decrypt"),
    ],
)
def test_a_release_without_a_statement_of_the_other_account_is_denied(
    registry: Deployment, place: Deployment, package: str, where: str, sid: str, action: str
) -> None:
    with without_statement(registry, where, sid):
        reason = failed_release(place, package)
    # Of S3 a client that asks for the head of an object learns the status alone.
    assert action in reason or "403" in reason, reason
    assert releases.serving(place) is not None, "what serves goes on"


def test_an_approval_that_a_place_does_not_take_is_kept(registry: Deployment, place: Deployment, package: str) -> None:
    events, bus = place.client("events"), f"{place.settings.name}-approvals"
    policy = json.loads(events.describe_event_bus(Name=bus)["Policy"])
    queues = registry.client("sqs")
    (queue,) = [url for url in queues.list_queues()["QueueUrls"] if "Undelivered" in url]
    events.remove_permission(EventBusName=bus, StatementId="Registry")
    try:
        registry.sagemaker.update_model_package(ModelPackageArn=package, ModelApprovalStatus="Approved")
        deadline = time.monotonic() + 60
        while not (found := queues.receive_message(QueueUrl=queue, MessageAttributeNames=["All"]).get("Messages")):
            assert time.monotonic() < deadline, "the event is neither delivered nor kept"
            time.sleep(0.2)
    finally:
        events.put_permission(EventBusName=bus, Policy=json.dumps(policy))
    reason = found[0]["MessageAttributes"]["ERROR_MESSAGE"]["StringValue"]
    assert "events:PutEvents" in reason and bus in reason
    assert json.loads(found[0]["Body"])["detail"]["ModelPackageArn"] == package
    queues.delete_message(QueueUrl=queue, ReceiptHandle=found[0]["ReceiptHandle"])


def test_a_model_that_fails_in_a_place_is_rejected_where_it_is_registered_and_the_old_one_serves_on(
    registry: Deployment, place: Deployment, package: str
) -> None:
    clock = time.time()
    bad = copy_of(registry, package, "Approved", faults="exit_at_start")
    view = executions.follow(place, releases.wait_for_start(place, bad, clock))
    assert view.status == "Failed"
    described = registry.sagemaker.describe_model_package(ModelPackageName=bad)
    assert described["ModelApprovalStatus"] == "Rejected" and "Its release failed" in described["ApprovalDescription"]
    serving = releases.serving(place)
    assert serving is not None and serving.package == package
    assert "model.safetensors" in contents(place, served_from(place)), "the copy that both are served from stays"


def test_a_copy_goes_with_the_last_release_that_is_kept_of_it_and_the_way_back_is_one_command(
    registry: Deployment, place: Deployment, package: str
) -> None:
    first = served_from(place)
    released = []
    for digest in ("3" * 64, "4" * 64):  # kept_releases is 2
        clock = time.time()
        released.append(copy_of(registry, package, "Approved", model_uri=another_model(registry, package, digest)))
        view = executions.follow(place, releases.wait_for_start(place, released[-1], clock))
        assert view.status == "Succeeded", view.reason
    assert served_from(place).endswith(f"/models/{'4' * 64}/") and contents(place, served_from(place))
    assert contents(place, first) == {}, "no release that is kept is served from it"
    back = said(place, PLACE, ("rollback", "--yes"), 0)
    assert f"serves now: {released[1]}" in back
    serving = releases.serving(place)
    assert serving is not None and serving.package == released[0]
    approved = registry.sagemaker.describe_model_package(ModelPackageName=released[1])["ModelApprovalStatus"]
    assert approved == "Approved", "one place's way back is not a word about the model"


def served_from(place: Deployment) -> str:
    """The S3 prefix of the model that serves."""
    serving = releases.serving(place)
    assert serving is not None
    (container,) = place.sagemaker.describe_model(ModelName=serving.release)["Containers"]
    return str(container["ModelDataSource"]["S3DataSource"]["S3Uri"])


def another_model(registry: Deployment, package: str, digest: str) -> str:
    """The S3 prefix of a model like the package's that says to be another one."""
    bucket = registry.artifact_bucket
    for name, content in contents(registry, model_uri(registry, package)).items():
        if name == files.TRAINING_FILE:
            content = json.dumps({**json.loads(content), "model_digest": digest}).encode()
        registry.s3.put_object(Bucket=bucket, Key=f"runs/another-{digest[:8]}/{name}", Body=content)
    return f"s3://{bucket}/runs/another-{digest[:8]}/"


def model_uri(registry: Deployment, package: str) -> str:
    described = registry.sagemaker.describe_model_package(ModelPackageName=package)
    container = described["InferenceSpecification"]["Containers"][0]
    return str(container["ModelDataSource"]["S3DataSource"]["S3Uri"])


def test_every_statement_of_the_role_that_crosses_is_needed(
    registry: Deployment, place: Deployment, package: str
) -> None:
    of_role = [one for one in permissions.statements(place, registry) if one.owner.startswith("DeployRole")]
    assert {"ReadRegistered", "ListRegistered", "DecryptRegistered", "ReadPackage"} <= {one.name for one in of_role}
    idle = {one.name for one in of_role if not one.needs}
    assert idle <= NOT_NEEDED.keys(), f"nobody needs {sorted(idle - NOT_NEEDED.keys())}"
