"""Processing and training jobs, through the API of a running server."""

import functools
import json
import tarfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.sagemaker_server import BUCKET, ROLE, Server, processing, running_server, training


@pytest.fixture
def server() -> Server:
    return running_server()


@pytest.fixture
def name() -> Iterator[str]:
    yield f"job-{uuid.uuid4().hex[:8]}"


def process(server: Server, name: str, command: str, **fields: Any) -> dict[str, Any]:
    server.sagemaker.create_processing_job(ProcessingJobName=name, **processing(command, **fields))
    return server.processing_job(name)


def train(server: Server, name: str, command: str, **fields: Any) -> dict[str, Any]:
    server.sagemaker.create_training_job(TrainingJobName=name, **training(command, **fields))
    return server.training_job(name)


# ---------------------------------------------------------------------- processing


def test_a_processing_job_reads_its_inputs_and_uploads_its_outputs(server: Server, name: str) -> None:
    server.put(f"{name}/in/sub/a.txt", "one")
    server.put(f"{name}/in/b.txt", "two")
    job = process(
        server,
        name,
        "cd /opt/ml/processing && cp -r input/data/. output/copy/",
        inputs={"data": f"s3://{BUCKET}/{name}/in"},
        outputs={"copy": f"s3://{BUCKET}/{name}/out/"},
    )
    assert job["ProcessingJobStatus"] == "Completed"
    assert server.keys(f"{name}/out") == [f"{name}/out/b.txt", f"{name}/out/sub/a.txt"]
    assert server.get(f"{name}/out/sub/a.txt") == "one"
    assert job["ProcessingStartTime"] <= job["ProcessingEndTime"]


def test_a_processing_job_sees_its_request_and_the_credentials_of_its_role(server: Server, name: str) -> None:
    script = "import os, boto3; print('role', boto3.client('sts').get_caller_identity()['Arn'])"
    process(server, name, f'cat /opt/ml/config/*.json; echo; env; python3 -c "{script}"', Environment={"COLOUR": "red"})
    lines = server.log_lines("/aws/sagemaker/ProcessingJobs", f"{name}/algo-1-")
    text = "\n".join(lines)
    assert "COLOUR=red" in lines
    assert f"PROCESSING_JOB_ARN=arn:aws:sagemaker:us-east-1:123456789012:processing-job/{name}" in lines
    assert f'"ProcessingJobName": "{name}"' in text
    assert '"current_host": "algo-1"' in text
    assert f"role arn:aws:sts::123456789012:assumed-role/{ROLE.rsplit('/', 1)[-1]}/" in text
    assert (server.root / "run/logs/ProcessingJobs" / f"{name}.log").read_text().splitlines() == lines


def test_the_reason_of_a_failed_processing_job_is_the_message_it_left(server: Server, name: str) -> None:
    job = process(server, name, "echo 'a.jsonl:3: no key' > /opt/ml/output/message; exit 2")
    assert job["ProcessingJobStatus"] == "Failed"
    assert job["FailureReason"] == "AlgorithmError: a.jsonl:3: no key, exit code: 2"
    assert job["ExitMessage"] == "a.jsonl:3: no key"


def test_without_a_message_the_reason_holds_the_last_line(server: Server, name: str) -> None:
    job = process(server, name, "echo first; echo 'ValueError: bad'; exit 1")
    assert job["FailureReason"] == (
        "AlgorithmError: See job logs for more information. Last line: ValueError: bad, exit code: 1"
    )


def test_a_long_message_keeps_the_exit_code_in_the_reason(server: Server, name: str) -> None:
    job = process(server, name, "head -c 5000 /dev/zero | tr '\\0' x > /opt/ml/output/message; exit 3")
    assert len(job["FailureReason"]) == 1024
    assert job["FailureReason"].endswith(", exit code: 3")


def test_an_input_that_is_not_there_fails_in_the_words_of_aws(server: Server, name: str) -> None:
    job = process(server, name, "true", inputs={"data": f"s3://{BUCKET}/{name}/nothing/"})
    assert job["ProcessingJobStatus"] == "Failed"
    for part in (
        "ClientError: ",
        "S3DataType:S3Prefix",
        "No S3 objects found under S3 URL",
        f"/{name}/nothing/",
        ROLE,
        "us-east-1",
    ):
        assert part in job["FailureReason"]


def test_a_bucket_that_is_not_there_fails_the_upload_by_name(server: Server, name: str) -> None:
    job = process(server, name, "echo 1 > /opt/ml/processing/output/o/f", outputs={"o": "s3://no-such-bucket/x"})
    assert "s3://no-such-bucket/x/f" in job["FailureReason"]
    assert "does not exist" in job["FailureReason"]


def test_a_prefix_takes_every_key_that_starts_with_it(server: Server, name: str) -> None:
    for key in ("train/x", "train/deep/y", "train", "training.csv", "other"):
        server.put(f"{name}/{key}", key)
    server.put(f"{name}/train/marker/", "")
    process(
        server,
        name,
        "cd /opt/ml/processing/input/d && find . -type f | sort > ../../output/o/list",
        inputs={"d": f"s3://{BUCKET}/{name}/train/"},
        outputs={"o": f"s3://{BUCKET}/{name}/o"},
    )
    assert server.get(f"{name}/o/list").split() == ["./deep/y", "./x"]
    second = f"{name}-2"
    server.s3.delete_object(Bucket=BUCKET, Key=f"{name}/train")
    process(
        server,
        second,
        "cd /opt/ml/processing/input/d && find . -type f | sort > ../../output/o/list",
        inputs={"d": f"s3://{BUCKET}/{name}/train"},
        outputs={"o": f"s3://{BUCKET}/{second}/o"},
    )
    assert server.get(f"{second}/o/list").split() == ["./deep/y", "./training.csv", "./x"]


