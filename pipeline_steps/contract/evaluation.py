"""evaluation.json and answers.jsonl: what Evaluate found, for whoever decides, reports, registers, tells or releases.

evaluation.json holds verdict, figures and ancestors, and stays small: the pipeline service reads it as a property file.
answers.jsonl holds one line for each row or prompt that was answered. Both are written by `write` and read by `read`.

A number that is not finite (an overflown perplexity, a mean over no rows) is None here and null on disk.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.dataset import Mode
from pipeline_steps.contract.errors import StepError

SCHEMA_VERSION = 2
ANSWERS_SCHEMA_VERSION = 1
MODELS = ("base", "tuned", "champion")  # in the order in which they are shown; the champion may be missing
Direction = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Value:
    """A metric of one model. `interval` is the 95 % bootstrap interval over rows, `standard_error` its deviation."""

    value: float | None
    interval: tuple[float, float] | None
    standard_error: float | None


@dataclass(frozen=True)
class Improvement:
    """How much better the tuned model is than another one on the same rows: positive is better, whichever way the metric points.

    `interval` is the 95 % paired-bootstrap interval: rows are drawn together for both models.
    For a metric of which neither direction is better it is the plain difference, tuned minus the other.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Metric:
    """One metric of every model on the same rows. `formula` is told to people; `n` is the number of rows it rests on.

    `values` is by model (base, tuned, champion), `improvements` of the tuned model over base and champion. A model
    that the metric cannot compare (a loss per token under another tokenizer) is missing from both.
    """

    name: str
    label: str
    unit: str
    direction: Direction
    formula: str
    n: int
    values: dict[str, Value]
    improvements: dict[str, Improvement]


@dataclass(frozen=True)
class Slice:
    """The metrics of the rows that have `value` in the dataset's slice column."""

    value: str
    rows: int
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Check:
    """One check of the gate, what was measured, and the sentence that says so.

    `compared_with` is base, champion or number. The low end of the interval (of the improvement, or of the tuned
    model's own value where it is compared with a number) must be above `margin`; where lower is better and it is
    compared with a number, the high end below it. `skipped`: the check does not apply to this evaluation (there is no
    champion), and neither passes nor fails.
    """

    mode: str
    metric: str
    compared_with: str
    direction: str
    margin: float
    minimum_n: int
    passed: bool
    skipped: bool
    reason: str
    n: int | None
    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Verdict:
    """`reasons`: of the checks that failed, else of all. `message`: all of it in one line, for the Fail step and notifications."""

    passed: bool
    reasons: list[str]
    message: str
    checks: list[Check]


@dataclass(frozen=True)
class Model:
    """One of the compared models. `digest` is of the imported base that it is or comes from.

    `package`: its model package's ARN, if it is registered. `dataset_digest` and `method` (lora, qlora, full) are of
    its training. `how`: how it was loaded, told to people.
    """

    name: str
    digest: str
    package: str | None
    dataset_digest: str | None
    method: str | None
    how: str


@dataclass(frozen=True)
class Overlap:
    """Test rows that a model has learned from, or that its training was steered by (validation).

    `rows` is None where the model does not say what it has seen; `examples` are ids of test rows, at most ten.
    """

    model: str
    rows: int | None
    examples: list[str]


@dataclass(frozen=True)
class Point:
    """A loss after an optimizer step, in nats per learned token; step 0 is the base model."""

    step: int
    loss: float | None


@dataclass(frozen=True)
class Training:
    """How the tuned model came about. `learned` and `validation` are its loss curves."""

    method: str
    rows: int
    steps: int
    tokens: int
    tokens_per_second: float
    seconds: float
    best_step: int
    ended_by: str
    devices: int
    learned: list[Point]
    validation: list[Point]


