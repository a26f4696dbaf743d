"""FromJumpStart: what JumpStart's training left -> a model folder as FineTune leaves one, so that all later steps take it.

in    tuned/ (the training job's output: a merged model, a LoRA adapter, or both), base/ (the imported base model),
      train/, validation/ (the dataset's splits that it was trained on)
out   model/  adapter/ where there is one, the merged model and tokenizer at the root, prompt_template.json,
              hyperparameters.json, seen_rows.hashes, and training.json, written last

The training job itself is asked for its hyperparameters, its time and its last metrics.
"""

import argparse
import json
import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline_steps import serving
from pipeline_steps.contract import dataset, files, json_files, seen_rows
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.models import base_model_digest, folder_digest, load_tokenizer

PICKLES = (".bin", ".pt", ".pth")
WEIGHTS = ".safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The names under which JumpStart's language models tell their losses; {name} is train or eval.
METRIC = "huggingface-textgeneration:{name}-loss"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="from-jumpstart", description=__doc__.split("\n\n")[0])
    parser.add_argument("--input", type=Path, default=Path("/opt/ml/processing/input"))
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output") / files.MODEL_OUTPUT)
    parser.add_argument("--training_job", required=True, help="name of JumpStart's training job")
    options = parser.parse_args(arguments)
    import boto3

    job = boto3.client("sagemaker").describe_training_job(TrainingJobName=options.training_job)
    run(options.input, options.output, job)


