"""When schedules fire."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_aws.schedules import ScheduleExpressionError, firings

START = datetime(2026, 1, 1, tzinfo=UTC)


def times(expression: str, days: float, timezone: str = "UTC", start: datetime = START) -> list[str]:
    end = start + timedelta(days=days)
    return [time.strftime("%Y-%m-%d %H:%M") for time in firings(expression, timezone, start, start, end)]


@pytest.mark.parametrize(
    ("expression", "days", "expected"),
    [
        ("cron(0 3 ? * MON *)", 14, ["2026-01-05 03:00", "2026-01-12 03:00"]),
        ("cron(15 10 ? * 6L *)", 60, ["2026-01-30 10:15", "2026-02-27 10:15"]),
        ("cron(0 8 ? * MON#1 *)", 60, ["2026-01-05 08:00", "2026-02-02 08:00"]),
        ("cron(0 0 L * ? *)", 60, ["2026-01-31 00:00", "2026-02-28 00:00"]),
        ("cron(0/30 9-10 2 1 ? 2026)", 5, [f"2026-01-02 {t}" for t in ("09:00", "09:30", "10:00", "10:30")]),
        ("cron(5 4 ? JAN TUE,THU *)", 8, ["2026-01-01 04:05", "2026-01-06 04:05", "2026-01-08 04:05"]),
        ("at(2026-01-03T12:00:00)", 5, ["2026-01-03 12:00"]),
        ("rate(2 days)", 5, ["2026-01-03 00:00", "2026-01-05 00:00"]),
        ("rate(1 minute)", 1 / 480, ["2026-01-01 00:01", "2026-01-01 00:02", "2026-01-01 00:03"]),
    ],
)
def test_it_fires_when_aws_says(expression: str, days: float, expected: list[str]) -> None:
    assert times(expression, days) == expected


def test_a_time_zone_moves_with_summer_time() -> None:
    fired = times("cron(0 3 ? * MON *)", 10, "Europe/Madrid", datetime(2026, 3, 22, tzinfo=UTC))
    assert fired == ["2026-03-23 02:00", "2026-03-30 01:00"]


def test_a_wall_clock_time_that_is_skipped_does_not_fire() -> None:
    assert times("cron(30 2 ? * SUN *)", 1, "Europe/Madrid", datetime(2026, 3, 28, 23, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("every monday", "none of rate"),
        ("rate(0 days)", "such as rate"),
        ("rate(5 weeks)", "such as rate"),
        ("cron(0 3 * * MON *)", "exactly one of day-of-month and day-of-week must be"),
        ("cron(0 3 ? * ? *)", "exactly one of day-of-month and day-of-week must be"),
        ("cron(0 3 ? * MON)", "has 5 fields"),
        ("cron(60 3 ? * MON *)", "'60' is not within 0..59"),
        ("cron(0 3 ? * FUNDAY *)", "'FUNDAY' is not within 1..7"),
        ("cron(0/x 3 ? * MON *)", "is not a step"),
        ("at(tomorrow)", "yyyy-mm-dd"),
    ],
)
def test_a_wrong_expression_is_told(expression: str, said: str) -> None:
    with pytest.raises(ScheduleExpressionError, match=said):
        times(expression, 1)


def test_an_unknown_time_zone_is_told() -> None:
    with pytest.raises(ScheduleExpressionError, match="Mars/Olympus"):
        times("rate(1 day)", 1, "Mars/Olympus")


@given(
    st.sampled_from(["rate(7 minutes)", "cron(0/5 * ? * * *)", "cron(30 6 ? * MON-FRI *)"]),
    st.lists(st.integers(0, 3000), min_size=1, max_size=6),
)
def test_cutting_the_time_into_pieces_loses_and_doubles_nothing(expression: str, minutes: list[int]) -> None:
    cuts = [START, *(START + timedelta(minutes=m) for m in sorted(minutes))]
    pieces = [
        time for after, until in itertools.pairwise(cuts) for time in firings(expression, "UTC", START, after, until)
    ]
    assert pieces == list(firings(expression, "UTC", START, START, cuts[-1]))
