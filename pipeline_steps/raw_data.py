"""A user's files -> examples, or every problem in them with its place.

Instruction tuning: one or more .jsonl files and an optional template.json in one folder. Domain adaptation: exactly one
.txt, .csv or .json file. The readers here never stop at the first fault: they note it in `problems` and go on.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline_steps.contract import files, prompt_template
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError
from pipeline_steps.contract.prompt_template import PromptTemplate

DOCUMENT_SUFFIXES = (".txt", ".csv", ".json")

# A piece of a document ends with the paragraph that brings it to this length (a heading stays with its text) ...
PIECE_CHARACTERS = 300
# ... and a paragraph longer than this is cut after a line, a sentence or a word: about 500 tokens.
PARAGRAPH_CHARACTERS = 2000


def read_template(folder: Path, problems: list[str]) -> PromptTemplate | None:
    """The template.json in `folder`, else the default; None if it has problems."""
    path = folder / files.TEMPLATE_FILE
    if not path.is_file():
        return prompt_template.DEFAULT
    try:
        return prompt_template.read(path)
    except DataError as error:
        problems.extend(error.problems)
        return None


def read_prompts(path: Path, problems: list[str]) -> list[str]:
    """The prompts to compare before and after, one a line; none without the file."""
    text = _decode(path, problems) if path.is_file() else None
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


# ---------------------------------------------------------------- instruction tuning


def read_rows(folder: Path, place: str, template: PromptTemplate | None, problems: list[str]) -> list[Example]:
    """The rows of every .jsonl file in `folder`, rendered; `place` is put before file names in the problems.

    Without a template (it has problems of its own) the rows are checked as far as they can be.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        problems.append(
            f"{folder.name}/: no .jsonl file (found {_listing(folder)}); instruction tuning needs one JSON object a line"
        )
        return []
    examples = []
    rows = 0
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                rows += 1
                try:
                    row = parse_row(line)
                    if template:
                        examples.append(render_row(row, template))
                except ValueError as error:
                    problems.extend(f"{place}{path.name}:{number}: {problem}" for problem in str(error).split("\n"))
    if not rows:
        problems.append(f"{place}{', '.join(path.name for path in paths)}: no rows; write one JSON object a line")
    return examples


def parse_row(line: bytes) -> dict[str, Any]:
    """One line as an object. Raises ValueError saying what is wrong with it."""
    try:
        text = line.decode("utf-8").lstrip("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}); save as UTF-8"
        ) from None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}): {_short(text)}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, expected one JSON object a line: {_short(text)}")
    return row


def render_row(row: Mapping[str, Any], template: PromptTemplate) -> Example:
    """The row through the template. Raises ValueError with one line for each problem of the row."""
    problems = []
    for column in template.columns:
        if column not in row:
            problems.append(
                f"no column {column!r}, which {files.TEMPLATE_FILE} uses; columns here: "
                f"{_short(', '.join(map(repr, row))) or 'none'}"
            )
        elif not isinstance(row[column], str):
            problems.append(f"{column!r} is {_short(json.dumps(row[column]))}, expected a text in quotes")
        elif _has_lone_surrogate(row[column]):
            problems.append(
                f"{column!r} holds half of a surrogate pair, which is no character; remove the \\ud... escape"
            )
    if problems:
        raise ValueError("\n".join(problems))
    completion = template.render_completion(row)
    if not completion.strip():
        raise ValueError("the completion is empty, so there is nothing to learn; write an answer or drop the row")
    return Example(template.render_prompt(row), completion, ends=True)


# ---------------------------------------------------------------- domain adaptation


