"""Base models and tokenizers from a folder, never from a hub."""

import os
from pathlib import Path
from typing import Any

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.errors import StepError

# Jobs have no network; without this a missing file would become a long wait for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"


def base_model_digest(folder: Path) -> str:
    """Digest that the import wrote beside the weights. Raises StepError if the folder is no imported model."""
    if not (folder / "config.json").is_file():
        raise StepError(f"{folder} holds no model (config.json is missing); import one with 'finetune import-model'")
    return str(json_files.read(folder / files.BASE_MODEL_FILE, files.BASE_MODEL_SCHEMA_VERSION)["digest"])


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, with a padding token that is not end-of-sequence.

    Padding with end-of-sequence would mask every end out of the loss, and the model would never learn to stop.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise StepError(
            f"the tokenizer in {folder} has no end-of-sequence token; a model cannot learn to stop without one"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token
    return tokenizer


def load_model(folder: Path) -> Any:
    """The causal language model in `folder` in bfloat16, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
