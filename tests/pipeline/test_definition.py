"""The pipelines as data: the flow, the parameters, and requests that the service would accept."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from config.settings import Settings, TrainingSettings, load
from pipeline.definition import RESOURCES, compare_definition, deploy_definition, finetune_definition
from pipeline_steps.contract import gate, hyperparameters, progress
from pipeline_steps.contract.hyperparameters import Hyperparameters

REPOSITORY = Path(__file__).parents[2]
OPERATIONS = {
    "Processing": ("CreateProcessingJob", {"ProcessingJobName": "job"}),
    "Training": ("CreateTrainingJob", {"TrainingJobName": "job"}),
    "RegisterModel": ("CreateModelPackage", {}),
}
SERVICE = botocore.session.Session().get_service_model("sagemaker")


@pytest.fixture(scope="module")
def finetune() -> dict[str, Any]:
    return json.loads(finetune_definition(load("prod")))


@pytest.fixture(scope="module")
def deploy() -> dict[str, Any]:
    return json.loads(deploy_definition(load("prod")))


def all_steps(steps: list[Any]) -> Iterator[Any]:
    for step in steps:
        yield step
        if step["Type"] == "Condition":
            yield from all_steps(step["Arguments"]["IfSteps"])
            yield from all_steps(step["Arguments"]["ElseSteps"])


def evaluated(value: Any, parameters: dict[str, Any]) -> Any:
    """The value with parameters put in and every reference to a run replaced by some text or number of its kind."""
    if isinstance(value, list):
        return [evaluated(item, parameters) for item in value]
    if not isinstance(value, dict):
        return value
    if "Get" in value:
        kind, _, name = value["Get"].partition(".")
        return parameters[name] if kind == "Parameters" else f"s3://bucket/{name}"
    if "Std:Join" in value:
        join = value["Std:Join"]
        return join["On"].join(str(evaluated(item, parameters)) for item in join["Values"])
    if "Std:JsonGet" in value:
        return "s3://bucket/from-a-property-file"
    return {key: evaluated(item, parameters) for key, item in value.items()}


def values_of(definition: dict[str, Any]) -> dict[str, Any]:
    return {
        parameter["Name"]: parameter.get("DefaultValue", "arn:aws:sagemaker:us-east-1:123456789012:model-package/m/1")
        for parameter in definition["Parameters"]
    }


def with_resources(definition: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(definition)
    for name in RESOURCES:
        value = f"arn:aws:iam::123456789012:role/{name}" if name.endswith("Role") else name.lower()
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text, "a placeholder that the stack does not know"
    return json.loads(text)


def test_the_flow_is_the_one_of_the_design(finetune: dict[str, Any]) -> None:
    assert [step["Name"] for step in finetune["Steps"]] == ["PrepareData", "NewTraining"]
    new_training = finetune["Steps"][-1]["Arguments"]
    assert [step["Name"] for step in new_training["IfSteps"]] == ["FineTune", "Evaluate", "QualityGate"]
    assert new_training["ElseSteps"] == []
    quality_gate = new_training["IfSteps"][-1]["Arguments"]
    assert [step["Name"] for step in quality_gate["IfSteps"]] == ["Register", "AutoDeploy"]
    assert [step["Name"] for step in quality_gate["ElseSteps"]] == ["Fail"]
    auto_deploy = quality_gate["IfSteps"][-1]["Arguments"]
    assert [step["Name"] for step in auto_deploy["IfSteps"]] == ["Deploy"]
    assert auto_deploy["ElseSteps"] == []


def test_the_deploy_pipeline_is_the_same_deploy_step(finetune: dict[str, Any], deploy: dict[str, Any]) -> None:
    ours = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "Deploy")
    theirs = deploy["Steps"][0]
    strip = lambda step: json.dumps(step).replace(  # noqa: E731
        json.dumps({"Get": "Steps.Register.ModelPackageArn"}), json.dumps({"Get": "Parameters.ModelPackageArn"})
    )
    assert strip(ours) == strip(theirs)
    assert deploy["Parameters"] == [{"Name": "ModelPackageArn", "Type": "String"}]


def test_what_the_design_lists_can_be_changed_at_run_time(finetune: dict[str, Any]) -> None:
    names = [parameter["Name"] for parameter in finetune["Parameters"]]
    assert names == [
        "DatasetManifest", "TuningMode", "PeftType", "Epoch", "LearningRate", "TrainingInstanceType",
        "TrainingInstanceCount", "MinLossImprovement", "MinRougeLImprovement", "MinChampionImprovement", "MinEndedShare",
        "MinGeneralLossImprovement", "MinTestRows", "ApprovalStatus", "StartedBy",
    ]  # fmt: skip
    text = json.dumps(finetune["Steps"])
    assert [name for name in names if f'"Parameters.{name}"' not in text] == [], "declared and never used"


@pytest.mark.parametrize("environment", ["local", "dev", "prod", "private", "accounts/eu"])
@pytest.mark.parametrize("build", [finetune_definition, deploy_definition, compare_definition])
def test_every_request_is_one_that_the_service_accepts(environment: str, build: Any) -> None:
    definition = with_resources(json.loads(build(load(environment))))
    checked = 0
    for step in all_steps(definition["Steps"]):
        if step["Type"] not in OPERATIONS:
            assert step["Type"] in ("Condition", "Fail")
            continue
        operation, named = OPERATIONS[step["Type"]]
        request = {**named, **evaluated(step["Arguments"], values_of(definition))}
        report = ParamValidator().validate(request, SERVICE.operation_model(operation).input_shape)
        assert not report.has_errors(), f"{step['Name']}: {report.generate_report()}"
        checked += 1
    assert checked == (5 if build is finetune_definition else 1)


def test_arguments_keep_within_the_services_256_characters(finetune: dict[str, Any]) -> None:
    definition = with_resources(finetune)
    for step in all_steps(definition["Steps"]):
        if step["Type"] == "Processing":
            arguments = evaluated(step["Arguments"]["AppSpecification"]["ContainerArguments"], values_of(definition))
            assert all(0 < len(argument) <= 256 for argument in arguments)


def test_the_definition_is_small_enough_to_be_inline_and_holds_no_null(finetune: dict[str, Any]) -> None:
    text = finetune_definition(load("prod"))
    assert len(text) < 50_000  # the service's limit is 100 KB
    assert "null" not in text


def test_the_same_settings_give_the_same_bytes() -> None:
    assert finetune_definition(load("prod")) == finetune_definition(load("prod"))


def test_training_never_sees_the_test_split(finetune: dict[str, Any]) -> None:
    training = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "FineTune")
    text = json.dumps(training)
    assert "uris.train" in text and "uris.validation" in text
    assert "uris.test" not in text
    assert "${RawBucket}" not in text


def test_training_and_evaluation_run_without_a_network(finetune: dict[str, Any]) -> None:
    steps = {step["Name"]: step["Arguments"] for step in all_steps(finetune["Steps"])}
    assert steps["FineTune"]["EnableNetworkIsolation"] is True
    assert steps["Evaluate"]["NetworkConfig"]["EnableNetworkIsolation"] is True


def test_the_steps_whose_inputs_are_addressed_by_content_are_cached_and_no_other(finetune: dict[str, Any]) -> None:
    cached = {step["Name"] for step in all_steps(finetune["Steps"]) if step.get("CacheConfig", {}).get("Enabled")}
    assert cached == {"FineTune", "Evaluate"}
    for name in cached:
        step = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == name)
        keys = {"InputDataConfig", "HyperParameters", "CheckpointConfig", "ProcessingInputs", "AppSpecification"} & set(
            step["Arguments"]
        )
        for key in keys:
            assert "Execution." not in json.dumps(step["Arguments"][key]), f"{name}.{key} differs in every execution"


def fine_tune_request(**training: Any) -> dict[str, Any]:
    """FineTune's request as the service receives it, checked against the service's model."""
    values = load("prod").model_dump()
    values["training"] |= training
    definition = with_resources(json.loads(finetune_definition(Settings.model_validate(values))))
    step = next(step for step in all_steps(definition["Steps"]) if step["Name"] == "FineTune")
    request: dict[str, Any] = evaluated(step["Arguments"], values_of(definition))
    operation = SERVICE.operation_model("CreateTrainingJob")
    report = ParamValidator().validate({"TrainingJobName": "job", **request}, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    return request


def test_checkpoints_lie_under_all_that_the_training_depends_on(finetune: dict[str, Any]) -> None:
    step = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "FineTune")
    bucket, fingerprint = step["Arguments"]["CheckpointConfig"]["S3Uri"]["Std:Join"]["Values"]
    assert bucket == "s3://${ArtifactBucket}/checkpoints"
    assert fingerprint["Std:JsonGet"]["Path"] == "run_fingerprint"


def test_spot_training_waits_as_long_as_the_settings_say() -> None:
    request = fine_tune_request(spot=True, max_runtime_hours=10, max_wait_hours=20)
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 36_000, "MaxWaitTimeInSeconds": 72_000}
    assert "KeepAlivePeriodInSeconds" not in request["ResourceConfig"]


def test_a_warm_pool_is_asked_for_in_seconds() -> None:
    request = fine_tune_request(keep_alive_minutes=30)
    assert request["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 1800
    assert "EnableManagedSpotTraining" not in request
    assert "MaxWaitTimeInSeconds" not in request["StoppingCondition"]


def test_every_hyperparameter_of_fine_tune_can_be_configured_with_its_default() -> None:
    ours = {field.name: field.default for field in fields(Hyperparameters)}
    of_prepare_data = {"max_train_samples", "max_val_samples"}  # which rows there are is a matter of the dataset group
    configured = {name: one.default for name, one in TrainingSettings.model_fields.items() if name in ours}
    assert configured.keys() == ours.keys() - of_prepare_data
    assert configured == {name: ours[name] for name in configured} | {"usd_per_hour": None}


def test_fine_tune_understands_every_hyperparameter_that_the_definition_gives_it() -> None:
    chosen = {"bits": 4, "lora_r": 8, "eval_steps": 7, "max_cost_usd": 12.5, "adam_epsilon": 1e-9, "usd_per_hour": 2.0}
    given = fine_tune_request(**chosen)["HyperParameters"]
    settings = hyperparameters.parse(given)
    assert settings.method == "qlora"
    assert {name: getattr(settings, name) for name in chosen} == chosen
    assert settings.epoch == load("prod").training.epoch


def test_the_limits_of_the_settings_are_within_the_limits_of_fine_tune() -> None:
    names = TrainingSettings.model_fields.keys() & hyperparameters.RANGES.keys()
    assert len(names) > 20
    for name in names:
        for limit in TrainingSettings.model_fields[name].metadata:
            bound = getattr(limit, "ge", getattr(limit, "le", None))
            if bound is not None:
                hyperparameters.parse({name: str(bound)})


def test_tracking_on_a_server_opens_the_trainings_network_and_a_folder_does_not() -> None:
    arn = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/team"
    assert fine_tune_request()["EnableNetworkIsolation"] is True
    assert "mlflow_tracking_uri" not in fine_tune_request()["HyperParameters"]
    tracked = fine_tune_request(mlflow_tracking_uri=arn)
    assert tracked["EnableNetworkIsolation"] is False
    assert tracked["HyperParameters"]["mlflow_tracking_uri"] == arn
    assert fine_tune_request(mlflow_tracking_uri="/opt/ml/output/data/mlruns")["EnableNetworkIsolation"] is True


def test_without_spot_and_warm_pool_the_request_names_neither() -> None:
    text = json.dumps(fine_tune_request())
    assert "Spot" not in text and "MaxWaitTime" not in text and "KeepAlive" not in text


def test_where_a_training_runs_does_not_make_it_another_training() -> None:
    def run_parameters(**training: Any) -> Any:
        values = load("prod").model_dump()
        values["training"] |= training
        prepare = json.loads(finetune_definition(Settings.model_validate(values)))["Steps"][0]
        arguments = prepare["Arguments"]["AppSpecification"]["ContainerArguments"]
        return arguments[arguments.index("--run_parameters") + 1]

    assert run_parameters(spot=True, max_wait_hours=48) == run_parameters(keep_alive_minutes=30) == run_parameters()
    assert run_parameters(mlflow_tracking_uri="/opt/ml/output/data/mlruns", logging_steps=5) == run_parameters()
    assert run_parameters(lora_r=8) != run_parameters()


def test_the_metric_expressions_read_the_lines_that_training_prints(
    finetune: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    progress.report("train", 5, 20, train_loss=1.23, tokens_per_second=4321, learning_rate=2e-5, seconds_left=12)
    lines = capsys.readouterr().out + "eval_loss=1.2 step=40\n"
    definitions = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "FineTune")["Arguments"][
        "AlgorithmSpecification"
    ]["MetricDefinitions"]
    assert {one["Name"]: re.findall(one["Regex"], lines) for one in definitions} == {
        "train:loss": ["1.23"],
        "validation:loss": ["1.2"],
        "train:tokens_per_second": ["4321"],
        "train:learning_rate": ["2e-05"],
    }


def test_jobs_are_tried_again_after_faults_of_the_service_only(finetune: dict[str, Any]) -> None:
    for step in all_steps(finetune["Steps"]):
        policies = step.get("RetryPolicies", [])
        assert bool(policies) == (step["Type"] in ("Processing", "Training")), step["Name"]
        kinds = {kind for policy in policies for kind in policy["ExceptionType"]}
        assert all(policy["MaxAttempts"] <= 5 for policy in policies)
        if policies:
            assert kinds == {
                "Step.SERVICE_FAULT", "Step.THROTTLING",
                "SageMaker.JOB_INTERNAL_ERROR", "SageMaker.CAPACITY_ERROR", "SageMaker.RESOURCE_LIMIT",
            }  # fmt: skip


def evaluate_step(definition: dict[str, Any]) -> tuple[Any, list[str], list[gate.Gate]]:
    """The step, its arguments with the parameters' defaults, and the gates among them."""
    step = next(step for step in all_steps(definition["Steps"]) if step["Name"] == "Evaluate")
    arguments = evaluated(step["Arguments"]["AppSpecification"]["ContainerArguments"], values_of(definition))
    flags = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--gate"]
    return step, arguments, [gate.Gate.parse(flag) for flag in flags]