def read_document(folder: Path, place: str, problems: list[str]) -> list[Example]:
    """The one document file in `folder`, in pieces of whole paragraphs."""
    paths = sorted(
        path for path in folder.iterdir() if path.suffix in DOCUMENT_SUFFIXES and path.name != files.PROMPTS_FILE
    )
    if len(paths) != 1:
        problems.append(
            f"{folder.name}/: domain adaptation takes exactly one .txt, .csv or .json file, found {len(paths)} "
            f"({_listing(folder)})"
        )
        return []
    path = paths[0]
    before = len(problems)
    text = _decode(path, problems)
    if text is None:
        return []
    if path.suffix == ".txt":
        documents = [text]
    else:
        rows = _csv_rows(text) if path.suffix == ".csv" else _json_rows(text)
        documents = list(_texts(rows, f"{place}{path.name}", problems))
    examples = [example for document in documents for example in pieces(document)]
    if not examples and len(problems) == before:
        problems.append(f"{place}{path.name}: holds no text; write the text to learn from into it")
    return examples


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Line and row; a ValueError takes the place of a row that cannot be read."""
    csv.field_size_limit(sys.maxsize)  # a whole document in one field is usual here
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        yield reader.line_num, ValueError(f"not valid CSV ({error})")


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Place and row of a JSON array (place: the row's number), a single object, or one object a line."""
    try:
        content = json.loads(text)
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):
            yield (
                error.lineno if isinstance(error, json.JSONDecodeError) else 1,
                ValueError(f"not valid JSON ({error})"),
            )
            return
        for number, line in lines:
            try:
                yield number, json.loads(line)
            except ValueError as line_error:
                yield number, ValueError(f"not valid JSON ({line_error}): {_short(line)}")
        return
    yield from enumerate(content if isinstance(content, list) else [content], start=1)


def _texts(rows: Iterator[tuple[int, Any]], place: str, problems: list[str]) -> Iterator[str]:
    """The texts of the rows: column `text`, else the first column."""
    for number, row in rows:
        if isinstance(row, ValueError):
            problems.append(f"{place}:{number}: {row}")
        elif not isinstance(row, dict) or not row:
            problems.append(f"{place}:{number}: {_short(repr(row))} is no row, expected an object with a column 'text'")
        else:
            column = "text" if "text" in row else next(iter(row))
            if isinstance(row[column], str) and not _has_lone_surrogate(row[column]):
                yield row[column]
            else:
                problems.append(f"{place}:{number}: {column!r} is {_short(repr(row[column]))}, expected a text")


def pieces(document: str) -> Iterator[Example]:
    """The document in pieces of whole paragraphs; put together again they are the document (with LF line ends).

    Where a piece ends depends on the few paragraphs around it alone, so that most pieces, and with them their splits,
    stay as they are when the document is edited elsewhere. Only the last one ends the text.
    """
    finished: list[str] = []
    current = ""
    for paragraph in _paragraphs(document.replace("\r\n", "\n").replace("\r", "\n").strip()):
        current += paragraph
        if len(current) >= PIECE_CHARACTERS:
            finished.append(current)
            current = ""
    if current.strip():
        finished.append(current)
    for number, piece in enumerate(finished, start=1):
        yield Example("", piece, ends=number == len(finished))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs, each with the blank lines after it, none longer than PARAGRAPH_CHARACTERS and those lines."""
    parts = re.split(r"(\n\s*\n)", text)
    for paragraph, blank_lines in zip(parts[::2], [*parts[1::2], ""], strict=True):
        while len(paragraph) > PARAGRAPH_CHARACTERS:
            ends = (paragraph.rfind(end, 0, PARAGRAPH_CHARACTERS) + len(end) for end in ("\n", ". ", " "))
            cut = next((end for end in ends if end > PARAGRAPH_CHARACTERS // 2), PARAGRAPH_CHARACTERS)
            yield paragraph[:cut]
            paragraph = paragraph[cut:]
        yield paragraph + blank_lines


# ---------------------------------------------------------------- what both share


def _decode(path: Path, problems: list[str]) -> str | None:
    """The text of a file, or None and a problem if it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(f"{path.name}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8")
        return None


def _has_lone_surrogate(text: str) -> bool:
    # JSON can spell one, UTF-8 cannot: without this check the row would break the writing of the dataset.
    return re.search("[\ud800-\udfff]", text) is not None


def _listing(folder: Path) -> str:
    return _short(", ".join(sorted(path.name for path in folder.iterdir()))) or "nothing"


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
