"""Endpoints: processes that serve, updates without a gap, errors of the container at the client."""

import contextlib
import io
import os
import signal
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.local_aws.endpoints import SOURCE, config, create, invoke
from tests.local_aws.sagemaker_server import BUCKET, ROLE, Server, processing, running_server


@pytest.fixture
def server() -> Server:
    server = running_server()
    server.put("endpoint/model/weights", "W")
    return server


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    name = f"endpoint-{uuid.uuid4().hex[:8]}"
    yield name
    try:
        server.endpoint(name)
        server.sagemaker.delete_endpoint(EndpointName=name)
    except ClientError:
        return
    server.wait_for(lambda: not server.sagemaker.list_endpoints(NameContains=name)["Endpoints"])


def serving_processes(name: str) -> list[int]:
    """The processes that serve and carry `name` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            serves = b"bin/serve" in (path / "cmdline").read_bytes()
            if serves and f"ANSWER={name}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_an_endpoint_serves_its_model_with_its_environment(server: Server, name: str) -> None:
    described = create(server, name, config(server, Environment={"ANSWER": "one"}))
    assert described["EndpointStatus"] == "InService"
    assert described["ProductionVariants"][0]["VariantName"] == "AllTraffic"
    response = server.runtime.invoke_endpoint(EndpointName=name, Body=b"hi", ContentType="text/plain", Accept="text/x")
    assert response["Body"].read() == b"one|W|hi|True"
    assert (response["InvokedProductionVariant"], response["ContentType"]) == ("AllTraffic", "text/x")
    assert server.log_lines(f"/aws/sagemaker/Endpoints/{name}", "AllTraffic/i-") == ["serving"]


def test_a_body_may_be_any_bytes(server: Server, name: str) -> None:
    create(server, name, config(server))
    body = bytes(range(256))
    assert body in server.runtime.invoke_endpoint(EndpointName=name, Body=body)["Body"].read()


def test_a_model_package_serves_what_it_names(server: Server, name: str) -> None:
    server.sagemaker.create_model_package_group(ModelPackageGroupName=name)
    specification = {
        "Containers": [{"Image": "web", "ModelDataSource": SOURCE, "Environment": {"ANSWER": "packaged", "X": "1"}}],
        "SupportedContentTypes": ["text/plain"],
        "SupportedResponseMIMETypes": ["text/plain"],
    }
    package = server.sagemaker.create_model_package(ModelPackageGroupName=name, InferenceSpecification=specification)
    container = {"ModelPackageName": package["ModelPackageArn"], "Environment": {"X": "2"}}
    server.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, Containers=[container])
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
    server.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    create(server, name, name)
    assert invoke(server, name, "hi").startswith("packaged|W|hi")


def test_a_model_may_be_a_tar_archive(server: Server, name: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        entry = tarfile.TarInfo("weights")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"TAR"))
    uri = server.put(f"{name}/model.tar.gz", archive.getvalue())
    model = f"model-{name}"
    server.sagemaker.create_model(
        ModelName=model, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "web", "ModelDataUrl": uri}
    )
    variant = {"VariantName": "v", "ModelName": model, "InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
    server.sagemaker.create_endpoint_config(EndpointConfigName=model, ProductionVariants=[variant])
    create(server, name, model)
    assert "|TAR|" in invoke(server, name, "hi")


def test_a_model_without_network_still_answers(server: Server, name: str) -> None:
    create(server, name, config(server, isolated=True, Environment={"ANSWER": "alone"}))
    assert invoke(server, name, "hi") == "alone|W|hi|False"


def test_an_update_moves_the_traffic_without_a_failed_request(server: Server, name: str) -> None:
    create(server, name, config(server, Environment={"ANSWER": f"{name}-old"}))
    assert len(serving_processes(f"{name}-old")) >= 1
    answers: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(invoke(server, name, "hi").split("|")[0])

    asking = threading.Thread(target=ask)
    asking.start()
    new = config(server, Environment={"ANSWER": f"{name}-new"})
    server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=new)
    described = server.endpoint(name)
    done.set()
    asking.join()
    answers.append(invoke(server, name, "hi").split("|")[0])
    assert described["EndpointConfigName"] == new
    assert answers == sorted(answers, key=[f"{name}-old", f"{name}-new"].index)
    assert answers[-1] == f"{name}-new"
    server.wait_for(lambda: serving_processes(f"{name}-old") == [])


def test_a_failed_update_is_rolled_back_silently(server: Server, name: str) -> None:
    old = config(server, Environment={"ANSWER": "old"})
    create(server, name, old)
    broken = config(server, Environment={"BROKEN": "no weights"})
    server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=broken)
    described = server.endpoint(name)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", old)
    assert "did not pass the ping health check" in described["FailureReason"]
    assert "cannot load: no weights" in described["FailureReason"]
    assert invoke(server, name, "hi").startswith("old|")


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            {"Environment": {"BROKEN": "x"}},
            "AllTraffic did not pass the ping health check. Please check CloudWatch logs",
        ),
        ({"Image": "unknown:1"}, "no local image for 'unknown:1'"),
        (
            {"ModelDataSource": {"S3DataSource": {**SOURCE["S3DataSource"], "S3Uri": f"s3://{BUCKET}/nothing/"}}},
            "No S3 objects found",
        ),
    ],
)
def test_an_endpoint_that_does_not_come_up_is_failed_with_the_reason(
    server: Server, name: str, container: dict[str, Any], words: str
) -> None:
    described = create(server, name, config(server, **container))
    assert described["EndpointStatus"] == "Failed"
    assert words in described["FailureReason"]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("exit_at_start", "ended with exit code 1; last line: fault: exit_at_start"),
        ("memory_megabytes=4", "did not pass the ping health check"),
        ("kill_after_seconds=0.01", "did not pass the ping health check"),
    ],
)
def test_a_fault_at_the_start_fails_the_endpoint(server: Server, name: str, faults: str, words: str) -> None:
    described = create(server, name, config(server, Environment={"LOCAL_AWS_FAULTS": faults}))
    assert described["EndpointStatus"] == "Failed"
    assert words in described["FailureReason"]


def test_a_container_that_never_answers_ping_is_failed_when_its_time_is_over(server: Server, name: str) -> None:
    server.sagemaker.create_endpoint(
        EndpointName=name, EndpointConfigName=config(server, Environment={"LOCAL_AWS_FAULTS": "no_ping"})
    )
    server.wait_for(
        lambda: server.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Failed", seconds=60
    )
    assert "did not pass the ping health check" in server.endpoint(name)["FailureReason"]


def test_an_unknown_fault_is_refused_with_the_known_ones(server: Server, name: str) -> None:
    configured = config(server, Environment={"LOCAL_AWS_FAULTS": "error_share=1,haunted"})
    with pytest.raises(ClientError, match="'haunted' is not one of error_share=N"):
        server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=configured)


def test_an_image_without_a_program_to_serve_is_failed_at_once(server: Server, name: str) -> None:
    reason = create(server, name, config(server, Image="tools"))["FailureReason"]
    assert "ping health check" in reason
    assert "serve: No such file" in reason


@pytest.mark.parametrize(("status", "kind"), [(400, "client"), (503, "server")])
def test_an_error_of_the_container_is_a_model_error(server: Server, name: str, status: int, kind: str) -> None:
    create(server, name, config(server))
    with pytest.raises(ClientError) as caught:
        invoke(server, name, f"fail {status}")
    response: dict[str, Any] = dict(caught.value.response)
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == ("ModelError", 424)
    assert (response["OriginalStatusCode"], response["OriginalMessage"]) == (status, f"no fail {status}")
    assert f"Received {kind} error ({status}) from primary" in response["Error"]["Message"]
    assert f"log-group:/aws/sagemaker/Endpoints/{name}:log-stream:AllTraffic/i-" in response["LogStreamArn"]


def test_an_endpoint_that_is_not_there_is_a_validation_error(server: Server) -> None:
    with pytest.raises(ClientError, match="Endpoint nowhere of account 123456789012 not found") as caught:
        invoke(server, "nowhere", "hi")
    assert caught.value.response["Error"]["Code"] == "ValidationError"


def test_an_endpoint_that_is_failed_answers_503(server: Server, name: str) -> None:
    create(server, name, config(server, Environment={"BROKEN": "x"}))
    runtime = server.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(ClientError) as caught:
        runtime.invoke_endpoint(EndpointName=name, Body=b"hi")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_a_container_that_dies_is_replaced_each_time_and_the_endpoint_stays_in_service(
    server: Server, name: str
) -> None:
    create(server, name, config(server, Environment={"ANSWER": name}))

    def answers() -> bool:
        try:
            return invoke(server, name, "hi").startswith(name)
        except ClientError:
            return False

    for _ in range(3):
        killed = serving_processes(name)
        for process in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        server.wait_for(lambda killed=killed: set(serving_processes(name)) - set(killed) != set())  # type: ignore[misc]
        server.wait_for(answers)
    assert server.endpoint(name)["EndpointStatus"] == "InService"


def test_a_container_that_hangs_is_replaced_by_the_health_check(server: Server, name: str) -> None:
    create(server, name, config(server, Environment={"ANSWER": name}))
    (hung,) = serving_processes(name)[-1:]
    os.kill(hung, signal.SIGSTOP)
    server.wait_for(lambda: hung not in serving_processes(name), seconds=60)
    server.wait_for(lambda: serving_processes(name) != [])
    server.wait_for(lambda: server.endpoint(name)["EndpointStatus"] == "InService")

    def answers() -> bool:
        try:
            return invoke(server, name, "hi").startswith(name)
        except ClientError:
            return False

    server.wait_for(answers)


def test_a_deleted_endpoint_leaves_no_process_and_no_files(server: Server, name: str) -> None:
    create(server, name, config(server, Environment={"ANSWER": name}))
    assert serving_processes(name)
    server.sagemaker.delete_endpoint(EndpointName=name)
    server.wait_for(lambda: not server.sagemaker.list_endpoints(NameContains=name)["Endpoints"])
    assert serving_processes(name) == []
    with pytest.raises(ClientError, match="Could not find endpoint"):
        server.sagemaker.describe_endpoint(EndpointName=name)


def test_an_endpoint_in_progress_is_not_changed(server: Server, name: str) -> None:
    configured = config(server)
    server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=configured)
    try:
        with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
            server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=configured)
    finally:
        server.endpoint(name)


def test_a_failed_endpoint_can_only_be_deleted(server: Server, name: str) -> None:
    create(server, name, config(server, Environment={"BROKEN": "x"}))
    with pytest.raises(ClientError, match="delete it and create it again"):
        server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config(server))


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_when_the_server_ends_every_process_is_gone(ending: signal.Signals) -> None:
    own = Server()
    try:
        own.put("endpoint/model/weights", "W")
        marker = uuid.uuid4().hex
        create(own, "e", config(own, Environment={"ANSWER": marker}))
        own.sagemaker.create_processing_job(
            ProcessingJobName="j", **processing("sh -c ': bin/serve; sleep 60; :'", Environment={"ANSWER": marker})
        )
        own.wait_for(lambda: len(serving_processes(marker)) >= 4)
        os.kill(own.process.pid, ending)
        own.process.process.wait(20)
        own.wait_for(lambda: serving_processes(marker) == [], seconds=5 if ending == signal.SIGKILL else 0.5)
    finally:
        own.stop()


def test_names_are_checked(server: Server, name: str) -> None:
    with pytest.raises(ClientError, match="Could not find endpoint configuration"):
        server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="nothing")
    create(server, name, config(server))
    with pytest.raises(ClientError, match="already existing endpoint"):
        server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config(server))
    with pytest.raises(ClientError, match="Variant other of endpoint"):
        invoke(server, name, "hi", TargetVariant="other")
