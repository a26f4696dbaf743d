"""CloudWatch alarms that look: moto keeps them, a thread here evaluates them and acts when a state changes.

Periods are divided by the time factor of local AWS, and are sliding: each ends now. Divided so, a period can be shorter
than the time between two looks: then the newest one begins at the last look, so that no data point is passed over.
"""

import ast
import json
import logging
import operator
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from moto.cloudwatch.models import Alarm, CloudWatchBackend, cloudwatch_backends

from local_aws import events
from local_aws.metrics import metrics, statistic
from local_aws.settings import Settings

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
LOOKS_IN_A_PERIOD = 20
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}
OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_settings: Settings
_flush: Callable[[], None]
# What an alarm's action does, by the service in its ARN; SNS is always there.
actions: dict[str, Callable[[str, Any], None]] = {}


def install(settings: Settings, flush: Callable[[], None]) -> None:
    """Evaluate alarms from now on; `flush` publishes what has not become a data point yet."""
    global _settings, _flush
    _settings, _flush = settings, flush
    put, update = CloudWatchBackend.put_metric_alarm, Alarm.update_state

    def put_metric_alarm(self: Any, *arguments: Any, **keywords: Any) -> Any:
        old = self.alarms.get(keywords.get("name"))
        alarm = put(self, *arguments, **keywords)
        if old is not None:  # a changed alarm keeps its state until it is evaluated
            for name in ("state_value", "state_reason", "state_reason_data", "state_updated_timestamp", "history"):
                setattr(alarm, name, getattr(old, name))
        else:
            alarm.state_value = "INSUFFICIENT_DATA"
        return alarm

    def update_state(self: Any, reason: str, reason_data: str, state_value: str) -> None:
        old = self.state_value
        update(self, reason, reason_data, state_value)
        # What SetAlarmState sets holds until the next evaluation would be due.
        self.held_until = time.time() + (_period(self) / _settings.time_factor)
        if old != state_value:
            _changed(self, old)

    CloudWatchBackend.put_metric_alarm = put_metric_alarm
    Alarm.update_state = update_state
    threading.Thread(target=_run, name="alarms", daemon=True).start()


def missing(names: Sequence[str]) -> list[str]:
    """Those names that are no alarm's."""
    return [name for name in names if name not in _backend().alarms]


def alarmed(names: Sequence[str], evaluate: bool) -> list[str]:
    """Those alarms that are in ALARM; with `evaluate` as of now, not as of the last look."""
    found = [_backend().alarms[name] for name in names if name in _backend().alarms]
    if evaluate and found:
        now = _published_until()
        for alarm in found:
            _evaluate(alarm, now)
    return [alarm.name for alarm in found if alarm.state_value == "ALARM"]


def _backend() -> Any:
    return cloudwatch_backends[_settings.account][_settings.region]


def _published_until() -> float:
    """A moment (seconds since 1970) before which every request has become a data point."""
    now = time.time()
    _flush()
    return now


def _run() -> None:
    while True:
        time.sleep(TICK_SECONDS)
        now = _published_until()
        for alarm in list(_backend().alarms.values()):
            if getattr(alarm, "next_look", 0.0) > time.monotonic():
                continue
            alarm.next_look = time.monotonic() + _period(alarm) / _settings.time_factor / LOOKS_IN_A_PERIOD
            try:
                _evaluate(alarm, now)
            except Exception:  # one alarm that cannot be evaluated must not stop the others
                log.exception("alarm %s", alarm.name)


# ---------------------------------------------------------------- evaluation


def _evaluate(alarm: Any, now: float) -> None:
    last_look, alarm.last_look = getattr(alarm, "last_look", now), now
    if alarm.rule is not None or getattr(alarm, "held_until", 0) > now:
        return
    values = values_of(alarm, _period(alarm) / _settings.time_factor, last_look, now)
    breaching = COMPARISONS[alarm.comparison_operator]
    points = [None if value is None else breaching(value, float(alarm.threshold)) for value in values]
    state = state_of(points, int(alarm.datapoints_to_alarm or len(points)), alarm.treat_missing_data or "missing")
    if state is None or state == alarm.state_value:
        return
    shown = [value for value in values if value is not None]
    reason = (
        f"Threshold Crossed: {points.count(True)} out of the last {len(points)} datapoints "
        f"{[round(value, 3) for value in shown]} were {alarm.comparison_operator} {float(alarm.threshold):g} "
        f"({alarm.datapoints_to_alarm or len(points)} needed for ALARM)"
    )
    if state == "INSUFFICIENT_DATA":
        reason = f"Insufficient Data: {points.count(None)} datapoints were unknown."
    alarm.update_state(reason, json.dumps({"recentDatapoints": shown, "threshold": float(alarm.threshold)}), state)
    alarm.held_until = 0


def state_of(points: Sequence[bool | None], needed: int, treat_missing: str) -> str | None:
    """The state that datapoints give (newest first; True breaches, None is missing), or None: it stays as it is.

    After AWS's rules ("Configuring how CloudWatch alarms treat missing data").
    """
    if treat_missing in ("breaching", "notBreaching"):
        points = [treat_missing == "breaching" if point is None else point for point in points]
    known = [point for point in points if point is not None]
    if sum(known) >= needed:
        return "ALARM"
    if treat_missing == "ignore":
        # OK only when no filling of the gaps could make it an alarm.
        return "OK" if sum(known) + points.count(None) < needed else None
    if not known:
        return "INSUFFICIENT_DATA"
    if treat_missing == "missing" and all(known):
        oldest = max(place for place, point in enumerate(points) if point)
        if oldest + 1 >= needed:  # all that is known breaches, and has done so for long enough
            return "ALARM"
    return "OK"