def run(inputs: Path, output: Path, job: dict[str, Any]) -> None:
    """Write the model folder. `job` is what DescribeTrainingJob says. Raises StepError if the output is no model."""
    # 1. Inputs, checked before anything large is copied.
    info = dataset.read_info(inputs / "train", "train")
    validation_info = dataset.read_info(inputs / "validation", "validation")
    base = inputs / "base"
    model_digest = base_model_digest(base)
    merged, adapter = parts_of(inputs / "tuned", base)

    # 2. The weights: the adapter as it is, the merged model as it is or made of the two.
    output.mkdir(parents=True, exist_ok=True)
    if adapter:
        copy(adapter, output / files.ADAPTER_FOLDER, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    if merged:
        names = [path.name for path in merged.glob("*") if path.name.endswith((WEIGHTS, ".safetensors.index.json"))]
        names = [name for name in names if name != ADAPTER_WEIGHTS]
        copy(merged, output, (*names, "config.json", "generation_config.json"))
    elif adapter:
        merge(base, adapter, output)

    # 3. What belongs to the weights; the report last.
    tokenizer = load_tokenizer(merged if merged and list(merged.glob("tokenizer*")) else base)
    serving.write(output, info.template, info.chat, tokenizer)
    rows = chain(
        dataset.read_examples(inputs / "train", info), dataset.read_examples(inputs / "validation", validation_info)
    )
    seen_rows.write(output / files.SEEN_ROWS_FILE, rows)
    hyperparameters = {name: str(value) for name, value in job.get("HyperParameters", {}).items()}
    json_files.write(output / files.HYPERPARAMETERS_FILE, {"schema_version": 1, **hyperparameters})
    digest, digests = folder_digest(output)
    json_files.write(
        output / files.TRAINING_FILE,
        {
            "schema_version": files.TRAINING_SCHEMA_VERSION,
            "dataset_digest": info.dataset_digest,
            "base_model_digest": model_digest,
            "model_digest": digest,
            "files": digests,
            "tuning_mode": info.tuning_mode,
            **told(job, info.rows, hyperparameters),
        },
    )


def parts_of(folder: Path, base: Path) -> tuple[Path | None, Path | None]:
    """The folders of the merged model and of the adapter in JumpStart's output, each None if it is not there.

    Raises StepError if there is neither, if weights are pickled, or if the model is of another shape than the base.
    """
    adapters = sorted(path.parent for path in folder.rglob(ADAPTER_CONFIG))
    merged = [
        path.parent
        for path in sorted(folder.rglob("config.json"), key=lambda path: len(path.parts))
        if any(found.name != ADAPTER_WEIGHTS for found in path.parent.glob(f"*{WEIGHTS}"))
    ]
    pickled = sorted(
        path.name for path in folder.rglob("*") if path.name.endswith(PICKLES) and "training_args" not in path.name
    )
    if not merged and not adapters:
        found = ", ".join(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
        raise StepError(
            f"JumpStart's output has no model in {WEIGHTS}"
            + (f", and pickled weights ({', '.join(pickled)}) are not loaded" if pickled else "")
            + f"; expected config.json with *{WEIGHTS}, or {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS}; found: {found or 'nothing'}"
        )
    adapter = adapters[0] if adapters else None
    if adapter and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise StepError(f"JumpStart's output has {ADAPTER_CONFIG} without {ADAPTER_WEIGHTS}")
    if merged:
        theirs, ours = (json.loads((one / "config.json").read_text(encoding="utf-8")) for one in (merged[0], base))
        # Not vocab_size: the training may have added tokens.
        shape = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
        other = [
            f"{name} is {theirs.get(name)!r}, {ours.get(name)!r}"
            for name in shape
            if theirs.get(name) != ours.get(name)
        ]
        if other:
            raise StepError(
                f"the model that JumpStart tuned is not one of the imported base model: {'; '.join(other)} (tuned, base); "
                "import the base of the JumpStart model: 'finetune import-model jumpstart://MODEL_ID'"
            )
    return (merged[0] if merged else None), adapter


def copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy those of `names` that are in `source`; on one volume a link costs nothing."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            try:
                os.link(source / name, target / name)
            except OSError:
                shutil.copyfile(source / name, target / name)


def merge(base: Path, adapter: Path, output: Path) -> None:
    """base + adapter -> `output`. Raises StepError on an adapter that is more than LoRA on linear layers."""
    from safetensors.torch import load_file

    from pipeline_steps.training import merge as merging

    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    unknown = [
        f"{name} is {config.get(name)!r}"
        for name, plain in (("peft_type", ("LORA",)), ("use_rslora", (None, False)), ("use_dora", (None, False)),
                            ("modules_to_save", (None, [])), ("bias", (None, "none")), ("rank_pattern", (None, {})),
                            ("alpha_pattern", (None, {})))
        if config.get(name) not in plain
    ]  # fmt: skip
    if unknown:
        raise StepError(f"the adapter cannot be merged here: {'; '.join(unknown)}")
    scale = config["lora_alpha"] / config["r"]
    tensors = {name: tensor.float() for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items()}
    merging.merge(base, tensors, scale, output, lambda done, of: report("merge", done, of))


def told(job: dict[str, Any], rows: int, hyperparameters: dict[str, str]) -> dict[str, Any]:
    """What is known of the training in training.json's form; what JumpStart does not tell is 0 or empty."""
    final = {one["MetricName"]: float(one["Value"]) for one in job.get("FinalMetricDataList", [])}
    validation, trained = (final.get(METRIC.format(name=name)) for name in ("eval", "train"))
    resources = job.get("ResourceConfig", {})
    lora = hyperparameters.get("peft_type", "lora") == "lora"
    seconds = float(job.get("TrainingTimeInSeconds", 0))
    return {
        "training_job": job["TrainingJobName"],
        "method": "full" if not lora else "qlora" if hyperparameters.get("bits") == "4" else "lora",
        "devices": int(resources.get("InstanceCount", 1)),
        "instance_count": resources.get("InstanceCount"),
        "instance_type": resources.get("InstanceType"),
        "rows": rows,
        "steps": 0,
        "ended_by": "JumpStart's script",
        "tracking_lost": None,
        "tokens": 0,
        "tokens_per_second": 0.0,
        "seconds": seconds,
        "overhead_seconds": 0.0,  # the job's time is the whole of it
        "best_step": 0,
        "validation_loss": {"before": None, "after": validation},
        "validation": [] if validation is None else [{"step": 0, "loss": validation}],
        "curve": [] if trained is None else [{"step": 0, "train_loss": trained}],
    }
