"""The runs of a deployment, by whoever started them: what they trained on, how it went, and how good the models became."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli import executions
from cli.aws import Deployment
from cli.executions import ExecutionView
from pipeline_steps.contract import files, metrics

READERS = 8  # executions that are read at the same time
BARS = "▁▂▃▄▅▆▇█"
PLOTTED = (metrics.LOSS, metrics.ROUGE_L, metrics.BITS_PER_BYTE)  # in this order, where they were measured


@dataclass(frozen=True)
class Run:
    """An execution of `<name>-finetune`. `metrics` is metric -> model (base, tuned, champion) -> value."""

    arn: str
    status: str
    started: datetime
    seconds: float
    parameters: dict[str, str]
    metrics: dict[str, dict[str, float | None]]
    passed: bool | None  # the gate's verdict; None where it was not asked
    package: str | None  # ARN of the model package that it registered
    reason: str  # why it failed, or what it had to say

    @property
    def id(self) -> str:
        return self.arn.rsplit("/", 1)[-1]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "started": self.started.isoformat(), "id": self.id}

    def value(self, metric: str, model: str = "tuned") -> float | None:
        return self.metrics.get(metric, {}).get(model)


def runs(deployment: Deployment, most: int) -> list[Run]:
    """The newest `most` executions, the newest first."""
    pages = deployment.sagemaker.get_paginator("list_pipeline_executions").paginate(
        PipelineName=deployment.settings.finetune_pipeline_name, SortBy="CreationTime", SortOrder="Descending"
    )
    summaries = list(islice((one for page in pages for one in page["PipelineExecutionSummaries"]), most))
    _ = deployment.sagemaker, deployment.s3  # made once, before several threads ask for them
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda summary: _read(deployment, summary), summaries))


def _read(deployment: Deployment, summary: dict[str, Any]) -> Run:
    arn = summary["PipelineExecutionArn"]
    view = executions.describe(deployment, arn)
    evaluation = _evaluation(deployment, view) or {"metrics": {}}
    notes = (step.note for step in view.steps if step.note and step.name == "PrepareData")
    return Run(
        arn,
        view.status,
        summary["StartTime"],
        view.seconds,
        executions.parameters(deployment, arn),
        {
            name: {model: value["value"] for model, value in one["values"].items()}
            for name, one in evaluation["metrics"].items()
        },
        evaluation["gate"]["passed"] if "gate" in evaluation else None,
        next((step.package for step in view.steps if step.package), None),
        view.reason or next(notes, ""),
    )


def _evaluation(deployment: Deployment, view: ExecutionView) -> dict[str, Any] | None:
    """What Evaluate wrote; None where it has not succeeded, or what it wrote was deleted."""
    return executions.written(deployment, view, "Evaluate", files.EVALUATION_OUTPUT, files.EVALUATION_FILE)


def plotted(found: list[Run]) -> list[str]:
    """The metrics that a plot shows: those of PLOTTED that at least one run has."""
    return [name for name in PLOTTED if any(run.value(name) is not None for run in found)]


def render(found: list[Run]) -> Group:
    """A line for each run, and for each metric its way over the runs, the oldest first."""
    shown = plotted(found)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("started (UTC)", "execution", "state", "time", "dataset", "epochs", "rate"):
        table.add_column(heading, justify="right" if heading in ("time", "epochs", "rate") else "left")
    for name in shown:
        table.add_column(metrics.DEFINITIONS[name].label, justify="right")
    for heading in ("gate", "version"):
        table.add_column(heading)
    for run in found:
        table.add_row(
            f"{run.started:%Y-%m-%d %H:%M}",
            run.id,
            Text(run.status, style={"Failed": "red", "Succeeded": "green"}.get(run.status, "yellow")),
            f"{run.seconds / 60:.0f} min" if run.seconds >= 60 else f"{run.seconds:.0f} s",
            dataset(run),
            run.parameters.get("Epoch", "-"),
            run.parameters.get("LearningRate", "-"),
            *(figure(run.value(name), name) for name in shown),
            verdict(run),
            run.package.rsplit("/", 1)[-1] if run.package else "-",
        )
    lines = []
    for name in shown:
        values = [value for run in reversed(found) if (value := run.value(name)) is not None]
        label = metrics.DEFINITIONS[name].label
        lines.append(
            Text.assemble(
                (f"{label:16}", "dim"), sparkline(values), f"  {figure(values[0], name)} to {figure(values[-1], name)}"
            )
        )
    return Group(table, *lines)


def dataset(run: Run) -> str:
    """The manifest's key, without the name that every manifest has."""
    return run.parameters.get("DatasetManifest", "-").removesuffix("/dataset.manifest")


def verdict(run: Run) -> str:
    return "-" if run.passed is None else "passed" if run.passed else "refused"


def figure(value: float | None, metric: str) -> str:
    return "-" if value is None else f"{value:.{metrics.DEFINITIONS[metric].decimals}f}"


def sparkline(values: list[float]) -> str:
    """A bar for each value, between the lowest and the highest."""
    low, high = min(values), max(values)
    step = (high - low) / (len(BARS) - 1)
    return "".join(BARS[round((value - low) / step)] if step else BARS[0] for value in values)
