"""Prompts that a user wants to see answered before and after: a text file with one a line, or JSON lines.

A line of text is what a user would type: the whole prompt of a domain model, a question to a chat model, the only column
of a template. JSON lines hold such texts, `{"prompt": ...}` for a prompt that is sent as it is, or a template's columns.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline_steps.contract.errors import DataError
from pipeline_steps.contract.prompt_template import PromptTemplate

MOST_PROMPTS = 1000
JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class Prompt:
    """One line: what the user typed, or a row of named texts. `place` is file and line, for messages."""

    place: str
    content: str | Mapping[str, str]


def read(content: bytes, name: str) -> list[Prompt]:
    """The prompts in the file `name`. Raises DataError with every problem in it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"{name}: not UTF-8 ({error}); save it as UTF-8"]) from None
    lines = [
        (f"{name}:{number}", line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]
    if not lines:
        raise DataError([f"{name}: holds no prompts; write one a line"])
    if len(lines) > MOST_PROMPTS:
        raise DataError([f"{name}: holds {len(lines):,} prompts, at most {MOST_PROMPTS:,} are answered; shorten it"])
    if not name.lower().endswith(JSON_LINES):
        return [Prompt(place, line) for place, line in lines]
    prompts, problems = [], []
    for place, line in lines:
        try:
            prompts.append(Prompt(place, _content(line)))
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise DataError(problems)
    return prompts


def _content(line: str) -> str | Mapping[str, str]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error}): {line[:80]!r}") from None
    texts = list(found.values()) if isinstance(found, dict) else [found]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'is {line[:80]}, expected a text in quotes or an object of texts such as {{"prompt": "..."}}')
    if not any(text.strip() for text in texts):
        raise ValueError("is empty; write a prompt or drop the line")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no text; mend the escape \\ud800..") from None
    return found  # type: ignore[no-any-return]


def rendered(
    prompts: Sequence[Prompt], template: PromptTemplate | None, ask: Callable[[str], str] | None = None
) -> list[str]:
    """What the model reads for each prompt, as training rendered it. Raises DataError with every problem.

    `ask` writes a question in the model's chat format; None for a model that was trained without one.
    """
    texts, problems = [], []
    for prompt in prompts:
        try:
            texts.append(_rendered(prompt.content, template, ask))
        except ValueError as error:
            problems.append(f"{prompt.place}: {error}")
    if problems:
        raise DataError(problems)
    return texts


def _rendered(
    content: str | Mapping[str, str], template: PromptTemplate | None, ask: Callable[[str], str] | None
) -> str:
    columns = template.prompt_columns if template else []
    if isinstance(content, str):
        if ask:
            return ask(content)
        if template is None:
            return content
        if len(columns) != 1:
            raise ValueError(
                f"is a text, but the model's template has the columns {', '.join(columns)}; use a {JSON_LINES} file whose "
                f'lines hold them, or {{"prompt": "..."}} for a prompt that is sent as it is'
            )
        content = {columns[0]: content}
    if template and all(column in content for column in columns):
        return template.render_prompt(content)
    if "prompt" in content:
        return content["prompt"]
    expected = f"{', '.join(columns)} (the model's template) or prompt" if columns else "prompt"
    raise ValueError(f"has {', '.join(content)}; expected {expected}")
