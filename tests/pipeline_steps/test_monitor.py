"""What Monitor makes of captured traffic, and when it says that it has drifted."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps import captured, monitor, similarity
from pipeline_steps.captured import Exchange
from pipeline_steps.contract import drift
from pipeline_steps.contract.drift import Figures, Limits

LIMITS = Limits(
    max_length_ratio=2.0,
    max_refused_increase=0.1,
    max_repetition_increase=0.1,
    max_unended_increase=0.2,
    max_similarity_decrease=0.2,
)
EVALUATED: Figures = {
    drift.ANSWER_WORDS: 20.0,
    drift.REFUSED: 0.0,
    drift.REPETITION: 0.05,
    drift.UNENDED: 0.1,
    drift.SIMILARITY: 0.6,
}


def line(request: Any, answer: Any, encoding: str = "JSON") -> str:
    def side(content: Any) -> dict[str, str]:
        text = json.dumps(content)
        data = base64.b64encode(text.encode()).decode() if encoding == "BASE64" else text
        return {"data": data, "encoding": encoding}

    return json.dumps({"captureData": {"endpointInput": side(request), "endpointOutput": side(answer)}})


@pytest.mark.parametrize("encoding", ["JSON", "BASE64"])
@pytest.mark.parametrize(
    ("request_", "answer", "read"),
    [
        (
            {"inputs": "when", "parameters": {"max_new_tokens": 9}},
            [{"generated_text": "at noon"}],
            Exchange("when", "at noon", None, 9),
        ),
        (
            {"inputs": {"instruction": "when", "context": "ferries"}},
            {"generated_text": "at noon", "details": {"finish_reason": "eos_token"}},
            Exchange("when\nferries", "at noon", "eos_token", None),
        ),
        (
            {"messages": [{"role": "user", "content": "when"}], "max_tokens": 5},
            {"choices": [{"message": {"content": "at noon"}, "finish_reason": "length"}]},
            Exchange("when", "at noon", "length", 5),
        ),
    ],
)
def test_every_form_that_the_endpoint_takes_is_read(request_: Any, answer: Any, read: Exchange, encoding: str) -> None:
    assert captured.read(line(request_, answer, encoding)) == read


@pytest.mark.parametrize("text", ["", "{}", "no json", line({"other": 1}, {}), line({"inputs": "x"}, {"choices": []})])
def test_what_is_of_no_known_form_is_left_out(text: str) -> None:
    assert captured.read(text) is None


def test_folders_are_those_of_every_hour_of_the_window() -> None:
    until = datetime(2026, 11, 27, 1, 5, tzinfo=UTC)
    found = list(captured.folders("s3://b/captured/", "e", "v", until - timedelta(hours=2), until))
    assert found == [f"s3://b/captured/e/v/{hour}/" for hour in ("2026/11/26/23", "2026/11/27/00", "2026/11/27/01")]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (drift.ANSWER_WORDS, 41.0, "answers of 41 words, 20 at evaluation"),
        (drift.ANSWER_WORDS, 9.0, "answers of 9 words, 20 at evaluation"),
        (drift.REFUSED, 0.11, "refuse 0.11, 0.00 at evaluation"),
        (drift.REPETITION, 0.16, "repeated words"),
        (drift.UNENDED, 0.31, "do not end"),
        (drift.SIMILARITY, 0.39, "similarity of prompts"),
    ],
)
def test_each_figure_beyond_its_limit_is_told_alone(name: str, value: float, said: str) -> None:
    (reason,) = drift.beyond({**EVALUATED, name: value}, EVALUATED, LIMITS)
    assert said in reason


@given(st.sampled_from([drift.REFUSED, drift.REPETITION, drift.UNENDED]), st.floats(-1, 0))
def test_what_became_better_is_no_drift(name: str, change: float) -> None:
    assert drift.beyond({**EVALUATED, name: (EVALUATED[name] or 0) + change}, EVALUATED, LIMITS) == []


def test_a_figure_that_is_not_known_is_not_compared() -> None:
    assert drift.beyond(dict.fromkeys(EVALUATED), EVALUATED, LIMITS) == []
    assert drift.beyond(EVALUATED, dict.fromkeys(EVALUATED), LIMITS) == []


TRAINED = [f"Instruction: tell the {word} of the ferry" for word in ("price", "captain", "length", "harbour", "deck")]


def test_prompts_of_the_training_set_are_nearest_and_strangers_are_far() -> None:
    training = similarity.TrainingPrompts(TRAINED)
    assert training.nearest(TRAINED[0]) == pytest.approx(1.0, abs=1e-6)
    assert training.nearest("captain") > 0.9  # the words of the template count for nothing
    assert training.nearest("captain of quarks and gluons") < 0.5
    assert training.nearest("quarks gluons") == 0.0 and training.nearest("") == 0.0


@given(st.text())
def test_a_similarity_is_between_0_and_1(prompt: str) -> None:
    assert 0.0 <= similarity.TrainingPrompts(TRAINED).nearest(prompt) <= 1.0


def test_without_training_prompts_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        similarity.TrainingPrompts([])


@given(st.lists(st.integers(), max_size=50), st.integers(1, 20))
def test_spread_keeps_the_order_and_no_more_than_asked_for(items: list[int], most: int) -> None:
    kept = similarity.spread(items, most)
    assert len(kept) == min(len(items), most)
    rest = iter(items)
    assert all(any(one == other for other in rest) for one in kept)


def test_answers_that_do_not_end_are_known_by_their_reason_or_by_their_length() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    exchanges = [
        Exchange("p", "cut off here", "length", None),
        Exchange("p", "done", "eos_token", 1),
        Exchange("p", "a b c", None, 3),
        Exchange("p", "a b", None, 3),
        Exchange("p", "nobody knows", None, None),
    ]
    assert monitor.unended_share(exchanges, tokenizer) == 0.5
    assert monitor.unended_share(exchanges[-1:], tokenizer) is None
