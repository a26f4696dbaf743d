"""PrepareData: what is accepted, how it is divided, and how bad rows are told."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps import prepare_data
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError
from pipeline_steps.prepare_data import Prepared, PrepareJob, chunk, prepare, split_of

EXAMPLES = Path(__file__).parents[2] / "examples"
Raw = Callable[[dict[str, Any]], Path]


def job(raw: Path, mode: Any = "instruction") -> PrepareJob:
    return PrepareJob(raw, raw / "output", mode, 0.1, 0.15, 0, "s3://none/datasets", "s3://none/base")


def rows(number: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"instruction": "Add.", "context": f"{i} and {i}", "response": f"{2 * i}"} for i in range(start, start + number)
    ]


def problems(raw: Path, mode: Any = "instruction") -> list[str]:
    with pytest.raises(DataError) as caught:
        prepare(job(raw, mode))
    return caught.value.problems


# ---------------------------------------------------------------- good data


@pytest.mark.parametrize(("mode", "minimum"), [("instruction", 240), ("domain", 100)])
def test_our_examples_are_good_data_and_enough_for_the_gate(mode: str, minimum: int) -> None:
    prepared = prepare(replace(job(EXAMPLES / mode, mode), test_split_ratio=0.2))
    assert sum(map(len, prepared.splits.values())) >= minimum
    assert len(prepared.splits["test"]) >= 20
    assert len(prepared.prompts) == (3 if mode == "domain" else 0)


def test_the_domain_example_holds_at_least_60_kilobytes() -> None:
    assert (EXAMPLES / "domain" / "train" / "annual_reports.txt").stat().st_size >= 60 * 1024


def test_the_folder_itself_may_be_the_train_folder_as_on_jumpstart(raw: Raw) -> None:
    folder = raw({"a.jsonl": rows(40), "b.jsonl": rows(40, start=100)})
    assert sum(map(len, prepare(job(folder)).splits.values())) == 80


def test_without_a_template_the_documented_default_is_used(raw: Raw) -> None:
    prepared = prepare(job(raw({"train/x.jsonl": rows(60)})))
    assert prepared.splits["train"][0].prompt.startswith("Below is an instruction that describes a task")


def test_a_validation_folder_replaces_the_validation_split(raw: Raw) -> None:
    prepared = prepare(job(raw({"train/x.jsonl": rows(60), "validation/y.jsonl": rows(5, start=1000)})))
    assert len(prepared.splits["validation"]) == 5
    assert len(prepared.splits["train"]) + len(prepared.splits["test"]) == 60


def test_blank_lines_byte_order_marks_and_windows_line_ends_are_no_problem(raw: Raw) -> None:
    lines = [json.dumps(row) for row in rows(60)]
    folder = raw({"train/x.jsonl": b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n"})
    plain = prepare(job(folder))
    assert sum(map(len, plain.splits.values())) == 60


def test_the_same_row_twice_counts_once(raw: Raw) -> None:
    assert sum(map(len, prepare(job(raw({"train/x.jsonl": rows(60) + rows(60)}))).splits.values())) == 60


def test_the_digest_depends_on_the_content_alone(raw: Raw) -> None:
    def digest(name: str, number: int) -> str:
        return prepare(job(raw({f"{name}/train/x.jsonl": rows(number)}) / name)).digest

    assert digest("a", 60) == digest("b", 60) != digest("c", 61)


@given(st.integers(0, 10), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_a_row_keeps_its_side_when_rows_are_added(seed: int, validation: float, test: float) -> None:
    few = [Example(str(i), "c", True) for i in range(30)]
    sides = {example.id: split_of(example, seed, validation, test) for example in few}
    more = few + [Example(str(i), "c", True) for i in range(30, 60)]
    assert all(
        split_of(example, seed, validation, test) == sides[example.id] for example in more if example.id in sides
    )


@given(st.integers(0, 10), st.text(max_size=20))
def test_two_answers_to_one_prompt_are_never_divided(seed: int, prompt: str) -> None:
    sides = {split_of(Example(prompt or "p", answer, True), seed, 0.2, 0.3) for answer in ("a", "b", "c")}
    assert len(sides) == 1


def test_the_splits_have_about_the_size_that_was_asked_for() -> None:
    sides = [split_of(Example(str(i), "c", True), 0, 0.1, 0.15) for i in range(20_000)]
    assert sides.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert sides.count("test") / 20_000 == pytest.approx(0.15, abs=0.01)


def test_no_row_is_on_two_sides(raw: Raw) -> None:
    prepared = prepare(job(raw({"train/x.jsonl": rows(200)})))
    ids = [example.id for examples in prepared.splits.values() for example in examples]
    assert len(ids) == len(set(ids)) == 200


# ---------------------------------------------------------------- domain adaptation


@given(st.lists(st.text(alphabet="abc é\n", min_size=1, max_size=900), max_size=30))
def test_chunks_lose_no_word_of_a_document_and_only_the_last_one_ends_it(paragraphs: list[str]) -> None:
    document = "\n\n".join(paragraphs)
    pieces = list(chunk(document))
    assert " ".join(piece.completion for piece in pieces).split() == document.split()
    assert all(len(piece.completion) < 3000 for piece in pieces)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
    assert all(piece.prompt == "" for piece in pieces)


@pytest.mark.parametrize("text", ["word " * 5000, "x" * 25_000, "line\n" * 5000])
def test_a_text_without_paragraphs_is_cut_and_keeps_every_letter(text: str) -> None:
    pieces = [piece.completion for piece in chunk(text)]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces)) <= 2000


def document(paragraphs: int = 120) -> list[str]:
    return [f"Paragraph {i}. " + "The boat leaves and the boat arrives. " * 8 for i in range(paragraphs)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.txt", "\n\n".join(document())),
        ("report.csv", "id,text\n" + "".join(f'{i},"{p}"\n' for i, p in enumerate(document()))),
        ("report.csv", "body,id\n" + "".join(f'"{p}",{i}\n' for i, p in enumerate(document()))),
        ("report.json", json.dumps([{"id": i, "text": p} for i, p in enumerate(document())])),
        ("report.json", json.dumps({"text": "\n\n".join(document())})),
    ],
)
def test_one_text_csv_or_json_file_is_a_document(raw: Raw, name: str, content: str) -> None:
    prepared = prepare(job(raw({f"train/{name}": content, "prompts.txt": "A\n\nB\n"}), "domain"))
    text = " ".join(example.completion for examples in prepared.splits.values() for example in examples)
    assert all(f"Paragraph {i}." in text for i in range(120))
    assert prepared.prompts == ["A", "B"]


# ---------------------------------------------------------------- bad data


def test_every_bad_row_is_told_at_once_with_its_place_value_and_what_is_allowed(raw: Raw) -> None:
    good = [json.dumps(row) for row in rows(30)]
    good[3] = '{"instruction": "x"'
    good[7] = json.dumps({"instruction": "x", "context": "y"})
    good[11] = json.dumps({"instruction": "x", "context": None, "response": 5})
    good[13] = json.dumps({"instruction": "x", "context": "y", "response": "  "})
    good[17] = "[1, 2]"
    told = problems(raw({"train/x.jsonl": "\n".join(good)}))
    assert [problem.split(": ")[0] for problem in told] == [
        "x.jsonl:4", "x.jsonl:8", "x.jsonl:12", "x.jsonl:12", "x.jsonl:14", "x.jsonl:18",
    ]  # fmt: skip
    assert "not valid JSON" in told[0] and '{"instruction": "x"' in told[0]
    assert "no column 'response'" in told[1] and "columns here: 'instruction', 'context'" in told[1]
    assert "'context' is null, expected a text in quotes" in told[2]
    assert "'response' is 5, expected a text in quotes" in told[3]
    assert "the completion is empty" in told[4]
    assert "holds list, expected one JSON object a line" in told[5]


def test_a_message_lists_twenty_problems_and_counts_the_rest(raw: Raw) -> None:
    with pytest.raises(DataError) as caught:
        prepare(job(raw({"train/x.jsonl": "{\n" * 50})))
    assert len(caught.value.problems) == 50
    assert str(caught.value).count("\n") == 20 and str(caught.value).endswith("... and 30 more problems")


BROKEN = [
    ("broken-line", "instruction", "train.jsonl:5: not valid JSON"),
    ("missing-column", "instruction", "train.jsonl:3: no column 'context'"),
    ("unknown-template-key", "instruction", "unknown key 'answer'"),
    ("template-without-placeholder", "instruction", "'prompt' has no {placeholder}"),
    ("empty-completion", "instruction", "train.jsonl:7: the completion is empty"),
    ("null-value", "instruction", "train.jsonl:2: 'context' is null"),
    ("number-instead-of-text", "instruction", "train.jsonl:9: 'response' is 42"),
    ("json-array", "instruction", "train.jsonl:1: "),
    ("not-utf8", "instruction", "train.jsonl:4: not UTF-8 (byte 0xff"),
    ("no-jsonl", "instruction", "train/: no .jsonl file (found template.json)"),
    ("empty-folder", "instruction", "train/: no .jsonl file"),
    ("two-files-domain", "domain", "exactly one .txt, .csv or .json file, found 2 (report_2021.txt, report_2022.txt)"),
    ("empty-text-domain", "domain", "report.txt: holds no text"),
]


@pytest.mark.parametrize(("folder", "mode", "said"), BROKEN)
def test_each_broken_example_is_refused_with_the_words_that_mend_it(folder: str, mode: str, said: str) -> None:
    assert any(said in problem for problem in problems(EXAMPLES / "broken" / folder, mode))


def test_every_broken_example_has_a_test() -> None:
    folders = {path.name for path in (EXAMPLES / "broken").iterdir() if path.is_dir()}
    assert folders == {folder for folder, _, _ in BROKEN}


def test_too_few_rows_in_a_split_are_told_for_all_splits(raw: Raw) -> None:
    told = problems(raw({"train/x.jsonl": rows(1)}))
    assert len(told) >= 2 and all("rows, at least" in problem for problem in told)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1, 2]", "row 1 is 1, expected an object"),
        ("a.json", '[{"text": 5}]', "'text' is 5, expected a text"),
        ("a.json", "{", "not valid JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8 (byte 0)"),
    ],
)
def test_a_bad_document_is_told(raw: Raw, name: str, content: Any, said: str) -> None:
    assert any(said in problem for problem in problems(raw({f"train/{name}": content}), "domain"))


@given(st.lists(st.binary(max_size=80), max_size=12))
def test_whatever_the_bytes_there_are_rows_or_reasons_and_never_a_traceback(lines: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.jsonl").write_bytes(b"\n".join(lines))
        try:
            assert isinstance(prepare(job(Path(folder))), Prepared)
        except DataError as error:
            assert error.problems


def test_nothing_is_written_when_the_data_is_bad(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline_steps import s3

    uploads: list[str] = []
    monkeypatch.setattr(s3, "exists", lambda uri: True)  # the base model is there
    monkeypatch.setattr(s3, "upload", lambda path, uri: uploads.append(uri))
    bad = job(raw({"train/x.jsonl": "{"}))
    with pytest.raises(DataError):
        prepare_data.run(bad)
    assert uploads == [] and not bad.output.exists()
