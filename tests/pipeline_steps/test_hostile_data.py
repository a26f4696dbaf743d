"""Data that is made to do harm: files that unpack without end, rows and templates that multiply, templates that reach out."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline_steps import prepare_data
from pipeline_steps.contract import chat_format, prompt_template
from pipeline_steps.contract.errors import DataError
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.data import parts, sources
from pipeline_steps.data.rows import Bad, Record, RowReader
from pipeline_steps.data.sources import Part, SourceFile
from pipeline_steps.prepare_data import PrepareJob

Raw = Callable[[dict[str, Any]], Path]


def zstandard(pieces: Iterator[bytes]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        for piece in pieces:
            stream.write(piece)
    return bytes(sink.getvalue())


def bomb(ending: str, piece: bytes, megabytes: int) -> bytes:
    """A compressed file that unpacks to so many megabytes of `piece`."""
    count = megabytes * 2**20 // len(piece)
    if ending == "gz":
        packed = gzip.compress(piece)
        return packed * count  # a file may hold several streams
    return zstandard(piece for _ in range(count))


def problems(raw: Path, **changes: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        prepare_data.run(PrepareJob(str(raw), raw.parent / "report", "instruction", **changes))
    return caught.value.problems


@pytest.fixture
def little_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limit with less that is free, so that the tests need not unpack so much."""
    monkeypatch.setattr(sources, "GROWTH_FREE_BYTES", 2**20)


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("piece", [bytes(2**20), b" " * 1023 + b"\n"], ids=["one endless line", "blank lines"])
@pytest.mark.usefixtures("little_growth")
def test_a_file_that_unpacks_without_end_is_refused_at_a_limit(raw: Raw, ending: str, piece: bytes) -> None:
    content = bomb(ending, piece * (2**20 // len(piece)), megabytes=40)
    assert len(content) < 2**17
    told = problems(raw({f"train/x.jsonl.{ending}": content}))
    most = (sources.GROWTH_FREE_BYTES + sources.MOST_GROWTH * len(content)) // 2**20
    (refused,) = [one for one in told if "unpack to" in one]
    assert f"train/x.jsonl.{ending}: {len(content)} bytes unpack to more than {most} MB" in refused
    assert "store it uncompressed" in refused


@pytest.mark.usefixtures("little_growth")
def test_a_parquet_file_whose_one_value_is_in_every_row_is_refused(raw: Raw, tmp_path: Path) -> None:
    value = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["x" * 2**15])
    columns = {"instruction": value, "context": value, "response": value}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet", compression="zstd")
    content = (tmp_path / "x.parquet").read_bytes()
    assert len(content) < 2**16
    assert any("unpack to more than" in problem for problem in problems(raw({"train/x.parquet": content})))


@pytest.mark.usefixtures("little_growth")
def test_a_parquet_file_that_unpacks_to_more_by_its_own_account_is_refused_unread(raw: Raw, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"instruction": ["x" * 2**25]}), tmp_path / "x.parquet", compression="zstd")
    content = (tmp_path / "x.parquet").read_bytes()
    assert any("unpack to more than" in problem for problem in problems(raw({"train/x.parquet": content})))


def test_data_that_shrinks_well_is_still_data(raw: Raw) -> None:
    rows = [{"instruction": "Sum up. " * 500, "context": str(number), "response": "ok"} for number in range(3000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    content = gzip.compress(lines)
    assert len(lines) > 100 * len(content)
    source = SourceFile(str(raw({"x.jsonl.gz": content}) / "x.jsonl.gz"), "x.jsonl.gz", "train", len(content))
    assert sum(1 for _ in sources.read(Part(0, source, 0, len(content), True))) == 3000


def test_a_template_that_multiplies_its_rows_is_refused_row_by_row(raw: Raw) -> None:
    template = {"prompt": "{instruction}" * 2000, "completion": "{response}"}
    rows = [{"instruction": "x" * 2**16, "response": str(number)} for number in range(5)]
    told = problems(raw({"train/x.jsonl": rows, "train/template.json": json.dumps(template)}))
    assert len(told) == 5
    assert "train/x.jsonl:1: the example has 131,0" in told[0] and "at most 10,485,760 are accepted" in told[0]


def test_rows_are_taken_in_blocks_of_bounded_length() -> None:
    long, short = parts.BLOCK_CHARACTERS // 4, 10
    rows = [(line, Bad(line, [], "x" * (long if line < 20 else short))) for line in range(2000)]
    blocks = list(parts._blocks(iter(rows)))
    assert [row for block in blocks for row in block] == rows
    assert all(len(block) <= parts.BLOCK_ROWS for block in blocks)
    assert max(sum(len(row.content) for _, row in block) for block in blocks) <= parts.BLOCK_CHARACTERS + long


@pytest.mark.parametrize("name", ["train/template.json", "prompts.txt"])
def test_a_template_or_a_list_of_prompts_that_is_none_by_its_size_is_refused(raw: Raw, name: str) -> None:
    told = problems(raw({"train/x.jsonl": [{"instruction": "a"}], name: b"x" * (sources.LONGEST_SMALL_FILE + 1)}))
    assert any(f"{name.rsplit('/', 1)[-1]}: is larger than 1 MB" in problem for problem in told)


# ---------------------------------------------------------------- templates that reach out


@pytest.mark.parametrize(
    "attack", ["{0.__class__}", "{0}", "{x[0]}", "{x!r}", "{x:>1000000000}", "{x[__globals__]}", "{0[secret]}"]
)
def test_a_template_that_would_format_is_refused_by_name(attack: str) -> None:
    content = json.dumps({"prompt": f"{{x}} {attack}", "completion": "{y}"}).encode()
    with pytest.raises(DataError, match="a placeholder is a column's name alone") as caught:
        prompt_template.read(content, "template.json")
    assert attack in str(caught.value)


def test_an_attribute_in_a_template_is_a_column_that_no_row_has(raw: Raw) -> None:
    template = {"prompt": "{instruction.__class__.__init__.__globals__}", "completion": "{response}"}
    folder = raw(
        {"train/x.jsonl": [{"instruction": "a", "response": "b"}], "train/template.json": json.dumps(template)}
    )
    assert "no column 'instruction.__class__.__init__.__globals__'" in problems(folder)[0]


@given(st.text(alphabet=st.sampled_from("{}[]!:.0ax_ "), max_size=30), st.text(max_size=10))
def test_a_template_never_gives_more_than_its_own_text_and_the_rows(text: str, value: str) -> None:
    content = json.dumps({"prompt": f"{{a}}{text}", "completion": "{a}"}).encode()
    try:
        template = prompt_template.read(content, "template.json")
    except DataError:
        return
    rendered = template.render_prompt(dict.fromkeys(template.columns, value))
    assert len(rendered) <= template.rendered_length(dict.fromkeys(template.columns, value))
    assert set(rendered) <= set(template.prompt) | set(value)


def test_braces_in_a_row_are_text() -> None:
    attack = "{0.__class__}{y}{{"
    assert PromptTemplate("{x}", "{y}").render_prompt({"x": attack, "y": "secret"}) == attack


def test_a_long_record_says_so() -> None:
    reader = RowReader("chat", None, chat_format.of_no_tokenizer())
    turns = [{"role": "user", "content": "x" * 6 * 2**20}, {"role": "assistant", "content": "y" * 6 * 2**20}]
    with pytest.raises(ValueError, match="the example has 12,582,912 characters"):
        reader._chat({"messages": turns})
    record = reader._chat({"messages": [{**turn, "content": "hello"} for turn in turns]})
    assert isinstance(record, Record) and record.characters == 10
