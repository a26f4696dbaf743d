"""Pipelines: definitions are checked, stored ones are executed, and what happened can be read afterwards."""

import itertools
import json
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_aws import pipeline_definition
from local_aws.jobs import Jobs
from local_aws.object_store import ObjectStore
from local_aws.pipeline_definition import DefinitionError
from local_aws.pipeline_run import Execution, Runner, StepFailed, StepRun, StepStopped, duration
from local_aws.pipelines import parameter_values
from local_aws.sagemaker_api import Service, ValidationException
from local_aws.settings import Settings
from tests.local_aws.sagemaker_server import BUCKET, ROLE, Server, processing, running_server, training

OUT = "/opt/ml/processing/output"
PARAMETERS: list[dict[str, Any]] = [
    {"Name": "Data", "Type": "String", "DefaultValue": f"s3://{BUCKET}/data/"},
    {"Name": "Epochs", "Type": "Float", "DefaultValue": 1.0},
    {"Name": "Margin", "Type": "Float", "DefaultValue": 0.02},
    {"Name": "Mode", "Type": "String", "DefaultValue": "a", "EnumValues": ["a", "b"]},
]


@pytest.fixture
def server() -> Server:
    server = running_server()
    server.put("data/a.txt", "hello")
    return server


def step(name: str, kind: str, arguments: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"Name": name, "Type": kind, "Arguments": arguments, **fields}


def job(name: str, command: str = "true", **fields: Any) -> dict[str, Any]:
    return step(name, "Processing", processing(command), **fields)


def run_folder(name: str) -> dict[str, Any]:
    return {"Std:Join": {"On": "/", "Values": [f"s3://{BUCKET}/runs", {"Get": "Execution.PipelineExecutionId"}, name]}}


def definition(*steps: dict[str, Any], parameters: list[dict[str, Any]] = PARAMETERS) -> dict[str, Any]:
    return {"Version": "2020-12-01", "Parameters": parameters, "Steps": list(steps)}


def create(server: Server, *steps: dict[str, Any], **fields: Any) -> str:
    name = f"pipeline-{uuid.uuid4().hex[:8]}"
    body = json.dumps(definition(*steps))
    server.sagemaker.create_pipeline(PipelineName=name, PipelineDefinition=body, RoleArn=ROLE, **fields)
    return name


def start(server: Server, pipeline: str, **parameters: str) -> str:
    values = [{"Name": name, "Value": value} for name, value in parameters.items()]
    arn: str = server.sagemaker.start_pipeline_execution(PipelineName=pipeline, PipelineParameters=values)[
        "PipelineExecutionArn"
    ]
    return arn


def steps_of(server: Server, arn: str) -> dict[str, dict[str, Any]]:
    listed = server.sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
    return {item["StepName"]: item for item in listed["PipelineExecutionSteps"]}


