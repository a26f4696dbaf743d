"""The model card of a model package: what the model is for, how it was trained, what was measured, what it comes from.

The form is SageMaker's model package model card schema (a model card without what the package itself says). Evaluate
writes it, since it knows all of it, and the pipeline attaches it to the package that it registers.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline_steps.contract.evaluation import Evaluation, Metric, Slice, Value
from pipeline_steps.contract.metrics import DEFINITIONS

# Limits of the schema, in characters and items.
SHORT, TEXT, OBSERVATION, LONG_TEXT, ARN = 63, 1024, 2096, 2048, 256
HYPERPARAMETERS, HYPERPARAMETER = 100, 255
CARD = 100_000
SLICES = 20
CURVE_POINTS = 50

PURPOSE = {
    "instruction": "to follow instructions of the kind that it was trained on",
    "chat": "to answer in conversations of the kind that it was trained on",
    "domain": "to write and continue texts of the domain that it was trained on",
}
USES = {
    "instruction": "Instructions like those of the training data, put into the prompt template that travels with the model.",
    "chat": "Conversations like those of the training data, in the chat format that travels with the model.",
    "domain": "Continuing texts of the training data's domain. It was not trained to follow instructions.",
}


def content(evaluation: Evaluation, uris: Mapping[str, str]) -> str:
    """The card of the tuned model as JSON on one line. `uris`: where the evaluation's inputs lie (model, test)."""
    ancestors = evaluation.ancestors
    card = {
        "model_overview": {
            "model_creator": _cut(f"fine-tuning pipeline, step code {ancestors.step_code or 'not known'}", TEXT),
            **({"model_artifact": [_cut(uris["model"], TEXT)]} if "model" in uris else {}),
        },
        "intended_uses": _intended_uses(evaluation),
        "training_details": _training_details(evaluation),
        "evaluation_details": [_evaluation_details(evaluation, uris)],
        "additional_information": _additional_information(evaluation),
    }
    text = json.dumps(card, allow_nan=False)
    if len(text) > CARD and (evaluation.slices or ancestors.hyperparameters):  # the largest parts; the report has them
        return content(replace(evaluation, slices=[], ancestors=replace(ancestors, hyperparameters={})), uris)
    return text


def _intended_uses(evaluation: Evaluation) -> dict[str, str]:
    mode, decoding = evaluation.tuning_mode, evaluation.decoding
    return {
        "purpose_of_model": _cut(f"{evaluation.ancestors.base_model}, fine-tuned {PURPOSE[mode]}.", LONG_TEXT),
        "intended_uses": USES[mode],
        "factors_affecting_model_efficiency": (
            "Prompts in another form than the training's, topics and languages that the training data does not hold, and "
            f"answers of more than {decoding.max_new_tokens} tokens, which were not evaluated."
        ),
        "risk_rating": "Unknown",
        "explanations_for_risk_rating": "The pipeline does not rate risk: who knows the use does, before the approval.",
    }


def _training_details(evaluation: Evaluation) -> dict[str, Any]:
    training, ancestors = evaluation.training, evaluation.ancestors
    validation = [point.loss for point in training.validation if point.loss is not None]
    losses = f", validation loss {validation[0]:.4g} to {min(validation):.4g} nats per token" if validation else ""
    figures = {
        "validation loss": min(validation, default=None),
        "optimizer steps": training.steps,
        "step of the model": training.best_step,
        "training rows": training.rows,
        "training tokens": training.tokens,
        "tokens per second": training.tokens_per_second,
        "seconds": training.seconds,
    }
    return {
        "training_observations": _cut(
            f"{training.method}, {training.steps} optimizer steps on {training.rows} rows, ended by: {training.ended_by}; "
            f"the model is of step {training.best_step}{losses}. The cross-entropy of the learned tokens was minimised.",
            TEXT,
        ),
        "training_job_details": {
            "training_datasets": [_cut(f"sha256:{ancestors.dataset_digest}", TEXT)],
            "user_provided_training_metrics": [
                {"name": name, "value": value} for name, value in figures.items() if value is not None
            ],
            "user_provided_hyper_parameters": [
                {"name": _cut(name, HYPERPARAMETER), "value": _cut(_text(value), HYPERPARAMETER)}
                for name, value in list(ancestors.hyperparameters.items())[:HYPERPARAMETERS]
            ],
        },
    }


