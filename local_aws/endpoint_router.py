"""The way of a request: endpoint -> fleet by share of the traffic -> variant by weight -> the least busy process, and back."""

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from local_aws import event_stream
from local_aws.fleets import Fleet, Replicas, Variant
from local_aws.sagemaker_api import Service, now
from local_aws.serving_process import Answer, NotSent, ServingProcess

INVOCATION_SECONDS = 60
STREAM_SECONDS = 480
MOST_BODY_BYTES = 25 * 2**20
FORWARDED_HEADERS = (
    "Content-Type",
    "Accept",
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-Inference-Id",
    "X-Amzn-SageMaker-Session-Id",
)
COMPONENT_HEADER = "x-amzn-sagemaker-inference-component"
ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
NO_CAPACITY = "NoCapacityInvocationFailures"
IN_SERVICE = ("InService", "Updating", "RollingBack", "SystemUpdating", "UpdateRollbackFailed")


@dataclass(frozen=True)
class StreamedAnswer:
    """An answer that comes in pieces; `close` must be called in the end, whether or not all were read."""

    status: int
    headers: dict[str, str]
    pieces: Iterator[bytes]
    close: Callable[[], None]


@dataclass
class Invocation:
    """One request that reached an endpoint in service, for its metrics and its record."""

    endpoint: str
    config_name: str
    variant: str
    component: str
    request: bytes
    request_headers: dict[str, str]  # by lower-case name
    started: datetime = field(default_factory=now)
    clock: float = field(default_factory=time.perf_counter)
    status: int = 0  # the container's; 0: it gave no answer
    answer: bytes = b""
    answer_type: str = ""
    model_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True)
class Route:
    """Where a request goes: processes, and under which names it is counted."""

    replicas: Replicas
    config_name: str
    variant: str
    component: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # that the container gets besides the client's


class Traffic:
    """Which fleets get which share of an endpoint's requests. Shares hold exactly, not only on average."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: list[tuple[Fleet, float]] = []
        self._credit: dict[Variant, float] = {}

    def shift(self, shares: list[tuple[Fleet, float]]) -> None:
        """From now on each fleet gets its share. When this returns, no request begins on a fleet that is not in it."""
        with self._lock:
            self._shares = [(fleet, share) for fleet, share in shares if share > 0]
            self._credit = {}

    def begin(self, target: str | None) -> tuple[Route, ServingProcess | None] | None:
        """A route for one request, and the process that it has begun on (None: none is healthy); None: no such variant."""
        with self._lock:
            candidates = [
                (fleet, variant, share * weight)
                for fleet, share in self._shares
                for variant, weight in _weights(fleet)
                if target in (None, variant.name)
            ]
            if not candidates:
                return None
            total = sum(weight for *_, weight in candidates) or float(len(candidates))
            for _, variant, weight in candidates:
                self._credit[variant] = self._credit.get(variant, 0.0) + weight
            fleet, variant, _ = max(candidates, key=lambda candidate: self._credit[candidate[1]])
            self._credit[variant] -= total
            return Route(variant.replicas, fleet.config_name, variant.name), variant.replicas.begin()

    @property
    def count(self) -> int:
        """Processes that have come up."""
        with self._lock:
            return sum(variant.replicas.in_service for fleet, _ in self._shares for variant in fleet.variants)


def _weights(fleet: Fleet) -> list[tuple[Variant, float]]:
    total = sum(variant.weight for variant in fleet.variants)
    if not total:
        return [(variant, 1 / len(fleet.variants)) for variant in fleet.variants]
    return [(variant, variant.weight / total) for variant in fleet.variants]


class Component:
    """An inference component: what Describe returns, and its copies; an adapter has none and uses those of its base."""

    def __init__(self, record: dict[str, Any], base: "Component | None" = None) -> None:
        self.record = record
        self.base = base
        self.fleet: Fleet | None = None
        self.traffic = Traffic()

    @property
    def name(self) -> str:
        return str(self.record["InferenceComponentName"])

    @property
    def status(self) -> str:
        return str(self.record["InferenceComponentStatus"])


class Endpoint:
    """What Describe returns, the fleet that serves, and where requests go."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.fleet: Fleet | None = None
        self.pending: Fleet | None = None
        self.traffic = Traffic()
        self.components: dict[str, Component] = {}

    @property
    def hosts_components(self) -> bool:
        return self.fleet is not None and all(variant.served is None for variant in self.fleet.variants)

    @property
    def name(self) -> str:
        return str(self.record["EndpointName"])

    @property
    def arn(self) -> str:
        return str(self.record["EndpointArn"])

    @property
    def status(self) -> str:
        return str(self.record["EndpointStatus"])


