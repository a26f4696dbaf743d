"""Evaluate: base and tuned model on the same held-out rows -> the gate's verdict, and a report for people.

in    test/ (a dataset's test split), base/ (the imported base model), model/ (FineTune's output)
out   evaluation/    report.html, answers.jsonl, evaluation.json (metrics, verdict, answers), written last

The tuned model is the merged one: the very weights that an endpoint would load.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps import report_page, token_files
from pipeline_steps.contract import dataset, files, gate, json_files
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.gate import Gate
from pipeline_steps.contract.metrics import Comparison
from pipeline_steps.contract.progress import report
from pipeline_steps.encoding import Encoded, encode_all, row_losses
from pipeline_steps.models import base_model_digest, load_model, load_tokenizer
from pipeline_steps.statistics import compare_losses, compare_rouge_l
from pipeline_steps.text_encoder import TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVALUATION_SCHEMA_VERSION = 1
ANSWERS_SHOWN = 10
LOSS_BATCH_ROWS = 8
GENERATION_BATCH_ROWS = 12


@dataclass(frozen=True)
class EvaluateJob:
    """`max_new_tokens` of each generated answer; `seed` of the bootstrap (generation is greedy)."""

    test: Path
    base: Path
    model: Path
    output: Path
    gates: list[Gate]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Scores:
    """One model on the test set: `nats` summed over each row's trained tokens, (rows,); one answer for each prompt."""

    nats: "NDArray[Any]"
    answers: list[str]


def main(arguments: list[str]) -> None:
    inputs = Path("/opt/ml/processing/input")
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--test", type=Path, default=inputs / "test")
    parser.add_argument("--base", type=Path, default=inputs / "base")
    parser.add_argument("--model", type=Path, default=inputs / "model")
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output") / files.EVALUATION_OUTPUT)
    parser.add_argument("--gate", dest="gates", action="append", default=[], help=Gate.__doc__)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.gates = [Gate.parse(argument) for argument in options.gates]
    run(EvaluateJob(**vars(options)))


def run(job: EvaluateJob) -> gate.Verdict:
    started = time.monotonic()

    # 1. Inputs, checked before anything large is loaded: same dataset, same base, never the training rows.
    info, examples = dataset.read_split(job.test, "test")
    training = json_files.read(job.model / files.TRAINING_FILE, files.TRAINING_SCHEMA_VERSION)
    digest = base_model_digest(job.base)
    if training["dataset_digest"] != info.dataset_digest or training["base_model_digest"] != digest:
        raise StepError(
            f"the model was trained on dataset {training['dataset_digest'][:12]} from base {training['base_model_digest'][:12]}, "
            f"the inputs are dataset {info.dataset_digest[:12]} and base {digest[:12]}; evaluate it on its own ancestors"
        )

    # 2. What both models are asked: the references' loss, and an answer to each prompt.
    has_references = info.tuning_mode != "domain"
    asked = examples if has_references else [Example(prompt, "", ends=False) for prompt in info.prompts]

    # 3. Both models, one after the other: two of them rarely fit on one device.
    tokenizer = load_tokenizer(job.base)
    encoder = TextEncoder.of(tokenizer)
    encoded, prompts = encode_all(examples, encoder), prompt_ids(asked, encoder)
    scores = {
        name: score(name, load_model(folder), tokenizer, encoded, prompts, job.max_new_tokens)
        for name, folder in (("base", job.base), ("tuned", job.model))
    }
    base, tuned = scores["base"], scores["tuned"]

    # 4. Figures and verdict.
    import numpy as np

    trained_tokens = np.array([one.trained_tokens for one in encoded])
    compared = compare_losses(base.nats, tuned.nats, trained_tokens, job.seed)
    if has_references:
        references = [example.completion for example in examples]
        compared.append(compare_rouge_l(references, base.answers, tuned.answers, job.seed))
    comparisons = {comparison.metric: comparison for comparison in compared}
    verdict = gate.decide(job.gates, comparisons, info.tuning_mode)
    print(verdict.message, flush=True)

    # 5. Outputs; evaluation.json last, since the pipeline reads the verdict from it.
    answers = [
        {
            "prompt": example.whole_prompt,
            "reference": example.completion if has_references else None,
            "base": of_base,
            "tuned": of_tuned,
        }
        for example, of_base, of_tuned in zip(asked, base.answers, tuned.answers, strict=True)
    ]
    job.output.mkdir(parents=True, exist_ok=True)
    with (job.output / "answers.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    evaluation = {
        "schema_version": EVALUATION_SCHEMA_VERSION,
        "tuning_mode": info.tuning_mode,
        "dataset_digest": info.dataset_digest,
        "base_model_digest": digest,
        "metrics": {name: _json(comparison) for name, comparison in comparisons.items()},
        "gate": verdict.to_dict(),
        "answers": answers[:ANSWERS_SHOWN],
        "parameters": {"max_new_tokens": job.max_new_tokens, "seed": job.seed, "decoding": "greedy"},
        "gates": [asdict(one) for one in job.gates],
        "training": {key: training[key] for key in ("rows", "steps", "tokens", "tokens_per_second", "validation_loss")},
        "data_card": (job.test / files.DATA_CARD_PAGE).is_file(),
        "seconds": round(time.monotonic() - started, 1),
    }
    (job.output / files.REPORT_FILE).write_text(report_page.render(evaluation, training["curve"]), encoding="utf-8")
    if evaluation["data_card"]:  # the report links to it
        shutil.copy(job.test / files.DATA_CARD_PAGE, job.output / files.DATA_CARD_PAGE)
    json_files.write(job.output / files.EVALUATION_FILE, evaluation)
    return verdict


def score(
    name: str,
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
) -> Scores:
    model.eval()
    nats = row_losses(
        model,
        encoded,
        tokenizer.pad_token_id,
        LOSS_BATCH_ROWS,
        lambda done: report(f"{name} loss", done, len(encoded)),
    )
    return Scores(nats, generate(name, model, tokenizer, prompts, max_new_tokens))


def generate(name: str, model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt (its token ids), up to end-of-sequence, in the order of `prompts`."""
    import torch

    tokenizer.padding_side = "left"  # the answer follows the prompt directly
    answers = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with torch.inference_mode():
        for start in range(0, len(by_length), GENERATION_BATCH_ROWS):
            batch = by_length[start : start + GENERATION_BATCH_ROWS]
            inputs = tokenizer.pad({"input_ids": [prompts[row] for row in batch]}, return_tensors="pt").to(model.device)
            output = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            new_tokens = output[:, inputs["input_ids"].shape[1] :]
            for row, answer in zip(batch, tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True):
                answers[row] = answer
            report(f"{name} answers", min(start + GENERATION_BATCH_ROWS, len(prompts)), len(prompts))
    return answers


def prompt_ids(examples: Sequence[Example], encoder: TextEncoder) -> list[list[int]]:
    """Everything that comes before each example's completion, exactly as training saw it."""
    unanswered = [replace(example, completion="", ends=False) for example in examples]
    return [row.ids.tolist() for row in token_files.encode(unanswered, encoder)]


def _json(comparison: Comparison) -> dict[str, Any]:
    """The comparison without what JSON cannot say; a metric that is not finite has nulls, and the gate refuses it."""
    if comparison.finite:
        return comparison.to_dict()
    return {**comparison.to_dict(), "base": None, "tuned": None, "improvement": None, "ci95": None}
