"""One serving container: a process with the container contract that answers /ping and /invocations.

It plays one instance of a production variant, or one copy of an inference component.
"""

import contextlib
import http.client
import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_aws import identity, networks, role_use
from local_aws.authorization import ADMINISTRATOR, Caller
from local_aws.containers import Container, ContainerError, ContainerSpec, LogStream, image_folder
from local_aws.faults import Faults
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.request_actions import Place
from local_aws.sagemaker_api import PRINCIPAL, Service, random_id

log = logging.getLogger(__name__)

# What an image's own entrypoint does when SageMaker starts it with `serve`. Any other image brings a program `serve`.
SERVING_MODULES = {"djl-inference": "local_aws.lmi"}
PACKAGE = Path(__file__).parent
PORT_BRIDGE = Path(__file__).with_name("port_bridge.py")
STARTUP_POLL_SECONDS = 0.1
LEAST_STARTUP_SECONDS = 120.0  # a model loads no faster because waits do
# SageMaker asks /ping every 5 s and gives each request 2 s; what fails that often in a row is replaced.
PING_INTERVAL_SECONDS = 5.0
PING_TIMEOUT_SECONDS = 2.0
PINGS_TO_REPLACE = 3
RESTART_PAUSE_SECONDS = 1.0  # doubled with each restart that fails
LONGEST_PAUSE_SECONDS = 30.0
DRAIN_SECONDS = 120.0  # for requests that are under way when the traffic has moved on
CHUNK_BYTES = 65536
ADAPTER_SECONDS = 60.0


class EndpointFailed(Exception):
    """A container could not be brought into service; the text is the endpoint's FailureReason."""


class NotSent(OSError):
    """There is nobody to send the request to: it has not reached a container, and may be sent to another one."""


@dataclass(frozen=True)
class Answer:
    """A whole answer: the HTTP status, the body, and headers by name."""

    status: int
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Served:
    """What a serving process is made of: a container definition of a model, and who asks for it."""

    endpoint: str
    name: str  # production variant or inference component
    definition: dict[str, Any]  # Image, Environment, and where the model's files are
    role: str
    isolated: bool
    startup_seconds: float
    what: str = "production variant"
    vpc: dict[str, Any] | None = None  # VpcConfig of the model

    @property
    def image(self) -> str:
        return str(self.definition["Image"])


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


