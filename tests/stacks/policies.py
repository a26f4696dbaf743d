"""The pipeline stack's policies, synthesized by themselves."""

from pathlib import Path
from typing import Any

from aws_cdk import App, Environment, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk.assertions import Template

from config.settings import Settings
from stacks.network import Network
from stacks.pipeline import PipelineStack


def statements_of(folder: Path, settings: Settings) -> list[Any]:
    """All statements of all roles' policies. `folder` gets a file that stands for the step code."""
    (folder / "code.zip").write_bytes(b"code")
    app, environment = App(), Environment(account="123456789012", region="us-east-1")
    data = Stack(app, "data", env=environment)
    stack = PipelineStack(
        app,
        "pipeline",
        settings=settings,
        raw_bucket=s3.Bucket(data, "Raw"),
        artifact_bucket=s3.Bucket(data, "Artifacts"),
        key=kms.Key(data, "Key"),
        step_code_zip=folder / "code.zip",
        network=Network.of_the_user(settings.network) if settings.network else None,
        env=environment,
    )
    policies = Template.from_stack(stack).find_resources("AWS::IAM::Policy")
    return [one for policy in policies.values() for one in policy["Properties"]["PolicyDocument"]["Statement"]]
