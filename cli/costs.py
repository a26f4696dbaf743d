"""What an execution costs: estimated before it starts, and counted from its jobs afterwards.

Prices and speeds come from pipeline_steps/contract/costs.py, the configuration, and earlier executions; each figure says
from which. Only the instances of jobs are counted: no endpoint, no storage.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli import executions
from cli.aws import Deployment
from cli.console import CommandError
from cli.executions import ExecutionView, StepView
from config.settings import Settings
from pipeline_steps.contract import costs, files

EARLIER = 10  # executions that are looked through for one that tells how long a step takes
PRICE = re.compile(r"(ml\.[a-z0-9-]+\.[a-z0-9-]+)=(\d+(?:\.\d+)?)")
ESTIMATE = re.compile(r"(\w+): (\d+) s of (\d+) x (ml\.\S+), (?:(\d+\.\d+) USD|price unknown)")


@dataclass(frozen=True)
class StepCost:
    """One step's job. `seconds` are billed for each of `instance_count` instances; None is unknown, and `source` says why."""

    step: str
    instance_type: str
    instance_count: int
    seconds: float | None
    usd_per_hour: float | None
    source: str  # of the seconds

    @property
    def usd(self) -> float | None:
        if self.seconds is None or self.usd_per_hour is None:
            return None
        return self.seconds / 3600 * self.instance_count * self.usd_per_hour

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "usd": self.usd}


@dataclass(frozen=True)
class Prices:
    """US dollars an hour of one instance: `given` by the user, then of the configuration, then of the table."""

    settings: Settings
    given: Mapping[str, float]

    @classmethod
    def of(cls, settings: Settings, texts: list[str]) -> "Prices":
        """`texts` are TYPE=USD. Raises CommandError for any that is not."""
        matches = [PRICE.fullmatch(text) for text in texts]
        wrong = [text for text, match in zip(texts, matches, strict=True) if match is None]
        if wrong:
            raise CommandError(f"--price {', '.join(wrong)}: expected TYPE=USD an hour, such as ml.g5.4xlarge=2.5")
        return cls(settings, {match[1]: float(match[2]) for match in matches if match})

    def of_one(self, instance_type: str) -> float | None:
        training, known = self.settings.training, costs.INSTANCES.get(instance_type)
        if instance_type in self.given:
            return self.given[instance_type]
        if instance_type == training.instance_type and training.usd_per_hour is not None:
            return training.usd_per_hour
        return known.usd_per_hour if known else None

    def notes(self, steps: list[StepCost]) -> list[str]:
        """Where the prices of these steps come from, and which are not known."""
        sources: dict[str, set[str]] = {}
        for step in steps:
            if step.instance_count:  # a reused result has no instance
                sources.setdefault(self._source(step.instance_type), set()).add(step.instance_type)
        return [f"price of {', '.join(sorted(types))}: {source}" for source, types in sources.items()]

    def _source(self, instance_type: str) -> str:
        if instance_type in self.given:
            return "--price"
        if self.of_one(instance_type) is None:
            return f"unknown; give it with --price {instance_type}=USD"
        if instance_type == self.settings.training.instance_type and self.settings.training.usd_per_hour is not None:
            return "training.usd_per_hour of the configuration"
        return costs.PRICES_SOURCE


# ---------------------------------------------------------------- before a start


