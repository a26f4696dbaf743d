"""Monitor: captured traffic of the endpoint, compared with what the serving model was evaluated on -> CloudWatch.

out   drift/    drift.json: the figures of both sides, and what is beyond its limit

An alarm on the metric `Drifted` starts a training (stacks/drift.py). With too few requests nothing is said about drift.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline_steps import captured, flags, s3, safety, similarity
from pipeline_steps.captured import Exchange
from pipeline_steps.contract import dataset, drift, evaluation, files, json_files, releases
from pipeline_steps.contract.drift import Figures
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.messages import tell_result
from pipeline_steps.release.job import found
from pipeline_steps.text_metrics import repetition

DRIFT_SCHEMA_VERSION = 1
MOST_EXCHANGES = 2000  # of the window, evenly spread
WEIGHTS_ENDING = ".safetensors"
UNENDED_REASON = "length"  # what the serving image calls an answer that was cut off


@dataclass(frozen=True)
class MonitorJob(drift.Limits):
    """Monitor's flags. `captured_to` is the S3 prefix of the captured traffic; limits are those of drift.Limits."""

    deployment: str
    endpoint_name: str
    captured_to: str
    window_hours: int
    min_requests: int
    output: Path


def main(arguments: list[str]) -> None:
    output = Path("/opt/ml/processing/output") / files.DRIFT_OUTPUT
    run(flags.parse(MonitorJob, "monitor", __doc__.split("\n\n")[0], output, arguments))


