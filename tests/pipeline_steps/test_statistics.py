"""Scores and intervals: those of the usual packages, weighted by tokens, exact where models are the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import CHRF

from pipeline_steps import text_metrics
from pipeline_steps.contract.evaluation import Metric
from pipeline_steps.statistics import Bootstrap

TEXTS = st.text(alphabet="ab c1.,ß'", max_size=40)
ROUGE = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])


@given(TEXTS, TEXTS)
def test_rouge_is_the_one_of_googles_package(answer: str, reference: str) -> None:
    theirs = ROUGE.score(reference, answer)
    found = text_metrics.rouge(answer, reference)
    assert found == {name: pytest.approx(score.fmeasure) for name, score in theirs.items()}


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
@settings(deadline=None)
def test_chrf_is_the_one_of_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    answers, references = zip(*pairs, strict=True)
    theirs = CHRF().corpus_score(list(answers), [list(references)]).score
    counts = np.array([text_metrics.chrf_counts(*pair) for pair in pairs]).sum(axis=0)
    assert float(text_metrics.chrf(counts)) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The Kittiwake.", "kittiwake", 1.0, 1.0),
        ("At 22:40", "at 22:40.", 1.0, 1.0),
        ("a blue boat", "the red boat", 0.0, 0.5),
        ("", "no", 0.0, 0.0),
        ("...", "the", 1.0, 1.0),  # nothing is left of both
    ],
)
def test_short_answers_are_compared_without_case_punctuation_and_articles(
    answer: str, reference: str, exact: float, f1: float
) -> None:
    assert text_metrics.exact_match(answer, reference) == exact
    assert text_metrics.token_f1(answer, reference) == f1


@pytest.mark.parametrize(
    ("text", "found"), [("one two three", 0.0), ("a b c d", 0.0), ("a b c d a b c d", 0.2), ("la " * 9, 5 / 6)]
)
def test_repetition_is_the_share_of_what_was_said_before(text: str, found: float) -> None:
    assert text_metrics.repetition(text) == pytest.approx(found)


def loss(base: "np.ndarray", tuned: "np.ndarray", tokens: "np.ndarray", seed: int = 0) -> Metric:
    addends = {"base": np.stack([base, tokens], 1), "tuned": np.stack([tuned, tokens], 1)}
    return Bootstrap(len(tokens), seed).metric("loss", addends)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 30)), min_size=2, max_size=40))
@settings(deadline=None)
def test_the_loss_is_weighted_by_tokens_and_turns_its_sign_with_the_models(
    rows: list[tuple[float, float, int]],
) -> None:
    base, tuned, tokens = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = loss(base, tuned, tokens)
    assert found.values["base"].value == pytest.approx(base.sum() / tokens.sum())
    improvement = found.improvements["base"]
    assert improvement.interval is not None and improvement.interval[0] <= improvement.interval[1]
    assert found.n == len(rows) and loss(base, tuned, tokens) == found
    swapped = loss(tuned, base, tokens).improvements["base"]
    assert improvement.value is not None and swapped.value == pytest.approx(-improvement.value)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 30)), min_size=2, max_size=300))
@settings(deadline=None)
def test_equal_rows_differ_by_exactly_nothing(rows: list[tuple[float, int]]) -> None:
    nats, tokens = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    improvement = loss(nats, nats.copy(), tokens).improvements["base"]
    assert (improvement.value, improvement.interval) == (0.0, (0.0, 0.0))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        base = random.normal(10, 3, 60)
        interval = loss(base, base - random.normal(1.0, 2.0, 60), np.ones(60), seed).improvements["base"].interval
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    assert 180 <= covered <= 199  # 95 % of 200, and not all of them


def test_a_perplexity_that_overflows_is_no_number_and_breaks_nothing() -> None:
    addends = {name: np.array([[value, 1.0], [value, 1.0]]) for name, value in (("base", 2.0), ("tuned", 1e4))}
    found = Bootstrap(2, 0).metric("perplexity", addends, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))
    assert found.values["tuned"].value == float("inf")
    assert found.values["base"].value == pytest.approx(np.exp(2.0))
