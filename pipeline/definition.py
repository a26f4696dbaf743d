"""The pipelines: one function a step, named as the step.

<name>-finetune   PrepareData -> NewTraining { FineTune -> Evaluate -> QualityGate { Register -> AutoDeploy { Deploy } } else Fail }
                  with backend jumpstart ToJumpStart -> FineTune -> FromJumpStart (jumpstart.py) in FineTune's place
<name>-deploy     Deploy alone, given a model package
<name>-compare    Compare alone, given a tuned model and prompts

Names in ${...} are deployed resources; the stack puts them in (RESOURCES lists them).
"""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, get_args

from sagemaker.core.helper.pipeline_variable import PipelineVariable
from sagemaker.core.workflow.conditions import ConditionEquals
from sagemaker.core.workflow.execution_variables import ExecutionVariables
from sagemaker.core.workflow.functions import Join, JsonGet
from sagemaker.core.workflow.parameters import Parameter, ParameterFloat, ParameterInteger, ParameterString
from sagemaker.core.workflow.properties import PropertyFile
from sagemaker.mlops.workflow.condition_step import ConditionStep
from sagemaker.mlops.workflow.fail_step import FailStep
from sagemaker.mlops.workflow.steps import StepTypeEnum

from config import jumpstart_lock
from config.settings import ApprovalStatus, PeftType, Settings, TrainingSettings, TuningMode
from pipeline import gates
from pipeline.sdk import (
    CACHE_FOR_30_DAYS,
    Request,
    RequestStep,
    definition_json,
    serving_image,
    training_image,
)
from pipeline_steps.contract import files, instances, releases
from pipeline_steps.contract.comparison import Sampling
from pipeline_steps.contract.hyperparameters import Hyperparameters

RESOURCES = (
    "RawBucket",
    "ArtifactBucket",
    "CodeBucket",
    "CodeKey",
    "PrepareRole",
    "TrainRole",
    "EvaluateRole",
    "DeployRole",
    "MonitorRole",
    "ServingRole",
    "BedrockRole",
    "Key",
    "Subnet1",
    "Subnet2",
    "SecurityGroup",
)

Value: TypeAlias = str | PipelineVariable

has_local_storage = instances.has_local_storage  # the stacks ask it too

KEY = "${Key}"  # ARN of the KMS key
CREATED_SUBNETS = ("Subnet1", "Subnet2")  # of a VPC that the stacks make, one in each of two zones
CREATED_SECURITY_GROUP = "SecurityGroup"
COPIED_MODELS = "models"  # in a serving place's bucket: the released models
CODE_URI = "s3://${CodeBucket}/${CodeKey}"
PROCESSING_CODE = "/opt/ml/processing/input/code"
TRAINING_CODE = "/opt/ml/input/data/code"

# The regular expressions that SageMaker runs over FineTune's log; contract/progress.py writes these lines.
METRIC_DEFINITIONS = [
    {"Name": name, "Regex": f"{key}=([0-9.eE+-]+)"}
    for name, key in (
        ("train:loss", "train_loss"),
        ("validation:loss", "eval_loss"),
        ("train:tokens_per_second", "tokens_per_second"),
        ("train:learning_rate", "learning_rate"),
    )
]

ENDPOINT_VARIANT = releases.VARIANT

STARTED_BY = ("hand", "schedule", "new data", "drift")

# CUDA 13 images need this host image under an endpoint; older default hosts have too old a driver.
INFERENCE_AMI_VERSION = "al2-ami-sagemaker-inference-gpu-3-1"


