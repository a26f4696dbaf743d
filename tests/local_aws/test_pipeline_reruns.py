"""Executions that go on with what an earlier one has made: retries of the same execution, and selected steps of a new one."""

import json
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.sagemaker_server import BUCKET, Server, processing, running_server
from tests.local_aws.test_pipelines import create, definition, job, run_folder, start, step, steps_of

OUT = "/opt/ml/processing/output"


@pytest.fixture
def server() -> Server:
    return running_server()


def statuses(server: Server, arn: str) -> dict[str, str]:
    return {name: one["StepStatus"] for name, one in steps_of(server, arn).items()}


def needs(server: Server, flag: str, name: str = "Flaky", **fields: Any) -> dict[str, Any]:
    """A step that fails until the object `flag` exists."""
    command = "test -e /opt/ml/processing/input/flags/up || { echo 'no flag' > /opt/ml/output/message; exit 1; }"
    server.put(f"{flag}/always", "")
    return step(name, "Processing", processing(command, {"flags": f"s3://{BUCKET}/{flag}/"}), **fields)


def test_a_retry_runs_what_failed_and_what_follows_and_nothing_that_has_succeeded(server: Server) -> None:
    flag = uuid.uuid4().hex
    yes = [{"Type": "Equals", "LeftValue": 1, "RightValue": 1}]
    inner = {"Conditions": yes, "IfSteps": [needs(server, flag), job("Last", DependsOn=["Flaky"])], "ElseSteps": []}
    pipeline = create(server, job("First"), step("Choose", "Condition", inner, DependsOn=["First"]))
    arn = start(server, pipeline)
    assert "no flag" in server.execution(arn)["FailureReason"]
    before = steps_of(server, arn)

    server.put(f"{flag}/up", "")
    assert server.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionArn"] == arn
    execution = server.execution(arn)
    assert execution["PipelineExecutionStatus"] == "Succeeded" and "FailureReason" not in execution
    after = steps_of(server, arn)
    assert list(after) == ["First", "Choose", "Flaky", "Last"]
    assert after["First"] == before["First"] and after["Choose"] == before["Choose"]
    assert after["Flaky"]["AttemptCount"] == 2 and after["Flaky"]["Metadata"] != before["Flaky"]["Metadata"]
    with pytest.raises(ClientError, match="is Succeeded"):
        server.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn)


def test_a_stopped_execution_can_be_retried_and_the_same_token_retries_once(server: Server) -> None:
    arn = start(server, create(server, job("Slow", "sleep 60")))
    server.wait_for(lambda: "Metadata" in steps_of(server, arn).get("Slow", {}))
    with pytest.raises(ClientError, match="is Executing"):
        server.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn)
    server.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)
    server.execution(arn)
    token = uuid.uuid4().hex
    for _ in range(2):
        server.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=token)
    server.wait_for(lambda: "Metadata" in steps_of(server, arn).get("Slow", {}))
    server.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)
    assert server.execution(arn)["PipelineExecutionStatus"] == "Stopped"
    assert steps_of(server, arn)["Slow"]["AttemptCount"] == 2


# ---------------------------------------------------------------------- selective execution


def gated() -> list[dict[str, Any]]:
    """Prepare -> Train -> Gate { Deploy } else { Refuse }; Train writes what it was given, and Mode decides."""
    made = processing(f"echo data > {OUT}/made/x", outputs={"made": run_folder("made")})
    read = {"Get": "Steps.Prepare.ProcessingOutputConfig.Outputs['made'].S3Output.S3Uri"}
    train = processing(
        f"cat /opt/ml/processing/input/made/x > {OUT}/model/x; echo $EPOCHS >> {OUT}/model/x",
        inputs={"made": read},
        outputs={"model": run_folder("model")},
        Environment={"EPOCHS": {"Get": "Parameters.Epochs"}},
    )
    is_a = [{"Type": "Equals", "LeftValue": {"Get": "Parameters.Mode"}, "RightValue": "a"}]
    gate = {"Conditions": is_a, "IfSteps": [job("Deploy")], "ElseSteps": [job("Refuse")]}
    return [
        step("Prepare", "Processing", made),
        step("Train", "Processing", train),
        step("Gate", "Condition", gate, DependsOn=["Train"]),
    ]


@pytest.fixture(scope="module")
def gated_source() -> tuple[str, str]:
    """A pipeline and a finished execution of it."""
    server = running_server()
    pipeline = create(server, *gated())
    arn = start(server, pipeline)
    assert server.execution(arn)["PipelineExecutionStatus"] == "Succeeded"
    return pipeline, arn


