"""Figures from per-row results, each with its 95 % bootstrap interval over rows.

A metric is a function of column sums: a loss is (sum of nats) / (sum of tokens), a mean is (sum of values) / (rows).
So each row contributes a row of addends, (rows, k), and a resample of the rows is a sum of them again.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline_steps.contract.evaluation import Direction, Improvement, Metric, Value
from pipeline_steps.contract.metrics import DEFINITIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 250
SIGNS: dict[Direction, int] = {"lower": -1, "higher": 1, "neither": 1}


def ratio(sums: "Array") -> "Array":
    """First column over the second, (..., 2) -> (...)."""
    return sums[..., 0] / sums[..., 1]


class Bootstrap:
    """RESAMPLES draws of `rows` rows with replacement, the same ones for every metric and model: so they are paired."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def sums(self, addends: "Array") -> "Array":
        """Column sums of all resamples, (RESAMPLES, k)."""
        import numpy as np

        random = np.random.default_rng(self.seed)
        parts = []
        for start in range(0, RESAMPLES, _RESAMPLES_AT_ONCE):
            number = min(_RESAMPLES_AT_ONCE, RESAMPLES - start)
            times = random.multinomial(self.rows, np.full(self.rows, 1 / self.rows), size=number)
            parts.append(times.astype(float) @ addends)
        return np.concatenate(parts)

    def metric(self, name: str, by_model: "Mapping[str, Array]", of_sums: "Callable[[Array], Array]" = ratio) -> Metric:
        """The metric of each model from its rows' addends, (rows, k) each, and how much better the tuned one is."""
        import numpy as np

        definition = DEFINITIONS[name]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # A hopeless model's perplexity overflows; what is no finite number is told as such and refused by the gate.
            values = {model: float(of_sums(addends.sum(axis=0))) for model, addends in by_model.items()}
            resampled = {model: of_sums(self.sums(addends)) for model, addends in by_model.items()}
            others = [model for model in by_model if model != "tuned"]
            sign = SIGNS[definition.direction]
            improvements = {
                model: Improvement(
                    sign * (values["tuned"] - values[model]), _interval(sign * (resampled["tuned"] - resampled[model]))
                )
                for model in others
            }
            shown = {
                model: Value(value, _interval(resampled[model]), float(resampled[model].std()))
                for model, value in values.items()
            }
        return Metric(
            name,
            definition.label,
            definition.unit,
            definition.direction,
            definition.formula,
            self.rows,
            shown,
            improvements,
        )


def _interval(values: "Array") -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