@dataclass(frozen=True)
class Parameters:
    """What can be changed at the start of an execution, from the console, the CLI or a trigger."""

    dataset_manifest: ParameterString
    tuning_mode: ParameterString
    peft_type: ParameterString | None
    epoch: ParameterFloat | ParameterInteger
    learning_rate: ParameterFloat
    training_instance_type: ParameterString
    training_instance_count: ParameterInteger
    min_loss_improvement: ParameterFloat
    min_rouge_l_improvement: ParameterFloat
    min_champion_improvement: ParameterFloat
    min_ended_share: ParameterFloat
    min_general_loss_improvement: ParameterFloat
    min_judge_improvement: ParameterFloat | None
    min_safety_improvement: ParameterFloat | None
    min_test_rows: ParameterInteger
    approval_status: ParameterString
    started_by: ParameterString

    @classmethod
    def from_settings(cls, settings: Settings) -> "Parameters":
        training, gate = settings.training, settings.gate
        peft_type, epoch, learning_rate, instance_type = (
            jumpstart_parameters(settings)
            if settings.backend == "jumpstart"
            else (
                ParameterString("PeftType", default_value=training.peft_type, enum_values=list(get_args(PeftType))),
                ParameterFloat("Epoch", default_value=training.epoch),
                ParameterFloat("LearningRate", default_value=training.learning_rate),
                ParameterString("TrainingInstanceType", default_value=training.instance_type),
            )
        )
        return cls(
            ParameterString("DatasetManifest", default_value=settings.dataset.default_manifest),
            ParameterString(
                "TuningMode", default_value=settings.dataset.tuning_mode, enum_values=list(get_args(TuningMode))
            ),
            peft_type,
            epoch,
            learning_rate,
            instance_type,
            ParameterInteger("TrainingInstanceCount", default_value=training.instance_count),
            ParameterFloat("MinLossImprovement", default_value=gate.min_loss_improvement),
            ParameterFloat("MinRougeLImprovement", default_value=gate.min_rouge_l_improvement),
            ParameterFloat("MinChampionImprovement", default_value=gate.min_champion_improvement),
            ParameterFloat("MinEndedShare", default_value=gate.min_ended_share),
            ParameterFloat("MinGeneralLossImprovement", default_value=gate.min_general_loss_improvement),
            ParameterFloat("MinJudgeImprovement", default_value=gate.min_judge_improvement)
            if gate.judge_model_id
            else None,
            ParameterFloat("MinSafetyImprovement", default_value=gate.min_safety_improvement) if gate.safety else None,
            ParameterInteger("MinTestRows", default_value=gate.min_test_rows),
            ParameterString(
                "ApprovalStatus",
                default_value=settings.release.approval_status,
                enum_values=list(get_args(ApprovalStatus)),
            ),
            # It changes nothing: it tells people, in the console, the history and the data card, why a run was started.
            ParameterString("StartedBy", default_value=STARTED_BY[0], enum_values=list(STARTED_BY)),
        )

    def all(self) -> list[Parameter]:
        return [parameter for parameter in vars(self).values() if parameter is not None]


def jumpstart_parameters(settings: Settings) -> tuple[Any, ...]:
    """PeftType (None where the model has none), Epoch, LearningRate and TrainingInstanceType as the lock file has them.

    An instance type for which the hub document says something else, another image perhaps, is not offered.
    """
    training = jumpstart_lock.training_of(settings)
    values, whole = training.values, training.takes_whole_numbers("epoch")
    return (
        ParameterString("PeftType", default_value=values["peft_type"], enum_values=training.options("peft_type"))
        if "peft_type" in values
        else None,
        ParameterInteger("Epoch", default_value=int(values["epoch"]))
        if whole
        else ParameterFloat("Epoch", default_value=float(values["epoch"])),
        ParameterFloat("LearningRate", default_value=float(values["learning_rate"])),
        ParameterString(
            "TrainingInstanceType",
            default_value=training.instance_type,
            enum_values=training.lock.instance_types_like(training.instance_type),
        ),
    )


@dataclass(frozen=True)
class Tuned:
    """A tuned model: the steps that make it, in order, the folder with it in S3, and its training job."""

    steps: list[RequestStep]
    model_uri: Value
    training_job: Value


