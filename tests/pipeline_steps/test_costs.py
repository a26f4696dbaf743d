"""What a training is estimated at before it starts, and what it has cost after it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps.contract import costs
from pipeline_steps.contract.costs import LastRun
from pipeline_steps.contract.evaluation import METADATA, metadata
from pipeline_steps.evaluate import cost_texts
from pipeline_steps.prepare_data import PrepareJob, last_run

LAST = LastRun("model-package/demo/3", tokens_per_second=100.0, overhead_seconds=60.0)
JOB = PrepareJob("raw", Path("out"), "instruction", instance_type="ml.g5.12xlarge")
INSTANCES = "1 x ml.g5.12xlarge"


def package(version: int, **said: str) -> dict[str, Any]:
    known = {
        "training_instances": INSTANCES,
        "base_model_digest": "b",
        "peft_type": "lora",
        "tokens_per_second": "100",
        "overhead_seconds": "60",
    }
    return {"ModelPackageArn": f"model-package/demo/{version}", "CustomerMetadataProperties": {**known, **said}}


def estimate(epochs: float = 2, **given_: Any) -> costs.CostEstimate:
    return costs.estimate(36_000, epochs, "ml.g5.12xlarge", 1, 7e9, full=False, **given_)


def test_the_last_runs_speed_and_overhead_make_the_next_estimate() -> None:
    found = estimate(last=LAST)
    assert found.hours_per_epoch == pytest.approx(0.1) and found.hours == pytest.approx(0.2 + 60 / 3600)
    assert found.usd == pytest.approx((0.2 + 60 / 3600) * 7.09)
    assert "measured by the last run (model-package/demo/3)" in found.throughput_source


def test_a_speed_of_the_configuration_comes_before_the_last_runs() -> None:
    found = estimate(last=LAST, tokens_per_second=200.0)
    assert found.hours == pytest.approx(0.1 + 60 / 3600) and "configuration" in found.throughput_source


def test_without_a_last_run_the_speed_is_assumed_and_says_so() -> None:
    found = estimate()
    assert "assumed" in found.throughput_source and found.overhead_hours is None
    assert found.hours == pytest.approx((found.hours_per_epoch or 0) * 2)


@given(st.floats(0.1, 50), st.floats(1, 1e5), st.floats(0, 1e4))
def test_the_same_run_again_is_estimated_at_what_it_took(epochs: float, speed: float, overhead: float) -> None:
    seconds = 36_000 * epochs / speed
    actual = (seconds + overhead) / 3600
    found = estimate(epochs, last=LastRun("p", speed, overhead))
    assert found.hours == pytest.approx(actual)
    assert found.usd == pytest.approx(costs.spent_usd(actual, 1, "ml.g5.12xlarge", None))


def test_the_last_run_is_the_newest_of_the_same_kind() -> None:
    others = [
        package(9, training_instances="2 x ml.g5.12xlarge"),
        package(8, base_model_digest="c"),
        package(7, peft_type="None"),
        {"ModelPackageArn": "of an earlier version, which said nothing"},
    ]
    assert last_run(JOB, others, "b") is None
    assert last_run(JOB, [*others, package(6), package(5)], "b") == LastRun("model-package/demo/6", 100.0, 60.0)
    assert last_run(replace(JOB, instance_count=2), [*others, package(6)], "b") == LastRun(
        "model-package/demo/9", 100.0, 60.0
    )


TRAINING = {
    "seconds": 100.0,
    "overhead_seconds": 44.0,
    "tokens_per_second": 321.5,
    "instance_count": 2,
    "instance_type": "ml.g5.12xlarge",
}


def test_what_was_spent_is_time_by_instances_by_their_price() -> None:
    texts = cost_texts(TRAINING, {"usd_per_hour": 10.0})
    assert texts["training_cost"] == "0.80 USD: 144 s on 2 x ml.g5.12xlarge"
    assert cost_texts(TRAINING, {"usd_per_hour": 0.0})["training_cost"].startswith(f"{0.08 * 7.09:.2f} USD")
    unknown = {**TRAINING, "instance_type": "ml.p99.large"}
    assert cost_texts(unknown, {"usd_per_hour": 0.0})["training_cost"] == "price not known: 144 s on 2 x ml.p99.large"


def test_outside_of_a_job_the_cost_is_not_known() -> None:
    nowhere = {**TRAINING, "instance_count": None, "instance_type": None}
    assert cost_texts(nowhere, {"usd_per_hour": 1.0})["training_cost"] == "not known"


def test_a_packages_metadata_takes_every_text() -> None:
    for text in (*cost_texts(TRAINING, {"usd_per_hour": 1.0}).values(), costs.told(None, None, None, None)):
        assert not METADATA.search(text) and metadata(text) == text