class Estimator:
    """Estimates of `<name>-finetune` from what earlier executions of it took."""

    def __init__(self, deployment: Deployment, prices: Prices) -> None:
        self._deployment = deployment
        self._prices = prices

    def estimate(self, parameters: Mapping[str, Any]) -> list[StepCost]:
        """What an execution with these parameters takes, step by step."""
        processing = self._deployment.settings.processing
        instances = {
            "PrepareData": (processing.prepare_instance_type, processing.prepare_instance_count),
            "FineTune": (parameters["TrainingInstanceType"], parameters["TrainingInstanceCount"]),
            "Evaluate": (processing.evaluate_instance_type, 1),
            "Deploy": (processing.deploy_instance_type, 1),
        }
        if parameters["ApprovalStatus"] != "Approved":
            del instances["Deploy"]  # an approval starts it, in an execution of its own
        return [
            StepCost(
                step,
                instance_type,
                count,
                *self._seconds(step, instance_type, count, parameters),
            )
            for step, (instance_type, count) in instances.items()
        ]

    def _seconds(
        self, step: str, instance_type: str, count: int, parameters: Mapping[str, Any]
    ) -> tuple[float | None, float | None, str]:
        price = self._prices.of_one(instance_type)
        earlier = next(
            (
                one
                for one in self._earlier
                if (cost := one.costs.get(step)) is not None
                and (cost.instance_type, cost.instance_count) == (instance_type, count)
                and (step != "FineTune" or (one.tokens and one.parameters.get("PeftType") == parameters["PeftType"]))
            ),
            None,
        )
        seconds = earlier.costs[step].seconds if earlier else None
        if step != "FineTune":
            if earlier is None:
                return None, price, f"no earlier execution tells how long {step} takes on {count} x {instance_type}"
            return seconds, price, f"as in {earlier.id}"
        card = self._card(parameters["DatasetManifest"])
        if card is None:
            return (
                None,
                price,
                "how many tokens it trains on is told by the data card, and there is none of this dataset",
            )
        tokens = card.tokens_per_epoch * parameters["Epoch"]
        of_the_card = f"{tokens:,.0f} tokens by the data card of {card.id}"
        speed = self._deployment.settings.training.tokens_per_second
        if speed is None and earlier is not None and seconds:
            speed = earlier.tokens_per_epoch * float(earlier.parameters["Epoch"]) / seconds
            return tokens / speed, price, f"{of_the_card}, {speed:,.0f} tokens/s as in {earlier.id}, loading included"
        known = costs.estimate(
            card.tokens_per_epoch,
            parameters["Epoch"],
            instance_type,
            count,
            card.model_parameters,
            full=parameters["PeftType"] == "None",
            tokens_per_second=speed,
        )
        if known.tokens_per_second is None:
            return None, price, f"{of_the_card}; {known.throughput_source}"
        return (
            tokens / known.tokens_per_second,
            price,
            f"{of_the_card}, {known.tokens_per_second:,.0f} tokens/s ({known.throughput_source}), without start and loading",
        )

    def _card(self, manifest: str) -> "_Earlier | None":
        return next(
            (one for one in self._earlier if one.tokens and one.parameters.get("DatasetManifest") == manifest), None
        )

    @cached_property
    def _earlier(self) -> list["_Earlier"]:
        """What the newest executions that have ended took, the newest first."""
        deployment = self._deployment
        name = deployment.settings.finetune_pipeline_name
        found = [
            one["PipelineExecutionArn"]
            for one in executions.newest_ones(deployment, name, EARLIER)
            if one["PipelineExecutionStatus"] not in executions.RUNNING
        ]
        _ = deployment.s3  # made once, before several threads ask for it
        with ThreadPoolExecutor(EARLIER) as readers:
            return list(readers.map(lambda arn: _Earlier.read(deployment, self._prices, arn), found))


@dataclass(frozen=True)
class _Earlier:
    """An execution that has ended: what its steps took, and what its data card says."""

    id: str
    parameters: Mapping[str, str]
    costs: Mapping[str, StepCost]
    card: Mapping[str, Any]

    @classmethod
    def read(cls, deployment: Deployment, prices: Prices, arn: str) -> "_Earlier":
        view = executions.describe(deployment, arn)
        succeeded = [step for step in view.steps if step.status == "Succeeded" and not step.cached]
        taken = actual(deployment, succeeded, prices)
        return cls(
            arn.rsplit("/", 1)[-1],
            executions.parameters(deployment, arn),
            {one.step: one for one in taken},
            data_card(deployment, view) or {},
        )

    @property
    def tokens(self) -> bool:
        return bool(self.card.get("tokens"))

    @property
    def tokens_per_epoch(self) -> int:
        return int(self.card["tokens"]["splits"]["train"]["tokens"])

    @property
    def model_parameters(self) -> float | None:
        """Weights of the base model, as the card's own estimate of the speed implies; None without one."""
        told = self.card.get("cost") or {}
        known = costs.INSTANCES.get(told.get("instance_type", ""))
        if known is None or not told.get("tokens_per_second") or not told["throughput_source"].startswith("assumed"):
            return None
        operations = 6 if self.parameters.get("PeftType") == "None" else 4
        peak = told["instance_count"] * known.gpus * known.teraflops * 1e12
        return float(peak * costs.ASSUMED_UTILIZATION / told["tokens_per_second"] / operations)


def data_card(deployment: Deployment, view: ExecutionView) -> dict[str, Any] | None:
    """The data card that PrepareData wrote in an execution; None where it has written none, or it was deleted."""
    return executions.written(deployment, view, "PrepareData", files.REPORT_OUTPUT, files.DATA_CARD_FILE)