def finetune_definition(settings: Settings) -> str:
    """JSON of `<name>-finetune`: from raw data to a served model, or to a refusal with its reasons."""
    parameters = Parameters.from_settings(settings)

    prepared = prepare_data(settings, parameters)
    if settings.backend == "jumpstart":
        from pipeline import jumpstart  # it is made of this module's parts

        tuned = jumpstart.tune(settings, parameters, prepared)
    else:
        training = fine_tune(settings, parameters, prepared)
        tuned = Tuned([training], tuned_model_uri(training), training.properties.TrainingJobName)
    evaluated = evaluate(settings, parameters, prepared, tuned)
    registered = register(settings, parameters, prepared, tuned, evaluated)
    auto_deploy = ConditionStep(
        "AutoDeploy",
        conditions=[ConditionEquals(left=parameters.approval_status, right="Approved")],
        if_steps=[deploy(settings, registered.properties.ModelPackageArn)],
        else_steps=[],
    )
    # Elsewhere an approval is heard of by an event, that of a registration as Approved too.
    released = [auto_deploy] if settings.serves else []
    quality_gate = ConditionStep(
        "QualityGate",
        conditions=[ConditionEquals(left=evaluation_value("gate.passed"), right=True)],
        if_steps=[registered, *released],
        else_steps=[fail()],
    )

    # Unchanged data with unchanged parameters ends here: the model that they make is registered already.
    new_training = ConditionStep(
        "NewTraining",
        conditions=[ConditionEquals(left=data_card_value("already_trained"), right=False)],
        if_steps=[*tuned.steps, evaluated, quality_gate],
        else_steps=[],
    )

    steps = [prepared, new_training]
    return definition_json(settings.finetune_pipeline_name, parameters.all(), steps, settings.region)


def deploy_definition(settings: Settings) -> str:
    """JSON of `<name>-deploy`: the same Deploy step for a package that exists already."""
    model_package_arn = ParameterString("ModelPackageArn")
    step = deploy(settings, model_package_arn)
    return definition_json(settings.deploy_pipeline_name, [model_package_arn], [step], settings.region)


def compare_definition(settings: Settings) -> str:
    """JSON of `<name>-compare`: a user's prompts, answered before and after."""
    defaults = Sampling()
    parameters: dict[str, Parameter] = {
        "model": ParameterString("ModelPrefix"),
        "prompts": ParameterString("PromptsKey"),
        "max_new_tokens": ParameterInteger("MaxNewTokens", default_value=defaults.max_new_tokens),
        "temperature": ParameterFloat("Temperature", default_value=defaults.temperature),
        "top_k": ParameterInteger("TopK", default_value=defaults.top_k),
        "top_p": ParameterFloat("TopP", default_value=defaults.top_p),
        "seed": ParameterInteger("Seed", default_value=defaults.seed),
    }
    step = compare(settings, parameters)
    return definition_json(settings.compare_pipeline_name, list(parameters.values()), [step], settings.region)


# ---------------------------------------------------------------- steps, in the order of the work


def prepare_data(settings: Settings, parameters: Parameters) -> RequestStep:
    """Raw rows -> checked, split, content-addressed dataset and its data card.

    Not cached: the manifest's URI says nothing about the bytes behind it. The dataset it publishes is addressed by
    content, which makes the cache of the later steps right (docs/decisions/0002-content-addressed-datasets.md).
    """
    manifest = Join(on="/", values=["s3:/", "${RawBucket}", parameters.dataset_manifest])
    on_ray = settings.processing.prepare_engine == "ray"  # its tasks read from S3: no disk holds all raw files
    request = processing_request(
        settings,
        role="${PrepareRole}",
        instance_type=settings.processing.prepare_instance_type,
        instance_count=settings.processing.prepare_instance_count,
        arguments=[
            "prepare-data",
            "--tuning_mode", parameters.tuning_mode,
            *settings.dataset.flags(),
            *jumpstart_lock.preparation_flags(settings),
            "--base_model_uri", base_model_uri(settings),
            "--instance_type", parameters.training_instance_type,
            "--instance_count", parameters.training_instance_count.to_string(),
            "--volume_key", str(bool(volume_key(settings.training.instance_type))),
            *(["--peft_type", parameters.peft_type] if parameters.peft_type else []),
            "--epoch", parameters.epoch.to_string(),
            "--publish_to", "s3://${ArtifactBucket}/datasets",
            "--model_package_group", settings.model_package_group_name,
            "--run_parameters", run_parameters(settings, parameters),
            "--started_by", parameters.started_by,
            "--pipeline_execution", ExecutionVariables.PIPELINE_EXECUTION_ARN,
            "--overlap", settings.retraining.overlap,
            "--max_wait_hours", str(settings.retraining.max_wait_hours),
            *(["--engine", "ray", "--raw", manifest] if on_ray else []),
        ],
        inputs={} if on_ray else {"raw": manifest},
        input_types={"raw": "ManifestFile"},
        outputs=[files.REPORT_OUTPUT],
        image_uri=settings.images.prepare_image_uri,
        waits_hours=settings.retraining.max_wait_hours,
    )  # fmt: skip
    return RequestStep(
        "PrepareData",
        StepTypeEnum.PROCESSING,
        request,
        describe_shape="DescribeProcessingJobResponse",
        property_files=[DATA_CARD],
    )


