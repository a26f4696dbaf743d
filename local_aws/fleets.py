"""Fleets: the serving processes of an endpoint configuration's variants, and how many of them there are."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from local_aws.containers import stop_together
from local_aws.faults import FaultError, Faults
from local_aws.object_store import ObjectStore
from local_aws.registry import Registry
from local_aws.sagemaker_api import Service, ValidationException, now
from local_aws.serving_process import EndpointFailed, Served, ServingProcess

MOST_INSTANCES = 8  # processes that share this machine
DEFAULT_STARTUP_SECONDS = 480
STOP_GRACE_SECONDS = 30.0


class Replicas:
    """Equal serving processes that share the requests; what a variant and an inference component are made of."""

    def __init__(self, make: Callable[[], ServingProcess]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._processes: tuple[ServingProcess, ...] = ()
        self._retired = False
        self.adapters: dict[str, str] = {}  # name -> URI of its archive; each process has them all

    @property
    def count(self) -> int:
        return len(self._processes)

    @property
    def in_service(self) -> int:
        """Processes that have come up, whether or not they are well now."""
        return sum(process.came_up for process in self._processes)

    @property
    def processes(self) -> Sequence[ServingProcess]:
        return self._processes

    def begin(self, exclude: Iterable[ServingProcess] = ()) -> ServingProcess | None:
        """The healthy process with the fewest requests under way, which now has one more; None without a healthy one."""
        with self._lock:
            healthy = [process for process in self._processes if process.healthy and process not in exclude]
            if not healthy:
                return None
            chosen = min(healthy, key=lambda process: process.under_way)
            chosen.begin()
            return chosen

    def scale_to(self, count: int) -> None:
        """Start what is missing, or let what is too many finish its requests and stop. Raises EndpointFailed."""
        missing = count - self.count
        if missing > 0:
            started = [self._make() for _ in range(missing)]
            for process in started:
                process.adapters.update(self.adapters)
            with self._lock:
                if self._retired:
                    raise EndpointFailed("The endpoint was deleted")
                self._processes = (*self._processes, *started)  # seen by stop(), not yet healthy
            try:
                with ThreadPoolExecutor(missing) as pool:
                    list(pool.map(lambda process: process.start(), started))
            except EndpointFailed:
                self._remove(started)
                raise
        elif missing < 0:
            self._remove(self._processes[count:])

    def _remove(self, processes: Sequence[ServingProcess]) -> None:
        with self._lock:  # from here on nobody begins a request on them
            self._processes = tuple(process for process in self._processes if process not in processes)
        drain(processes)

    def add_adapter(self, name: str, uri: str) -> None:
        """Load an adapter into every process, now and when it is started again. Raises EndpointFailed."""
        self.adapters[name] = uri
        for process in self._processes:
            process.add_adapter(name, uri)

    def remove_adapter(self, name: str) -> None:
        self.adapters.pop(name, None)
        for process in self._processes:
            process.remove_adapter(name)

    def retire(self) -> None:
        """Let all finish their requests and stop; no request may begin any more."""
        with self._lock:
            self._retired = True
            processes, self._processes = self._processes, ()
        drain(processes)

    def stop(self, grace: float) -> None:
        """End all at once."""
        with self._lock:
            self._retired = True
            processes = self._processes
        stop_together(processes, grace)


def drain(processes: Sequence[ServingProcess]) -> None:
    """Let all finish their requests at the same time, and stop them."""
    threads = [threading.Thread(target=process.drain_and_stop, args=(STOP_GRACE_SECONDS,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Variant:
    """A production variant: a model, its processes (one an instance) and its share of the traffic.

    A variant without a model holds inference components and has no processes of its own.
    """

    def __init__(self, service: Service, store: ObjectStore, definition: dict[str, Any], served: Served | None) -> None:
        self.definition = definition
        self.name = str(definition["VariantName"])
        self.weight = self.desired_weight = float(definition.get("InitialVariantWeight", 1.0))
        self.desired_count = int(definition.get("InitialInstanceCount", 1))
        check_count(self.name, self.desired_count)
        self.status: dict[str, Any] | None = None  # VariantStatus of a deployment, while it goes on
        self.served = served
        if served is not None:
            try:
                Faults.of(served.definition.get("Environment", {}))
            except FaultError as error:
                raise ValidationException(str(error)) from None

        def make() -> ServingProcess:
            assert served is not None, "a variant without a model has no processes"
            return ServingProcess(service, store, served)

        self.replicas = Replicas(make)
        self._hosts = 0  # instances that only hold inference components

    @property
    def count(self) -> int:
        """Instances in service."""
        return self.replicas.count if self.served else self._hosts

    def scale_to(self, count: int) -> None:
        """Bring `count` instances into service. Raises EndpointFailed."""
        if self.served:
            self.replicas.scale_to(count)
        else:
            self._hosts = count

    def summary(self) -> dict[str, Any]:
        """The variant as DescribeEndpoint shows it."""
        image = {"SpecifiedImage": self.served.image, "ResolvedImage": self.served.image} if self.served else None
        shown: dict[str, Any] = {
            name: self.definition[name]
            for name in ("ManagedInstanceScaling", "RoutingConfig")
            if name in self.definition
        }
        return {
            "VariantName": self.name,
            **({"DeployedImages": [image]} if image else {}),
            "CurrentWeight": self.weight,
            "DesiredWeight": self.desired_weight,
            "CurrentInstanceCount": self.count,
            "DesiredInstanceCount": self.desired_count,
            **({"VariantStatus": [self.status]} if self.status else {}),
            **shown,
        }


def production_variant(
    service: Service, store: ObjectStore, registry: Registry, endpoint: str, definition: dict[str, Any]
) -> Variant:
    """The variant of an endpoint configuration. Raises ValidationException."""
    served = None
    if "ModelName" in definition:
        model = registry.model(definition["ModelName"])
        served = Served(
            endpoint=endpoint,
            name=str(definition["VariantName"]),
            definition=registry.container(model),
            role=model.get("ExecutionRoleArn", ""),
            isolated=bool(model.get("EnableNetworkIsolation", False)),
            vpc=model.get("VpcConfig"),
            startup_seconds=float(
                definition.get("ContainerStartupHealthCheckTimeoutInSeconds", DEFAULT_STARTUP_SECONDS)
            ),
        )
    return Variant(service, store, definition, served)


def check_count(variant: str, count: int) -> None:
    """Raise ValidationException for more instances than local AWS starts."""
    if count > MOST_INSTANCES:
        raise ValidationException(
            f"variant {variant} asks for {count} instances; local AWS starts a process for each and at most {MOST_INSTANCES}"
        )


class Fleet:
    """The variants of one endpoint configuration, as one deployment brings them up."""

    def __init__(self, config_name: str, variants: list[Variant]) -> None:
        self.config_name = config_name
        self.variants = variants
        self.created = now()

    def start(self) -> None:
        """Bring every variant to the count that is asked for, together. Raises EndpointFailed if one does not come up."""
        self.scale([(variant, variant.desired_count) for variant in self.variants])

    def scale(self, counts: Sequence[tuple[Variant, int]]) -> None:
        """Bring variants to these counts, all at the same time. Raises EndpointFailed with the first that fails."""
        with ThreadPoolExecutor(max(1, len(counts))) as pool:
            list(pool.map(lambda pair: pair[0].scale_to(pair[1]), counts))

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

    def retire(self) -> None:
        """Let the requests that are under way end, then stop every process. The traffic has moved on before."""
        threads = [threading.Thread(target=variant.replicas.retire) for variant in self.variants]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self, grace: float) -> None:
        """End every process at once."""
        stop_together([variant.replicas for variant in self.variants], grace)
