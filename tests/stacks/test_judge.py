"""The judge's permission: the one model that the settings name, and nothing without it."""

from pathlib import Path
from typing import Any

from aws_cdk import App, Environment, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk.assertions import Template

from config.settings import Settings, load
from stacks.pipeline import PipelineStack


def bedrock_statements(folder: Path, judge: str | None) -> list[Any]:
    zip_file = folder / "code.zip"
    zip_file.write_bytes(b"code")
    values = load("prod").model_dump()
    values["gate"]["judge_model_id"] = judge
    app = App()
    environment = Environment(account="123456789012", region="us-east-1")
    buckets = Stack(app, "buckets", env=environment)
    stack = PipelineStack(
        app,
        "pipeline",
        settings=Settings.model_validate(values),
        raw_bucket=s3.Bucket(buckets, "Raw"),
        artifact_bucket=s3.Bucket(buckets, "Artifacts"),
        key=kms.Key(buckets, "Key"),
        step_code_zip=zip_file,
        env=environment,
    )
    policies = Template.from_stack(stack).find_resources("AWS::IAM::Policy")
    statements = [
        statement for policy in policies.values() for statement in policy["Properties"]["PolicyDocument"]["Statement"]
    ]
    return [statement for statement in statements if "bedrock" in str(statement["Action"])]


def test_only_the_named_model_may_be_asked_and_only_by_evaluate(tmp_path: Path) -> None:
    (statement,) = bedrock_statements(tmp_path, "us.anthropic.claude-sonnet-v1:0")
    assert statement["Action"] == "bedrock:InvokeModel"
    resources = str(statement["Resource"])
    assert ":bedrock:*::foundation-model/anthropic.claude-sonnet-v1:0" in resources
    assert ":bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-v1:0" in resources


def test_without_a_judge_nobody_may_ask_bedrock(tmp_path: Path) -> None:
    assert bedrock_statements(tmp_path, None) == []
