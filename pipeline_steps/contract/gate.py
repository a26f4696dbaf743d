"""The gate: may this tuned model be registered? Closed unless every check that applies was shown to hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pipeline_steps.contract.dataset import Mode
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import Check, Metric, Overlap, Verdict
from pipeline_steps.contract.metrics import DEFINITIONS

MESSAGE_CHARACTERS = 900  # the Fail step's message may hold 3,072, an execution's FailureReason 1,024
COMPARED_WITH = ("base", "champion", "number")
OVERLAP = "test_rows_seen"  # the check that no gate has to declare: it always applies


@dataclass(frozen=True)
class Gate:
    """One check of the tuned model on `minimum_n` rows or more: mode,metric,compared_with,direction,margin,minimum_n.

    Compared with base or champion, the low end of the improvement's 95 % interval must be above `margin`: zero or more
    asks for "better than", less than zero for "not worse than". Compared with a number, the tuned model's own interval
    must lie on the good side of `margin`. `mode` is the tuning mode that it applies to, or "any". Without a champion a
    comparison with it is skipped.
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
        definition = DEFINITIONS.get(metric)
        directions: tuple[str, ...] = (definition.direction,) if definition else ("lower", "higher")
        allowed = {
            "mode": (mode, ("any", *get_args(Mode))),
            "metric": (metric, tuple(name for name, one in DEFINITIONS.items() if one.direction != "neither")),
            "compared_with": (compared_with, COMPARED_WITH),
            "direction": (direction, directions),
        }
        wrong = [
            f"{name} is {value!r}, allowed: {', '.join(ok)}" for name, (value, ok) in allowed.items() if value not in ok
        ]
        if not math.isfinite(gate.margin) or gate.minimum_n < 2:
            wrong.append(f"margin is {margin}, minimum_n is {minimum_n}; allowed: a number, and 2 or more")
        if wrong:
            raise StepError(f"--gate {argument!r}: " + "; ".join(wrong))
        return gate

    def check(self, metrics: Mapping[str, Metric], has_champion: bool, unmeasured: Mapping[str, str]) -> Check:
        """Whether it holds, and the sentence that says why."""
        label = DEFINITIONS[self.metric].label
        if self.compared_with == "champion" and not has_champion:
            return self._result(None, False, f"{label}: there is no approved model to compare with", skipped=True)
        metric = metrics.get(self.metric)
        if metric is None:
            why = f" ({unmeasured[self.metric]})" if self.metric in unmeasured else ""
            return self._result(None, False, f"{label} was not measured{why}; the gate stays closed without it")
        if self.compared_with == "number":
            own = metric.values.get("tuned")
            value, interval = (own.value, own.interval) if own else (None, None)
        else:
            improvement = metric.improvements.get(self.compared_with)
            value, interval = (improvement.value, improvement.interval) if improvement else (None, None)
        if value is None or interval is None or not all(map(math.isfinite, (value, *interval))):
            found = ", ".join(f"{model} {one.value}" for model, one in metric.values.items())
            return self._result(metric, False, f"{label} is not a finite number ({found})")
        if metric.n < self.minimum_n:
            return self._result(
                metric, False, f"{label} rests on {metric.n} rows, at least {self.minimum_n} are needed; add test rows"
            )
        low, high = interval
        if self.compared_with == "number":
            passed = high < self.margin if self.direction == "lower" else low > self.margin
            figures = (
                f"{label} is {_shown(metric, value)} ({metric.unit}), 95 % interval {_shown(metric, low)} .. "
                f"{_shown(metric, high)}, n = {metric.n}"
            )
            if self.direction == "lower":
                wanted = f"the high end {'is' if passed else 'must be'} below {self.margin:g}"
            else:
                wanted = f"the low end {'is' if passed else 'must be'} above {self.margin:g}"
        else:
            passed = low > self.margin
            before, after = metric.values[self.compared_with].value, metric.values["tuned"].value
            figures = (
                f"{label} {_shown(metric, before)} -> {_shown(metric, after)} ({metric.unit}, {self.compared_with} -> "
                f"tuned), improvement {_shown(metric, value, sign=True)}, 95 % interval "
                f"{_shown(metric, low, sign=True)} .. {_shown(metric, high, sign=True)}, n = {metric.n}"
            )
            wanted = f"the low end {'is' if passed else 'must be'} above {self.margin:+g}"
        return self._result(metric, passed, f"{figures}: {wanted}", value=value, interval=interval)

    def _result(
        self,
        metric: Metric | None,
        passed: bool,
        reason: str,
        *,
        skipped: bool = False,
        value: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Check:
        return Check(
            **vars(self),
            passed=passed,
            skipped=skipped,
            reason=reason,
            n=metric.n if metric else None,
            value=value,
            interval=interval,
        )


def decide(
    gates: Sequence[Gate],
    metrics: Mapping[str, Metric],
    overlaps: Sequence[Overlap],
    tuning_mode: str,
    unmeasured: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict over all gates that apply to `tuning_mode`: the reasons of the checks that failed, else of all.

    `unmeasured`: why a metric is missing, where that is known.
    """
    has_champion = any(overlap.model == "champion" for overlap in overlaps)
    checks = [
        gate.check(metrics, has_champion, unmeasured or {}) for gate in gates if gate.mode in ("any", tuning_mode)
    ]
    counted = [check for check in checks if not check.skipped]
    if not counted:
        reason = f"no check applies to tuning mode {tuning_mode!r}; declare one in pipeline/gates.py"
        return _verdict(False, [reason], checks)
    checks.append(_unseen(overlaps))
    counted.append(checks[-1])
    passed = all(check.passed for check in counted)
    return _verdict(passed, [check.reason for check in counted if check.passed == passed], checks)


def _unseen(overlaps: Sequence[Overlap]) -> Check:
    """Whether the tuned model has seen none of the test rows. What the champion has seen makes the gate harder, not easier."""
    found = next((overlap for overlap in overlaps if overlap.model == "tuned"), None)
    if found is None or found.rows is None:
        passed, reason = (
            False,
            "which rows the tuned model was trained on is not known; train it again with this version",
        )
    elif found.rows:
        passed = False
        reason = (
            f"{found.rows} of the test rows were trained on (ids {', '.join(found.examples[:3])}): "
            "the figures say nothing; prepare the data again"
        )
    else:
        passed, reason = True, "none of the test rows was trained on"
    seen = found.rows if found else None
    value = None if seen is None else float(seen)
    return Check("any", OVERLAP, "number", "lower", 1, 0, passed, False, reason, None, value, None)


def _verdict(passed: bool, reasons: list[str], checks: list[Check]) -> Verdict:
    opening = "The gate passed: " if passed else "The gate refused the tuned model: "
    return Verdict(passed, reasons, (opening + "; ".join(reasons))[:MESSAGE_CHARACTERS], checks)


def _shown(metric: Metric, value: float | None, sign: bool = False) -> str:
    return "none" if value is None else f"{value:{'+' if sign else ''}.{DEFINITIONS[metric.name].decimals}f}"