@dataclass(frozen=True)
class Ancestors:
    """What the tuned model and this evaluation come from. Digests are SHA-256; None where it ran outside of a job.

    `step_code` is the digest of the step code's zip, `execution` the pipeline execution's id.
    """

    dataset_digest: str
    test_digest: str
    base_model: str
    base_model_digest: str
    step_code: str | None
    execution: str | None
    training_job: str | None
    evaluation_job: str | None
    champion_package: str | None
    hyperparameters: dict[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How answers were generated. `temperature` 0 is greedy; `max_new_tokens` is what was allowed for one answer."""

    max_new_tokens: int
    temperature: float
    seed: int
    stop: str  # the end-of-sequence token


@dataclass(frozen=True)
class GoldenRequest:
    """A request to the endpoint and what the tuned model answered here, so that a release can ask again."""

    inputs: str
    parameters: dict[str, Any]
    generated_text: str


@dataclass(frozen=True)
class Evaluation:
    """The content of evaluation.json.

    `metrics` and each slice's are by name, in the order in which they are shown. `slice_column` is None where the
    dataset declares none. `rows` is the number of test rows, `answered_rows` of those with a generated answer.
    `regression_metrics` repeats the tuned model's figures in the form of SageMaker's model metrics, which Studio shows.
    `registry` holds short texts for a model package's metadata, each as `metadata` makes them.
    `seconds` is by part of the work.
    """

    tuning_mode: Mode
    gate: Verdict
    models: dict[str, Model]
    rows: int
    answered_rows: int
    metrics: dict[str, Metric]
    slice_column: str | None
    slices: list[Slice]
    overlaps: list[Overlap]
    decoding: Decoding
    resamples: int
    training: Training
    ancestors: Ancestors
    golden_requests: list[GoldenRequest]
    registry: dict[str, str]
    regression_metrics: dict[str, dict[str, float | str]]
    data_card: bool
    seconds: dict[str, float]

    @property
    def base_model_digest(self) -> str:
        return self.ancestors.base_model_digest


@dataclass(frozen=True)
class Answer:
    """One model's answer to a row. `ended`: it stopped by itself. `tokens`: how many it wrote.

    `loss` is of the reference, in nats per token; `scores` are the row's own ROUGE and the like, by metric.
    """

    text: str
    ended: bool
    tokens: int
    loss: float | None
    scores: dict[str, float]


@dataclass(frozen=True)
class AnswerRow:
    """A prompt, its reference (None for the before/after prompts of a domain dataset), and each model's answer."""

    id: str
    prompt: str
    reference: str | None
    slice: str | None
    answers: dict[str, Answer]


# ---------------------------------------------------------------- a model package's metadata

METADATA_CHARACTERS = 256
METADATA = re.compile(r"[^\w\s.:/=+\-@]", re.UNICODE)  # what the registry's metadata does not take


def metadata(text: str) -> str:
    """`text` as a model package's metadata can hold it: other signs become spaces, and it ends after 256 characters."""
    kept = " ".join(
        METADATA.sub(" ", text.replace("..", " to ").replace("->", " to ").replace("%", " percent")).split()
    )
    return kept[:METADATA_CHARACTERS].rstrip() or "-"


# ---------------------------------------------------------------- files


def write(folder: Path, evaluation: Evaluation, answers: Iterable[AnswerRow]) -> None:
    """Write answers.jsonl, then evaluation.json, which declares both complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / files.ANSWERS_FILE).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"schema_version": ANSWERS_SCHEMA_VERSION}) + "\n")
        file.writelines(json.dumps(_finite(asdict(row)), ensure_ascii=False) + "\n" for row in answers)
    content = {"schema_version": SCHEMA_VERSION, **_finite(asdict(evaluation))}
    json_files.write(folder / files.EVALUATION_FILE, content)


def read(folder: Path) -> Evaluation:
    """The evaluation in `folder`. Raises StepError if it is missing, of another schema version, or not of its form."""
    path = folder / files.EVALUATION_FILE
    content = json_files.read(path, SCHEMA_VERSION)
    del content["schema_version"]
    return _decode(Evaluation, content, str(path))  # type: ignore[no-any-return]


def read_answers(folder: Path) -> list[AnswerRow]:
    """The answers in `folder`. Raises StepError if they are missing, of another schema version, or not of their form."""
    path = folder / files.ANSWERS_FILE
    try:
        first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        header, rows = json.loads(first), [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise StepError(f"{path} is missing; the evaluation did not finish") from None
    except ValueError as error:
        raise StepError(f"{path} is not valid JSON lines: {error}") from error
    if not isinstance(header, dict) or header.get("schema_version") != ANSWERS_SCHEMA_VERSION:
        raise StepError(
            f"{path} does not begin with schema version {ANSWERS_SCHEMA_VERSION} ({first[:80]!r}); "
            "evaluate again with the present version"
        )
    return [_decode(AnswerRow, row, f"{path}:{number}") for number, row in enumerate(rows, start=2)]


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        found = [_finite(one) for one in value]
        # An interval with an end that is no number is no interval.
        return None if isinstance(value, tuple) and None in found else found
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type that a field declares. Raises StepError with the place of what does not fit."""
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        fitting = [one for one in arguments if one is not NoneType]
        if len(fitting) == 1:
            return _decode(fitting[0], value, where)
        if isinstance(value, tuple(fitting)):
            return value
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is dict:
        if isinstance(value, dict):
            return {key: _decode(arguments[1], one, f"{where}.{key}") for key, one in value.items()}
    elif origin is list:
        if isinstance(value, list):
            return [_decode(arguments[0], one, f"{where}[{place}]") for place, one in enumerate(value)]
    elif origin is tuple:
        if isinstance(value, list) and len(value) == len(arguments):
            return tuple(_decode(one, part, where) for one, part in zip(arguments, value, strict=True))
    elif is_dataclass(kind):
        if isinstance(value, dict):
            types = get_type_hints(kind)
            needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
            missing, unknown = needed - value.keys(), value.keys() - types.keys()
            if missing or unknown:
                raise StepError(
                    f"{where}: missing {sorted(missing)}, unknown {sorted(unknown)}; "
                    "evaluate again with the present version"
                )
            build: Any = kind
            return build(**{name: _decode(types[name], one, f"{where}.{name}") for name, one in value.items()})
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is kind:
        return value
    raise StepError(f"{where} is {value!r}, expected {kind}; evaluate again with the present version")
