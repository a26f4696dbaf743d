"""Releases: what is approved is served, and nothing else; a bad model reaches nobody; the way back is one command.

Goes on where test_product.py stopped: one package is served. Requests come at a constant rate during every release, and
the count of those that failed is printed (pytest -s).
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import datasets, executions, local, packages, releases
from cli.aws import REPOSITORY, Deployment
from config.settings import Settings
from local_aws import LocalAws
from tests.end_to_end.clients import Load, finetune
from tests.end_to_end.conftest import deployed


def release(deployment: Deployment, package: str) -> executions.ExecutionView:
    return executions.follow(deployment, releases.start(deployment, package))


def result(deployment: Deployment, execution: str) -> Any:
    key = f"runs/{execution.rsplit('/', 1)[-1]}/deployment/deployment.json"
    return json.loads(deployment.s3.get_object(Bucket=deployment.artifact_bucket, Key=key)["Body"].read())


def endpoint(deployment: Deployment) -> Any:
    described = deployment.sagemaker.describe_endpoint(EndpointName=deployment.settings.endpoint_name)
    assert described["EndpointStatus"] == "InService"
    return described


def served_package(deployment: Deployment) -> str:
    current = releases.serving(deployment)
    assert current is not None and endpoint(deployment)["EndpointConfigName"] == current.release
    return current.package


def runs_for(deployment: Deployment, package: str) -> list[str]:
    """Executions of the deploy pipeline for one package."""
    found = executions.newest_ones(deployment, deployment.settings.deploy_pipeline_name, 50)
    arns = [one["PipelineExecutionArn"] for one in found]
    return [arn for arn in arns if executions.parameters(deployment, arn)["ModelPackageArn"] == package]


def copy_of(deployment: Deployment, package: str, status: str, **changes: Any) -> str:
    """A package like another one but for `faults` of its container, its `model_uri`, or its `evaluation_uri`."""
    described = deployment.sagemaker.describe_model_package(ModelPackageName=package)
    specification = described["InferenceSpecification"]
    container = specification["Containers"][0]
    if "faults" in changes:
        container["Environment"]["LOCAL_AWS_FAULTS"] = changes["faults"]
    if "model_uri" in changes:
        container["ModelDataSource"]["S3DataSource"]["S3Uri"] = changes["model_uri"]
    metrics = described["ModelMetrics"]
    if "evaluation_uri" in changes:
        metrics["ModelQuality"]["Statistics"]["S3Uri"] = changes["evaluation_uri"]
    return deployment.sagemaker.create_model_package(
        ModelPackageGroupName=deployment.settings.model_package_group_name,
        ModelApprovalStatus=status,
        InferenceSpecification=specification,
        ModelMetrics=metrics,
    )["ModelPackageArn"]


def children(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from children(int(child))


def serving_processes(aws: LocalAws) -> list[int]:
    """The processes that have the model loaded: `python3 -m local_aws.lmi` in each container."""
    found = []
    for pid in children(aws.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if command[0].endswith(b"python3") and command[1:3] == [b"-m", b"local_aws.lmi"]:
            found.append(pid)
    return found


class Memory:
    """What a process has in its writable memory, where weights lie."""

    def __init__(self, pid: int) -> None:
        self._parts = []
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                place, permissions, *_ = line.split()
                start, end = (int(edge, 16) for edge in place.split("-"))
                if permissions.startswith("rw"):
                    memory.seek(start)
                    self._parts.append(memory.read(end - start))

    def holds(self, content: bytes) -> bool:
        return any(content in part for part in self._parts)


def tensors_as_served(safetensors: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Each tensor of a safetensors file in bfloat16 and in float32: the server takes one, by the processor.

    The file is 8 bytes with the length of its header, the header in JSON, the data.
    """
    begin = 8 + int.from_bytes(safetensors[:8], "little")
    header = json.loads(safetensors[8:begin])
    header.pop("__metadata__", None)
    found = {}
    for name, one in header.items():
        start, end = one["data_offsets"]
        content = safetensors[begin + start : begin + end]
        if one["dtype"] == "F32":  # rounded to the nearest, ties to even
            bits = np.frombuffer(content, "<u4")
            found[name] = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes(), content)
        else:
            found[name] = (content, (np.frombuffer(content, "<u2").astype("<u4") << 16).tobytes())
    return found