def test_the_gates_reach_evaluate_in_the_form_that_it_reads(finetune: dict[str, Any]) -> None:
    step, _, parsed = evaluate_step(finetune)
    assert [(check.mode, check.metric, check.compared_with, check.margin) for check in parsed] == [
        ("any", "loss", "base", 0.02),
        ("instruction", "rougeL", "base", -0.02),
        ("chat", "rougeL", "base", -0.02),
        ("any", "bits_per_byte", "champion", -0.01),
        ("instruction", "ended", "number", 0.5),
        ("chat", "ended", "number", 0.5),
        ("any", "general_loss", "base", -0.3),
    ]
    assert {check.minimum_n for check in parsed} == {20}
    assert step["Arguments"]["NetworkConfig"]["EnableNetworkIsolation"] is True


def test_the_approved_model_comes_from_the_data_card(finetune: dict[str, Any]) -> None:
    step, arguments, _ = evaluate_step(finetune)
    (champion,) = [one for one in step["Arguments"]["ProcessingInputs"] if one["InputName"] == "champion"]
    assert champion["S3Input"]["S3Uri"]["Std:JsonGet"]["Path"] == "champion.model_uri"
    flags = step["Arguments"]["AppSpecification"]["ContainerArguments"]
    assert flags[arguments.index("--champion_package") + 1]["Std:JsonGet"]["Path"] == "champion.package"


