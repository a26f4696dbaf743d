"""A local AWS with just the storage stack's outputs, made by CloudFormation, for the commands to work on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import local
from cli.aws import Deployment
from cli.console import console
from config.settings import BaseModelSettings, Settings
from tests.cli import hub_server

TEMPLATE = {
    "Resources": {name: {"Type": "AWS::S3::Bucket"} for name in ("RawBucket", "ArtifactBucket")},
    "Outputs": {f"{name}Name": {"Value": {"Ref": name}} for name in ("RawBucket", "ArtifactBucket")},
}


@pytest.fixture(autouse=True)
def output_goes_to_stdout() -> Iterator[None]:
    """A command with --json, called in this process, sends all else to stderr; the next one shall not."""
    yield
    console.stderr = False


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = Settings(name="cli", account="123456789012", base_model=BaseModelSettings(name="tiny"))
    with local.running(settings, tmp_path_factory.mktemp("local_aws") / "state") as aws:
        deployment = Deployment(settings, aws.url)
        deployment.client("cloudformation").create_stack(StackName="cli-storage", TemplateBody=json.dumps(TEMPLATE))
        yield deployment


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a transformers model; nobody loads it here."""
    return hub_server.write(tmp_path / "model", hub_server.model_files())
