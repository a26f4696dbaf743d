"""The prompt template: one object renders for training, evaluation and serving, so that they cannot drift apart.

The form is JumpStart's template.json: `{"prompt": "... {column} ...", "completion": "{column}"}`. As there (Python's
`str.format`), a doubled brace stands for one brace.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipeline_steps.contract.errors import DataError

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_ .-]*)\}")
PARTS = re.compile(r"\{\{|\}\}|" + PLACEHOLDER.pattern)
FORMATTED = re.compile(
    r"(?<!\{)\{(?:[A-Za-z_][A-Za-z0-9_]*[!:\[]|[0-9])[^{}]*\}(?!\})"  # {x!r}, {x:>10}, {x[0]}, {0.__class__}
)

# What JumpStart puts between prompt and completion with add_input_output_demarcation_key.
DEMARCATION = "\n\n### Response:\n"


@dataclass(frozen=True)
class PromptTemplate:
    """`prompt` is what the model reads and is asked with; `completion` is what it learns to write after it."""

    prompt: str
    completion: str

    @cached_property
    def prompt_columns(self) -> list[str]:
        return _columns(self.prompt)

    @cached_property
    def columns(self) -> list[str]:
        """Columns that every row must have, in order of appearance."""
        return list(dict.fromkeys(_columns(self.prompt) + _columns(self.completion)))

    def render_prompt(self, row: Mapping[str, str]) -> str:
        return _fill(self.prompt, row)

    def render_completion(self, row: Mapping[str, str]) -> str:
        return _fill(self.completion, row)

    def rendered_length(self, row: Mapping[str, str]) -> int:
        """Characters of prompt and completion, nearly: a doubled brace counts as two."""
        texts = self.prompt + self.completion
        return len(texts) + sum(len(row[match[1]]) for match in PARTS.finditer(texts) if match[1])

    def with_demarcation(self) -> "PromptTemplate":
        """The template as JumpStart trains it with add_input_output_demarcation_key."""
        return PromptTemplate(self.prompt + DEMARCATION, self.completion)

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


# JumpStart's documented default, for rows with instruction, context and response.
DEFAULT = PromptTemplate(
    prompt=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    ),
    completion="{response}",
)


def _columns(text: str) -> list[str]:
    return list(dict.fromkeys(match[1] for match in PARTS.finditer(text) if match[1]))


def _fill(text: str, row: Mapping[str, str]) -> str:
    # One pass, so that braces inside a value are never taken for placeholders.
    return PARTS.sub(lambda match: row[match[1]] if match[1] else match[0][0], text)


def read(content: bytes, name: str) -> PromptTemplate:
    """The template in a user's file `name`. Raises DataError with every problem in it."""
    try:
        parsed: Any = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError([f"{name}: not valid JSON ({error}); see template.json in the examples"]) from error
    return parse(parsed, name)


def parse(content: Any, name: str) -> PromptTemplate:
    """The template in `content`, which came from the file `name`. Raises DataError with every problem."""
    if not isinstance(content, dict):
        raise DataError(
            [f'{name}: holds {type(content).__name__}, expected an object {{"prompt": ..., "completion": ...}}']
        )
    problems = []
    for key in ("prompt", "completion"):
        value = content.get(key)
        if not isinstance(value, str) or not value:
            problems.append(f"{name}: {key!r} is {value!r}, expected a text with {{placeholders}}")
            continue
        if not _columns(value):
            problems.append(f"{name}: {key!r} has no {{placeholder}}, so every row would be the same: {value[:80]!r}")
        problems += [
            f"{name}: {key!r} has {found!r}; a placeholder is a column's name alone, such as {{question}}"
            for found in FORMATTED.findall(value)
        ]
    for key in content.keys() - {"prompt", "completion"}:
        problems.append(f"{name}: unknown key {key!r}; allowed: 'prompt', 'completion'")
    if problems:
        raise DataError(problems)
    return PromptTemplate(content["prompt"], content["completion"])
