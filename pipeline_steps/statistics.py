"""Figures of an evaluation from per-row results: token-weighted means, paired bootstrap intervals, ROUGE-L."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline_steps.contract.metrics import LOSS, PERPLEXITY, ROUGE_L, Comparison

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

RESAMPLES = 2000


def compare(
    metric: str,
    base: "Array",
    tuned: "Array",
    weights: "Array",
    seed: int,
    *,
    direction: int,
    transform: Callable[[Any], Any] = lambda mean: mean,
) -> Comparison:
    """Weighted means of per-row sums, and the improvement's paired-bootstrap interval.

    `base`, `tuned`, `weights`: (rows,). A mean is sum(values) / sum(weights), divided once, then `transform`ed.
    `direction` is +1 where higher is better. Rows are resampled together for both models, RESAMPLES times.
    """
    import numpy as np

    def mean(values: "Array", rows: Any = slice(None)) -> Any:
        return transform(values[rows].sum(axis=-1) / weights[rows].sum(axis=-1))

    resampled = np.random.default_rng(seed).integers(0, len(weights), size=(RESAMPLES, len(weights)))
    differences = direction * (mean(tuned, resampled) - mean(base, resampled))
    low, high = np.quantile(differences, [0.025, 0.975])
    of_base, of_tuned = float(mean(base)), float(mean(tuned))
    return Comparison(
        metric, of_base, of_tuned, direction * (of_tuned - of_base), (float(low), float(high)), len(weights)
    )


def compare_losses(base_nats: "Array", tuned_nats: "Array", tokens: "Array", seed: int) -> list[Comparison]:
    """Loss (nats per token) and perplexity, from each row's summed nats and its trained tokens, all (rows,)."""
    import numpy as np

    return [
        compare(LOSS, base_nats, tuned_nats, tokens, seed, direction=-1),
        # A hopeless model's perplexity overflows; infinity is told as such and refused by the gate.
        compare(PERPLEXITY, base_nats, tuned_nats, tokens, seed, direction=-1, transform=np.exp),
    ]


def compare_rouge_l(references: Sequence[str], base: Sequence[str], tuned: Sequence[str], seed: int) -> Comparison:
    """Mean ROUGE-L F1 over the rows."""
    import numpy as np

    def scores(answers: Sequence[str]) -> "Array":
        return np.array([rouge_l(answer, reference) for answer, reference in zip(answers, references, strict=True)])

    return compare(ROUGE_L, scores(base), scores(tuned), np.ones(len(references)), seed, direction=1)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 of one answer, 0..1: the longest common subsequence of words, as Google's rouge-score computes it
    without a stemmer (held by a test against that package)."""
    ours, theirs = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, reference))
    if not ours or not theirs:
        return 0.0
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for column, other in enumerate(theirs, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    common = row[-1]
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
