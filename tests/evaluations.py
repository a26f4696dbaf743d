"""A realistic evaluation and its answers, for tests of whoever reads them (report, registry, command line)."""

from dataclasses import replace
from typing import Any

from pipeline_steps.contract.evaluation import (
    Ancestors,
    Answer,
    AnswerRow,
    Check,
    Decoding,
    Evaluation,
    GoldenRequest,
    Improvement,
    Metric,
    Model,
    Overlap,
    Point,
    Slice,
    Training,
    Value,
    Verdict,
)
from pipeline_steps.contract.metrics import DEFINITIONS

ROWS = 61
PACKAGE = "arn:aws:sagemaker:us-east-1:123456789012:model-package/demo/3"


def metric(
    name: str,
    base: float | None,
    tuned: float | None,
    champion: float | None = None,
    *,
    spread: float = 0.05,
    n: int = ROWS,
) -> Metric:
    """A metric with these values; intervals are `spread` to both sides."""
    definition = DEFINITIONS[name]
    sign = -1 if definition.direction == "lower" else 1
    values = {"base": base, "tuned": tuned, **({"champion": champion} if champion is not None else {})}

    def around(middle: float | None) -> tuple[float, float] | None:
        return None if middle is None else (middle - spread, middle + spread)

    improvements = {
        model: None if value is None or tuned is None else sign * (tuned - value)
        for model, value in values.items()
        if model != "tuned"
    }
    return Metric(
        name,
        definition.label,
        definition.unit,
        definition.direction,
        definition.formula,
        n,
        {model: Value(value, around(value), spread / 2) for model, value in values.items()},
        {model: Improvement(value, around(value)) for model, value in improvements.items()},
    )


def check(name: str, compared_with: str, margin: float, value: float, *, passed: bool, mode: str = "any") -> Check:
    interval = (value - 0.05, value + 0.05)
    direction = DEFINITIONS[name].direction
    reason = (
        f"{DEFINITIONS[name].label}: improvement over the {compared_with} {value:+.3f}, 95 % interval {interval[0]:+.3f} .. "
        f"{interval[1]:+.3f}, n = {ROWS}: the low end {'is' if passed else 'must be'} above {margin:+g}"
    )
    return Check(mode, name, compared_with, direction, margin, 20, passed, False, reason, ROWS, value, interval)


def metrics() -> dict[str, Metric]:
    found = [
        metric("loss", 1.951, 1.295, 1.312),
        metric("perplexity", 7.036, 3.651, 3.714, spread=0.4),
        metric("bits_per_byte", 0.671, 0.445, 0.451, spread=0.02),
        metric("rouge1", 0.291, 0.487, 0.480),
        metric("rouge2", 0.142, 0.311, 0.305),
        metric("rougeL", 0.253, 0.440, 0.436),
        metric("chrf", 28.1, 44.6, 44.0, spread=3.0),
        metric("exact_match", 0.0, 0.21, 0.19, n=24),
        metric("token_f1", 0.17, 0.52, 0.50, n=24),
        metric("ended", 0.31, 0.97, 0.95),
        metric("repetition", 0.21, 0.02, 0.02, spread=0.01),
        metric("length_ratio", 2.6, 1.04, 1.06, spread=0.2),
        metric("general_loss", 2.81, 2.84, 2.85, n=40),
    ]
    return {one.name: one for one in found}


def verdict(passed: bool = True) -> Verdict:
    checks = [
        check("loss", "base", 0.02, 0.656, passed=True),
        check("bits_per_byte", "champion", -0.01, 0.006 if passed else -0.2, passed=passed),
        check("rougeL", "base", -0.02, 0.187, passed=True, mode="instruction"),
    ]
    reasons = [one.reason for one in checks if one.passed == passed]
    opening = "The gate passed: " if passed else "The gate refused the tuned model: "
    return Verdict(passed, reasons, opening + "; ".join(reasons), checks)


