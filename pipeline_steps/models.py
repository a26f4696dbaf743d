"""Base models and tokenizers from a folder, never from a hub."""

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from pipeline_steps.contract import chat_format, files, json_files
from pipeline_steps.contract.chat_format import ChatFormat
from pipeline_steps.contract.errors import StepError
from pipeline_steps.text_encoder import beginning

# Jobs have no network; without this a missing file would become a long wait for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"


def base_model_digest(folder: Path) -> str:
    """Digest that the import wrote beside the weights. Raises StepError if the folder is no imported model."""
    if not (folder / "config.json").is_file():
        raise StepError(f"{folder} holds no model (config.json is missing); import one with 'finetune import-model'")
    return str(json_files.read(folder / files.BASE_MODEL_FILE, files.BASE_MODEL_SCHEMA_VERSION)["digest"])


def folder_digest(folder: Path) -> tuple[str, dict[str, str]]:
    """Digest of all files in `folder`, and the SHA-256 of each by its path: the form in which base models are digested."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(), digests


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


def leading_text(tokenizer: Any) -> str:
    """What the tokenizer puts before every text by itself, or nothing; a rendered chat has to bring it."""
    return str(tokenizer.bos_token) if beginning(tokenizer) else ""


def chat_format_of(tokenizer: Any) -> ChatFormat:
    """How the tokenizer's model reads a dialog. Raises ChatTemplateError if its chat template cannot be used."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None  # of several, the default one
    tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return chat_format.of(template, tokens, leading_text(tokenizer), str(tokenizer.eos_token))


def replace_weights(model: Any, folder: Path) -> bool:
    """Put the weights of the model in `folder` in the place of those of `model`; False if it is another architecture.

    What is computed with them afterwards is what a model loaded from `folder` computes. Memory holds one model, and what
    was built upon the addresses of its weights (CUDA graphs) goes on to hold.
    """
    import torch
    from transformers import AutoConfig

    from pipeline_steps.training.merge import checkpoint_tensors

    if _architecture(AutoConfig.from_pretrained(folder)) != _architecture(model.config):
        return False
    ours, theirs = model.state_dict(), checkpoint_tensors(folder)
    tied = {weight.data_ptr() for name, weight in ours.items() if name in theirs}
    missing = [name for name, weight in ours.items() if name not in theirs and weight.data_ptr() not in tied]
    if missing or theirs.keys() - ours.keys():
        return False
    with torch.no_grad():
        for name, read in theirs.items():
            ours[name].copy_(read())
    return True


def _architecture(config: Any) -> dict[str, Any]:
    """What a configuration says of the computation; not where it came from and how it was saved."""
    of_the_file = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
    return {name: value for name, value in config.to_dict().items() if name not in of_the_file}


def load_model(folder: Path) -> Any:
    """The causal language model in `folder`, on the GPU if there is one, in the type of its products."""
    import torch
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=product_dtype(device)).to(device)


def product_dtype(device: Any) -> Any:
    """The type in which `device` (a torch.device) multiplies: bfloat16, or float32 on a CPU without instructions for it.

    Such a CPU takes bfloat16 apart in software: it was 5 to 30 times slower with it than with float32.
    """
    import torch

    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    on_arm = platform.machine() in ("aarch64", "arm64")
    if on_arm and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32
