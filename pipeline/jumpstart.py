"""FineTune with JumpStart's image, script and weights, in the place of our own; what surrounds it stays as it is.

ToJumpStart -> FineTune -> FromJumpStart

All that the training job is told comes from the model's lock file (config/jumpstart_lock.py).
"""

from typing import Any

from sagemaker.core.workflow.functions import Join, JsonGet
from sagemaker.core.workflow.properties import PropertyFile
from sagemaker.mlops.workflow.steps import StepTypeEnum

from config import jumpstart_lock
from config.jumpstart_lock import Training
from config.settings import Settings
from pipeline import definition
from pipeline.definition import Parameters, Tuned, channel, data_card_value, processing_request
from pipeline.sdk import CACHE_FOR_30_DAYS, Request, RequestStep
from pipeline_steps.contract import files

MODES = PropertyFile(name="JumpStartData", output_name=files.REPORT_OUTPUT, path=files.JUMPSTART_DATA_FILE)
TUNED_INPUT = "tuned"  # FromJumpStart's folder with what the training left


def tune(settings: Settings, parameters: Parameters, prepared: RequestStep) -> Tuned:
    """The three steps, and the model folder that the last one leaves."""
    training = jumpstart_lock.training_of(settings)
    data = to_jumpstart(settings, parameters, prepared)
    tuned = fine_tune(settings, parameters, training, data)
    model = from_jumpstart(settings, tuned)
    uri = Join(on="/", values=[definition.output_uri(model, files.MODEL_OUTPUT), ""])  # hosting demands the last slash
    return Tuned([data, tuned, model], uri, tuned.properties.TrainingJobName)


def to_jumpstart(settings: Settings, parameters: Parameters, prepared: RequestStep) -> RequestStep:
    """The dataset's splits in JumpStart's layout, beside the dataset and under its digest."""
    request = processing_request(
        settings,
        role="${PrepareRole}",
        instance_type=settings.processing.prepare_instance_type,
        arguments=["to-jumpstart"],
        inputs={split: data_card_value(f"uris.{split}") for split in files.JUMPSTART_OUTPUTS},
        outputs=[files.REPORT_OUTPUT, *files.JUMPSTART_OUTPUTS.values()],
        isolated=True,
        image_uri=settings.images.prepare_image_uri,
    )
    for output in request["ProcessingOutputConfig"]["Outputs"]:
        if output["OutputName"] != files.REPORT_OUTPUT:
            output["S3Output"]["S3Uri"] = data_uri(output["OutputName"])
    return RequestStep(
        "ToJumpStart",
        StepTypeEnum.PROCESSING,
        request,
        describe_shape="DescribeProcessingJobResponse",
        property_files=[MODES],
        cache=CACHE_FOR_30_DAYS,
        depends_on=[prepared],
    )


def fine_tune(settings: Settings, parameters: Parameters, training: Training, data: RequestStep) -> RequestStep:
    """JumpStart's training job."""
    lock, document = training.lock, training.lock.document
    variant = lock.for_instance(training.instance_type)
    request = definition.training_request(settings, parameters)
    given = settings.training.model_fields_set
    hyperparameters: dict[str, Any] = {
        **training.values,
        "epoch": parameters.epoch.to_string(),
        "learning_rate": parameters.learning_rate.to_string(),
    }
    if parameters.peft_type:
        hyperparameters["peft_type"] = parameters.peft_type
    for name in ("instruction_tuned", "chat_dataset"):
        if name in training.values:
            hyperparameters[name] = JsonGet(step_name="ToJumpStart", property_file=MODES, json_path=name)

    weights = channel("model", lock.model_uri(training.instance_type), ContentType="application/x-sagemaker-model")
    environment = {**(variant.get("EnvironmentVariables") or {})}
    if lock.eula_uri:  # accepted, or the synth would have failed
        weights["DataSource"]["S3DataSource"]["ModelAccessConfig"] = {"AcceptEula": True}
        environment["accept_eula"] = "true"
    request |= {
        "AlgorithmSpecification": {
            "TrainingImage": lock.image_uri(training.instance_type),
            "TrainingInputMode": "File",
            "MetricDefinitions": lock.metric_definitions,
        },
        "HyperParameters": hyperparameters,
        "InputDataConfig": [
            channel("training", data_uri(files.JUMPSTART_OUTPUTS["train"])),
            channel("validation", data_uri(files.JUMPSTART_OUTPUTS["validation"])),
            weights,
            channel("code", lock.script_uri, ContentType="application/x-code"),
        ],
        "EnableNetworkIsolation": bool(document.get("TrainingEnableNetworkIsolation", True)),
    }
    if environment:
        request["Environment"] = environment
    if "volume_gb" not in given and document.get("TrainingVolumeSize"):
        request["ResourceConfig"]["VolumeSizeInGB"] = int(document["TrainingVolumeSize"])
    if "max_runtime_hours" not in given:
        request["StoppingCondition"]["MaxRuntimeInSeconds"] = lock.max_runtime_seconds
    return RequestStep(
        "FineTune",
        StepTypeEnum.TRAINING,
        request,
        describe_shape="DescribeTrainingJobResponse",
        cache=CACHE_FOR_30_DAYS,
        depends_on=[data],
    )


def from_jumpstart(settings: Settings, tuned: RequestStep) -> RequestStep:
    """JumpStart's output, merged or an adapter, as a model folder like FineTune's own."""
    request: Request = processing_request(
        settings,
        role="${EvaluateRole}",
        instance_type=settings.processing.evaluate_instance_type,
        arguments=["from-jumpstart", "--training_job", tuned.properties.TrainingJobName],
        inputs={
            "train": data_card_value("uris.train"),
            "validation": data_card_value("uris.validation"),
            "base": definition.base_model_uri(settings),
            TUNED_INPUT: definition.tuned_model_uri(tuned),
        },
        outputs=[files.MODEL_OUTPUT],
    )
    return RequestStep(
        "FromJumpStart",
        StepTypeEnum.PROCESSING,
        request,
        describe_shape="DescribeProcessingJobResponse",
        cache=CACHE_FOR_30_DAYS,
    )


def data_uri(name: str) -> Join:
    """Addressed by the dataset's content, so that the step cache knows a training on the same data."""
    return Join(on="/", values=["s3://${ArtifactBucket}/datasets", data_card_value("dataset_digest"), f"{name}/"])
