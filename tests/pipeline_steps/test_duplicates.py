"""Duplicates and leaks: found, counted, shown, and decided alike however many instances look for them."""

import json
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_steps import prepare_data
from pipeline_steps.contract import files
from pipeline_steps.data import duplicates, fingerprints, parts, sources
from pipeline_steps.data.instances_engine import InstancesEngine
from pipeline_steps.data.sagemaker_job import Instances
from pipeline_steps.prepare_data import PrepareJob

Raw = Callable[[dict[str, Any]], Path]
VOCABULARY = [f"{syllable}{number}" for number in range(60) for syllable in ("ba", "ke", "lo", "mi", "nu")]


def text(seed: Any, words: int) -> str:
    return " ".join(random.Random(f"{seed}").choices(VOCABULARY, k=words))


def row(seed: Any, words: int = 60) -> dict[str, str]:
    return {"instruction": "Answer.", "context": text(seed, words), "response": text(f"{seed} answer", 12)}


def card_of(raw: Path, work: Path, **changes: Any) -> dict[str, Any]:
    work.mkdir(parents=True)
    job = PrepareJob(str(raw), work / "report", "instruction", **changes)
    return prepare_data.prepare(job, work, InstancesEngine(work, Instances(), ""), 0.0)


# ---------------------------------------------------------------- fingerprints


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=20))
def test_a_words_hash_does_not_depend_on_where_it_stands(words: list[str]) -> None:
    alone = [fingerprints.word_hashes(word) for word in words]
    together = fingerprints.word_hashes(" ".join(words))
    assert together.tolist() == [value for one in alone for value in one.tolist()]


def test_case_and_punctuation_make_no_difference_and_each_chinese_character_is_a_word() -> None:
    assert (fingerprints.word_hashes("The ferry, leaves!") == fingerprints.word_hashes("the FERRY leaves")).all()
    assert len(fingerprints.word_hashes("渡船 naïve x-1")) == 5


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_the_similarity_of_signatures_estimates_that_of_the_texts(seed: int, share: float) -> None:
    common, changed = text(seed, 400).split(), text(f"{seed} other", 400).split()
    cut = int(share * 400)
    one, other = (fingerprints.word_hashes(" ".join(words)) for words in (common, common[:cut] + changed[cut:]))
    shingles = [set(fingerprints.ngrams(words, fingerprints.SHINGLE_WORDS).tolist()) for words in (one, other)]
    true = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    signatures = np.stack([fingerprints.signature(one, one), fingerprints.signature(other, other)])
    assert abs(fingerprints.similarity(signatures[0], signatures[1:])[0] - true) < 0.25  # 4 standard errors at 0.5


# ---------------------------------------------------------------- duplicates


def test_the_same_row_twice_is_left_out_once_and_told(raw: Raw, tmp_path: Path) -> None:
    content = [row(i) for i in range(60)]
    card = card_of(raw({"x.jsonl": content + content[5:8]}), tmp_path / "work")
    assert card["rows"]["exact_duplicates"] == 3 and card["rows"]["kept"] == 60
    assert [(one["removed"], one["kept"]) for one in card["duplicates"]["exact"]] == [
        ("x.jsonl:61", "x.jsonl:6"),
        ("x.jsonl:62", "x.jsonl:7"),
        ("x.jsonl:63", "x.jsonl:8"),
    ]
    told = (tmp_path / "work" / "report" / files.REMOVED_FILE).read_text("utf-8").splitlines()
    assert json.loads(told[0])["why"] == "exact duplicate" and len(told) == 3


def test_a_row_with_another_case_or_one_other_word_is_a_near_duplicate(raw: Raw, tmp_path: Path) -> None:
    content = [row(i) for i in range(80)]
    shouted = {name: value.upper() for name, value in content[3].items()}
    changed = {**content[9], "context": content[9]["context"].replace(content[9]["context"].split()[30], "sabot", 1)}
    card = card_of(raw({"x.jsonl": [*content, shouted, changed]}), tmp_path / "work")
    assert card["rows"]["near_duplicates"] == 2
    assert {frozenset((one["removed"], one["kept"])) for one in card["duplicates"]["near"]} == {
        frozenset(("x.jsonl:4", "x.jsonl:81")),
        frozenset(("x.jsonl:10", "x.jsonl:82")),
    }
    assert all(one["similarity"] >= duplicates.SIMILARITY for one in card["duplicates"]["near"])


def test_rows_that_ask_different_things_of_one_long_text_are_no_duplicates(raw: Raw, tmp_path: Path) -> None:
    context = text("the one report", 300)
    content = [{"instruction": text(i, 6), "context": context, "response": text(f"{i} answer", 8)} for i in range(80)]
    assert card_of(raw({"x.jsonl": content}), tmp_path / "work")["rows"]["near_duplicates"] == 0


def test_the_held_out_one_of_two_alike_rows_is_kept(raw: Raw, tmp_path: Path) -> None:
    content = [row(i) for i in range(200)]
    alike = [{**one, "context": one["context"] + " more"} for one in content]
    card = card_of(raw({"x.jsonl": content + alike}), tmp_path / "work")
    assert card["rows"]["near_duplicates"] == 200
    sides = {
        one["prompt"] for one in read_examples(tmp_path / "work", "test") + read_examples(tmp_path / "work", "train")
    }
    assert len(sides) == card["counts"]["test"] + card["counts"]["train"]
    # With 20 % held out, one of two is in the test set in about 36 % of the pairs.
    assert card["counts"]["test"] / 200 == pytest.approx(0.36, abs=0.1)


