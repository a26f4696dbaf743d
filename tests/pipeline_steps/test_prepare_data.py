"""PrepareData: what is accepted, how it is divided, and how bad rows are told."""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline_steps import prepare_data
from pipeline_steps.contract import dataset, files, progress
from pipeline_steps.contract.dataset import SPLITS, Example
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.contract.prompt_template import DEFAULT
from pipeline_steps.data import lengths, parts, sources, workers
from pipeline_steps.data.instances_engine import InstancesEngine
from pipeline_steps.data.rows import RowReader
from pipeline_steps.data.sagemaker_job import Instances
from pipeline_steps.prepare_data import PrepareJob

EXAMPLES = Path(__file__).parents[2] / "examples"
Raw = Callable[[dict[str, Any]], Path]


def job(raw: Path, mode: Any = "instruction", **changes: Any) -> PrepareJob:
    return PrepareJob(str(raw), raw.parent / "checked" / "report", mode, 0.1, 0.2, **changes)


class Checked:
    """What a run without publishing leaves: the card, and the dataset as it would have been published."""

    def __init__(self, job: PrepareJob, tmp_path: Path) -> None:
        self.card = prepare_data.prepare(job, tmp_path, InstancesEngine(tmp_path, Instances(), ""), 0.0)
        self.report = job.output
        self.splits: dict[str, list[Example]] = {}
        for split in SPLITS:
            folder = tmp_path / "dataset" / split
            lines = [
                line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").split("\n")[:-1]
            ]
            self.splits[split] = [dataset._example(json.loads(line)) for line in lines]

    @property
    def rows(self) -> list[Example]:
        return [example for examples in self.splits.values() for example in examples]


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Checked]:
    """Check a folder; every call in a folder of its own."""
    count = iter(range(100))

    def run(raw: Path, mode: Any = "instruction", **changes: Any) -> Checked:
        work = tmp_path / f"work-{next(count)}"
        work.mkdir()
        return Checked(replace(job(raw, mode, **changes), output=work / "report"), work)

    return run


WORDS = ["harbour", "ferry", "notice", "passengers", "crossing", "timetable", "weather", "deck", "ticket"]


def rows(number: int, start: int = 0) -> list[dict[str, str]]:
    """Rows that are no near duplicates of each other."""

    def words(seed: int, count: int) -> str:
        return " ".join(f"{WORDS[(seed * 7 + k * k) % len(WORDS)]}{seed * 31 + k}" for k in range(count))

    return [
        {"instruction": "Sum up.", "context": words(i, 12), "response": words(i + 5000, 4)}
        for i in range(start, start + number)
    ]