def _evaluation_details(evaluation: Evaluation, uris: Mapping[str, str]) -> dict[str, Any]:
    decoding = evaluation.decoding
    greedy = "greedy" if not decoding.temperature else f"temperature {decoding.temperature:g}, seed {decoding.seed}"
    metadata = {
        "verdict": "passed" if evaluation.gate.passed else "refused",
        "rows": str(evaluation.rows),
        "decoding": f"{greedy}, at most {decoding.max_new_tokens} new tokens",
        "bootstrap resamples": str(evaluation.resamples),
        "test set": f"sha256:{evaluation.ancestors.test_digest}",
        "champion": evaluation.ancestors.champion_package or "none",
        "evaluation job": evaluation.ancestors.evaluation_job or "none",
    }
    return {
        "name": "held-out rows",
        "evaluation_observation": _cut(evaluation.gate.message, OBSERVATION),
        "datasets": [_cut(uris.get("test") or metadata["test set"], TEXT)],
        "metadata": {name: _cut(value, TEXT) for name, value in metadata.items()},
        "metric_groups": [group for group in _metric_groups(evaluation) if group["metric_data"]],
    }


def _metric_groups(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """The values of each model, the improvements, the slices, the validation loss. What is no number is left out."""
    metrics = evaluation.metrics.values()
    for model in ("tuned", "base", "champion"):
        yield _group(f"{model} model", (_of_model(metric, model) for metric in metrics))
    for other in ("base", "champion"):
        yield _group(f"improvement over the {other}", (_of_improvement(metric, other) for metric in metrics))
    for one in evaluation.slices[:SLICES]:
        yield _group(f"slice {one.value}", _of_slice(one))
    curve = [[point.step, point.loss] for point in evaluation.training.validation if point.loss is not None]
    every = -(-len(curve) // CURVE_POINTS) or 1
    graph = {
        "name": "validation loss",
        "type": "linear_graph",
        "value": curve[::every],
        "x_axis_name": "optimizer step",
        "y_axis_name": "nats per token",
    }
    yield _group("training", iter([graph] if curve else []))


def _group(name: str, found: Iterator[dict[str, Any] | None]) -> dict[str, Any]:
    return {"name": _cut(name, SHORT), "metric_data": [one for one in found if one]}


def _of_model(metric: Metric, model: str) -> dict[str, Any] | None:
    return _simple(metric, metric.values.get(model) or Value(None, None, None), f"{metric.formula}; {metric.unit}")


def _of_improvement(metric: Metric, other: str) -> dict[str, Any] | None:
    improvement = metric.improvements.get(other)
    if improvement is None:
        return None
    meaning = "tuned minus other" if metric.direction == "neither" else "positive is better"
    return _simple(metric, Value(improvement.value, improvement.interval, None), f"{meaning}; {metric.unit}")


def _of_slice(one: Slice) -> Iterator[dict[str, Any] | None]:
    return (_of_model(metric, "tuned") for metric in one.metrics.values())


def _simple(metric: Metric, value: Value, told: str) -> dict[str, Any] | None:
    if value.value is None:
        return None
    digits = DEFINITIONS[metric.name].decimals + 2 if metric.name in DEFINITIONS else 6
    interval = (
        f"95 % interval {value.interval[0]:.{digits}f} to {value.interval[1]:.{digits}f}, " if value.interval else ""
    )
    return {
        "name": _cut(metric.label, HYPERPARAMETER),
        "type": "number",
        "value": value.value,
        "notes": _cut(f"{interval}n = {metric.n}; {told}", TEXT),
    }


def _additional_information(evaluation: Evaluation) -> dict[str, Any]:
    ancestors = evaluation.ancestors
    details = {
        "base model": ancestors.base_model,
        "base model digest": ancestors.base_model_digest,
        "dataset digest": ancestors.dataset_digest,
        "test set digest": ancestors.test_digest,
        "step code": ancestors.step_code,
        "pipeline execution": ancestors.execution,
        "training job": ancestors.training_job,
    }
    return {
        "ethical_considerations": (
            "Not assessed by the pipeline, beyond a search for personal data in the training rows, which the data card tells of."
        ),
        "caveats_and_recommendations": (
            f"All figures rest on {evaluation.rows} held-out rows of the same source as the training rows; their intervals tell "
            "how far other rows of that source may differ, and nothing about other sources. Read the report's answers before "
            "an approval."
        ),
        "custom_details": {name: _cut(value, TEXT) for name, value in details.items() if value},
    }


def _cut(text: str, limit: int) -> str:
    """The text within a limit of the schema, and never empty."""
    return (text if len(text) <= limit else f"{text[: limit - 1]}…") or "-"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
