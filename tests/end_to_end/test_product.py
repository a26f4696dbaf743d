"""The product as a whole: deployed by the real CDK CLI, run on a tiny Mistral, asked by foreign clients.

The tests build on each other in the order of the file, as a user's days do.
"""

import json
import re
import subprocess
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from cli import comparisons, datasets, demo, executions, reports, validation
from cli.aws import LOCAL_CREDENTIALS, REPOSITORY, Deployment
from cli.console import CommandError
from pipeline_steps.contract import evaluation as contract
from pipeline_steps.contract import files
from pipeline_steps.contract.comparison import Comparison, Sampling
from tests.end_to_end.clients import environment_of

CONFIGURATION = str(Path(__file__).with_name("tiny.yaml"))
EXAMPLES = REPOSITORY / "examples"
BROKEN = EXAMPLES / "broken"


def aws_cli(deployment: Deployment, *arguments: str) -> Any:
    """The real AWS CLI, as a client that knows nothing of us."""
    command = [str(REPOSITORY / ".venv" / "bin" / "aws"), *arguments, "--output", "json"]
    finished = subprocess.run(command, env=environment_of(deployment), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout) if finished.stdout.strip() else None


def upload_and_follow(deployment: Deployment, folder: Path, mode: str) -> executions.ExecutionView:
    """Upload a dataset, wait for the execution that its event starts, and for that execution's end."""
    before = executions.newest(deployment)
    datasets.upload(deployment, folder, mode)
    return executions.follow(deployment, executions.wait_for_newer(deployment, before))


def steps_of(view: executions.ExecutionView) -> dict[str, str]:
    return {step.name: step.status for step in view.steps}


def packages(deployment: Deployment) -> list[Any]:
    group = deployment.settings.model_package_group_name
    return deployment.sagemaker.list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]


def datasets_of(deployment: Deployment) -> list[str]:
    """Keys of all published datasets."""
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(
        Bucket=deployment.artifact_bucket, Prefix="datasets/"
    )
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def served_configuration(deployment: Deployment) -> str:
    answer = deployment.sagemaker.describe_endpoint(EndpointName=deployment.settings.endpoint_name)
    assert answer["EndpointStatus"] == "InService"
    return answer["EndpointConfigName"]


def client(deployment: Deployment, service: str) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=deployment.endpoint_url,
        region_name=deployment.settings.region,
        **LOCAL_CREDENTIALS,
    )


def mailbox(deployment: Deployment) -> str:
    """URL of a queue that gets what people are told."""
    sns, sqs = client(deployment, "sns"), client(deployment, "sqs")
    (topic,) = [one["TopicArn"] for one in sns.list_topics()["Topics"] if "Notifications" in one["TopicArn"]]
    url = str(sqs.create_queue(QueueName="mailbox")["QueueUrl"])
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    return url


def told(deployment: Deployment, queue: str) -> list[str]:
    """All that is in the queue, taken out of it; if there is nothing, what comes within 5 s."""
    sqs, found = client(deployment, "sqs"), []
    while True:
        seconds = 0 if found else 5
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=seconds)
        if not answer.get("Messages"):
            return found
        for message in answer["Messages"]:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            found.append(message["Body"])


def test_without_a_base_model_the_run_ends_before_training_and_says_what_to_do(empty_deployment: Deployment) -> None:
    view = upload_and_follow(empty_deployment, EXAMPLES / "instruction", "instruction")
    assert view.status == "Failed"
    assert "FineTune" not in steps_of(view)
    assert "finetune import-model" in view.reason
    assert empty_deployment.settings.base_model.name in view.reason


def test_new_data_becomes_a_served_model(deployment: Deployment, tmp_path: Path) -> None:
    view = upload_and_follow(deployment, EXAMPLES / "instruction", "instruction")
    assert view.status == "Succeeded", view.reason
    assert list(steps_of(view)) == [
        "PrepareData", "NewTraining", "FineTune", "Evaluate", "QualityGate", "Register", "AutoDeploy", "Deploy",
    ]  # fmt: skip
    assert set(steps_of(view).values()) == {"Succeeded"}

    summary = demo.summarize(deployment, view, tmp_path)
    loss = summary["evaluation"]["loss"]
    assert loss["tuned"] < loss["base"] and loss["ci95"][0] > 0 and loss["n"] >= 20
    assert summary["gate"]["passed"] is True
    assert summary["endpoint"]["status"] == "InService"
    assert isinstance(summary["endpoint"]["response"][0]["generated_text"], str)


def test_validate_data_makes_the_very_dataset_of_the_pipeline_and_needs_no_aws_for_it(
    deployment: Deployment, tmp_path: Path
) -> None:
    arn = executions.newest(deployment)
    assert arn
    key = f"runs/{arn.rsplit('/', 1)[-1]}/{files.REPORT_OUTPUT}/{files.DATA_CARD_FILE}"
    prepared = json.loads(deployment.s3.get_object(Bucket=deployment.artifact_bucket, Key=key)["Body"].read())
    assert validation.validate(CONFIGURATION, EXAMPLES / "instruction", "instruction", None, tmp_path) is True
    card = json.loads((tmp_path / files.DATA_CARD_FILE).read_text(encoding="utf-8"))
    for name in ("dataset_digest", "test_digest", "rows", "tokens", "cost", "leaks", "personal_data"):
        assert card[name] == prepared[name], name


