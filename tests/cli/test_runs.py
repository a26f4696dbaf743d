"""Executions from the command line: checked and estimated before the start, watched, stopped, retried, counted, cleaned up.

The tests build on each other in the order of the file: the later ones look at the runs of the earlier ones.
"""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import executions, interventions
from cli.__main__ import app
from cli.aws import Deployment
from cli.console import CommandError, console
from tests.cli import small_pipeline

PRICES = [
    part for price in ("ml.m5.xlarge=0.2", "ml.g5.4xlarge=2", "ml.g5.12xlarge=7.2") for part in ("--price", price)
]


@pytest.fixture(scope="module", autouse=True)
def pipeline(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> None:
    small_pipeline.make(deployment, tmp_path_factory.mktemp("sample"))


@pytest.fixture
def finetune(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`finetune` on this module's AWS; returns what it said, with one space for every white space, or its JSON."""
    monkeypatch.setattr(Deployment, "named", lambda *_: deployment)
    monkeypatch.setattr(console, "_width", 200, raising=False)

    def run(*arguments: str) -> Any:
        finished = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert finished.exit_code == 0, finished.output
        return json.loads(finished.stdout) if "--json" in arguments else " ".join(finished.stdout.split())

    return run


def count(deployment: Deployment) -> int:
    return len(executions.newest_ones(deployment, deployment.settings.finetune_pipeline_name, 100))


def test_every_wrong_parameter_is_named_with_what_is_allowed_and_nothing_starts(
    deployment: Deployment, finetune: Any
) -> None:
    given = {
        "Epohc": "2",
        "LearningRate": "fast",
        "Epoch": "0",
        "PeftType": "qlora",
        "TrainingInstanceCount": "1.5",
        "TrainingInstanceType": "ml.g5.13xlarge",
        "MinTestRows": "1",
    }
    with pytest.raises(CommandError) as caught:
        finetune("start", *(part for name, value in given.items() for part in ("-p", f"{name}={value}")))
    lines = str(caught.value).splitlines()
    assert lines[0] == "nothing was started:" and len(lines) == 1 + len(given)
    for line, said in zip(
        lines[1:],
        (
            "Epohc (value '2') is unknown; did you mean 'Epoch'?",
            "LearningRate is 'fast'; allowed: a number",
            "Epoch is 0.0; input should be greater than or equal to 0.01",
            "PeftType is 'qlora'; allowed: lora, None",
            "TrainingInstanceCount is '1.5'; allowed: a whole number",
            "TrainingInstanceType is 'ml.g5.13xlarge', which SageMaker does not train on; nearest: ml.g5.",
            "MinTestRows is 1; input should be greater than or equal to 2",
        ),
        strict=True,
    ):
        assert said in line
    assert count(deployment) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-p", "Epoch"], "--parameter Epoch: expected Name=Value"),
        (["-p", "Epoch=1", "-p", "Epoch=2"], "--parameter Epoch: given twice"),
        (["-p", "DatasetManifest=instruction/none.manifest"], "none.manifest does not exist; upload the data first"),
        (
            ["-p", "TrainingInstanceType=ml.p3.2xlarge"],
            "only a KMS key of yours encrypts as configured, and the deployed",
        ),
        (["-p", "TuningMode=domain"], "a manifest lies under its mode: domain/..."),
        (["--price", "ml.g5.4xlarge"], "--price ml.g5.4xlarge: expected TYPE=USD an hour"),
    ],
)
def test_what_cannot_become_a_run_is_refused_before_it_starts(
    deployment: Deployment, finetune: Any, given: list[str], said: str
) -> None:
    with pytest.raises(CommandError) as caught:
        finetune("start", *given)
    assert said in str(caught.value)
    assert count(deployment) == 0


def test_before_the_first_run_the_estimate_says_what_it_does_not_know(deployment: Deployment, finetune: Any) -> None:
    started = finetune("start", "--json")
    assert {one["step"]: one["seconds"] for one in started["estimate"]} == dict.fromkeys(
        ("PrepareData", "FineTune", "Evaluate")
    )
    assert "there is none of this dataset" in started["estimate"][1]["source"]
    assert executions.follow(deployment, started["execution"]).status == "Succeeded"


