"""`finetune report`: the report of any execution, found through its steps, and clear words where there is none."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import executions, reports
from cli.__main__ import app
from cli.aws import REPOSITORY, Deployment
from cli.console import CommandError
from pipeline_steps import report_page
from pipeline_steps.contract import evaluation, files
from tests import evaluations
from tests.local_aws.sagemaker_server import ANYTHING, TRUST, processing

EVALUATE = "; ".join(
    [
        "set -e",
        'if [ "$OUTCOME" = broken ]; then mkdir -p /opt/ml/output; echo "another base" > /opt/ml/output/message; exit 1; fi',
        'if [ "$OUTCOME" = slow ]; then sleep 60; fi',
        "cp /opt/ml/processing/input/sample/* /opt/ml/processing/output/evaluation/",
    ]
)


@pytest.fixture(scope="module", autouse=True)
def pipeline(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A pipeline that evaluates as ours does, on this module's AWS: the Outcome is asked for."""
    sample = tmp_path_factory.mktemp("sample")
    found = evaluations.evaluation(gate=evaluations.verdict(False))
    evaluation.write(sample, found, evaluations.answers())
    (sample / files.REPORT_FILE).write_text(report_page.render(found, evaluations.answers()), encoding="utf-8")
    (sample / files.DATA_CARD_PAGE).write_text("a data card", encoding="utf-8")
    for path in sample.iterdir():
        deployment.s3.upload_file(str(path), deployment.artifact_bucket, f"sample/{path.name}")
    iam = deployment.client("iam")
    iam.create_role(RoleName="jobs", AssumeRolePolicyDocument=json.dumps(TRUST))
    iam.put_role_policy(RoleName="jobs", PolicyName="anything", PolicyDocument=json.dumps(ANYTHING))
    role = f"arn:aws:iam::{deployment.settings.account}:role/jobs"

    bucket = f"s3://{deployment.artifact_bucket}"
    output = {"Std:Join": {"On": "/", "Values": [bucket, {"Get": "Execution.PipelineExecutionId"}, "evaluation"]}}
    request = processing(EVALUATE, {"sample": f"{bucket}/sample/"}, {"evaluation": output}, RoleArn=role)
    request["AppSpecification"]["ImageUri"] = "registry/huggingface-pytorch-training:1"
    request["Environment"] = {"OUTCOME": {"Get": "Parameters.Outcome"}}

    def condition(name: str, outcome: str, then: list[Any], otherwise: list[Any]) -> dict[str, Any]:
        equals = {"Type": "Equals", "LeftValue": {"Get": "Parameters.Outcome"}, "RightValue": outcome}
        arguments = {"Conditions": [equals], "IfSteps": then, "ElseSteps": otherwise}
        return {"Name": name, "Type": "Condition", "Arguments": arguments}

    evaluate = {
        "Name": "Evaluate",
        "Type": "Processing",
        "Arguments": request,
        "CacheConfig": {"Enabled": True, "ExpireAfter": "P1D"},
    }
    refuse = {"Name": "Fail", "Type": "Fail", "Arguments": {"ErrorMessage": "The gate refused the tuned model"}}
    quality_gate = {**condition("QualityGate", "refused", [refuse], []), "DependsOn": ["Evaluate"]}
    definition = {
        "Version": "2020-12-01",
        "Parameters": [{"Name": "Outcome", "Type": "String"}],
        "Steps": [condition("NewTraining", "unchanged", [], [evaluate, quality_gate])],
    }
    deployment.sagemaker.create_pipeline(
        PipelineName=deployment.settings.finetune_pipeline_name, PipelineDefinition=json.dumps(definition), RoleArn=role
    )


def execution(deployment: Deployment, outcome: str) -> str:
    arn = executions.start(deployment, {"Outcome": outcome})
    executions.follow(deployment, arn)
    return arn