def run_parameters(settings: Settings, parameters: Parameters) -> Join:
    """All that a trained model depends on besides its data and its base model, as one text of bounded length."""
    of_the_machines = {"max_runtime_hours", "spot", "max_wait_hours", "keep_alive_minutes"}
    of_the_watching = {"logging_steps", "mlflow_tracking_uri"}
    of_the_estimate = {"tokens_per_second", "usd_per_hour"}
    training = settings.training.model_dump_json(exclude=of_the_machines | of_the_watching | of_the_estimate)
    if settings.backend == "jumpstart":
        chosen = jumpstart_lock.training_of(settings)
        training += chosen.lock.digest + json.dumps(chosen.values, sort_keys=True)
    return Join(
        on=",",
        values=[
            "${CodeKey}",
            hashlib.sha256(training.encode()).hexdigest()[:16],
            parameters.epoch,
            parameters.learning_rate,
            *([parameters.peft_type] if parameters.peft_type else []),
            parameters.training_instance_type,
            parameters.training_instance_count,
        ],
    )


def fine_tune(settings: Settings, parameters: Parameters, prepared: RequestStep) -> RequestStep:
    """Training split + base model -> adapter and merged model, with the prompt template beside the weights."""
    training = settings.training
    request: Request = training_request(settings, parameters) | {
        "AlgorithmSpecification": {
            "TrainingImage": training_image(settings.images, settings.region, training.instance_type),
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", f"{TRAINING_CODE}/${{CodeKey}}", "fine-tune"],
            "MetricDefinitions": METRIC_DEFINITIONS,
        },
        "HyperParameters": {
            **configured_hyperparameters(training),
            "epoch": parameters.epoch.to_string(),
            "learning_rate": parameters.learning_rate.to_string(),
            "peft_type": parameters.peft_type,
        },
        "InputDataConfig": [
            channel("code", CODE_URI),
            channel("train", data_card_value("uris.train")),
            channel("validation", data_card_value("uris.validation")),
            channel("model", base_model_uri(settings)),
        ],
        "CheckpointConfig": {"S3Uri": checkpoints_uri()},
    }
    return RequestStep(
        "FineTune",
        StepTypeEnum.TRAINING,
        request,
        describe_shape="DescribeTrainingJobResponse",
        cache=CACHE_FOR_30_DAYS,
        depends_on=[prepared],
    )


def training_request(settings: Settings, parameters: Parameters) -> Request:
    """CreateTrainingJob as far as it does not matter who trains: role, machines, time, output and network."""
    training = settings.training
    request: Request = {
        "RoleArn": "${TrainRole}",
        # Uncompressed: a 15 GB archive costs minutes at both ends, and the endpoint reads the prefix as it is.
        "OutputDataConfig": {"S3OutputPath": run_uri("model"), "CompressionType": "NONE", "KmsKeyId": KEY},
        "ResourceConfig": {
            "InstanceType": parameters.training_instance_type,
            "InstanceCount": parameters.training_instance_count,
            "VolumeSizeInGB": training.volume_gb,
            **volume_key(training.instance_type),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": int(training.max_runtime_hours * 3600)},
        # Tracking on a server is the one thing that a training says to anybody.
        "EnableNetworkIsolation": training.mlflow_server is None,
        "EnableInterContainerTrafficEncryption": True,
        **vpc_config(settings),
        "Tags": job_tags(settings),
    }
    if training.keep_alive_minutes:
        request["ResourceConfig"]["KeepAlivePeriodInSeconds"] = training.keep_alive_minutes * 60
    if training.max_wait_hours is not None:  # spot is set, and only then
        request["EnableManagedSpotTraining"] = True
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = int(training.max_wait_hours * 3600)
    return request


def channel(name: str, uri: Value, **fields: str) -> Request:
    """A training job's input: all objects below `uri`; `fields` are more of Channel's own."""
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **fields}


