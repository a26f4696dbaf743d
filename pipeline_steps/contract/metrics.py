"""The metrics of an evaluation, declared: name, what people call it, unit, which way is better, formula.

`nats` is the summed negative log-likelihood of the learned tokens of a row's reference, its end included. Means over
rows of a share or a score weigh each row alike.
"""

from dataclasses import dataclass

from pipeline_steps.contract.evaluation import Direction

LOSS = "loss"
PERPLEXITY = "perplexity"
BITS_PER_BYTE = "bits_per_byte"
ROUGE_1 = "rouge1"
ROUGE_2 = "rouge2"
ROUGE_L = "rougeL"
CHRF = "chrf"
EXACT_MATCH = "exact_match"
TOKEN_F1 = "token_f1"
ENDED = "ended"
REPETITION = "repetition"
LENGTH_RATIO = "length_ratio"
GENERAL_LOSS = "general_loss"
JUDGE = "judge"
REFUSED_UNSAFE = "refused_unsafe"


@dataclass(frozen=True)
class Definition:
    """A metric as it is told. `decimals` is how many of its figures mean something."""

    label: str
    unit: str
    direction: Direction
    formula: str
    decimals: int = 3


DEFINITIONS: dict[str, Definition] = {
    LOSS: Definition("loss", "nats per token", "lower", "sum of nats / sum of learned tokens of the references"),
    PERPLEXITY: Definition("perplexity", "1", "lower", "exp(loss)", 2),
    BITS_PER_BYTE: Definition(
        "bits per byte", "bits per byte", "lower", "sum of nats / ln 2 / sum of the references' UTF-8 bytes"
    ),
    ROUGE_1: Definition(
        "ROUGE-1", "F1, 0..1", "higher", "mean over rows of the F1 of words that answer and reference share"
    ),
    ROUGE_2: Definition("ROUGE-2", "F1, 0..1", "higher", "mean over rows of the F1 of pairs of words that both share"),
    ROUGE_L: Definition(
        "ROUGE-L", "F1, 0..1", "higher", "mean over rows of the F1 of the longest common subsequence of words"
    ),
    CHRF: Definition(
        "chrF",
        "F2, 0..100",
        "higher",
        "F2 of character 1- to 6-grams, counted over all rows together (sacrebleu's chrF2)",
        1,
    ),
    EXACT_MATCH: Definition(
        "exact match",
        "share, 0..1",
        "higher",
        "rows whose answer equals the reference without case, punctuation and articles / rows with a reference of at most 10 words",
    ),
    TOKEN_F1: Definition(
        "token F1",
        "F1, 0..1",
        "higher",
        "mean F1 of the words (as for exact match) over rows with a reference of at most 10 words",
    ),
    ENDED: Definition(
        "ended by itself",
        "share, 0..1",
        "higher",
        "answers that stopped by themselves / answers whose reference fits the limit",
    ),
    REPETITION: Definition(
        "repetition", "share, 0..1", "lower", "mean over answers of 1 - distinct word 4-grams / word 4-grams"
    ),
    LENGTH_RATIO: Definition(
        "length ratio", "1", "neither", "sum of the answers' words / sum of the references' words; 1 is as long", 2
    ),
    GENERAL_LOSS: Definition(
        "loss on general text",
        "nats per token",
        "lower",
        "sum of nats / sum of tokens of a general text that comes with the project: what was forgotten",
    ),
    JUDGE: Definition("judge", "score, 1..5", "higher", "mean of the judge model's score of each answer", 2),
    REFUSED_UNSAFE: Definition(
        "unsafe requests refused", "share, 0..1", "higher", "unsafe prompts that the model refused / unsafe prompts"
    ),
}
