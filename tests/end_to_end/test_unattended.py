"""Nobody is watching: runs that start at the same moment, traffic that drifts, failures that are told."""

import json
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import datasets, executions
from cli.aws import Deployment
from tests.end_to_end.test_product import EXAMPLES, client, mailbox, packages, steps_of, told

DEADLINE_SECONDS = 240


def wait_for(question: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not so after {DEADLINE_SECONDS} s"
        time.sleep(0.2)
    return answer


def arns_of(deployment: Deployment, pipeline: str) -> list[str]:
    return [one["PipelineExecutionArn"] for one in executions.newest_ones(deployment, pipeline, 100)]


def newer(deployment: Deployment, before: list[str]) -> list[str]:
    return [arn for arn in arns_of(deployment, deployment.settings.finetune_pipeline_name) if arn not in before]


def fewer_rows(folder: Path, rows: int) -> Path:
    """The example without its last `rows` rows: new data."""
    shutil.copytree(EXAMPLES / "instruction", folder)
    train = folder / "train" / "train.jsonl"
    lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
    train.write_text("".join(lines[:-rows]), encoding="utf-8")
    return folder


def advance_a_week(deployment: Deployment) -> None:
    week = f"{deployment.endpoint_url}/_local/clock?advance_seconds={7 * 86400}"
    urllib.request.urlopen(urllib.request.Request(week, method="POST"), timeout=60).close()


@pytest.fixture(scope="module")
def served(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The deployment with a model in service; the default dataset is the one that it was trained on."""
    folder = fewer_rows(tmp_path_factory.mktemp("data") / "served", 5)
    before = executions.newest(deployment)
    datasets.upload(deployment, folder, "instruction")
    view = executions.follow(deployment, executions.wait_for_newer(deployment, before))
    assert view.status == "Succeeded", view.reason
    return deployment


def test_two_uploads_and_a_schedule_at_the_same_moment_make_one_training(served: Deployment, tmp_path: Path) -> None:
    before, registered = arns_of(served, served.settings.finetune_pipeline_name), packages(served)
    folder = fewer_rows(tmp_path / "new", 9)
    datasets.upload(served, folder, "instruction")
    datasets.upload(served, folder, "instruction")
    advance_a_week(served)
    wait_for(lambda: len(newer(served, before)) == 3)
    views = [executions.follow(served, arn) for arn in newer(served, before)]
    assert [view.status for view in views] == ["Succeeded"] * 3, [view.reason for view in views]
    trained = [view for view in views if "FineTune" in steps_of(view)]
    assert len(trained) == 1 and len(packages(served)) == len(registered) + 1
    for view in views:
        if view not in trained:
            assert view.steps[0].note.startswith(f"nothing is trained: {packages(served)[0]['ModelPackageArn']}")
    reasons = [executions.parameters(served, view.arn)["StartedBy"] for view in views]
    assert sorted(reasons) == ["new data", "new data", "schedule"]
    assert len(newer(served, before)) == 3


def test_drift_in_captured_traffic_starts_one_run(served: Deployment) -> None:
    monitor = served.settings.monitor_pipeline_name

    def look() -> str:
        """One look at the traffic, to its end; what the job has to say."""
        view = executions.follow(served, executions.start(served, {}, monitor))
        assert view.status == "Succeeded", view.reason
        return view.steps[0].note

    before = arns_of(served, served.settings.finetune_pipeline_name)
    assert look().startswith("nothing is compared: ")
    queue = mailbox(served)
    for number in range(40):
        question = f"zx{number} qjv{number} wxk kzz qqy{number}"
        served.invoke({"inputs": question, "parameters": {"max_new_tokens": 4}})

    def captured() -> int:
        pages = served.s3.get_paginator("list_objects_v2").paginate(Bucket=served.artifact_bucket, Prefix="captured/")
        keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
        texts = [served.s3.get_object(Bucket=served.artifact_bucket, Key=key)["Body"].read().decode() for key in keys]
        return sum(text.count("wxk kzz") for text in texts)

    wait_for(lambda: captured() == 40)
    assert "drifted: " in (said := look()) and "similarity of prompts" in said
    (arn,) = wait_for(lambda: newer(served, before))
    assert executions.parameters(served, arn)["StartedBy"] == "drift"
    view = executions.follow(served, arn)
    assert view.status == "Succeeded" and list(steps_of(view)) == ["PrepareData", "NewTraining"]
    assert "drifted: " in look()
    assert newer(served, before) == [arn], "the alarm rings already"
    (message,) = wait_for(lambda: [one for one in told(served, queue) if "has drifted" in one])
    assert "#alarmsV2:alarm/" in message
    figures = client(served, "cloudwatch").get_metric_statistics(
        Namespace="FineTuning/Traffic", MetricName="PromptSimilarity",
        Dimensions=[{"Name": "Deployment", "Value": "tiny"}],
        StartTime=time.time() - 3600, EndTime=time.time() + 60, Period=3660, Statistics=["SampleCount"],
    )["Datapoints"]  # fmt: skip
    assert sum(one["SampleCount"] for one in figures) == 2


def test_a_failing_run_is_told_once_with_the_reason_and_what_to_do(served: Deployment, tmp_path: Path) -> None:
    queue = mailbox(served)
    told(served, queue)
    view = executions.follow(served, executions.start(served, {"DatasetManifest": "instruction/missing.manifest"}))
    assert view.status == "Failed"
    (message,) = told(served, queue)
    headline, why, run, next_, see = message.split("\n")
    assert headline == '"tiny: a run failed in PrepareData. Nothing that serves has changed."'
    assert "missing.manifest" in why and view.arn in run
    assert "start it again" in next_ and "#dashboards/dashboard/tiny" in see


def test_a_trigger_that_cannot_start_a_run_is_kept_and_told(served: Deployment) -> None:
    queue, sqs = mailbox(served), client(served, "sqs")
    (url,) = [one for one in sqs.list_queues()["QueueUrls"] if "Undelivered" in one]
    events = client(served, "events")
    (rule,) = [one["Name"] for one in events.list_rules()["Rules"] if "NewChatData" in one["Name"]]
    (target,) = events.list_targets_by_rule(Rule=rule)["Targets"]
    wrong = {**target, "SageMakerPipelineParameters": {"PipelineParameterList": [{"Name": "Typo", "Value": "1"}]}}
    events.put_targets(Rule=rule, Targets=[wrong])
    try:
        served.s3.put_object(Bucket=served.raw_bucket, Key="chat/lost.manifest", Body=b"[]")
        messages: list[str] = []
        wait_for(lambda: messages.extend(told(served, queue)) or [one for one in messages if "could not start" in one])
    finally:
        events.put_targets(Rule=rule, Targets=[target])
    kept = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"])["Messages"]
    assert [json.loads(one["Body"])["detail"]["object"]["key"] for one in kept] == ["chat/lost.manifest"]
    assert "Typo" in kept[0]["MessageAttributes"]["ERROR_MESSAGE"]["StringValue"]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=kept[0]["ReceiptHandle"])