def run(job: MonitorJob) -> None:
    import boto3

    sagemaker: Any = boto3.client("sagemaker")

    # 1. What serves, and since when; another model's answers would be compared with the wrong evaluation.
    endpoint = found(sagemaker.describe_endpoint, EndpointName=job.endpoint_name)
    serving = None
    if endpoint is not None:
        serving = releases.Serving.of(sagemaker.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"])
    if endpoint is None or serving is None:
        tell_result(f"nothing is compared: no released model serves at the endpoint {job.endpoint_name}")
        return
    config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    package = sagemaker.describe_model_package(ModelPackageName=serving.package)

    # 2. What it was asked and answered.
    now = datetime.now(UTC)
    since = max(now - timedelta(hours=job.window_hours), config["CreationTime"])
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        exchanges, unreadable = read_traffic(job, since, now, work / "traffic")
        if len(exchanges) < job.min_requests:
            publish(job.deployment, {drift.REQUESTS: float(len(exchanges))})
            tell_result(
                f"nothing is compared: {len(exchanges)} requests since {since:%Y-%m-%d %H:%M} UTC, fewer than "
                f"{job.min_requests} (monitoring.min_requests); {unreadable} more could not be read"
            )
            return

        # 3. The same figures of the traffic and of the evaluation.
        reference = read_reference(package, work)
        training = similarity.TrainingPrompts(reference.training_prompts)
        evaluated = {
            **answer_figures([answer.text for answer in reference.answers]),
            drift.UNENDED: mean([float(not answer.ended) for answer in reference.answers]),
            drift.SIMILARITY: mean([training.nearest(prompt) for prompt in reference.prompts]),
        }
        traffic = {
            **answer_figures([one.answer for one in exchanges]),
            drift.UNENDED: unended_share(exchanges, reference.tokenizer),
            drift.SIMILARITY: mean([training.nearest(one.prompt) for one in exchanges]),
        }

    # 4. Told: figures, and how many of them are beyond their limits.
    reasons = drift.beyond(traffic, evaluated, job)
    json_files.write(
        job.output / files.DRIFT_FILE,
        {
            "schema_version": DRIFT_SCHEMA_VERSION,
            "model_package_arn": serving.package,
            "since": since.isoformat(timespec="seconds"),
            "requests": len(exchanges),
            "unreadable": unreadable,
            "traffic": traffic,
            "evaluated": evaluated,
            "beyond_limits": reasons,
        },
    )
    publish(job.deployment, {drift.REQUESTS: float(len(exchanges)), **traffic, drift.DRIFTED: float(len(reasons))})
    what = f"drifted: {'; '.join(reasons)}" if reasons else "as at evaluation"
    tell_result(f"{len(exchanges)} requests to {serving.package} since {since:%Y-%m-%d %H:%M} UTC: {what}")


# ---------------------------------------------------------------- 2. traffic


def read_traffic(job: MonitorJob, since: datetime, until: datetime, work: Path) -> tuple[list[Exchange], int]:
    """Exchanges of the window, at most MOST_EXCHANGES, and how many lines were of no known form.

    Those of Deploy's own requests are left out: they are the evaluation's, asked again.
    """
    exchanges: list[Exchange] = []
    unreadable = 0
    for folder in captured.folders(job.captured_to, job.endpoint_name, releases.VARIANT, since, until):
        for one in s3.objects_below(folder):
            if one.modified < since:
                continue
            s3.download(one.uri, work)
            for line in work.read_text(encoding="utf-8").splitlines():
                exchange = captured.read(line)
                if exchange is None:
                    unreadable += 1
                elif releases.OWN_REQUEST not in exchange.custom_attributes:
                    exchanges.append(exchange)
    return similarity.spread(exchanges, MOST_EXCHANGES), unreadable


# ---------------------------------------------------------------- 3. figures


@dataclass(frozen=True)
class Reference:
    """What the serving model's evaluation saw. `tokenizer` is the model's own."""

    prompts: list[str]
    answers: list[evaluation.Answer]
    training_prompts: list[str]
    tokenizer: Any


def read_reference(package: dict[str, Any], work: Path) -> Reference:
    """Evaluation, training prompts and tokenizer of a package. Raises StepError if one is gone."""
    from pipeline_steps.models import load_tokenizer

    statistics = {name: one["Statistics"]["S3Uri"] for name, one in package.get("ModelMetrics", {}).items()}
    if not {"ModelQuality", "ModelDataQuality"} <= statistics.keys():
        raise StepError(
            f"{package['ModelPackageArn']} names no evaluation and no data card (ModelMetrics), so there is nothing to compare "
            "traffic with; register models through the pipeline"
        )
    s3.download(statistics["ModelQuality"].rsplit("/", 1)[0] + f"/{files.ANSWERS_FILE}", work / files.ANSWERS_FILE)
    rows = evaluation.read_answers(work)

    s3.download(statistics["ModelDataQuality"], work / files.DATA_CARD_FILE)
    card = json_files.read(work / files.DATA_CARD_FILE, files.DATA_CARD_SCHEMA_VERSION)
    train = work / "train"
    for uri, _ in s3.sizes_below(card["uris"]["train"]):
        if uri.endswith((".jsonl", files.DATASET_FILE)):
            s3.download(uri, train / uri.rsplit("/", 1)[1])
    info, examples = dataset.read_split(train, "train")

    container = package["InferenceSpecification"]["Containers"][0]
    model_uri = container["ModelDataSource"]["S3DataSource"]["S3Uri"]
    for uri, _ in s3.sizes_below(model_uri):
        name = uri.removeprefix(model_uri)
        if "/" not in name and not name.endswith(WEIGHTS_ENDING):
            s3.download(uri, work / "model" / name)
    # A piece of a document has no prompt of its own; what it says is what prompts are compared with.
    end = info.chat.end if info.chat else ""
    prompts = [example.whole_prompt(end) or example.completion for example in examples]
    return Reference(
        [row.prompt for row in rows],
        [row.answers["tuned"] for row in rows],
        prompts,
        load_tokenizer(work / "model"),
    )


def answer_figures(answers: Sequence[str]) -> Figures:
    return {
        drift.ANSWER_WORDS: mean([float(len(answer.split())) for answer in answers]),
        drift.REFUSED: mean([float(safety.refused(answer)) for answer in answers]),
        drift.REPETITION: mean([repetition(answer) for answer in answers]),
    }


def unended_share(exchanges: Sequence[Exchange], tokenizer: Any) -> float | None:
    """Share of the answers that were cut off, of those that tell: by their reason, or by their length and its limit."""
    cut = []
    for one in exchanges:
        if one.finish_reason is not None:
            cut.append(float(one.finish_reason == UNENDED_REASON))
        elif one.max_new_tokens is not None:
            tokens = len(tokenizer(one.answer, add_special_tokens=False)["input_ids"])
            cut.append(float(tokens >= one.max_new_tokens))
    return mean(cut)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---------------------------------------------------------------- 4. metrics


def publish(deployment: str, figures: Figures) -> None:
    """Write the figures that are known to CloudWatch, under the deployment's name."""
    import boto3

    boto3.client("cloudwatch").put_metric_data(
        Namespace=drift.NAMESPACE,
        MetricData=[
            {"MetricName": name, "Dimensions": [{"Name": drift.DIMENSION, "Value": deployment}], "Value": value}
            for name, value in figures.items()
            if value is not None
        ],
    )