def run(server: Server, *steps: dict[str, Any], **parameters: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    arn = start(server, create(server, *steps), **parameters)
    return server.execution(arn), steps_of(server, arn)


# ---------------------------------------------------------------------- a whole pipeline


def whole_pipeline() -> list[dict[str, Any]]:
    """Prepare, train, evaluate, a gate with registration and a nested condition, and a refusal."""
    cached = {"CacheConfig": {"Enabled": True, "ExpireAfter": "P30D"}}
    report = [{"PropertyFileName": "Report", "OutputName": "report", "FilePath": "evaluation.json"}]

    def reported(path: str) -> dict[str, Any]:
        return {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.Report"}, "Path": path}}

    prepared = {"Get": "Steps.Prepare.ProcessingOutputConfig.Outputs['prepared'].S3Output.S3Uri"}
    prepare = processing(
        f"tr a-z A-Z < /opt/ml/processing/input/data/a.txt > {OUT}/prepared/a.txt",
        inputs={"data": {"Get": "Parameters.Data"}},
        outputs={"prepared": run_folder("prepared")},
    )
    fine_tune = training(
        "cp /opt/ml/input/data/train/a.txt /opt/ml/model/weights; cat /opt/ml/input/config/hyperparameters.json; echo loss=0.5",
        channels={"train": prepared},
        HyperParameters={"epoch": {"Get": "Parameters.Epochs"}, "fast": True, "rank": 16},
    )
    evaluation = json.dumps({"gate": {"passed": True, "message": "no better"}, "metrics": {"loss": 0.5}})
    evaluate = processing(
        f"echo '{evaluation}' > {OUT}/report/evaluation.json", outputs={"report": run_folder("report")}
    )
    register = {
        "ModelPackageGroupName": "whole-pipeline",
        "ModelApprovalStatus": "Approved",
        "InferenceSpecification": {
            "Containers": [
                {
                    "Image": "web",
                    "ModelDataSource": {
                        "S3DataSource": {
                            "S3Uri": {"Get": "Steps.FineTune.ModelArtifacts.S3ModelArtifacts"},
                            "S3DataType": "S3Prefix",
                            "CompressionType": "None",
                        }
                    },
                }
            ],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
    }
    arn_in_environment = {"Environment": {"ARN": {"Get": "Steps.Register.ModelPackageArn"}}}
    refused = {"ErrorMessage": {"Std:Join": {"On": " ", "Values": ["Refused:", reported("gate.message")]}}}
    auto = [step("Deploy", "Processing", processing("echo deploy $ARN", **arn_in_environment))]
    is_approved = [{"Type": "Equals", "LeftValue": {"Get": "Parameters.Mode"}, "RightValue": "a"}]
    better = [
        {"Type": "Equals", "LeftValue": reported("gate.passed"), "RightValue": True},
        {
            "Type": "GreaterThanOrEqualTo",
            "LeftValue": reported("metrics.loss"),
            "RightValue": {"Get": "Parameters.Margin"},
        },
    ]
    return [
        step("Prepare", "Processing", prepare, **cached),
        step("FineTune", "Training", fine_tune, **cached),
        step("Evaluate", "Processing", evaluate, DependsOn=["FineTune"], PropertyFiles=report),
        step(
            "Gate",
            "Condition",
            {
                "Conditions": better,
                "IfSteps": [
                    step("Register", "RegisterModel", register),
                    step("Auto", "Condition", {"Conditions": is_approved, "IfSteps": auto, "ElseSteps": []}),
                ],
                "ElseSteps": [step("Refused", "Fail", refused)],
            },
        ),
    ]


def test_a_whole_pipeline_runs_and_its_second_run_takes_from_the_cache(server: Server) -> None:
    pipeline = create(server, *whole_pipeline())
    arn = start(server, pipeline)
    assert server.execution(arn)["PipelineExecutionStatus"] == "Succeeded"
    steps = steps_of(server, arn)
    assert list(steps) == ["Prepare", "FineTune", "Evaluate", "Gate", "Register", "Auto", "Deploy"] or list(steps) == [
        *("Prepare", "FineTune", "Evaluate", "Gate", "Auto", "Register", "Deploy")
    ]
    assert {item["StepStatus"] for item in steps.values()} == {"Succeeded"}
    assert steps["Gate"]["Metadata"]["Condition"]["Outcome"] == "True"
    job_name = steps["FineTune"]["Metadata"]["TrainingJob"]["Arn"].rsplit("/", 1)[-1]
    described = server.sagemaker.describe_training_job(TrainingJobName=job_name)
    assert described["HyperParameters"] == {"epoch": "1.0", "fast": "true", "rank": "16"}
    model = described["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{BUCKET}/")
    assert server.get(f"{model}weights") == "HELLO"
    package = steps["Register"]["Metadata"]["RegisterModel"]["Arn"]
    generated_by = server.sagemaker.describe_model_package(ModelPackageName=package)["MetadataProperties"][
        "GeneratedBy"
    ]
    assert generated_by == arn
    deploy = steps["Deploy"]["Metadata"]["ProcessingJob"]["Arn"].rsplit("/", 1)[-1]
    assert server.log_lines("/aws/sagemaker/ProcessingJobs", deploy) == [f"deploy {package}"]

    second = start(server, pipeline)
    server.execution(second)
    again = steps_of(server, second)
    for name in ("Prepare", "FineTune"):
        assert again[name]["CacheHitResult"] == {"SourcePipelineExecutionArn": arn}
        assert again[name]["Metadata"] == steps[name]["Metadata"]
    assert "CacheHitResult" not in again["Evaluate"]

    third = start(server, pipeline, Epochs="2.5")
    server.execution(third)
    again = steps_of(server, third)
    assert "CacheHitResult" in again["Prepare"]
    assert "CacheHitResult" not in again["FineTune"]


def test_a_refused_gate_ends_in_the_fail_steps_message(server: Server) -> None:
    arn = start(server, create(server, *whole_pipeline()), Margin="0.9")
    execution = server.execution(arn)
    assert execution["PipelineExecutionStatus"] == "Failed"
    assert execution["FailureReason"] == "Refused: no better"
    steps = steps_of(server, arn)
    assert "Register" not in steps
    assert steps["Refused"]["Metadata"]["Fail"]["ErrorMessage"] == "Refused: no better"
    assert steps["Refused"]["FailureReason"] == "Refused: no better"


# ---------------------------------------------------------------------- order


def test_steps_that_do_not_need_each_other_run_at_the_same_time(server: Server) -> None:
    began = time.monotonic()
    _, steps = run(server, *(job(name, "sleep 0.8") for name in ("A", "B", "C")), job("D", DependsOn=["A", "B", "C"]))
    assert time.monotonic() - began < 2.2
    assert steps["D"]["StartTime"] >= max(steps[name]["EndTime"] for name in ("A", "B", "C"))


def test_parallelism_can_be_limited(server: Server) -> None:
    pipeline = create(
        server,
        *(job(name, "sleep 0.2") for name in ("A", "B", "C")),
        ParallelismConfiguration={"MaxParallelExecutionSteps": 1},
    )
    arn = start(server, pipeline)
    server.execution(arn)
    spans = sorted((item["StartTime"], item["EndTime"]) for item in steps_of(server, arn).values())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_step_can_wait_for_a_condition_and_one_that_needs_the_other_branch_does_not_run(server: Server) -> None:
    yes = [{"Type": "Equals", "LeftValue": 1, "RightValue": 1}]
    arguments = {"Conditions": yes, "IfSteps": [job("Taken")], "ElseSteps": [job("Other")]}
    execution, steps = run(
        server,
        step("Choose", "Condition", arguments),
        job("After", DependsOn=["Choose"]),
        job("Never", DependsOn=["Other"]),
    )
    assert execution["PipelineExecutionStatus"] == "Succeeded"
    assert set(steps) == {"Choose", "Taken", "After"}


def test_what_the_server_adds_to_a_step_is_well_below_two_seconds(server: Server) -> None:
    chain = [job("S0"), *(job(f"S{number}", DependsOn=[f"S{number - 1}"]) for number in range(1, 5))]
    arn = start(server, create(server, *chain))
    began = time.monotonic()
    server.execution(arn)
    assert (time.monotonic() - began) / 5 < 0.6


# ---------------------------------------------------------------------- failures


def test_a_failed_step_fails_the_execution_with_its_reason_and_starts_nothing_more(server: Server) -> None:
    execution, steps = run(
        server,
        job("Bad", "echo 'train.jsonl:3: no key \"prompt\"' > /opt/ml/output/message; exit 1"),
        job("Long", "sleep 0.5"),
        job("Next", DependsOn=["Bad"]),
        job("Later", DependsOn=["Long"]),
    )
    assert execution["PipelineExecutionStatus"] == "Failed"
    reason = 'AlgorithmError: train.jsonl:3: no key "prompt", exit code: 1'
    assert execution["FailureReason"] == f"Step failure: One or multiple steps failed. Bad: {reason}"
    assert steps["Bad"]["FailureReason"] == reason
    assert steps["Long"]["StepStatus"] == "Succeeded"
    assert set(steps) == {"Bad", "Long"}


def test_a_report_that_is_missing_fails_the_condition_that_reads_it(server: Server) -> None:
    report = [{"PropertyFileName": "R", "OutputName": "o", "FilePath": "r.json"}]
    read = {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.A.PropertyFiles.R"}, "Path": "ok"}}
    arguments = {
        "Conditions": [{"Type": "Equals", "LeftValue": read, "RightValue": True}],
        "IfSteps": [],
        "ElseSteps": [],
    }
    request = processing("true", outputs={"o": run_folder("o")})
    execution, steps = run(
        server, step("A", "Processing", request, PropertyFiles=report), step("Gate", "Condition", arguments)
    )
    assert execution["PipelineExecutionStatus"] == "Failed"
    assert "/o/r.json" in steps["Gate"]["FailureReason"]


def test_a_request_that_is_wrong_once_evaluated_fails_by_field(server: Server) -> None:
    request = processing("true")
    request["ProcessingResources"]["ClusterConfig"]["InstanceType"] = {"Get": "Parameters.Mode"}
    _, steps = run(server, step("A", "Processing", request))
    assert "'a' at 'processingResources.clusterConfig.instanceType'" in steps["A"]["FailureReason"]
    assert "sagemaker:CreateProcessingJob" in steps["A"]["FailureReason"]


def test_a_step_type_that_does_not_run_here_fails_by_name(server: Server) -> None:
    _, steps = run(server, step("Notify", "Lambda", {}))
    assert "type 'Lambda' do not run on local AWS" in steps["Notify"]["FailureReason"]


def test_a_model_step_makes_a_model(server: Server) -> None:
    _, steps = run(server, step("Make", "Model", {"ExecutionRoleArn": ROLE, "PrimaryContainer": {"Image": "web"}}))
    name = steps["Make"]["Metadata"]["Model"]["Arn"].rsplit("/", 1)[-1]
    assert server.sagemaker.describe_model(ModelName=name)["PrimaryContainer"]["Image"] == "web"


def test_stopping_ends_the_jobs_that_run(server: Server) -> None:
    arn = start(server, create(server, job("A", "sleep 60"), job("B", "sleep 60"), job("C", DependsOn=["A"])))
    server.wait_for(
        lambda: [item.get("Metadata") is not None for item in steps_of(server, arn).values()] == [True, True]
    )
    jobs = [item["Metadata"]["ProcessingJob"]["Arn"].rsplit("/", 1)[-1] for item in steps_of(server, arn).values()]
    server.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)
    assert server.execution(arn)["PipelineExecutionStatus"] == "Stopped"
    assert {name: item["StepStatus"] for name, item in steps_of(server, arn).items()} == {
        "A": "Stopped",
        "B": "Stopped",
    }
    assert [server.processing_job(name)["ProcessingJobStatus"] for name in jobs] == ["Stopped", "Stopped"]
    with pytest.raises(ClientError, match="is Stopped"):
        server.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)


# ---------------------------------------------------------------------- starting and describing


def test_stopping_a_pipeline_lets_its_training_save_a_checkpoint_that_the_next_execution_goes_on_with(
    server: Server,
) -> None:
    prefix = f"resumed-{uuid.uuid4().hex[:8]}"
    command = (
        "cd /opt/ml/checkpoints; [ -e last ] && cat last && exit 0;"
        "trap 'echo step-7 > last; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    )
    checkpoints = {"S3Uri": f"s3://{BUCKET}/{prefix}/"}
    cached = {"CacheConfig": {"Enabled": True, "ExpireAfter": "P30D"}}
    request = training(command, CheckpointConfig=checkpoints)
    pipeline = create(server, step("Train", "Training", request, **cached))
    first = start(server, pipeline)

    def is_up(arn: str) -> bool:
        job = steps_of(server, arn).get("Train", {}).get("Metadata", {}).get("TrainingJob")
        log = server.root / "run/logs/TrainingJobs" / f"{job['Arn'].rsplit('/', 1)[-1]}.log" if job else None
        return log is not None and log.exists() and log.read_text() == "up\n"

    server.wait_for(lambda: is_up(first))
    server.sagemaker.stop_pipeline_execution(PipelineExecutionArn=first)
    assert server.execution(first)["PipelineExecutionStatus"] == "Stopped"
    assert server.get(f"{prefix}/last") == "step-7\n"
    second = start(server, pipeline)
    assert server.execution(second)["PipelineExecutionStatus"] == "Succeeded"
    train = steps_of(server, second)["Train"]
    assert "CacheHitResult" not in train  # a training that was stopped is no result
    name = train["Metadata"]["TrainingJob"]["Arn"].rsplit("/", 1)[-1]
    assert server.log_lines("/aws/sagemaker/TrainingJobs", f"{name}/") == ["step-7"]
    third = start(server, pipeline)
    assert server.execution(third)["PipelineExecutionStatus"] == "Succeeded"
    assert steps_of(server, third)["Train"]["CacheHitResult"]["SourcePipelineExecutionArn"] == second


def test_wrong_parameters_are_refused_all_at_once(server: Server) -> None:
    with pytest.raises(ClientError) as caught:
        start(server, create(server, job("A")), Epoch="1", Margin="much", Mode="c")
    for words in (
        "Unknown parameter 'Epoch'",
        "'Margin' is of type Float and cannot be 'much'",
        "'Mode' is 'c'",
        "one of a, b",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("Integer", "7", 7),
        ("Float", "1e-4", 1e-4),
        ("Boolean", "True", True),
        ("Boolean", "false", False),
        ("String", "", ""),
    ],
)
def test_parameters_come_in_their_type(kind: str, text: str, value: Any) -> None:
    declared = {"Parameters": [{"Name": "P", "Type": kind}]}
    result = parameter_values(declared, [{"Name": "P", "Value": text}])["P"]
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "text"), [("Integer", "1.5"), ("Float", "nan"), ("Float", "inf"), ("Boolean", "yes"), ("Integer", "")]
)
def test_a_parameter_of_a_wrong_type_is_refused(kind: str, text: str) -> None:
    with pytest.raises(ValidationException, match=f"of type {kind} and cannot be '{text}'"):
        parameter_values({"Parameters": [{"Name": "P", "Type": kind}]}, [{"Name": "P", "Value": text}])


