"""The training that JumpStart does, as the pipeline asks for it: the lock file's word, checked when it is synthesized."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from botocore.validate import ParamValidator

from config import jumpstart_lock
from config.jumpstart_lock import LockError
from config.settings import Settings, SettingsError, load
from pipeline.definition import finetune_definition
from tests.jumpstart import jumpstart_cache
from tests.jumpstart.jumpstart_cache import MODEL_ID, VERSION
from tests.pipeline.test_definition import SERVICE, all_steps, evaluated, values_of, with_resources

CONFIGURATION = """
name: js
region: us-east-1
backend: jumpstart
base_model: {{name: mistral-7b}}
jumpstart:
  model_id: huggingface-llm-mistral-7b
  lock: {lock}
  {more}
"""


def settings_of(folder: Path, more: str = "", **changed: Any) -> Settings:
    """Settings with a lock of the tests' document, whose top-level keys `changed` are others (None: removed)."""
    content = {name: value for name, value in {**jumpstart_cache.document(), **changed}.items() if value is not None}
    lock = jumpstart_lock.from_document(MODEL_ID, VERSION, "us-east-1", "arn:hub", content, "d" * 64)
    (folder / "lock.json").write_text(lock.to_json(), encoding="utf-8")
    path = folder / "js.yaml"
    path.write_text(CONFIGURATION.format(lock=folder / "lock.json", more=more), encoding="utf-8")
    return load(str(path))


def fine_tune_of(settings: Settings) -> dict[str, Any]:
    definition = with_resources(json.loads(finetune_definition(settings)))
    (step,) = [step for step in all_steps(definition["Steps"]) if step["Name"] == "FineTune"]
    return evaluated(step["Arguments"], values_of(definition))  # type: ignore[no-any-return]


def test_the_flow_around_the_training_is_the_same(tmp_path: Path) -> None:
    definition = json.loads(finetune_definition(settings_of(tmp_path)))
    names = [step["Name"] for step in all_steps(definition["Steps"])]
    assert names == [
        "PrepareData", "NewTraining", "ToJumpStart", "FineTune", "FromJumpStart", "Evaluate", "QualityGate", "Register",
        "AutoDeploy", "Deploy", "Fail",
    ]  # fmt: skip
    model = [step["Arguments"] for step in all_steps(definition["Steps"]) if step["Name"] in ("Evaluate", "Register")]
    assert all(
        "FromJumpStart" in json.dumps(arguments)
        and "FineTune"
        not in json.dumps(
            arguments["ProcessingInputs"] if "ProcessingInputs" in arguments else arguments["InferenceSpecification"]
        )
        for arguments in model
    )


def test_every_request_is_one_that_the_service_takes(tmp_path: Path) -> None:
    definition = with_resources(json.loads(finetune_definition(settings_of(tmp_path))))
    parameters = values_of(definition)
    for step in all_steps(definition["Steps"]):
        if step["Type"] in ("Processing", "Training"):
            request = {**evaluated(step["Arguments"], parameters), f"{step['Type']}JobName": "job"}
            shape = SERVICE.operation_model(f"Create{step['Type']}Job").input_shape
            assert not ParamValidator().validate(request, shape).has_errors(), step["Name"]


def test_the_training_job_is_what_the_document_says(tmp_path: Path) -> None:
    request, document = fine_tune_of(settings_of(tmp_path)), jumpstart_cache.document()
    algorithm = request["AlgorithmSpecification"]
    assert algorithm["TrainingImage"] == document["TrainingEcrUri"] and "ContainerEntrypoint" not in algorithm
    assert algorithm["MetricDefinitions"] == document["TrainingMetrics"]
    channels = {one["ChannelName"]: one["DataSource"]["S3DataSource"] for one in request["InputDataConfig"]}
    assert set(channels) == {"training", "validation", "model", "code"}
    assert channels["model"]["S3Uri"] == document["TrainingArtifactUri"]
    assert channels["code"]["S3Uri"] == document["TrainingPrepackedScriptUri"]
    assert "ModelAccessConfig" not in channels["model"] and "Environment" not in request
    assert request["ResourceConfig"]["VolumeSizeInGB"] == 512
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 360_000}
    assert request["OutputDataConfig"]["CompressionType"] == "NONE"
    assert request["EnableNetworkIsolation"] is True and request["EnableInterContainerTrafficEncryption"] is True
    assert "CheckpointConfig" not in request
    # Every hyperparameter of the document is sent, those of the container too, each as a text.
    sent = request["HyperParameters"]
    assert set(sent) == {one["Name"] for one in document["Hyperparameters"]}
    assert (
        sent["sagemaker_program"] == "transfer_learning.py" and sent["lora_r"] == "64" and sent["peft_type"] == "None"
    )
    assert sent["add_input_output_demarcation_key"] == "False"  # it is in our template already, where it is wanted


def test_parameters_have_the_documents_types_and_options(tmp_path: Path) -> None:
    found = {one["Name"]: one for one in json.loads(finetune_definition(settings_of(tmp_path)))["Parameters"]}
    assert (found["Epoch"]["Type"], found["Epoch"]["DefaultValue"]) == ("Integer", 1)
    assert found["LearningRate"]["DefaultValue"] == 6e-06
    assert found["PeftType"]["EnumValues"] == ["lora", "None"]
    # ml.p4d.24xlarge has variables of its own in the document, and one definition cannot have both.
    assert found["TrainingInstanceType"]["EnumValues"] == ["ml.g5.12xlarge", "ml.g5.24xlarge", "ml.g5.48xlarge"]


