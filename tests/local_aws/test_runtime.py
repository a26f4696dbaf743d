"""The runtime API: streamed answers, its errors, and what it must not take for its own."""

import base64
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError
from hypothesis import given
from hypothesis import strategies as st

from local_aws import event_stream
from tests.local_aws.endpoints import config, create
from tests.local_aws.sagemaker_server import BUCKET, Server, running_server


@pytest.fixture(scope="module")
def server() -> Server:
    server = running_server()
    server.put("endpoint/model/weights", "W")
    return server


@pytest.fixture(scope="module")
def endpoint(server: Server) -> Iterator[str]:
    name = f"runtime-{uuid.uuid4().hex[:8]}"
    create(server, name, config(server))
    yield name
    server.sagemaker.delete_endpoint(EndpointName=name)


def stream(server: Server, endpoint: str, body: str, **fields: Any) -> Any:
    return server.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=body, **fields)


def test_a_streamed_answer_arrives_while_it_comes(server: Server, endpoint: str) -> None:
    response = stream(server, endpoint, "stream 4")
    assert (response["InvokedProductionVariant"], response["ContentType"]) == ("AllTraffic", "application/jsonlines")
    pieces, moments = [], []
    for event in response["Body"]:
        pieces.append(event["PayloadPart"]["Bytes"])
        moments.append(time.monotonic())
    assert b"".join(pieces) == b"0\n1\n2\n3\n"
    assert moments[-1] - moments[0] > 0.3  # the container sends one each 0.2 s


def test_a_whole_answer_can_be_read_as_a_stream(server: Server, endpoint: str) -> None:
    events = list(stream(server, endpoint, "hi", Accept="text/x")["Body"])
    assert b"".join(event["PayloadPart"]["Bytes"] for event in events) == b"|W|hi|True"


def test_a_stream_that_breaks_off_ends_with_an_error(server: Server, endpoint: str) -> None:
    pieces = b""
    with pytest.raises(EventStreamError, match=r"ModelStreamError.*broke off"):
        for event in stream(server, endpoint, "stream 2 break")["Body"]:
            pieces += event["PayloadPart"]["Bytes"]
    assert pieces == b"0\n1\n"


def test_an_error_before_the_stream_is_a_model_error(server: Server, endpoint: str) -> None:
    with pytest.raises(ClientError) as caught:
        stream(server, endpoint, "fail 503")
    response: dict[str, Any] = dict(caught.value.response)
    assert (response["Error"]["Code"], response["OriginalStatusCode"]) == ("ModelError", 503)


def test_a_client_that_leaves_a_stream_does_not_hold_the_container(server: Server, endpoint: str) -> None:
    response = stream(server, endpoint, "stream 50")
    next(iter(response["Body"]))
    response["Body"].close()
    server.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config(server))
    began = time.monotonic()
    server.endpoint(endpoint)
    assert time.monotonic() - began < 20


def test_a_body_that_is_too_large_is_refused(server: Server, endpoint: str) -> None:
    once = server.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(ClientError, match="Request Entity Too Large") as caught:
        once.invoke_endpoint(EndpointName=endpoint, Body=bytes(26 * 2**20))
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413


def test_asynchronous_invocation_is_refused_by_name(server: Server, endpoint: str) -> None:
    with pytest.raises(ClientError, match="InvokeEndpointAsync is not implemented"):
        server.runtime.invoke_endpoint_async(EndpointName=endpoint, InputLocation="s3://b/k")


def test_a_bucket_may_be_named_endpoints(server: Server) -> None:
    s3 = server.client("s3", config=Config(s3={"addressing_style": "path"}))
    s3.create_bucket(Bucket="endpoints")
    s3.put_object(Bucket="endpoints", Key="x/invocations", Body=b"an object")
    assert s3.get_object(Bucket="endpoints", Key="x/invocations")["Body"].read() == b"an object"


def test_requests_and_answers_are_captured_in_the_share_that_is_asked_for(server: Server) -> None:
    name, model = f"capture-{uuid.uuid4().hex[:8]}", config(server)
    variant = {"VariantName": "v", "ModelName": model, "InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
    server.sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[variant],
        DataCaptureConfig={
            "EnableCapture": True,
            "InitialSamplingPercentage": 50,
            "DestinationS3Uri": f"s3://{BUCKET}/captured",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        },
    )
    described = create(server, name, name)
    assert described["DataCaptureConfig"]["CaptureStatus"] == "Started"
    for number in range(8):
        server.runtime.invoke_endpoint(
            EndpointName=name, Body=f"{number}", ContentType="application/json", InferenceId=f"id-{number}"
        )
    with pytest.raises(ClientError):
        server.runtime.invoke_endpoint(EndpointName=name, Body="fail 400")

    def lines() -> list[Any]:
        files = [server.get(key) for key in server.keys(f"captured/{name}/v/2")]
        return [json.loads(line) for file in files for line in file.splitlines()]

    server.wait_for(lambda: len(lines()) == 4)
    record = lines()[0]
    sent = record["captureData"]["endpointInput"]
    assert (sent["mode"], sent["encoding"], sent["observedContentType"]) == ("INPUT", "JSON", "application/json")
    answered = record["captureData"]["endpointOutput"]
    assert base64.b64decode(answered["data"]).decode() == f"|W|{sent['data']}|True"
    assert record["eventMetadata"]["inferenceId"] == f"id-{sent['data']}"
    assert record["eventVersion"] == "0"
    server.sagemaker.delete_endpoint(EndpointName=name)


@given(st.binary(max_size=300))
def test_the_encoding_is_the_one_that_botocore_reads(payload: bytes) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(event_stream.payload_part(payload))
    (message,) = list(buffer)
    assert (message.headers[":event-type"], message.payload) == ("PayloadPart", payload)
