"""Processing and training jobs, through the API of a running server."""

import json
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
            {"ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}},
            ["InstanceCount 2", "1 instance"],
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


@pytest.mark.parametrize("operation", ["CreateTransformJob", "CreateCluster", "RetryPipelineExecution"])
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