def describe(steps: list[StepCost]) -> str:
    """An estimate as the execution's description, for people and for `recorded`."""
    parts = [
        f"{one.step}: {one.seconds:.0f} s of {one.instance_count} x {one.instance_type}, "
        + ("price unknown" if one.usd is None else f"{one.usd:.4f} USD")
        for one in steps
        if one.seconds is not None
    ]
    return f"Estimated at its start. {'; '.join(parts)}" if parts else ""


def recorded(deployment: Deployment, arn: str) -> dict[str, StepCost]:
    """The estimate that `finetune start` wrote into the execution's description, by step; empty without one."""
    described = deployment.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
    found = ESTIMATE.findall(described.get("PipelineExecutionDescription", ""))
    return {
        step: StepCost(
            step,
            kind,
            int(count),
            float(seconds),
            float(usd) / (int(count) * float(seconds) / 3600) if usd and float(seconds) else None,
            "estimated at its start",
        )
        for step, seconds, count, kind, usd in found
    }


def estimated(deployment: Deployment, view: ExecutionView, prices: Prices) -> dict[str, StepCost]:
    """What was estimated for an execution, by step: at its start, or else by its own data card for the training alone."""
    found = recorded(deployment, view.arn)
    if found:
        return found
    told = (data_card(deployment, view) or {}).get("cost") or {}
    if told.get("hours") is None:
        return {}
    seconds = told["hours"] * 3600
    kind = told["instance_type"]
    cost = StepCost("FineTune", kind, told["instance_count"], seconds, prices.of_one(kind), "by its data card")
    return {"FineTune": cost}


# ---------------------------------------------------------------- afterwards


def actual(deployment: Deployment, steps: list[StepView], prices: Prices) -> list[StepCost]:
    """What the jobs of these steps were billed for; a step that reused an earlier result costs nothing."""
    found = []
    for step in steps:
        if step.cached or step.reused_from:
            found.append(StepCost(step.name, "-", 0, 0.0, 0.0, "reused from an earlier execution"))
        elif step.job:
            found.append(_of_job(deployment, step.name, step.job, prices))
    return found


def _of_job(deployment: Deployment, step: str, job: tuple[str, str], prices: Prices) -> StepCost:
    kind, name = job
    if kind == "TrainingJob":
        described = deployment.sagemaker.describe_training_job(TrainingJobName=name)
        resources, seconds = described["ResourceConfig"], described.get("BillableTimeInSeconds")
        source = "BillableTimeInSeconds of its job"
    else:
        described = deployment.sagemaker.describe_processing_job(ProcessingJobName=name)
        resources = described["ProcessingResources"]["ClusterConfig"]
        started, ended = described.get("ProcessingStartTime"), described.get("ProcessingEndTime")
        seconds = (ended - started).total_seconds() if started and ended else None
        source = "from start to end of its job"
    if seconds is None:
        source = "its job has not ended, or never started"
    kind_of_instance = resources["InstanceType"]
    return StepCost(
        step, kind_of_instance, resources["InstanceCount"], seconds, prices.of_one(kind_of_instance), source
    )


def total(steps: list[StepCost]) -> tuple[float, list[str]]:
    """US dollars of all steps whose cost is known, and the names of the others."""
    return sum(one.usd or 0.0 for one in steps), [one.step for one in steps if one.usd is None]


def render(steps: list[StepCost], notes: list[str], estimated: Mapping[str, StepCost] | None = None) -> Group:
    """A line for each step, beside its estimate where there is one, the sum, and where the figures come from."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    headings = ["step", "instances", "time", "USD", *(["estimated", "USD"] if estimated else [])]
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right")
    for one in steps:
        row = [one.step, f"{one.instance_count} x {one.instance_type}", _time(one.seconds), _usd(one.usd)]
        if estimated:
            guess = estimated.get(one.step)
            row += [_time(guess.seconds), _usd(guess.usd)] if guess else ["-", "-"]
        table.add_row(*row)
    lines = [_sum("in all", steps)]
    if estimated:
        lines.append(_sum("estimated", list(estimated.values())))
    lines += [f"{one.step}: {one.source}" for one in steps]
    return Group(table, *(Text(line, style="dim" if place > 1 else "") for place, line in enumerate([*lines, *notes])))


def _sum(what: str, steps: list[StepCost]) -> str:
    usd, unknown = total(steps)
    if len(unknown) == len(steps):
        return f"{what}: unknown"
    return f"{what}: {_usd(usd)} USD" + (f", without {', '.join(unknown)}" if unknown else "")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _usd(usd: float | None) -> str:
    return "-" if usd is None else f"{usd:,.4f}" if usd < 1 else f"{usd:,.2f}"