class Router:
    """InvokeEndpoint and InvokeEndpointWithResponseStream. Every request that a variant had is told to `listeners`."""

    def __init__(self, service: Service, endpoints: dict[str, Endpoint]) -> None:
        self._service = service
        self._endpoints = endpoints
        self.listeners: list[Callable[[Invocation], None]] = []
        self.count: Callable[[str, dict[str, str]], None] = lambda name, dimensions: None  # of other metrics

    def invoke(self, name: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send `body` to the container's /invocations; `headers` are the request's, by lower-case name."""
        opened = self._open(name, body, headers)
        if isinstance(opened, Answer):
            return opened
        invocation, route, process = opened
        try:
            process, answer = self._send(process, route, invocation, body, _forwarded(headers, route))
        finally:
            self._close(invocation)
        if isinstance(answer, OSError):
            return self._no_answer(process, answer)
        if not 200 <= answer.status < 300:
            return self._model_error(process, answer.status, answer.body.decode(errors="replace"))
        return Answer(200, answer.body, _shown(answer.headers, invocation, "Content-Type"))

    def stream(self, name: str, body: bytes, headers: dict[str, str]) -> Answer | StreamedAnswer:
        """The same, answered as an event stream of the pieces that the container sends."""
        if "x-amzn-sagemaker-accept" in headers:
            headers = {**headers, "accept": headers["x-amzn-sagemaker-accept"]}
        opened = self._open(name, body, headers)
        if isinstance(opened, Answer):
            return opened
        invocation, route, process = opened
        stack = ExitStack()
        stack.callback(self._close, invocation)
        stack.callback(process.end)
        started = time.perf_counter()
        try:
            answer = stack.enter_context(process.stream(body, _forwarded(headers, route), STREAM_SECONDS))
        except OSError as error:
            stack.close()
            return self._no_answer(process, error)
        invocation.status = answer.status
        if not 200 <= answer.status < 300:
            try:
                text = b"".join(answer.pieces).decode(errors="replace")
            except OSError as error:
                text = str(error)
            invocation.model_seconds = time.perf_counter() - started
            stack.close()
            return self._model_error(process, answer.status, text)
        invocation.answer_type = answer.headers.get("Content-Type", "")

        def events() -> Generator[bytes, None, None]:
            try:
                for piece in answer.pieces:
                    invocation.answer += piece
                    yield event_stream.payload_part(piece)
            except OSError as error:
                invocation.status = 0
                message = f"The container of endpoint {name} broke off its answer: {error}"
                yield event_stream.exception("ModelStreamError", message, "StreamBroken")
            finally:
                invocation.model_seconds = time.perf_counter() - started

        pieces = events()

        def close() -> None:
            pieces.close()
            stack.close()

        shown = _shown(answer.headers, invocation, "X-Amzn-SageMaker-Content-Type")
        return StreamedAnswer(200, {**shown, "Content-Type": event_stream.CONTENT_TYPE}, pieces, close)

    # ------------------------------------------------------------------ parts

    def _open(
        self, name: str, body: bytes, headers: dict[str, str]
    ) -> Answer | tuple[Invocation, Route, ServingProcess]:
        """Find where the request goes; the process returned has begun it."""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            account = self._service.settings.account
            return error_answer(400, "ValidationError", f"Endpoint {name} of account {account} not found.")
        if len(body) > MOST_BODY_BYTES:
            message = f"The body has {len(body)} bytes, and may have {MOST_BODY_BYTES}."
            return error_answer(413, "", f"Request Entity Too Large: {message}")
        if endpoint.status not in IN_SERVICE or endpoint.fleet is None:
            message = f"Endpoint {name} is not in service: its status is {endpoint.status}."
            return error_answer(503, "ServiceUnavailable", message)
        begun = (
            self._begin_on_component(endpoint, headers) if endpoint.hosts_components else self._begin(endpoint, headers)
        )
        if isinstance(begun, Answer):
            return begun
        route, process = begun
        invocation = Invocation(name, route.config_name, route.variant, route.component, body, headers)
        if process is None:
            self._close(invocation)
            message = f"No instance of variant {route.variant} of endpoint {name} is healthy."
            return error_answer(503, "ServiceUnavailable", message)
        return invocation, route, process

    @staticmethod
    def _begin(endpoint: Endpoint, headers: dict[str, str]) -> Answer | tuple[Route, ServingProcess | None]:
        target = headers.get("x-amzn-sagemaker-target-variant")
        begun = endpoint.traffic.begin(target)
        if begun is None:
            return error_answer(400, "ValidationError", f"Variant {target} of endpoint {endpoint.name} not found.")
        return begun

    def _begin_on_component(
        self, endpoint: Endpoint, headers: dict[str, str]
    ) -> Answer | tuple[Route, ServingProcess | None]:
        name = headers.get(COMPONENT_HEADER)
        if name is None:
            message = (
                "Inference Component Name header is required for endpoints to which you plan to deploy inference "
                "components. Please include Inference Component Name header or consider using SageMaker models."
            )
            return error_answer(400, "ValidationError", message)
        component = endpoint.components.get(name)
        if component is None or component.status in ("Creating", "Deleting"):
            return error_answer(
                400, "ValidationError", f"Inference Component {name} of endpoint {endpoint.name} not found."
            )
        owner = component.base or component
        begun = owner.traffic.begin(None)
        if begun is None or not owner.traffic.count:
            self.count(NO_CAPACITY, {"InferenceComponentName": owner.name})
            message = (
                "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
                "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
            )
            return error_answer(400, "ValidationError", message)
        route, process = begun
        adapter = {ADAPTER_HEADER: name} if component.base is not None else {}
        variant = str(component.record["VariantName"])
        return Route(route.replicas, str(endpoint.record["EndpointConfigName"]), variant, name, adapter), process

    def _send(
        self, process: ServingProcess, route: Route, invocation: Invocation, body: bytes, headers: dict[str, str]
    ) -> tuple[ServingProcess, Answer | OSError]:
        """What `process`, or another one where it cannot be reached, answers, or why there is no answer; and which it was."""
        tried: list[ServingProcess] = []
        started = time.perf_counter()
        try:
            while True:
                try:
                    answer = process.invoke(body, headers, INVOCATION_SECONDS)
                    invocation.status, invocation.answer = answer.status, answer.body
                    invocation.answer_type = answer.headers.get("Content-Type", "")
                    return process, answer
                except NotSent as error:
                    tried.append(process)
                    other = route.replicas.begin(exclude=tried)
                    if other is None:
                        return process, error
                    process.end()
                    process = other
                except OSError as error:
                    return process, error
        finally:
            process.end()
            invocation.model_seconds = time.perf_counter() - started

    def _close(self, invocation: Invocation) -> None:
        invocation.total_seconds = time.perf_counter() - invocation.clock
        for listener in self.listeners:
            listener(invocation)

    def _no_answer(self, process: ServingProcess, error: OSError) -> Answer:
        if isinstance(error, TimeoutError):
            message = (
                "Your invocation timed out while waiting for a response from container primary. Review the latency metrics "
                "for each container in Amazon CloudWatch, resolve the issue, and try again."
            )
            return self._model_error(process, 0, message)
        name = process.served.endpoint
        return error_answer(503, "ServiceUnavailable", f"The container of endpoint {name} does not answer: {error}")

    def _model_error(self, process: ServingProcess, status: int, text: str) -> Answer:
        account, stream = self._service.settings.account, process.log_stream_arn
        kind = "client" if 400 <= status < 500 else "server"
        message = (
            f'Received {kind} error ({status}) from primary with message "{text}". '
            f"See log stream {stream} in account {account} for more information."
        )
        details = {"OriginalStatusCode": status, "OriginalMessage": text, "LogStreamArn": stream}
        return error_answer(424, "ModelError", message, details)


def _forwarded(headers: dict[str, str], route: Route) -> dict[str, str]:
    forwarded = {header: headers[header.lower()] for header in FORWARDED_HEADERS if header.lower() in headers}
    return {**forwarded, **route.headers}


def _shown(answer_headers: dict[str, str], invocation: Invocation, content_type: str) -> dict[str, str]:
    returned = {header.lower(): value for header, value in answer_headers.items()}
    shown = {
        content_type: returned.get("content-type", "application/octet-stream"),
        "x-Amzn-Invoked-Production-Variant": invocation.variant,
    }
    for header in ("X-Amzn-SageMaker-Custom-Attributes", "X-Amzn-SageMaker-New-Session-Id"):
        if header.lower() in returned:
            shown[header] = returned[header.lower()]
    return shown


def error_answer(status: int, code: str, message: str, details: dict[str, Any] | None = None) -> Answer:
    """An error of the runtime API; `code` is AWS's name for it."""
    body = json.dumps({"message": message, "Message": message, **(details or {})}).encode()
    return Answer(status, body, {"Content-Type": "application/json", **({"x-amzn-errortype": code} if code else {})})
