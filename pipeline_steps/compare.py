"""Compare: a user's own prompts, answered by the base and by the tuned model -> the before/after table.

in    prompts/ (one file), base/ (the imported base model), model/ (FineTune's output)
out   comparison/    report.html, comparison.md, comparison.json, written last
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_steps import comparison_page
from pipeline_steps.contract import chat_format, comparison, files, json_files, prompts
from pipeline_steps.contract.comparison import Comparison, Pair, Sampling, Text
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.evaluate import prompt_ids
from pipeline_steps.generation import Generator
from pipeline_steps.models import base_model_digest, load_model, load_tokenizer, replace_weights
from pipeline_steps.text_encoder import TextEncoder


def main(arguments: list[str]) -> None:
    inputs = Path("/opt/ml/processing/input")
    defaults = Sampling()
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--prompts", type=Path, default=inputs / "prompts")
    parser.add_argument("--base", type=Path, default=inputs / "base")
    parser.add_argument("--model", type=Path, default=inputs / "model")
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output") / files.COMPARISON_OUTPUT)
    for name, kind in (
        ("max_new_tokens", int),
        ("temperature", float),
        ("top_k", int),
        ("top_p", float),
        ("seed", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(defaults, name))
    options = vars(parser.parse_args(arguments))
    prompts_folder, base, model, output = (options.pop(name) for name in ("prompts", "base", "model", "output"))
    run(prompts_folder, base, model, output, Sampling(**options))


def run(prompts_folder: Path, base: Path, model: Path, output: Path, sampling: Sampling) -> Comparison:
    started = time.monotonic()

    # 1. Inputs, checked before anything large is loaded.
    training = json_files.read(model / files.TRAINING_FILE, files.TRAINING_SCHEMA_VERSION)
    digest = base_model_digest(base)
    if training["base_model_digest"] != digest:
        raise StepError(
            f"the model was trained from base {training['base_model_digest'][:12]}, the input is base {digest[:12]}; "
            "compare it with its own base: import that one again"
        )
    chat = chat_format.read(model)
    ask = (lambda text: chat.asked([("user", text)])) if chat else None
    texts = prompts.rendered(read_prompts(prompts_folder), read_template(model), ask)

    # 2. Both models, one after the other in the same memory.
    tokenizer = load_tokenizer(base)
    asked = prompt_ids([Example(text, "", ends=False) for text in texts], TextEncoder.of(tokenizer))
    generator = Generator(load_model(base).eval())
    before = answers("base", generator, asked, tokenizer, sampling)
    if not replace_weights(generator.model, model):
        raise StepError(f"{model} holds a model of another architecture than its base; import its own base again")
    after = answers("tuned", generator, asked, tokenizer, sampling)

    # 3. Outputs; comparison.json last.
    compared = Comparison(
        tuning_mode=training["tuning_mode"],
        base_model=json_files.read(base / files.BASE_MODEL_FILE, files.BASE_MODEL_SCHEMA_VERSION)["name"],
        base_model_digest=digest,
        dataset_digest=training["dataset_digest"],
        method=training["method"],
        sampling=sampling,
        pairs=[Pair(*one) for one in zip(texts, before, after, strict=True)],
        seconds=round(time.monotonic() - started, 1),
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / files.REPORT_FILE).write_text(comparison_page.render(compared), encoding="utf-8")
    (output / files.COMPARISON_TABLE).write_text(comparison.markdown(compared), encoding="utf-8")
    comparison.write(output, compared)
    return compared


def read_prompts(folder: Path) -> list[prompts.Prompt]:
    """The prompts in the one file of `folder`."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(found) != 1:
        raise StepError(f"{folder} holds {len(found)} files, expected exactly one with prompts")
    return prompts.read(found[0].read_bytes(), found[0].name)


def read_template(model: Path) -> PromptTemplate | None:
    """The template that travels with the model; None where it was trained without one."""
    path = model / files.PROMPT_TEMPLATE_FILE
    if not path.is_file():
        return None
    content = json_files.read(path, 1)
    return PromptTemplate(content["prompt"], content["completion"])


def answers(
    name: str, generator: Generator, asked: Sequence[list[int]], tokenizer: Any, sampling: Sampling
) -> list[Text]:
    """The model's answer to each prompt (its token ids); the same seed gives the same answers."""
    found = generator.generate(
        asked,
        sampling.max_new_tokens,
        tokenizer.eos_token_id,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        on_progress=lambda done, left: report(f"{name} answers", done, len(asked), seconds_left=left),
    )
    return [
        Text(tokenizer.decode(answer.ids, skip_special_tokens=True), len(answer.ids), answer.ended) for answer in found
    ]
