"""Metrics of an evaluation: their names, units and directions, and one comparison of base and tuned."""

import math
from dataclasses import dataclass

LOSS = "loss"
PERPLEXITY = "perplexity"
ROUGE_L = "rougeL"

UNITS = {LOSS: "nats/token", PERPLEXITY: "1", ROUGE_L: "F1, 0..1"}
DIRECTIONS = {LOSS: "lower", PERPLEXITY: "lower", ROUGE_L: "higher"}


@dataclass(frozen=True)
class Comparison:
    """One metric of the base and of the tuned model on the same rows.

    `improvement` is positive when the tuned model is better, whichever way the metric points; `ci95` is the 95 %
    paired-bootstrap interval of it (low, high); `n` the rows it rests on.
    """

    metric: str
    base: float
    tuned: float
    improvement: float
    ci95: tuple[float, float]
    n: int

    @property
    def finite(self) -> bool:
        return all(math.isfinite(value) for value in (self.base, self.tuned, self.improvement, *self.ci95))

    def to_dict(self) -> dict[str, object]:
        return {
            "base": self.base,
            "tuned": self.tuned,
            "improvement": self.improvement,
            "ci95": list(self.ci95),
            "n": self.n,
            "unit": UNITS[self.metric],
            "direction": DIRECTIONS[self.metric],
        }
