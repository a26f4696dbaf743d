"""The gate, declared: a tuned model is registered only if every check below holds on the held-out rows.

A check holds when the low end of the 95 % interval of the improvement is above the margin and rests on enough rows;
whatever is missing, NaN or too small is a refusal (pipeline_steps/contract/gate.py decides, inside Evaluate).
Margins are run-time parameters of the pipeline.
"""

from typing import TYPE_CHECKING

from sagemaker.core.workflow.functions import Join

from pipeline_steps.contract.metrics import LOSS, ROUGE_L

if TYPE_CHECKING:
    from pipeline.definition import Parameters


def arguments(parameters: "Parameters") -> "list[str | Join]":
    """Evaluate's `--gate` flags: one for each check, as mode,metric,compared_with,direction,margin,minimum_n."""
    checks = [
        ("any", LOSS, "base", "lower", parameters.min_loss_improvement),
        ("instruction", ROUGE_L, "base", "higher", parameters.min_rouge_l_improvement),
        ("chat", ROUGE_L, "base", "higher", parameters.min_rouge_l_improvement),
    ]
    flags: list[str | Join] = []
    for mode, metric, compared_with, direction, margin in checks:
        flags += [
            "--gate",
            Join(on=",", values=[mode, metric, compared_with, direction, margin, parameters.min_test_rows]),
        ]
    return flags