def problems(raw: Path, mode: Any = "instruction", **changes: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        prepare_data.run(job(raw, mode, **changes))
    left = {path.relative_to(raw.parent / "checked").as_posix() for path in (raw.parent / "checked").rglob("*")}
    assert left <= {"report", "report/quarantine.jsonl"}, "a refused dataset leaves its bad rows and no scratch files"
    return caught.value.problems


# ---------------------------------------------------------------- good data


@pytest.mark.parametrize(("mode", "minimum"), [("instruction", 240), ("domain", 100), ("chat", 120)])
def test_our_examples_are_good_data_and_enough_for_the_gate(check: Any, mode: str, minimum: int) -> None:
    checked = check(EXAMPLES / mode, mode)
    assert len(checked.rows) == checked.card["rows"]["kept"] >= minimum
    assert len(checked.splits["test"]) >= 20


def test_the_domain_example_holds_at_least_60_kilobytes() -> None:
    assert (EXAMPLES / "domain" / "train" / "annual_reports.txt").stat().st_size >= 60 * 1024


def test_the_folder_itself_may_be_the_train_folder_as_on_jumpstart(raw: Raw, check: Any) -> None:
    folder = raw({"a.jsonl": rows(40), "b.jsonl": rows(40, start=100)})
    assert len(check(folder).rows) == 80


def test_without_a_template_the_documented_default_is_used(raw: Raw, check: Any) -> None:
    checked = check(raw({"train/x.jsonl": rows(60)}))
    assert checked.splits["train"][0].prompt.startswith("Below is an instruction that describes a task")


def test_the_demarcation_key_of_jumpstart_comes_after_a_template_of_ones_own(raw: Raw, check: Any) -> None:
    template = {"prompt": "{instruction} {context}", "completion": "{response}"}
    folder = raw({"train/x.jsonl": rows(60), "train/template.json": json.dumps(template)})
    assert not check(folder).splits["train"][0].prompt.endswith("### Response:\n")
    marked = check(folder, add_input_output_demarcation_key=True)
    assert marked.splits["train"][0].prompt.endswith("\n\n### Response:\n")
    assert marked.card["template"]["prompt"].endswith("\n\n### Response:\n"), "the template travels with it"


def test_a_validation_folder_replaces_the_validation_split(raw: Raw, check: Any) -> None:
    checked = check(raw({"train/x.jsonl": rows(60), "validation/y.jsonl": rows(5, start=1000)}))
    assert len(checked.splits["validation"]) == 5
    assert len(checked.splits["train"]) + len(checked.splits["test"]) == 60
    assert checked.card["split"]["own_validation_folder"] is True


def test_blank_lines_byte_order_marks_and_windows_line_ends_are_no_problem(raw: Raw, check: Any) -> None:
    lines = [json.dumps(row) for row in rows(60)]
    folder = raw({"train/x.jsonl": b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n"})
    assert len(check(folder).rows) == 60


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def table(content: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(content), sink, row_group_size=25)
    return bytes(sink.getvalue())


def test_the_same_rows_are_the_same_dataset_in_every_format(raw: Raw, check: Any) -> None:
    content = rows(90)
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    half = lines.index(b"\n", len(lines) // 2) + 1
    formats = {
        "x.jsonl": lines,
        "x.jsonl.gz": gzip.compress(lines[:half]) + gzip.compress(lines[half:]),  # files may be joined
        "x.jsonl.zst": zstandard(lines),
        "x.parquet": table(content),
    }
    digests = {
        name: check(raw({f"{name}-only/train/{name}": data}) / f"{name}-only").card["dataset_digest"]
        for name, data in formats.items()
    }
    assert len(set(digests.values())) == 1, digests


def test_the_digest_depends_on_the_content_alone(raw: Raw, check: Any) -> None:
    def digest(name: str, number: int) -> Any:
        return check(raw({f"{name}/train/x.jsonl": rows(number)}) / name).card["dataset_digest"]

    assert digest("a", 60) == digest("b", 60) != digest("c", 61)


def test_the_number_of_rows_can_be_limited_as_on_jumpstart(raw: Raw, check: Any) -> None:
    checked = check(raw({"train/x.jsonl": rows(100)}), max_train_samples=20, max_val_samples=3)
    assert (len(checked.splits["train"]), len(checked.splits["validation"])) == (20, 3)
    read = checked.card["rows"]
    assert read["read"] == 100 == read["kept"] + read["left_out"]


# ---------------------------------------------------------------- the split


@given(st.integers(0, 10), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_a_row_keeps_its_side_when_rows_are_added(seed: int, validation: float, test: float) -> None:
    sides = {str(i): parts.split_of(str(i), seed, validation, test) for i in range(30)}
    assert all(parts.split_of(group, seed, validation, test) == side for group, side in sides.items())
    assert parts.split_of("0", seed, 0.0, 1.0) == "test"


def test_the_sides_of_rows_are_the_same_in_every_version() -> None:
    """A change of these moves rows between training and test sets that are in use."""
    assert [parts.split_of(f"{group}", 0, 0.2, 0.3) for group in range(8)] == [
        "train", "train", "train", "validation", "test", "train", "train", "test",
    ]  # fmt: skip


def test_the_splits_have_about_the_size_that_was_asked_for() -> None:
    sides = [parts.split_of(str(i), 0, 0.1, 0.15) for i in range(20_000)]
    assert sides.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert sides.count("test") / 20_000 == pytest.approx(0.15, abs=0.01)


def test_rows_that_are_added_move_no_other_row(raw: Raw, check: Any) -> None:
    few = check(raw({"few/x.jsonl": rows(80)}) / "few")
    more = check(raw({"more/x.jsonl": rows(200)}) / "more")
    for split in SPLITS:
        assert {one.id for one in few.splits[split]} <= {one.id for one in more.splits[split]}


def test_two_answers_to_one_prompt_are_never_divided(raw: Raw, check: Any) -> None:
    content = [{**row, "response": answer} for row in rows(60) for answer in ("yes indeed", "no never", "may be")]
    checked = check(raw({"x.jsonl": content}))
    sides = {split: {one.prompt for one in examples} for split, examples in checked.splits.items()}
    assert len(checked.rows) == 180
    assert not (sides["train"] & sides["test"] or sides["train"] & sides["validation"])


def test_rows_of_one_group_are_never_divided(raw: Raw, check: Any) -> None:
    content = [{**row, "document": f"report {number // 4}"} for number, row in enumerate(rows(120))]
    checked = check(raw({"x.jsonl": content}), split_group_column="document")
    document = {row["context"]: row["document"] for row in content}
    sides = {
        split: {name for one in examples for context, name in document.items() if context in one.prompt}
        for split, examples in checked.splits.items()
    }
    assert not (sides["train"] & sides["test"] or sides["train"] & sides["validation"])


def test_a_group_column_that_a_row_lacks_is_a_problem_of_that_row(raw: Raw) -> None:
    told = problems(raw({"x.jsonl": rows(40)}), split_group_column="document")
    assert len(told) == 40 and "x.jsonl:1: the group column 'document' is None" in told[0]


def test_the_slice_column_travels_with_the_rows_and_makes_another_dataset(raw: Raw, check: Any) -> None:
    content = [{**row, "topic": f"t{number % 3}"} for number, row in enumerate(rows(60))]
    checked = check(raw({"x.jsonl": content}), slice_column="topic")
    topic = {row["context"]: row["topic"] for row in content}
    for examples in checked.splits.values():
        assert all(one.slice == next(t for context, t in topic.items() if context in one.prompt) for one in examples)
    assert checked.card["dataset_digest"] != check(raw({"x.jsonl": content})).card["dataset_digest"]
    told = problems(raw({"x.jsonl": rows(40)}), slice_column="topic")
    assert len(told) == 40 and "x.jsonl:1: the slice column 'topic' is None" in told[0]


# ---------------------------------------------------------------- chat


def dialogs(number: int, column: str = "dialog") -> list[dict[str, Any]]:
    return [
        {
            column: [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": row["context"]},
                {"role": "assistant", "content": row["response"]},
                {"role": "user", "content": f"And {row['context'][::-1]}?"},
                {"role": "assistant", "content": f"No: {row['response'][::-1]}"},
            ]
        }
        for row in rows(number)
    ]


@pytest.mark.parametrize("column", ["dialog", "messages", "conversations"])
def test_a_dialog_is_one_example_with_every_answer_in_it(raw: Raw, check: Any, column: str) -> None:
    checked = check(raw({"x.jsonl": dialogs(60, column)}), "chat")
    example = checked.rows[0]
    assert len(checked.rows) == 60 and len(example.history) == 1
    assert example.history[0][0].startswith("[INST] Be brief.\n\n") and example.prompt.startswith("[INST] And ")
    assert example.completion.startswith(" No: ")


def test_the_spelling_of_sharegpt_is_the_same_dialog(raw: Raw, check: Any) -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    other = [
        {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in row["dialog"]]}
        for row in dialogs(60)
    ]
    one, two = raw({"a/x.jsonl": dialogs(60)}) / "a", raw({"b/x.jsonl": other}) / "b"
    assert check(one, "chat").card["dataset_digest"] == check(two, "chat").card["dataset_digest"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "a dialog lies in one of the columns 'dialog', 'messages', 'conversations'"),
        ({"dialog": []}, "'dialog' is [], expected a list of turns"),
        ({"dialog": "hello"}, "expected a list of turns"),
        ({"dialog": ["hello"]}, 'turn 1 is "hello", expected an object with role and content'),
        ({"dialog": [{"role": "bot", "content": "x"}]}, "turn 1: the role is 'bot'; allowed: system, user"),
        ({"dialog": [{"role": "user", "content": 5}]}, "turn 1: the content is 5, expected a text"),
        ({"dialog": [{"role": "user", "content": " "}]}, "turn 1: the content is empty"),
        ({"dialog": [{"role": "user", "content": "x"}]}, "the roles are user; allowed: system first"),
        (
            {"dialog": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]},
            "the roles are assistant, user",
        ),
        (
            {"dialog": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]},
            "the roles are user, system",
        ),
    ],
)
def test_a_dialog_that_is_none_is_told(raw: Raw, row: dict[str, Any], said: str) -> None:
    (told,) = problems(raw({"x.jsonl": [*dialogs(30), row]}), "chat")
    assert told.startswith("x.jsonl:31: ") and said in told