def test_a_single_object_keeps_its_name(server: Server, name: str) -> None:
    uri = server.put(f"{name}/code/abc.zip", b"\0\1binary")
    job = process(
        server,
        name,
        "cp /opt/ml/processing/input/code/abc.zip /opt/ml/processing/output/o/",
        inputs={"code": uri},
        outputs={"o": f"s3://{BUCKET}/{name}/o"},
    )
    assert job["ProcessingJobStatus"] == "Completed"
    assert server.s3.get_object(Bucket=BUCKET, Key=f"{name}/o/abc.zip")["Body"].read() == b"\0\1binary"


def test_a_manifest_names_the_objects(server: Server, name: str) -> None:
    for key in ("a/1", "a/2", "b/3"):
        server.put(f"{name}/{key}", key)
    manifest = server.put(f"{name}/m.manifest", json.dumps([{"prefix": f"s3://{BUCKET}/{name}/"}, "a/1", "b/3"]))
    request = processing(
        "cd /opt/ml/processing/input/d && find . -type f | sort > ../../output/o/list",
        inputs={"d": manifest},
        outputs={"o": f"s3://{BUCKET}/{name}/o"},
    )
    request["ProcessingInputs"][0]["S3Input"]["S3DataType"] = "ManifestFile"
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    assert server.processing_job(name)["ProcessingJobStatus"] == "Completed"
    assert server.get(f"{name}/o/list").split() == ["./a/1", "./b/3"]
    server.put(f"{name}/m.manifest", '["no prefix"]')
    server.sagemaker.create_processing_job(ProcessingJobName=f"{name}-2", **request)
    assert "is not of the form" in server.processing_job(f"{name}-2")["FailureReason"]


def test_links_in_an_output_are_followed_below_opt_ml_only(server: Server, name: str) -> None:
    outputs = {"o": f"s3://{BUCKET}/{name}/o"}
    job = process(
        server, name, "cd /opt/ml/processing; echo x > f; ln -s /opt/ml/processing/f output/o/link", outputs=outputs
    )
    assert job["ProcessingJobStatus"] == "Completed"
    assert server.get(f"{name}/o/link") == "x\n"
    job = process(server, f"{name}-2", "ln -s /etc/passwd /opt/ml/processing/output/o/leak", outputs=outputs)
    assert "does not lead to a file below /opt/ml" in job["FailureReason"]


def test_an_isolated_job_has_no_network_and_no_credentials(server: Server, name: str) -> None:
    process(server, name, "env; tail -n +3 /proc/net/dev", NetworkConfig={"EnableNetworkIsolation": True})
    lines = server.log_lines("/aws/sagemaker/ProcessingJobs", name)
    assert not [line for line in lines if "AWS_SECRET" in line or "AWS_ENDPOINT_URL" in line]
    assert [line.split(":")[0].strip() for line in lines if ":" in line and line.startswith(" ")] == ["lo"]


def test_a_processing_job_can_be_stopped(server: Server, name: str) -> None:
    server.sagemaker.create_processing_job(ProcessingJobName=name, **processing("echo up; sleep 60"))
    server.wait_for(lambda: (server.root / "run/logs/ProcessingJobs" / f"{name}.log").exists())
    server.sagemaker.stop_processing_job(ProcessingJobName=name)
    assert server.processing_job(name)["ProcessingJobStatus"] == "Stopped"
    with pytest.raises(ClientError, match="is in status Stopped"):
        server.sagemaker.stop_processing_job(ProcessingJobName=name)


