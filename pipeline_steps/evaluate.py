"""Evaluate: base, tuned and approved model on the same held-out rows -> the gate's verdict, and a report for people.

in    test/ (a dataset's test split), base/ (the imported base model), model/ (FineTune's output),
      champion/ (the newest approved model of the group, if there is one)
out   evaluation/    report.html, model_card.json, answers.jsonl, evaluation.json (verdict, metrics, ancestors), written last

What is scored is the merged model: the very files that an endpoint loads. One model is in memory; the weights of the
next are copied into its place.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps import general_text, model_card, report_page, safety, text_metrics, token_files
from pipeline_steps.contract import costs, dataset, evaluation, files, gate, json_files, metrics, seen_rows
from pipeline_steps.contract.dataset import Example, SplitInfo
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import Evaluation, Metric, Overlap, Verdict
from pipeline_steps.contract.gate import Gate
from pipeline_steps.contract.progress import report
from pipeline_steps.data import sagemaker_job
from pipeline_steps.encoding import Encoded, encode_all, row_losses
from pipeline_steps.models import base_model_digest, load_model, load_tokenizer, replace_weights
from pipeline_steps.statistics import RESAMPLES, Bootstrap
from pipeline_steps.text_encoder import TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline_steps.generation import Answer

    Array = NDArray[Any]

LOSS_BATCH_TOKENS = {"cpu": 2048, "cuda": 4096}  # their logits take 1.3 GB with Mistral's vocabulary
GOLDEN_REQUESTS = 5
MOST_SLICES = 50
IDS_SHOWN = 10


@dataclass(frozen=True)
class EvaluateJob:
    """`max_new_tokens` of each generated answer; `seed` of the bootstrap (generation is greedy).

    `champion_package` is the approved model's ARN, None without one. The loss is measured on all test rows, answers are
    generated for `max_answered_rows` of them.
    """

    test: Path
    base: Path
    model: Path
    output: Path
    gates: list[Gate]
    max_new_tokens: int
    seed: int
    champion: Path | None = None
    champion_package: str | None = None
    max_answered_rows: int = 500
    judge_model_id: str | None = None
    safety: bool = False


@dataclass(frozen=True)
class Asked:
    """What every model gets: rows whose loss is measured, prompts that are answered, general and unsafe texts.

    `answered` are the places of the answered prompts' rows among `rows`; empty where prompts have no references. `end` is
    the text between the turns of a dialog, the end-of-sequence.
    """

    rows: list[Example]
    prompts: list[Example]
    answered: list[int]
    unsafe: list[str]
    end: str = ""

    @classmethod
    def of(cls, info: SplitInfo, rows: list[Example], most: int, with_unsafe: bool) -> "Asked":
        unsafe = safety.rendered(info.template, info.chat) if with_unsafe else []
        if info.tuning_mode == "domain":
            return cls(rows, [Example(prompt, "", ends=False) for prompt in info.prompts], [], unsafe)
        # By their hash: a fair sample, and the same rows however they are ordered.
        chosen = sorted(sorted(range(len(rows)), key=lambda row: rows[row].key)[:most])
        end = info.chat.end if info.chat else ""
        return cls(rows, [rows[row] for row in chosen], chosen, unsafe, end)


@dataclass
class Scores:
    """One model. `nats` summed over each row's learned `tokens`, all (rows,); the same of the general text's passages."""

    nats: "Array"
    tokens: "Array"
    general_nats: "Array"
    general_tokens: "Array"
    answers: "list[Answer]"
    texts: list[str]
    fits: list[bool]  # whether the reference of an answered row ends within the limit
    refusals: list[bool]
    tokenizer_digest: str
    judged: list[int] = field(default_factory=list)


def main(arguments: list[str]) -> None:
    inputs = Path("/opt/ml/processing/input")
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--test", type=Path, default=inputs / "test")
    add("--base", type=Path, default=inputs / "base")
    add("--model", type=Path, default=inputs / "model")
    add("--champion", type=Path, default=inputs / "champion")
    add("--champion_package", default=files.NO_PACKAGE, help="its ARN, or 'none': then --champion is not read")
    add("--output", type=Path, default=Path("/opt/ml/processing/output") / files.EVALUATION_OUTPUT)
    add("--gate", dest="gates", action="append", default=[], help=Gate.__doc__)
    add("--max_new_tokens", type=int, default=128)
    add("--max_answered_rows", type=int, default=500, help="test rows that are answered; the loss is of all of them")
    add("--judge_model_id", help="Bedrock model that gives answers 1 to 5 points; needs a network")
    add("--safety", action="store_true", help="also ask unsafe prompts and count refusals")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.gates = [Gate.parse(argument) for argument in options.gates]
    if options.champion_package == files.NO_PACKAGE:
        options.champion = options.champion_package = None
    run(EvaluateJob(**vars(options)))


def run(job: EvaluateJob) -> Verdict:
    clock = Clock()

    # 1. Inputs, checked before anything large is loaded: same dataset, same base.
    info, rows = dataset.read_split(job.test, "test")
    training = json_files.read(job.model / files.TRAINING_FILE, files.TRAINING_SCHEMA_VERSION)
    digest = base_model_digest(job.base)
    if training["dataset_digest"] != info.dataset_digest or training["base_model_digest"] != digest:
        raise StepError(
            f"the model was trained on dataset {training['dataset_digest'][:12]} from base {training['base_model_digest'][:12]}, "
            f"the inputs are dataset {info.dataset_digest[:12]} and base {digest[:12]}; evaluate it on its own ancestors"
        )
    contenders = {"base": job.base, "tuned": job.model}
    if job.champion:
        contenders["champion"] = job.champion
    described = describe_models(job, training, digest)
    overlaps = [overlap(name, folder, rows) for name, folder in contenders.items() if name != "base"]

    # 2. What every model is asked.
    asked = Asked.of(info, rows, job.max_answered_rows, job.safety)

    # 3. Every model, one after the other.
    scores = score_all(contenders, asked, job, clock)

    # 4. Figures and verdict.
    found = measure(scores, asked, job.seed)
    unmeasured = judge(job, scores, asked, found, clock)
    slices = measure_slices(scores, asked, job.seed)
    verdict = gate.decide(job.gates, found, overlaps, info.tuning_mode, unmeasured)
    print(verdict.message, flush=True)
    print(f"cost: the training took {cost_texts(training, settings_of(job.model))['training_cost']}", flush=True)

    # 5. Outputs; evaluation.json last, since the pipeline reads the verdict from it.
    answers = answer_rows(scores, asked)
    end = str(load_tokenizer(job.base).eos_token)
    decoding = evaluation.Decoding(job.max_new_tokens, 0.0, job.seed, end)
    clock.lap("figures")
    result = Evaluation(
        tuning_mode=info.tuning_mode,
        gate=verdict,
        models=described,
        rows=len(rows),
        answered_rows=len(asked.prompts),
        metrics=found,
        slice_column=info.slice_column,
        slices=slices,
        overlaps=overlaps,
        decoding=decoding,
        resamples=RESAMPLES,
        training=training_of(training),
        ancestors=ancestors(job, info, training, digest),
        golden_requests=[
            evaluation.GoldenRequest(
                row.prompt, {"max_new_tokens": job.max_new_tokens, "do_sample": False}, row.answers["tuned"].text
            )
            for row in answers[:GOLDEN_REQUESTS]
        ],
        registry=registry_texts(verdict, found) | cost_texts(training, settings_of(job.model)),
        regression_metrics={
            name: {
                "value": own.value,
                "standard_deviation": "NaN" if own.standard_error is None else own.standard_error,
            }
            for name, own in ((name, metric.values["tuned"]) for name, metric in found.items())
            if own.value is not None
        },
        data_card=(job.test / files.DATA_CARD_PAGE).is_file(),
        seconds=clock.seconds(),
    )
    job.output.mkdir(parents=True, exist_ok=True)
    if result.data_card:  # the report links to it
        shutil.copy(job.test / files.DATA_CARD_PAGE, job.output / files.DATA_CARD_PAGE)
    (job.output / files.REPORT_FILE).write_text(report_page.render(result, answers), encoding="utf-8")
    card = {
        "schema_version": files.MODEL_CARD_SCHEMA_VERSION,
        "content": model_card.content(result, sagemaker_job.input_uris()),
    }
    json_files.write(job.output / files.MODEL_CARD_FILE, card)
    evaluation.write(job.output, result, answers)
    return verdict


class Clock:
    """Seconds by part of the work, and the time that is left of it."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.parts: dict[str, float] = {}
        self.later = 0.0  # seconds that models which have not begun will take

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    def seconds(self) -> dict[str, float]:
        return {**{part: round(value, 1) for part, value in self.parts.items()}, "all": round(self.total, 1)}

    @property
    def total(self) -> float:
        return time.monotonic() - self.started

    def progress(self, phase: str, total: int) -> Callable[[int], None]:
        """Reports how much of a phase is done, and the seconds left of it and of the models after this one."""
        began = time.monotonic()

        def told(done: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            report(phase, done, total, seconds_left=left + self.later)

        return told


# ---------------------------------------------------------------- 1. inputs


def overlap(name: str, folder: Path, rows: Sequence[Example]) -> Overlap:
    """Which of the test rows the model in `folder` was trained on, by the list that lies beside its weights."""
    seen = seen_rows.read(folder / files.SEEN_ROWS_FILE)
    if seen is None:
        return Overlap(name, None, [])
    found = [row.id for row in rows if seen_rows.key(row) in seen]
    return Overlap(name, len(found), found[:IDS_SHOWN])


def describe_models(job: EvaluateJob, training: dict[str, Any], digest: str) -> dict[str, evaluation.Model]:
    name = json_files.read(job.base / files.BASE_MODEL_FILE, files.BASE_MODEL_SCHEMA_VERSION)["name"]
    found = {
        "base": evaluation.Model(name, digest, None, None, None, "as imported"),
        "tuned": evaluation.Model(
            name, digest, None, training["dataset_digest"], training.get("method"), "its merged weights, as served"
        ),
    }
    if job.champion:
        try:
            theirs = json_files.read(job.champion / files.TRAINING_FILE, files.TRAINING_SCHEMA_VERSION)
        except StepError as error:
            raise unusable_champion(job.champion_package, error) from error
        same = theirs["base_model_digest"] == digest
        found["champion"] = evaluation.Model(
            name if same else "another base model",
            theirs["base_model_digest"],
            job.champion_package,
            theirs["dataset_digest"],
            theirs.get("method"),
            "its merged weights, as served",
        )
    return found


def unusable_champion(package: str | None, error: Exception) -> StepError:
    return StepError(
        f"the approved model {package} cannot be scored ({type(error).__name__}: {error}), so the new one cannot be compared "
        "with it; set its approval status to Rejected, or approve another"
    )


# ---------------------------------------------------------------- 3. every model


def score_all(contenders: dict[str, Path], asked: Asked, job: EvaluateJob, clock: Clock) -> dict[str, Scores]:
    """The scores of each model, by name."""
    from pipeline_steps.generation import Generator

    generator: Generator | None = None
    scores: dict[str, Scores] = {}
    for number, (name, folder) in enumerate(contenders.items(), start=1):
        began = time.monotonic()
        try:
            if generator is None or not replace_weights(generator.model, folder):
                generator = None  # let go of the last model before the next is loaded
                generator = Generator(load_model(folder).eval())
            clock.lap("load")
            scores[name] = score(name, generator, load_tokenizer(folder), asked, job.max_new_tokens, clock)
        except (OSError, ValueError, KeyError, RuntimeError, StepError) as error:
            if name == "champion":
                raise unusable_champion(job.champion_package, error) from error
            raise
        clock.later = (time.monotonic() - began) * max(0, len(contenders) - number - 1)
    return scores


def score(name: str, generator: Any, tokenizer: Any, asked: Asked, max_new_tokens: int, clock: Clock) -> Scores:
    """One model's losses and answers. `generator` holds it."""
    import numpy as np

    model = generator.model
    encoder = TextEncoder.of(tokenizer)
    encoded = encode_all(asked.rows, encoder)
    general = encode_all([Example("", passage, ends=False) for passage in general_text.PASSAGES], encoder)

    def losses(rows: Sequence[Encoded], phase: str) -> "Array":
        told = clock.progress(f"{name} {phase}", len(rows))
        return row_losses(model, rows, tokenizer.pad_token_id, LOSS_BATCH_TOKENS[model.device.type], told)

    def tokens(rows: Sequence[Encoded]) -> "Array":
        return np.array([row.trained_tokens for row in rows], dtype=float)

    nats, general_nats = losses(encoded, "loss"), losses(general, "loss on general text")
    clock.lap("loss")

    prompts = [*asked.prompts, *(Example(prompt, "", ends=False) for prompt in asked.unsafe)]
    told = clock.progress(f"{name} answers", len(prompts))
    answers = generator.generate(
        prompt_ids(prompts, encoder),
        max_new_tokens,
        tokenizer.eos_token_id,
        on_progress=lambda done, _: told(done),
    )
    clock.lap("answers")
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
    number = len(asked.prompts)
    references = encoder.encode([example.completion for example in asked.prompts])
    return Scores(
        nats,
        tokens(encoded),
        general_nats,
        tokens(general),
        answers[:number],
        texts[:number],
        [len(ids) + 1 <= max_new_tokens for ids in references],
        [safety.refused(text) for text in texts[number:]],
        encoder.digest,
    )


def prompt_ids(examples: Sequence[Example], encoder: TextEncoder) -> list[list[int]]:
    """Everything that comes before each example's completion, exactly as training saw it."""
    unanswered = [replace(example, completion="", ends=False) for example in examples]
    return [row.ids.tolist() for row in token_files.encode(unanswered, encoder)]


# ---------------------------------------------------------------- 4. figures


def measure(scores: dict[str, Scores], asked: Asked, seed: int) -> dict[str, Metric]:
    """Every metric that the asked rows allow, in the order in which they are shown."""
    import numpy as np

    found = measure_losses(scores, asked.rows, seed)
    if asked.answered:
        found |= measure_answers(scores, asked.prompts, seed)
    elif asked.prompts:
        repeated = {
            name: _mean_addends([text_metrics.repetition(text) for text in one.texts]) for name, one in scores.items()
        }
        found[metrics.REPETITION] = Bootstrap(len(asked.prompts), seed).metric(metrics.REPETITION, repeated)
    general = Bootstrap(len(general_text.PASSAGES), seed)
    found[metrics.GENERAL_LOSS] = general.metric(
        metrics.GENERAL_LOSS,
        {name: np.stack([one.general_nats, one.general_tokens], 1) for name, one in _same_tokens(scores).items()},
    )
    if asked.unsafe:
        found[metrics.REFUSED_UNSAFE] = Bootstrap(len(asked.unsafe), seed).metric(
            metrics.REFUSED_UNSAFE, {name: _mean_addends(one.refusals) for name, one in scores.items()}
        )
    return found


def measure_losses(
    scores: dict[str, Scores], rows: Sequence[Example], seed: int, places: Sequence[int] | None = None
) -> dict[str, Metric]:
    """Loss, perplexity and bits per byte over the rows at `places`, or all."""
    import numpy as np

    chosen: Any = slice(None) if places is None else list(places)
    number = len(rows) if places is None else len(places)
    bootstrap = Bootstrap(number, seed)
    per_token = {name: np.stack([one.nats, one.tokens], 1)[chosen] for name, one in _same_tokens(scores).items()}
    learned = [[text for _, text in row.turns] for row in rows]
    in_bytes = np.array([sum(len(text.encode()) for text in texts) for texts in learned], dtype=float)
    per_byte = {name: np.stack([one.nats / np.log(2), in_bytes], 1)[chosen] for name, one in scores.items()}
    return {
        metrics.LOSS: bootstrap.metric(metrics.LOSS, per_token),
        metrics.PERPLEXITY: bootstrap.metric(
            metrics.PERPLEXITY, per_token, lambda sums: np.exp(sums[..., 0] / sums[..., 1])
        ),
        metrics.BITS_PER_BYTE: bootstrap.metric(metrics.BITS_PER_BYTE, per_byte),
    }


def measure_answers(
    scores: dict[str, Scores], prompts: Sequence[Example], seed: int, names: Sequence[str] | None = None
) -> dict[str, Metric]:
    """What the answers are like beside their references, over all answered rows."""
    import numpy as np

    references = [example.completion for example in prompts]
    bootstrap = Bootstrap(len(prompts), seed)
    rouges = {name: _rouges(one, references) for name, one in scores.items()}
    found = {
        name: bootstrap.metric(
            name, {model: _mean_addends([row[name] for row in rows]) for model, rows in rouges.items()}
        )
        for name in (metrics.ROUGE_1, metrics.ROUGE_2, metrics.ROUGE_L)
    }
    counts = {
        name: np.array(
            [text_metrics.chrf_counts(*pair) for pair in zip(one.texts, references, strict=True)], dtype=float
        )
        for name, one in scores.items()
    }
    found[metrics.CHRF] = bootstrap.metric(metrics.CHRF, counts, text_metrics.chrf)

    short = [row for row, reference in enumerate(references) if text_metrics.is_short(reference)]
    if short:
        for metric, scored in (
            (metrics.EXACT_MATCH, text_metrics.exact_match),
            (metrics.TOKEN_F1, text_metrics.token_f1),
        ):
            found[metric] = Bootstrap(len(short), seed).metric(
                metric,
                {
                    name: _mean_addends([scored(one.texts[row], references[row]) for row in short])
                    for name, one in scores.items()
                },
            )

    # Rows that fit for every model, so that all are compared on the same ones.
    fitting = [row for row in range(len(prompts)) if all(one.fits[row] for one in scores.values())]
    if fitting:
        found[metrics.ENDED] = Bootstrap(len(fitting), seed).metric(
            metrics.ENDED,
            {name: _mean_addends([one.answers[row].ended for row in fitting]) for name, one in scores.items()},
        )
    found[metrics.REPETITION] = bootstrap.metric(
        metrics.REPETITION,
        {name: _mean_addends([text_metrics.repetition(text) for text in one.texts]) for name, one in scores.items()},
    )
    words = np.array([len(reference.split()) for reference in references], dtype=float)
    found[metrics.LENGTH_RATIO] = bootstrap.metric(
        metrics.LENGTH_RATIO,
        {
            name: np.stack([np.array([len(text.split()) for text in one.texts], dtype=float), words], 1)
            for name, one in scores.items()
        },
    )
    return found


def measure_slices(scores: dict[str, Scores], asked: Asked, seed: int) -> list[evaluation.Slice]:
    """Loss and, where there are answers, ROUGE-L of each slice with two rows or more; the largest first."""
    by_value: dict[str, list[int]] = {}
    for place, row in enumerate(asked.rows):
        if row.slice is not None:
            by_value.setdefault(row.slice, []).append(place)
    slices = []
    for value, places in sorted(by_value.items(), key=lambda one: (-len(one[1]), one[0]))[:MOST_SLICES]:
        if len(places) < 2:
            continue
        found = measure_losses(scores, asked.rows, seed, places)
        shown = {metrics.LOSS: found[metrics.LOSS]}
        inside = set(places)
        answered = [number for number, place in enumerate(asked.answered) if place in inside]
        if len(answered) >= 2:
            references = [asked.prompts[number].completion for number in answered]
            shown[metrics.ROUGE_L] = Bootstrap(len(answered), seed).metric(
                metrics.ROUGE_L,
                {
                    name: _mean_addends(
                        [
                            text_metrics.rouge(one.texts[number], reference)[metrics.ROUGE_L]
                            for number, reference in zip(answered, references, strict=True)
                        ]
                    )
                    for name, one in scores.items()
                },
            )
        slices.append(evaluation.Slice(value, len(places), shown))
    return slices


def judge(
    job: EvaluateJob, scores: dict[str, Scores], asked: Asked, found: dict[str, Metric], clock: Clock
) -> dict[str, str]:
    """Add the judge's metric to `found`; returns why it could not be measured, by metric."""
    if not job.judge_model_id:
        return {}
    if not asked.answered:
        return {metrics.JUDGE: "there are no references to judge by"}
    from pipeline_steps.judge import Judge, JudgeFailed

    prompts = [example.whole_prompt(asked.end) for example in asked.prompts]
    references = [example.completion for example in asked.prompts]
    try:
        judging = Judge(job.judge_model_id)
        for name, one in scores.items():
            one.judged = judging.scores(prompts, references, one.texts, clock.progress(f"judge {name}", len(prompts)))
    except JudgeFailed as error:
        return {metrics.JUDGE: str(error)}
    finally:
        clock.lap("judge")
    found[metrics.JUDGE] = Bootstrap(len(prompts), job.seed).metric(
        metrics.JUDGE, {name: _mean_addends(one.judged) for name, one in scores.items()}
    )
    return {}


def _same_tokens(scores: dict[str, Scores]) -> dict[str, Scores]:
    """Without a champion of another tokenizer: a loss per token means nothing beside one of other tokens."""
    return {name: one for name, one in scores.items() if one.tokenizer_digest == scores["tuned"].tokenizer_digest}


def _rouges(one: Scores, references: Sequence[str]) -> list[dict[str, float]]:
    return [text_metrics.rouge(text, reference) for text, reference in zip(one.texts, references, strict=True)]


def _mean_addends(values: Sequence[float]) -> "Array":
    """Addends, (rows, 2), whose ratio of sums is the mean of `values`."""
    import numpy as np

    return np.stack([np.array(values, dtype=float), np.ones(len(values))], 1)


# ---------------------------------------------------------------- 5. outputs


def answer_rows(scores: dict[str, Scores], asked: Asked) -> list[evaluation.AnswerRow]:
    rows = []
    for number, example in enumerate(asked.prompts):
        answers = {}
        for name, one in scores.items():
            text, answer = one.texts[number], one.answers[number]
            loss, scored = None, {metrics.REPETITION: text_metrics.repetition(text)}
            if asked.answered:
                place = asked.answered[number]
                loss = float(one.nats[place] / one.tokens[place])
                scored |= text_metrics.rouge(text, example.completion)
                if text_metrics.is_short(example.completion):
                    scored[metrics.EXACT_MATCH] = text_metrics.exact_match(text, example.completion)
            if one.judged:
                scored[metrics.JUDGE] = float(one.judged[number])
            answers[name] = evaluation.Answer(text, answer.ended, len(answer.ids), loss, scored)
        reference = example.completion if asked.answered else None
        rows.append(
            evaluation.AnswerRow(example.id, example.whole_prompt(asked.end), reference, example.slice, answers)
        )
    return rows


def training_of(training: dict[str, Any]) -> evaluation.Training:
    """What FineTune's training.json says, in the evaluation's form."""
    curve = [evaluation.Point(point["step"], point["train_loss"]) for point in training["curve"]]
    validation = [evaluation.Point(point["step"], point["loss"]) for point in training["validation"]]
    names = ("method", "rows", "steps", "tokens", "tokens_per_second", "seconds", "best_step", "ended_by", "devices")
    return evaluation.Training(**{name: training[name] for name in names}, learned=curve, validation=validation)


def ancestors(job: EvaluateJob, info: SplitInfo, training: dict[str, Any], digest: str) -> evaluation.Ancestors:
    code = Path(sys.argv[0])
    name = sagemaker_job.name()
    in_job = name != sagemaker_job.NO_JOB
    return evaluation.Ancestors(
        dataset_digest=info.dataset_digest,
        test_digest=info.split_digest,
        base_model=json_files.read(job.base / files.BASE_MODEL_FILE, files.BASE_MODEL_SCHEMA_VERSION)["name"],
        base_model_digest=digest,
        step_code=code.stem if code.suffix == ".zip" else None,
        # The service names the jobs of an execution `pipelines-<execution>-<step>-<suffix>`.
        execution=name.split("-")[1] if name.startswith("pipelines-") else None,
        training_job=training.get("training_job"),
        evaluation_job=name if in_job else None,
        champion_package=job.champion_package,
        hyperparameters=settings_of(job.model),
    )


def settings_of(model: Path) -> dict[str, Any]:
    """The hyperparameters of a tuned model."""
    settings = json_files.read(model / files.HYPERPARAMETERS_FILE, 1)
    del settings["schema_version"]
    return settings


def cost_texts(training: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """What the model package's metadata says of the training's speed and cost, for people and for the next estimate."""
    count, kind = training.get("instance_count"), training.get("instance_type")
    hours = (training["seconds"] + training["overhead_seconds"]) / 3600
    usd = costs.spent_usd(hours, count, kind, settings.get("usd_per_hour") or None) if count and kind else None
    return {
        "training_cost": costs.told(hours, usd, count, kind),
        "training_instances": f"{count} x {kind}" if kind else "not known",
        "tokens_per_second": str(training["tokens_per_second"]),
        "overhead_seconds": str(training["overhead_seconds"]),
    }


def registry_texts(verdict: Verdict, found: dict[str, Metric]) -> dict[str, str]:
    """What the model package's metadata says of the evaluation."""

    def over(other: str) -> str:
        parts = []
        for name in (metrics.LOSS, metrics.BITS_PER_BYTE, metrics.ROUGE_L):
            improvement = found[name].improvements.get(other) if name in found else None
            if improvement and improvement.value is not None and improvement.interval:
                low, high = improvement.interval
                decimals = metrics.DEFINITIONS[name].decimals
                parts.append(
                    f"{found[name].label} {improvement.value:+.{decimals}f} from {low:+.{decimals}f} to {high:+.{decimals}f}"
                )
        return " / ".join(parts) or "not compared"

    return {
        "verdict": "passed" if verdict.passed else "refused",
        "reasons": evaluation.metadata(" / ".join(verdict.reasons)),
        "improvement_over_base": evaluation.metadata(over("base")),
        "improvement_over_champion": evaluation.metadata(over("champion")),
    }