def test_the_data_card_shows_a_dialog_turn_by_turn(raw: Raw, check: Any) -> None:
    checked = check(raw({"x.jsonl": dialogs(60)}), "chat")
    assert checked.card["samples"]["train"][0] == [list(turn) for turn in checked.splits["train"][0].turns]


# ---------------------------------------------------------------- domain adaptation


def chunks(raw: Raw, text: str, name: str = "x.txt") -> list[Example]:
    from pipeline_steps.data.rows import Bad, RowReader

    reader = RowReader("domain", None)
    found = []
    for part in sources.cut(sources.choose(sources.listing(str(raw({f"train/{name}": text.encode()}))), "domain")):
        for _, record in reader.records(part):
            assert not isinstance(record, Bad)
            found.append(record.render(record.texts))
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet="abc é\n", min_size=1, max_size=900), min_size=1, max_size=30))
def test_chunks_lose_no_word_of_a_document_and_only_the_last_one_ends_it(raw: Raw, paragraphs: list[str]) -> None:
    document = "\n\n".join(paragraphs)
    pieces = chunks(raw, document)
    assert " ".join(piece.completion for piece in pieces).split() == document.split()
    assert all(len(piece.completion) < 3000 for piece in pieces)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
    assert all(piece.prompt == "" for piece in pieces)