def test_a_parameter_without_default_must_be_given() -> None:
    with pytest.raises(ValidationException, match=r"'P' .* no default and no value"):
        parameter_values({"Parameters": [{"Name": "P", "Type": "String"}]}, [])


def test_the_same_token_starts_one_execution(server: Server) -> None:
    pipeline, token = create(server, job("A")), uuid.uuid4().hex
    arns = {
        server.sagemaker.start_pipeline_execution(PipelineName=pipeline, ClientRequestToken=token)[
            "PipelineExecutionArn"
        ]
        for _ in range(3)
    }
    assert len(arns) == 1
    assert len(server.sagemaker.list_pipeline_executions(PipelineName=pipeline)["PipelineExecutionSummaries"]) == 1


def test_an_execution_shows_its_parameters_its_definition_and_its_steps_page_by_page(server: Server) -> None:
    pipeline = create(server, job("A"), job("B", DependsOn=["A"]), job("C", DependsOn=["B"]))
    arn = server.sagemaker.start_pipeline_execution(
        PipelineName=pipeline,
        PipelineExecutionDisplayName="by-hand",
        PipelineParameters=[{"Name": "Mode", "Value": "b"}],
    )["PipelineExecutionArn"]
    # The definition that runs is the one of the start, whatever becomes of the pipeline.
    server.sagemaker.update_pipeline(PipelineName=pipeline, PipelineDefinition=json.dumps(definition(job("Z"))))
    execution = server.execution(arn)
    assert execution["PipelineExecutionDisplayName"] == "by-hand"
    listed = server.sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=arn)["PipelineParameters"]
    assert {item["Name"]: item["Value"] for item in listed}["Mode"] == "b"
    text = server.sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=arn)["PipelineDefinition"]
    assert [item["Name"] for item in json.loads(text)["Steps"]] == ["A", "B", "C"]
    pages = server.sagemaker.get_paginator("list_pipeline_execution_steps").paginate(
        PipelineExecutionArn=arn, PaginationConfig={"PageSize": 2}
    )
    assert [item["StepName"] for shown in pages for item in shown["PipelineExecutionSteps"]] == ["C", "B", "A"]
    assert server.sagemaker.describe_pipeline(PipelineName=pipeline)["LastRunTime"] == execution["CreationTime"]