class ServingProcess:
    """A container that serves. `start` brings it up; from then on it is watched and replaced when it fails."""

    def __init__(self, service: Service, store: ObjectStore, served: Served) -> None:
        self.served = served
        self._service, self._store = service, store
        self._folder = service.settings.root / "endpoints" / random_id(12)
        self._log_file = service.settings.root / "logs" / "Endpoints" / served.endpoint / f"{served.name}.log"
        self._log_group = f"/aws/sagemaker/Endpoints/{served.endpoint}"
        self._log_stream = f"{served.name}/i-{random_id(17)}"
        self._port = free_port()
        self._faults = Faults.of(served.definition.get("Environment", {}))
        self._container: Container | None = None
        self._stopped = threading.Event()
        self._idle = threading.Condition()
        self._under_way = 0
        self.adapters: dict[str, str] = {}  # name -> URI of its archive
        self.healthy = False
        self.came_up = False

    @property
    def _caller(self) -> Caller:
        """The model as who calls: its role; a model without one has nothing that needs it."""
        if not self.served.role:
            return ADMINISTRATOR
        return Caller(self.served.role, self.served.endpoint, networks.subnets_of(self.served.vpc))

    def _use_role(self) -> None:
        """What SageMaker does with the model's role before its container starts. Raises RoleUseDenied."""
        place = Place(self._service.settings.region, self._service.settings.account)
        logs = role_use.of_logs(place, self._log_group, [self._log_stream])
        network = role_use.of_network(place, self.served.vpc)
        role_use.require(self._caller, [*network, *role_use.of_image(self.served.image), *logs])

    @property
    def log_stream_arn(self) -> str:
        settings = self._service.settings
        return (
            f"arn:aws:logs:{settings.region}:{settings.account}:log-group:{self._log_group}"
            f":log-stream:{self._log_stream}"
        )

    @property
    def under_way(self) -> int:
        """Requests that are being answered."""
        return self._under_way

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the container that runs now."""
        container = self._container
        return container.cpu_seconds if container is not None else 0.0

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Get the model's files, start the process, wait until it is healthy. Raises EndpointFailed."""
        try:
            image_folder(self.served.image, self._service.settings.images)  # an unknown image fails before the copy
            self._use_role()
            self._store.download_model(self.served.definition, self._folder / "ml" / "model", caller=self._caller)
            self._start_container()
        except (ContainerError, ObjectStoreError, identity.RoleError, role_use.RoleUseDenied) as error:
            raise EndpointFailed(str(error)) from None
        self._wait_until_healthy()
        for name, uri in self.adapters.items():
            self.add_adapter(name, uri)
        self.healthy = self.came_up = True
        threading.Thread(target=self._watch, name=f"watch-{self.served.name}", daemon=True).start()

    def add_adapter(self, name: str, uri: str) -> None:
        """Put a LoRA adapter's files into the container and have it loaded. Raises EndpointFailed."""
        self.adapters[name] = uri
        folder = self._folder / "ml" / "adapters" / name
        try:
            self._store.download_model({"ModelDataUrl": uri}, folder, caller=self._caller)
            body = json.dumps({"name": name, "src": f"/opt/ml/adapters/{name}"}).encode()
            with self._exchange("POST", "/adapters", body, {}, ADAPTER_SECONDS) as response:
                text = response.read().decode(errors="replace")
                if response.status != 200:
                    raise EndpointFailed(f"The container refused the adapter of {name} ({response.status}): {text}")
        except (OSError, ObjectStoreError, identity.RoleError) as error:
            raise EndpointFailed(f"The adapter of {name} could not be loaded: {error}") from None

    def remove_adapter(self, name: str) -> None:
        """Have the container forget an adapter."""
        self.adapters.pop(name, None)
        with (
            contextlib.suppress(OSError),
            self._exchange("DELETE", f"/adapters/{name}", b"", {}, ADAPTER_SECONDS) as gone,
        ):
            gone.read()
        shutil.rmtree(self._folder / "ml" / "adapters" / name, ignore_errors=True)

    def stop(self, grace: float) -> None:
        """End the process at once and remove its files."""
        with self._service.changed:
            self._stopped.set()
            container = self._container
        self.healthy = False
        if container is not None:
            container.stop(grace)
        shutil.rmtree(self._folder, ignore_errors=True)

    def drain_and_stop(self, grace: float) -> None:
        """Let the requests that are under way end, then stop. Nobody may send new ones."""
        with self._idle:
            self._idle.wait_for(lambda: self._under_way == 0, DRAIN_SECONDS)
        self.stop(grace)

    def _start_container(self) -> None:
        settings = self._service.settings
        repository = self.served.image.rsplit("/", 1)[-1].split("@")[0].split(":")[0]
        module = SERVING_MODULES.get(repository)
        command = ["python3", "-m", module] if module else ["serve"]
        visible = [PACKAGE] if module else []
        environment = {
            **({"PYTHONPATH": str(PACKAGE.parent)} if module else {}),
            "SAGEMAKER_BIND_TO_PORT": str(self._port),
            "SAGEMAKER_SAFE_PORT_RANGE": f"{self._port}-{self._port}",
            "AWS_REGION": settings.region,
            "AWS_DEFAULT_REGION": settings.region,
        }
        if self.served.isolated:
            # The interpreter itself and not its link in a virtual environment, which may lie where the container cannot see.
            python = str(Path(sys.executable).resolve())
            command = [python, "-I", "-S", str(PORT_BRIDGE), "/opt/ml/port", str(self._port), "--", *command]
            visible = [PACKAGE, Path(sys.base_prefix)]
        elif self.served.role:
            environment |= {
                "AWS_ENDPOINT_URL": settings.url,
                **identity.assume(self.served.role, PRINCIPAL, self.served.endpoint, self._caller.subnets),
            }
        stream = LogStream(self._log_group, self._log_stream, settings.account, settings.region)
        spec = ContainerSpec(
            image=image_folder(self.served.image, settings.images),
            command=self._faults.command(command),
            folder=self._folder / "ml",
            environment=environment | self.served.definition.get("Environment", {}),
            output=self._log_file,
            isolated=self.served.isolated,
            on_lines=stream.write,
            visible=visible,
            hidden=settings.hidden,
        )
        with self._service.changed:
            if self._stopped.is_set():
                raise EndpointFailed("The endpoint was deleted")
            self._container = Container(spec)
        self._faults.started(self._container)

    def _wait_until_healthy(self) -> None:
        container = self._container
        assert container is not None
        limit = self.served.startup_seconds / self._service.settings.time_factor
        if self._faults.answers_ping:  # a start takes as long as it takes; only what never comes is given up early
            limit = max(limit, min(self.served.startup_seconds, LEAST_STARTUP_SECONDS))
        deadline = time.monotonic() + limit
        while container.running and time.monotonic() < deadline and not self._stopped.is_set():
            if self._ping():
                return
            time.sleep(STARTUP_POLL_SECONDS)
        ended = (
            ""
            if container.running
            else f" The container ended with exit code {container.wait()}; last line: {self._last_line()}"
        )
        raise EndpointFailed(
            f"The primary container for {self.served.what} {self.served.name} did not pass the ping health check. "
            f"Please check CloudWatch logs for this endpoint.{ended}"
        )

    def _watch(self) -> None:
        """Replace the container whenever it ends by itself or stops answering /ping, for as long as it is wanted."""
        pause = RESTART_PAUSE_SECONDS
        while not self._stopped.is_set():
            reason = self._until_it_fails()
            self.healthy = False
            if self._stopped.is_set():
                return
            log.warning("%s of endpoint %s: %s; replacing it", self.served.name, self.served.endpoint, reason)
            assert self._container is not None
            self._container.kill()
            self._container.wait()
            try:
                self._start_container()
                self._wait_until_healthy()
                for name, uri in self.adapters.items():
                    self.add_adapter(name, uri)
                self.healthy, pause = True, RESTART_PAUSE_SECONDS
            except (EndpointFailed, ContainerError, identity.RoleError) as error:
                log.warning("%s of endpoint %s: %s", self.served.name, self.served.endpoint, error)
                self._stopped.wait(pause / self._service.settings.time_factor)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _until_it_fails(self) -> str:
        container = self._container
        assert container is not None
        failed, next_ping = 0, time.monotonic() + PING_INTERVAL_SECONDS
        while container.running and not self._stopped.wait(0.1):
            if time.monotonic() < next_ping:
                continue
            failed = 0 if self._ping() else failed + 1
            if failed == PINGS_TO_REPLACE:
                return f"it did not answer /ping {failed} times"
            next_ping = time.monotonic() + PING_INTERVAL_SECONDS
        return "" if container.running else f"its container ended with exit code {container.wait()}"

    def _ping(self) -> bool:
        if not self._faults.answers_ping:
            return False
        try:
            with self._exchange("GET", "/ping", b"", {}, PING_TIMEOUT_SECONDS) as response:
                response.read()
                return response.status == 200
        except OSError:
            return False  # not listening yet, or no more

    def _last_line(self) -> str:
        lines = self._log_file.read_text(errors="replace").strip().splitlines() if self._log_file.exists() else []
        return lines[-1] if lines else "(none)"

    # ------------------------------------------------------------------ requests

    def begin(self) -> None:
        """Count a request that will be sent; it holds off drain_and_stop until `end`."""
        with self._idle:
            self._under_way += 1

    def end(self) -> None:
        with self._idle:
            self._under_way -= 1
            if not self._under_way:
                self._idle.notify_all()

    def invoke(self, body: bytes, headers: dict[str, str], timeout: float) -> Answer:
        """POST to /invocations. Raises NotSent, TimeoutError, or another OSError if there is no answer."""
        if (fault := self._faults.answer()) is not None:
            return Answer(500, fault.encode(), {"Content-Type": "text/plain"})
        with self._exchange("POST", "/invocations", body, headers, timeout) as response:
            return Answer(response.status, response.read(), dict(response.headers.items()))

    @contextlib.contextmanager
    def stream(self, body: bytes, headers: dict[str, str], timeout: float) -> Iterator["Stream"]:
        """The same, with the body in the pieces in which it comes."""
        if (fault := self._faults.answer()) is not None:
            yield Stream(500, {"Content-Type": "text/plain"}, iter([fault.encode()]))
            return
        with self._exchange("POST", "/invocations", body, headers, timeout) as response:
            yield Stream(response.status, dict(response.headers.items()), _pieces(response))

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str], timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection: http.client.HTTPConnection
        if self.served.isolated:
            connection = _BridgedConnection(self._folder / "ml" / "port", timeout)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise NotSent(str(error)) from error
            try:
                connection.request(method, path, body=body, headers=headers)
                yield connection.getresponse()
            except http.client.HTTPException as error:
                raise ConnectionError(str(error) or type(error).__name__) from error
        finally:
            connection.close()


@dataclass(frozen=True)
class Stream:
    """An answer whose body comes in pieces."""

    status: int
    headers: dict[str, str]
    pieces: Iterator[bytes]


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read1(CHUNK_BYTES):
            yield piece
    except http.client.HTTPException as error:  # it ended before its end
        raise ConnectionError(str(error) or type(error).__name__) from error


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
