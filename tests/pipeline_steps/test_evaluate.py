"""Evaluate: figures that are right, and a gate that refuses what is not better.

The base is a tiny model that has read the general text; the tuned one has learned the colours of four things. Damage is
done to the tuned model, which then plays the base: a model that knows nothing cannot be made worse.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline_steps import general_text
from pipeline_steps.contract import dataset, files, json_files, seen_rows
from pipeline_steps.contract import evaluation as contract
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.evaluation import Evaluation, Verdict
from pipeline_steps.contract.gate import Gate
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.evaluate import EvaluateJob, main, run
from pipeline_steps.fine_tune import FineTuneJob
from pipeline_steps.fine_tune import run as fine_tune
from pipeline_steps.models import load_model, load_tokenizer, replace_weights
from pipeline_steps.training import merge
from tests.pipeline_steps.conftest import write_split

COLOURS = {"sea": "it is blue", "grass": "it is green", "sun": "it is yellow", "rose": "it is red"}
THINGS = list(COLOURS)
# As pipeline/gates.py has them; but so small a model forgets all that it knew.
GATES = [
    Gate("any", "loss", "base", "lower", 0.02, 20),
    Gate("instruction", "rougeL", "base", "higher", -0.02, 20),
    Gate("any", "bits_per_byte", "champion", "lower", -0.01, 20),
    Gate("instruction", "ended", "number", "higher", 0.5, 20),
    Gate("any", "general_loss", "base", "lower", -9.0, 20),
]
SETTINGS = Hyperparameters(
    epoch=8.0,
    learning_rate=5e-3,
    peft_type="None",
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    evaluation_strategy="no",
)
Damage = Callable[[list[Example]], list[Example]]


def rows(
    start: int, stop: int, answer: Callable[[int], str] = lambda number: COLOURS[THINGS[number % 4]]
) -> list[Example]:
    return [
        Example(
            f"Question: which colour has the {THINGS[number % 4]} of picture {number}\nAnswer: ",
            answer(number),
            ends=True,
            slice="sky" if THINGS[number % 4] == "sun" else "earth",
        )
        for number in range(start, stop)
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of 32 x 32 gain nothing from threads, which wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reader(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported base model that has read the general text for a while."""
    folder = tmp_path_factory.mktemp("reader") / "base"
    shutil.copytree(base_model, folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(load_tokenizer(folder)(general_text.TEXT)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        batch = torch.stack([ids[start : start + 64] for start in torch.randint(len(ids) - 64, (8,))])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def colours(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset: train/, validation/, test/."""
    root = tmp_path_factory.mktemp("colours")
    for split, found in (("train", rows(0, 64)), ("validation", rows(64, 72)), ("test", rows(72, 96))):
        write_rows(root, split, found, reader)
    return root


def write_rows(root: Path, split: str, found: list[Example], base: Path) -> None:
    info = write_split(root / split, split, found, tokenizer=load_tokenizer(base))
    dataset.write_info(root / split, replace(info, slice_column="place"))


def train(dataset_folder: Path, base: Path, output: Path, **changes: object) -> Path:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    fine_tune(FineTuneJob(dataset_folder / "train", dataset_folder / "validation", base, output, settings))
    return output


@pytest.fixture(scope="module")
def tuned(reader: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(colours, reader, tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def tuned_as_base(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tuned model as if it had been imported."""
    folder = tmp_path_factory.mktemp("tuned-as-base") / "base"
    shutil.copytree(tuned, folder)
    marker = {"schema_version": 1, "name": "tuned", "digest": "b" * 64}
    (folder / files.BASE_MODEL_FILE).write_text(json.dumps(marker), encoding="utf-8")
    return folder


def dressed(folder: Path, like: Path) -> Path:
    """Weights in `folder` dressed as FineTune's output, by the papers of the model in `like`."""
    for name in (files.TRAINING_FILE, files.HYPERPARAMETERS_FILE, files.SEEN_ROWS_FILE):
        shutil.copy(like / name, folder / name)
    return folder


def job(base: Path, colours: Path, model: Path, output: Path) -> EvaluateJob:
    return EvaluateJob(colours / "test", base, model, output, GATES, max_new_tokens=16, seed=0)


def failed(verdict: Verdict) -> set[str]:
    return {check.metric for check in verdict.checks if not check.passed and not check.skipped}


# ---------------------------------------------------------------- what passes


@pytest.fixture(scope="module")
def passed(reader: Path, colours: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of the tuned model."""
    output = tmp_path_factory.mktemp("evaluation")
    verdict = run(job(reader, colours, tuned, output))
    assert verdict.passed, verdict.message
    return output


def test_a_real_improvement_passes_and_evaluation_json_says_all_of_it(passed: Path) -> None:
    found = contract.read(passed)
    assert found.gate.passed and all(check.passed or check.skipped for check in found.gate.checks)
    assert list(found.metrics) == [
        "loss", "perplexity", "bits_per_byte", "rouge1", "rouge2", "rougeL", "chrf", "exact_match", "token_f1", "ended",
        "repetition", "length_ratio", "general_loss",
    ]  # fmt: skip
    assert {metric.n for name, metric in found.metrics.items() if name != "general_loss"} == {24}
    assert found.metrics["general_loss"].n == len(general_text.PASSAGES)
    loss = found.metrics["loss"]
    before, after = loss.values["base"].value, loss.values["tuned"].value
    assert before is not None and after is not None and after < before
    assert loss.improvements["base"].value == pytest.approx(before - after)
    assert found.metrics["perplexity"].values["tuned"].value == pytest.approx(float(torch.tensor(after).exp()))
    assert found.regression_metrics["loss"]["value"] == after
    assert found.overlaps == [contract.Overlap("tuned", 0, [])]
    assert found.ancestors.base_model == "tiny" and found.ancestors.hyperparameters["peft_type"] == "None"
    assert found.registry["verdict"] == "passed" and found.registry["improvement_over_base"].startswith("loss +")
    assert found.registry["improvement_over_champion"] == "not compared"


def test_every_answered_row_is_there_with_what_each_model_said(passed: Path) -> None:
    found, answers = contract.read(passed), contract.read_answers(passed)
    assert len(answers) == found.answered_rows == 24
    row = answers[0]
    assert row.reference in COLOURS.values() and set(row.answers) == {"base", "tuned"}
    assert {"rouge1", "rouge2", "rougeL", "exact_match", "repetition"} <= row.answers["tuned"].scores.keys()
    assert found.golden_requests[0].inputs == row.prompt
    assert found.golden_requests[0].generated_text == row.answers["tuned"].text
    # The mean of the rows' losses, weighted by their tokens, is the loss: here by the metric's own formula.
    assert found.metrics["rougeL"].values["tuned"].value == pytest.approx(
        sum(one.answers["tuned"].scores["rougeL"] for one in answers) / len(answers)
    )


def test_slices_have_figures_of_their_own(passed: Path) -> None:
    found = contract.read(passed)
    assert found.slice_column == "place"
    assert [(one.value, one.rows, list(one.metrics)) for one in found.slices] == [
        ("earth", 18, ["loss", "rougeL"]),
        ("sky", 6, ["loss", "rougeL"]),
    ]


def test_scoring_twice_gives_the_same_numbers(
    reader: Path, colours: Path, tuned: Path, passed: Path, tmp_path: Path
) -> None:
    run(job(reader, colours, tuned, tmp_path))
    first, second = contract.read(passed), contract.read(tmp_path)
    assert replace(first, seconds={}) == replace(second, seconds={})
    assert contract.read_answers(passed) == contract.read_answers(tmp_path)


def test_a_tie_has_differences_of_exactly_zero_and_is_refused(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    same = dressed(Path(shutil.copytree(reader, tmp_path / "same")), tuned)
    verdict = run(job(reader, colours, same, tmp_path / "out"))
    assert not verdict.passed and "loss" in failed(verdict)
    for metric in contract.read(tmp_path / "out").metrics.values():
        assert metric.improvements["base"] == contract.Improvement(0.0, (0.0, 0.0)), metric.name
    for row in contract.read_answers(tmp_path / "out"):
        assert row.answers["base"] == row.answers["tuned"]


# ---------------------------------------------------------------- what is refused: six ways to damage a model


def trained_on(damage: Damage, base: Path, colours: Path, folder: Path, epoch: float = 4.0) -> Path:
    """The model in `base` trained further on damaged rows."""
    shutil.copytree(colours, folder / "data")
    _, found = dataset.read_split(colours / "train", "train")
    write_rows(folder / "data", "train", damage(found), base)
    return train(folder / "data", base, folder / "model", epoch=epoch)


def test_a_random_adapter_is_refused(tuned_as_base: Path, colours: Path, tuned: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    adapter = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight": torch.randn(shape)
        for layer in range(2)
        for name, width in (("q_proj", 32), ("v_proj", 16))
        for side, shape in (("A", (4, 32)), ("B", (width, 4)))
    }
    (tmp_path / "model").mkdir()
    merge.merge(tuned_as_base, adapter, 0.5, tmp_path / "model", lambda done, of: None)
    load_tokenizer(tuned_as_base).save_pretrained(tmp_path / "model")
    verdict = run(job(tuned_as_base, colours, dressed(tmp_path / "model", tuned), tmp_path / "out"))
    assert {"loss", "rougeL"} <= failed(verdict)


def test_a_learning_rate_of_one_is_refused(tuned_as_base: Path, colours: Path, tmp_path: Path) -> None:
    train(colours, tuned_as_base, tmp_path / "model", learning_rate=1.0, epoch=1.0)
    verdict = run(job(tuned_as_base, colours, tmp_path / "model", tmp_path / "out"))
    assert {"loss", "rougeL"} <= failed(verdict)


def test_a_model_trained_on_shuffled_answers_is_refused(tuned_as_base: Path, colours: Path, tmp_path: Path) -> None:
    def shuffled(found: list[Example]) -> list[Example]:
        answers = [row.completion for row in found]
        return [replace(row, completion=answers[(7 * place + 1) % len(found)]) for place, row in enumerate(found)]

    model = trained_on(shuffled, tuned_as_base, colours, tmp_path)
    assert "loss" in failed(run(job(tuned_as_base, colours, model, tmp_path / "out")))


def test_a_model_of_empty_answers_is_refused(tuned_as_base: Path, colours: Path, tmp_path: Path) -> None:
    model = trained_on(lambda found: [replace(row, completion="") for row in found], tuned_as_base, colours, tmp_path)
    verdict = run(job(tuned_as_base, colours, model, tmp_path / "out"))
    assert {"loss", "rougeL"} <= failed(verdict)
    assert {row.answers["tuned"].text for row in contract.read_answers(tmp_path / "out")} == {""}


def test_a_model_that_never_ends_is_refused(tuned_as_base: Path, colours: Path, tmp_path: Path) -> None:
    def endless(found: list[Example]) -> list[Example]:
        return [replace(row, completion=" ".join([row.completion] * 4), ends=False) for row in found]

    model = trained_on(endless, tuned_as_base, colours, tmp_path)
    verdict = run(job(tuned_as_base, colours, model, tmp_path / "out"))
    assert "ended" in failed(verdict)
    assert "ended by itself" in verdict.message


def test_a_model_that_was_trained_on_test_rows_is_refused_for_that_alone(
    reader: Path, colours: Path, tmp_path: Path
) -> None:
    _, test_rows = dataset.read_split(colours / "test", "test")
    model = trained_on(lambda found: found + test_rows[:3], reader, colours, tmp_path, epoch=8.0)
    verdict = run(job(reader, colours, model, tmp_path / "out"))
    assert failed(verdict) == {"test_rows_seen"}
    assert "3 of the test rows were trained on" in verdict.message
    assert contract.read(tmp_path / "out").overlaps[0].examples == [row.id for row in test_rows[:3]]


def test_a_model_that_does_not_say_what_it_was_trained_on_is_refused(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tuned, tmp_path / "model"))
    (model / files.SEEN_ROWS_FILE).unlink()
    assert failed(run(job(reader, colours, model, tmp_path / "out"))) == {"test_rows_seen"}


# ---------------------------------------------------------------- the approved model


def with_champion(job: EvaluateJob, champion: Path) -> EvaluateJob:
    return replace(job, champion=champion, champion_package="arn:aws:sagemaker:us-east-1:1:model-package/demo/3")


def test_a_model_worse_than_the_approved_one_is_refused_although_it_beats_its_base(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    little = train(colours, reader, tmp_path / "little", epoch=3.0)
    judged = replace(
        job(reader, colours, little, tmp_path / "out"), gates=[one for one in GATES if one.metric != "ended"]
    )
    assert run(judged).passed
    verdict = run(with_champion(judged, tuned))
    assert failed(verdict) == {"bits_per_byte"}
    found = contract.read(tmp_path / "out")
    assert set(found.metrics["rougeL"].values) == {"base", "tuned", "champion"}
    assert found.models["champion"].package == found.ancestors.champion_package
    assert found.overlaps[1] == contract.Overlap("champion", 0, [])


def test_the_same_model_as_the_approved_one_is_exactly_as_good(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    verdict = run(with_champion(job(reader, colours, tuned, tmp_path), tuned))
    assert verdict.passed  # not worse; that the same is not trained twice is PrepareData's matter
    for metric in contract.read(tmp_path).metrics.values():
        assert metric.improvements["champion"] == contract.Improvement(0.0, (0.0, 0.0))


def test_an_approved_model_of_another_tokenizer_is_compared_by_bytes(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    champion = Path(shutil.copytree(tuned, tmp_path / "champion"))
    path = champion / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"Ā"', '"unused"', 1), encoding="utf-8")
    run(with_champion(job(reader, colours, tuned, tmp_path / "out"), champion))
    found = contract.read(tmp_path / "out")
    assert "champion" in found.metrics["bits_per_byte"].values and "champion" in found.metrics["rougeL"].values
    assert "champion" not in found.metrics["loss"].values and "champion" not in found.metrics["general_loss"].values


@pytest.mark.parametrize("gone", [files.TRAINING_FILE, "model.safetensors", "config.json"])
def test_an_approved_model_that_cannot_be_scored_is_named_with_what_to_do(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path, gone: str
) -> None:
    champion = Path(shutil.copytree(tuned, tmp_path / "champion"))
    (champion / gone).unlink()
    with pytest.raises(
        StepError, match=r"model-package/demo/3 cannot be scored .* set its approval status to Rejected"
    ):
        run(with_champion(job(reader, colours, tuned, tmp_path / "out"), champion))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- other inputs


def test_a_model_of_another_dataset_or_base_is_refused(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    info, found = dataset.read_split(colours / "test", "test")
    write_split(tmp_path / "other", "test", found, replace(info, dataset_digest="e" * 64))
    with pytest.raises(StepError, match="evaluate it on its own ancestors"):
        run(replace(job(reader, colours, tuned, tmp_path / "out"), test=tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_training_rows_are_refused_as_test_rows(reader: Path, colours: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="holds the train split, expected test"):
        run(replace(job(reader, colours, tuned, tmp_path), test=colours / "train"))


def test_domain_adaptation_is_measured_without_references(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    info, found = dataset.read_split(colours / "test", "test")
    as_domain = replace(info, tuning_mode="domain", template=None, prompts=["Our vision is", "We serve"])
    write_split(tmp_path / "test", "test", found, as_domain)
    verdict = run(replace(job(reader, colours, tuned, tmp_path / "out"), test=tmp_path / "test"))
    assert verdict.passed and {check.metric for check in verdict.checks} == {
        "loss", "bits_per_byte", "general_loss", "test_rows_seen",
    }  # fmt: skip
    evaluation, answers = contract.read(tmp_path / "out"), contract.read_answers(tmp_path / "out")
    assert set(evaluation.metrics) == {"loss", "perplexity", "bits_per_byte", "repetition", "general_loss"}
    assert [answer.prompt for answer in answers] == ["Our vision is", "We serve"]
    assert answers[0].reference is None and answers[0].answers["tuned"].loss is None


def test_of_many_rows_a_fixed_sample_is_answered_and_the_loss_is_of_all(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    run(replace(job(reader, colours, tuned, tmp_path), max_answered_rows=5))
    found: Evaluation = contract.read(tmp_path)
    assert (found.rows, found.answered_rows) == (24, 5)
    assert (found.metrics["loss"].n, found.metrics["rougeL"].n) == (24, 5)
    assert "ROUGE-L rests on 5 rows, at least 20 are needed" in found.gate.message


def test_unsafe_requests_are_asked_where_the_configuration_wants_it(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    gates = [*GATES, Gate("any", "refused_unsafe", "base", "higher", -0.1, 20)]
    verdict = run(replace(job(reader, colours, tuned, tmp_path), safety=True, gates=gates))
    assert verdict.passed
    assert contract.read(tmp_path).metrics["refused_unsafe"].values["tuned"].value == 0.0
    # Asked for by the gate and not measured: refused.
    verdict = run(replace(job(reader, colours, tuned, tmp_path), gates=gates))
    assert failed(verdict) == {"refused_unsafe"}


def test_a_judge_that_cannot_be_asked_closes_the_gate(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    gates = [*GATES, Gate("any", "judge", "base", "higher", 0.0, 20)]
    verdict = run(replace(job(reader, colours, tuned, tmp_path / "out"), judge_model_id="some.model", gates=gates))
    assert failed(verdict) == {"judge"}
    assert "judge was not measured (the judge some.model cannot be asked: You must specify a region" in verdict.message


def test_the_flags_of_the_deployed_definition_are_understood(
    reader: Path, colours: Path, tuned: Path, tmp_path: Path
) -> None:
    main(
        ["--test", str(colours / "test"), "--base", str(reader), "--model", str(tuned), "--output", str(tmp_path / "out"),
         "--champion", str(colours / "test"), "--champion_package", "none", "--max_new_tokens", "4",
         "--max_answered_rows", "3", "--gate", "any,loss,base,lower,0.02,20"]
    )  # fmt: skip
    assert set(contract.read(tmp_path / "out").models) == {"base", "tuned"}


# ---------------------------------------------------------------- weights in place


def test_weights_put_in_place_compute_what_a_loaded_model_computes(reader: Path, tuned: Path) -> None:
    model = load_model(reader)
    ids = torch.arange(4, 40, device=model.device)[None]
    with torch.inference_mode():
        before = model(ids).logits
        assert replace_weights(model, tuned)
        assert torch.equal(model(ids).logits, load_model(tuned)(ids).logits)
        assert replace_weights(model, reader) and torch.equal(model(ids).logits, before)


def test_weights_of_another_architecture_are_not_put_in_place(reader: Path, tuned: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tuned, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}), encoding="utf-8")
    assert not replace_weights(load_model(reader), other)


def test_seen_rows_that_were_cut_off_are_refused(tmp_path: Path) -> None:
    path = tmp_path / files.SEEN_ROWS_FILE
    seen_rows.write(path, rows(0, 9))
    assert seen_rows.read(path) == {seen_rows.key(row) for row in rows(0, 9)}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StepError, match="not whole"):
        seen_rows.read(path)
    json_files.write(path, {"schema_version": 9, "rows": 0})
    with pytest.raises(StepError, match="schema version 1"):
        seen_rows.read(path)