def test_pipelines_are_created_updated_listed_and_deleted(server: Server) -> None:
    pipeline = create(server, job("A"), Tags=[{"Key": "team", "Value": "x"}])
    arn = server.sagemaker.describe_pipeline(PipelineName=pipeline)["PipelineArn"]
    assert server.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "x"}]
    assert server.sagemaker.describe_pipeline(PipelineName=arn)["PipelineName"] == pipeline
    with pytest.raises(ClientError, match="already exists"):
        server.sagemaker.create_pipeline(
            PipelineName=pipeline, PipelineDefinition=json.dumps(definition(job("A"))), RoleArn=ROLE
        )
    summaries = server.sagemaker.list_pipelines(PipelineNamePrefix=pipeline)["PipelineSummaries"]
    assert [item["PipelineName"] for item in summaries] == [pipeline]
    running = start(server, pipeline)
    server.execution(running)
    server.sagemaker.delete_pipeline(PipelineName=pipeline)
    with pytest.raises(ClientError) as caught:
        server.sagemaker.start_pipeline_execution(PipelineName=pipeline)
    assert caught.value.response["Error"]["Code"] == "ResourceNotFound"


def test_a_definition_can_come_from_s3(server: Server) -> None:
    server.put("definitions/p.json", json.dumps(definition(job("A"))))
    name = f"pipeline-{uuid.uuid4().hex[:8]}"
    location = {"Bucket": BUCKET, "ObjectKey": "definitions/p.json"}
    server.sagemaker.create_pipeline(PipelineName=name, PipelineDefinitionS3Location=location, RoleArn=ROLE)
    assert server.execution(start(server, name))["PipelineExecutionStatus"] == "Succeeded"


