"""FineTune: training split + base model -> adapter and merged model, with the prompt template beside the weights.

in    channels train/ and validation/ (a dataset's splits), model/ (an imported base model); hyperparameters.json
out   model/    merged model and tokenizer at the root, adapter/, prompt_template.json, hyperparameters.json,
                training.json (loss curve, speed, ancestors), written last
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.contract import dataset, files, hyperparameters, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.contract.progress import report
from pipeline_steps.encoding import Encoded, pad, read_encoded, row_losses, token_losses
from pipeline_steps.models import base_model_digest, load_model, load_tokenizer
from pipeline_steps.text_encoder import TextEncoder


@dataclass(frozen=True)
class FineTuneJob:
    train: Path
    validation: Path
    model: Path
    output: Path
    hyperparameters: Hyperparameters


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="fine-tune", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--input", type=Path, default=Path("/opt/ml/input"), help="config/ and data/ as SageMaker lays them"
    )
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/model"))
    options = parser.parse_args(arguments)
    texts = json.loads((options.input / "config" / "hyperparameters.json").read_text(encoding="utf-8"))
    data = options.input / "data"
    run(FineTuneJob(data / "train", data / "validation", data / "model", options.output, hyperparameters.parse(texts)))


def run(job: FineTuneJob) -> None:
    settings = job.hyperparameters

    # 1. Inputs, checked before anything large is loaded.
    info = dataset.read_info(job.train, "train")
    validation_info = dataset.read_info(job.validation, "validation")
    if validation_info.dataset_digest != info.dataset_digest:
        raise StepError(
            f"train is of dataset {info.dataset_digest[:12]}, validation of {validation_info.dataset_digest[:12]}; "
            "both channels must come from the same preparation"
        )
    model_digest = base_model_digest(job.model)

    # 2. Tokens, each with its training decision: PrepareData made them, while no GPU waited.
    import torch

    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(job.model)
    encoder = TextEncoder.of(tokenizer)
    train = read_encoded(job.train, info, encoder, settings.max_input_length)
    validation = read_encoded(job.validation, validation_info, encoder, settings.max_input_length)

    # 3. Model.
    model = load_model(job.model)
    if settings.peft_type == "lora":
        model = with_adapter(model, settings)
    trained_parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(
        f"{len(train)} rows with {sum(len(one.ids) for one in train)} tokens, of which "
        f"{sum(one.trained_tokens for one in train)} are learned; "
        f"{sum(parameter.numel() for parameter in trained_parameters):,} trained weights on {model.device}",
        flush=True,
    )

    # 4. Optimizer and its schedule, counted in optimizer steps.
    rows_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    total_steps = max(1, math.ceil(len(train) * settings.epoch / rows_per_step))
    optimizer = torch.optim.AdamW(
        trained_parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.999)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step, total_steps, settings)
    )

    # 5. Train.
    batches = endless_batches(train, settings)
    curve: list[dict[str, float]] = []
    initial_loss = evaluate_loss(model, validation, tokenizer.pad_token_id, settings.per_device_train_batch_size)
    started, tokens_seen = time.monotonic(), 0
    model.train()
    for step in range(1, total_steps + 1):
        micro_batches = [next(batches) for _ in range(settings.gradient_accumulation_steps)]
        trained_tokens = sum(one.trained_tokens for batch in micro_batches for one in batch)
        loss_nats = 0.0
        for batch in micro_batches:
            ids, mask, labels = (part.to(model.device) for part in pad(batch, tokenizer.pad_token_id))
            losses, _ = token_losses(model, ids, mask, labels)
            loss = losses.sum() / trained_tokens  # by real tokens over the whole step, however it is cut
            loss.backward()
            loss_nats += loss.item()
        if not math.isfinite(loss_nats):
            raise StepError(
                f"the training loss is {loss_nats} at step {step} of {total_steps} (learning rate "
                f"{settings.learning_rate:g}); the weights are lost: lower learning_rate or max_grad_norm, or check the data"
            )
        torch.nn.utils.clip_grad_norm_(trained_parameters, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

        tokens_seen += sum(len(one.ids) for batch in micro_batches for one in batch)
        seconds = time.monotonic() - started
        curve.append({"step": step, "train_loss": loss_nats})
        if step % settings.logging_steps == 0 or step == total_steps:
            report(
                "train",
                step,
                total_steps,
                train_loss=loss_nats,
                tokens_per_second=tokens_seen / seconds,
                learning_rate=schedule.get_last_lr()[0],
                seconds_left=seconds / step * (total_steps - step),
            )
    seconds = time.monotonic() - started
    final_loss = evaluate_loss(model, validation, tokenizer.pad_token_id, settings.per_device_train_batch_size)
    print(f"eval_loss={final_loss:.6g} (before: {initial_loss:.6g}), nats per trained token", flush=True)

    # 6. Outputs: the adapter first, since a failed merge must not cost the training; the report last.
    if settings.peft_type == "lora":
        model.save_pretrained(job.output / files.ADAPTER_FOLDER)
        model = model.merge_and_unload()
    model.save_pretrained(job.output)
    tokenizer.save_pretrained(job.output)
    if info.template:
        json_files.write(job.output / files.PROMPT_TEMPLATE_FILE, {"schema_version": 1, **info.template.to_dict()})
    json_files.write(job.output / files.HYPERPARAMETERS_FILE, {"schema_version": 1, **asdict(settings)})
    json_files.write(
        job.output / files.TRAINING_FILE,
        {
            "schema_version": files.TRAINING_SCHEMA_VERSION,
            "dataset_digest": info.dataset_digest,
            "base_model_digest": model_digest,
            "tuning_mode": info.tuning_mode,
            "rows": len(train),
            "steps": total_steps,
            "tokens": tokens_seen,
            "tokens_per_second": round(tokens_seen / seconds, 1),
            "seconds": round(seconds, 1),
            "validation_loss": {"before": initial_loss, "after": json_files.finite_or_none(final_loss)},
            "curve": curve,
        },
    )


def with_adapter(model: Any, settings: Hyperparameters) -> Any:
    """The model with a LoRA adapter on every linear layer; only the adapter is trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            target_modules="all-linear",
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
        ),
    )


def learning_rate_share(step: int, total_steps: int, settings: Hyperparameters) -> float:
    """Share of the learning rate at optimizer step `step` (from 0): linear warm-up, then constant or falling to zero."""
    warmup_steps = round(settings.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.lr_scheduler_type == "linear":
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return 1.0


def endless_batches(rows: Sequence[Encoded], settings: Hyperparameters) -> Iterator[list[Encoded]]:
    """Micro-batches of rows of similar length, in a new random order in each epoch, the same for the same seed."""
    size = settings.per_device_train_batch_size
    epoch = 0
    while True:
        order = random.Random(f"{settings.seed}/{epoch}")
        # Random first, then sorted by length: equal lengths still meet in a new company in each epoch.
        shuffled = sorted(order.sample(rows, len(rows)), key=lambda one: len(one.ids))
        batches = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        order.shuffle(batches)
        yield from batches
        epoch += 1


def evaluate_loss(model: Any, rows: Sequence[Encoded], pad_id: int, batch_size: int) -> float:
    """Mean loss over the trained tokens of `rows`, nats per token."""
    model.eval()
    total_nats = row_losses(model, rows, pad_id, batch_size).sum()
    model.train()
    return float(total_nats / sum(one.trained_tokens for one in rows))