@pytest.mark.parametrize("text", ["word " * 5000, "x" * 25_000, "line\n" * 5000])
def test_a_text_without_paragraphs_is_cut_and_keeps_every_letter(raw: Raw, text: str) -> None:
    pieces = [piece.completion for piece in chunks(raw, text)]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces)) <= 2400


def document(paragraphs: int = 120) -> list[str]:
    return [f"Paragraph {i}. " + " ".join(f"boat{i * 13 + k} leaves" for k in range(30)) for i in range(paragraphs)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.txt", "\n\n".join(document())),
        ("report.csv", "id,text\n" + "".join(f'{i},"{p}"\n' for i, p in enumerate(document()))),
        ("report.csv", "body,id\n" + "".join(f'"{p}",{i}\n' for i, p in enumerate(document()))),
        ("report.json", json.dumps([{"id": i, "text": p} for i, p in enumerate(document())], indent=1)),
        ("report.json", "".join(json.dumps({"id": i, "text": p}) + "\n" for i, p in enumerate(document()))),
        ("report.json", json.dumps({"text": "\n\n".join(document())})),
        ("report.jsonl", "".join(json.dumps({"text": p}) + "\n" for p in document())),
        ("report.parquet", table([{"text": p} for p in document()])),
    ],
)
def test_one_file_of_each_accepted_kind_is_a_document(raw: Raw, check: Any, name: str, content: Any) -> None:
    checked = check(raw({f"train/{name}": content, "prompts.txt": "A\n\nB\n"}), "domain")
    text = " ".join(example.completion for example in checked.rows)
    assert all(f"Paragraph {i}." in text for i in range(120))


# ---------------------------------------------------------------- bad data


def test_every_bad_row_is_told_at_once_with_its_place_value_and_what_is_allowed(raw: Raw) -> None:
    good = [json.dumps(row) for row in rows(40)]
    good[3] = '{"instruction": "x"'
    good[7] = json.dumps({"instruction": "x", "context": "y"})
    good[11] = json.dumps({"instruction": "x", "context": None, "response": 5})
    good[13] = json.dumps({"instruction": "x", "context": "y", "response": "  "})
    good[17] = "[1, 2]"
    good[19] = '{"instruction": "x", "context": "y", "context": "z", "response": "r"}'
    good[21] = json.dumps({"instruction": {"a": [1]}, "context": "y", "response": "r"})
    good[23] = '{"instruction": "\\ud800", "context": "y", "response": "r"}'
    good[25] = "[" * 100_000
    good[27] = '{"instruction": ' + "9" * 5000 + ', "context": "y", "response": "r"}'
    told = problems(raw({"train/x.jsonl": "\n".join(good)}))
    assert [problem.split(": ")[0] for problem in told] == [
        f"train/x.jsonl:{line}" for line in (4, 8, 12, 12, 14, 18, 20, 22, 24, 26, 28)
    ]
    assert "not valid JSON" in told[0] and '{"instruction": "x"' in told[0]
    assert "no column 'response'" in told[1] and "columns here: 'instruction', 'context'" in told[1]
    assert "'context' is null, expected a text in quotes" in told[2]
    assert "'response' is 5, expected a text in quotes" in told[3]
    assert "the completion is empty" in told[4]
    assert "holds list, expected one JSON object" in told[5]
    assert "the key 'context' is there twice" in told[6]
    assert """'instruction' is {"a": [1]}, expected a text in quotes""" in told[7]
    assert "'instruction' holds half a surrogate pair" in told[8]
    assert "nested too deeply" in told[9]
    assert "not valid JSON" in told[10]
    assert all(len(problem) < 400 for problem in told)


