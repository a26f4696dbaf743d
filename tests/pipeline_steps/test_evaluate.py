"""Evaluate: figures that are right, a gate that refuses what is not better, a report that is safe."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from pipeline_steps import report_page
from pipeline_steps.contract import dataset, files, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.gate import Gate
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.evaluate import EvaluateJob, run
from pipeline_steps.fine_tune import FineTuneJob
from pipeline_steps.fine_tune import run as fine_tune
from pipeline_steps.statistics import compare_losses, rouge_l
from tests.pipeline_steps.conftest import write_split

GATES = [Gate("any", "loss", "base", "lower", 0.02, 20), Gate("instruction", "rougeL", "base", "higher", -0.02, 20)]


@pytest.fixture(scope="module")
def tuned(base_model: Path, splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned")
    settings = Hyperparameters(
        epoch=6.0, learning_rate=1e-2, per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    fine_tune(FineTuneJob(splits / "train", splits / "validation", base_model, output, settings))
    return output


def job(base: Path, splits: Path, model: Path, output: Path) -> EvaluateJob:
    return EvaluateJob(splits / "test", base, model, output, GATES, max_new_tokens=12, seed=0)


def untrained(base: Path, folder: Path) -> Path:
    """The base model dressed as FineTune's output: nothing was learned."""
    shutil.copytree(base, folder)
    training = {
        "schema_version": 1,
        "dataset_digest": "d" * 64,
        "base_model_digest": "b" * 64,
        "rows": 48,
        "steps": 0,
        "tokens": 0,
        "tokens_per_second": 0.0,
        "validation_loss": {"before": 5.0, "after": 5.0},
        "curve": [],
    }
    json_files.write(folder / files.TRAINING_FILE, training)
    return folder


# ---------------------------------------------------------------- the step


def test_a_model_that_learned_passes_and_evaluation_json_says_all_of_it(
    base_model: Path, splits: Path, tuned: Path, tmp_path: Path
) -> None:
    verdict = run(job(base_model, splits, tuned, tmp_path))
    assert verdict.passed, verdict.message
    evaluation = json_files.read(tmp_path / files.EVALUATION_FILE, 1)
    loss = evaluation["metrics"]["loss"]
    assert loss["tuned"] < loss["base"] and loss["n"] == 24
    assert loss["improvement"] == pytest.approx(loss["base"] - loss["tuned"])
    assert evaluation["metrics"]["perplexity"]["base"] == pytest.approx(np.exp(loss["base"]))
    assert evaluation["gate"]["passed"] is True
    assert len(evaluation["answers"]) == 10
    assert len((tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 24
    assert evaluation["base_model_digest"] == "b" * 64


def test_scoring_twice_gives_the_same_numbers(base_model: Path, splits: Path, tuned: Path, tmp_path: Path) -> None:
    def figures(name: str) -> Any:
        run(job(base_model, splits, tuned, tmp_path / name))
        evaluation = json_files.read(tmp_path / name / files.EVALUATION_FILE, 1)
        return evaluation["metrics"], evaluation["answers"]

    assert figures("a") == figures("b")


def test_a_tie_has_differences_of_exactly_zero_and_is_refused(base_model: Path, splits: Path, tmp_path: Path) -> None:
    verdict = run(job(base_model, splits, untrained(base_model, tmp_path / "same"), tmp_path / "out"))
    assert not verdict.passed
    evaluation = json_files.read(tmp_path / "out" / files.EVALUATION_FILE, 1)
    for metric in evaluation["metrics"].values():
        assert metric["improvement"] == 0.0 and metric["ci95"] == [0.0, 0.0]


def test_a_model_trained_with_a_learning_rate_of_one_is_refused(splits: Path, tuned: Path, tmp_path: Path) -> None:
    # The tuned model plays the base: a random one cannot be made worse.
    marker = {"schema_version": 1, "name": "tuned", "digest": "b" * 64}
    base = tmp_path / "base"
    shutil.copytree(tuned, base)
    (base / files.BASE_MODEL_FILE).write_text(json.dumps(marker), encoding="utf-8")
    settings = Hyperparameters(
        epoch=2.0, learning_rate=1.0, per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    fine_tune(FineTuneJob(splits / "train", splits / "validation", base, tmp_path / "worse", settings))
    verdict = run(job(base, splits, tmp_path / "worse", tmp_path / "out"))
    assert not verdict.passed
    assert any(reason.startswith("loss") for reason in verdict.reasons)


def test_a_model_of_another_dataset_or_base_is_refused(
    base_model: Path, splits: Path, tuned: Path, tmp_path: Path
) -> None:
    info, rows = dataset.read_split(splits / "test", "test")
    write_split(tmp_path / "other", "test", rows, replace(info, dataset_digest="e" * 64))
    with pytest.raises(StepError, match="evaluate it on its own ancestors"):
        run(replace(job(base_model, splits, tuned, tmp_path / "out"), test=tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_training_rows_are_refused_as_test_rows(base_model: Path, splits: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="holds the train split, expected test"):
        run(replace(job(base_model, splits, tuned, tmp_path), test=splits / "train"))


def test_domain_adaptation_is_measured_without_references(
    base_model: Path, splits: Path, tuned: Path, tmp_path: Path
) -> None:
    info, rows = dataset.read_split(splits / "test", "test")
    as_domain = replace(info, tuning_mode="domain", template=None, prompts=["Our vision is", "We serve"])
    write_split(tmp_path / "test", "test", rows, as_domain)
    run(replace(job(base_model, splits, tuned, tmp_path / "out"), test=tmp_path / "test"))
    evaluation = json_files.read(tmp_path / "out" / files.EVALUATION_FILE, 1)
    assert set(evaluation["metrics"]) == {"loss", "perplexity"}
    assert [answer["prompt"] for answer in evaluation["answers"]] == ["Our vision is", "We serve"]
    assert evaluation["answers"][0]["reference"] is None


# ---------------------------------------------------------------- figures


@given(st.text(alphabet="ab c1.,ß'", max_size=40), st.text(alphabet="ab c1.,ß'", max_size=40))
def test_rouge_l_is_the_one_of_googles_package(answer: str, reference: str) -> None:
    theirs = rouge_scorer.RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, reference) == pytest.approx(theirs)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 30)), min_size=2, max_size=40))