def test_a_judge_and_unsafe_requests_are_asked_only_where_the_settings_say_so(finetune: dict[str, Any]) -> None:
    values = load("prod").model_dump()
    values["gate"] |= {"judge_model_id": "some.model-v1:0", "safety": True, "min_judge_improvement": 0.25}
    definition = json.loads(finetune_definition(Settings.model_validate(values)))
    step, arguments, parsed = evaluate_step(definition)
    assert step["Arguments"]["NetworkConfig"]["EnableNetworkIsolation"] is False  # Bedrock is asked over the network
    assert arguments[arguments.index("--judge_model_id") + 1] == "some.model-v1:0" and "--safety" in arguments
    assert [(check.metric, check.margin) for check in parsed[-2:]] == [("judge", 0.25), ("refused_unsafe", -0.1)]
    assert "MinJudgeImprovement" in values_of(definition) and "MinJudgeImprovement" not in values_of(finetune)
    assert "--safety" not in evaluate_step(finetune)[1]


def test_the_registered_package_has_the_model_card_that_evaluate_wrote(finetune: dict[str, Any]) -> None:
    step = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "Register")
    card = step["Arguments"]["ModelCard"]
    assert card["ModelCardStatus"] == "PendingReview"
    assert card["ModelCardContent"]["Std:JsonGet"] == {
        "PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.ModelCard"},
        "Path": "content",
    }


