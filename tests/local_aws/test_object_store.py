"""Objects that jobs write are like any other object of S3, and large ones are moved, not copied through memory."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from local_aws.object_store import PART_BYTES, ObjectStoreError, split
from tests.local_aws.sagemaker_server import BUCKET, Server, processing, running_server


@pytest.fixture
def server() -> Server:
    return running_server()


@pytest.fixture
def name() -> str:
    return f"store-{uuid.uuid4().hex[:8]}"


def write(server: Server, name: str, command: str, bucket: str = BUCKET) -> None:
    request = processing(f"cd /opt/ml/processing/output/o; {command}", outputs={"o": f"s3://{bucket}/{name}"})
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    assert server.processing_job(name)["ProcessingJobStatus"] == "Completed"


def test_a_small_object_has_its_md5_as_etag(server: Server, name: str) -> None:
    write(server, name, "printf content > small; : > empty")
    assert (
        server.s3.head_object(Bucket=BUCKET, Key=f"{name}/small")["ETag"] == f'"{hashlib.md5(b"content").hexdigest()}"'
    )
    assert server.s3.head_object(Bucket=BUCKET, Key=f"{name}/empty")["ContentLength"] == 0


def test_a_large_object_is_complete_has_the_etag_of_a_multipart_upload_and_can_be_read_in_parts(
    server: Server, name: str
) -> None:
    write(server, name, f"head -c {PART_BYTES} /dev/zero | tr '\\0' a > large; printf end >> large")
    head = server.s3.head_object(Bucket=BUCKET, Key=f"{name}/large")
    digests = hashlib.md5(b"a" * PART_BYTES).digest() + hashlib.md5(b"end").digest()
    assert head["ContentLength"] == PART_BYTES + 3
    assert head["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
    part = server.s3.get_object(Bucket=BUCKET, Key=f"{name}/large", Range=f"bytes={PART_BYTES - 1}-")["Body"].read()
    assert part == b"aend"


def test_what_a_job_wrote_another_job_reads_and_s3_can_copy(server: Server, name: str) -> None:
    write(server, name, "printf one > a")
    server.s3.copy_object(Bucket=BUCKET, Key=f"{name}/b", CopySource=f"{BUCKET}/{name}/a")
    request = processing(
        "cat /opt/ml/processing/input/i/* > /opt/ml/processing/output/o/both",
        inputs={"i": f"s3://{BUCKET}/{name}/"},
        outputs={"o": f"s3://{BUCKET}/{name}/out"},
    )
    server.sagemaker.create_processing_job(ProcessingJobName=f"{name}-2", **request)
    server.processing_job(f"{name}-2")
    assert server.get(f"{name}/out/both") == "oneone"


def test_an_object_that_a_job_writes_is_an_event_with_its_size(server: Server, name: str) -> None:
    server.s3.create_bucket(Bucket=name)
    configuration: dict[str, Any] = {"EventBridgeConfiguration": {}}
    server.s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration=configuration)
    queue = server.queue_of_services(name)
    pattern = {"source": ["aws.s3"], "detail-type": ["Object Created"], "detail": {"bucket": {"name": [name]}}}
    server.client("events").put_rule(Name=name, EventPattern=json.dumps(pattern))
    target = {"Id": "1", "Arn": f"arn:aws:sqs:us-east-1:123456789012:{name}"}
    server.client("events").put_targets(Rule=name, Targets=[target])
    write(server, name, "printf 12345 > f", bucket=name)
    messages: list[str] = []

    def arrived() -> bool:
        received = server.client("sqs").receive_message(QueueUrl=queue).get("Messages", [])
        messages.extend(message["Body"] for message in received)
        return bool(messages)

    server.wait_for(arrived)
    detail = json.loads(messages[0])["detail"]
    assert (detail["object"]["key"], detail["object"]["size"]) == (f"{name}/f", 5)


def test_a_versioned_bucket_keeps_the_older_object(server: Server, name: str) -> None:
    server.s3.create_bucket(Bucket=name)
    server.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for number in (1, 2):
        request = processing(f"printf {number} > /opt/ml/processing/output/o/f", outputs={"o": f"s3://{name}/out"})
        server.sagemaker.create_processing_job(ProcessingJobName=f"{name}-{number}", **request)
        server.processing_job(f"{name}-{number}")
    versions = server.s3.list_object_versions(Bucket=name)["Versions"]
    contents = {
        server.s3.get_object(Bucket=name, Key="out/f", VersionId=version["VersionId"])["Body"].read()
        for version in versions
    }
    assert contents == {b"1", b"2"}


def test_names_that_would_leave_the_folder_are_refused(server: Server, name: str) -> None:
    server.s3.put_object(Bucket=BUCKET, Key=f"{name}/../../../../escape", Body=b"x")
    request = processing("true", inputs={"i": f"s3://{BUCKET}/{name}/"})
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    job = server.processing_job(name)
    assert "outside its folder" in job["FailureReason"]


def test_a_deleted_object_of_a_versioned_bucket_is_not_downloaded(server: Server, name: str) -> None:
    server.s3.create_bucket(Bucket=name)
    server.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for key in ("d/kept", "d/gone"):
        server.s3.put_object(Bucket=name, Key=key, Body=b"x")
    server.s3.delete_object(Bucket=name, Key="d/gone")
    request = processing("ls /opt/ml/processing/input/i", inputs={"i": f"s3://{name}/d/"})
    server.sagemaker.create_processing_job(ProcessingJobName=name, **request)
    server.processing_job(name)
    assert server.log_lines("/aws/sagemaker/ProcessingJobs", name) == ["kept"]


@pytest.mark.parametrize("uri", ["http://b/k", "s3://", "s3:///k", "b/k"])
def test_what_is_no_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(ObjectStoreError, match="not an S3 URI"):
        split(uri)


def test_the_files_of_an_upload_are_taken_over(server: Server, name: str) -> None:
    write(server, name, "printf x > f")
    assert not list(Path(server.root / "run/jobs").glob(f"*{name}*"))
    assert server.get(f"{name}/f") == "x"
