"""UpdateEndpoint's deployments: a new fleet beside the old one, traffic shifted in steps, alarms watched, rollback.

Waits are divided by the time factor of local AWS (settings.py); what a wait counts for the deployment's time limit is
the value of the request.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from local_aws.endpoint_router import Component, Endpoint
from local_aws.fleets import Fleet, Variant
from local_aws.sagemaker_api import Service, ValidationException, now
from local_aws.serving_process import EndpointFailed

log = logging.getLogger(__name__)

DEFAULT_LIMIT_SECONDS = 3600
WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class Plan:
    """A checked DeploymentConfig. `shares` of the traffic that the new fleet gets, one a step; the last is 1."""

    shares: tuple[float, ...]
    bake_seconds: float
    termination_seconds: float
    limit_seconds: float
    alarms: tuple[str, ...]
    rolling: bool = False
    rollback_batch: tuple[str, int] = ("CAPACITY_PERCENT", 100)  # a CapacitySize


ALL_AT_ONCE = Plan((1.0,), 0, 0, DEFAULT_LIMIT_SECONDS, ())


def read(config: dict[str, Any] | None, instances: int) -> Plan:
    """The plan of a DeploymentConfig for a fleet whose smallest variant has that many instances.

    Raises ValidationException with every problem.
    """
    if config is None:
        return ALL_AT_ONCE
    blue_green, rolling = config.get("BlueGreenUpdatePolicy"), config.get("RollingUpdatePolicy")
    alarms = tuple(alarm["AlarmName"] for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", []))
    problems: list[str] = []
    if blue_green is not None and rolling is not None:
        problems.append("DeploymentConfig has BlueGreenUpdatePolicy and RollingUpdatePolicy; only one may be given")
    if rolling is not None:
        plan = _rolling(rolling, instances, alarms, problems)
    elif blue_green is not None:
        plan = _blue_green(blue_green, instances, alarms, problems)
    else:
        plan = Plan((1.0,), 0, 0, DEFAULT_LIMIT_SECONDS, alarms)
    waits = plan.termination_seconds + plan.bake_seconds * len(plan.shares)
    if waits >= plan.limit_seconds:
        problems.append(
            f"MaximumExecutionTimeoutInSeconds is {plan.limit_seconds:g}, and the waits alone take {waits:g} s; "
            "it must be larger than them"
        )
    if problems:
        raise ValidationException("; ".join(problems))
    return plan


def _blue_green(policy: dict[str, Any], instances: int, alarms: tuple[str, ...], problems: list[str]) -> Plan:
    routing = policy["TrafficRoutingConfiguration"]
    kind = routing["Type"]
    needs = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}.get(kind)
    for size in ("CanarySize", "LinearStepSize"):
        if size in routing and size != needs:
            problems.append(f"{size} does not belong to TrafficRoutingConfiguration.Type {kind}")
    shares: tuple[float, ...] = (1.0,)
    if needs is not None and needs not in routing:
        problems.append(f"TrafficRoutingConfiguration.Type {kind} needs {needs}")
    elif needs is not None:
        least = 0.1 if kind == "LINEAR" else 0.0
        share = _share(routing[needs], instances, needs, least, problems)
        steps = [share] if kind == "CANARY" else [share * step for step in range(1, int(1 / share + 1e-9) + 1)]
        shares = (*(step for step in steps if step < 1 - 1e-9), 1.0)
    return Plan(
        shares,
        routing["WaitIntervalInSeconds"],
        policy.get("TerminationWaitInSeconds", 0),
        policy.get("MaximumExecutionTimeoutInSeconds", DEFAULT_LIMIT_SECONDS),
        alarms,
    )


def _rolling(policy: dict[str, Any], instances: int, alarms: tuple[str, ...], problems: list[str]) -> Plan:
    size = policy["MaximumBatchSize"]
    _share(size, instances, "MaximumBatchSize", 0.05, problems)
    batch = _instances(size["Type"], size["Value"], instances)
    shares = tuple(min(1.0, done / instances) for done in range(batch, instances + batch, batch))
    back = policy.get("RollbackMaximumBatchSize", {"Type": "CAPACITY_PERCENT", "Value": 100})
    return Plan(
        shares,
        policy["WaitIntervalInSeconds"],
        0,
        policy.get("MaximumExecutionTimeoutInSeconds", DEFAULT_LIMIT_SECONDS),
        alarms,
        rolling=True,
        rollback_batch=(back["Type"], back["Value"]),
    )


def _share(size: dict[str, Any], instances: int, name: str, least: float, problems: list[str]) -> float:
    """A CapacitySize as a share of the fleet, from `least` to a half."""
    value = int(size["Value"])
    share = value / 100 if size["Type"] == "CAPACITY_PERCENT" else value / instances
    # One instance cannot be parted; it may change places with its successor.
    if not least <= share <= 0.5 and not (name == "MaximumBatchSize" and instances == 1):
        given = f"{value} %" if size["Type"] == "CAPACITY_PERCENT" else f"{value} of {instances} instances"
        problems.append(f"{name} is {given}, and must be {f'{least:.0%} to ' if least else 'at most '}50% of the fleet")
        return 0.5
    return share


def _instances(kind: str, value: int, total: int) -> int:
    """A CapacitySize in instances, at least one."""
    return max(1, min(total, value if kind == "INSTANCE_COUNT" else total * value // 100))


class RolledBack(Exception):
    """The deployment is taken back; the text is the endpoint's FailureReason."""