def test_a_job_that_runs_too_long_is_stopped_and_says_so(server: Server, name: str) -> None:
    job = process(server, name, "sleep 60", StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert job["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntimeInSeconds (1 s)" in job["ExitMessage"]


def test_a_continuous_output_is_in_s3_while_the_job_runs(server: Server, name: str) -> None:
    request = processing(
        "echo x > /opt/ml/processing/output/o/early; sleep 60", outputs={"o": f"s3://{BUCKET}/{name}/o"}
    )
    request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3UploadMode"] = "Continuous"
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    server.wait_for(lambda: server.keys(f"{name}/o") == [f"{name}/o/early"])
    assert server.sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"] == "InProgress"
    server.sagemaker.stop_processing_job(ProcessingJobName=name)


# ---------------------------------------------------------------------- processing on several hosts


def on_hosts(count: int) -> dict[str, Any]:
    return {"ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": count, "VolumeSizeInGB": 10}}


def log_of(server: Server, name: str, host: str) -> list[str]:
    return server.log_lines("/aws/sagemaker/ProcessingJobs", f"{name}/{host}-")


def test_every_host_has_its_own_opt_ml_and_log_and_knows_the_others(server: Server, name: str) -> None:
    server.put(f"{name}/in/a", "one")
    server.put(f"{name}/in/b", "two")
    job = process(
        server,
        name,
        "cd /opt/ml; cat processing/input/d/*; echo; hostname; echo $(cat config/resourceconfig.json);"
        "echo $(cat config/processingjobconfig.json); touch processing/mine; ls processing",
        inputs={"d": f"s3://{BUCKET}/{name}/in/"},
        ProcessingResources=on_hosts(3),
    )
    assert job["ProcessingJobStatus"] == "Completed"
    for host in ("algo-1", "algo-2", "algo-3"):
        content, host_name, resources, request, *files = log_of(server, name, host)
        assert (content, host_name) == ("onetwo", host)
        assert json.loads(resources)["current_host"] == host
        assert json.loads(resources)["hosts"] == ["algo-1", "algo-2", "algo-3"]
        assert json.loads(request)["ProcessingResources"] == on_hosts(3)
        assert files == ["input", "mine"]
        log = server.root / "run/logs/ProcessingJobs" / f"{name}.{host}.log"
        assert log.read_text().splitlines()[1] == host


def test_a_sharded_input_is_dealt_out_in_the_order_of_its_keys(server: Server, name: str) -> None:
    for key in ("a", "b/x", "b-y", "c", "d"):
        server.put(f"{name}/in/{key}", key)
    request = processing(
        "cd /opt/ml/processing/input; find all -type f | wc -l; find part -type f | sort",
        inputs={"all": f"s3://{BUCKET}/{name}/in", "part": f"s3://{BUCKET}/{name}/in"},
        ProcessingResources=on_hosts(3),
    )
    request["ProcessingInputs"][1]["S3Input"]["S3DataDistributionType"] = "ShardedByS3Key"
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    assert server.processing_job(name)["ProcessingJobStatus"] == "Completed"
    assert log_of(server, name, "algo-1") == ["5", "part/a", "part/c"]
    assert log_of(server, name, "algo-2") == ["5", "part/b-y", "part/d"]
    assert log_of(server, name, "algo-3") == ["5", "part/b/x"]


def test_a_host_without_a_share_finds_an_empty_folder(server: Server, name: str) -> None:
    server.put(f"{name}/in/only", "x")
    request = processing(
        "ls -R /opt/ml/processing/input/d", inputs={"d": f"s3://{BUCKET}/{name}/in/"}, ProcessingResources=on_hosts(2)
    )
    request["ProcessingInputs"][0]["S3Input"]["S3DataDistributionType"] = "ShardedByS3Key"
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    assert server.processing_job(name)["ProcessingJobStatus"] == "Completed"
    assert log_of(server, name, "algo-1") == ["/opt/ml/processing/input/d:", "only"]
    assert log_of(server, name, "algo-2") == ["/opt/ml/processing/input/d:"]


def test_the_outputs_of_all_hosts_arrive_and_the_last_host_wins(server: Server, name: str) -> None:
    job = process(
        server,
        name,
        # algo-1 writes last, and still algo-3 is uploaded last.
        "[ $(hostname) = algo-1 ] && sleep 0.5; cd /opt/ml/processing/output/o; hostname | tee same $(hostname)",
        outputs={"o": f"s3://{BUCKET}/{name}/o"},
        ProcessingResources=on_hosts(3),
    )
    assert job["ProcessingJobStatus"] == "Completed"
    assert server.keys(f"{name}/o") == [f"{name}/o/{file}" for file in ("algo-1", "algo-2", "algo-3", "same")]
    assert server.get(f"{name}/o/algo-2") == "algo-2\n"
    assert server.get(f"{name}/o/same") == "algo-3\n"


def test_continuous_outputs_of_all_hosts_arrive(server: Server, name: str) -> None:
    request = processing(
        "hostname > /opt/ml/processing/output/o/$(hostname)",
        outputs={"o": f"s3://{BUCKET}/{name}/o"},
        ProcessingResources=on_hosts(2),
    )
    request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3UploadMode"] = "Continuous"
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    assert server.processing_job(name)["ProcessingJobStatus"] == "Completed"
    assert server.keys(f"{name}/o") == [f"{name}/o/algo-1", f"{name}/o/algo-2"]


# Says when it is ready for SIGTERM, waits for it, and ends with a message and an exit code of its own.
UNTIL_TERM = "trap 'echo told; echo bye > /opt/ml/output/message; exit 5' TERM; echo up; while :; do sleep 0.02; done"


def wait_until_up(server: Server, name: str, *hosts: int) -> None:
    logs = [server.root / "run/logs/ProcessingJobs" / f"{name}.algo-{host}.log" for host in hosts]
    server.wait_for(lambda: all(log.exists() and log.read_text() == "up\n" for log in logs))


def test_one_host_of_three_that_fails_fails_the_job_and_ends_the_others(server: Server, name: str) -> None:
    failing = "until [ -e /opt/ml/fail ]; do sleep 0.02; done; echo part 2 is broken > /opt/ml/output/message; exit 3"
    request = processing(
        f"if [ $(hostname) = algo-2 ]; then {failing}; fi; {UNTIL_TERM}",
        outputs={"o": f"s3://{BUCKET}/{name}/o"},
        ProcessingResources=on_hosts(3),
    )
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    wait_until_up(server, name, 1, 3)
    (server.root / f"run/jobs/processing-{name}/algo-2/ml/fail").touch()
    job = server.processing_job(name)
    assert job["ProcessingJobStatus"] == "Failed"
    assert job["FailureReason"] == "AlgorithmError: algo-2: part 2 is broken, exit code: 3"
    assert job["ExitMessage"] == "bye"  # of algo-1, the first host that left one
    assert log_of(server, name, "algo-1") == log_of(server, name, "algo-3") == ["up", "told"]
    assert server.keys(f"{name}/o") == []
    assert not list((server.root / "run/jobs").glob(f"*{name}*"))


def test_without_a_message_the_reason_holds_the_last_line_of_the_host_that_failed(server: Server, name: str) -> None:
    command = "[ $(hostname) = algo-1 ] && echo fine && exit 0; sleep 0.2; echo 'ValueError: bad'; exit 1"
    job = process(server, name, command, ProcessingResources=on_hosts(2))
    assert job["FailureReason"] == (
        "AlgorithmError: algo-2: See job logs for more information. Last line: ValueError: bad, exit code: 1"
    )


def test_the_exit_message_is_that_of_the_first_host_that_left_one(server: Server, name: str) -> None:
    command = "[ $(hostname) = algo-1 ] || hostname > /opt/ml/output/message"
    job = process(server, name, command, ProcessingResources=on_hosts(3))
    assert (job["ProcessingJobStatus"], job["ExitMessage"]) == ("Completed", "algo-2")


def test_stopping_a_job_stops_all_its_hosts(server: Server, name: str) -> None:
    request = processing(UNTIL_TERM, ProcessingResources=on_hosts(3))
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    wait_until_up(server, name, 1, 2, 3)
    server.sagemaker.stop_processing_job(ProcessingJobName=name)
    job = server.processing_job(name)
    assert (job["ProcessingJobStatus"], job.get("FailureReason")) == ("Stopped", None)
    for host in ("algo-1", "algo-2", "algo-3"):
        assert log_of(server, name, host) == ["up", "told"]


def test_hosts_that_run_too_long_are_all_stopped(server: Server, name: str) -> None:
    request = {"ProcessingResources": on_hosts(2), "StoppingCondition": {"MaxRuntimeInSeconds": 1}}
    job = process(server, name, f"[ $(hostname) = algo-1 ] && exit 0; {UNTIL_TERM}", **request)
    assert job["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntimeInSeconds (1 s)" in job["ExitMessage"]
    assert log_of(server, name, "algo-2") == ["up", "told"]


def test_more_hosts_than_the_machine_is_meant_for_are_refused(server: Server, name: str) -> None:
    with pytest.raises(ClientError, match=r"InstanceCount is 9; .* up to 8 hosts .* \(\d+ CPUs, \d+ GiB of memory\)"):
        server.sagemaker.create_processing_job(
            ProcessingJobName=name, **processing("true", ProcessingResources=on_hosts(9))
        )


# ---------------------------------------------------------------------- training


def test_a_training_job_follows_the_container_contract(server: Server, name: str) -> None:
    server.put(f"{name}/data/a", "row")
    job = train(
        server,
        name,
        "echo loss=2.5; echo 'step 2 loss=1.25 x'; cp /opt/ml/input/data/train/a /opt/ml/model/weights;"
        "mkdir /opt/ml/model/adapter; cp /opt/ml/input/config/* /opt/ml/model/adapter/; echo $TRAINING_JOB_NAME",
        channels={"train": f"s3://{BUCKET}/{name}/data/"},
        HyperParameters={"epoch": "1"},
        EnableNetworkIsolation=True,
    )
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Completed", "Completed")
    transitions = [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert transitions == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all("EndTime" in transition for transition in job["SecondaryStatusTransitions"][:-1])
    assert [(metric["MetricName"], metric["Value"]) for metric in job["FinalMetricDataList"]] == [("loss", 1.25)]
    artifacts = job["ModelArtifacts"]["S3ModelArtifacts"]
    assert artifacts == f"s3://{BUCKET}/models/{name}/output/model/"
    model = artifacts.removeprefix(f"s3://{BUCKET}/")
    assert server.get(f"{model}weights") == "row"
    assert json.loads(server.get(f"{model}adapter/hyperparameters.json")) == {"epoch": "1"}
    assert json.loads(server.get(f"{model}adapter/inputdataconfig.json"))["train"]["TrainingInputMode"] == "File"
    assert json.loads(server.get(f"{model}adapter/resourceconfig.json"))["hosts"] == ["algo-1"]
    assert name in server.log_lines("/aws/sagemaker/TrainingJobs", f"{name}/algo-1-")


def test_a_gzip_model_is_one_archive(server: Server, name: str) -> None:
    output = {"S3OutputPath": f"s3://{BUCKET}/gz/"}
    job = train(server, name, "echo w > /opt/ml/model/weights; echo d > /opt/ml/output/data/d", OutputDataConfig=output)
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/gz/{name}/output/model.tar.gz"
    assert server.keys(f"gz/{name}") == [f"gz/{name}/output/model.tar.gz", f"gz/{name}/output/output.tar.gz"]


def test_the_reason_of_a_failed_training_job_is_its_failure_file(server: Server, name: str) -> None:
    job = train(server, name, "echo 'loss is NaN at step 3' > /opt/ml/output/failure; exit 1")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert job["FailureReason"] == "AlgorithmError: loss is NaN at step 3, exit code: 1"
    assert job["SecondaryStatusTransitions"][-1]["StatusMessage"] == job["FailureReason"]


def test_an_unknown_image_fails_the_job_by_name(server: Server, name: str) -> None:
    request = training("true")
    request["AlgorithmSpecification"]["TrainingImage"] = "r/strange:1"
    server.sagemaker.create_training_job(TrainingJobName=name, **request)
    assert "no local image for 'r/strange:1'" in server.training_job(name)["FailureReason"]


def test_training_over_time_keeps_the_model(server: Server, name: str) -> None:
    job = train(server, name, "echo w > /opt/ml/model/w; sleep 60", StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert server.keys(f"models/{name}/") == [f"models/{name}/output/model/w"]


def test_a_training_job_can_be_stopped(server: Server, name: str) -> None:
    server.sagemaker.create_training_job(TrainingJobName=name, **training("sleep 60"))
    server.wait_for(
        lambda: server.sagemaker.describe_training_job(TrainingJobName=name)["SecondaryStatus"] == "Training"
    )
    server.sagemaker.stop_training_job(TrainingJobName=name)
    job = server.training_job(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")


def test_checkpoints_come_back_and_go_out(server: Server, name: str) -> None:
    checkpoint = {"S3Uri": f"s3://{BUCKET}/{name}/checkpoints"}
    command = "cat /opt/ml/checkpoints/* 2>/dev/null; echo step-1 > /opt/ml/checkpoints/1"
    train(server, name, command, CheckpointConfig=checkpoint)
    assert server.keys(f"{name}/checkpoints") == [f"{name}/checkpoints/1"]
    train(server, f"{name}-2", command, CheckpointConfig=checkpoint)
    assert server.log_lines("/aws/sagemaker/TrainingJobs", f"{name}-2/") == ["step-1"]


def start_training(server: Server, name: str, command: str, **fields: Any) -> None:
    server.sagemaker.create_training_job(TrainingJobName=name, **training(command, **fields))


def training_log(server: Server, name: str) -> str:
    log = server.root / "run/logs/TrainingJobs" / f"{name}.log"
    return log.read_text() if log.exists() else ""


def checkpoints_of(name: str) -> dict[str, str]:
    return {"S3Uri": f"s3://{BUCKET}/{name}/checkpoints/"}


def test_a_checkpoint_is_in_s3_while_the_job_runs_and_only_when_it_is_whole(server: Server, name: str) -> None:
    command = (
        "cd /opt/ml/checkpoints; mkdir step-1.tmp .step-2; echo half > step-1.tmp/w; echo half > .step-2/w;"
        "echo half > w.tmp; until [ -e /opt/ml/go ]; do sleep 0.02; done;"
        "echo whole > step-1.tmp/w; mv step-1.tmp step-1; sleep 60"
    )
    start_training(server, name, command, CheckpointConfig=checkpoints_of(name))
    job = server.root / f"run/jobs/training-{name}/algo-1/ml"
    server.wait_for(lambda: (job / "checkpoints/w.tmp").exists())
    time.sleep(2.5)  # two looks at the folder: nothing may come of them
    assert server.keys(f"{name}/checkpoints") == []
    (job / "go").touch()
    server.wait_for(lambda: server.keys(f"{name}/checkpoints") == [f"{name}/checkpoints/step-1/w"])
    assert server.get(f"{name}/checkpoints/step-1/w") == "whole\n"
    assert server.sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "InProgress"
    server.sagemaker.stop_training_job(TrainingJobName=name)
    server.training_job(name)
    assert server.keys(f"{name}/checkpoints") == [f"{name}/checkpoints/step-1/w"]


def test_a_checkpoint_that_is_deleted_stays_in_s3_and_a_changed_one_is_renewed(server: Server, name: str) -> None:
    server.put(f"{name}/checkpoints/old", "1")
    server.put(f"{name}/checkpoints/kept", "1")
    server.put(f"{name}/checkpoints-of-another", "1")
    command = "cd /opt/ml/checkpoints; ls; rm old; echo 22 > kept; echo 3 > new"
    train(server, name, command, CheckpointConfig=checkpoints_of(name))
    assert server.log_lines("/aws/sagemaker/TrainingJobs", f"{name}/") == ["kept", "old"]
    found = {key.rsplit("/", 1)[-1]: server.get(key).strip() for key in server.keys(f"{name}/checkpoints/")}
    assert found == {"old": "1", "kept": "22", "new": "3"}


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_the_last_checkpoint_of_a_job_that_fails_is_kept(server: Server, name: str, end: str) -> None:
    command = f"mkdir /opt/ml/checkpoints/step-1; echo 1 > /opt/ml/checkpoints/step-1/w; {end}"
    job = train(server, name, command, CheckpointConfig=checkpoints_of(name))
    assert job["TrainingJobStatus"] == "Failed"
    assert server.keys(f"{name}/checkpoints") == [f"{name}/checkpoints/step-1/w"]


def test_a_checkpoint_bucket_that_is_not_there_fails_the_job_by_name(server: Server, name: str) -> None:
    job = train(server, name, "true", CheckpointConfig={"S3Uri": "s3://no-such-bucket/x"})
    assert job["TrainingJobStatus"] == "Failed"
    assert '"s3://no-such-bucket/x/" is in a bucket that does not exist' in job["FailureReason"]


# Says when it is ready for SIGTERM; then writes a last checkpoint and a model, and ends with a code of its own.
SAVE_AT_TERM = (
    "save() { echo saved > /opt/ml/checkpoints/last; echo m > /opt/ml/model/w; exit 7; };"
    "trap save TERM; echo up; while :; do sleep 0.02; done"
)


def test_a_stopped_training_job_saves_a_checkpoint_and_its_model(server: Server, name: str) -> None:
    start_training(server, name, SAVE_AT_TERM, CheckpointConfig=checkpoints_of(name))
    server.wait_for(lambda: training_log(server, name) == "up\n")
    server.sagemaker.stop_training_job(TrainingJobName=name)
    job = server.training_job(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert [transition["Status"] for transition in job["SecondaryStatusTransitions"]][-3:] == [
        "Stopping", "Uploading", "Stopped",
    ]  # fmt: skip
    assert server.get(f"{name}/checkpoints/last") == "saved\n"
    assert server.keys(f"models/{name}/") == [f"models/{name}/output/model/w"]


def test_a_training_job_over_its_time_is_told_to_end_like_one_that_is_stopped(server: Server, name: str) -> None:
    fields = {"CheckpointConfig": checkpoints_of(name), "StoppingCondition": {"MaxRuntimeInSeconds": 1}}
    job = train(server, name, SAVE_AT_TERM, **fields)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert server.get(f"{name}/checkpoints/last") == "saved\n"
    assert job["ModelArtifacts"]["S3ModelArtifacts"].endswith(f"/{name}/output/model/")


# ---------------------------------------------------------------------- training on several hosts


def on_instances(count: int) -> dict[str, Any]:
    return {"InstanceType": "ml.g5.2xlarge", "InstanceCount": count, "VolumeSizeInGB": 10}


def host_log(server: Server, name: str, host: str) -> list[str]:
    return server.log_lines("/aws/sagemaker/TrainingJobs", f"{name}/{host}-")


def test_every_host_of_a_training_job_has_its_own_opt_ml_and_knows_the_others(server: Server, name: str) -> None:
    for key in ("a", "b", "c"):
        server.put(f"{name}/in/{key}", key)
    request = training(
        "cd /opt/ml/input; hostname; ls data/all | wc -l; ls data/part | tr '\\n' ' '; echo;"
        "echo $(cat config/resourceconfig.json); cat config/hyperparameters.json",
        channels={"all": f"s3://{BUCKET}/{name}/in/", "part": f"s3://{BUCKET}/{name}/in/"},
        ResourceConfig=on_instances(2),
    )
    request["InputDataConfig"][1]["DataSource"]["S3DataSource"]["S3DataDistributionType"] = "ShardedByS3Key"
    server.sagemaker.create_training_job(TrainingJobName=name, **request)
    assert server.training_job(name)["TrainingJobStatus"] == "Completed"
    for host, part in (("algo-1", "a c"), ("algo-2", "b")):
        host_name, files, mine, resources, hyperparameters = host_log(server, name, host)
        assert (host_name, files, mine.strip(), hyperparameters) == (host, "3", part, "{}")
        assert json.loads(resources) == {
            "current_host": host,
            "hosts": ["algo-1", "algo-2"],
            "network_interface_name": "lo",
            "current_instance_type": "ml.g5.2xlarge",
            "current_group_name": "homogeneousCluster",
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": "ml.g5.2xlarge",
                    "hosts": ["algo-1", "algo-2"],
                }
            ],
        }


@pytest.mark.parametrize("compression", ["NONE", "GZIP"])
def test_the_model_is_made_of_all_hosts_files_and_the_first_host_wins(
    server: Server, name: str, compression: str, tmp_path: Path
) -> None:
    output = {"S3OutputPath": f"s3://{BUCKET}/merged", "CompressionType": compression}
    command = "cd /opt/ml/model; mkdir deep; hostname | tee same deep/$(hostname); ln -s /opt/ml/model/same link"
    job = train(server, name, command, ResourceConfig=on_instances(3), OutputDataConfig=output)
    assert job["TrainingJobStatus"] == "Completed"
    artifacts = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{BUCKET}/")
    names = ["deep/algo-1", "deep/algo-2", "deep/algo-3", "link", "same"]
    if compression == "NONE":
        assert server.keys(artifacts) == [f"{artifacts}{file}" for file in names]
        assert server.get(f"{artifacts}same") == server.get(f"{artifacts}link") == "algo-1\n"
        assert server.get(f"{artifacts}deep/algo-3") == "algo-3\n"
    else:
        server.s3.download_file(BUCKET, artifacts, str(tmp_path / "model.tar.gz"))
        with tarfile.open(tmp_path / "model.tar.gz") as tar:
            assert sorted(tar.getnames()) == names
            same = tar.extractfile("same")
            assert same is not None and same.read() == b"algo-1\n"


def test_a_host_of_a_training_job_that_fails_ends_the_others(server: Server, name: str) -> None:
    command = (
        "[ $(hostname) = algo-2 ] && sleep 0.5 && echo 'out of memory' > /opt/ml/output/failure && exit 3;"
        "trap 'echo told; exit 1' TERM; while :; do sleep 0.02; done"
    )
    job = train(server, name, command, ResourceConfig=on_instances(2))
    assert job["FailureReason"] == "AlgorithmError: algo-2: out of memory, exit code: 3"
    assert host_log(server, name, "algo-1") == ["told"]
    assert server.keys(f"models/{name}/") == []


def test_checkpoints_of_all_hosts_meet_under_one_prefix_and_come_back_to_each(server: Server, name: str) -> None:
    fields = {"CheckpointConfig": checkpoints_of(name), "ResourceConfig": on_instances(2)}
    command = "cd /opt/ml/checkpoints; ls | tr '\\n' ' '; hostname > $(hostname)"
    train(server, name, command, **fields)
    assert server.keys(f"{name}/checkpoints") == [f"{name}/checkpoints/algo-1", f"{name}/checkpoints/algo-2"]
    train(server, f"{name}-2", command, **fields)
    for host in ("algo-1", "algo-2"):
        assert host_log(server, f"{name}-2", host) == ["algo-1 algo-2 "]


# Every host says who it is to all others, over the TCP store and gloo, as training across hosts does.
ALL_REDUCE = """
import json, socket, torch, torch.distributed as distributed
resources = json.load(open("/opt/ml/input/config/resourceconfig.json"))
hosts, me = resources["hosts"], resources["current_host"]
assert socket.getaddrinfo(me, None)[0][4][0] == f"127.0.0.{hosts.index(me) + 1}"
rank = hosts.index(me)
distributed.init_process_group("gloo", init_method=f"tcp://{hosts[0]}:29500", rank=rank, world_size=len(hosts))
value = torch.tensor([float(rank + 1)])
distributed.all_reduce(value)
print("sum", value.item())
print("devices", len(open("/proc/net/dev").readlines()) - 2)
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("isolated", [False, True])
def test_torch_works_across_the_hosts_of_a_training_job(server: Server, name: str, isolated: bool) -> None:
    server.put(f"{name}/code/all_reduce.py", ALL_REDUCE)
    request = training(
        "python /opt/ml/input/data/code/all_reduce.py",
        channels={"code": f"s3://{BUCKET}/{name}/code/"},
        ResourceConfig=on_instances(2),
        EnableNetworkIsolation=isolated,
        Environment={"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    request["AlgorithmSpecification"]["TrainingImage"] = "djl-inference"  # the folder with torch
    server.sagemaker.create_training_job(TrainingJobName=name, **request)
    describe = functools.partial(server.sagemaker.describe_training_job, TrainingJobName=name)
    server.wait_for(lambda: describe()["TrainingJobStatus"] != "InProgress", 120)
    assert describe()["TrainingJobStatus"] == "Completed"
    for host in ("algo-1", "algo-2"):
        lines = host_log(server, name, host)
        assert "sum 3.0" in lines
        assert ("devices 1" in lines) == isolated


# ---------------------------------------------------------------------- managed spot training


SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120},
}


def interrupt(server: Server, name: str, method: str = "POST") -> tuple[int, str]:
    url = f"{server.process.url}/_local/interrupt?job={name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def statuses(job: dict[str, Any]) -> list[str]:
    return [transition["Status"] for transition in job["SecondaryStatusTransitions"]]


def test_an_interrupted_spot_job_goes_on_from_its_checkpoint_on_a_fresh_host(server: Server, name: str) -> None:
    server.put(f"{name}/data/a", "row")
    command = (
        "cd /opt/ml; cat input/data/train/a; echo; ls model;"
        "[ -e checkpoints/last ] && echo on && echo done > model/w && exit 0;"
        "touch model/of-the-first-host; trap 'echo saved > checkpoints/last; exit 7' TERM;"
        "echo up; while :; do sleep 0.02; done"
    )
    request = training(
        command, channels={"train": f"s3://{BUCKET}/{name}/data/"}, CheckpointConfig=checkpoints_of(name), **SPOT
    )
    server.sagemaker.create_training_job(TrainingJobName=name, **request)
    server.wait_for(lambda: training_log(server, name) == "row\nup\n")
    time.sleep(1.0)
    assert interrupt(server, name) == (200, f"the instances of {name} are being reclaimed\n")
    job = server.training_job(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Completed", "Completed")
    assert statuses(job) == [
        "Starting", "Downloading", "Training", "Interrupted", "Restarting", "Downloading", "Training", "Uploading",
        "Completed",
    ]  # fmt: skip
    assert training_log(server, name) == "row\nup\nrow\non\n"
    assert server.keys(f"models/{name}/") == [f"models/{name}/output/model/w"]
    whole = (job["TrainingEndTime"] - job["TrainingStartTime"]).total_seconds()
    assert 1 <= job["TrainingTimeInSeconds"] <= whole
    assert job["BillableTimeInSeconds"] == job["TrainingTimeInSeconds"]
    assert job["EnableManagedSpotTraining"] is True


def test_all_hosts_of_a_spot_job_are_reclaimed_together(server: Server, name: str) -> None:
    command = (
        "[ -e /opt/ml/checkpoints/algo-2 ] && ls /opt/ml/checkpoints && exit 0;"
        "trap 'hostname > /opt/ml/checkpoints/$(hostname); exit 1' TERM; echo up; while :; do sleep 0.02; done"
    )
    start_training(server, name, command, CheckpointConfig=checkpoints_of(name), ResourceConfig=on_instances(2), **SPOT)
    server.wait_for(lambda: training_log(server, f"{name}.algo-1") == training_log(server, f"{name}.algo-2") == "up\n")
    assert interrupt(server, name)[0] == 200
    assert server.training_job(name)["TrainingJobStatus"] == "Completed"
    for host in ("algo-1", "algo-2"):
        assert training_log(server, f"{name}.{host}") == "up\nalgo-1\nalgo-2\n"


def test_the_runtime_of_a_spot_job_counts_over_its_interruptions(server: Server, name: str) -> None:
    condition = {"MaxRuntimeInSeconds": 3, "MaxWaitTimeInSeconds": 100}
    start_training(server, name, "echo up; sleep 60", **{**SPOT, "StoppingCondition": condition})
    server.wait_for(lambda: training_log(server, name) == "up\n")
    time.sleep(2.0)
    assert interrupt(server, name)[0] == 200
    job = server.training_job(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert statuses(job).count("Training") == 2
    assert 3 <= job["TrainingTimeInSeconds"] <= 5


def test_a_spot_job_that_waited_too_long_says_so(server: Server, name: str) -> None:
    condition = {"MaxRuntimeInSeconds": 2, "MaxWaitTimeInSeconds": 2}  # waiting counts from the request on
    job = train(server, name, "sleep 60", **{**SPOT, "StoppingCondition": condition})
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")


def test_a_spot_job_that_is_stopped_does_not_restart(server: Server, name: str) -> None:
    command = "trap 'sleep 1; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    start_training(server, name, command, **SPOT)
    server.wait_for(lambda: training_log(server, name) == "up\n")
    assert interrupt(server, name)[0] == 200
    assert "can be interrupted" in interrupt(server, name)[1]  # it is being reclaimed already
    server.sagemaker.stop_training_job(TrainingJobName=name)
    job = server.training_job(name)
    assert job["TrainingJobStatus"] == "Stopped"
    assert "Restarting" not in statuses(job)


def test_what_cannot_be_interrupted_is_refused_with_the_reason(server: Server, name: str) -> None:
    train(server, name, "true")
    train(server, f"{name}-2", "true", **SPOT)
    assert interrupt(server, name) == (
        400, f"the training job '{name}' has no spot instances; set EnableManagedSpotTraining in its request\n",
    )  # fmt: skip
    status, text = interrupt(server, f"{name}-2")
    assert status == 400 and "is Completed, and only one whose program runs" in text
    assert interrupt(server, "nobody") == (400, "Requested resource not found: training job 'nobody'\n")
    assert interrupt(server, name, "GET") == (400, "use POST /_local/interrupt?job=NAME, NAME of a training job\n")
    assert interrupt(server, "")[1].startswith("use POST /_local/interrupt?job=NAME")


# ---------------------------------------------------------------------- requests


def test_a_job_name_is_used_once(server: Server, name: str) -> None:
    train(server, name, "true")
    with pytest.raises(ClientError, match="must be unique") as caught:
        server.sagemaker.create_training_job(TrainingJobName=name, **training("true"))
    assert caught.value.response["Error"]["Code"] == "ResourceInUse"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"TrainingJobName": "under_score"}, ["'under_score' at 'trainingJobName'", "regular expression pattern"]),
        ({"ResourceConfig": None}, ["ResourceConfig has InstanceType None"]),
        ({"RoleArn": None}, ["null at 'roleArn'", "must not be null"]),
        (
            {"ResourceConfig": {"InstanceType": "ml.g5.2xlarg", "InstanceCount": 1, "VolumeSizeInGB": 10}},
            ["'ml.g5.2xlarg' at 'resourceConfig.instanceType'", "enum value set", "ml.g5.2xlarge"],
        ),
        ({"HyperParameters": {"epoch": 1}}, ["'1' at 'hyperParameters.epoch.member'", "of type string"]),
        ({"Learning": 1}, ["Unknown field 'Learning'"]),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, ["'stoppingCondition.maxRuntimeInSeconds'", "equal to 1"]),
        ({"RoleArn": "arn:aws:iam::123456789012:role/nobody"}, ["Could not assume role", "no such role"]),
        (
            {"ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 9, "VolumeSizeInGB": 10}},
            ["ResourceConfig.InstanceCount is 9", "up to 8 hosts"],
        ),
        (
            {"ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 0, "VolumeSizeInGB": 10}},
            ["InstanceCount 0", "1 instance or more"],
        ),
        ({"EnableManagedSpotTraining": True}, ["Invalid MaxWaitTimeInSeconds. It must be present", "is None"]),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59},
            },
            ["greater than or equal to MaxRuntimeInSeconds", "is 59, MaxRuntimeInSeconds 60"],
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
            ["only allowed with EnableManagedSpotTraining"],
        ),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
                "ResourceConfig": {
                    "InstanceType": "ml.g5.2xlarge",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 10,
                    "KeepAlivePeriodInSeconds": 600,
                },
            },
            ["KeepAlivePeriodInSeconds is 600", "not supported with EnableManagedSpotTraining"],
        ),
    ],
)
def test_a_wrong_request_names_the_field(server: Server, name: str, change: dict[str, Any], words: list[str]) -> None:
    request = {"TrainingJobName": name, **training("true"), **change}
    status, answer = server.post("CreateTrainingJob", json.dumps(request).encode())
    assert (status, answer["__type"].split("#")[-1]) == (400, "ValidationException")
    for word in words:
        assert word in answer["Message"]


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"text"'])
def test_a_request_that_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    status, answer = server.post("CreateTrainingJob", body)
    assert (status, answer["__type"].split("#")[-1]) == (400, "ValidationException")


def test_all_problems_of_a_request_come_at_once(server: Server) -> None:
    _, answer = server.post("CreateProcessingJob", b'{"ProcessingJobName": 5}')
    assert answer["Message"].startswith("4 validation errors detected: ")


@pytest.mark.parametrize("operation", ["CreateTransformJob", "CreateCluster", "ListPipelineVersions"])
def test_an_operation_that_is_not_here_is_refused_by_name(server: Server, operation: str) -> None:
    status, answer = server.post(operation, b"{}")
    assert (status, answer["__type"].split("#")[-1]) == (400, "UnsupportedOperation")
    assert f"{operation} is not implemented by local AWS" in answer["Message"]


def test_paths_outside_opt_ml_processing_are_refused(server: Server, name: str) -> None:
    request = processing("true", inputs={"d": "s3://b/k"})
    request["ProcessingInputs"][0]["S3Input"]["LocalPath"] = "/opt/ml/processing/../../etc"
    with pytest.raises(ClientError, match="not below /opt/ml/processing"):
        server.sagemaker.create_processing_job(ProcessingJobName=name, **request)


def test_lists_filter_sort_and_page(server: Server, name: str) -> None:
    for number, command in enumerate(("true", "exit 1", "true")):
        process(server, f"{name}-{number}", command)
    listed = server.sagemaker.list_processing_jobs(NameContains=name, SortOrder="Ascending", MaxResults=2)
    assert [job["ProcessingJobName"] for job in listed["ProcessingJobSummaries"]] == [f"{name}-0", f"{name}-1"]
    rest = server.sagemaker.list_processing_jobs(
        NameContains=name, SortOrder="Ascending", MaxResults=2, NextToken=listed["NextToken"]
    )
    assert [job["ProcessingJobName"] for job in rest["ProcessingJobSummaries"]] == [f"{name}-2"]
    failed = server.sagemaker.list_processing_jobs(NameContains=name, StatusEquals="Failed")["ProcessingJobSummaries"]
    assert [job["FailureReason"] for job in failed] == [
        "AlgorithmError: See job logs for more information, exit code: 1"
    ]


def test_nothing_of_an_ended_job_is_left_but_its_log(server: Server, name: str) -> None:
    process(server, name, "echo x > /opt/ml/processing/big")
    assert not list((server.root / "run/jobs").glob(f"*{name}*"))
    assert Path(server.root / "run/logs/ProcessingJobs" / f"{name}.log").exists()