def test_a_pipeline_whose_role_cannot_be_assumed_fails_at_its_first_step(server: Server) -> None:
    name, body = f"pipeline-{uuid.uuid4().hex[:8]}", json.dumps(definition(job("A")))
    server.sagemaker.create_pipeline(PipelineName=name, PipelineDefinition=body, RoleArn=f"{ROLE}-other")
    execution = server.execution(start(server, name))
    assert f"sagemaker.amazonaws.com cannot assume {ROLE}-other: there is no such role" in execution["FailureReason"]


# ---------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([job("A"), job("A")], "two steps are named 'A'"),
        ([job("A", DependsOn=["B"])], "step 'A': DependsOn names 'B', which is no step"),
        (
            [job("A", DependsOn=["B"]), job("B", DependsOn=["A"]), job("C", DependsOn=["A"])],
            r"steps A, B wait for each other",
        ),
        ([step("A", "Processing", {"x": {"Get": "Parameters.No"}})], "step 'A': there is no parameter 'No'"),
        (
            [step("A", "Processing", {"x": {"Get": "Execution.No"}})],
            "no execution variable 'No'; .* PipelineExecutionId",
        ),
        ([step("A", "Processing", {"x": {"Get": "Steps.B.Arn"}})], "'Steps.B.Arn' names 'B', which is no step"),
        (
            [job("B"), step("A", "Fail", {"ErrorMessage": {"Get": "Steps.B.PropertyFiles.R"}})],
            "no property file of step 'B'; it has: none",
        ),
        (
            [step("A", "Fail", {}), step("B", "Processing", {"x": {"Get": "Steps.A.X"}})],
            "a Fail step, which has no properties",
        ),
        ([step("A", "Processing", {"x": {"Std:Sum": []}})], "unknown function 'Std:Sum'"),
        (
            [step("A", "Condition", {"Conditions": [{"Type": "Like"}], "IfSteps": [], "ElseSteps": []})],
            "unknown condition type 'Like'",
        ),
        ([step("A", "Condition", {"Conditions": [{"Type": "Equals"}]})], "the condition Equals has no LeftValue"),
        ([], "Steps is empty"),
        ([{"Type": "Processing"}], "does not have the form of a pipeline definition"),
    ],
)
def test_a_wrong_definition_is_refused_with_the_step_and_the_reason(steps: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        pipeline_definition.read(json.dumps(definition(*steps)))


def test_all_problems_of_a_definition_come_at_once(server: Server) -> None:
    body = json.dumps(
        definition(
            job("A", DependsOn=["X"]), job("A"), parameters=[{"Name": "P", "Type": "Integer", "DefaultValue": "1"}]
        )
    )
    with pytest.raises(ClientError) as caught:
        server.sagemaker.create_pipeline(PipelineName="p", PipelineDefinition=body, RoleArn=ROLE)
    for words in ("parameter 'P' is of type Integer and has the default '1'", "named 'A'", "names 'X'"):
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"Steps": 5}', '{"Version": "1", "Steps": []}'])
def test_what_is_no_definition_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match="Unable to parse pipeline definition"):
        pipeline_definition.read(text)


