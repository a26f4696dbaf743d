"""`finetune compare`: your prompts, answered before and after fine-tuning, by the deployed step on the deployed resources."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from cli import executions, reports
from cli.aws import Deployment
from cli.console import CommandError, console, escape
from pipeline_steps.contract import comparison, files, prompts
from pipeline_steps.contract.comparison import Comparison, Sampling
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.prompt_template import PromptTemplate

OUTPUTS = (files.REPORT_FILE, files.COMPARISON_TABLE, files.COMPARISON_FILE)


def compare(deployment: Deployment, path: Path, execution: str | None, sampling: Sampling, output: Path) -> Comparison:
    """Answer the prompts in `path` with the base and with the model of `execution`; leaves OUTPUTS in `output`.

    Raises CommandError before anything is started if the prompts do not fit the model.
    """
    found = reports.find(deployment, execution)
    model = found.input_uri("model")
    console.print(f"the model of {found.execution}")
    content = _checked(deployment, path, model)

    key = f"prompts/{hashlib.sha256(content).hexdigest()}/prompts{path.suffix}"
    deployment.s3.put_object(Bucket=deployment.artifact_bucket, Key=key, Body=content)
    parameters = {
        "ModelPrefix": model.removeprefix(f"s3://{deployment.artifact_bucket}/"),
        "PromptsKey": key,
        "MaxNewTokens": sampling.max_new_tokens,
        "Temperature": sampling.temperature,
        "TopK": sampling.top_k,
        "TopP": sampling.top_p,
        "Seed": sampling.seed,
    }
    arn = executions.start(
        deployment,
        {name: str(value) for name, value in parameters.items()},
        deployment.settings.compare_pipeline_name,
    )
    console.print(arn)
    view = executions.follow(deployment, arn)
    if view.status != "Succeeded":
        raise CommandError(f"the comparison ended as {view.status}: {view.reason}")

    written = reports.find(deployment, arn)
    output.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        deployment.s3.download_file(written.bucket, f"{written.prefix}/{name}", str(output / name))
    return comparison.read(output)


def _checked(deployment: Deployment, path: Path, model: str) -> bytes:
    """The content of `path`, if its prompts can be put into the template of the model at `model`."""
    if not path.is_file():
        raise CommandError(f"{path} is not a file; name one with a prompt a line, or JSON lines ({prompts.JSON_LINES})")
    content = path.read_bytes()
    bucket, _, prefix = model.removeprefix("s3://").partition("/")

    def read(name: str) -> dict[str, Any] | None:
        try:
            body = deployment.s3.get_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}/{name}")["Body"].read()
        except deployment.s3.exceptions.NoSuchKey:
            return None
        found: dict[str, Any] = json.loads(body)
        return found

    template, chat = read(files.PROMPT_TEMPLATE_FILE), read(files.CHAT_FORMAT_FILE)
    if read(files.TRAINING_FILE) is None:
        raise CommandError(f"{model} holds no model of FineTune ({files.TRAINING_FILE} is missing); was it deleted?")
    try:
        prompts.rendered(
            prompts.read(content, path.name),
            PromptTemplate(template["prompt"], template["completion"]) if template else None,
            (lambda question: question) if chat else None,  # the job writes it in the model's chat format
        )
    except StepError as error:
        raise CommandError(str(error)) from None
    return content


def table(compared: Comparison) -> Table:
    """The before/after table for a terminal."""
    parameters = ", ".join(f"{name} {value}" for name, value in compared.sampling.told().items())
    shown = Table(title=f"Before and after: {escape(parameters)}", title_justify="left", show_lines=True)
    for heading in ("prompt", "before fine-tuning", "after fine-tuning"):
        shown.add_column(heading, ratio=1, overflow="fold")
    for pair in compared.pairs:
        shown.add_row(*(escape(text.strip()) or "(empty)" for text in (pair.prompt, pair.base.text, pair.tuned.text)))
    return shown