def test_the_estimate_of_the_next_run_comes_from_the_last_one_and_stands_beside_the_actual_cost(
    deployment: Deployment, finetune: Any
) -> None:
    (first,) = executions.newest_ones(deployment, deployment.settings.finetune_pipeline_name, 1)
    view = executions.describe(deployment, first["PipelineExecutionArn"])
    train = next(step.job for step in view.steps if step.name == "FineTune")
    job = deployment.sagemaker.describe_training_job(TrainingJobName=train[1])
    # A training that was billed for 100 s: on this machine it takes none.
    told = deployment.sagemaker.describe_training_job

    def billed(TrainingJobName: str) -> Any:
        return {**told(TrainingJobName=TrainingJobName), "BillableTimeInSeconds": 100}

    assert job["BillableTimeInSeconds"] <= 1
    deployment.sagemaker.describe_training_job = billed
    try:
        started = finetune("start", "-p", "Epoch=3", "-p", "Outcome=refused", *PRICES, "--json")
        guess = {one["step"]: one for one in started["estimate"]}
        assert guess["FineTune"]["seconds"] == pytest.approx(300)  # three epochs at the speed of one in 100 s
        assert guess["FineTune"]["usd"] == pytest.approx(300 / 3600 * 7.2)
        assert "21,600 tokens by the data card of" in guess["FineTune"]["source"]
        assert guess["Evaluate"]["source"].startswith("as in ")
        assert executions.follow(deployment, started["execution"]).status == "Failed"

        cost = finetune("cost", started["execution"], *PRICES, "--json")
        counted = {one["step"]: one for one in cost["steps"]}
        assert counted["FineTune"]["usd"] == pytest.approx(100 / 3600 * 7.2) and cost["without"] == []
        assert cost["usd"] == pytest.approx(sum(one["usd"] for one in counted.values()))
        at_the_start = {one["step"]: one for one in cost["estimate"]}
        assert at_the_start["FineTune"]["seconds"] == 300
        assert at_the_start["FineTune"]["usd"] == pytest.approx(0.6, abs=1e-3)
        said = finetune("cost", started["execution"])
    finally:
        del deployment.sagemaker.describe_training_job
    assert "without PrepareData, Evaluate" in said and "unknown; give it with --price ml.m5.xlarge=USD" in said


def test_an_execution_that_somebody_else_started_has_a_cost_a_status_and_logs_too(
    deployment: Deployment, finetune: Any
) -> None:
    arn = deployment.sagemaker.start_pipeline_execution(
        PipelineName=deployment.settings.finetune_pipeline_name, ClientRequestToken=uuid.uuid4().hex
    )["PipelineExecutionArn"]
    executions.follow(deployment, arn)
    cost = finetune("cost", arn.rsplit("/", 1)[-1], "--json")
    fine_tune = next(one for one in cost["steps"] if one["step"] == "FineTune")
    assert fine_tune["usd"] == 0 and "reused" in fine_tune["source"]
    (guess,) = cost["estimate"]
    assert guess["step"] == "FineTune" and guess["seconds"] == pytest.approx(1000)  # by the data card
    status = finetune("status", arn, "--json")
    assert status["status"] == "Succeeded"
    assert [step["name"] for step in status["steps"]] == [
        *("PrepareData", "FineTune", "Evaluate", "QualityGate", "Register")
    ]
    assert "progress: train 2/2 train_loss=1.25" in finetune("logs", "finetune", arn)
    with pytest.raises(CommandError, match="has no step 'Evalute'; did you mean Evaluate"):
        finetune("logs", "Evalute", arn)
    with pytest.raises(CommandError, match="QualityGate is Succeeded and has no job"):
        finetune("logs", "QualityGate", arn)


def test_a_failed_training_is_retried_from_there(deployment: Deployment, finetune: Any) -> None:
    arn = finetune("start", "-p", "Outcome=broken", "--json")["execution"]
    assert "out of memory" in executions.follow(deployment, arn).reason
    deployment.s3.put_object(Bucket=deployment.artifact_bucket, Key="flags/mended", Body=b"")
    assert finetune("retry", "--follow", "--json") == {"execution": arn, "again": ["FineTune"]}
    view = executions.describe(deployment, arn)
    assert view.status == "Succeeded" and view.steps[-1].package
    with pytest.raises(CommandError, match="has succeeded; there is nothing to retry"):
        finetune("retry", arn)


def test_what_the_gate_has_refused_is_not_retried(deployment: Deployment, finetune: Any) -> None:
    refused = next(
        one["PipelineExecutionArn"]
        for one in executions.newest_ones(deployment, deployment.settings.finetune_pipeline_name, 9)
        if one["PipelineExecutionStatus"] == "Failed"
    )
    with pytest.raises(CommandError, match="a retry would read the same evaluation again"):
        finetune("retry", refused)