# ---------------------------------------------------------------------- retries and durations


@pytest.fixture
def runner(tmp_path: Any) -> Runner:
    service = Service(Settings(root=tmp_path, images={}, port=0, region="us-east-1", account="123456789012", url=""))
    store = ObjectStore(service.settings)
    return Runner(service, store, Jobs(service, store))


def retried(runner: Runner, faults: list[str | None], *policies: dict[str, Any]) -> tuple[StepRun, int]:
    """Run a step whose attempts fail with `faults` and then succeed; returns the step and how often it was tried."""
    record = {"PipelineArn": "p", "PipelineExecutionArn": "e", "PipelineExecutionStatus": "Executing"}
    execution = Execution(record, json.dumps(definition(job("A"))), {}, {}, ROLE)
    run_of_step = StepRun(job("A", RetryPolicies=list(policies)))
    left, tried = list(faults), [0]

    def attempt() -> dict[str, Any]:
        tried[0] += 1
        if left:
            raise StepFailed("it failed", left.pop(0))
        return {}

    try:
        runner._with_retries(execution, run_of_step, attempt)
    except StepFailed:
        return run_of_step, -tried[0]
    return run_of_step, tried[0]


def policy(*kinds: str, **fields: Any) -> dict[str, Any]:
    return {"ExceptionType": list(kinds), "IntervalSeconds": 0.01, "BackoffRate": 1.0, "MaxAttempts": 2, **fields}