def test_an_instance_type_brings_its_own_variables(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "accept_eula: false\ntraining: {instance_type: ml.p4d.24xlarge}")
    assert fine_tune_of(settings)["Environment"] == {"NCCL_DEBUG": "WARN"}


def test_a_licence_agreement_is_accepted_where_there_is_one_and_nowhere_else(tmp_path: Path) -> None:
    eula = {"HostingEulaUri": "s3://jumpstart-cache-prod-us-east-1/eula.txt"}
    with pytest.raises(LockError, match=r"has an end-user licence agreement: read s3://.*accept_eula: true"):
        finetune_definition(settings_of(tmp_path, **eula))
    request = fine_tune_of(settings_of(tmp_path, "accept_eula: true", **eula))
    (model,) = [one for one in request["InputDataConfig"] if one["ChannelName"] == "model"]
    assert model["DataSource"]["S3DataSource"]["ModelAccessConfig"] == {"AcceptEula": True}
    assert request["Environment"] == {"accept_eula": "true"}
    with pytest.raises(LockError, match="has no end-user licence agreement that could be accepted"):
        finetune_definition(settings_of(tmp_path, "accept_eula: true"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("{epoch: 0}", "epoch is '0', allowed: a whole number from 1 to 1000"),
        ("{epoch: 1.5}", "epoch is '1.5', allowed: a whole number from 1 to 1000"),
        ("{learning_rate: 2}", "learning_rate is '2', allowed: a number from 1e-08 to 1"),
        ("{learning_rate: .nan}", "learning_rate is 'nan'"),
        ("{lr_scheduler_type: cosine}", "allowed: constant_with_warmup, linear"),
        ("{epohc: 3}", "hyperparameter 'epohc' (value '3') is unknown to huggingface-llm-mistral-7b 2.9.1"),
        ("{sagemaker_program: mine.py}", "hyperparameter 'sagemaker_program' (value 'mine.py') is unknown"),
        ("{instruction_tuned: 'True'}", "this is a matter of the data; set dataset.tuning_mode"),
        ("{validation_split_ratio: 0.5}", "set dataset.validation_split_ratio"),
    ],
)
def test_a_value_that_the_document_refuses_fails_the_synth(tmp_path: Path, values: str, said: str) -> None:
    with pytest.raises(LockError, match=re.escape(said)):
        finetune_definition(settings_of(tmp_path, f"hyperparameters: {values}"))


def test_all_wrong_values_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(LockError) as caught:
        finetune_definition(settings_of(tmp_path, "hyperparameters: {epoch: 0, lora_r: 5000, nonsense: 1}"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_lock_that_is_missing_stale_or_damaged_says_what_to_do(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    lock = tmp_path / "lock.json"
    content = json.loads(lock.read_text(encoding="utf-8"))
    for changed, said in (
        ({"region": "eu-west-1"}, "is stale: its region is 'eu-west-1', the configuration's 'us-east-1'"),
        ({"model_id": "other"}, "is stale: its model is 'other'"),
        ({"schema_version": 0}, "has another form than this version reads"),
        ({"surplus": 1}, "is damaged"),
    ):
        lock.write_text(json.dumps({**content, **changed}), encoding="utf-8")
        with pytest.raises(LockError, match=f"{said}.*finetune jumpstart lookup {MODEL_ID}"):
            finetune_definition(settings)
    lock.write_text("{", encoding="utf-8")
    with pytest.raises(LockError, match="is not valid JSON"):
        finetune_definition(settings)
    lock.unlink()
    with pytest.raises(LockError, match=f"there is no lock file .*finetune jumpstart lookup {MODEL_ID}"):
        finetune_definition(settings)


def test_a_document_that_cannot_train_makes_no_lock() -> None:
    document = {**jumpstart_cache.document(), "TrainingSupported": False, "TrainingEcrUri": None}
    with pytest.raises(LockError, match="cannot be fine-tuned: its document has no TrainingEcrUri, TrainingSupported"):
        jumpstart_lock.from_document(MODEL_ID, VERSION, "us-east-1", "arn", document, "d")


def test_settings_of_our_own_training_are_refused_rather_than_ignored(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"training\.epoch, training\.lora_r: with backend 'jumpstart'.*jumpstart\.hyperparameters"
    ):
        settings_of(tmp_path, "accept_eula: false\ntraining: {epoch: 2.0, lora_r: 8}")
    with pytest.raises(LockError, match="JumpStart's script is not known to go on from checkpoints"):
        finetune_definition(
            settings_of(tmp_path, "accept_eula: false\ntraining: {spot: true, max_runtime_hours: 1, max_wait_hours: 2}")
        )
    with pytest.raises(SettingsError, match="the group jumpstart is missing"):
        (tmp_path / "x.yaml").write_text("name: js\nbackend: jumpstart\nbase_model: {name: m}\n", encoding="utf-8")
        load(str(tmp_path / "x.yaml"))


def test_another_lock_or_value_is_another_training(tmp_path: Path) -> None:
    """The run's fingerprint, by which a training is not repeated, knows the document and the values."""

    def fingerprint(more: str = "", **changed: Any) -> str:
        definition = json.loads(finetune_definition(settings_of(tmp_path, more, **changed)))
        arguments = definition["Steps"][0]["Arguments"]["AppSpecification"]["ContainerArguments"]
        return json.dumps(arguments[arguments.index("--run_parameters") + 1])

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint("hyperparameters: {lora_r: 8}")