def read_examples(work: Path, split: str) -> list[dict[str, Any]]:
    paths = sorted((work / "dataset" / split).glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").split("\n")[:-1]]


# ---------------------------------------------------------------- leaks


def test_a_held_out_row_whose_text_is_trained_on_is_a_leak(raw: Raw, tmp_path: Path) -> None:
    content = [row(i) for i in range(100)]
    # Other questions about the same texts: no duplicates, and yet the answers are given away.
    again = [{**one, "instruction": text(f"{n} q", 9), "response": text(f"{n} r", 12)} for n, one in enumerate(content)]
    card = card_of(raw({"x.jsonl": content + again}), tmp_path / "work")
    assert card["rows"]["near_duplicates"] == 0
    leak = next(pair for pair in card["leaks"]["pairs"] if (pair["held_out"], pair["seen_in"]) == ("test", "train"))
    assert leak["overlapping_rows"] > 10 and leak["rows"] == card["counts"]["test"]
    example = leak["examples"][0]
    held_out, seen_in = (int(example[key].split(":")[1]) for key in ("held_out", "seen_in"))
    assert abs(held_out - seen_in) == 100, "the example names the row that gives it away"
    assert example["shared_ngrams"] > example["ngrams"] / 2


def test_rows_that_share_nothing_are_no_leak(raw: Raw, tmp_path: Path) -> None:
    card = card_of(raw({"x.jsonl": [row(i) for i in range(200)]}), tmp_path / "work")
    assert [pair["overlapping_rows"] for pair in card["leaks"]["pairs"]] == [0, 0, 0]


def test_a_group_column_closes_the_leak(raw: Raw, tmp_path: Path) -> None:
    content = [{**row(i), "document": f"{i}"} for i in range(150)]
    again = [{**one, "instruction": text(f"{n} q", 9), "response": text(f"{n} r", 12)} for n, one in enumerate(content)]
    folder = raw({"x.jsonl": content + again})
    card = card_of(folder, tmp_path / "work", split_group_column="document")
    assert [pair["overlapping_rows"] for pair in card["leaks"]["pairs"]] == [0, 0, 0]


# ---------------------------------------------------------------- several instances


def engine(work: Path, number: int, count: int) -> InstancesEngine:
    hosts = tuple(f"algo-{host}" for host in range(1, count + 1))
    return InstancesEngine(work, Instances(number, hosts), "s3://b/exchange/")


def run_instances(raw: Path, work: Path, count: int, **changes: Any) -> list[Any]:
    """The card or the error of each of `count` instances that work at the same time."""
    results: list[Any] = [None] * count

    def one(number: int) -> None:
        folder = work / f"{number}"
        folder.mkdir(parents=True)
        job = replace(PrepareJob(str(raw), folder / "report", "instruction", publish_to="s3://b/datasets"), **changes)
        try:
            results[number] = prepare_data.prepare(job, folder, engine(folder, number, count), 0.0)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def dataset(root: Path) -> dict[str, bytes]:
    """Every published file by its name, but for the data card page, which tells the time."""
    folder = root / "b" / "datasets"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != files.DATA_CARD_PAGE
    }


@pytest.mark.parametrize("count", [2, 5])
def test_several_instances_make_the_very_files_that_one_makes(
    raw: Raw, tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(sources.cut, "__defaults__", (5_000,))
    content = [row(i) for i in range(150)]
    alike = [{**one, "context": one["context"] + " more"} for one in content[:40]]
    folder = raw({"a.jsonl": content, "b.jsonl": content[100:120] + alike, "c.jsonl": [row("last")]})

    (alone,) = run_instances(folder, tmp_path / "one", 1)
    expected = dataset(shared_folder)
    shutil.rmtree(shared_folder)
    together = run_instances(folder, tmp_path / "many", count)

    assert dataset(shared_folder) == expected
    assert len([name for name in expected if "/train/examples-" in name]) > 5, "the work was divided"
    assert alone["rows"]["exact_duplicates"] == 20 and alone["rows"]["near_duplicates"] == 40
    for card in together:
        for name in ("dataset_digest", "test_digest", "rows", "counts", "duplicates", "leaks", "tokens", "files"):
            assert card[name] == alone[name], name
    assert not (shared_folder / "b" / "exchange").exists(), "what was exchanged is cleared away"


def test_all_instances_refuse_bad_rows_in_the_same_words_and_publish_nothing(
    raw: Raw, tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.cut, "__defaults__", (5_000,))
    lines = [json.dumps(row(i)) for i in range(150)]
    lines[120] = "{"
    errors = run_instances(raw({"x.jsonl": "\n".join(lines)}), tmp_path / "many", 3)
    assert {str(error) for error in errors} == {
        "x.jsonl:121: not valid JSON (Expecting property name enclosed in double quotes at column 2): {"
    }
    assert not (shared_folder / "b" / "datasets").exists()


def test_an_instance_that_stays_silent_fails_the_others_instead_of_holding_them(
    raw: Raw, tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_steps.data.instances_engine.LONGEST_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(sources.cut, "__defaults__", (5_000,))
    folder = raw({"x.jsonl": [row(i) for i in range(150)]})
    (tmp_path / "w").mkdir()
    job = PrepareJob(str(folder), tmp_path / "w" / "report", "instruction", publish_to="s3://b/datasets")
    with pytest.raises(Exception, match=r"1 of 2 instances have not finished 'examined' within"):
        prepare_data.prepare(job, tmp_path / "w", engine(tmp_path / "w", 0, 2), 0.0)


def test_memory_for_ngrams_is_bounded_by_looking_at_a_share_of_them() -> None:
    small, large = (sources.SourceFile("x.jsonl", "x.jsonl", "train", size) for size in (10**6, 10**10))
    assert parts.ngram_modulus([small]) == 1
    assert parts.ngram_modulus([large]) > 100
