"""Whose turn it is among executions of one pipeline."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps import overlap
from pipeline_steps.contract.errors import StepError
from pipeline_steps.overlap import Run, ahead_of

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def run(name: str, minutes: int = 0, past_preparation: bool = False) -> Run:
    return Run(
        f"arn:aws:sagemaker:us-east-1:1:pipeline/p/execution/{name}",
        NOON + timedelta(minutes=minutes),
        past_preparation,
    )


@given(
    st.lists(
        st.builds(run, st.text("abc", min_size=4, max_size=4), st.integers(0, 2)),
        min_size=1, max_size=6, unique_by=lambda one: one.arn,
    )
)  # fmt: skip
def test_of_all_that_have_not_prepared_exactly_one_goes_on_and_the_others_follow_one_by_one(runs: list[Run]) -> None:
    order = []
    while runs:
        (first,) = [one for one in runs if not ahead_of(one.arn, runs)]
        order.append((first.started, first.arn))
        runs.remove(first)
    assert order == sorted(order)


def test_who_trains_already_is_ahead_even_of_an_older_one_that_is_tried_again() -> None:
    again, training = run("again", 0), run("training", 5, past_preparation=True)
    assert ahead_of(again.arn, [again, training]) == [training]
    assert ahead_of(training.arn, [training, run("new", 9)]) == []


def test_an_execution_that_was_stopped_meanwhile_does_not_go_on() -> None:
    with pytest.raises(StepError, match=r"execution/gone is not among the running executions .*was it stopped\?"):
        ahead_of(run("gone").arn, [run("other")])


def test_with_refuse_the_second_run_is_refused_with_the_first_ones_name_and_what_to_do() -> None:
    first, second = run("first"), run("second", 1)
    with pytest.raises(
        StepError, match=r"refused: .*/first \(started 2026-11-27 12:00 UTC\) is under way.*start this run"
    ):
        overlap.wait_for_turn(second.arn, "refuse", 1, lambda _: [first, second])
    assert overlap.wait_for_turn(first.arn, "refuse", 1, lambda _: [first, second]) < 60


def test_with_wait_it_goes_on_when_the_others_have_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overlap, "POLL_SECONDS", 0.0)
    first, second, third = run("first"), run("second", 1), run("third", 2)
    seen = iter([[first, second, third], [first, second, third], [second, third], [third]])
    overlap.wait_for_turn(third.arn, "wait", 1, lambda _: next(seen))
    told = capsys.readouterr().out
    assert told.count("waiting for") == 2 and "/first" in told and "/second" in told and "for its turn" in told


def test_a_wait_ends_after_the_time_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "POLL_SECONDS", 0.0)
    first, second = run("first"), run("second", 1)
    with pytest.raises(StepError, match=r"has not ended after 0 hours \(retraining.max_wait_hours\)"):
        overlap.wait_for_turn(second.arn, "wait", 0, lambda _: [first, second])
