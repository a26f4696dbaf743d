"""The article's two examples through JumpStart's backend and through our own; one line of the configuration says which.

Instruction tuning with a template on rows that ask for summaries, domain adaptation on a text like a company's annual
report, and the article's three prompts before and after. JumpStart's document and script are written for the tests
(tests/jumpstart/). The pipelines are created by the requests that the stacks make; test_product.py has the CDK's deploy.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli import comparisons, datasets, executions
from cli.aws import REPOSITORY, Deployment
from config.settings import load
from local_aws import LocalAws
from pipeline.definition import RESOURCES, compare_definition, finetune_definition
from pipeline_steps.contract import evaluation, files
from pipeline_steps.contract.comparison import Sampling
from stacks.components.step_code import build_zip
from tests.end_to_end.clients import finetune
from tests.jumpstart import jumpstart_cache
from tests.jumpstart.jumpstart_cache import MODEL_ID

CONFIGURATION = Path(__file__).with_name("article.yaml")
EXAMPLES = REPOSITORY / "examples"
PROMPTS = ["This Form 10-K report shows that", "We serve consumers through", "Our vision is"]
ROLE = "arn:aws:iam::123456789012:role/article"
TRUST = {
    "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}]
}
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
BUCKETS = {
    "Resources": {name: {"Type": "AWS::S3::Bucket"} for name in ("RawBucket", "ArtifactBucket")},
    "Outputs": {f"{name}Name": {"Value": {"Ref": name}} for name in ("RawBucket", "ArtifactBucket")},
}


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("article")
    path = folder / "article.yaml"
    text = CONFIGURATION.read_text(encoding="utf-8").replace("LOCK", str(folder / "lock.json"))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def article(
    aws: LocalAws, aws_root: Path, configuration: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """Looked up, deployed and imported, as docs/from-jumpstart.md tells, with both datasets uploaded."""
    deployment = Deployment(load(str(configuration)), aws.url)
    deployment.client("cloudformation").create_stack(StackName="article-storage", TemplateBody=json.dumps(BUCKETS))
    iam = deployment.client("iam")
    iam.create_role(RoleName="article", AssumeRolePolicyDocument=json.dumps(TRUST))
    iam.put_role_policy(RoleName="article", PolicyName="all", PolicyDocument=json.dumps(EVERYTHING))
    deployment.sagemaker.create_model_package_group(ModelPackageGroupName="article")
    jumpstart_cache.publish(aws_root)
    jumpstart_cache.fill_bucket(deployment, tiny_model)

    found = finetune(deployment, "jumpstart", "lookup", MODEL_ID, configuration=str(configuration))
    assert found.returncode == 0 and "commit it" in found.stdout, found.stdout + found.stderr
    imported = finetune(deployment, "import-model", f"jumpstart://{MODEL_ID}", configuration=str(configuration))
    assert imported.returncode == 0 and "licence: Apache 2.0" in imported.stdout, imported.stdout + imported.stderr
    for mode in ("instruction", "domain"):
        datasets.upload(deployment, dataset_of(mode, tmp_path_factory.mktemp(mode)), mode)
    create_pipelines(deployment, tmp_path_factory.mktemp("code"))
    return deployment


@pytest.fixture(scope="module")
def ours(article: Deployment, configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The same with `backend: pipeline_steps`, and the article's values where our own training has them."""
    path = tmp_path_factory.mktemp("ours") / "ours.yaml"
    text = configuration.read_text(encoding="utf-8").replace("backend: jumpstart", "backend: pipeline_steps")
    values = "training:\n  per_device_train_batch_size: 2\n  gradient_accumulation_steps: 2\n  learning_rate: 2.0e-3\n"
    path.write_text(text + values, encoding="utf-8")
    deployment = Deployment(load(str(path)), article.endpoint_url)
    for name in (deployment.settings.finetune_pipeline_name, deployment.settings.compare_pipeline_name):
        article.sagemaker.delete_pipeline(PipelineName=name, ClientRequestToken=name.ljust(32, "d"))
    create_pipelines(deployment, tmp_path_factory.mktemp("code"))
    return deployment


def create_pipelines(deployment: Deployment, scratch: Path) -> None:
    """What the pipeline stack creates, with one role for all and the step code in the raw bucket."""
    code = build_zip(REPOSITORY, REPOSITORY / "build" / "step_packages", scratch)
    deployment.s3.upload_file(str(code), deployment.raw_bucket, code.name)
    values = dict.fromkeys(RESOURCES, ROLE) | {
        "RawBucket": deployment.raw_bucket,
        "ArtifactBucket": deployment.artifact_bucket,
        "CodeBucket": deployment.raw_bucket,
        "CodeKey": code.name,
        "Key": deployment.client("kms").create_key()["KeyMetadata"]["Arn"],
    }
    settings = deployment.settings
    for name, definition in (
        (settings.finetune_pipeline_name, finetune_definition(settings)),
        (settings.compare_pipeline_name, compare_definition(settings)),
    ):
        for key, value in values.items():
            definition = definition.replace(f"${{{key}}}", value)
        deployment.sagemaker.create_pipeline(
            PipelineName=name,
            PipelineDefinition=definition,
            RoleArn=ROLE,
            ClientRequestToken=f"{settings.backend}-{name}".ljust(32, "x"),
        )


