"""The prompt template: one object renders for training, evaluation and serving, so that they cannot drift apart.

The form is JumpStart's template.json: `{"prompt": "... {column} ...", "completion": "{column}"}`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.contract.errors import DataError

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_ .-]*)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """`prompt` is what the model reads and is asked with; `completion` is what it learns to write after it."""

    prompt: str
    completion: str

    @property
    def columns(self) -> list[str]:
        """Columns that every row must have, in order of appearance."""
        return list(dict.fromkeys(PLACEHOLDER.findall(self.prompt) + PLACEHOLDER.findall(self.completion)))

    def render_prompt(self, row: Mapping[str, str]) -> str:
        return _fill(self.prompt, row)

    def render_completion(self, row: Mapping[str, str]) -> str:
        return _fill(self.completion, row)

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


def _fill(text: str, row: Mapping[str, str]) -> str:
    # One pass, so that braces inside a value are never taken for placeholders.
    return PLACEHOLDER.sub(lambda match: row[match.group(1)], text)


def read(path: Path) -> PromptTemplate:
    """The template in a user's template.json. Raises DataError with every problem in it."""
    name = path.name
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError([f"{name}: not valid JSON ({error}); see template.json in the examples"]) from error
    return parse(content, name)


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
        elif not PLACEHOLDER.search(value):
            problems.append(f"{name}: {key!r} has no {{placeholder}}, so every row would be the same: {value[:80]!r}")
    for key in content.keys() - {"prompt", "completion"}:
        problems.append(f"{name}: unknown key {key!r}; allowed: 'prompt', 'completion'")
    if problems:
        raise DataError(problems)
    return PromptTemplate(content["prompt"], content["completion"])
