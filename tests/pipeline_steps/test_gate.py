"""The gate: closed without proof, whatever is missing; and the judge that may be part of it."""

import math
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps.contract import gate
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import Improvement, Metric, Overlap, Value, Verdict
from pipeline_steps.contract.gate import MESSAGE_CHARACTERS, Gate
from pipeline_steps.contract.metrics import DEFINITIONS
from pipeline_steps.judge import Judge, JudgeFailed
from tests import evaluations

LOSS_GATE = Gate("any", "loss", "base", "lower", 0.02, 20)
UNSEEN = [Overlap("tuned", 0, [])]


def metric(
    name: str, base: float, tuned: float, interval: tuple[float, float], n: int = 40, other: str = "base"
) -> Metric:
    found = evaluations.metric(name, base, tuned, n=n)
    sign = -1 if DEFINITIONS[name].direction == "lower" else 1
    values = {other: Value(base, (base, base), 0.0), "tuned": Value(tuned, interval, 0.0)}
    return replace(found, values=values, improvements={other: Improvement(sign * (tuned - base), interval)})


BETTER = metric("loss", 2.0, 1.5, (0.3, 0.7))


def decide(
    gates: list[Gate], *found: Metric, overlaps: list[Overlap] | None = None, mode: str = "instruction"
) -> Verdict:
    return gate.decide(gates, {one.name: one for one in found}, UNSEEN if overlaps is None else overlaps, mode)


def test_a_clear_improvement_passes_and_says_by_how_much() -> None:
    verdict = decide([LOSS_GATE], BETTER)
    assert verdict.passed
    assert verdict.reasons == [
        "loss 2.000 -> 1.500 (nats per token, base -> tuned), improvement +0.500, 95 % interval +0.300 .. +0.700, n = 40: "
        "the low end is above +0.02",
        "none of the test rows was trained on",
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "loss was not measured"),
        ([metric("loss", math.nan, 1.5, (0.3, 0.7))], "not a finite number"),
        ([metric("loss", 2.0, 1.5, (0.3, math.inf))], "not a finite number"),
        ([replace(BETTER, improvements={})], "not a finite number"),
        ([metric("loss", 2.0, 1.5, (0.3, 0.7), n=19)], "rests on 19 rows, at least 20"),
        ([metric("loss", 2.0, 2.0, (0.0, 0.0))], "low end must be above +0.02"),
        ([metric("loss", 2.0, 2.5, (-0.7, -0.3))], "low end must be above +0.02"),
        ([metric("loss", 2.0, 1.9, (-0.01, 0.2))], "low end must be above +0.02"),
    ],
)
def test_the_gate_stays_closed_without_proof(found: list[Metric], said: str) -> None:
    verdict = decide([LOSS_GATE], *found)
    assert not verdict.passed and len(verdict.reasons) == 1
    assert said in verdict.reasons[0]
    assert verdict.message.startswith("The gate refused the tuned model: ")


@pytest.mark.parametrize(
    ("overlaps", "said"),
    [
        ([], "is not known"),
        ([Overlap("tuned", None, [])], "is not known"),
        ([Overlap("tuned", 2, ["0a", "0b"])], "2 of the test rows were trained on (ids 0a, 0b)"),
    ],
)
def test_test_rows_that_were_or_may_have_been_trained_on_close_the_gate(overlaps: list[Overlap], said: str) -> None:
    verdict = decide([LOSS_GATE], BETTER, overlaps=overlaps)
    assert not verdict.passed and said in verdict.message


def test_without_a_check_that_applies_the_gate_is_closed() -> None:
    only_instruction = Gate("instruction", "rougeL", "base", "higher", -0.02, 20)
    verdict = decide([only_instruction], mode="domain")
    assert not verdict.passed and "no check applies to tuning mode 'domain'" in verdict.message
    assert not decide([], BETTER).passed


def test_one_failing_check_is_enough_and_only_its_reason_is_told() -> None:
    rouge = Gate("instruction", "rougeL", "base", "higher", -0.02, 20)
    verdict = decide([LOSS_GATE, rouge], BETTER, metric("rougeL", 0.5, 0.3, (-0.3, -0.1)))
    assert not verdict.passed
    assert len(verdict.reasons) == 1 and verdict.reasons[0].startswith("ROUGE-L")
    assert [check.passed for check in verdict.checks] == [True, False, True]


CHAMPION_GATE = Gate("any", "bits_per_byte", "champion", "lower", -0.01, 20)


def test_without_an_approved_model_the_comparison_with_it_is_skipped_and_the_others_count() -> None:
    verdict = decide([LOSS_GATE, CHAMPION_GATE], BETTER)
    assert verdict.passed and [check.skipped for check in verdict.checks] == [False, True, False]
    assert not decide([CHAMPION_GATE], BETTER).passed  # nothing else was checked