def test_stop_leaves_no_job_behind_and_the_log_can_be_followed_until_then(
    deployment: Deployment, finetune: Any
) -> None:
    with pytest.raises(CommandError, match="no execution of cli-finetune runs"):
        finetune("stop", "--yes")
    arn = finetune("start", "-p", "Outcome=slow", "--json")["execution"]
    deadline = time.monotonic() + 60
    while not any(step.name == "FineTune" and step.job for step in executions.describe(deployment, arn).steps):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(CommandError, match="is Executing; only one that has failed or was stopped"):
        interventions.retry(deployment, arn)
    stopped = finetune("stop", "--yes", "--json")
    assert stopped["execution"] == arn and len(stopped["jobs"]) == 2
    for kind in ("processing", "training"):
        for status in ("InProgress", "Stopping"):
            listed = getattr(deployment.sagemaker, f"list_{kind}_jobs")(StatusEquals=status)
            assert not listed[f"{kind.capitalize()}JobSummaries"]
    with pytest.raises(CommandError, match="has ended already as Stopped"):
        finetune("stop", arn, "--yes")
    assert "loading" in finetune("logs", "FineTune", arn, "--follow")  # it has ended: nothing is waited for


def test_history_shows_every_run_with_its_metrics_and_its_verdict(finetune: Any, tmp_path: Path) -> None:
    found = finetune("history", "--json")["runs"]
    assert [run["status"] for run in found] == ["Stopped", "Succeeded", "Succeeded", "Failed", "Succeeded"]
    assert [run["passed"] for run in found] == [None, True, True, False, True]
    assert found[3]["parameters"]["Epoch"] == "3.0" and found[3]["package"] is None
    assert found[4]["package"].endswith("/1") and found[4]["metrics"]["loss"]["tuned"] is not None
    page = tmp_path / "history.html"
    said = finetune("history", "--last", "4", "--html", str(page))
    assert "refused" in said and "▁" in said
    html = page.read_text(encoding="utf-8")
    assert html.count('<circle class="point') % 3 == 0 and 'class="point refused"' in html
    assert all(run["id"] in html for run in found[:4]) and found[4]["id"] not in html
    assert "://" not in html  # self-contained


def test_cleanup_shows_first_and_then_deletes_only_what_nobody_needs(deployment: Deployment, finetune: Any) -> None:
    stopped, mended, reuser, refused, first = (run["id"] for run in finetune("history", "--json")["runs"])

    def keys() -> list[str]:
        pages = deployment.s3.get_paginator("list_objects_v2").paginate(
            Bucket=deployment.artifact_bucket, Prefix="runs/"
        )
        return [one["Key"] for page in pages for one in page["Contents"]]

    before = keys()
    young = finetune("cleanup", "--keep-last", "0", "--json")
    assert all(
        "younger than 30 days" in run["kept_because"] or "registered" in run["kept_because"] for run in young["runs"]
    )

    shown = finetune("cleanup", "--keep-last", "1", "--older-than-days", "0", "--json")
    reasons = {run["id"]: run["kept_because"] for run in shown["runs"]}
    assert reasons[stopped] == "one of the newest 1"
    assert "is registered (PendingManualApproval)" in reasons[mended] and "is registered" in reasons[first]
    assert "is registered" in reasons[reuser] or reasons[reuser] == ""
    assert reasons[refused] == ""
    assert shown["deleted_files"] == 0 and keys() == before

    said = finetune("cleanup", "--keep-last", "1", "--older-than-days", "0", "--yes")
    assert "goes" in said and "the step cache may hand out results" in said
    left = {key.split("/")[1] for key in keys()}
    assert refused not in left and {stopped, mended, first} <= left
    assert any(key.startswith(f"runs/{first}/model/") for key in keys())
    # A run without files is still in the history, and says so.
    assert finetune("history", "--json")["runs"][3]["metrics"] == {}


def test_a_run_whose_model_a_kept_run_has_reused_stays(deployment: Deployment, finetune: Any) -> None:
    source = finetune("start", "-p", "Epoch=5", "-p", "Outcome=refused", "--json")["execution"]
    executions.follow(deployment, source)
    user = finetune("start", "-p", "Epoch=5", "-p", "Outcome=refused", "--json")["execution"]
    view = executions.follow(deployment, user)
    (reused,) = {step.reused_from for step in view.steps if step.cached}
    shown = finetune("cleanup", "--keep-last", "1", "--older-than-days", "0", "--json")
    reasons = {run["id"]: run["kept_because"] for run in shown["runs"]}
    assert reasons[reused.rsplit("/", 1)[-1]] == f"{user.rsplit('/', 1)[-1]} uses it"
