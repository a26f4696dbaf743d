"""The judge's permission: the one model that the settings name, and nothing without it."""

from pathlib import Path
from typing import Any

from config.settings import Settings, load
from tests.stacks.policies import statements_of


def bedrock_statements(folder: Path, judge: str | None) -> list[Any]:
    values = load("prod").model_dump()
    values["gate"]["judge_model_id"] = judge
    statements = statements_of(folder, Settings.model_validate(values))
    return [statement for statement in statements if "bedrock" in str(statement["Action"])]


def test_only_the_named_model_may_be_asked_and_only_by_evaluate(tmp_path: Path) -> None:
    (statement,) = bedrock_statements(tmp_path, "us.anthropic.claude-sonnet-v1:0")
    assert statement["Action"] == "bedrock:InvokeModel"
    resources = str(statement["Resource"])
    assert ":bedrock:*::foundation-model/anthropic.claude-sonnet-v1:0" in resources
    assert ":bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-v1:0" in resources


def test_without_a_judge_nobody_may_ask_bedrock(tmp_path: Path) -> None:
    assert bedrock_statements(tmp_path, None) == []