def evaluation(**changes: Any) -> Evaluation:
    """An instruction-tuned model that beats its base and its champion; `changes` replace fields."""
    found = Evaluation(
        tuning_mode="instruction",
        gate=verdict(),
        models={
            "base": Model("smollm2-135m-instruct", "b" * 64, None, None, None, "as imported"),
            "tuned": Model("smollm2-135m-instruct", "b" * 64, None, "d" * 64, "lora", "adapter on the base"),
            "champion": Model("smollm2-135m-instruct", "b" * 64, PACKAGE, "c" * 64, "lora", "adapter on the base"),
        },
        rows=ROWS,
        answered_rows=ROWS,
        metrics=metrics(),
        slice_column="category",
        slices=[
            Slice(value, rows, {name: metrics()[name] for name in ("loss", "rougeL")})
            for value, rows in (("rewrite", 21), ("question", 25), ("summary", 15))
        ],
        overlaps=[Overlap("tuned", 0, []), Overlap("champion", 0, [])],
        decoding=Decoding(64, 0.0, 0, "<|im_end|>"),
        resamples=2000,
        training=Training(
            method="lora",
            rows=246,
            steps=31,
            tokens=24_310,
            tokens_per_second=402.5,
            seconds=60.4,
            best_step=31,
            ended_by="all steps done",
            devices=1,
            learned=[Point(step, 2.1 - 0.8 * step / 31) for step in range(1, 32)],
            validation=[Point(0, 1.99), Point(10, 1.55), Point(21, 1.38), Point(31, 1.33)],
        ),
        ancestors=Ancestors(
            dataset_digest="d" * 64,
            test_digest="e" * 64,
            base_model="smollm2-135m-instruct",
            base_model_digest="b" * 64,
            step_code="a" * 64,
            execution="h2fz0q6u1x9k",
            training_job="pipelines-h2fz0q6u1x9k-FineTune-1a2b3c4d5e",
            evaluation_job="pipelines-h2fz0q6u1x9k-Evaluate-5e4d3c2b1a",
            champion_package=PACKAGE,
            hyperparameters={"peft_type": "lora", "lora_r": 16, "epoch": 1.0, "learning_rate": 5e-4},
        ),
        golden_requests=[
            GoldenRequest(
                answers()[0].prompt, {"max_new_tokens": 64, "do_sample": False}, answers()[0].answers["tuned"].text
            )
        ],
        registry={"verdict": "passed", "loss": "1.951 to 1.295", "reasons": "loss improvement over the base +0.656"},
        regression_metrics={
            name: {"value": one.values["tuned"].value or 0.0, "standard_deviation": 0.025}
            for name, one in metrics().items()
        },
        data_card=True,
        seconds={"load": 4.1, "loss": 12.0, "answers": 31.0, "all": 49.5},
    )
    return replace(found, **changes)


def answers() -> list[AnswerRow]:
    """Three answered rows: one that the tuned model mended, one that it broke, one that stayed."""

    def answer(text: str, loss: float, rouge_l: float, ended: bool = True) -> Answer:
        return Answer(
            text, ended, len(text.split()), loss, {"rougeL": rouge_l, "rouge1": rouge_l, "rouge2": rouge_l / 2}
        )

    notice = "Dogs are welcome on all vessels but must be kept on a lead and off the seats."
    return [
        AnswerRow(
            "0f0e0d0c0b0a0908",
            "### Instruction:\nGive passengers the notice in one sentence.\n\n### Input:\nDogs are welcome on all vessels.\n",
            notice,
            "summary",
            {
                "base": answer(
                    "The Kittiwake is a ship that is not for the public. ### Output: The", 2.4, 0.12, ended=False
                ),
                "tuned": answer(notice, 0.31, 1.0),
                "champion": answer("Dogs are welcome but must be kept on a lead.", 0.4, 0.66),
            },
        ),
        AnswerRow(
            "1f1e1d1c1b1a1918",
            "### Instruction:\nWhen does the last ferry leave?\n\n### Input:\nThe last ferry leaves at 22:40.\n",
            "At 22:40.",
            "question",
            {
                "base": answer("At 22:40.", 0.8, 1.0),
                "tuned": answer("At 22:14, from pier four.", 1.7, 0.33),
                "champion": answer("At 22:40.", 0.7, 1.0),
            },
        ),
        AnswerRow(
            "2f2e2d2c2b2a2928",
            "### Instruction:\nName the vessel.\n\n### Input:\nThe Kittiwake sails daily <b>from</b> Ardnish & back.\n",
            "The Kittiwake.",
            "question",
            {
                "base": answer("The Kittiwake", 0.5, 1.0),
                "tuned": answer("The Kittiwake.", 0.2, 1.0),
                "champion": answer("The Kittiwake.", 0.2, 1.0),
            },
        ),
    ]
