"""A tiny Mistral with a tokenizer of its own, and datasets on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from pipeline_steps.contract import dataset, files
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.prompt_template import PromptTemplate

TEMPLATE = PromptTemplate("Question: {question}\nAnswer: ", "{answer}")
DIGEST = "d" * 64


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `finetune import-model` leaves it: 2 layers, 260 tokens (bytes), random weights."""
    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=None,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    marker = {"schema_version": 1, "name": "tiny", "digest": "b" * 64}
    (folder / files.BASE_MODEL_FILE).write_text(json.dumps(marker), encoding="utf-8")
    return folder


def examples(start: int, stop: int) -> list[Example]:
    return [
        Example(TEMPLATE.render_prompt({"question": f"what is {i} plus {i}"}), f"it is {2 * i}", ends=True)
        for i in range(start, stop)
    ]


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared instruction dataset: train/, validation/, test/."""
    root = tmp_path_factory.mktemp("dataset")
    for split, rows in (("train", examples(0, 48)), ("validation", examples(48, 56)), ("test", examples(56, 80))):
        info = dataset.SplitInfo(DIGEST, "instruction", split, len(rows), TEMPLATE, [])
        dataset.write_split(root / split, info, rows)
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Make a dataset folder from {name: content}; a list is written as JSON lines."""

    def make(content: dict[str, Any]) -> Path:
        for name, value in content.items():
            path = tmp_path / "raw" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, list):
                value = "".join(json.dumps(row) + "\n" for row in value)
            path.write_bytes(value if isinstance(value, bytes) else value.encode())
        return tmp_path / "raw"

    return make
