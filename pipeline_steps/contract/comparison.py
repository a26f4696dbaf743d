"""comparison.json: the answers of base and tuned model to a user's own prompts, for whoever shows them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.dataset import Mode
from pipeline_steps.contract.errors import StepError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Sampling:
    """How answers are generated, in JumpStart's names. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep all tokens."""

    max_new_tokens: int = 150
    temperature: float = 0.2
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value}, allowed: {allowed}"
            for name, value, holds, allowed in (
                ("max_new_tokens", self.max_new_tokens, 1 <= self.max_new_tokens <= 4096, "1 to 4096"),
                ("temperature", self.temperature, 0 <= self.temperature <= 10, "0 (greedy) to 10"),
                ("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more"),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, up to 1 (all tokens)"),
                ("seed", self.seed, 0 <= self.seed < 2**31, "0 to 2147483647"),
            )
            if not holds
        ]
        if wrong:
            raise StepError("; ".join(wrong))

    def told(self) -> dict[str, object]:
        """The parameters that matter, for people."""
        values = asdict(self)
        if not self.temperature:
            return {"max_new_tokens": self.max_new_tokens, "temperature": "0 (greedy)"}
        return {name: value for name, value in values.items() if (name, value) not in (("top_k", 0), ("top_p", 1.0))}


@dataclass(frozen=True)
class Text:
    """A model's answer. `tokens`: how many it wrote; `ended`: it stopped by itself."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Pair:
    """A prompt, as the models read it, and both answers."""

    prompt: str
    base: Text
    tuned: Text


@dataclass(frozen=True)
class Comparison:
    """The content of comparison.json. Digests are SHA-256."""

    tuning_mode: Mode
    base_model: str
    base_model_digest: str
    dataset_digest: str
    method: str
    sampling: Sampling
    pairs: list[Pair]
    seconds: float


def write(folder: Path, comparison: Comparison) -> None:
    """Write comparison.json, which declares the comparison complete."""
    json_files.write(folder / files.COMPARISON_FILE, {"schema_version": SCHEMA_VERSION, **asdict(comparison)})


def read(folder: Path) -> Comparison:
    """The comparison in `folder`. Raises StepError if it is missing or of another schema version."""
    content = json_files.read(folder / files.COMPARISON_FILE, SCHEMA_VERSION)
    del content["schema_version"]
    content["sampling"] = Sampling(**content["sampling"])
    content["pairs"] = [_pair(pair) for pair in content["pairs"]]
    return Comparison(**content)


def _pair(pair: Mapping[str, Any]) -> Pair:
    return Pair(pair["prompt"], Text(**pair["base"]), Text(**pair["tuned"]))


def markdown(comparison: Comparison) -> str:
    """The before/after table, with data as text: no sign of it is Markdown or HTML."""

    def cell(text: str) -> str:
        signs = "\\`*_{}[]()#+!|~"
        escaped = "".join(f"\\{sign}" if sign in signs else sign for sign in text.strip())
        return "<br>".join(escape(escaped, quote=False).splitlines()) or "(empty)"

    parameters = cell(", ".join(f"{name}: {value}" for name, value in comparison.sampling.told().items()))
    rows = [
        f"| {cell(pair.prompt)} | {cell(pair.base.text)} | {cell(pair.tuned.text)} | {parameters} |"
        for pair in comparison.pairs
    ]
    head = ["| prompt | before fine-tuning | after fine-tuning | parameters |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows]) + "\n"
