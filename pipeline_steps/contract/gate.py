"""The gate: may this tuned model be registered? Closed unless every check that applies was shown to hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pipeline_steps.contract.dataset import Mode
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.metrics import DIRECTIONS, UNITS, Comparison

MESSAGE_CHARACTERS = 900  # the Fail step's message may hold 3,072, an execution's FailureReason 1,024


@dataclass(frozen=True)
class Gate:
    """One check: the low end of the improvement's 95 % interval must be above `margin`, on `minimum_n` rows or more.

    `mode` is the tuning mode that it applies to, or "any". A margin of zero or more asks for "better than", a negative
    one for "not worse than". Travels as one argument: mode,metric,compared_with,direction,margin,minimum_n.
    """

    mode: str
    metric: str
    compared_with: str
    direction: str
    margin: float
    minimum_n: int

    @classmethod
    def parse(cls, argument: str) -> "Gate":
        parts = argument.split(",")
        try:
            mode, metric, compared_with, direction, margin, minimum_n = parts
            gate = cls(mode, metric, compared_with, direction, float(margin), int(minimum_n))
        except ValueError:
            raise StepError(
                f"--gate {argument!r} is not mode,metric,compared_with,direction,margin,minimum_n; "
                "example: any,loss,base,lower,0.02,20"
            ) from None
        allowed = {
            "mode": (mode, ("any", *get_args(Mode))),
            "metric": (metric, tuple(DIRECTIONS)),
            "compared_with": (compared_with, ("base",)),
            "direction": (direction, (DIRECTIONS.get(metric, "lower or higher"),)),
        }
        wrong = [
            f"{name} is {value!r}, allowed: {', '.join(ok)}" for name, (value, ok) in allowed.items() if value not in ok
        ]
        if math.isnan(gate.margin) or gate.minimum_n < 2:
            wrong.append(f"margin is {margin}, minimum_n is {minimum_n}; allowed: a number, and 2 or more")
        if wrong:
            raise StepError(f"--gate {argument!r}: " + "; ".join(wrong))
        return gate

    def check(self, comparison: Comparison | None) -> tuple[bool, str]:
        """Whether the check holds, and the sentence that says why."""
        if comparison is None:
            return False, f"{self.metric} was not measured; the gate stays closed without it"
        if not comparison.finite:
            return False, f"{self.metric} is not a finite number (base {comparison.base}, tuned {comparison.tuned})"
        if comparison.n < self.minimum_n:
            return (
                False,
                f"{self.metric} rests on {comparison.n} rows, at least {self.minimum_n} are needed; add test rows",
            )
        low, high = comparison.ci95
        figures = (
            f"{self.metric} {comparison.base:.3f} -> {comparison.tuned:.3f} ({UNITS[self.metric]}), improvement "
            f"{comparison.improvement:+.3f}, 95 % interval {low:+.3f} .. {high:+.3f}, n = {comparison.n}"
        )
        if low > self.margin:
            return True, f"{figures}: above the margin of {self.margin:+g}"
        return False, f"{figures}: the low end must be above {self.margin:+g}"


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reasons: list[str]
    checks: list[dict[str, object]]

    @property
    def message(self) -> str:
        """One line for the Fail step and notifications."""
        opening = "The gate passed: " if self.passed else "The gate refused the tuned model: "
        return (opening + "; ".join(self.reasons))[:MESSAGE_CHARACTERS]

    def to_dict(self) -> dict[str, object]:
        return {"passed": self.passed, "reasons": self.reasons, "message": self.message, "checks": self.checks}


def decide(gates: Sequence[Gate], comparisons: Mapping[str, Comparison], tuning_mode: str) -> Verdict:
    """The verdict over all gates that apply to `tuning_mode`: the reasons of those that failed, else of all."""
    applying = [gate for gate in gates if gate.mode in ("any", tuning_mode)]
    if not applying:
        return Verdict(
            False, [f"no check applies to tuning mode {tuning_mode!r}; declare one in pipeline/gates.py"], []
        )
    results = [(gate, *gate.check(comparisons.get(gate.metric))) for gate in applying]
    passed = all(holds for _, holds, _ in results)
    checks: list[dict[str, object]] = [
        {**vars(gate), "passed": holds, "reason": reason} for gate, holds, reason in results
    ]
    return Verdict(passed, [reason for _, holds, reason in results if holds == passed], checks)