@pytest.fixture(scope="module")
def aws(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """An AWS of its own: what other tests had approved would be a champion here, or a package to go back to."""
    with local.running(settings, tmp_path_factory.mktemp("release") / "aws") as running:
        yield running


@pytest.fixture(scope="module")
def deployment(
    settings: Settings, aws: LocalAws, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    return deployed(settings, aws, tiny_model, tmp_path_factory)


@pytest.fixture(scope="module")
def first(deployment: Deployment) -> str:
    """ARN of the package that is served at the beginning."""
    before = executions.newest(deployment)
    datasets.upload(deployment, REPOSITORY / "examples" / "instruction", "instruction")
    view = executions.follow(deployment, executions.wait_for_newer(deployment, before))
    assert view.status == "Succeeded", view.reason
    return served_package(deployment)


@pytest.fixture(scope="module")
def second(deployment: Deployment, first: str) -> str:
    """ARN of a package that waits for approval: the same data with another parameter is trained again."""
    parameters = {"ApprovalStatus": "PendingManualApproval", "Epoch": "4.0"}
    view = executions.follow(deployment, executions.start(deployment, parameters))
    assert view.status == "Succeeded", view.reason
    return packages.choose(deployment, None, "PendingManualApproval")


def test_a_package_approved_at_registration_is_released_once_by_two_executions(
    deployment: Deployment, first: str
) -> None:
    """The pipeline that made it releases it, and so does the rule: one of them does it, the other one joins."""
    (by_rule,) = runs_for(deployment, first)
    view = executions.follow(deployment, by_rule)
    assert view.status == "Succeeded", view.reason
    assert result(deployment, by_rule)["action"] in ("created", "joined", "unchanged")
    made = packages.read(deployment, first).ancestors["pipeline_execution"]
    actions = {result(deployment, by_rule)["action"], result(deployment, made)["action"]}
    assert "created" in actions and len(actions) == 2


def test_a_package_that_nobody_approved_is_not_released(deployment: Deployment, first: str, second: str) -> None:
    view = release(deployment, second)
    assert view.status == "Failed"
    assert "is PendingManualApproval; only an Approved package is released" in view.reason
    finished = finetune(deployment, "deploy", second)
    assert finished.returncode == 1 and "is PendingManualApproval" in finished.stdout
    assert served_package(deployment) == first


def test_a_rejected_package_is_not_released_and_its_rejection_starts_nothing(
    deployment: Deployment, first: str, second: str
) -> None:
    before = len(runs_for(deployment, second))
    finished = finetune(deployment, "reject", "--note", "too short answers", "--yes", "--json")
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert (told["package"]["arn"], told["package"]["status"]) == (second, "Rejected")
    assert told["package"]["note"] == "too short answers"
    assert "loss" in finished.stderr, "its figures are shown first"
    time.sleep(1)
    assert len(runs_for(deployment, second)) == before
    view = release(deployment, second)
    assert view.status == "Failed"
    assert "is Rejected (too short answers)" in view.reason
    assert served_package(deployment) == first


def test_without_somebody_to_ask_nothing_is_approved(deployment: Deployment, second: str) -> None:
    finished = finetune(deployment, "approve")
    assert finished.returncode == 1
    assert "add --yes" in finished.stdout
    assert packages.read(deployment, second).status == "Rejected"


def test_an_approval_leads_to_a_release_without_a_failed_request(deployment: Deployment, second: str) -> None:
    before = len(runs_for(deployment, second))
    with Load(deployment, "a good release") as load:
        finished = finetune(deployment, "approve", "--note", "good", "--yes", "--follow", "--json")
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert told["package"]["arn"] == second and told["package"]["note"] == "good"
    assert result(deployment, told["execution"])["action"] == "updated"
    assert len(runs_for(deployment, second)) == before + 1, "one execution for one approval"
    assert served_package(deployment) == second
    assert load.failures == [] and load.sent > 20


def test_the_recorded_requests_were_asked_again_and_requests_were_made_meanwhile(
    deployment: Deployment, second: str
) -> None:
    told = result(deployment, runs_for(deployment, second)[0])
    assert told["recorded_requests"]["asked"] == 5
    assert told["recorded_requests"]["mean_agreement"] > 0.8
    assert told["requests_meanwhile"]["asked"] > 0 and told["requests_meanwhile"]["failed"] == 0


def test_one_digest_leads_from_the_training_to_the_bytes_that_serve(
    deployment: Deployment, second: str, aws: LocalAws
) -> None:
    package = deployment.sagemaker.describe_model_package(ModelPackageName=second)
    job = package["CustomerMetadataProperties"]["training_job"]
    output = deployment.sagemaker.describe_training_job(TrainingJobName=job)["ModelArtifacts"]["S3ModelArtifacts"]
    source = package["InferenceSpecification"]["Containers"][0]["ModelDataSource"]["S3DataSource"]["S3Uri"]
    assert source.rstrip("/") == output.rstrip("/")
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    report = deployment.s3.get_object(Bucket=bucket, Key=f"{prefix}training.json")["Body"].read()
    training = json.loads(report)
    recorded = json.dumps(training["files"], sort_keys=True).encode()
    assert hashlib.sha256(recorded).hexdigest() == training["model_digest"]
    tags = deployment.sagemaker.list_tags(ResourceArn=endpoint(deployment)["EndpointArn"])["Tags"]
    assert {"Key": "model-digest", "Value": training["model_digest"]} in tags
    serving = serving_processes(aws)
    assert len(serving) == 2
    for pid in serving:
        folder = Path(f"/proc/{pid}/root/opt/ml/model")
        files = {name: (folder / name).read_bytes() for name in training["files"]}
        assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == training["files"]
        weights = tensors_as_served(files["model.safetensors"])
        memory = Memory(pid)
        assert weights and [name for name, forms in weights.items() if not any(map(memory.holds, forms))] == []


def test_releasing_what_is_served_changes_nothing(deployment: Deployment, second: str) -> None:
    before = endpoint(deployment)
    finished = finetune(deployment, "deploy", "--json")
    assert finished.returncode == 0, finished.stderr
    assert result(deployment, json.loads(finished.stdout)["execution"])["action"] == "unchanged"
    after = endpoint(deployment)
    assert after["EndpointConfigName"] == before["EndpointConfigName"]
    assert after["LastModifiedTime"] == before["LastModifiedTime"]


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ("error_share=0.5", "-5xx"),
        ("slow_seconds=6", "-p95"),
        ("kill_after_seconds=10", "rolled back"),
        ("no_ping", "ping health check"),
        ("exit_at_start", "exit code 1"),
        ("memory_megabytes=300", "ping health check"),
    ],
)
def test_a_bad_model_is_taken_back_and_only_the_canarys_share_ever_met_it(
    deployment: Deployment, second: str, faults: str, said: str
) -> None:
    serving = endpoint(deployment)["EndpointConfigName"]
    clock = time.time()
    with Load(deployment, f"a release with {faults}") as load:
        bad = copy_of(deployment, second, "Approved", faults=faults)
        view = executions.follow(deployment, releases.wait_for_start(deployment, bad, clock))
    assert view.status == "Failed"
    assert said in view.reason and "was rolled back" in view.reason, view.reason
    assert endpoint(deployment)["EndpointConfigName"] == serving
    assert served_package(deployment) == second
    assert len(load.failures) <= load.sent / 2
    if faults not in ("error_share=0.5", "kill_after_seconds=10"):
        assert load.failures == [], "no client met the new model's failures"
    # It is no candidate any more, its parts are gone, and nobody tries again.
    told = packages.read(deployment, bad)
    assert told.status == "Rejected" and "Its release failed" in told.note
    configs = deployment.sagemaker.list_endpoint_configs(NameContains=f"-v{told.version}-")["EndpointConfigs"]
    assert configs == []
    assert len(runs_for(deployment, bad)) == 1