def test_a_fault_that_a_policy_names_is_retried_and_counted(runner: Runner) -> None:
    run_of_step, tried = retried(runner, ["Step.THROTTLING"] * 2, policy("Step.SERVICE_FAULT", "Step.THROTTLING"))
    assert (tried, run_of_step.record["AttemptCount"]) == (3, 3)


def test_a_policy_gives_up_after_its_attempts(runner: Runner) -> None:
    assert retried(runner, ["Step.THROTTLING"] * 5, policy("Step.THROTTLING"))[1] == -3


@pytest.mark.parametrize("fault", [None, "SageMaker.CAPACITY_ERROR"])
def test_what_no_policy_names_is_not_retried(runner: Runner, fault: str | None) -> None:
    assert retried(runner, [fault], policy("Step.THROTTLING"))[1] == -1


def test_each_policy_counts_its_own_attempts(runner: Runner) -> None:
    faults: list[str | None] = [
        "Step.THROTTLING",
        "SageMaker.CAPACITY_ERROR",
        "Step.THROTTLING",
        "SageMaker.CAPACITY_ERROR",
    ]
    assert retried(runner, faults, policy("Step.THROTTLING"), policy("SageMaker.CAPACITY_ERROR"))[1] == 5


def test_a_policy_that_would_wait_beyond_its_time_gives_up(runner: Runner) -> None:
    late = policy("Step.THROTTLING", IntervalSeconds=90, ExpireAfterMin=1)
    assert retried(runner, ["Step.THROTTLING"], late)[1] == -1


def test_waiting_for_a_retry_grows_by_the_backoff_rate(runner: Runner) -> None:
    began = time.monotonic()
    retried(
        runner, ["Step.THROTTLING"] * 3, policy("Step.THROTTLING", BackoffRate=2.0, IntervalSeconds=0.05, MaxAttempts=3)
    )
    assert time.monotonic() - began >= 0.05 + 0.1 + 0.2


def test_a_stopped_execution_does_not_wait_for_its_retry(runner: Runner) -> None:
    threading.Timer(0.1, runner.shutdown).start()
    began = time.monotonic()
    with pytest.raises(StepStopped):
        retried(runner, ["Step.THROTTLING"], policy("Step.THROTTLING", IntervalSeconds=30))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("P30D", timedelta(days=30)),
        ("PT1H30M", timedelta(minutes=90)),
        ("30d", timedelta(days=30)),
        ("T16m", timedelta(minutes=16)),
        ("30dT5h", timedelta(days=30, hours=5)),
        ("P1Y2M1W", timedelta(days=365 + 60 + 7)),
    ],
)
def test_durations_are_iso_8601(text: str, value: timedelta) -> None:
    assert duration(text) == value


@pytest.mark.parametrize("text", ["", "P", "30", "P1H", "soon"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(StepFailed, match="not an ISO 8601 duration"):
        duration(text)
