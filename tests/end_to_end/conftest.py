"""One local AWS with the product deployed by the real CDK CLI, shared by the end-to-end tests."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import base_models, local
from cli.aws import REPOSITORY, STEPS_PYTHON, Deployment
from config.settings import Settings, load
from local_aws import LocalAws

CONFIGURATION = str(Path(__file__).with_name("tiny.yaml"))


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load(CONFIGURATION)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-mistral")
    text = REPOSITORY / "examples" / "instruction" / "train" / "train.jsonl"
    maker = Path(__file__).with_name("make_tiny_mistral.py")
    subprocess.run([STEPS_PYTHON, maker, text, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def aws_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's local AWS."""
    return tmp_path_factory.mktemp("local_aws") / "aws"


@pytest.fixture(scope="session")
def aws(settings: Settings, aws_root: Path) -> Iterator[LocalAws]:
    with local.running(settings, aws_root) as running:
        yield running


def deployed(
    settings: Settings, aws: LocalAws, model: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """The product in `aws`, with `model` imported if there is one."""
    clock = time.monotonic()
    local.deploy(settings, aws.url, tmp_path_factory.mktemp("cdk") / "cdk.log", CONFIGURATION)
    print(f"cdk bootstrap and deploy: {time.monotonic() - clock:.1f} s")
    deployment = Deployment(settings, aws.url)
    if model is not None:
        base_models.import_model(deployment, str(model), settings.base_model.name, print)
    return deployment


@pytest.fixture(scope="session")
def empty_deployment(settings: Settings, aws: LocalAws, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Deployed, without a base model."""
    return deployed(settings, aws, None, tmp_path_factory)


@pytest.fixture(scope="session")
def deployment(empty_deployment: Deployment, tiny_model: Path, settings: Settings) -> Deployment:
    """Deployed, with the tiny base model imported."""
    base_models.import_model(empty_deployment, str(tiny_model), settings.base_model.name, print)
    return empty_deployment
