"""One running local AWS for all tests of SageMaker, and the requests that they have in common."""

import atexit
import functools
import json
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

import local_aws

REPOSITORY = Path(__file__).parents[2]
STEPS_ENVIRONMENT = REPOSITORY / ".venv-steps"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/sagemaker"
BUCKET = "sagemaker-tests"
TIME_FACTOR = 60  # a minute of a service's waiting is a second
TRUST = {
    "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}]
}
ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}

# A container that serves: what it does is in the first word of the request, and in its environment.
SERVE = """#!/usr/bin/env python3
import http.server, json, os, sys, time

adapters = {}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(200, b"")
    def do_DELETE(self):
        adapters.pop(self.path.rsplit("/", 1)[1], None)
        self.answer(200, b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/adapters":
            wanted = json.loads(body)
            content = open(wanted["src"] + "/weights").read()
            adapters[wanted["name"]] = content
            return self.answer(400 if content == "bad" else 200, b"no such adapter")
        if "X-Amzn-SageMaker-Adapter-Identifier" in self.headers:
            return self.answer(200, adapters[self.headers["X-Amzn-SageMaker-Adapter-Identifier"]].encode() + b"|" + body)
        word = body.split()[0] if body else b""
        if word == b"die":
            os._exit(9)
        if word == b"slow":
            time.sleep(float(body.split()[1]))
        if word == b"stream":
            return self.stream(int(body.split()[1]), body.endswith(b"break"))
        if word == b"fail":
            return self.answer(int(body.split()[1]), b"no " + body)
        weights = b"".join(open("/opt/ml/model/" + name, "rb").read() for name in sorted(os.listdir("/opt/ml/model")))
        network = len(open("/proc/net/dev").readlines()) > 3
        self.answer(200, b"|".join([os.environ.get("ANSWER", "").encode(), weights, body, str(network).encode()]))
    def stream(self, pieces, breaks):
        self.send_response(200)
        self.send_header("Content-Type", "application/jsonlines")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(pieces):
            self.wfile.write(b"2\\r\\n%d\\n\\r\\n" % number)
            time.sleep(0.2)
        if not breaks:
            self.wfile.write(b"0\\r\\n\\r\\n")
        self.close_connection = True
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", self.headers.get("Accept", "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

if os.environ.get("BROKEN"):
    sys.exit("cannot load: " + os.environ["BROKEN"])
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # with the 5 of the library a burst is refused by the kernel

print("serving", flush=True)
Server(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""


class Server:
    """A running local AWS with clients, a role and a bucket."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="local-aws-tests-"))
        web = self.root / "images" / "web"
        (web / "bin").mkdir(parents=True)
        (web / "bin" / "serve").write_text(SERVE)
        (web / "bin" / "serve").chmod(0o755)
        images = {"tools": Path(sys.prefix), "web": web, "djl-inference": STEPS_ENVIRONMENT}
        self.process = local_aws.start(self.root / "run", images, time_factor=TIME_FACTOR)
        atexit.register(self.stop)
        self.sagemaker, self.s3, self.logs = self.client("sagemaker"), self.client("s3"), self.client("logs")
        self.runtime = self.client("sagemaker-runtime")
        iam = self.client("iam")
        iam.create_role(RoleName="sagemaker", AssumeRolePolicyDocument=json.dumps(TRUST))
        iam.put_role_policy(RoleName="sagemaker", PolicyName="anything", PolicyDocument=json.dumps(ANYTHING))
        self.s3.create_bucket(Bucket=BUCKET)

    def client(self, service: str, **options: Any) -> Any:
        session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
        make: Any = session.client
        return make(service, endpoint_url=self.process.url, **options)

    def stop(self) -> None:
        self.process.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def post(self, operation: str, body: bytes) -> tuple[int, dict[str, str]]:
        """A SageMaker request as it goes over the wire, unchecked by any SDK; returns the status and the answer."""
        headers = {
            "X-Amz-Target": f"SageMaker.{operation}",
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request",
        }
        try:
            with urllib.request.urlopen(urllib.request.Request(self.process.url, body, headers)) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    # ------------------------------------------------------------------ S3 and logs

    def queue_of_services(self, name: str) -> str:
        """URL of a new queue that EventBridge may send to."""
        arn, sender = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}", {"Service": "events.amazonaws.com"}
        sends = {"Effect": "Allow", "Principal": sender, "Action": "sqs:SendMessage", "Resource": arn}
        attributes = {"Policy": json.dumps({"Version": "2012-10-17", "Statement": [sends]})}
        return str(self.client("sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])

    def put(self, key: str, body: str | bytes) -> str:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> str:
        content: bytes = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content.decode()

    def keys(self, prefix: str) -> list[str]:
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]

    def log_lines(self, group: str, stream_prefix: str) -> list[str]:
        streams = self.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=stream_prefix)["logStreams"]
        events = self.logs.get_log_events(logGroupName=group, logStreamName=streams[0]["logStreamName"])["events"]
        return [event["message"] for event in events]

    # ------------------------------------------------------------------ waiting

    def wait_for(self, what: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not so after {seconds} s"
            time.sleep(0.02)

    def processing_job(self, name: str) -> dict[str, Any]:
        """Wait for the end of a processing job; returns what Describe returns."""
        return self._ended(
            lambda: self.sagemaker.describe_processing_job(ProcessingJobName=name), "ProcessingJobStatus"
        )

    def training_job(self, name: str) -> dict[str, Any]:
        return self._ended(lambda: self.sagemaker.describe_training_job(TrainingJobName=name), "TrainingJobStatus")

    def execution(self, arn: str) -> dict[str, Any]:
        describe = functools.partial(self.sagemaker.describe_pipeline_execution, PipelineExecutionArn=arn)
        return self._ended(describe, "PipelineExecutionStatus")

    def endpoint(self, name: str) -> dict[str, Any]:
        return self._ended(lambda: self.sagemaker.describe_endpoint(EndpointName=name), "EndpointStatus")

    def _ended(self, describe: Callable[[], dict[str, Any]], status: str) -> dict[str, Any]:
        running = ("InProgress", "Stopping", "Executing", "Creating", "Updating")
        self.wait_for(lambda: describe()[status] not in running)
        return describe()


def processing(
    command: str, inputs: dict[str, Any] | None = None, outputs: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """A CreateProcessingJob request without its name: `command` is run by sh; inputs and outputs are name -> S3 URI."""
    return {
        "RoleArn": ROLE,
        "ProcessingResources": {
            "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10}
        },
        "AppSpecification": {"ImageUri": f"{ACCOUNT}.dkr.ecr/tools:1", "ContainerEntrypoint": ["sh", "-c", command]},
        "ProcessingInputs": [
            {
                "InputName": name,
                "S3Input": {
                    "S3Uri": uri,
                    "LocalPath": f"/opt/ml/processing/input/{name}",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                },
            }
            for name, uri in (inputs or {}).items()
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": name,
                    "S3Output": {
                        "S3Uri": uri,
                        "LocalPath": f"/opt/ml/processing/output/{name}",
                        "S3UploadMode": "EndOfJob",
                    },
                }
                for name, uri in (outputs or {}).items()
            ]
        },
        **fields,
    }


def training(command: str, channels: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A CreateTrainingJob request without its name."""
    inputs = [
        {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}}
        for name, uri in (channels or {}).items()
    ]
    return {
        **({"InputDataConfig": inputs} if inputs else {}),
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "tools",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["sh", "-c", command],
            "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
        },
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/models", "CompressionType": "NONE"},
        "ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **fields,
    }


@functools.cache
def running_server() -> Server:
    """The server that all test modules share; it ends with the test run."""
    return Server()