def configured_hyperparameters(training: TrainingSettings) -> dict[str, str]:
    """All of FineTune's hyperparameters that the configuration has, as the texts that SageMaker hands over."""
    names = {field.name for field in fields(Hyperparameters)} & set(TrainingSettings.model_fields)
    values = {name: getattr(training, name) for name in sorted(names)}
    return {name: str(value) for name, value in values.items() if value is not None and value != ""}


def evaluate(settings: Settings, parameters: Parameters, prepared: RequestStep, tuned: Tuned) -> RequestStep:
    """Base, tuned and approved model on the same held-out rows -> evaluation.json with the gate's verdict, and report.html.

    A judge is asked over the network; without one the job has none.
    """
    gate = settings.gate
    request = processing_request(
        settings,
        role="${EvaluateRole}",
        instance_type=settings.processing.evaluate_instance_type,
        arguments=[
            "evaluate",
            "--max_new_tokens", str(gate.max_new_tokens),
            "--max_answered_rows", str(gate.max_answered_rows),
            "--champion_package", data_card_value("champion.package"),
            *(["--judge_model_id", gate.judge_model_id] if gate.judge_model_id else []),
            *(["--safety"] if gate.safety else []),
            *gates.arguments(parameters),
        ],
        inputs={
            "test": data_card_value("uris.test"),
            "base": base_model_uri(settings),
            "model": tuned.model_uri,
            "champion": data_card_value("champion.model_uri"),
        },
        outputs=[files.EVALUATION_OUTPUT],
        isolated=gate.judge_model_id is None,
    )  # fmt: skip
    return RequestStep(
        "Evaluate",
        StepTypeEnum.PROCESSING,
        request,
        describe_shape="DescribeProcessingJobResponse",
        property_files=[EVALUATION, MODEL_CARD],
        cache=CACHE_FOR_30_DAYS,
        depends_on=[prepared],
    )


def register(
    settings: Settings, parameters: Parameters, prepared: RequestStep, tuned: Tuned, evaluated: RequestStep
) -> RequestStep:
    """A model package that names its ancestors and carries what is needed to serve it."""
    request = {
        "ModelPackageGroupName": settings.model_package_group_name,
        "ModelPackageDescription": f"{settings.base_model.name} fine-tuned by {settings.finetune_pipeline_name}",
        "ModelApprovalStatus": parameters.approval_status,
        "InferenceSpecification": {
            "Containers": [
                {
                    "Image": serving_image(settings.images, settings.region),
                    "ModelDataSource": {
                        "S3DataSource": {
                            "S3Uri": tuned.model_uri,
                            "S3DataType": "S3Prefix",
                            "CompressionType": "None",
                        }
                    },
                    "Environment": serving_environment(settings),
                }
            ],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
            "SupportedRealtimeInferenceInstanceTypes": [settings.release.instance_type],
        },
        "ModelMetrics": {
            "ModelQuality": {
                "Statistics": {
                    "ContentType": "application/json",
                    "S3Uri": Join(
                        on="/", values=[output_uri(evaluated, files.EVALUATION_OUTPUT), files.EVALUATION_FILE]
                    ),
                }
            },
            "ModelDataQuality": {
                "Statistics": {
                    "ContentType": "application/json",
                    "S3Uri": Join(on="/", values=[output_uri(prepared, files.REPORT_OUTPUT), files.DATA_CARD_FILE]),
                }
            },
        },
        "ModelCard": {"ModelCardContent": model_card(), "ModelCardStatus": "PendingReview"},
        "CustomerMetadataProperties": {
            "dataset_digest": data_card_value("dataset_digest"),
            "test_digest": data_card_value("test_digest"),
            "data_card_digest": data_card_value("card_digest"),
            "run_fingerprint": data_card_value("run_fingerprint"),
            "base_model": settings.base_model.name,
            "base_model_digest": evaluation_value("ancestors.base_model_digest"),
            "champion": data_card_value("champion.package"),
            "verdict": evaluation_value("registry.verdict"),
            "reasons": evaluation_value("registry.reasons"),
            "improvement_over_base": evaluation_value("registry.improvement_over_base"),
            "improvement_over_champion": evaluation_value("registry.improvement_over_champion"),
            # Beside each other, and what the next run's estimate starts from.
            "estimated_cost": data_card_value("cost_told"),
            "training_cost": evaluation_value("registry.training_cost"),
            "training_instances": evaluation_value("registry.training_instances"),
            "tokens_per_second": evaluation_value("registry.tokens_per_second"),
            "overhead_seconds": evaluation_value("registry.overhead_seconds"),
            "peft_type": parameters.peft_type,
            "step_code": "${CodeKey}",
            "training_job": tuned.training_job,
            "pipeline_execution": ExecutionVariables.PIPELINE_EXECUTION_ARN,
        },
    }
    return RequestStep(
        "Register",
        StepTypeEnum.REGISTER_MODEL,
        request,
        describe_shape="DescribeModelPackageOutput",
        depends_on=[prepared, evaluated],
        retry=False,  # a lost answer would register the same model twice
    )