def select(server: Server, pipeline: str, source: str | None, *names: str, **parameters: str) -> str:
    configuration: dict[str, Any] = {"SelectedSteps": [{"StepName": name} for name in names]}
    if source:
        configuration["SourcePipelineExecutionArn"] = source
    answer = server.sagemaker.start_pipeline_execution(
        PipelineName=pipeline,
        PipelineParameters=[{"Name": name, "Value": value} for name, value in parameters.items()],
        SelectiveExecutionConfig=configuration,
    )
    return str(answer["PipelineExecutionArn"])


def test_a_selected_step_runs_alone_on_the_results_of_the_source(server: Server, gated_source: tuple[str, str]) -> None:
    pipeline, source = gated_source
    arn = select(server, pipeline, source, "Train", Epochs="3")
    assert server.execution(arn)["PipelineExecutionStatus"] == "Succeeded"
    steps = steps_of(server, arn)
    assert list(steps) == ["Prepare", "Train"]  # what comes after does not run
    assert steps["Prepare"]["SelectiveExecutionResult"] == {"SourcePipelineExecutionArn": source}
    assert steps["Prepare"]["Metadata"] == steps_of(server, source)["Prepare"]["Metadata"]
    assert "SelectiveExecutionResult" not in steps["Train"]
    assert server.get(f"runs/{arn.rsplit('/', 1)[-1]}/model/x") == "data\n3.0\n"
    with pytest.raises(ClientError, match="NoSuchKey"):
        server.get(f"runs/{arn.rsplit('/', 1)[-1]}/made/x")


def test_a_step_of_a_branch_runs_where_the_source_took_that_branch(
    server: Server, gated_source: tuple[str, str]
) -> None:
    pipeline, source = gated_source
    arn = select(server, pipeline, source, "Deploy")
    assert server.execution(arn)["PipelineExecutionStatus"] == "Succeeded"
    assert statuses(server, arn) == {"Gate": "Succeeded", "Deploy": "Succeeded"}
    with pytest.raises(ClientError, match=f"'Refuse' lies in a branch of 'Gate' that {source} did not take"):
        select(server, pipeline, source, "Refuse")


@pytest.mark.parametrize(
    ("names", "with_source", "said"),
    [
        (["Trian"], True, "There is no step 'Trian'; did you mean 'Train'?"),
        (["Train"], False, "SourcePipelineExecutionArn is needed: the selected steps depend on Prepare"),
        (["Prepare", "Gate"], True, "Train: on the way from one selected step to another, and not selected"),
        (["Train", "Deploy"], True, "Gate: on the way from one selected step to another"),
    ],
)
def test_a_selection_that_cannot_run_is_refused_and_nothing_starts(
    server: Server, gated_source: tuple[str, str], names: list[str], with_source: bool, said: str
) -> None:
    pipeline, source = gated_source

    def count() -> int:
        return len(server.sagemaker.list_pipeline_executions(PipelineName=pipeline)["PipelineExecutionSummaries"])

    before = count()
    with pytest.raises(ClientError) as caught:
        select(server, pipeline, source if with_source else None, *names)
    assert said in str(caught.value)
    assert count() == before


def test_a_source_must_have_ended_and_have_what_is_needed(server: Server) -> None:
    pipeline = create(server, job("A", "exit 1"), job("B", DependsOn=["A"]))
    failed = start(server, pipeline)
    server.execution(failed)
    with pytest.raises(ClientError, match="step 'A' has not succeeded in "):
        select(server, pipeline, failed, "B")
    with pytest.raises(ClientError, match="is an execution of another pipeline"):
        select(server, create(server, *gated()), failed, "Train")
    server.sagemaker.update_pipeline(
        PipelineName=pipeline, PipelineDefinition=json.dumps(definition(job("A", "sleep 60")))
    )
    running = start(server, pipeline)
    server.sagemaker.update_pipeline(
        PipelineName=pipeline, PipelineDefinition=json.dumps(definition(job("A"), job("B", DependsOn=["A"])))
    )
    with pytest.raises(ClientError, match="is Executing; a source has Succeeded or Failed"):
        select(server, pipeline, running, "B")
    server.sagemaker.stop_pipeline_execution(PipelineExecutionArn=running)
    assert server.execution(running)["PipelineExecutionStatus"] == "Stopped"
