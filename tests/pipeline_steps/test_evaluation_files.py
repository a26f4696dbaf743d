"""evaluation.json and answers.jsonl: written whole, read back the same, refused in any other form."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps.contract import evaluation as contract
from pipeline_steps.contract import files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import Value
from tests import evaluations


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    contract.write(tmp_path, evaluations.evaluation(), evaluations.answers())
    assert contract.read(tmp_path) == evaluations.evaluation()
    assert contract.read_answers(tmp_path) == evaluations.answers()


def test_an_evaluation_without_a_champion_and_with_line_separators_in_its_answers_is_read_too(tmp_path: Path) -> None:
    models = {name: one for name, one in evaluations.evaluation().models.items() if name != "champion"}
    row = evaluations.answers()[0]
    strange = contract.AnswerRow(row.id, "line\u2028separator\u0085and\nnew line", None, None, row.answers)
    contract.write(tmp_path, evaluations.evaluation(models=models), [strange])
    assert set(contract.read(tmp_path).models) == {"base", "tuned"}
    assert contract.read_answers(tmp_path) == [strange]


def test_no_answers_are_no_rows(tmp_path: Path) -> None:
    contract.write(tmp_path, evaluations.evaluation(), [])
    assert contract.read_answers(tmp_path) == []


def test_a_number_that_is_not_finite_is_null_on_disk(tmp_path: Path) -> None:
    metrics = evaluations.metrics()
    metrics["perplexity"].values["tuned"] = Value(float("inf"), (1.0, float("inf")), float("nan"))
    contract.write(tmp_path, evaluations.evaluation(metrics=metrics), [])
    assert contract.read(tmp_path).metrics["perplexity"].values["tuned"] == Value(None, None, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(schema_version=1), "schema version 1, this code reads 2"),
        (lambda content: content.pop("gate"), r"missing \['gate'\]"),
        (lambda content: content.update(surprise=1), r"unknown \['surprise'\]"),
        (lambda content: content["metrics"]["loss"].update(n="many"), r"metrics\.loss\.n is 'many'"),
        (lambda content: content["gate"].update(passed=1), r"gate\.passed is 1"),
        (lambda content: content["metrics"]["loss"]["values"]["base"].update(interval=[1.0]), "interval"),
    ],
)
def test_an_evaluation_of_another_form_is_refused_with_its_place(tmp_path: Path, change: Any, said: str) -> None:
    contract.write(tmp_path, evaluations.evaluation(), [])
    path = tmp_path / files.EVALUATION_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StepError, match=said):
        contract.read(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{}\n", '{"schema_version": 9}\n', "[]\n", '{"schema_version": 1}\nnot json\n']
)
def test_answers_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / files.ANSWERS_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(StepError, match=r"answers\.jsonl"):
        contract.read_answers(tmp_path)


@given(st.text())
def test_any_text_becomes_metadata_that_the_registry_takes(text: str) -> None:
    import re
    import unicodedata

    found = contract.metadata(text)
    assert 1 <= len(found) <= 256
    # botocore: ([\p{L}\p{Z}\p{N}_.:/=+\-@]*)
    assert all(unicodedata.category(sign)[0] in "LZN" or re.match(r"[_.:/=+\-@]", sign) for sign in found)