def serving_environment(settings: Settings) -> dict[str, str]:
    """What the LMI image (DJL Serving with vLLM) is told, for a 7B model in bfloat16 on one 24 GB GPU.

    The weights take 14.5 GB; of the 21.6 GB that vLLM may use about 6 GB stay for keys and values, 128 KB a token.
    """
    return {
        "HF_MODEL_ID": "/opt/ml/model",
        # Named, since LMI would otherwise take a model.py beside the weights for the whole handler.
        "OPTION_ENTRYPOINT": "djl_python.lmi_vllm.vllm_async_service",
        "OPTION_ASYNC_MODE": "true",
        "OPTION_ROLLING_BATCH": "disable",
        "TENSOR_PARALLEL_DEGREE": "1",
        "OPTION_DTYPE": "bf16",  # as Evaluate loads it
        "OPTION_MAX_MODEL_LEN": str(settings.release.max_total_tokens),
        "OPTION_GPU_MEMORY_UTILIZATION": "0.9",
        "OPTION_MAX_ROLLING_BATCH_SIZE": "32",  # requests that are answered together; more of them wait
        "OPTION_TGI_COMPAT": "true",  # answers in JumpStart's form: [{"generated_text": ...}]
    }


def max_lora_rank(settings: Settings) -> int:
    """The least rank that vLLM takes and that holds ours; 64 at least, since adapters of other deployments may join."""
    rank = settings.training.lora_r
    if settings.backend == "jumpstart":
        rank = int(jumpstart_lock.training_of(settings).values.get("lora_r", rank))
    return next((known for known in (64, 128, 256, 320) if known >= rank), 512)


def deploy(settings: Settings, model_package_arn: Value) -> RequestStep:
    """The package -> an endpoint that was seen to serve it, or the old endpoint untouched; with Bedrock, an imported model."""
    arguments = to_bedrock if settings.release.target == "bedrock" else to_endpoint
    request = processing_request(
        settings,
        role="${DeployRole}",
        instance_type=settings.processing.deploy_instance_type,
        arguments=arguments(settings, model_package_arn),
        inputs={},
        outputs=[files.DEPLOYMENT_OUTPUT],
    )
    return RequestStep("Deploy", StepTypeEnum.PROCESSING, request, describe_shape="DescribeProcessingJobResponse")


def to_bedrock(settings: Settings, model_package_arn: Value) -> list[Value]:
    return [
        "to-bedrock",
        "--model_package_arn", model_package_arn,
        "--model_package_group", settings.model_package_group_name,
        "--model_name", settings.name,
        "--role_arn", "${BedrockRole}",
        "--key_arn", KEY,
        "--import_to", "s3://${ArtifactBucket}/bedrock",
        "--max_update_minutes", str(settings.release.max_update_minutes),
        "--kept_releases", str(settings.release.kept_releases),
    ]  # fmt: skip