def test_a_model_that_answers_otherwise_than_the_evaluated_one_is_taken_back(
    deployment: Deployment, second: str
) -> None:
    bucket = deployment.artifact_bucket
    uri = deployment.sagemaker.describe_model_package(ModelPackageName=second)["ModelMetrics"]["ModelQuality"]
    source = uri["Statistics"]["S3Uri"].removeprefix(f"s3://{bucket}/")
    evaluation = deployment.s3.get_object(Bucket=bucket, Key=source)["Body"].read().decode()
    content = json.loads(evaluation)
    for one in content["golden_requests"]:
        one["generated_text"] = "quite another answer than this model gives"
    deployment.s3.put_object(Bucket=bucket, Key="runs/other/evaluation.json", Body=json.dumps(content).encode())
    other = copy_of(
        deployment, second, "PendingManualApproval", evaluation_uri=f"s3://{bucket}/runs/other/evaluation.json"
    )
    with Load(deployment, "a release that answers wrongly") as load:
        finished = finetune(deployment, "approve", other, "--yes", "--follow")
    assert finished.returncode == 3, finished.stdout
    assert "does not answer as the evaluated model did" in finished.stdout
    assert served_package(deployment) == second
    assert load.failures == []


def test_a_killed_serving_process_comes_back(deployment: Deployment, second: str, aws: LocalAws) -> None:
    killed, other = serving_processes(aws)
    with Load(deployment, "kill -9 of a serving process") as load:
        time.sleep(2)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 60
        now = [killed]
        while (killed in now or len(now) < 2) and time.monotonic() < deadline:
            time.sleep(0.2)
            now = serving_processes(aws)
        time.sleep(3)
    assert len(now) == 2 and killed not in now and other in now
    assert endpoint(deployment)["EndpointStatus"] == "InService"
    assert len(load.failures) <= 1, "at most the request that it was at"


