"""`finetune jumpstart lookup` on a local AWS whose hub holds the tests' document."""

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from cli import jumpstart
from cli.aws import Deployment
from cli.console import CommandError
from config.settings import BaseModelSettings, JumpStartSettings, Settings
from tests.jumpstart import jumpstart_cache
from tests.jumpstart.jumpstart_cache import MODEL_ID, VERSION
from tests.local_aws.sagemaker_server import Server, running_server


@pytest.fixture
def server() -> Server:
    server = running_server()
    jumpstart_cache.clear(server.root / "run")
    return server


@pytest.fixture
def deployment(server: Server, tmp_path: Path) -> Deployment:
    settings = Settings(
        name="js",
        account="123456789012",
        base_model=BaseModelSettings(name="mistral"),
        jumpstart=JumpStartSettings(model_id=MODEL_ID, lock=str(tmp_path / "locks" / "lock.json")),
    )
    return Deployment(settings, server.process.url)


def test_a_lookup_writes_the_lock_once_and_a_second_one_changes_nothing(
    deployment: Deployment, server: Server, tmp_path: Path
) -> None:
    jumpstart_cache.publish(server.root / "run", "2.9.1", "2.10.0")
    lock, became = jumpstart.lookup(deployment, MODEL_ID, None)
    assert lock.version == "2.10.0" and became.endswith("is written; commit it")  # the newest, by numbers
    path = tmp_path / "locks" / "lock.json"
    first = path.read_bytes()
    assert "Comment" not in json.loads(first)["document"] and json.loads(first)["document"]["TrainingVolumeSize"] == 512
    assert jumpstart.lookup(deployment, MODEL_ID, None)[1].endswith("is up to date")
    assert path.read_bytes() == first
    assert jumpstart.lookup(deployment, MODEL_ID, VERSION)[1].endswith("is changed; commit it")
    assert "has no end-user licence agreement" in jumpstart.described(lock)[0]


def test_a_model_or_version_that_is_not_there_is_told_with_those_that_are(
    deployment: Deployment, server: Server
) -> None:
    with pytest.raises(CommandError, match=f"has no {MODEL_ID}; check the model id"):
        jumpstart.lookup(deployment, MODEL_ID, None)
    jumpstart_cache.publish(server.root / "run", "2.9.1")
    with pytest.raises(CommandError, match=rf"has no {MODEL_ID} 9\.9\.9; its versions: 2\.9\.1"):
        jumpstart.lookup(deployment, MODEL_ID, "9.9.9")


def test_a_document_that_cannot_be_trained_leaves_the_lock_as_it_was(
    deployment: Deployment, server: Server, tmp_path: Path
) -> None:
    jumpstart_cache.publish(server.root / "run")
    jumpstart.lookup(deployment, MODEL_ID, None)
    before = (tmp_path / "locks" / "lock.json").read_bytes()
    jumpstart_cache.publish(server.root / "run", TrainingSupported=False)
    with pytest.raises(CommandError, match="cannot be fine-tuned: its document has no TrainingSupported"):
        jumpstart.lookup(deployment, MODEL_ID, None)
    assert (tmp_path / "locks" / "lock.json").read_bytes() == before


def test_values_that_the_document_refuses_are_told_before_a_start(deployment: Deployment, server: Server) -> None:
    jumpstart_cache.publish(server.root / "run")
    jumpstart.lookup(deployment, MODEL_ID, None)
    settings = deployment.settings.model_copy(update={"backend": "jumpstart"})
    jumpstart.check_parameters(settings, {"Epoch": "3", "PeftType": "lora", "MinTestRows": "5"})
    for parameters, said in (
        ({"Epoch": "1.5", "LearningRate": "7"}, r"(?s)epoch is '1.5', .*learning_rate is '7'"),
        ({"PeftType": "qlora"}, "peft_type is 'qlora', allowed: lora, None"),
        ({"TrainingInstanceType": "ml.m5.large"}, "is not trained on 'ml.m5.large'; allowed: ml.g5.12xlarge"),
    ):
        with pytest.raises(
            CommandError, match=f"the execution was not started: .*{said}" if "(?s)" not in said else said
        ):
            jumpstart.check_parameters(settings, parameters)
    jumpstart.check_parameters(deployment.settings, {"Epoch": "1.5"})  # our own training takes parts of epochs


def test_hubs_hold_models_only_and_say_so(server: Server) -> None:
    with pytest.raises(ClientError, match="hubs of models only"):
        server.sagemaker.describe_hub_content(
            HubName="SageMakerPublicHub", HubContentType="Notebook", HubContentName="any"
        )
    with pytest.raises(ClientError, match="does not exist in hub"):
        server.sagemaker.list_hub_content_versions(
            HubName="SageMakerPublicHub", HubContentType="Model", HubContentName="any"
        )