def report(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `finetune report` says about this module's AWS."""
    monkeypatch.setattr(Deployment, "named", lambda *_: deployment)
    finished = CliRunner().invoke(app, ["report", "--no-open", *arguments], catch_exceptions=False)
    assert finished.exit_code == 0
    return finished.stdout


def test_before_any_execution_the_way_to_one_is_told(deployment: Deployment) -> None:
    with pytest.raises(
        CommandError, match=r"no execution of cli-finetune has a report yet: it has not run; see finetune"
    ):
        reports.find(deployment, None)


def test_the_report_of_a_refused_execution_is_saved_with_its_data_card_and_the_verdict_is_told(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arn = execution(deployment, "refused")
    assert executions.describe(deployment, arn).status == "Failed"
    said = report(deployment, monkeypatch, "--output", str(tmp_path / "new" / "folder"))
    assert arn in said and "The gate refused the tuned model: bits per byte" in " ".join(said.split())
    assert "1 of 3 checks failed" in (tmp_path / "new" / "folder" / files.REPORT_FILE).read_text(encoding="utf-8")
    assert (tmp_path / "new" / "folder" / files.DATA_CARD_PAGE).read_text(encoding="utf-8") == "a data card"


def test_an_execution_can_be_named_by_its_id_and_by_its_arn(deployment: Deployment) -> None:
    first, second = execution(deployment, "passed"), execution(deployment, "refused")
    assert reports.find(deployment, None).execution == second
    for name in (first, first.rsplit("/", 1)[-1]):
        assert reports.find(deployment, name).execution == first


def test_a_reused_evaluation_has_the_report_of_the_execution_that_made_it(
    deployment: Deployment, tmp_path: Path
) -> None:
    first, again = execution(deployment, "again"), execution(deployment, "again")
    view = executions.describe(deployment, again)
    assert [step.reused_from for step in view.steps if step.name == "Evaluate"] == [first]
    assert reports.save(deployment, reports.find(deployment, again), tmp_path).exists()
    # The service need not repeat the job's name where a result was reused.
    steps = [replace(step, job=None) if step.name == "Evaluate" else step for step in view.steps]
    found = reports._written(deployment, replace(view, steps=steps))
    assert not isinstance(found, str) and found.execution == first


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("unchanged", "it ended as Succeeded before Evaluate"),
        ("broken", "Evaluate ended as Failed: .*another base"),
    ],
)
def test_an_execution_without_a_report_says_why_and_the_newest_with_one_is_still_found(
    deployment: Deployment, outcome: str, said: str
) -> None:
    good = execution(deployment, "passed")
    without = execution(deployment, outcome)
    with pytest.raises(CommandError, match=f"(?s){without} has no report: {said}"):
        reports.find(deployment, without)
    assert reports.find(deployment, None).execution == good


def test_while_evaluate_is_at_work_there_is_no_report_yet(deployment: Deployment) -> None:
    arn = executions.start(deployment, {"Outcome": "slow"})
    try:
        with pytest.raises(CommandError, match="see 'finetune status --follow'"):
            reports.find(deployment, arn)
    finally:
        deployment.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken="t" * 32)
        executions.follow(deployment, arn)


@pytest.mark.parametrize(
    "name", ["nosuchid", "arn:aws:sagemaker:us-east-1:123456789012:pipeline/cli-finetune/execution/x"]
)
def test_an_execution_that_does_not_exist_is_told_by_its_name(deployment: Deployment, name: str) -> None:
    with pytest.raises(CommandError, match=f"there is no execution {name}"):
        reports.find(deployment, name)


def test_a_report_that_was_deleted_since_is_told(deployment: Deployment, tmp_path: Path) -> None:
    written = reports.find(deployment, execution(deployment, "deleted"))
    deployment.s3.delete_object(Bucket=written.bucket, Key=f"{written.prefix}/{files.REPORT_FILE}")
    with pytest.raises(CommandError, match=r"report\.html is gone"):
        reports.save(deployment, written, tmp_path)


def test_the_report_opens_in_the_users_browser(tmp_path: Path) -> None:
    """The standard library asks $BROWSER, in a process of its own, since it does so once."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n', encoding="utf-8")
    browser.chmod(0o755)
    code = "import pathlib, sys; from cli import reports; print(reports.show(pathlib.Path(sys.argv[1])))"
    for chosen, opened in ((str(browser), "True"), ("/nonexistent", "False")):
        finished = subprocess.run(
            [sys.executable, "-c", code, "build/report.html"],
            cwd=REPOSITORY, env={**os.environ, "BROWSER": chosen, "PATH": ""}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert finished.stdout.split() == [opened]
    assert (tmp_path / "opened").read_text("utf-8").strip() == (REPOSITORY / "build" / "report.html").as_uri()
