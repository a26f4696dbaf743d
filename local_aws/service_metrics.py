"""Metrics that services publish by themselves, once a minute: how long queues are, and how busy instances are."""

import logging
import threading
import time

from moto.sqs.models import sqs_backends

from local_aws.endpoint_router import Endpoint
from local_aws.endpoints import Endpoints
from local_aws.fleets import Variant
from local_aws.metrics import Point, metrics
from local_aws.settings import Settings

log = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
LEAST_PERIOD_SECONDS = 0.5
HOSTS = "/aws/sagemaker/Endpoints"


def install(settings: Settings, endpoints: Endpoints) -> None:
    ServiceMetrics(settings, endpoints)


class ServiceMetrics:
    def __init__(self, settings: Settings, endpoints: Endpoints) -> None:
        self._settings, self._endpoints = settings, endpoints
        self._period = max(LEAST_PERIOD_SECONDS, PERIOD_SECONDS / settings.time_factor)
        self._cpu_seconds: dict[tuple[str, str], tuple[float, float]] = {}  # of a variant -> (when, CPU time so far)
        threading.Thread(target=self._run, name="service-metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(self._period)
            try:
                self._publish_queues()
                for endpoint in self._endpoints.serving():
                    self._publish_hosts(endpoint)
            except Exception:  # what one look could not see, the next one may
                log.exception("metrics of services")

    def _publish_queues(self) -> None:
        backend = sqs_backends[self._settings.account][self._settings.region]
        for name, queue in list(backend.queues.items()):
            waiting = queue.approximate_number_of_messages
            _publish("AWS/SQS", "ApproximateNumberOfMessagesVisible", {"QueueName": name}, waiting)

    def _publish_hosts(self, endpoint: Endpoint) -> None:
        """CPUUtilization of a variant's instances: 100 is one core, on all of them together as on one."""
        for variant in endpoint.fleet.variants if endpoint.fleet else []:
            if not variant.count:
                continue
            key, now, used = (endpoint.name, variant.name), time.monotonic(), _cpu_seconds(endpoint, variant)
            before, used_before = self._cpu_seconds.get(key, (now, used))
            self._cpu_seconds[key] = now, used
            if now > before:
                percent = 100 * max(0.0, used - used_before) / (now - before) / variant.count
                dimensions = {"EndpointName": endpoint.name, "VariantName": variant.name}
                _publish(HOSTS, "CPUUtilization", dimensions, percent)


def _cpu_seconds(endpoint: Endpoint, variant: Variant) -> float:
    fleets = [one.fleet for one in list(endpoint.components.values()) if one.fleet]
    at_work = [variant] if variant.served else [one for fleet in fleets for one in fleet.variants]
    return sum(process.cpu_seconds for one in at_work for process in one.replicas.processes)


def _publish(namespace: str, name: str, dimensions: dict[str, str], value: float) -> None:
    metrics.add(namespace, name, dimensions, [Point(time.time(), value, 1, value, value)])