def test_a_line_of_more_than_10_megabytes_is_told_by_its_beginning(raw: Raw) -> None:
    lines = [json.dumps(row) for row in rows(40)]
    lines[4] = json.dumps({"instruction": "x" * 11 * 2**20, "context": "y", "response": "z"})
    lines[9] = "{"
    told = problems(raw({"x.jsonl": "\n".join(lines)}))
    assert [problem.split(": ")[0] for problem in told] == ["x.jsonl:5", "x.jsonl:10"]
    assert "longer than 10 MB" in told[0] and len(told[0]) < 300


def test_all_that_is_wrong_with_files_and_template_is_told_at_once(raw: Raw) -> None:
    told = problems(
        raw(
            {
                "train/x.jsonl": rows(30),
                "train/template.json": '{"prompt": "none", "answer": "{x}"}',
                "validation/notes.md": "no rows",
                "prompts.txt": b"\xff",
            }
        )
    )
    assert len(told) == 5
    assert any("validation/: no .jsonl file (found notes.md)" in problem for problem in told)
    assert any("prompts.txt: not UTF-8" in problem for problem in told)
    assert any("no {placeholder}" in problem for problem in told)


def test_a_message_lists_twenty_problems_and_counts_the_rest(raw: Raw) -> None:
    with pytest.raises(DataError) as caught:
        prepare_data.run(job(raw({"train/x.jsonl": "{\n" * 50})))
    assert len(caught.value.problems) == 50
    assert str(caught.value).count("\n") == 20 and str(caught.value).endswith("... and 30 more problems")


def test_bad_rows_within_the_limit_are_set_aside_with_their_reasons(raw: Raw, check: Any) -> None:
    lines = [json.dumps(row).encode() for row in rows(60)]
    lines[4], lines[9] = b'{"instruction": "\xff"}', b'{"instruction": 1, "context": 2, "response": "r"}'
    folder = raw({"train/x.jsonl": b"\n".join(lines)})
    told = problems(folder, max_quarantined_rows=1)
    assert told[-1] == "2 rows are bad, at most 1 may be (max_quarantined_rows)" and len(told) == 4

    refused = (folder.parent / "checked" / "report" / files.QUARANTINE_FILE).read_text("utf-8")
    checked = check(folder, max_quarantined_rows=2)
    assert refused == (checked.report / files.QUARANTINE_FILE).read_text("utf-8"), "of a refused dataset too"
    assert checked.card["rows"]["quarantined"] == 2 and len(checked.rows) == 58
    set_aside = [json.loads(line) for line in (checked.report / files.QUARANTINE_FILE).read_text("utf-8").splitlines()]
    assert [(row["file"], row["line"], len(row["problems"])) for row in set_aside] == [
        ("train/x.jsonl", 5, 1),
        ("train/x.jsonl", 10, 2),
    ]
    assert set_aside[1]["row"] == lines[9].decode()


BROKEN = [
    ("broken-line", "instruction", "train.jsonl:5: not valid JSON"),
    ("missing-column", "instruction", "train.jsonl:3: no column 'context'"),
    ("unknown-template-key", "instruction", "unknown key 'answer'"),
    ("template-without-placeholder", "instruction", "'prompt' has no {placeholder}"),
    ("empty-completion", "instruction", "train.jsonl:7: the completion is empty"),
    ("null-value", "instruction", "train.jsonl:2: 'context' is null"),
    ("number-instead-of-text", "instruction", "train.jsonl:9: 'response' is 42"),
    ("json-array", "instruction", "train.jsonl:1: holds a JSON array"),
    ("not-utf8", "instruction", "train.jsonl:4: not UTF-8 (byte 0xff"),
    ("no-jsonl", "instruction", "train/: no .jsonl file (found template.json)"),
    ("empty-folder", "instruction", "train/: no .jsonl file"),
    ("two-files-domain", "domain", "takes exactly one file"),
    ("empty-text-domain", "domain", "report.txt: holds no text"),
    ("bad-roles-chat", "chat", "train.jsonl:2: the roles are user, user, assistant; allowed: system first"),
    ("unknown-role-chat", "chat", "train.jsonl:3: turn 1: the role is 'customer'; allowed: system, user"),
    ("empty-answer-chat", "chat", "train.jsonl:4: turn 2: the content is empty"),
    ("wrong-type-parquet", "instruction", "train.parquet:1: 'response' is 0, expected a text"),
    ("truncated-parquet", "instruction", "train.parquet: cannot be read as Parquet"),
    ("truncated-gzip", "instruction", "train.jsonl.gz: cannot be read as .jsonl.gz"),
    ("truncated-zstandard", "instruction", "train.jsonl.zst: cannot be read as .jsonl.zst"),
]


