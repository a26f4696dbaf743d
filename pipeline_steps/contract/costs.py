"""What training costs, estimated before it starts and counted after it: instances, their prices, how fast they train.

Prices are US dollars an hour, on demand, us-east-1, from PRICES_SOURCE; configuration overrides them.
"""

from dataclasses import dataclass

from pipeline_steps.contract.errors import StepError

PRICES_SOURCE = "a 2024 price list, not verified since; set training.usd_per_hour to your price"


@dataclass(frozen=True)
class Instance:
    """`teraflops`: peak of one GPU in bfloat16, dense, by its maker's data sheet; `gpu_gib`: the memory that it shows.

    `usd_per_hour` where it is known.
    """

    gpus: int
    gpu_gib: float
    teraflops: float
    usd_per_hour: float | None = None


INSTANCES = {
    "ml.g5.2xlarge": Instance(1, 22.0, 70),
    "ml.g5.4xlarge": Instance(1, 22.0, 70),
    "ml.g5.12xlarge": Instance(4, 22.0, 70, 7.09),
    "ml.g5.24xlarge": Instance(4, 22.0, 70, 10.18),
    "ml.g5.48xlarge": Instance(8, 22.0, 70, 20.36),
    "ml.g6.4xlarge": Instance(1, 22.0, 121),
    "ml.g6.12xlarge": Instance(4, 22.0, 121),
    "ml.g6e.4xlarge": Instance(1, 44.4, 362),
    "ml.g6e.12xlarge": Instance(4, 44.4, 362),
    "ml.p4d.24xlarge": Instance(8, 39.4, 312),
    "ml.p5.48xlarge": Instance(8, 79.1, 989),
}

# Share of the peak that a plain LoRA run reaches; a finished run's tokens_per_second is better knowledge.
ASSUMED_UTILIZATION = 0.2


@dataclass(frozen=True)
class LastRun:
    """What an earlier run on the same instances reached. `overhead_seconds`: beside training, from start to merging."""

    package: str
    tokens_per_second: float
    overhead_seconds: float


@dataclass(frozen=True)
class CostEstimate:
    """Time and cost of one epoch, and of the whole run; None where it cannot be told; the sources say what was assumed.

    `overhead_hours` is known from an earlier run only; without one the whole run is its epochs.
    """

    instance_type: str
    instance_count: int
    tokens_per_epoch: int
    epochs: float
    tokens_per_second: float | None
    throughput_source: str
    hours_per_epoch: float | None
    usd_per_hour: float | None
    price_source: str
    usd_per_epoch: float | None
    overhead_hours: float | None
    hours: float | None
    usd: float | None


def estimate(
    tokens_per_epoch: int,
    epochs: float,
    instance_type: str,
    instance_count: int,
    model_parameters: float | None,
    full: bool,
    tokens_per_second: float | None = None,
    usd_per_hour: float | None = None,
    last: LastRun | None = None,
) -> CostEstimate:
    """The estimate for `tokens_per_epoch` tokens. Given figures come before those of the last run, and these before derived ones.

    Derived speed: GPUs x peak x ASSUMED_UTILIZATION / floating-point operations a token, which are 4 a weight for an
    adapter (forward, and backward to the activations) and 6 for full fine-tuning.
    """
    instance = INSTANCES.get(instance_type)
    throughput_source = "training.tokens_per_second of the configuration"
    overhead_hours = last.overhead_seconds / 3600 if last else None
    if tokens_per_second is None and last is not None:
        tokens_per_second, throughput_source = last.tokens_per_second, f"measured by the last run ({last.package})"
    elif tokens_per_second is None:
        throughput_source = f"{instance_type} is not in the table of instances; set training.tokens_per_second"
        if instance and model_parameters:
            operations = (6 if full else 4) * model_parameters
            peak = instance_count * instance.gpus * instance.teraflops * 1e12
            tokens_per_second = peak * ASSUMED_UTILIZATION / operations
            throughput_source = (
                f"assumed: {ASSUMED_UTILIZATION:.0%} of the peak of {instance_count * instance.gpus} GPUs; "
                "set training.tokens_per_second to what a finished run reached"
            )
    price_source = "training.usd_per_hour of the configuration"
    if usd_per_hour is None:
        usd_per_hour = instance.usd_per_hour if instance else None
        price_source = PRICES_SOURCE if usd_per_hour is not None else "no price is known; set training.usd_per_hour"
    hours = tokens_per_epoch / tokens_per_second / 3600 if tokens_per_second else None
    in_all = hours * epochs + (overhead_hours or 0) if hours is not None else None
    usd = hours * usd_per_hour * instance_count if hours is not None and usd_per_hour is not None else None
    return CostEstimate(
        instance_type,
        instance_count,
        tokens_per_epoch,
        epochs,
        tokens_per_second,
        throughput_source,
        hours,
        usd_per_hour,
        price_source,
        usd,
        overhead_hours,
        in_all,
        in_all * usd_per_hour * instance_count if in_all is not None and usd_per_hour is not None else None,
    )


def told(hours: float | None, usd: float | None, instance_count: int | None, instance_type: str | None) -> str:
    """Time and cost in words that a model package's metadata can hold."""
    if hours is None or not instance_type:
        return "not known"
    money = f"{usd:.2f} USD" if usd is not None else "price not known"
    return f"{money}: {hours * 3600:.0f} s on {instance_count} x {instance_type}"


def spent_usd(hours: float, instance_count: int, instance_type: str, usd_per_hour: float | None) -> float | None:
    """What `hours` on the instances cost. `usd_per_hour` of one of them; None: by the table."""
    if usd_per_hour is None:
        instance = INSTANCES.get(instance_type)
        usd_per_hour = instance.usd_per_hour if instance else None
    return None if usd_per_hour is None else hours * instance_count * usd_per_hour


def hours_for(usd: float, instance_type: str, instance_count: int, usd_per_hour: float | None) -> float:
    """How long `usd` pays for the instances. `usd_per_hour` of one instance; None: by the table.

    Raises StepError if no price is known.
    """
    if usd_per_hour is None:
        instance = INSTANCES.get(instance_type)
        usd_per_hour = instance.usd_per_hour if instance else None
    if usd_per_hour is None:
        raise StepError(
            f"max_cost_usd is {usd:g}, but no price of {instance_type} is known; set training.usd_per_hour to yours"
        )
    return usd / (usd_per_hour * instance_count)
