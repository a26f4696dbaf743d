"""What an endpoint of local AWS adds to a request, and how many tokens a second it answers.

    .venv/bin/python -m bench.endpoint

First an endpoint whose container is the LMI stand-in with an engine that answers at once: all that is left is ours, the
API's router and the serving process. Then the same image with SmolLM2-135M-Instruct, asked by 1, 8 and 32 clients at the
same time. Prints one line a case; writes bench/results/endpoint.json.
"""

import http.client
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

import local_aws
from cli import model_sources
from cli.aws import Deployment
from cli.demo import BASE_MODEL
from config.settings import load

REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "endpoint.json"
REGION, BUCKET = "us-east-1", "bench"
STUB_REQUESTS, WARM_UP_REQUESTS = 500, 20
CONCURRENCIES = (1, 8, 32)
ROUNDS = 2  # requests of each client; the first client's first request warms up
NEW_TOKENS = 64
STUB = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from types import SimpleNamespace
from local_aws.lmi import answers
from local_aws.lmi.__main__ import Handler, Server

TOKEN = SimpleNamespace(id=1, text="yes", log_probability=None, finish_reason="eos_token")

class Sequence:
    prompt, ids, cancelled = [1], [1], False
    def __init__(self, request):
        self.request = request
    def __iter__(self):
        return iter([TOKEN])

engine = SimpleNamespace(tokenizer=None, start=lambda request, adapter: Sequence(request))
server = Server(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
server.serving = SimpleNamespace(
    engine=engine, formatter=None, answers=answers, overloaded=OverflowError, tgi_compatible=True
)
server.serve_forever()
"""


class Aws:
    """A local AWS for the benchmark, with a role and a bucket."""

    def __init__(self, url: str) -> None:
        self.url = url
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
        role = self.client("iam").create_role(
            RoleName="bench", AssumeRolePolicyDocument=json.dumps({"Statement": [trust]})
        )
        self.role = role["Role"]["Arn"]
        anything = json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        )
        self.client("iam").put_role_policy(RoleName="bench", PolicyName="anything", PolicyDocument=anything)
        self.client("s3").create_bucket(Bucket=BUCKET)

    def client(self, service: str) -> Any:
        settings = Config(max_pool_connections=64, read_timeout=300, retries={"total_max_attempts": 1})
        return boto3.client(
            service,
            REGION,
            endpoint_url=self.url,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=settings,
        )

    def serve(self, name: str, container: dict[str, Any]) -> None:
        """An endpoint that serves `container`, in service."""
        sagemaker = self.client("sagemaker")
        sagemaker.create_model(ModelName=name, ExecutionRoleArn=self.role, PrimaryContainer=container)
        variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        while (status := sagemaker.describe_endpoint(EndpointName=name))["EndpointStatus"] == "Creating":
            time.sleep(0.2)
        if status["EndpointStatus"] != "InService":
            raise SystemExit(f"the endpoint did not come up: {status['FailureReason']}")


def overhead(aws: Aws) -> list[dict[str, Any]]:
    aws.serve("stub", {"Image": "stub"})
    body = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 1}}).encode()
    runtime = aws.client("sagemaker-runtime")
    connection = http.client.HTTPConnection(aws.url.removeprefix("http://"))

    def by_http() -> None:
        connection.request("POST", "/endpoints/stub/invocations", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'[{"generated_text": "yes"}]')

    def by_boto3() -> None:
        runtime.invoke_endpoint(EndpointName="stub", Body=body, ContentType="application/json")["Body"].read()

    rows = []
    for client, ask in (("HTTP on one connection", by_http), ("boto3", by_boto3)):
        for _ in range(WARM_UP_REQUESTS):
            ask()
        milliseconds = sorted(timed(ask) * 1000 for _ in range(STUB_REQUESTS))
        rows.append(
            {
                "case": "stub engine",
                "client": client,
                "requests": len(milliseconds),
                "p50_ms": round(statistics.median(milliseconds), 2),
                "p95_ms": round(milliseconds[int(0.95 * len(milliseconds))], 2),
            }
        )
        print(f"stub engine, {client}: p50 {rows[-1]['p50_ms']} ms, p95 {rows[-1]['p95_ms']} ms", flush=True)
    return rows


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def throughput(aws: Aws, folder: Path) -> list[dict[str, Any]]:
    s3 = aws.client("s3")
    for path in folder.iterdir():
        s3.upload_file(str(path), BUCKET, f"model/{path.name}")
    source = {"S3Uri": f"s3://{BUCKET}/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    aws.serve("model", {"Image": "djl-inference", "ModelDataSource": {"S3DataSource": source}})
    runtime = aws.client("sagemaker-runtime")

    def ask(number: int) -> int:
        parameters = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "details": True}
        request = {
            "inputs": f"Story number {number}. Once upon a time, in a harbour far away, there",
            "parameters": parameters,
        }
        answer = runtime.invoke_endpoint(EndpointName="model", Body=json.dumps(request), ContentType="application/json")
        return int(json.loads(answer["Body"].read())["details"]["generated_tokens"])

    ask(0)
    rows: list[dict[str, Any]] = []
    for concurrency in CONCURRENCIES:
        started = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            tokens = sum(pool.map(ask, range(ROUNDS * concurrency)))
        seconds = time.perf_counter() - started
        rows.append(
            {
                "case": "SmolLM2-135M-Instruct, bf16",
                "concurrency": concurrency,
                "requests": ROUNDS * concurrency,
                "tokens": tokens,
                "seconds": round(seconds, 2),
                "tokens_per_second": round(tokens / seconds, 1),
            }
        )
        times = rows[-1]["tokens_per_second"] / rows[0]["tokens_per_second"]
        print(f"concurrency {concurrency}: {rows[-1]['tokens_per_second']} tokens/s ({times:.1f}x)", flush=True)
    return rows


def main() -> None:
    os.environ["AWS_DEFAULT_REGION"] = REGION
    source = model_sources.find(BASE_MODEL, model_sources.Access(Deployment(load("local"))))
    with tempfile.TemporaryDirectory() as scratch, source.folder(print) as (folder, _):
        image = Path(scratch) / "stub" / "bin"
        image.mkdir(parents=True)
        (image / "serve").write_text(STUB, encoding="utf-8")
        (image / "serve").chmod(0o755)
        images = {"stub": image.parent, "djl-inference": REPOSITORY / ".venv-steps"}
        with local_aws.start(Path(scratch) / "aws", images) as running:
            aws = Aws(running.url)
            rows = [*overhead(aws), *throughput(aws, folder)]
    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "command": "python -m bench.endpoint",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{os.cpu_count()} cores, {processor()}",
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
