"""CloudWatch's data points, where alarms find them quickly; and the metrics that endpoints publish.

moto keeps every data point in one list, which answers GetMetricStatistics. Here the same points are kept by metric, with
the single values of endpoint requests, which percentiles need.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moto.cloudwatch.models import CloudWatchBackend, MetricAggregatedDatum, cloudwatch_backends
from moto.cloudwatch.responses import CloudWatchResponse
from moto.core.responses import ActionResult

from local_aws.endpoint_router import Invocation
from local_aws.settings import Settings

MOST_POINTS = 100_000  # of one metric, the newest
FLUSH_SECONDS = 0.1
NAMESPACE = "AWS/SageMaker"

Key = tuple[str, str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Point:
    """A value at a time (seconds since 1970), or what is known of several values."""

    time: float
    total: float
    count: float
    least: float
    most: float


def statistic(points: list[Point], name: str) -> float | None:
    """A CloudWatch statistic such as Sum or p95 (linear between the nearest values) of points, or None without any."""
    count = sum(point.count for point in points)
    if not count:
        return None
    if name == "Sum":
        return sum(point.total for point in points)
    if name == "SampleCount":
        return count
    if name == "Average":
        return sum(point.total for point in points) / count
    if name == "Minimum":
        return min(point.least for point in points)
    if name == "Maximum":
        return max(point.most for point in points)
    if not name.startswith("p"):
        raise ValueError(
            f"the statistic {name} is not implemented; Sum, SampleCount, Average, Minimum, Maximum and pN are"
        )
    values = sorted(point.total / point.count for point in points)
    place = float(name[1:]) / 100 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


class Metrics:
    """All data points of this server, by metric."""

    def __init__(self) -> None:
        self._series: dict[Key, deque[Point]] = defaultdict(lambda: deque(maxlen=MOST_POINTS))
        self._lock = threading.Lock()

    def add(self, namespace: str, name: str, dimensions: Mapping[str, str], points: Iterable[Point]) -> None:
        with self._lock:
            self._series[namespace, name, frozenset(dimensions.items())].extend(points)

    def known(self, namespace: str, name: str, dimensions: Mapping[str, str]) -> bool:
        with self._lock:
            return (namespace, name, frozenset(dimensions.items())) in self._series

    def between(
        self, namespace: str, name: str, dimensions: Mapping[str, str], start: float, edges: list[float]
    ) -> list[list[Point]]:
        """Points after `start`, parted at the rising `edges`: one list up to each edge."""
        with self._lock:
            series = self._series.get((namespace, name, frozenset(dimensions.items())), deque())
            recent = []
            for point in reversed(series):
                if point.time <= start:
                    break
                recent.append(point)
        parts: list[list[Point]] = [[] for _ in edges]
        for point in recent:
            for part, edge in zip(parts, edges, strict=True):
                if point.time <= edge:
                    part.append(point)
                    break
        return parts


metrics = Metrics()


def install() -> None:
    """Let every PutMetricData of this server be found here too, and GetMetricStatistics answer from here.

    moto's own answer takes a metric with more dimensions for one with fewer, and knows no percentiles.
    """
    original = CloudWatchBackend.put_metric_data

    def put(self: Any, namespace: str, metric_data: list[dict[str, Any]]) -> None:
        original(self, namespace, metric_data)
        for datum in metric_data:
            dimensions = {dimension["Name"]: dimension["Value"] for dimension in datum.get("Dimensions", ())}
            metrics.add(namespace, datum["MetricName"], dimensions, _points(datum))

    CloudWatchBackend.put_metric_data = put
    moto_answer = CloudWatchResponse.get_metric_statistics

    def get(self: Any) -> Any:
        namespace, name = self._get_param("Namespace"), self._get_param("MetricName")
        dimensions = {dimension["Name"]: dimension["Value"] for dimension in self._get_param("Dimensions", [])}
        if not metrics.known(namespace, name, dimensions):
            return moto_answer(self)
        plain, extended = self._get_param("Statistics", []), self._get_param("ExtendedStatistics", [])
        start, end = _seconds(self._get_param("StartTime")), _seconds(self._get_param("EndTime"))
        period = self._get_int_param("Period")
        edges = [start + period * number for number in range(1, math.ceil((end - start) / period) + 1)]
        answer = []
        for edge, points in zip(edges, metrics.between(namespace, name, dimensions, start, edges), strict=True):
            if points:
                datapoint: dict[str, Any] = {
                    "Timestamp": datetime.fromtimestamp(edge - period, UTC),
                    "Unit": _unit(name),
                }
                datapoint |= {one: statistic(points, one) for one in plain}
                if extended:
                    datapoint["ExtendedStatistics"] = {one: statistic(points, one) for one in extended}
                answer.append(datapoint)
        return ActionResult({"Label": name, "Datapoints": answer})

    CloudWatchResponse.get_metric_statistics = get


def _unit(metric: str) -> str:
    return "Microseconds" if metric.endswith("Latency") else "None"


def _points(datum: dict[str, Any]) -> list[Point]:
    moment = _seconds(datum.get("Timestamp"))
    if datum.get("StatisticValues"):
        numbers = {name: float(value) for name, value in datum["StatisticValues"].items()}
        return [Point(moment, numbers["Sum"], numbers["SampleCount"], numbers["Minimum"], numbers["Maximum"])]
    if datum.get("Values"):
        values = [float(value) for value in datum["Values"]]
        counts = [float(count) for count in datum.get("Counts") or [1] * len(values)]
        pairs = zip(values, counts, strict=True)
        return [Point(moment, value * count, count, value, value) for value, count in pairs]
    value = float(datum.get("Value", 0))
    return [Point(moment, value, 1, value, value)]


def _seconds(timestamp: Any) -> float:
    if timestamp is None:
        return time.time()
    if isinstance(timestamp, str):
        timestamp = datetime.fromisoformat(timestamp)
    return float((timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)).timestamp())


class EndpointMetrics:
    """Publishes what SageMaker publishes of a request: counts, errors by kind, latencies in microseconds.

    Dimensions are EndpointName and VariantName, the same with EndpointConfigName (by which an alarm can watch the new
    fleet of a deployment alone), and InferenceComponentName where one was asked.
    """

    def __init__(self, settings: Settings) -> None:
        self._backend = cloudwatch_backends[settings.account][settings.region]
        self._lock = threading.Lock()
        self._fresh: dict[tuple[str, str, frozenset[tuple[str, str]]], list[Point]] = defaultdict(list)
        threading.Thread(target=self._run, name="endpoint-metrics", daemon=True).start()

    def record(self, invocation: Invocation) -> None:
        """To be told of every request."""
        status = invocation.status
        values = {
            "Invocations": 1.0,
            "Invocation4XXErrors": float(400 <= status < 500),
            "Invocation5XXErrors": float(status >= 500 or status == 0),  # 0: no answer is the server's fault
            "InvocationModelErrors": float(not 200 <= status < 300),
            "ModelLatency": invocation.model_seconds * 1e6,
            "OverheadLatency": max(0.0, invocation.total_seconds - invocation.model_seconds) * 1e6,
        }
        variant = {"EndpointName": invocation.endpoint, "VariantName": invocation.variant}
        kinds = [(NAMESPACE, variant), (NAMESPACE, {**variant, "EndpointConfigName": invocation.config_name})]
        if invocation.component:
            kinds.append((NAMESPACE, {"InferenceComponentName": invocation.component}))
        with self._lock:
            moment = time.time()  # within the lock: nothing that comes after a flush is dated before it
            for namespace, dimensions in kinds:
                for name, value in values.items():
                    point = Point(moment, value, 1, value, value)
                    self._fresh[namespace, name, frozenset(dimensions.items())].append(point)

    def count(self, name: str, dimensions: dict[str, str]) -> None:
        """Publish a 1 of another metric."""
        with self._lock:
            self._fresh[NAMESPACE, name, frozenset(dimensions.items())].append(Point(time.time(), 1, 1, 1, 1))

    def flush(self) -> None:
        """Publish what has come since the last time."""
        with self._lock:
            fresh, self._fresh = self._fresh, defaultdict(list)
        for (namespace, name, dimensions), points in fresh.items():
            metrics.add(namespace, name, dict(dimensions), points)
            self._backend_put(namespace, name, dict(dimensions), points)

    def _backend_put(self, namespace: str, name: str, dimensions: dict[str, str], points: list[Point]) -> None:
        values = [point.total for point in points]
        self._backend.metric_data.append(
            MetricAggregatedDatum(
                namespace,
                name,
                min(values),
                max(values),
                len(values),
                sum(values),
                [{"Name": key, "Value": value} for key, value in sorted(dimensions.items())],
                None,
                _unit(name),
            )
        )

    def _run(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            self.flush()