def _period(alarm: Any) -> float:
    if alarm.period:
        return float(alarm.period)
    periods = [query.metric_stat.period for query in alarm.metric_data_queries if query.metric_stat is not None]
    return float(periods[0]) if periods else 60.0


def values_of(alarm: Any, period: float, last_look: float, now: float) -> list[float | None]:
    """The alarm's value in each of its periods (of `period` seconds), newest first; None where there is no data."""
    count = int(alarm.evaluation_periods)
    newest = min(now - period, last_look)  # where the newest period begins
    edges = [*(newest - period * back for back in range(count - 1)[::-1]), now]
    start = newest - period * (count - 1)

    def of(namespace: str, name: str, dimensions: list[Any], stat: str) -> list[float | None]:
        wanted = {dimension.name: dimension.value for dimension in dimensions}
        return [statistic(part, stat) for part in metrics.between(namespace, name, wanted, start, edges)][::-1]

    if not alarm.metric_data_queries:
        stat = alarm.extended_statistic or alarm.statistic
        return of(alarm.namespace, alarm.metric_name, alarm.dimensions, stat)
    by_id: dict[str, list[float | None]] = {}
    shown = ""
    for query in alarm.metric_data_queries:
        if query.metric_stat is not None:
            metric, stat = query.metric_stat.metric, query.metric_stat.stat
            by_id[query.id] = of(metric.namespace, metric.metric_name, metric.dimensions, stat)
    for query in alarm.metric_data_queries:
        if query.metric_stat is None:
            by_id[query.id] = [
                calculate(query.expression, {name: values[place] for name, values in by_id.items()})
                for place in range(count)
            ]
        if str(query.return_data).lower() != "false":
            shown = query.id
    return by_id[shown]


def calculate(expression: str, values: dict[str, float | None]) -> float | None:
    """Metric math: + - * /, parentheses, numbers, FILL(metric, number). None where an operand is missing, and for x / 0.

    Raises ValueError for anything else.
    """

    def of(node: ast.expr) -> float | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name) and node.id in values:
            return values[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = of(node.operand)
            return None if value is None else -value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            left, right = of(node.left), of(node.right)
            if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
                return None
            return OPERATIONS[type(node.op)](left, right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "FILL":
            value = of(node.args[0])
            return of(node.args[1]) if value is None else value
        raise ValueError(f"metric math '{expression}': local AWS knows + - * / ( ), numbers, FILL and {sorted(values)}")

    return of(ast.parse(expression, mode="eval").body)


# ---------------------------------------------------------------- what a change of state does


def _changed(alarm: Any, old: str) -> None:
    log.info("alarm %s: %s -> %s: %s", alarm.name, old, alarm.state_value, alarm.state_reason)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000+0000", time.gmtime())
    state = {"value": alarm.state_value, "reason": alarm.state_reason, "timestamp": stamp}
    detail = {
        "alarmName": alarm.name,
        "state": state,
        "previousState": {"value": old},
        "configuration": {"description": alarm.description or ""},
    }
    events.emit("aws.cloudwatch", "CloudWatch Alarm State Change", detail, [alarm.alarm_arn])
    if not alarm.actions_enabled:
        return
    chosen = {
        "ALARM": alarm.alarm_actions,
        "OK": alarm.ok_actions,
        "INSUFFICIENT_DATA": alarm.insufficient_data_actions,
    }[alarm.state_value]
    for action in chosen or []:
        threading.Thread(target=_act, args=(action, alarm, old, stamp), name=f"alarm-{alarm.name}", daemon=True).start()


def _act(action: str, alarm: Any, old: str, stamp: str) -> None:
    service = action.split(":")[2]
    try:
        if service == "sns":
            message = {
                "AlarmName": alarm.name,
                "AlarmDescription": alarm.description,
                "AWSAccountId": _settings.account,
                "AlarmArn": alarm.alarm_arn,
                "NewStateValue": alarm.state_value,
                "NewStateReason": alarm.state_reason,
                "StateChangeTime": stamp,
                "Region": _settings.region,
                "OldStateValue": old,
                "Trigger": {
                    "MetricName": alarm.metric_name,
                    "Namespace": alarm.namespace,
                    "Period": alarm.period,
                    "EvaluationPeriods": alarm.evaluation_periods,
                    "ComparisonOperator": alarm.comparison_operator,
                    "Threshold": alarm.threshold,
                },
            }
            subject = f'{alarm.state_value}: "{alarm.name}" in {_settings.region}'[:100]
            events.publish("cloudwatch.amazonaws.com", action, json.dumps(message), Subject=subject)
        elif service in actions:
            actions[service](action, alarm)
        else:
            known = ", ".join(["sns", *sorted(actions)])
            log.error(
                "alarm %s: actions of the service '%s' are not implemented; known: %s", alarm.name, service, known
            )
    except Exception:
        log.exception("alarm %s: the action %s failed", alarm.name, action)