def dataset_of(mode: str, folder: Path) -> Path:
    """The example of a mode; that of a filing with the article's prompts."""
    shutil.copytree(EXAMPLES / mode, folder / "data")
    if mode == "domain":
        (folder / "data" / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return folder / "data"


def run(deployment: Deployment, mode: str, **parameters: str) -> executions.ExecutionView:
    chosen = {"DatasetManifest": f"{mode}/dataset.manifest", "TuningMode": mode, **parameters}
    view = executions.follow(deployment, executions.start(deployment, chosen))
    assert view.status == "Succeeded", view.reason
    return view


def steps_of(view: executions.ExecutionView) -> list[str]:
    return [step.name for step in view.steps]


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


def losses(found: evaluation.Evaluation) -> tuple[float, float]:
    """Of the base and of the tuned model."""
    base, tuned = (found.metrics["loss"].values[model].value for model in ("base", "tuned"))
    assert base is not None and tuned is not None
    return base, tuned


def test_instruction_tuning_by_jumpstart_becomes_a_registered_model(article: Deployment, tmp_path: Path) -> None:
    view = run(article, "instruction", Epoch="1")
    assert steps_of(view) == [
        "PrepareData", "NewTraining", "ToJumpStart", "FineTune", "FromJumpStart", "Evaluate", "QualityGate", "Register",
        "AutoDeploy",
    ]  # fmt: skip
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
    base, tuned = losses(found)
    assert tuned < base
    assert found.training.method == "full" and found.ancestors.hyperparameters["per_device_train_batch_size"] == "2"
    assert found.overlaps == [evaluation.Overlap("tuned", 0, [])]


def test_the_same_data_and_values_are_not_trained_again(article: Deployment) -> None:
    assert steps_of(run(article, "instruction", Epoch="1")) == ["PrepareData", "NewTraining"]


def test_domain_adaptation_with_an_adapter_changes_the_answers_to_the_articles_prompts_and_is_released(
    article: Deployment, tmp_path: Path
) -> None:
    view = run(article, "domain", Epoch="3", PeftType="lora", ApprovalStatus="Approved")
    assert steps_of(view)[-3:] == ["Register", "AutoDeploy", "Deploy"]
    told = training_job(article, view)["HyperParameters"]
    shown = [told[name] for name in ("instruction_tuned", "epoch", "max_input_length", "peft_type")]
    assert shown == ["False", "3", "2048", "lora"]
    assert evaluated(article, view, tmp_path).training.method == "lora"
    answers = evaluation.read_answers(tmp_path)
    assert [row.prompt for row in answers] == PROMPTS
    assert all(row.answers["base"].text != row.answers["tuned"].text for row in answers)

    # The adapter came alone: it was merged, and lies beside the merged model for an endpoint that serves adapters.
    packages = article.sagemaker.list_model_packages(ModelPackageGroupName="article", SortOrder="Descending")
    newest = packages["ModelPackageSummaryList"][0]["ModelPackageArn"]
    container = article.sagemaker.describe_model_package(ModelPackageName=newest)["InferenceSpecification"][
        "Containers"
    ][0]
    uri = container["ModelDataSource"]["S3DataSource"]["S3Uri"]
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    listed = article.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    names = {one["Key"].removeprefix(prefix) for one in listed}
    assert uri.endswith("/") and {"adapter/adapter_config.json", "model.safetensors", "training.json"} <= names

    # The endpoint serves it: it answers as the evaluation recorded of this very model.
    recorded = answers[0].answers["tuned"].text
    served = article.invoke({"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 64, "do_sample": False}})
    assert served[0]["generated_text"].split()[:2] == recorded.split()[:2]
    tags = article.sagemaker.list_tags(
        ResourceArn=article.sagemaker.describe_endpoint(EndpointName="article")["EndpointArn"]
    )["Tags"]
    assert {"Key": "model-package", "Value": newest} in tags
    article.sagemaker.delete_endpoint(EndpointName="article")


@pytest.mark.parametrize(("mode", "epochs"), [("instruction", "1"), ("domain", "3")])
def test_our_own_training_takes_the_same_examples(ours: Deployment, tmp_path: Path, mode: str, epochs: str) -> None:
    view = run(ours, mode, Epoch=epochs)
    assert "FineTune" in steps_of(view) and "ToJumpStart" not in steps_of(view)
    base, tuned = losses(evaluated(ours, view, tmp_path))
    assert tuned < base


def test_the_articles_prompts_are_answered_before_and_after(ours: Deployment, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    sampling = Sampling(max_new_tokens=8, temperature=0.2)
    compared = comparisons.compare(ours, prompts, None, sampling, tmp_path / "out")
    assert [pair.prompt for pair in compared.pairs] == PROMPTS
    assert all(pair.base.text != pair.tuned.text for pair in compared.pairs)