class Deployment:
    """One update of an endpoint. `run` returns when it is complete, or raises RolledBack with the old fleet in service.

    `alarmed` gives those of some alarms that are in the state ALARM, evaluated anew if its second argument is true.
    """

    def __init__(
        self,
        service: Service,
        endpoint: Endpoint | Component,
        new: Fleet,
        plan: Plan,
        alarmed: Callable[[Sequence[str], bool], list[str]],
        stopping: threading.Event,
    ) -> None:
        assert endpoint.fleet is not None
        self._service, self._endpoint, self._old, self._new = service, endpoint, endpoint.fleet, new
        self._plan, self._alarmed, self._stopping = plan, alarmed, stopping
        self._spent = 0.0  # seconds, in AWS's time

    def run(self) -> None:
        try:
            if self._plan.rolling:
                self._roll()
            else:
                self._shift()
        except (EndpointFailed, RolledBack) as failure:
            try:
                self._take_back()
            except EndpointFailed as second:
                raise RolledBack(f"{failure}; and the old fleet could not be made whole again: {second}") from None
            raise RolledBack(str(failure)) from None

    # ------------------------------------------------------------------ blue/green

    def _shift(self) -> None:
        self._mark("Creating")
        self._timed(self._new.start)
        for share in self._plan.shares:
            self._mark("ActivatingTraffic", f"{share:.0%} of the traffic goes to the new fleet")
            self._route(share)
            self._bake()
        self._wait(self._plan.termination_seconds)

    # ------------------------------------------------------------------ rolling

    def _roll(self) -> None:
        for share in self._plan.shares:
            self._mark("Creating")
            counts = [(variant, _part(variant.desired_count, share)) for variant in self._new.variants]
            self._timed(lambda counts=counts: self._new.scale(counts))  # type: ignore[misc]
            self._mark("ActivatingTraffic", f"{share:.0%} of the traffic goes to the new fleet")
            self._route(share)
            self._bake()
            self._mark("Updating")
            self._old.scale(
                [
                    (variant, variant.desired_count - _part(variant.desired_count, share))
                    for variant in self._old.variants
                ]
            )

    def _take_back(self) -> None:
        """All traffic to the old fleet, whole again. Raises EndpointFailed if it cannot be made whole."""
        if any(
            variant.count for variant in self._old.variants
        ):  # at once, if with fewer instances: the new ones are bad
            self._endpoint.traffic.shift([(self._old, 1.0)])
        kind, value = self._plan.rollback_batch
        try:
            while missing := [variant for variant in self._old.variants if variant.count < variant.desired_count]:
                size = max(_instances(kind, value, variant.desired_count) for variant in missing)
                self._old.scale([(one, min(one.desired_count, one.count + size)) for one in missing])
        finally:
            self._endpoint.traffic.shift([(self._old, 1.0)])

    # ------------------------------------------------------------------ steps

    def _route(self, share: float) -> None:
        self._endpoint.traffic.shift([(self._old, 1.0 - share), (self._new, share)])
        log.info("%s: %.0f %% of the traffic to %s", self._endpoint.name, 100 * share, self._new.config_name)

    def _bake(self) -> None:
        self._mark("Baking", f"watching {len(self._plan.alarms)} alarms for {self._plan.bake_seconds:g} s")
        self._wait(self._plan.bake_seconds)

    def _wait(self, seconds: float) -> None:
        """Wait so many seconds of AWS's time, watching. Raises RolledBack."""
        deadline = time.monotonic() + seconds / self._service.settings.time_factor
        while True:
            if self._stopping.is_set():
                raise EndpointFailed("The endpoint was deleted")
            left = deadline - time.monotonic()
            if tripped := self._alarmed(self._plan.alarms, left <= 0):
                raise RolledBack(
                    f"The deployment was rolled back: {', '.join(tripped)} went into ALARM state "
                    f"while {self._new.config_name} was deployed"
                )
            if left <= 0:
                break
            time.sleep(min(left, WATCH_SECONDS))
        self._spend(seconds)
        for variant in self._new.variants:
            sick = sum(not process.healthy for process in variant.replicas.processes)
            if sick:
                raise RolledBack(
                    f"The deployment was rolled back: {sick} of {variant.count} instances of production variant "
                    f"{variant.name} of {self._new.config_name} do not pass the ping health check"
                )

    def _timed(self, work: Callable[[], None]) -> None:
        """Do what takes as long as it takes: starting instances, which are given up when the limit is reached."""
        started, left = time.monotonic(), self._plan.limit_seconds - self._spent
        limit = threading.Timer(left, self._new.stop, [0.0])
        limit.start()
        try:
            work()
        except EndpointFailed:
            if time.monotonic() - started < left:
                raise
        finally:
            limit.cancel()
        self._spend(time.monotonic() - started)

    def _spend(self, seconds: float) -> None:
        self._spent += seconds
        if self._spent >= self._plan.limit_seconds:
            raise RolledBack(
                "The deployment was rolled back: it took longer than MaximumExecutionTimeoutInSeconds "
                f"({self._plan.limit_seconds:g} s)"
            )

    def _mark(self, status: str, message: str = "") -> None:
        with self._service.changed:
            for variant in self._new.variants:
                variant.status = {
                    "Status": status,
                    "StartTime": now(),
                    **({"StatusMessage": message} if message else {}),
                }
            self._service.changed.notify_all()


def _part(count: int, share: float) -> int:
    return min(count, max(1, round(count * share)))


def pending_summary(variant: Variant) -> dict[str, Any]:
    """A variant of a deployment that goes on, as DescribeEndpoint shows it."""
    instance = {"InstanceType": variant.definition["InstanceType"]} if "InstanceType" in variant.definition else {}
    return {**variant.summary(), **instance}
