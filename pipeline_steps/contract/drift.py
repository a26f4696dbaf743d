"""What Monitor measures of an endpoint's traffic: names, limits, and when traffic has drifted from what evaluation saw."""

from dataclasses import dataclass

# Where CloudWatch keeps the figures; the dimension's value is the deployment's name.
NAMESPACE = "FineTuning/Traffic"
DIMENSION = "Deployment"

REQUESTS = "Requests"  # that were looked at
ANSWER_WORDS = "AnswerWords"  # mean
REFUSED = "RefusedShare"  # of the answers
REPETITION = "Repetition"  # mean share of repeated word 4-grams
UNENDED = "UnendedShare"  # of the answers that tell: as long as they were allowed to be
SIMILARITY = "PromptSimilarity"  # mean cosine of a prompt with the nearest one of the training set
DRIFTED = "Drifted"  # figures beyond their limits

Figures = dict[str, float | None]  # by name; None where there is nothing to measure it on


@dataclass(frozen=True)
class Limits:
    """How far the traffic's figures may be from those at evaluation; named as the settings of monitoring.

    An increase is of a share, 0..1. The similarity's decrease is a part of its value at evaluation, which differs much
    from one dataset to another.
    """

    max_length_ratio: float
    max_refused_increase: float
    max_repetition_increase: float
    max_unended_increase: float
    max_similarity_decrease: float


def beyond(traffic: Figures, evaluated: Figures, limits: Limits) -> list[str]:
    """A sentence for each figure that is beyond its limit. One that is missing on either side is not compared."""
    reasons = []
    for name, what, limit in (
        (REFUSED, "share of answers that refuse", limits.max_refused_increase),
        (REPETITION, "share of repeated words", limits.max_repetition_increase),
        (UNENDED, "share of answers that do not end", limits.max_unended_increase),
    ):
        now, then = traffic.get(name), evaluated.get(name)
        if now is not None and then is not None and now - then > limit:
            reasons.append(f"{what} {now:.2f}, {then:.2f} at evaluation (+{limit:g} is allowed)")
    now, then = traffic.get(SIMILARITY), evaluated.get(SIMILARITY)
    if now is not None and then is not None and then - now > limits.max_similarity_decrease * then:
        allowed = f"{limits.max_similarity_decrease:.0%} less is allowed"
        reasons.append(f"similarity of prompts to the training set {now:.2f}, {then:.2f} at evaluation ({allowed})")
    now, then = traffic.get(ANSWER_WORDS), evaluated.get(ANSWER_WORDS)
    if now is not None and then is not None and max(now, 1.0) / max(then, 1.0) > limits.max_length_ratio:
        reasons.append(
            f"answers of {now:.0f} words, {then:.0f} at evaluation (x{limits.max_length_ratio:g} is allowed)"
        )
    if now is not None and then is not None and max(then, 1.0) / max(now, 1.0) > limits.max_length_ratio:
        reasons.append(
            f"answers of {now:.0f} words, {then:.0f} at evaluation (/{limits.max_length_ratio:g} is allowed)"
        )
    return reasons
