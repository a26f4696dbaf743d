"""What JumpStart's training may read besides our own buckets: its weights, its script, its image."""

from pathlib import Path
from typing import Any

from aws_cdk import App, Environment, Stack
from aws_cdk import aws_s3 as s3
from aws_cdk.assertions import Template

from config.settings import load
from stacks.pipeline import PipelineStack
from tests.pipeline.test_jumpstart import settings_of


def statements_of(folder: Path, settings: Any) -> list[Any]:
    (folder / "code.zip").write_bytes(b"code")
    app, environment = App(), Environment(account="123456789012", region="us-east-1")
    buckets = Stack(app, "buckets", env=environment)
    stack = PipelineStack(
        app,
        "pipeline",
        settings=settings,
        raw_bucket=s3.Bucket(buckets, "Raw"),
        artifact_bucket=s3.Bucket(buckets, "Artifacts"),
        step_code_zip=folder / "code.zip",
        env=environment,
    )
    policies = Template.from_stack(stack).find_resources("AWS::IAM::Policy")
    return [one for policy in policies.values() for one in policy["Properties"]["PolicyDocument"]["Statement"]]


def test_the_training_reads_the_weights_and_the_script_that_the_lock_names_and_nothing_else(tmp_path: Path) -> None:
    of_jumpstart = [one for one in statements_of(tmp_path, settings_of(tmp_path)) if "jumpstart-cache-prod" in str(one)]
    read = [str(one["Resource"]) for one in of_jumpstart if one["Action"] == "s3:GetObject"]
    assert len(read) == 2 and all(
        "*" not in resource.split("jumpstart-cache-prod-us-east-1/")[1][:20] for resource in read
    )
    assert any("train-huggingface-llm-mistral-7b.tar.gz*" in resource for resource in read)
    assert all("s3:prefix" in str(one["Condition"]) for one in of_jumpstart if one["Action"] == "s3:ListBucket")


def test_our_own_training_may_read_nothing_of_jumpstart(tmp_path: Path) -> None:
    assert not [one for one in statements_of(tmp_path, load("prod")) if "jumpstart" in str(one)]
