"""Rows as they come -> records: the texts in a row, checked, and what is rendered from them.

Each mode has one reader. A reader says what is wrong with a row as ValueError, one line for each problem.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline_steps.contract import dataset, files
from pipeline_steps.contract.chat_format import ChatFormat
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.data.sources import LONGEST_LINE, Part, Position, Raw, object_of, read

CHUNK_CHARACTERS = 400  # of domain text in one example: a paragraph or two, about 100 tokens
LONGEST_PARAGRAPH = 2000  # characters; a text without paragraphs must not become one endless row

CHAT_COLUMNS = ("dialog", "messages", "conversations")
HALF_A_PAIR = "holds half a surrogate pair, which is no text; mend the escape \\ud800.."
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Record:
    """The texts of one row. `render` makes the example of them, once personal data is redacted in them or left.

    `asked` and `answered` are the row's own words, without the template's: duplicates and leaks are looked for in them.
    `group`: rows with the same group stay on the same side of the split. `characters`: about how long the example is.
    """

    texts: Mapping[str, str]
    group: str
    characters: int
    render: Callable[[Mapping[str, str]], Example]
    asked: Callable[[Mapping[str, str]], str]
    answered: Callable[[Mapping[str, str]], str]


class Bad(NamedTuple):
    """A row that cannot be used: its line, why (one line for each problem), and the row as it came."""

    line: int
    problems: list[str]
    content: str


@dataclass(frozen=True)
class RowReader:
    """How the rows of a dataset are read, by a template or a chat format. `group_column`: its value is the group; None
    groups by the prompt.

    `slice_column`: its value is the row's slice, for which evaluation has figures of its own; domain texts have none.
    """

    mode: dataset.Mode
    template: PromptTemplate | None
    chat: ChatFormat | None = None
    group_column: str | None = None
    slice_column: str | None = None

    def records(self, part: Part, position: Position | None = None) -> Iterator[tuple[int, Record | Bad]]:
        """Line and record of each row of the part; `position` tells how far it is read.

        Raises DataError where the file as such cannot be read.
        """
        if self.mode == "domain":
            yield from self._domain(part, position)
            return
        read_row = self._chat if self.mode == "chat" else self._instruction
        first = part.start == 0
        for line, content in read(part, position):
            if isinstance(content, bytes):
                if not content.strip():
                    continue
                if first and content.lstrip().startswith(b"["):  # else every line of it would be told
                    raise DataError(
                        [
                            f"{part.file.name}:{line}: holds a JSON array ({short(readable(content))}), expected one JSON "
                            "object a line; write each element on a line of its own"
                        ]
                    )
            first = False
            try:
                yield line, read_row(parse_row(content) if isinstance(content, bytes) else content)
            except ValueError as error:
                yield line, Bad(line, str(error).split("\n"), readable(content))

    # ---------------------------------------------------------------- instruction tuning

    def _instruction(self, row: Mapping[str, Any]) -> Record:
        template = self.template
        assert template is not None
        problems = []
        for column in template.columns:
            if column not in row:
                problems.append(
                    f"no column {column!r}, which {files.TEMPLATE_FILE} uses; columns here: {', '.join(map(repr, row))}"
                )
            elif not isinstance(row[column], str):
                problems.append(
                    f"{column!r} is {short(json.dumps(row[column], default=str))}, expected a text in quotes"
                )
            elif not encodable(row[column]):
                problems.append(f"{column!r} {HALF_A_PAIR}")
        problems += self._column_problems(row)
        if problems:
            raise ValueError("\n".join(problems))
        one_slice = self._slice(row)
        texts = {column: row[column] for column in template.columns}
        characters = template.rendered_length(texts)
        refuse_long(characters)
        if not template.render_completion(texts).strip():
            raise ValueError("the completion is empty, so there is nothing to learn; write an answer or drop the row")
        prompt_columns = template.prompt_columns
        return Record(
            texts,
            self._group(row) or template.render_prompt(texts),
            characters,
            lambda texts: Example(
                template.render_prompt(texts), template.render_completion(texts), ends=True, slice=one_slice
            ),
            lambda texts: "\n".join(texts[column] for column in prompt_columns),
            lambda texts: template.render_completion(texts),
        )

    # ---------------------------------------------------------------- chat

    def _chat(self, row: Mapping[str, Any]) -> Record:
        turns = read_turns(row)
        problems = self._column_problems(row)
        if problems:
            raise ValueError("\n".join(problems))
        one_slice = self._slice(row)
        chat = self.chat
        assert chat is not None
        roles = [role for role, _ in turns]
        own = {str(number): text for number, (_, text) in enumerate(turns)}
        characters = sum(map(len, own.values()))
        refuse_long(characters)
        as_it_came = chat.turns(turns)

        def render(texts: Mapping[str, str]) -> Example:
            redacted = texts != own
            *history, (prompt, completion) = (
                chat.turns(list(zip(roles, texts.values(), strict=True))) if redacted else as_it_came
            )
            return Example(prompt, completion, ends=True, history=tuple(history), slice=one_slice)

        return Record(
            own,
            self._group(row) or json.dumps(turns[:-1]),
            characters,
            render,
            lambda texts: "\n".join(list(texts.values())[:-1]),
            lambda texts: list(texts.values())[-1],
        )

    # ---------------------------------------------------------------- domain adaptation

    def _domain(self, part: Part, position: Position | None) -> Iterator[tuple[int, Record | Bad]]:
        if part.file.ending == ".txt":
            yield from self._chunks(_paragraphs(read(part, position)), ends=part.last)
            return
        for line, content in read(part, position):
            if isinstance(content, bytes) and not content.strip():
                continue
            try:
                text = document_text(parse_row(content) if isinstance(content, bytes) else content)
            except ValueError as error:
                yield line, Bad(line, str(error).split("\n"), readable(content))
                continue
            yield from self._chunks(((line, paragraph) for paragraph in paragraphs_of(text)), ends=True)

    @staticmethod
    def _chunks(paragraphs: "Iterable[tuple[int, str | Bad]]", ends: bool) -> Iterator[tuple[int, Record | Bad]]:
        """Pieces of about CHUNK_CHARACTERS, cut between paragraphs; only the last one ends the document."""

        def record(line: int, piece: str, last: bool) -> tuple[int, Record]:
            def render(texts: Mapping[str, str]) -> Example:
                return Example("", texts["text"], ends=last and ends)

            return line, Record(
                {"text": piece}, piece, len(piece), render, lambda texts: "", lambda texts: texts["text"]
            )

        held: tuple[int, str] | None = None  # the newest whole piece; whether it is the last is known later
        started, current = 0, list[str]()
        for line, paragraph in paragraphs:
            if isinstance(paragraph, Bad):
                yield line, paragraph
                continue
            for part in _bounded(paragraph):
                started = started if current else line
                current.append(part)
                if sum(map(len, current)) >= CHUNK_CHARACTERS:
                    if held:
                        yield record(*held, last=False)
                    held, current = (started, "\n\n".join(current)), []
        if held:
            yield record(*held, last=not current)
        if current:
            yield record(started, "\n\n".join(current), last=True)

    # ---------------------------------------------------------------- groups and slices

    def _column_problems(self, row: Mapping[str, Any]) -> list[str]:
        return [
            f"the {what} column {column!r} is {short(repr(row.get(column)))}, "
            f"expected a text or a whole number; columns here: {', '.join(map(repr, row))}"
            for what, column in (("group", self.group_column), ("slice", self.slice_column))
            if column is not None and not (isinstance(row.get(column), int) or _is_text(row.get(column)))
        ]

    def _group(self, row: Mapping[str, Any]) -> str:
        return f"{self.group_column}={row[self.group_column]}" if self.group_column else ""

    def _slice(self, row: Mapping[str, Any]) -> str | None:
        return str(row[self.slice_column]) if self.slice_column else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and encodable(value)


# ---------------------------------------------------------------- one row


def parse_row(line: bytes) -> dict[str, Any]:
    """One line as an object. Raises ValueError saying what is wrong with it."""
    if len(line) > LONGEST_LINE:
        raise ValueError(
            f"the line is longer than {LONGEST_LINE // 2**20} MB: {short(line[:100].decode(errors='replace'))}; "
            "write one JSON object a line, and split texts that no context window holds"
        )
    text = decoded(line).lstrip("\ufeff")
    try:
        row = json.loads(text, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno}): {short(text)}") from None
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise ValueError(f"not valid JSON ({error}): {short(text)}") from None
    except RecursionError:
        raise ValueError(f"nested too deeply to be read: {short(text)}") from None
    if not isinstance(row, dict):
        raise ValueError(f"holds {type(row).__name__}, expected one JSON object: {short(text)}")
    return row


def refuse_long(characters: int) -> None:
    """Raises ValueError if an example of so many characters is longer than any line may be.

    A template that names a column a thousand times makes it so, and files without lines hold what no line could.
    """
    if characters > LONGEST_LINE:
        raise ValueError(
            f"the example has {characters:,} characters, and at most {LONGEST_LINE:,} are accepted; split its texts, or name "
            f"their columns less often in {files.TEMPLATE_FILE}"
        )


def decoded(line: bytes) -> str:
    """The line as text. Raises ValueError saying where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}); save as UTF-8"
        ) from None