def test_rows_that_are_too_long_are_refused_by_validate_data_too(deployment: Deployment, tmp_path: Path) -> None:
    short = tmp_path / "short.yaml"
    text = Path(CONFIGURATION).read_text(encoding="utf-8")
    short.write_text(re.sub("max_input_length: .*", "max_input_length: 32", text), encoding="utf-8")
    with pytest.raises(CommandError, match="is refused"):
        validation.validate(str(short), EXAMPLES / "instruction", "instruction", None, tmp_path / "report")


def test_the_package_names_its_ancestors(deployment: Deployment) -> None:
    package = deployment.sagemaker.describe_model_package(ModelPackageName=packages(deployment)[0]["ModelPackageArn"])
    ancestors = package["CustomerMetadataProperties"]
    for name in ("dataset_digest", "test_digest", "data_card_digest", "run_fingerprint"):
        assert len(ancestors[name]) == 64
    assert len(ancestors["base_model_digest"]) == 64
    assert ancestors["step_code"].endswith(".zip")
    assert ancestors["verdict"] == "passed" and ancestors["champion"] == "none"
    assert ancestors["improvement_over_base"].startswith("loss +") and ancestors["reasons"]
    assert ":pipeline/tiny-finetune/execution/" in ancestors["pipeline_execution"]
    tags = deployment.sagemaker.list_tags(
        ResourceArn=deployment.sagemaker.describe_endpoint(EndpointName="tiny")["EndpointArn"]
    )["Tags"]
    assert package["ModelPackageArn"] in [tag["Value"] for tag in tags]


def test_the_package_has_a_model_card_with_the_figures_of_the_evaluation(deployment: Deployment) -> None:
    package = deployment.sagemaker.describe_model_package(ModelPackageName=packages(deployment)[0]["ModelPackageArn"])
    assert package["ModelCard"]["ModelCardStatus"] == "PendingReview"
    card = json.loads(package["ModelCard"]["ModelCardContent"])
    source = package["InferenceSpecification"]["Containers"][0]["ModelDataSource"]["S3DataSource"]["S3Uri"]
    assert card["model_overview"]["model_artifact"] == [source]
    (details,) = card["evaluation_details"]
    assert details["metadata"]["verdict"] == "passed"
    assert {group["name"] for group in details["metric_groups"]} >= {"tuned model", "base model"}