def to_endpoint(settings: Settings, model_package_arn: Value) -> list[Value]:
    return [
        "deploy",
        "--model_package_arn", model_package_arn,
        "--model_package_group", settings.model_package_group_name,
        "--endpoint_name", settings.endpoint_name,
        "--component_name", settings.name,
        "--role_arn", "${ServingRole}",
        "--base_model_uri", base_model_uri(settings),
        "--adapters_uri", "s3://${ArtifactBucket}/adapters",
        "--inference_ami_version", INFERENCE_AMI_VERSION,
        "--max_lora_rank", str(max_lora_rank(settings)),
        "--captured_to", "s3://${ArtifactBucket}/captured",
        "--captured_percent", str(settings.monitoring.captured_percent if settings.monitoring.enabled else 0),
        *copy_flags(settings),
        *network_flags(settings),
        *(["--volume_key", KEY] if not has_local_storage(settings.release.instance_type) else []),
        *settings.release.flags(),
    ]  # fmt: skip


def copy_flags(settings: Settings) -> list[str]:
    """Deploy's flags for a model that was registered in another account or region."""
    if settings.trains:
        return []
    image = serving_image(settings.images, settings.region)
    return ["--copy_to", f"s3://${{ArtifactBucket}}/{COPIED_MODELS}", "--image_uri", image]


def compare(settings: Settings, parameters: dict[str, Parameter]) -> RequestStep:
    """A user's prompts -> answers of the base and of the tuned model, and report.html with both."""
    # Below our bucket, so that who starts it from the console can name no other.
    inputs = {
        name: Join(on="/", values=["s3:/", "${ArtifactBucket}", parameters[name]]) for name in ("prompts", "model")
    }
    flags = {name: parameter for name, parameter in parameters.items() if name not in inputs}
    request = processing_request(
        settings,
        role="${EvaluateRole}",
        instance_type=settings.processing.evaluate_instance_type,
        arguments=["compare", *(part for name, value in flags.items() for part in (f"--{name}", value.to_string()))],
        inputs={**inputs, "base": base_model_uri(settings)},
        outputs=[files.COMPARISON_OUTPUT],
        isolated=True,
    )
    return RequestStep("Compare", StepTypeEnum.PROCESSING, request, describe_shape="DescribeProcessingJobResponse")


def fail() -> FailStep:
    return FailStep("Fail", error_message=evaluation_value("gate.message"))


# ---------------------------------------------------------------- what the steps share

DATA_CARD = PropertyFile(name="DataCard", output_name=files.REPORT_OUTPUT, path=files.DATA_CARD_FILE)
EVALUATION = PropertyFile(name="Evaluation", output_name=files.EVALUATION_OUTPUT, path=files.EVALUATION_FILE)
MODEL_CARD = PropertyFile(name="ModelCard", output_name=files.EVALUATION_OUTPUT, path=files.MODEL_CARD_FILE)


def data_card_value(json_path: str) -> JsonGet:
    return JsonGet(step_name="PrepareData", property_file=DATA_CARD, json_path=json_path)


def evaluation_value(json_path: str) -> JsonGet:
    return JsonGet(step_name="Evaluate", property_file=EVALUATION, json_path=json_path)


def model_card() -> JsonGet:
    return JsonGet(step_name="Evaluate", property_file=MODEL_CARD, json_path="content")


def base_model_uri(settings: Settings) -> str:
    """Where `finetune import-model` puts the base weights; jobs never ask a hub."""
    return f"s3://${{ArtifactBucket}}/base-models/{settings.base_model.name}/"


def tuned_model_uri(tuned: RequestStep) -> Join:
    """The folder with FineTune's output. Its own ModelArtifacts may come without the last slash, which hosting demands."""
    output = tuned.properties.OutputDataConfig.S3OutputPath
    return Join(on="/", values=[output, tuned.properties.TrainingJobName, "output/model/"])


def run_uri(name: str) -> Join:
    """The execution's own folder, so that two executions never write to the same place."""
    return Join(on="/", values=["s3://${ArtifactBucket}/runs", ExecutionVariables.PIPELINE_EXECUTION_ID, name])


