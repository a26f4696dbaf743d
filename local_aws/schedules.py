"""When a schedule fires: EventBridge's rate(), cron() and at() expressions, as pure functions of time."""

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

UNITS = {"minute": 60, "hour": 3600, "day": 86400}
MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
WEEKDAYS = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), start=1)}


class ScheduleExpressionError(ValueError):
    """The expression cannot be read; the message shows the form that is expected."""


@dataclass(frozen=True)
class Cron:
    """The six fields of cron(); a set holds the values that match. Days as EventBridge counts them: 1 is Sunday."""

    minutes: set[int]
    hours: set[int]
    days: set[int] | str | None  # None: the field is "?"; "L": the month's last day
    months: set[int]
    weekdays: set[int] | tuple[int, str] | None  # (weekday, "L" or "1".."5"): the last, or the n-th, of the month
    years: set[int]

    def matches_day(self, day: date) -> bool:
        if day.month not in self.months or day.year not in self.years:
            return False
        if self.days is not None:
            last = calendar.monthrange(day.year, day.month)[1]
            return day.day == last if self.days == "L" else day.day in self.days
        weekday = day.isoweekday() % 7 + 1
        if isinstance(self.weekdays, tuple):
            wanted, which = self.weekdays
            if weekday != wanted:
                return False
            if which == "L":
                return (day + timedelta(days=7)).month != day.month
            return (day.day - 1) // 7 + 1 == int(which)
        return self.weekdays is None or weekday in self.weekdays


def firings(expression: str, timezone: str, created: datetime, after: datetime, until: datetime) -> Iterator[datetime]:
    """Times in UTC at which the schedule fires, later than `after` and not later than `until`, in order.

    `created` is when a rate() starts to count. All times are aware. Raises ScheduleExpressionError.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise ScheduleExpressionError(
            f"time zone {timezone!r} is unknown; use an IANA name such as Europe/Madrid"
        ) from None
    match = re.fullmatch(r"(rate|cron|at)\((.*)\)", expression.strip())
    if match is None:
        raise ScheduleExpressionError(f"{expression!r} is none of rate(...), cron(...), at(...)")
    kind, content = match.groups()
    if kind == "at":
        try:
            time = datetime.fromisoformat(content).replace(tzinfo=zone).astimezone(UTC)
        except ValueError:
            raise ScheduleExpressionError(f"{expression!r} is not at(yyyy-mm-ddThh:mm:ss)") from None
        if after < time <= until:
            yield time
    elif kind == "rate":
        yield from _rate_firings(expression, content, created, after, until)
    else:
        yield from _cron_firings(parse_cron(content), zone, after, until)


def _rate_firings(
    expression: str, content: str, created: datetime, after: datetime, until: datetime
) -> Iterator[datetime]:
    match = re.fullmatch(r"([1-9]\d*) (minute|hour|day)s?", content.strip())
    if match is None:
        raise ScheduleExpressionError(f"{expression!r} is not rate(VALUE UNIT) such as rate(1 hour) or rate(7 days)")
    interval = timedelta(seconds=int(match[1]) * UNITS[match[2]])
    time = created + interval * max(1, (after - created) // interval + 1)
    while time <= until:
        if time > after:
            yield time
        time += interval


def _cron_firings(cron: Cron, zone: ZoneInfo, after: datetime, until: datetime) -> Iterator[datetime]:
    day = after.astimezone(zone).date()
    last_day = until.astimezone(zone).date()
    while day <= last_day:
        if cron.matches_day(day):
            for hour in sorted(cron.hours):
                for minute in sorted(cron.minutes):
                    local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                    time = local.astimezone(UTC)
                    # A wall-clock time that the change to summer time skips does not exist and does not fire.
                    if time.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
                        continue
                    if after < time <= until:
                        yield time
        day += timedelta(days=1)


def parse_cron(content: str) -> Cron:
    """The six fields: minutes hours day-of-month month day-of-week year. Raises ScheduleExpressionError."""
    fields = content.split()
    if len(fields) != 6:
        raise ScheduleExpressionError(
            f"cron({content}) has {len(fields)} fields, expected six: minutes hours day-of-month month day-of-week year"
        )
    minutes, hours, days, months, weekdays, years = (field.upper() for field in fields)
    if (days == "?") == (weekdays == "?"):
        raise ScheduleExpressionError(f"cron({content}): exactly one of day-of-month and day-of-week must be ?")
    return Cron(
        _values(content, minutes, 0, 59),
        _values(content, hours, 0, 23),
        None if days == "?" else "L" if days == "L" else _values(content, days, 1, 31),
        _values(content, months, 1, 12, MONTHS),
        None if weekdays == "?" else _weekdays(content, weekdays),
        _values(content, years, 1970, 2199),
    )


def _weekdays(content: str, field: str) -> set[int] | tuple[int, str]:
    match = re.fullmatch(r"([1-7]|[A-Z]{3})(?:#([1-5])|(L))", field)
    if match and (match[1].isdigit() or match[1] in WEEKDAYS):
        return (int(match[1]) if match[1].isdigit() else WEEKDAYS[match[1]], match[2] or "L")
    return _values(content, field, 1, 7, WEEKDAYS)


def _values(content: str, field: str, low: int, high: int, names: dict[str, int] | None = None) -> set[int]:
    def number(text: str) -> int:
        value = (names or {}).get(text)
        if value is None and text.isdigit():
            value = int(text)
        if value is None or not low <= value <= high:
            raise ScheduleExpressionError(f"cron({content}): {text!r} is not within {low}..{high}")
        return value

    values: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        elif "-" in span:
            first, last = (number(end) for end in span.split("-", 1))
        else:
            first = number(span)
            last = high if step else first
        if step and (not step.isdigit() or int(step) == 0):
            raise ScheduleExpressionError(f"cron({content}): {step!r} is not a step; use a whole number such as 0/15")
        values.update(range(first, last + 1, int(step) if step else 1))
    return values