def test_the_loss_is_weighted_by_tokens_and_the_interval_holds_its_middle(rows: list[tuple[float, float, int]]) -> None:
    base, tuned, tokens = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    loss, perplexity = compare_losses(base, tuned, tokens, seed=0)
    assert loss.base == pytest.approx(base.sum() / tokens.sum())
    assert loss.ci95[0] <= loss.ci95[1] and loss.n == len(rows)
    assert compare_losses(base, tuned, tokens, seed=0)[0] == loss
    swapped = compare_losses(tuned, base, tokens, seed=0)[0]
    assert swapped.improvement == pytest.approx(-loss.improvement)
    if np.isfinite(perplexity.base):
        assert perplexity.base == pytest.approx(np.exp(loss.base))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        base = random.normal(10, 3, 60)
        (low, high) = compare_losses(base, base - random.normal(1.0, 2.0, 60), np.ones(60), seed)[0].ci95
        covered += low <= 1.0 <= high
    assert 180 <= covered <= 199  # 95 % of 200, and not all of them


# ---------------------------------------------------------------- the report


def evaluation(**changes: Any) -> dict[str, Any]:
    metric = {
        "base": 2.0,
        "tuned": 1.0,
        "improvement": 1.0,
        "ci95": [0.5, 1.5],
        "n": 30,
        "unit": "nats/token",
        "direction": "lower",
    }
    content: dict[str, Any] = {
        "gate": {"passed": True, "reasons": ["loss is better"]},
        "metrics": {"loss": metric},
        "answers": [{"prompt": "p", "reference": None, "base": "b", "tuned": "t"}],
        "parameters": {"max_new_tokens": 8},
        "training": {
            "rows": 1,
            "steps": 2,
            "tokens": 3,
            "tokens_per_second": 4.0,
            "validation_loss": {"before": 2.0, "after": 1.0},
        },
        "dataset_digest": "d",
        "base_model_digest": "b",
        "tuning_mode": "instruction",
        "data_card": True,
    }
    return content | changes


def test_data_in_the_report_is_text_and_never_markup() -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    answer = {"prompt": attack, "reference": attack, "base": attack, "tuned": attack}
    page = report_page.render(evaluation(answers=[answer], gate={"passed": False, "reasons": [attack]}), [])
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") == 5
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page


def test_the_verdict_comes_first_and_a_metric_without_a_number_is_told() -> None:
    missing = {
        "base": None,
        "tuned": None,
        "improvement": None,
        "ci95": None,
        "n": 3,
        "unit": "1",
        "direction": "lower",
    }
    page = report_page.render(
        evaluation(gate={"passed": False, "reasons": ["not finite"]}, metrics={"perplexity": missing}),
        [{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": 1.0}],
    )
    assert page.index("The gate refused") < page.index("not finite") < page.index("Held-out rows") < page.index("<svg")
