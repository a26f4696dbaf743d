"""Endpoints that really serve: a process per production variant, health checks, updates without a gap, invocations."""

import copy
import http.client
import json
import logging
import os
import random
import re
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_aws import identity
from local_aws.containers import Container, ContainerError, ContainerSpec, LogStream, image_folder, stop_together
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.registry import Registry
from local_aws.sagemaker_api import (
    PRINCIPAL,
    Request,
    Response,
    Service,
    ValidationException,
    now,
    page,
    random_id,
    tags_of,
)

log = logging.getLogger(__name__)

# What an image's own entrypoint does when SageMaker starts it with `serve`. Any other image brings a program `serve`.
SERVING_PROGRAMS = {"djl-inference": Path(__file__).with_name("lmi_server.py")}
PORT_BRIDGE = Path(__file__).with_name("port_bridge.py")
DEFAULT_STARTUP_SECONDS = 480
INVOCATION_SECONDS = 60
PING_INTERVAL_SECONDS = 0.1
STOP_GRACE_SECONDS = 30.0
SHUTDOWN_GRACE_SECONDS = 2.0
FORWARDED_HEADERS = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes", "X-Amzn-SageMaker-Inference-Id")


class EndpointFailed(Exception):
    """An endpoint could not be brought into service; the text is its FailureReason."""


@dataclass(frozen=True)
class Answer:
    """What InvokeEndpoint returns: the HTTP status, the body, and headers by name."""

    status: int
    body: bytes
    headers: dict[str, str]


class _BridgedConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket that leads into a container without network."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        # The path of a Unix socket has at most 107 bytes; through the folder's descriptor it is always short.
        folder = os.open(self._path.parent, os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


class Variant:
    """The serving process of one production variant."""

    def __init__(
        self, service: Service, store: ObjectStore, registry: Registry, endpoint: str, variant: dict[str, Any]
    ) -> None:
        self.name = str(variant["VariantName"])
        self.weight = float(variant.get("InitialVariantWeight", 1.0))
        self._service = service
        self._startup_seconds = float(
            variant.get("ContainerStartupHealthCheckTimeoutInSeconds", DEFAULT_STARTUP_SECONDS)
        )
        self._model = registry.model(variant["ModelName"])
        self._definition = registry.container(self._model)
        self._store = store
        self._isolated = bool(self._model.get("EnableNetworkIsolation", False))
        self._folder = service.settings.root / "endpoints" / random_id(12)
        self._log_file = service.settings.root / "logs" / "Endpoints" / endpoint / f"{self.name}.log"
        self._log_group, self._log_stream = f"/aws/sagemaker/Endpoints/{endpoint}", f"{self.name}/i-{random_id(17)}"
        self._port = _free_port()
        self.container: Container | None = None
        self.stopped = threading.Event()

    @property
    def image(self) -> str:
        return str(self._definition["Image"])

    @property
    def log_stream_arn(self) -> str:
        settings = self._service.settings
        return f"arn:aws:logs:{settings.region}:{settings.account}:log-group:{self._log_group}:log-stream:{self._log_stream}"

    def start(self) -> None:
        """Get the model's files and start the process. Raises ContainerError and ObjectStoreError."""
        image_folder(self.image, self._service.settings.images)  # an unknown image fails before the files are copied
        self._store.download_model(
            self._definition, self._folder / "ml" / "model", role=self._model.get("ExecutionRoleArn", "")
        )
        self._start_container()

    def restart(self) -> None:
        """Start the process again with the files that are there."""
        self._start_container()

    def _start_container(self) -> None:
        settings = self._service.settings
        repository = self.image.rsplit("/", 1)[-1].split("@")[0].split(":")[0]
        program = SERVING_PROGRAMS.get(repository)
        command = ["python3", str(program)] if program else ["serve"]
        visible = [program] if program else []
        environment = {
            "SAGEMAKER_BIND_TO_PORT": str(self._port),
            "SAGEMAKER_SAFE_PORT_RANGE": f"{self._port}-{self._port}",
            "AWS_REGION": settings.region,
            "AWS_DEFAULT_REGION": settings.region,
        }
        if self._isolated:
            # The interpreter itself and not its link in a virtual environment, which may lie where the container cannot see.
            python = str(Path(sys.executable).resolve())
            command = [python, "-I", "-S", str(PORT_BRIDGE), "/opt/ml/port", str(self._port), "--", *command]
            visible = [*visible, PORT_BRIDGE]
        elif "ExecutionRoleArn" in self._model:
            environment |= {
                "AWS_ENDPOINT_URL": settings.url,
                **identity.assume(self._model["ExecutionRoleArn"], PRINCIPAL),
            }
        stream = LogStream(self._log_group, self._log_stream, settings.account, settings.region)
        spec = ContainerSpec(
            image=image_folder(self.image, settings.images),
            command=command,
            folder=self._folder / "ml",
            environment=environment | self._definition.get("Environment", {}),
            output=self._log_file,
            isolated=self._isolated,
            on_lines=stream.write,
            visible=visible,
        )
        with self._service.changed:
            if self.stopped.is_set():
                raise EndpointFailed("The endpoint was deleted")
            self.container = Container(spec)

    def wait_until_healthy(self) -> None:
        """Wait for /ping to answer 200. Raises EndpointFailed if it does not in time, or if the process ends."""
        container, deadline = self.container, time.monotonic() + self._startup_seconds
        assert container is not None
        while container.running and time.monotonic() < deadline and not self.stopped.is_set():
            try:
                if self.request("GET", "/ping", b"", {}, timeout=2.0).status == 200:
                    return
            except OSError:
                pass  # not listening yet
            time.sleep(PING_INTERVAL_SECONDS)
        ended = (
            ""
            if container.running
            else f" The container ended with exit code {container.wait()}; last line: {self._last_line()}"
        )
        raise EndpointFailed(
            f"The primary container for production variant {self.name} did not pass the ping health check. "
            f"Please check CloudWatch logs for this endpoint.{ended}"
        )

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str], timeout: float) -> Answer:
        """Send one HTTP request to the process. Raises OSError (TimeoutError among them) if there is no answer."""
        connection: http.client.HTTPConnection
        if self._isolated:
            connection = _BridgedConnection(self._folder / "ml" / "port", timeout)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.headers.items()))
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def stop(self, grace: float) -> None:
        """End the process and remove its files."""
        with self._service.changed:
            self.stopped.set()
            container = self.container
        if container is not None:
            container.stop(grace)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_line(self) -> str:
        lines = self._log_file.read_text(errors="replace").strip().splitlines() if self._log_file.exists() else []
        return lines[-1] if lines else "(none)"


