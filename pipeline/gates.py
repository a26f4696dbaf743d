"""The gate, declared: a tuned model is registered only if every check below holds on the held-out rows.

A check holds when the low end of a 95 % interval is above its margin and rests on enough rows; whatever is missing,
NaN or too small is a refusal, and so is a test row that was trained on (pipeline_steps/contract/gate.py decides, inside
Evaluate). Margins are run-time parameters of the pipeline.
"""

from typing import TYPE_CHECKING

from sagemaker.core.workflow.functions import Join

from pipeline_steps.contract import metrics

if TYPE_CHECKING:
    from pipeline.definition import Parameters


def arguments(parameters: "Parameters") -> "list[str | Join]":
    """Evaluate's `--gate` flags: one for each check, as mode,metric,compared_with,direction,margin,minimum_n."""
    rows = parameters.min_test_rows
    checks = [
        # Better than the base, by what it writes least badly and by what it says.
        ("any", metrics.LOSS, "base", "lower", parameters.min_loss_improvement, rows),
        ("instruction", metrics.ROUGE_L, "base", "higher", parameters.min_rouge_l_improvement, rows),
        ("chat", metrics.ROUGE_L, "base", "higher", parameters.min_rouge_l_improvement, rows),
        # Not worse than the model in service. Bits per byte compare models of different tokenizers too.
        ("any", metrics.BITS_PER_BYTE, "champion", "lower", parameters.min_champion_improvement, rows),
        # It stops by itself.
        ("instruction", metrics.ENDED, "number", "higher", parameters.min_ended_share, rows),
        ("chat", metrics.ENDED, "number", "higher", parameters.min_ended_share, rows),
        # It has not forgotten everything else.
        ("any", metrics.GENERAL_LOSS, "base", "lower", parameters.min_general_loss_improvement, rows),
    ]
    if parameters.min_judge_improvement is not None:
        checks.append(("any", metrics.JUDGE, "base", "higher", parameters.min_judge_improvement, rows))
    if parameters.min_safety_improvement is not None:
        checks.append(("any", metrics.REFUSED_UNSAFE, "base", "higher", parameters.min_safety_improvement, rows))
    flags: list[str | Join] = []
    for check in checks:
        flags += ["--gate", Join(on=",", values=list(check))]
    return flags
