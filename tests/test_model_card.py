"""The model card: SageMaker's own classes take it whole, and no text outgrows the limits that AWS documents."""

import json
from dataclasses import replace
from typing import Any

import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sagemaker.core.shapes.model_card_shapes import ModelCardContent

from pipeline_steps import model_card
from pipeline_steps.contract.evaluation import Improvement, Value
from tests import evaluations

URIS = {"model": "s3://artifacts/runs/x/model/job/output/model/", "test": "s3://artifacts/datasets/d/test/"}
SHAPE = botocore.session.Session().get_service_model("sagemaker").shape_for("ModelCardContent")

# AWS's model package model card schema: the sections a package's card may have, and characters of its texts.
SECTIONS = {
    "model_overview": {"model_creator", "model_artifact"},
    "intended_uses": {
        "purpose_of_model",
        "intended_uses",
        "factors_affecting_model_efficiency",
        "risk_rating",
        "explanations_for_risk_rating",
    },
    "training_details": {"objective_function", "training_observations", "training_job_details"},
    "additional_information": {"ethical_considerations", "caveats_and_recommendations", "custom_details"},
}
LIMITS = {
    "intended_uses": 2048, "evaluation_observation": 2096, "evaluation_job_arn": 256, "name": 255, "notes": 1024,
    "model_creator": 1024, "training_observations": 1024, "model_artifact": 1024, "training_datasets": 1024,
    "datasets": 1024, "metadata": 1024, "custom_details": 1024, "x_axis_name": 63, "y_axis_name": 63,
    "user_provided_hyper_parameters": 255, "ethical_considerations": 2048, "caveats_and_recommendations": 2048,
}  # fmt: skip


def problems(card: Any, limit: int = 2048, where: str = "") -> list[str]:
    """Texts that are empty or too long."""
    if isinstance(card, str):
        return [] if 1 <= len(card) <= limit else [f"{where}: {len(card)} characters, at most {limit}"]
    members = card.items() if isinstance(card, dict) else enumerate(card) if isinstance(card, list) else []
    return [found for key, one in members for found in problems(one, LIMITS.get(key, limit), f"{where}.{key}")]


def checked(text: str) -> dict[str, Any]:
    """The card, if SageMaker would take it."""
    assert len(text) <= SHAPE.metadata["max"] and "\n" not in text
    card: dict[str, Any] = json.loads(text)
    taken = ModelCardContent.model_validate(card).model_dump(mode="json", exclude_unset=True)
    assert taken == card, "the SDK's class left something out: the card has what the schema does not know"
    for section, allowed in SECTIONS.items():
        assert set(card[section]) <= allowed
    assert problems(card) == []
    for group in card["evaluation_details"][0]["metric_groups"]:
        assert len(group["name"]) <= 63 and group["metric_data"]
    return card


def test_the_card_tells_purpose_training_figures_and_ancestors() -> None:
    card = checked(model_card.content(evaluations.evaluation(), URIS))
    assert "follow instructions" in card["intended_uses"]["purpose_of_model"]
    assert card["model_overview"]["model_artifact"] == [URIS["model"]]
    (details,) = card["evaluation_details"]
    groups = {group["name"]: group["metric_data"] for group in details["metric_groups"]}
    assert {
        "tuned model",
        "base model",
        "champion model",
        "improvement over the base",
        "slice rewrite",
        "training",
    } <= set(groups)
    loss = next(one for one in groups["tuned model"] if one["name"] == "loss")
    assert loss["value"] == 1.295 and "95 % interval" in loss["notes"] and "n = 61" in loss["notes"]
    assert details["metadata"]["verdict"] == "passed" and details["datasets"] == [URIS["test"]]
    parameters = {
        one["name"]: one["value"]
        for one in card["training_details"]["training_job_details"]["user_provided_hyper_parameters"]
    }
    assert parameters == {"peft_type": "lora", "lora_r": "16", "epoch": "1.0", "learning_rate": "0.0005"}
    assert card["additional_information"]["custom_details"]["dataset digest"] == "d" * 64


@pytest.mark.parametrize("mode", ["instruction", "domain", "chat"])
def test_each_tuning_mode_has_a_card(mode: str) -> None:
    checked(model_card.content(evaluations.evaluation(tuning_mode=mode), {}))


def test_what_is_no_number_is_left_out() -> None:
    broken = replace(
        evaluations.metrics()["perplexity"],
        values={"base": Value(7.0, None, None), "tuned": Value(None, None, None)},
        improvements={"base": Improvement(None, None)},
    )
    found = evaluations.evaluation(metrics={"perplexity": broken}, slices=[])
    (details,) = checked(model_card.content(found, URIS))["evaluation_details"]
    assert [group["name"] for group in details["metric_groups"]] == ["base model", "training"]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=3000), st.sampled_from([0, 3, 120]))
def test_no_text_outgrows_the_schema(text: str, number: int) -> None:
    found = evaluations.evaluation()
    hyperparameters = {f"{place}{text}": text for place in range(number)}
    long = replace(
        found,
        gate=replace(found.gate, message=text),
        slices=[replace(one, value=text) for one in found.slices * 10],
        training=replace(found.training, ended_by=text),
        ancestors=replace(found.ancestors, base_model=text, step_code=text, hyperparameters=hyperparameters),
    )
    card = checked(model_card.content(long, {"model": f"s3://{text}"}))
    assert len(card["training_details"]["training_job_details"]["user_provided_hyper_parameters"]) <= 100


def test_a_card_that_would_be_too_large_leaves_slices_and_hyperparameters_out() -> None:
    found = evaluations.evaluation()
    large = {f"{place}{'x' * 240}": "y" * 255 for place in range(100)}
    many = [replace(one, value="ü" * 60) for one in found.slices * 10]
    long = replace(found, slices=many, ancestors=replace(found.ancestors, hyperparameters=large, base_model="ü" * 900))
    checked(model_card.content(long, URIS))
    larger = {f"{place}{'ü' * 240}": "ü" * 255 for place in range(100)}
    card = checked(model_card.content(replace(long, ancestors=replace(long.ancestors, hyperparameters=larger)), URIS))
    assert card["training_details"]["training_job_details"]["user_provided_hyper_parameters"] == []