@pytest.mark.parametrize(("interval", "passes"), [((-0.005, 0.02), True), ((-0.02, 0.02), False)])
def test_with_an_approved_model_the_tuned_one_must_not_be_worse(interval: tuple[float, float], passes: bool) -> None:
    overlaps = [
        *UNSEEN,
        Overlap("champion", None, []),
    ]  # what it has seen makes the gate harder, so it need not be known
    beside = metric("bits_per_byte", 0.5, 0.5, interval, other="champion")
    assert decide([LOSS_GATE, CHAMPION_GATE], BETTER, beside, overlaps=overlaps).passed is passes
    assert not decide([LOSS_GATE, CHAMPION_GATE], BETTER, overlaps=overlaps).passed  # not compared: refused


@pytest.mark.parametrize(
    ("name", "direction", "margin", "interval", "passes"),
    [
        ("ended", "higher", 0.5, (0.6, 0.9), True),
        ("ended", "higher", 0.5, (0.4, 0.9), False),
        ("repetition", "lower", 0.2, (0.05, 0.1), True),
        ("repetition", "lower", 0.2, (0.05, 0.3), False),
    ],
)
def test_a_number_is_compared_with_the_bad_end_of_the_models_own_interval(
    name: str, direction: str, margin: float, interval: tuple[float, float], passes: bool
) -> None:
    check = Gate("any", name, "number", direction, margin, 20)
    verdict = decide([check], metric(name, 0.0, sum(interval) / 2, interval))
    assert verdict.passed is passes
    assert f"95 % interval {interval[0]:.3f} .. {interval[1]:.3f}" in verdict.message


@given(st.floats(-1, 1), st.floats(0, 1), st.integers(0, 60), st.floats(-1, 1))
def test_a_check_holds_only_above_the_margin_on_enough_rows(low: float, width: float, n: int, margin: float) -> None:
    check = Gate("any", "loss", "base", "lower", margin, 20)
    found = metric("loss", 2.0, 2.0 - low, (low, low + width), n=n)
    assert decide([check], found).passed == (low > margin and n >= 20)


def test_the_message_fits_where_it_is_read() -> None:
    gates = [Gate("any", name, "base", one.direction, 0.0, 20) for name, one in DEFINITIONS.items()]
    verdict = decide(gates * 3)
    assert not verdict.passed and len(verdict.message) <= MESSAGE_CHARACTERS


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("loss", "is not mode,metric"),
        ("any,loss,base,lower,much,20", "is not mode,metric"),
        ("any,loss,base,higher,0.02,20", "direction is 'higher', allowed: lower"),
        ("any,length_ratio,base,neither,0.02,20", "metric is 'length_ratio'"),
        ("any,accuracy,base,higher,0.02,20", "metric is 'accuracy', allowed: loss, "),
        ("any,loss,yesterday,lower,0.02,20", "compared_with is 'yesterday', allowed: base, champion, number"),
        ("every,loss,base,lower,0.02,20", "mode is 'every'"),
        ("any,loss,base,lower,nan,20", "margin is nan"),
        ("any,loss,base,lower,0.02,1", "minimum_n is 1"),
    ],
)
def test_a_wrong_gate_argument_is_told(argument: str, said: str) -> None:
    with pytest.raises(StepError, match=said.replace("(", r"\(")):
        Gate.parse(argument)


# ---------------------------------------------------------------- the judge


def answering(*replies: str) -> Any:
    """A Bedrock client that botocore validates, and that gives these replies; None is an error of the service."""
    client = boto3.client("bedrock-runtime", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    stubber = Stubber(client)
    for reply in replies:
        stubber.add_response(
            "converse",
            {
                "output": {"message": {"role": "assistant", "content": [{"text": reply}]}},
                "stopReason": "end_turn",
                "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
                "metrics": {"latencyMs": 1},
            },
        )
    stubber.activate()
    client.stubber = stubber
    return client


def test_the_judge_gives_each_answer_its_points() -> None:
    heard: list[int] = []
    judge = Judge("some.model", answering(" 4\n", "**4**"))
    assert judge.scores(["a", "b"], ["c", "d"], ["e", "f"], heard.append) == [4, 4]
    assert heard == [1, 2]


def test_a_reply_without_a_score_is_asked_for_once_more_and_then_fails_all() -> None:
    assert Judge("some.model", answering("Well, ...", "2")).scores(["a"], ["b"], ["c"]) == [2]
    with pytest.raises(JudgeFailed, match="replied '4 or 5', expected a digit"):
        Judge("some.model", answering("4 of 5", "4 or 5")).scores(["a"], ["b"], ["c"])


def test_an_error_of_the_service_fails_all() -> None:
    client = answering()
    client.stubber.add_client_error("converse", "AccessDeniedException", "no access to this model")
    with pytest.raises(JudgeFailed, match=r"some\.model did not answer: .*no access to this model"):
        Judge("some.model", client).scores(["a"], ["b"], ["c"])