@pytest.mark.parametrize(("folder", "mode", "said"), BROKEN)
def test_each_broken_example_is_refused_with_the_words_that_mend_it(
    tmp_path: Path, folder: str, mode: Any, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare_data.run(replace(job(EXAMPLES / "broken" / folder, mode), output=tmp_path / "report"))
    assert any(said in problem for problem in caught.value.problems)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {files.QUARANTINE_FILE}


def test_every_broken_example_has_a_test() -> None:
    folders = {path.name for path in (EXAMPLES / "broken").iterdir() if path.is_dir()}
    assert folders == {folder for folder, _, _ in BROKEN}


def test_too_few_rows_in_a_split_are_told_for_all_splits(raw: Raw) -> None:
    told = problems(raw({"train/x.jsonl": rows(1)}))
    assert len(told) >= 2 and all("rows, at least" in problem for problem in told)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1, 2]", "a.json:1: is 1, expected an object"),
        ("a.json", '[{"text": 5}]', "'text' is 5, expected a text"),
        ("a.json", '[{"text": ""}]', "'text' is empty"),
        ("a.json", '{"text": "x", "text": "y"}', "the key 'text' is there twice"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '[{"text": "x"}', "cannot be read as .json"),
        ("a.csv", b'id,text\n1,"a\xff"\n', "not UTF-8 (byte 0xff)"),
        ("a.txt", b"good\n\xff\xfe", "a.txt:2: not UTF-8 (byte 0xff at column 1)"),
        ("a.jsonl.gz", b"\x1f\x8b\x08no gzip", "cannot be read as .jsonl.gz"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-30], "cannot be read as .jsonl.gz"),
        ("a.jsonl.zst", b"no zstandard", "cannot be read as .jsonl.zst"),
        ("a.parquet", b"PAR1 no parquet PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_bad_document_is_told(raw: Raw, name: str, content: Any, said: str) -> None:
    told = problems(raw({f"train/{name}": content}), "domain")
    assert any(said in problem for problem in told), told


# ---------------------------------------------------------------- whatever the bytes

Text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
Value = st.one_of(Text, st.none(), st.integers(-5, 5), st.lists(st.text(max_size=3), max_size=2))
Turn = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "bot"]), "content": Text}), Value
)
GOOD = {"instruction": rows(30), "chat": dialogs(30), "domain": [{"text": row["context"]} for row in rows(30)]}
COLUMNS = {"instruction": list(rows(1)[0]), "chat": ["dialog", "messages"], "domain": ["text", "id"]}
ROW_FORMATS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]
FORMATS = [
    *((mode, ending) for mode in GOOD for ending in ROW_FORMATS),
    *(("domain", ending) for ending in (".csv", ".json", ".txt")),
]


def rows_of(mode: str) -> st.SearchStrategy[dict[str, Any]]:
    """Rows of any content with some of the mode's columns."""
    value = st.one_of(st.lists(Turn, max_size=3), Value) if mode == "chat" else Value
    return st.dictionaries(st.sampled_from([*COLUMNS[mode], "x"]), value, max_size=4)