def test_prompts_of_a_user_are_answered_before_and_after(deployment: Deployment, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    row = {"instruction": "Name the vessel.", "context": "The Kittiwake sails daily."}
    prompts.write_text(f'{json.dumps(row)}\n{{"prompt": "Our vision is"}}\n', encoding="utf-8")
    sampling = Sampling(max_new_tokens=6, temperature=0.8, top_k=50, top_p=0.9, seed=3)

    def answered(folder: str) -> Comparison:
        return comparisons.compare(deployment, prompts, None, sampling, tmp_path / folder)

    first, again = answered("first"), answered("again")
    assert first.pairs == again.pairs  # the same seed
    assert "### Instruction:\nName the vessel." in first.pairs[0].prompt and first.pairs[1].prompt == "Our vision is"
    assert all(pair.base.tokens <= 6 and pair.base != pair.tuned for pair in first.pairs)
    assert first.sampling == sampling
    table = (tmp_path / "first" / "comparison.md").read_text(encoding="utf-8")
    assert table.startswith("| prompt | before fine-tuning | after fine-tuning | parameters |")
    assert "Your prompts" in (tmp_path / "first" / "report.html").read_text(encoding="utf-8")


def test_prompts_that_do_not_fit_the_models_template_start_nothing(deployment: Deployment, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Our vision is\n", encoding="utf-8")
    with pytest.raises(CommandError, match=r"prompts\.txt:1: is a text, but the model's template has the columns"):
        comparisons.compare(deployment, prompts, None, Sampling(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_aws_cli_reads_the_steps_and_asks_the_endpoint(deployment: Deployment, tmp_path: Path) -> None:
    arn = executions.newest(deployment)
    assert arn
    listed = aws_cli(deployment, "sagemaker", "list-pipeline-execution-steps", "--pipeline-execution-arn", arn)
    assert [step["StepName"] for step in listed["PipelineExecutionSteps"]][-1] == "PrepareData"
    answer = tmp_path / "answer.json"
    aws_cli(
        deployment, "sagemaker-runtime", "invoke-endpoint",
        "--endpoint-name", "tiny",
        "--content-type", "application/json",
        "--body", json.dumps({"inputs": "When does the ferry leave?", "parameters": {"max_new_tokens": 4}}),
        str(answer),
    )  # fmt: skip
    assert "generated_text" in json.loads(answer.read_text(encoding="utf-8"))[0]


def test_the_same_data_again_ends_early_and_says_which_model_it_has_made(deployment: Deployment) -> None:
    before = packages(deployment)
    view = executions.follow(deployment, executions.start(deployment, {"ApprovalStatus": "PendingManualApproval"}))
    assert view.status == "Succeeded", view.reason
    assert list(steps_of(view)) == ["PrepareData", "NewTraining"]
    assert packages(deployment) == before
    assert view.steps[0].note.startswith(
        f"nothing is trained: {before[0]['ModelPackageArn']} was trained from the same"
    )


def test_a_model_made_worse_is_refused_and_the_old_endpoint_goes_on(deployment: Deployment, tmp_path: Path) -> None:
    registered, serving = packages(deployment), served_configuration(deployment)
    queue = mailbox(deployment)
    view = executions.follow(deployment, executions.start(deployment, {"LearningRate": "1.0"}))
    assert view.status == "Failed"
    (message,) = told(deployment, queue)
    headline, why, run, *_ = message.split("\n")
    assert headline.startswith('"tiny: the gate refused a model. It is not registered')
    assert why.startswith('"Why: The gate refused the tuned model: loss') and run == f'"Run: {view.arn}"'
    steps = steps_of(view)
    assert "Register" not in steps and "Deploy" not in steps
    assert steps["QualityGate"] == "Succeeded" and steps["Fail"] == "Failed"
    # The same again is refused again, and nothing of it is computed twice.
    view = executions.follow(deployment, executions.start(deployment, {"LearningRate": "1.0"}))
    assert view.status == "Failed"
    assert {step.name for step in view.steps if step.cached} == {"FineTune", "Evaluate"}
    assert "The gate refused the tuned model: loss" in view.reason
    written = reports.find(deployment, view.arn)
    report = reports.save(deployment, written, tmp_path)
    key = f"{written.prefix}/{files.EVALUATION_FILE}"
    deployment.s3.download_file(written.bucket, key, str(tmp_path / files.EVALUATION_FILE))
    evaluation = contract.read(tmp_path)
    assert evaluation.models["champion"].package == registered[0]["ModelPackageArn"]
    assert evaluation.overlaps == [contract.Overlap("tuned", 0, []), contract.Overlap("champion", 0, [])]
    assert "Evaluation: refused" in report.read_text(encoding="utf-8")
    assert (tmp_path / "data_card.html").is_file()  # the report links to it
    assert packages(deployment) == registered
    assert served_configuration(deployment) == serving
    assert deployment.invoke({"inputs": "Hello", "parameters": {"max_new_tokens": 2}})


@pytest.mark.parametrize(
    ("folder", "mode", "said"),
    [
        ("broken-line", "instruction", "train.jsonl:"),
        ("unknown-template-key", "instruction", "template.json"),
        ("no-jsonl", "instruction", ".jsonl"),
        ("two-files-domain", "domain", "exactly one"),
    ],
)
def test_bad_data_fails_first_with_its_place_and_nothing_else_happens(
    deployment: Deployment, folder: str, mode: str, said: str
) -> None:
    registered, serving, prepared = packages(deployment), served_configuration(deployment), datasets_of(deployment)
    view = upload_and_follow(deployment, BROKEN / folder, mode)
    assert view.status == "Failed"
    assert datasets_of(deployment) == prepared, "nothing of it is published, whole or in part"
    assert steps_of(view) == {"PrepareData": "Failed"}
    assert said in view.steps[0].reason and said in view.reason
    assert packages(deployment) == registered
    assert served_configuration(deployment) == serving


def test_an_empty_folder_is_refused_before_anything_is_uploaded(deployment: Deployment) -> None:
    before = executions.newest(deployment)
    with pytest.raises(CommandError, match="holds no files"):
        datasets.upload(deployment, BROKEN / "empty-folder", "instruction")
    assert executions.newest(deployment) == before


def test_a_parameter_that_does_not_exist_is_refused(deployment: Deployment) -> None:
    with pytest.raises(CommandError, match="Epohc"):
        executions.start(deployment, {"Epohc": "2"})


def test_the_deployed_schedule_starts_the_pipeline_every_week(deployment: Deployment) -> None:
    before = executions.newest(deployment)
    week = f"{deployment.endpoint_url}/_local/clock?advance_seconds={7 * 86400}"
    urllib.request.urlopen(urllib.request.Request(week, method="POST"), timeout=5).close()
    arn = executions.wait_for_newer(deployment, before)
    values = deployment.sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=arn)["PipelineParameters"]
    given = {value["Name"]: value["Value"] for value in values}
    assert given["DatasetManifest"] == "instruction/dataset.manifest" and given["TuningMode"] == "instruction"
    assert given["StartedBy"] == "schedule"
    deployment.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn, ClientRequestToken=uuid.uuid4().hex)
    assert executions.follow(deployment, arn).status == "Stopped"