def test_a_comparison_runs_isolated_as_evaluate_does_with_every_parameter_of_the_run() -> None:
    definition = json.loads(compare_definition(load("prod")))
    (step,) = definition["Steps"]
    assert step["Arguments"]["RoleArn"] == "${EvaluateRole}"
    assert step["Arguments"]["NetworkConfig"]["EnableNetworkIsolation"] is True
    for parameter in definition["Parameters"]:
        assert json.dumps({"Get": f"Parameters.{parameter['Name']}"})[1:-1] in json.dumps(step)
    arguments = evaluated(step["Arguments"]["AppSpecification"]["ContainerArguments"], values_of(definition))
    command = [".venv-steps/bin/python", "-m", "pipeline_steps", *arguments, "--help"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    known = set(re.findall(r"--[a-z_]+", finished.stdout))
    assert {flag for flag in arguments if flag.startswith("--")} <= known


def test_the_serving_container_is_told_what_a_24_gb_gpu_can_hold(finetune: dict[str, Any]) -> None:
    step = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "Register")
    environment = step["Arguments"]["InferenceSpecification"]["Containers"][0]["Environment"]
    assert environment["OPTION_MAX_MODEL_LEN"] == "8192" and environment["TENSOR_PARALLEL_DEGREE"] == "1"
    # Without it LMI would take the model.py beside the weights for its whole handler.
    assert environment["OPTION_ENTRYPOINT"] == "djl_python.lmi_vllm.vllm_async_service"