def readable(content: Any) -> str:
    """A raw row as text that can be written as UTF-8, whatever it was."""
    if isinstance(content, bytes):
        return content.decode("utf-8", errors="backslashreplace")
    return json.dumps(content, ensure_ascii=True, default=str)


def encodable(text: str) -> bool:
    """False for half a surrogate pair: JSON can spell it, but it is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def read_turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each turn of a dialog, in either of the two usual spellings. Raises ValueError."""
    columns = [column for column in CHAT_COLUMNS if column in row]
    if len(columns) != 1:
        raise ValueError(
            f"a dialog lies in one of the columns {', '.join(map(repr, CHAT_COLUMNS))}; columns here: {', '.join(map(repr, row)) or 'none'}"
        )
    turns, problems = row[columns[0]], []
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{columns[0]!r} is {short(json.dumps(turns, default=str))}, expected a list of turns")
    read: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            problems.append(
                f"turn {number} is {short(json.dumps(turn, default=str))}, expected an object with role and content"
            )
            continue
        role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            problems.append(f"turn {number}: the role is {role!r}; allowed: {', '.join(ROLES)}")
        if not isinstance(text, str):
            problems.append(
                f"turn {number}: the content is {short(json.dumps(text, default=str))}, expected a text in quotes"
            )
        elif not text.strip():
            problems.append(f"turn {number}: the content is empty; write a text or drop the dialog")
        elif not encodable(text):
            problems.append(f"turn {number}: the content holds half a surrogate pair, which is no text")
        if not problems:
            assert isinstance(role, str) and isinstance(text, str)
            read.append((ROLES[role], text))
    if not problems:
        roles = [role for role, _ in read]
        body = roles[1:] if roles[0] == "system" else roles
        if not body or len(body) % 2 or body != ["user", "assistant"] * (len(body) // 2):
            problems.append(
                f"the roles are {', '.join(roles)}; allowed: system first if at all, then user and assistant in turn, "
                "ending with assistant"
            )
    if problems:
        raise ValueError("\n".join(problems))
    return read


def document_text(row: Any) -> str:
    """The text of a CSV, JSON or Parquet row: column `text`, else the first column. Raises ValueError."""
    if not isinstance(row, dict) or not row:
        raise ValueError(f"is {short(repr(row))}, expected an object with a column 'text'")
    column = "text" if "text" in row else next(iter(row))
    text = row[column]
    if not isinstance(text, str):
        raise ValueError(f"{column!r} is {short(repr(text))}, expected a text")
    if not encodable(text):
        raise ValueError(f"{column!r} {HALF_A_PAIR}")
    if not text.strip():
        raise ValueError(f"{column!r} is empty, so there is nothing to learn; write a text or drop the row")
    return text


def paragraphs_of(text: str) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return [paragraph.strip("\n") for paragraph in paragraphs if paragraph.strip()]


def _paragraphs(lines: Iterable[Raw]) -> "Iterator[tuple[int, str | Bad]]":
    """Paragraphs of a text file, each with its first line; a line that is not UTF-8 is bad."""
    started, current = 0, list[str]()
    for line, content in lines:
        try:
            text = decoded(content)
        except ValueError as error:
            yield line, Bad(line, [str(error)], readable(content))
            continue
        if text.strip():
            started = started if current else line
            current.append(text)
        if current and (not text.strip() or sum(map(len, current)) > LONGEST_PARAGRAPH):
            yield started, "\n".join(current)
            current = []
    if current:
        yield started, "\n".join(current)


def _bounded(paragraph: str) -> Iterator[str]:
    """The paragraph, cut at white space (or anywhere, without any) where it is longer than LONGEST_PARAGRAPH."""
    while len(paragraph) > LONGEST_PARAGRAPH:
        cut = max(paragraph.rfind(" ", 1, LONGEST_PARAGRAPH), paragraph.rfind("\n", 1, LONGEST_PARAGRAPH))
        cut = cut if cut > 0 else LONGEST_PARAGRAPH
        yield paragraph[:cut]
        paragraph = paragraph[cut:].lstrip()
    if paragraph:
        yield paragraph
