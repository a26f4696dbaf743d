"""A tiny Mistral with a tokenizer of its own, and datasets on disk."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from pipeline_steps import prepare_data, s3, token_files
from pipeline_steps.contract import dataset, files
from pipeline_steps.contract.dataset import Example, SplitInfo, SplitPart
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.encoding import Encoded, of_tokens
from pipeline_steps.models import load_tokenizer
from pipeline_steps.text_encoder import TextEncoder

TEMPLATE = PromptTemplate("Question: {question}\nAnswer: ", "{answer}")
DIGEST = "d" * 64


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `finetune import-model` leaves it: 2 layers, 260 tokens (bytes), random weights."""
    return make_base_model(tmp_path_factory.mktemp("base"), hidden_size=32)


@pytest.fixture(scope="session")
def wide_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with matrices that fill nf4's blocks of 64."""
    return make_base_model(tmp_path_factory.mktemp("wide-base"), hidden_size=64)


def make_base_model(folder: Path, hidden_size: int) -> Path:
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
            hidden_size=hidden_size,
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


def encode(example: Example, tokenizer: Any) -> Encoded:
    """The tokens that training sees of an example, whole."""
    return of_tokens(token_files.encode([example], TextEncoder.of(tokenizer)))[0]


def write_examples(path: Path, rows: list[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.to_line() + "\n" for row in rows), encoding="utf-8")


def write_tokens(path: Path, rows: list[Example], encoder: TextEncoder) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, token_files.SCHEMA) as writer:
        columns = token_files.columns(token_files.encode(rows, encoder))
        writer.write_batch(pyarrow.record_batch(columns, schema=token_files.SCHEMA))


def write_split(
    folder: Path, split: str, rows: list[Example], info: SplitInfo | None = None, tokenizer: Any = None
) -> SplitInfo:
    """Write a split of one part; with a tokenizer its token ids too. What `info` says is kept, but for the part."""
    encoder = TextEncoder.of(tokenizer) if tokenizer else None
    part = SplitPart("examples-00000.jsonl", "tokens-00000.arrow" if encoder else None, len(rows))
    info = info or SplitInfo(
        DIGEST, "s" * 64, "instruction", split, len(rows), (), TEMPLATE, [], encoder.digest if encoder else None
    )
    info = replace(info, parts=(part,))
    write_examples(folder / part.examples, rows)
    if encoder and part.tokens:
        write_tokens(folder / part.tokens, rows, encoder)
    dataset.write_info(folder, info)
    return info


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Path:
    """A prepared instruction dataset: train/, validation/, test/."""
    root = tmp_path_factory.mktemp("dataset")
    tokenizer = load_tokenizer(base_model)
    for split, rows in (("train", examples(0, 48)), ("validation", examples(48, 56)), ("test", examples(56, 80))):
        write_split(root / split, split, rows, tokenizer=tokenizer)
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


@pytest.fixture
def shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """S3 for the PrepareData of a test: a folder (the pipeline's own test uses S3's protocol)."""
    root = tmp_path / "s3"

    def place(uri: str) -> Path:
        return root / uri.removeprefix("s3://")

    def copy(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{threading.get_ident()}")
        shutil.copy(source, unfinished)
        unfinished.replace(target)

    monkeypatch.setattr(s3, "exists", lambda uri: place(uri).is_file())
    monkeypatch.setattr(s3, "upload", lambda path, uri: copy(path, place(uri)))
    monkeypatch.setattr(s3, "download", lambda uri, path: copy(place(uri), path))
    monkeypatch.setattr(s3, "delete_all", lambda prefix: shutil.rmtree(place(prefix)))
    monkeypatch.setattr(prepare_data, "earlier_training", lambda *_: {})
    monkeypatch.setattr("pipeline_steps.data.instances_engine.POLL_SECONDS", 0.01)
    return root