def test_any_rank_of_lora_can_be_released_merged() -> None:
    values = load("prod").model_dump()
    values["training"]["lora_r"] = 1000
    arguments = json.loads(deploy_definition(Settings.model_validate(values)))["Steps"][0]["Arguments"]
    flags = arguments["AppSpecification"]["ContainerArguments"]
    assert flags[flags.index("--max_lora_rank") + 1] == "512"


def test_a_refusal_carries_the_gates_message(finetune: dict[str, Any]) -> None:
    fail = next(step for step in all_steps(finetune["Steps"]) if step["Name"] == "Fail")
    assert fail["Arguments"]["ErrorMessage"]["Std:JsonGet"]["Path"] == "gate.message"


def test_on_ray_prepare_data_reads_from_s3_itself_in_an_image_that_has_ray() -> None:
    values = load("prod").model_dump() | {"processing": {"prepare_engine": "ray", "prepare_instance_count": 4}}
    values["images"] = {"prepare_image_uri": "123456789012.dkr.ecr.us-east-1.amazonaws.com/prepare:1"}
    definition = with_resources(json.loads(finetune_definition(Settings.model_validate(values))))
    request = evaluated(definition["Steps"][0]["Arguments"], values_of(definition))
    assert request["AppSpecification"]["ImageUri"].endswith("/prepare:1")
    assert [one["InputName"] for one in request["ProcessingInputs"]] == ["code"]
    arguments = request["AppSpecification"]["ContainerArguments"]
    assert arguments[arguments.index("--raw") + 1] == "s3://rawbucket/instruction/dataset.manifest"
    assert request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 4


def test_prepare_data_accepts_every_flag_that_the_definition_gives_it(finetune: dict[str, Any]) -> None:
    """The step's own parser is asked, in the steps' environment: a flag that it does not know would fail each run."""
    arguments = evaluated(
        with_resources(finetune)["Steps"][0]["Arguments"]["AppSpecification"]["ContainerArguments"],
        values_of(with_resources(finetune)),
    )
    step, *flags = arguments
    command = [".venv-steps/bin/python", "-m", "pipeline_steps", step, *flags, "--help"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    known = set(re.findall(r"--[a-z_]+", finished.stdout))
    assert {flag for flag in flags if flag.startswith("--")} <= known


def test_where_others_serve_a_run_ends_with_the_registration() -> None:
    definition = json.loads(finetune_definition(load("accounts")))
    names = [step["Name"] for step in all_steps(definition["Steps"])]
    assert names[-2:] == ["Register", "Fail"] and not {"Deploy", "AutoDeploy"} & set(names)


def test_in_a_serving_place_deploy_serves_a_copy_with_the_image_of_its_own_region() -> None:
    (step,) = json.loads(deploy_definition(load("accounts/eu")))["Steps"]
    arguments = step["Arguments"]["AppSpecification"]["ContainerArguments"]
    given = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    assert given["--copy_to"] == "s3://${ArtifactBucket}/models"
    assert ".dkr.ecr.eu-west-1." in given["--image_uri"]
    assert ".dkr.ecr.eu-west-1." in step["Arguments"]["AppSpecification"]["ImageUri"]
    (here,) = json.loads(deploy_definition(load("prod")))["Steps"]
    assert "--copy_to" not in here["Arguments"]["AppSpecification"]["ContainerArguments"]
