"""EventBridge Scheduler that fires: moto keeps the schedules, a thread here starts their targets.

The clock can be moved forward (POST /_local/clock?advance_seconds=N): everything that falls due in between fires then.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from moto.scheduler.exceptions import ValidationException
from moto.scheduler.models import EventBridgeSchedulerBackend, scheduler_backends

from local_aws import events
from local_aws.schedules import ScheduleExpressionError, firings
from local_aws.settings import Settings

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5


class Clock:
    """Real time plus what it was moved by."""

    def __init__(self) -> None:
        self._moved = timedelta()
        self.changed = threading.Condition()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._moved

    def advance(self, seconds: float) -> datetime:
        with self.changed:
            self._moved += timedelta(seconds=seconds)
            self.changed.notify_all()
        return self.now()


class Scheduler:
    """Fires every enabled schedule of every group; one pass handles the time since the last one."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._stopping = False
        self._fired_until = clock.now()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        with self._clock.changed:
            self._stopping = True
            self._clock.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._clock.changed:
                self._clock.changed.wait(TICK_SECONDS)
                if self._stopping:
                    return
            until = self._clock.now()
            for schedule in self._enabled():
                self._fire(schedule, self._fired_until, until)
            self._fired_until = until

    def _enabled(self) -> list[Any]:
        backend = scheduler_backends[self._settings.account][self._settings.region]
        groups = list(backend.schedule_groups.values())
        schedules = [schedule for group in groups for schedule in list(group.schedules.values())]
        return [schedule for schedule in schedules if schedule.state == "ENABLED"]

    def _fire(self, schedule: Any, after: datetime, until: datetime) -> None:
        created = datetime.fromtimestamp(schedule.creation_date, UTC)
        if schedule.start_date:
            after = max(after, datetime.fromtimestamp(float(schedule.start_date), UTC))
        if schedule.end_date:
            until = min(until, datetime.fromtimestamp(float(schedule.end_date), UTC))
        for time in firings(schedule.schedule_expression, schedule.schedule_expression_timezone, created, after, until):
            log.info("schedule %s fires for %s", schedule.name, time.isoformat())
            event = {
                "version": "0",
                "source": "aws.scheduler",
                "detail-type": "Scheduled Event",
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "resources": [schedule.arn],
                "detail": {},
            }
            events.deliver(f"schedule {schedule.name} -> {schedule.target['Arn']}", schedule.target, event)


clock = Clock()
_current: Scheduler | None = None


def install(settings: Settings) -> None:
    global _current
    for operation in ("create_schedule", "update_schedule"):
        setattr(EventBridgeSchedulerBackend, operation, _checked(getattr(EventBridgeSchedulerBackend, operation)))
    _current = Scheduler(settings, clock)


def shutdown() -> None:
    if _current is not None:
        _current.shutdown()


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    """moto keeps an expression that never fires, and an update without a state ends a schedule; AWS does neither."""

    def check(self: Any, **keywords: Any) -> Any:
        now = clock.now()
        try:
            list(
                firings(
                    keywords["schedule_expression"], keywords["schedule_expression_timezone"] or "UTC", now, now, now
                )
            )
        except ScheduleExpressionError as error:
            raise ValidationException(str(error)) from None
        return original(self, **{**keywords, "state": keywords["state"] or "ENABLED"})

    return check
