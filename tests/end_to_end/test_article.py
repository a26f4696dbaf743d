"""The article's two examples through JumpStart's backend and through our own, on one deployment; one line says which.

Instruction tuning with a template on summarization rows, domain adaptation on a text like a company's annual report, and
the article's three prompts before and after. JumpStart's image and script are stand-ins here (tests/jumpstart/).
"""

from pathlib import Path
from typing import Any

import pytest

from cli import comparisons, datasets, executions, local
from cli.aws import REPOSITORY, Deployment
from config.settings import load
from local_aws import LocalAws
from pipeline_steps.contract import evaluation, files
from pipeline_steps.contract.comparison import Sampling
from tests.end_to_end.clients import finetune
from tests.end_to_end.test_product import packages, steps_of, upload_and_follow
from tests.jumpstart import jumpstart_cache
from tests.jumpstart.jumpstart_cache import MODEL_ID

CONFIGURATION = Path(__file__).with_name("article.yaml")
EXAMPLES = REPOSITORY / "examples"
PROMPTS = ["This Form 10-K report shows that", "We serve consumers through", "Our vision is"]
OF_JUMPSTART = ["PrepareData", "NewTraining", "ToJumpStart", "FineTune", "FromJumpStart", "Evaluate", "QualityGate"]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("article")
    path = folder / "article.yaml"
    path.write_text(
        CONFIGURATION.read_text(encoding="utf-8").replace("LOCK", str(folder / "lock.json")), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def article(aws: LocalAws, aws_root: Path, configuration: Path, tiny_model: Path, tmp_path_factory: Any) -> Deployment:
    """Looked up, deployed and imported, as docs/from-jumpstart.md tells."""
    deployment = Deployment(load(str(configuration)), aws.url)
    jumpstart_cache.publish(aws_root)
    jumpstart_cache.fill_bucket(deployment, tiny_model)
    found = finetune(deployment, "jumpstart", "lookup", MODEL_ID, configuration=str(configuration))
    assert found.returncode == 0 and "commit it" in found.stdout, found.stdout + found.stderr
    local.deploy(deployment.settings, aws.url, tmp_path_factory.mktemp("cdk") / "cdk.log", str(configuration))
    imported = finetune(deployment, "import-model", f"jumpstart://{MODEL_ID}", configuration=str(configuration))
    assert imported.returncode == 0 and "licence: Apache 2.0" in imported.stdout, imported.stdout + imported.stderr
    return deployment


def evaluated(deployment: Deployment, view: executions.ExecutionView, folder: Path) -> evaluation.Evaluation:
    prefix = f"runs/{view.arn.rsplit('/', 1)[-1]}/{files.EVALUATION_OUTPUT}"
    for name in (files.EVALUATION_FILE, files.ANSWERS_FILE):
        deployment.s3.download_file(deployment.artifact_bucket, f"{prefix}/{name}", str(folder / name))
    return evaluation.read(folder)


def training_job(deployment: Deployment, view: executions.ExecutionView) -> dict[str, Any]:
    (step,) = [step for step in view.steps if step.name == "FineTune"]
    assert step.job
    job: dict[str, Any] = deployment.sagemaker.describe_training_job(TrainingJobName=step.job[1])
    return job


def test_instruction_tuning_by_jumpstart_becomes_a_registered_model(article: Deployment, tmp_path: Path) -> None:
    view = upload_and_follow(article, EXAMPLES / "instruction", "instruction")
    assert view.status == "Succeeded", view.reason
    assert list(steps_of(view))[: len(OF_JUMPSTART)] == OF_JUMPSTART and "Register" in steps_of(view)

    job = training_job(article, view)
    told = job["HyperParameters"]
    assert (told["instruction_tuned"], told["chat_dataset"], told["epoch"]) == ("True", "False", "1")
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == ("2", "2")
    assert told["sagemaker_program"] == "transfer_learning.py" and told["add_input_output_demarcation_key"] == "False"
    assert {one["MetricName"] for one in job["FinalMetricDataList"]} == {
        "huggingface-textgeneration:eval-loss",
        "huggingface-textgeneration:train-loss",
    }
    assert job["EnableNetworkIsolation"] is True and job["StoppingCondition"]["MaxRuntimeInSeconds"] == 360_000
    found = evaluated(article, view, tmp_path)
    loss = found.metrics["loss"]
    assert loss.values["tuned"].value < loss.values["base"].value
    assert found.training.method == "full" and found.ancestors.hyperparameters["learning_rate"] == "0.002"
    assert found.overlaps == [evaluation.Overlap("tuned", 0, [])]


def test_the_same_data_and_values_are_not_trained_again(article: Deployment) -> None:
    view = executions.follow(article, executions.start(article, {}))
    assert list(steps_of(view)) == ["PrepareData", "NewTraining"]


def test_domain_adaptation_with_an_adapter_changes_the_answers_to_the_articles_prompts(
    article: Deployment, tmp_path: Path
) -> None:
    before = executions.newest(article)
    parameters = {
        "DatasetManifest": "domain/dataset.manifest",
        "TuningMode": "domain",
        "Epoch": "3",
        "PeftType": "lora",
    }

    assert before
    datasets.upload(
        article, EXAMPLES / "domain", "domain"
    )  # its own event starts an execution too, which is not waited for
    automatic = executions.wait_for_newer(article, before)
    article.sagemaker.stop_pipeline_execution(PipelineExecutionArn=automatic, ClientRequestToken="x" * 32)
    view = executions.follow(article, executions.start(article, parameters))
    assert view.status == "Succeeded", view.reason
    told = training_job(article, view)["HyperParameters"]
    assert (told["instruction_tuned"], told["epoch"], told["max_input_length"], told["peft_type"]) == (
        "False", "3", "2048", "lora",
    )  # fmt: skip
    found = evaluated(article, view, tmp_path)
    assert found.training.method == "lora"
    answers = evaluation.read_answers(tmp_path)
    assert [row.prompt for row in answers] == PROMPTS
    assert all(row.answers["base"].text != row.answers["tuned"].text for row in answers)
    # The adapter came alone; it was merged, and lies beside the merged model for an endpoint that serves adapters.
    uri = article.sagemaker.describe_model_package(ModelPackageName=packages(article)[0]["ModelPackageArn"])[
        "InferenceSpecification"
    ]["Containers"][0]["ModelDataSource"]["S3DataSource"]["S3Uri"]
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    keys = [
        one["Key"].removeprefix(prefix) for one in article.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    ]
    assert uri.endswith("/") and {"adapter/adapter_config.json", "model.safetensors", "training.json"} <= set(keys)


@pytest.fixture(scope="module")
def ours(article: Deployment, configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The same deployment with `backend: pipeline_steps`, and the article's values where our own training has them."""
    folder = tmp_path_factory.mktemp("ours")
    text = configuration.read_text(encoding="utf-8").replace("backend: jumpstart", "backend: pipeline_steps")
    values = "training:\n  per_device_train_batch_size: 2\n  gradient_accumulation_steps: 2\n  learning_rate: 2.0e-3\n"
    (folder / "own.yaml").write_text(text + values, encoding="utf-8")
    settings = load(str(folder / "own.yaml"))
    local.deploy(settings, str(article.endpoint_url), folder / "cdk.log", str(folder / "own.yaml"))
    return Deployment(settings, article.endpoint_url)


@pytest.mark.parametrize(("mode", "epochs"), [("instruction", "1"), ("domain", "3")])
def test_our_own_training_takes_the_same_examples(ours: Deployment, tmp_path: Path, mode: str, epochs: str) -> None:
    parameters = {"DatasetManifest": f"{mode}/dataset.manifest", "TuningMode": mode, "Epoch": epochs}
    view = executions.follow(ours, executions.start(ours, parameters))
    assert view.status == "Succeeded", view.reason
    assert "FineTune" in steps_of(view) and "ToJumpStart" not in steps_of(view)
    found = evaluated(ours, view, tmp_path)
    assert found.metrics["loss"].values["tuned"].value < found.metrics["loss"].values["base"].value
    assert "champion" not in found.models, "none of JumpStart's models was approved"


def test_the_articles_prompts_are_answered_before_and_after(ours: Deployment, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    sampling = Sampling(max_new_tokens=8, temperature=0.2)
    compared = comparisons.compare(ours, prompts, None, sampling, tmp_path / "out")
    assert [pair.prompt for pair in compared.pairs] == PROMPTS
    assert all(pair.base.text != pair.tuned.text for pair in compared.pairs)
