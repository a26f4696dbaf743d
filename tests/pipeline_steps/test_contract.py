"""What steps share: template, gate, hyperparameters, progress lines, files."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps.contract import dataset, hyperparameters, json_files, progress, prompt_template
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.contract.prompt_template import PromptTemplate
from tests.pipeline_steps.conftest import write_examples

# ---------------------------------------------------------------- prompt template


@given(st.text(), st.text())
def test_braces_in_a_value_are_text_and_never_a_placeholder(first: str, second: str) -> None:
    template = PromptTemplate("<{a}|{b}>", "{a}")
    assert template.render_prompt({"a": first, "b": second}) == f"<{first}|{second}>"
    assert template.render_prompt({"a": "{b}", "b": "{a}"}) == "<{b}|{a}>"


def test_braces_that_are_no_placeholder_stay_in_the_template() -> None:
    template = PromptTemplate('Answer in JSON such as {"x": 1}: {question}', "{answer}")
    assert template.columns == ["question", "answer"]
    assert template.render_prompt({"question": "?"}) == 'Answer in JSON such as {"x": 1}: ?'


def test_every_problem_of_a_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prompt_template.parse({"prompt": "no placeholder", "answer": "{x}"}, "template.json")
    assert len(caught.value.problems) == 3
    assert "has no {placeholder}" in str(caught.value)
    assert "'completion' is None" in str(caught.value)
    assert "unknown key 'answer'" in str(caught.value)


# ---------------------------------------------------------------- hyperparameters


def test_jumpstarts_names_are_understood() -> None:
    parsed = hyperparameters.parse({"epoch": "3", "learning_rate": "6e-06", "peft_type": "None", "lora_r": "64"})
    assert (parsed.epoch, parsed.learning_rate, parsed.peft_type, parsed.lora_r) == (3.0, 6e-06, "None", 64)


def test_all_wrong_hyperparameters_are_told_at_once_with_the_nearest_name() -> None:
    with pytest.raises(StepError) as caught:
        hyperparameters.parse(
            {"epohc": "1", "learning_rate": "2", "lora_r": "1.5", "peft_type": "adapter", "seed": "nan"}
        )
    message = str(caught.value)
    assert "'epohc' (value '1') is unknown; did you mean 'epoch'?" in message
    assert "learning_rate is '2', allowed: a number from 1e-08 to 1" in message
    assert "lora_r is '1.5', allowed: a whole number from 1 to 1000" in message
    assert "peft_type is 'adapter', allowed: lora, None" in message
    assert "seed is 'nan'" in message


def test_jumpstarts_other_names_are_accepted_fixed_or_sent_to_prepare_data(capsys: pytest.CaptureFixture[str]) -> None:
    accepted = hyperparameters.parse(
        {"bf16": "True", "double_quant": "True", "quant_type": "nf4", "bits": "4", "per_device_eval_batch_size": "8"}
    )
    assert accepted.method == "qlora"
    assert "per_device_eval_batch_size has no effect" in capsys.readouterr().out
    with pytest.raises(StepError) as refused:
        hyperparameters.parse({"fp16": "True", "instruction_tuned": "True", "max_steps": "0"})
    problems = str(refused.value).splitlines()
    assert [problem.split(" (")[0].split(" is ")[0] for problem in problems] == [
        "hyperparameter fp16", "hyperparameter instruction_tuned", "hyperparameter max_steps",
    ]  # fmt: skip
    assert "allowed: False; products are in bfloat16" in problems[0]


def test_weights_in_four_bits_cannot_all_be_trained() -> None:
    with pytest.raises(StepError, match="bits is '4' with peft_type 'None'"):
        hyperparameters.parse({"bits": "4", "peft_type": "None"})


def test_every_hyperparameter_has_limits_that_its_default_keeps() -> None:
    defaults = vars(hyperparameters.Hyperparameters())
    switches = {name for name, value in defaults.items() if isinstance(value, bool)}
    texts = set(hyperparameters.FREE_TEXTS)
    assert defaults.keys() == hyperparameters.RANGES.keys() | hyperparameters.OPTIONS.keys() | switches | texts
    assert vars(hyperparameters.parse({name: str(value) for name, value in defaults.items()})) == defaults


# ---------------------------------------------------------------- progress lines


@given(
    st.from_regex(r"[a-z][a-z ]{0,12}[a-z]", fullmatch=True),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.dictionaries(st.from_regex(r"[a-z]{1,8}(_[a-z]{1,8})?", fullmatch=True), st.floats(-1e9, 1e9), max_size=4),
)
def test_a_progress_line_is_read_as_it_was_written(
    phase: str, done: int, total: int, figures: dict[str, float]
) -> None:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as output:
        # Called with ** as the steps do; names that are also parameters cannot be figures.
        progress.report(phase, done, total, **{k: v for k, v in figures.items() if k not in ("phase", "done", "total")})
    read = progress.parse(output.getvalue())
    assert read is not None
    assert (read.phase, read.done, read.total) == (phase, done, total)
    for name, value in read.figures.items():
        assert value == pytest.approx(figures[name], rel=1e-5)


@pytest.mark.parametrize("line", ["", "train 1/2", "progress: train", "progress: train 1/2 nonsense", "a_loss=1.0"])
def test_other_lines_are_no_progress(line: str) -> None:
    assert progress.parse(line) is None


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing; the step that writes it did not finish"),
        ("{", "is not valid JSON"),
        ("[]", "has schema version 'list'"),
        ("{}", "has schema version None"),
        ('{"schema_version": 2}', "has schema version 2, this code reads 1"),
    ],
)
def test_a_file_of_another_version_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "file.json").write_text(content, encoding="utf-8")
    with pytest.raises(StepError, match=said):
        json_files.read(tmp_path / "file.json", 1)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    json_files.write(path, {"schema_version": 1, "value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_files.write(path, {"schema_version": 1, "value": math.nan})
    assert json_files.read(path, 1)["value"] == 1


def test_a_split_comes_back_as_it_was_written(splits: Path) -> None:
    info, rows = dataset.read_split(splits / "test", "test")
    assert (info.split, info.rows, len(rows)) == ("test", 24, 24)
    assert rows[0] == Example("Question: what is 56 plus 56\nAnswer: ", "it is 112", ends=True)


def test_training_rows_cannot_pass_for_test_rows(splits: Path) -> None:
    with pytest.raises(StepError, match="holds the train split, expected test"):
        dataset.read_split(splits / "train", "test")


def test_a_split_that_lost_rows_is_refused(splits: Path, tmp_path: Path) -> None:
    info, rows = dataset.read_split(splits / "test", "test")
    write_examples(tmp_path / info.parts[0].examples, rows[:-1])
    dataset.write_info(tmp_path, info)
    with pytest.raises(StepError, match=r"holds 23 rows, its dataset\.json says 24"):
        dataset.read_split(tmp_path, "test")


def test_reports_of_any_kind_of_value_are_json(tmp_path: Path) -> None:
    values: dict[str, Any] = {"schema_version": 1, "text": "ü <b>", "none": None, "list": [1.5]}
    json_files.write(tmp_path / "x.json", values)
    assert json_files.read(tmp_path / "x.json", 1) == values
