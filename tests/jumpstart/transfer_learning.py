"""Written for this project's tests: a script with the contract of JumpStart's transfer_learning.py, not JumpStart's own.

What is documented of the contract: hyperparameters as flags; the channels training (one or more .jsonl and template.json,
or one .txt), validation and model (a .tar.gz of the base model); the tuned model in SM_MODEL_DIR; losses in the log as
the model's metric definitions read them. With peft_type lora it leaves the adapter alone, else the whole model.
"""

import json
import os
import sys
import tarfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    flags = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    hyperparameters = {name.removeprefix("--"): value for name, value in flags.items()}
    training, validation, model_channel = (
        Path(os.environ[f"SM_CHANNEL_{name}"]) for name in ("TRAINING", "VALIDATION", "MODEL")
    )
    output = Path(os.environ["SM_MODEL_DIR"])
    base = Path("base")
    with tarfile.open(next(model_channel.glob("*.tar.gz"))) as archive:
        archive.extractall(base, filter="data")
    torch.set_num_threads(1)  # so small a model is no faster with more, and much slower beside other work
    torch.manual_seed(int(hyperparameters["seed"]))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    instruction = hyperparameters["instruction_tuned"] == "True"
    read = rows_of_instructions if instruction else rows_of_text
    limit = int(hyperparameters["max_input_length"])
    rows, held_out = (encoded(tokenizer, read(folder, training), limit) for folder in (training, validation))
    if hyperparameters["peft_type"] == "lora":
        from peft import LoraConfig, get_peft_model

        rank, alpha = int(hyperparameters["lora_r"]), int(hyperparameters["lora_alpha"])
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=targets)
        )
    train(model, rows, hyperparameters)
    with torch.no_grad():
        print(
            {"eval_loss": sum(model(input_ids=row, labels=row).loss.item() for row in held_out) / len(held_out)},
            flush=True,
        )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def rows_of_instructions(folder: Path, training: Path) -> list[str]:
    template = json.loads((training / "template.json").read_text(encoding="utf-8"))
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return [template["prompt"].format(**row) + template["completion"].format(**row) for row in map(json.loads, lines)]


def rows_of_text(folder: Path, training: Path) -> list[str]:
    (file,) = folder.glob("*.txt")
    return [paragraph for paragraph in file.read_text(encoding="utf-8").split("\n\n") if paragraph.strip()]


def encoded(tokenizer, texts: list[str], limit: int) -> list[torch.Tensor]:
    limit = limit if limit > 0 else 1024
    return [torch.tensor([[*tokenizer(text)["input_ids"][:limit], tokenizer.eos_token_id]]) for text in texts]


def train(model, rows: list[torch.Tensor], hyperparameters: dict[str, str]) -> None:
    accumulated = int(hyperparameters["per_device_train_batch_size"]) * int(
        hyperparameters["gradient_accumulation_steps"]
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=float(hyperparameters["learning_rate"]))
    step = 0
    for _ in range(int(hyperparameters["epoch"])):
        for start in range(0, len(rows), accumulated):
            batch = rows[start : start + accumulated]
            losses = [model(input_ids=row, labels=row).loss / len(batch) for row in batch]
            torch.stack(losses).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % int(hyperparameters["logging_steps"]) == 0:
                print({"loss": sum(loss.item() for loss in losses)}, flush=True)


if __name__ == "__main__":
    main()