def file_of(ending: str, given: list[dict[str, Any] | bytes], line_end: bytes) -> tuple[bytes, int]:
    """A file of `given` in the format of `ending`, and the rows in it. Only a file with lines takes bytes as a row."""
    rows = [row for row in given if isinstance(row, dict)]
    if ending == ".csv":
        sink = io.StringIO()
        writer = csv.DictWriter(sink, COLUMNS["domain"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        return sink.getvalue().encode(), len(rows)
    if ending == ".json":
        return json.dumps(rows).encode(), len(rows)
    if ending == ".parquet":
        try:
            return table(rows), len(rows)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # a column has one type
            return table([{name: json.dumps(value) for name, value in row.items()} for row in rows]), len(rows)
    content = line_end.join(json.dumps(row).encode() if isinstance(row, dict) else row for row in given)
    number = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    return {".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard}.get(ending, bytes)(content), number


@pytest.mark.parametrize(("mode", "ending"), FORMATS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_bytes_every_row_is_kept_removed_or_told_and_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, mode: Any, ending: str, data: st.DataObject
) -> None:
    line = st.one_of(st.binary(max_size=80), rows_of(mode), st.sampled_from(GOOD[mode]))
    given = [*data.draw(st.lists(line, max_size=20)), *GOOD[mode]]
    content, number = file_of(ending, given, data.draw(st.sampled_from([b"\n", b"\r\n"])))
    cut_off = data.draw(st.one_of(st.just(0), st.integers(0, len(content))))
    content = content[: len(content) - cut_off]
    allowed, part_bytes = data.draw(st.sampled_from([0, 3, 1000])), data.draw(st.integers(200, 4000))

    folder = tmp_path_factory.mktemp("any")
    (folder / "train").mkdir()
    (folder / "train" / f"x{ending}").write_bytes(content)
    work = folder / "work"
    work.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources.cut, "__defaults__", (part_bytes,))
        try:
            checked = Checked(replace(job(folder, mode, max_quarantined_rows=allowed), output=folder / "report"), work)
        except DataError as error:
            assert error.problems and all(error.problems)
            assert {path.name for path in (folder / "report").glob("*")} <= {files.QUARANTINE_FILE}
            return
    counted = checked.card["rows"]
    assert counted["read"] == sum(count for name, count in counted.items() if name != "read")
    assert counted["kept"] == len(checked.rows)
    if mode != "domain" and not cut_off:
        assert counted["read"] == number
    if mode == "domain" and ending != ".txt" and not cut_off:  # a document is cut into pieces, which are its rows
        kept = "\n".join(example.completion for example in checked.rows)
        assert all(row["text"] in kept for row in GOOD["domain"])


def test_nothing_is_written_when_the_data_is_bad(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline_steps import s3

    uploads: list[str] = []
    monkeypatch.setattr(s3, "upload", lambda path, uri: uploads.append(uri))
    bad = job(raw({"train/x.jsonl": "{"}), publish_to="s3://none/datasets")
    with pytest.raises(DataError):
        prepare_data.run(bad)
    assert uploads == [] and [path.name for path in bad.output.iterdir()] == [files.QUARANTINE_FILE]


def test_what_an_earlier_run_left_in_the_report_goes_when_the_next_dataset_is_refused(raw: Raw) -> None:
    good, bad = raw({"good/x.jsonl": rows(60) + rows(5)}) / "good", raw({"bad/x.jsonl": "{"}) / "bad"
    prepare_data.run(job(good))
    report = good.parent / "checked" / "report"
    assert {path.name for path in report.iterdir()} == {"data_card.json", "data_card.html", "removed.jsonl"}
    with pytest.raises(DataError):
        prepare_data.run(replace(job(bad), output=report))
    assert {path.name for path in report.iterdir()} == {files.QUARANTINE_FILE}


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.csv", "x.json"])
def test_progress_within_one_file_is_told_by_the_bytes_read_of_it(raw: Raw, tmp_path: Path, name: str) -> None:
    content = [{"text": sha256(f"{number}".encode()).hexdigest() * 40} for number in range(6000)]
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    data = {
        "x.jsonl": lines,
        "x.jsonl.gz": gzip.compress(lines),
        "x.jsonl.zst": zstandard(lines),
        "x.csv": b"text\n" + b"".join(row["text"].encode() + b"\n" for row in content),
        "x.json": json.dumps(content).encode(),
    }[name]
    folder = raw({f"train/{name}": data})
    told: list[tuple[int, int]] = []
    for part in sources.cut(sources.choose(sources.listing(str(folder)), "domain"), part_bytes=2**30):
        examination = parts.Examination(RowReader("domain", None), None, "report", 0, 0.1, 0.1, 1)
        parts.examine(part, examination, tmp_path, lambda rows, size: told.append((rows, size)))
    sizes = [size for _, size in told]
    assert all(size >= 0 for size in sizes) and sum(sizes) == len(data)
    half = sum(sizes[: len(sizes) // 2]) / len(data)
    assert 0.25 < half < 0.9, "half of the rows are about half of the bytes"


def test_one_compressed_file_shows_the_time_left(
    raw: Raw, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PROGRESS_SECONDS", 0.0)
    content = [{**row, "response": sha256(row["context"].encode()).hexdigest() * 20} for row in rows(3000)]
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    prepare_data.run(job(raw({"train/x.jsonl.gz": gzip.compress(lines, 0)})))
    shown = [one for line in capsys.readouterr().out.splitlines() if (one := progress.parse(line))]
    examined = [one for one in shown if one.phase == "examine"]
    assert any(0 < one.done < one.total and one.figures["seconds_left"] > 0 for one in examined)
    assert examined[-1].done == examined[-1].total and examined[-1].figures["rows"] == 3000


# ---------------------------------------------------------------- processes


def test_several_processes_make_the_dataset_that_one_makes(
    raw: Raw, base_model: Path, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw({"a.jsonl": rows(80), "b.jsonl": rows(80, start=200)})
    alone = check(folder, tokenizer=base_model).card
    monkeypatch.setattr(workers, "WORTH_PROCESSES_BYTES", 1)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert {**check(folder, tokenizer=base_model).card, "seconds": 0, "card_digest": ""} == {
        **alone, "seconds": 0, "card_digest": "",
    }  # fmt: skip


def test_a_process_that_is_ended_from_outside_is_told_with_what_to_do(
    raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    found = sources.cut(
        sources.choose(sources.listing(str(raw({"x.jsonl": rows(40)}))), "instruction"), part_bytes=1000
    )
    examination = parts.Examination(RowReader("instruction", DEFAULT), None, "report", 0, 0.1, 0.1, 1)
    with workers.Workers(len(found), workers.WORTH_PROCESSES_BYTES) as pool:
        assert pool._pool
        pool._pool.submit(os._exit, 1)
        with pytest.raises(StepError, match="ended from outside, most likely for want of memory"):
            pool.examine_all(found, examination, tmp_path)


@pytest.mark.parametrize("changes", [{"engine": "ray"}, {}])
def test_whoever_shares_the_work_needs_a_place_to_hand_it_over(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    two = Instances(0, ("algo-1", "algo-2"))
    monkeypatch.setattr(prepare_data.sagemaker_job, "instances", lambda: Instances() if changes else two)
    with pytest.raises(StepError, match="--publish_to is missing"):
        prepare_data.run(job(raw({"x.jsonl": rows(60)}), **changes))


# ---------------------------------------------------------------- the data card


@given(st.text(max_size=900))
def test_of_a_long_text_the_card_shows_the_end_from_the_beginning_of_a_word(text: str) -> None:
    shown = parts.ending(text)
    if len(text) <= parts.SHOWN_CHARACTERS:
        assert shown == text
        return
    assert shown.startswith("… ") and text.endswith(shown[2:])
    assert len(shown) <= parts.SHOWN_CHARACTERS + 2
    if any(character.isspace() for character in text[-parts.SHOWN_CHARACTERS : -1]):
        assert text[-len(shown[2:]) - 1].isspace()


# ---------------------------------------------------------------- lengths and cost


@given(st.dictionaries(st.integers(0, 5000), st.integers(1, 9)), st.integers(1, 9000))
def test_a_histogram_holds_every_row_in_its_bin_and_reaches_the_longest_row_allowed(
    rows_of_length: dict[int, int], limit: int
) -> None:
    histogram = lengths.histogram({"train": rows_of_length}, limit)
    edges, counts = histogram["edges"], histogram["train"]
    assert sum(counts) == sum(rows_of_length.values()) and edges[-1] >= limit
    assert {16, 20, 24, 28} <= set(edges) or edges[-1] <= 16
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert count == sum(rows for length, rows in rows_of_length.items() if low <= length < high)


def test_tuning_every_weight_is_estimated_at_six_operations_a_weight_and_an_adapter_at_four(
    raw: Raw, base_model: Path, check: Any
) -> None:
    folder = raw({"train/x.jsonl": rows(60)})
    flags = {"tokenizer": base_model, "instance_type": "ml.g5.12xlarge", "max_truncated_share": 1.0}
    speeds = {
        peft_type: check(folder, peft_type=peft_type, **flags).card["cost"]["tokens_per_second"]
        for peft_type in ("lora", "None")
    }
    assert speeds["lora"] / speeds["None"] == pytest.approx(6 / 4)
    weights = (base_model / "model.safetensors").stat().st_size / 4  # float32
    assert speeds["lora"] == pytest.approx(4 * 70e12 * 0.2 / (4 * weights))


@pytest.mark.parametrize(
    ("instance_type", "volume_key", "said"),
    [
        ("ml.g5.12xlarge", True, "has disks of its own, which take no KMS key, and the deployed request names a key"),
        (
            "ml.p3.2xlarge",
            False,
            "has volumes that only a KMS key of yours encrypts .* the deployed request names none",
        ),
    ],
)
def test_an_instance_type_whose_volumes_the_deployed_request_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, instance_type: str, volume_key: bool, said: str
) -> None:
    job = PrepareJob(
        "not there", tmp_path / "report", "instruction", instance_type=instance_type, volume_key=volume_key
    )
    with pytest.raises(StepError, match=f"TrainingInstanceType is '{instance_type}', which {said}"):
        prepare_data.run(job)
    assert list(tmp_path.iterdir()) == []
