"""Endpoints of the test container, and a constant load on them."""

import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from botocore.config import Config
from botocore.exceptions import ClientError

from tests.local_aws.sagemaker_server import BUCKET, ROLE, Server

SOURCE = {
    "S3DataSource": {"S3Uri": f"s3://{BUCKET}/endpoint/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
}


def config(server: Server, variant: dict[str, Any] | None = None, isolated: bool = False, **container: Any) -> str:
    """A model with this container and an endpoint configuration for it; returns the configuration's name."""
    name = f"config-{uuid.uuid4().hex[:8]}"
    definition = {"Image": "web", "ModelDataSource": SOURCE, **container}
    server.sagemaker.create_model(
        ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=definition, EnableNetworkIsolation=isolated
    )
    settings = {"InstanceType": "ml.g5.4xlarge", "InitialInstanceCount": 1, **(variant or {})}
    server.sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{"VariantName": "AllTraffic", "ModelName": name, **settings}]
    )
    return name


def create(server: Server, name: str, config_name: str) -> dict[str, Any]:
    server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config_name)
    return server.endpoint(name)


def invoke(server: Server, name: str, body: str | bytes, **fields: Any) -> str:
    answer: bytes = server.runtime.invoke_endpoint(EndpointName=name, Body=body, **fields)["Body"].read()
    return answer.decode()


@dataclass(frozen=True)
class Outcome:
    """What one request of a load got: an answer, or an error's code."""

    started: float
    seconds: float
    answer: str
    error: str = ""


@dataclass
class Load:
    """Requests at a constant rate, each sent once, from entering the context to leaving it."""

    server: Server
    endpoint: str
    per_second: float = 40
    body: str = "hi"
    component: str | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> "Load":
        once = Config(retries={"total_max_attempts": 1}, max_pool_connections=64)
        self._runtime = self.server.client("sagemaker-runtime", config=once)
        self._done = threading.Event()
        self._senders: list[threading.Thread] = []
        self._pacer = threading.Thread(target=self._pace)
        self._pacer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._pacer.join()
        for sender in self._senders:
            sender.join()
        print(f"{self.endpoint}: {len(self.outcomes)} requests, {len(self.failures)} failed {dict(self.answers)}")

    def _pace(self) -> None:
        due = time.monotonic()
        while not self._done.is_set():
            sender = threading.Thread(target=self._send)
            sender.start()
            self._senders.append(sender)
            due += 1 / self.per_second
            time.sleep(max(0.0, due - time.monotonic()))

    def _send(self) -> None:
        started = time.monotonic()
        answer = error = ""
        on_component = {"InferenceComponentName": self.component} if self.component else {}
        try:
            response = self._runtime.invoke_endpoint(EndpointName=self.endpoint, Body=self.body, **on_component)
            answer = response["Body"].read().decode().split("|")[0]
        except ClientError as caught:
            error = caught.response["Error"]["Code"]
        except Exception as caught:
            error = type(caught).__name__
        self.outcomes.append(Outcome(started, time.monotonic() - started, answer, error))

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    @property
    def answers(self) -> Counter[str]:
        return Counter(outcome.answer or outcome.error for outcome in self.outcomes)
