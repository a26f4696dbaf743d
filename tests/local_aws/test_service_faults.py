"""Faults of services: the clients' retries survive those that pass, and those that stay are told in clear words."""

import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local_aws.service_faults import FaultRuleError, Rule
from tests.local_aws.sagemaker_server import BUCKET, Server, processing, running_server
from tests.local_aws.test_pipelines import create, start, step, steps_of


def control(server: Server, **query: str) -> str:
    url = f"{server.process.url}/_local/faults?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
        return str(answer.read().decode())


@pytest.fixture
def server() -> Iterator[Server]:
    server = running_server()
    yield server
    control(server, clear="all")


def test_a_client_survives_faults_that_pass_and_tells_those_that_stay(server: Server) -> None:
    key = f"faults-{uuid.uuid4().hex}/x"
    control(server, service="s3", operation="PutObject", error="SlowDown", key=key, times="2")
    control(server, service="s3", operation="GetObject", error="InternalError", key=key, times="1")
    server.put(key, "content")
    assert server.get(key) == "content"
    control(server, service="s3", operation="GetObject", error="ServiceUnavailable", key=key)
    quick = server.client("s3", config=Config(retries={"total_max_attempts": 2}))
    with pytest.raises(ClientError, match=r"\(ServiceUnavailable\) .*reached max retries"):
        quick.get_object(Bucket=BUCKET, Key=key)
    assert server.keys(key) == [key]  # another operation does not meet the rule


def test_a_share_of_the_requests_fails_evenly(server: Server) -> None:
    key = f"faults-{uuid.uuid4().hex}"
    server.put(key, "content")
    control(server, service="s3", operation="HeadObject", error="AccessDenied", key=key, share="0.5")
    outcomes = []
    for _ in range(6):
        try:
            server.s3.head_object(Bucket=BUCKET, Key=key)
            outcomes.append(True)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "403"
            outcomes.append(False)
    assert outcomes == [True, False, True, False, True, False]


def test_a_jobs_transfers_survive_what_passes_and_the_job_tells_what_stays(server: Server) -> None:
    prefix = f"faults-{uuid.uuid4().hex}"
    server.put(f"{prefix}/in/a", "hello")
    command = "cp /opt/ml/processing/input/in/a /opt/ml/processing/output/out/b"
    request = processing(command, {"in": f"s3://{BUCKET}/{prefix}/in/"}, {"out": f"s3://{BUCKET}/{prefix}/out"})
    control(server, service="s3", operation="GetObject", error="SlowDown", key=f"{prefix}/in", times="3")
    control(server, service="s3", operation="PutObject", error="InternalError", key=f"{prefix}/out", times="3")
    server.sagemaker.create_processing_job(ProcessingJobName=f"{prefix}-1", **request)
    assert server.processing_job(f"{prefix}-1")["ProcessingJobStatus"] == "Completed"
    assert server.get(f"{prefix}/out/b") == "hello"

    control(server, service="s3", operation="GetObject", error="SlowDown", key=f"{prefix}/in")
    pipeline = create(server, step("Read", "Processing", request))
    arn = start(server, pipeline)
    assert server.execution(arn)["PipelineExecutionStatus"] == "Failed"
    reason = steps_of(server, arn)["Read"]["FailureReason"]
    assert f'S3 answered 5 times to GetObject of "s3://{BUCKET}/{prefix}/in/a": SlowDown: Please reduce' in reason


def test_a_throttled_step_is_tried_again_as_its_retry_policy_says(server: Server) -> None:
    policy = {"ExceptionType": ["Step.THROTTLING"], "IntervalSeconds": 1, "BackoffRate": 1.0, "MaxAttempts": 2}
    pipeline = create(server, step("Work", "Processing", processing("true"), RetryPolicies=[policy]))
    control(server, service="sagemaker", operation="CreateProcessingJob", error="ThrottlingException", times="1")
    arn = start(server, pipeline)
    assert server.execution(arn)["PipelineExecutionStatus"] == "Succeeded"
    assert steps_of(server, arn)["Work"]["AttemptCount"] == 2


def test_a_rule_that_cannot_be_read_names_every_problem(server: Server) -> None:
    with pytest.raises(FaultRuleError) as caught:
        Rule.parse("service=s3,error=Slow,times=0,share=2,foo=1,operation=GetObjekt")
    for said in (
        "'foo' is unknown",
        "error is 'Slow'; known: SlowDown",
        "'GetObjekt', which s3",
        "times is '0'",
        "share is '2'",
    ):
        assert said in str(caught.value)
    with pytest.raises(urllib.error.HTTPError) as refused:
        control(server, service="s5", error="SlowDown")
    assert refused.value.code == 400 and b"service is 's5'" in refused.value.read()