def test_the_endpoints_command_tells_what_serves(deployment: Deployment, second: str) -> None:
    finished = finetune(deployment, "endpoints", "--json")
    assert finished.returncode == 0, finished.stderr
    (view,) = json.loads(finished.stdout)["endpoints"]
    assert view["package"] == second and view["status"] == "InService" and view["instances"] == 2
    assert view["last_rejected"]["note"].startswith("Its release failed: the endpoint tiny does not answer as")
    assert {f"{view['release']}-5xx", f"{view['release']}-p95"} < set(view["alarms"])
    assert len(view["alarms"]) == 4, "those of the release, and those that people hear of"
    assert second in finetune(deployment, "endpoints").stdout


def test_the_invoke_command_asks_in_every_form_and_tells_what_the_endpoint_refuses(deployment: Deployment) -> None:
    options = ("--max-new-tokens", "4")
    whole = finetune(deployment, "invoke", "When does the ferry", "--json", *options)
    assert whole.returncode == 0, whole.stderr
    streamed = finetune(deployment, "invoke", "When does the ferry", *options)
    assert streamed.stdout.rstrip("\n") == json.loads(whole.stdout)[0]["generated_text"].rstrip("\n")
    columns = ("-c", "instruction=When does the ferry leave?", "-c", "context=At nine.")
    assert finetune(deployment, "invoke", *columns, *options).returncode == 0
    assert finetune(deployment, "invoke", "When does the ferry leave?", "--chat", *options).returncode == 0
    refused = finetune(deployment, "invoke", "-c", "instruktion=When?", *options)
    assert refused.returncode == 1 and "instruktion" in refused.stdout


def test_rollback_leads_to_the_package_before_without_a_failed_request(
    deployment: Deployment, first: str, second: str
) -> None:
    with Load(deployment, "a rollback") as load:
        finished = finetune(deployment, "rollback", "--note", "customers complain", "--yes", "--json")
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert (told["from"], told["to"]) == (second, first)
    assert served_package(deployment) == first
    rejected = packages.read(deployment, second)
    assert (rejected.status, rejected.note) == ("Rejected", "customers complain")
    assert load.failures == []


def test_with_nothing_to_go_back_to_rollback_says_so_and_changes_nothing(deployment: Deployment, first: str) -> None:
    finished = finetune(deployment, "rollback", "--yes")
    assert finished.returncode == 1
    assert "no older package is Approved" in finished.stdout
    assert served_package(deployment) == first
    assert packages.read(deployment, first).status == "Approved"


def test_no_more_releases_are_kept_than_the_settings_say(deployment: Deployment, first: str, second: str) -> None:
    names = [
        one["EndpointConfigName"]
        for one in deployment.sagemaker.list_endpoint_configs(NameContains="tiny-v")["EndpointConfigs"]
    ]
    assert len(names) == deployment.settings.release.kept_releases == 2
    models = [one["ModelName"] for one in deployment.sagemaker.list_models(NameContains="tiny-v")["Models"]]
    assert sorted(models) == sorted(names)
    assert endpoint(deployment)["EndpointConfigName"] in names