def checkpoints_uri() -> Join:
    """A folder for all that this training depends on, so that a retry or a later execution of the same goes on with it.

    Not the execution's own folder: the step cache compares CheckpointConfig, so a path that is new in every execution
    would keep the cache from ever hitting.
    """
    return Join(on="/", values=["s3://${ArtifactBucket}/checkpoints", data_card_value("run_fingerprint")])


def output_uri(step: RequestStep, name: str) -> Any:
    return step.properties.ProcessingOutputConfig.Outputs[name].S3Output.S3Uri


def processing_request(
    settings: Settings,
    *,
    role: str,
    instance_type: str,
    arguments: list[Value],
    instance_count: int = 1,
    inputs: dict[str, Value],
    outputs: list[str],
    input_types: dict[str, str] | None = None,
    isolated: bool = False,
    image_uri: str | None = None,
    waits_hours: float = 0.0,
) -> Request:
    """CreateProcessingJob for one step of the code zip; `inputs` and `outputs` are named as their folders.

    `input_types` holds the S3DataType of the inputs that are not an S3Prefix. `waits_hours`: how long the job may wait
    before it works, beside the time that it has for the work.
    """
    types = input_types or {}
    return {
        "RoleArn": role,
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceType": instance_type,
                "InstanceCount": instance_count,
                "VolumeSizeInGB": settings.processing.volume_gb,
                **volume_key(instance_type),
            }
        },
        "AppSpecification": {
            "ImageUri": image_uri or training_image(settings.images, settings.region, settings.training.instance_type),
            "ContainerEntrypoint": ["python3", f"{PROCESSING_CODE}/${{CodeKey}}"],
            "ContainerArguments": arguments,
        },
        "ProcessingInputs": [
            {
                "InputName": name,
                "S3Input": {
                    "S3Uri": uri,
                    "LocalPath": f"/opt/ml/processing/input/{name}",
                    "S3DataType": types.get(name, "S3Prefix"),
                    "S3InputMode": "File",
                },
            }
            for name, uri in {"code": CODE_URI, **inputs}.items()
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": name,
                    "S3Output": {
                        "S3Uri": run_uri(name),
                        "LocalPath": f"/opt/ml/processing/output/{name}",
                        "S3UploadMode": "EndOfJob",
                    },
                }
                for name in outputs
            ],
            "KmsKeyId": KEY,
        },
        "NetworkConfig": {
            "EnableNetworkIsolation": isolated,
            **({"EnableInterContainerTrafficEncryption": True} if instance_count > 1 else {}),
            **vpc_config(settings),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": int((settings.processing.max_runtime_hours + waits_hours) * 3600)},
        "Tags": job_tags(settings),
    }


def volume_key(instance_type: str) -> dict[str, str]:
    """The key of an instance's volumes, where SageMaker takes one."""
    return {} if has_local_storage(instance_type) else {"VolumeKmsKeyId": KEY}


def vpc_config(settings: Settings) -> Request:
    """VpcConfig of a job, if a network is configured: where its hosts' interfaces are."""
    network = settings.network
    if network is None:
        return {}
    if network.is_created:
        subnets = [f"${{{name}}}" for name in CREATED_SUBNETS]
        return {"VpcConfig": {"Subnets": subnets, "SecurityGroupIds": [f"${{{CREATED_SECURITY_GROUP}}}"]}}
    return {"VpcConfig": {"Subnets": network.subnet_ids, "SecurityGroupIds": network.security_group_ids}}


def network_flags(settings: Settings) -> list[str]:
    """Deploy's flags for the model's network interfaces."""
    vpc = vpc_config(settings).get("VpcConfig", {"Subnets": [], "SecurityGroupIds": []})
    named = [("--subnet", one) for one in vpc["Subnets"]] + [
        ("--security_group", one) for one in vpc["SecurityGroupIds"]
    ]
    return [part for pair in named for part in pair]


def job_tags(settings: Settings) -> list[dict[str, str]]:
    """Tags of every job, as those of the stacks' resources: whose it is, for bills and clean-ups."""
    return [{"Key": "application", "Value": settings.name}]