class Fleet:
    """The variants of one endpoint configuration, in service together."""

    def __init__(self, config_name: str, variants: list[Variant]) -> None:
        self.config_name = config_name
        self.variants = variants

    def start(self) -> None:
        """Start every variant and wait until all are healthy. Raises EndpointFailed if one is not."""
        try:
            for variant in self.variants:
                variant.start()
            for variant in self.variants:
                variant.wait_until_healthy()
        except (ContainerError, ObjectStoreError, identity.RoleError) as error:
            raise EndpointFailed(str(error)) from None

    def stop(self, grace: float) -> None:
        stop_together(self.variants, grace)

    def choose(self, target: str | None) -> Variant | None:
        """The variant that gets a request: the one asked for, else one by weight."""
        if target is not None:
            return next((variant for variant in self.variants if variant.name == target), None)
        weights = [variant.weight for variant in self.variants]
        return random.choices(self.variants, weights=weights if any(weights) else None)[0]


class Endpoint:
    """What Describe returns, and the fleet that serves."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.fleet: Fleet | None = None

    @property
    def name(self) -> str:
        return str(self.record["EndpointName"])

    @property
    def arn(self) -> str:
        return str(self.record["EndpointArn"])

    @property
    def status(self) -> str:
        return str(self.record["EndpointStatus"])


class Endpoints:
    """CreateEndpoint, UpdateEndpoint, InvokeEndpoint and what belongs to them."""

    def __init__(self, service: Service, store: ObjectStore, registry: Registry) -> None:
        self._service = service
        self._store = store
        self._registry = registry
        self._endpoints: dict[str, Endpoint] = {}
        self._fleets: set[Fleet] = set()  # every one that may have processes: in service, starting, or ending

    # ------------------------------------------------------------------ operations

    def create_endpoint(self, request: Request) -> Response:
        name, config = request["EndpointName"], request["EndpointConfigName"]
        fleet = self._new_fleet(name, config)
        arn = self._service.arn(f"endpoint/{name}")
        times = {"CreationTime": now(), "LastModifiedTime": now()}
        record = {
            "EndpointName": name,
            "EndpointArn": arn,
            "EndpointConfigName": config,
            "EndpointStatus": "Creating",
            **times,
        }
        with self._service.changed:
            if name in self._endpoints:
                raise ValidationException(f'Cannot create already existing endpoint "{arn}".')
            endpoint = self._endpoints[name] = Endpoint(record)
            self._service.tags[arn] = tags_of(request)
            self._fleets.add(fleet)
        self._emit(endpoint)
        threading.Thread(target=self._bring_into_service, args=(endpoint, fleet), daemon=True).start()
        return {"EndpointArn": arn}

    def update_endpoint(self, request: Request) -> Response:
        endpoint = self._find(request["EndpointName"])
        fleet = self._new_fleet(endpoint.name, request["EndpointConfigName"])
        with self._service.changed:
            self._refuse_in_progress(endpoint)
            if endpoint.status == "Failed":
                raise ValidationException(
                    f'Cannot update failed endpoint "{endpoint.arn}": delete it and create it again.'
                )
            self._set(
                endpoint,
                {"EndpointStatus": "Updating", "PendingDeploymentSummary": {"EndpointConfigName": fleet.config_name}},
            )
            endpoint.record.pop("FailureReason", None)
            self._fleets.add(fleet)
        self._emit(endpoint)
        threading.Thread(target=self._bring_into_service, args=(endpoint, fleet), daemon=True).start()
        return {"EndpointArn": endpoint.arn}

    def describe_endpoint(self, request: Request) -> Response:
        endpoint = self._find(request["EndpointName"])
        with self._service.changed:
            variants = [
                {
                    "VariantName": variant.name,
                    "DeployedImages": [{"SpecifiedImage": variant.image, "ResolvedImage": variant.image}],
                    "CurrentWeight": variant.weight,
                    "DesiredWeight": variant.weight,
                    "CurrentInstanceCount": 1,
                    "DesiredInstanceCount": 1,
                }
                for variant in (endpoint.fleet.variants if endpoint.fleet else [])
            ]
            return {**copy.deepcopy(endpoint.record), **({"ProductionVariants": variants} if variants else {})}

    def list_endpoints(self, request: Request) -> Response:
        with self._service.changed:
            records = [copy.deepcopy(endpoint.record) for endpoint in self._endpoints.values()]
        endpoints, token = page(records, request, name="EndpointName", status="EndpointStatus")
        return {"Endpoints": endpoints, **token}

    def delete_endpoint(self, request: Request) -> Response:
        endpoint = self._find(request["EndpointName"])
        with self._service.changed:
            self._refuse_in_progress(endpoint)
            self._set(endpoint, {"EndpointStatus": "Deleting"})
        self._emit(endpoint)
        threading.Thread(target=self._delete, args=(endpoint,), daemon=True).start()
        return {}

    def invoke(self, name: str, body: bytes, headers: dict[str, str]) -> Answer:
        """InvokeEndpoint: the body goes to the container's /invocations; `headers` are the request's, by lower-case name."""
        with self._service.changed:
            endpoint = self._endpoints.get(name)
            fleet = endpoint.fleet if endpoint and endpoint.status in ("InService", "Updating", "RollingBack") else None
        if endpoint is None:
            return _error(
                400, "ValidationError", f"Endpoint {name} of account {self._service.settings.account} not found."
            )
        if fleet is None:
            return _error(
                503, "ServiceUnavailable", f"Endpoint {name} is not in service: its status is {endpoint.status}."
            )
        target = headers.get("x-amzn-sagemaker-target-variant")
        variant = fleet.choose(target)
        if variant is None:
            return _error(400, "ValidationError", f"Variant {target} of endpoint {name} not found.")
        forwarded = {header: headers[header.lower()] for header in FORWARDED_HEADERS if header.lower() in headers}
        try:
            answer = variant.request("POST", "/invocations", body, forwarded, INVOCATION_SECONDS)
        except TimeoutError:
            message = (
                "Your invocation timed out while waiting for a response from container primary. Review the latency metrics "
                "for each container in Amazon CloudWatch, resolve the issue, and try again."
            )
            return self._model_error(variant, 0, message)
        except OSError as error:
            return _error(503, "ServiceUnavailable", f"The container of endpoint {name} does not answer: {error}")
        if not 200 <= answer.status < 300:
            return self._model_error(variant, answer.status, answer.body.decode(errors="replace"))
        returned = {header.lower(): value for header, value in answer.headers.items()}
        shown = {
            "Content-Type": returned.get("content-type", "application/octet-stream"),
            "x-Amzn-Invoked-Production-Variant": variant.name,
        }
        if "x-amzn-sagemaker-custom-attributes" in returned:
            shown["X-Amzn-SageMaker-Custom-Attributes"] = returned["x-amzn-sagemaker-custom-attributes"]
        return Answer(200, answer.body, shown)

    def shutdown(self) -> None:
        """End every serving process."""
        with self._service.changed:
            fleets = list(self._fleets)
        stop_together(fleets, SHUTDOWN_GRACE_SECONDS)

    # ------------------------------------------------------------------ life of an endpoint

    def _new_fleet(self, endpoint: str, config_name: str) -> Fleet:
        config = self._registry.endpoint_config(config_name)
        variants = [
            Variant(self._service, self._store, self._registry, endpoint, variant)
            for variant in config["ProductionVariants"]
        ]
        return Fleet(config_name, variants)

    def _bring_into_service(self, endpoint: Endpoint, fleet: Fleet) -> None:
        """Start a fleet and move the traffic to it; what served before goes on if the new fleet does not come up."""
        failure: str | None = None
        try:
            fleet.start()
        except EndpointFailed as error:
            failure = str(error)
        except Exception as error:
            log.exception("endpoint %s", endpoint.arn)
            failure = f"InternalServerError: {type(error).__name__}: {error}"
        with self._service.changed:
            old = endpoint.fleet
            if failure is None:
                endpoint.fleet = fleet
                fields = {"EndpointStatus": "InService", "EndpointConfigName": fleet.config_name}
            else:
                # As SageMaker does: after a failed update the endpoint is InService, with its old configuration.
                fields = {"EndpointStatus": "InService" if old else "Failed", "FailureReason": failure[:1024]}
            endpoint.record.pop("PendingDeploymentSummary", None)
            self._set(endpoint, fields)
        self._emit(endpoint)
        if failure is None:
            for variant in fleet.variants:
                threading.Thread(target=self._watch, args=(endpoint, fleet, variant), daemon=True).start()
            if old is not None:
                self._retire(old)
        else:
            self._retire(fleet)

    def _watch(self, endpoint: Endpoint, fleet: Fleet, variant: Variant) -> None:
        """Restart a serving process that ends by itself, once; after the second end the endpoint is Failed."""
        reason = ""
        for restarts_left in (1, 0):
            assert variant.container is not None
            code = variant.container.wait()
            if variant.stopped.is_set():
                return
            reason = f"The primary container for production variant {variant.name} ended with exit code {code}"
            log.warning("%s: %s", endpoint.arn, reason)
            if restarts_left:
                try:
                    variant.restart()
                    variant.wait_until_healthy()
                except (EndpointFailed, ContainerError, identity.RoleError) as error:
                    reason = str(error)
                    break
        with self._service.changed:
            if variant.stopped.is_set() or endpoint.fleet is not fleet:
                return
            self._set(endpoint, {"EndpointStatus": "Failed", "FailureReason": reason[:1024]})
        self._emit(endpoint)

    def _delete(self, endpoint: Endpoint) -> None:
        if endpoint.fleet is not None:
            self._retire(endpoint.fleet)
        with self._service.changed:
            self._endpoints.pop(endpoint.name, None)
            self._service.tags.pop(endpoint.arn, None)
            self._service.changed.notify_all()

    def _retire(self, fleet: Fleet) -> None:
        fleet.stop(STOP_GRACE_SECONDS)
        with self._service.changed:
            self._fleets.discard(fleet)

    def _find(self, name: str) -> Endpoint:
        with self._service.changed:
            if name not in self._endpoints:
                raise ValidationException(f'Could not find endpoint "{self._service.arn("endpoint/" + name)}".')
            return self._endpoints[name]

    def _refuse_in_progress(self, endpoint: Endpoint) -> None:
        if endpoint.status not in ("InService", "Failed"):
            raise ValidationException(
                f'Cannot update in-progress endpoint "{endpoint.arn}": its status is {endpoint.status}.'
            )

    def _set(self, endpoint: Endpoint, fields: dict[str, Any]) -> None:
        with self._service.changed:
            endpoint.record.update({**fields, "LastModifiedTime": now()})
            self._service.changed.notify_all()

    def _emit(self, endpoint: Endpoint) -> None:
        with self._service.changed:
            record = copy.deepcopy(endpoint.record)
        # The events spell the status in capitals: IN_SERVICE.
        record["EndpointStatus"] = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", record["EndpointStatus"]).upper()
        self._service.emit("SageMaker Endpoint State Change", record, endpoint.arn)

    def _model_error(self, variant: Variant, status: int, text: str) -> Answer:
        settings = self._service.settings
        kind = "client" if 400 <= status < 500 else "server"
        message = (
            f'Received {kind} error ({status}) from primary with message "{text}". '
            f"See log stream {variant.log_stream_arn} in account {settings.account} for more information."
        )
        details = {"OriginalStatusCode": status, "OriginalMessage": text, "LogStreamArn": variant.log_stream_arn}
        return _error(424, "ModelError", message, details)


def _error(status: int, code: str, message: str, details: dict[str, Any] | None = None) -> Answer:
    body = json.dumps({"message": message, "Message": message, **(details or {})}).encode()
    return Answer(status, body, {"Content-Type": "application/json", "x-amzn-errortype": code})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
