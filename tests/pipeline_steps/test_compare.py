"""Compare: a user's prompts, rendered as training did, answered twice alike with the same seed, and shown as text."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps import comparison_page
from pipeline_steps.compare import run
from pipeline_steps.contract import chat_format, comparison, files, json_files, prompts
from pipeline_steps.contract.comparison import Comparison, Pair, Sampling, Text
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.generation import _likely

TEMPLATE = PromptTemplate("Question: {question}\nAnswer: ", "{answer}")
MISTRAL = chat_format.of_no_tokenizer()
TWO_COLUMNS = PromptTemplate("{instruction}\n{context}\n", "{response}")
SAMPLED = Sampling(max_new_tokens=12, temperature=1.0, top_k=40, top_p=0.9, seed=7)


@pytest.fixture(scope="module")
def model(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model dressed as FineTune's output."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    shutil.copytree(base_model, folder)
    json_files.write(folder / files.PROMPT_TEMPLATE_FILE, {"schema_version": 1, **TEMPLATE.to_dict()})
    training = {
        "schema_version": files.TRAINING_SCHEMA_VERSION,
        "dataset_digest": "d" * 64,
        "base_model_digest": "b" * 64,
        "tuning_mode": "instruction",
        "method": "lora",
    }
    json_files.write(folder / files.TRAINING_FILE, training)
    return folder


def asked(folder: Path, name: str = "prompts.txt", text: str = "What is 2 plus 2?\n\nWhat is 3 plus 3?\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


# ---------------------------------------------------------------- the step


def test_both_models_answer_the_prompts_as_training_rendered_them(
    base_model: Path, model: Path, tmp_path: Path
) -> None:
    run(asked(tmp_path / "in"), base_model, model, tmp_path / "out", SAMPLED)
    found = comparison.read(tmp_path / "out")
    assert [pair.prompt for pair in found.pairs] == [
        "Question: What is 2 plus 2?\nAnswer: ",
        "Question: What is 3 plus 3?\nAnswer: ",
    ]
    for pair in found.pairs:
        assert pair.base == pair.tuned  # the same weights, the same seed
        assert pair.base.tokens <= 12
    assert found.sampling == SAMPLED and found.base_model == "tiny" and found.tuning_mode == "instruction"
    assert "Your prompts" in (tmp_path / "out" / files.REPORT_FILE).read_text(encoding="utf-8")
    assert (tmp_path / "out" / files.COMPARISON_TABLE).read_text(encoding="utf-8").count("\n") == 4


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(
    base_model: Path, model: Path, tmp_path: Path
) -> None:
    def answers(seed: int) -> list[str]:
        sampling = Sampling(max_new_tokens=24, temperature=1.0, seed=seed)
        return [
            pair.tuned.text for pair in run(asked(tmp_path / "in"), base_model, model, tmp_path / "out", sampling).pairs
        ]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_a_model_of_another_base_is_refused_before_anything_is_loaded(
    base_model: Path, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base_model, other)
    marker = {"schema_version": 1, "name": "other", "digest": "c" * 64}
    (other / files.BASE_MODEL_FILE).write_text(json.dumps(marker), encoding="utf-8")
    (other / "model.safetensors").unlink()
    with pytest.raises(StepError, match="trained from base bbbbbbbbbbbb, the input is base cccccccccccc"):
        run(asked(tmp_path / "in"), other, model, tmp_path / "out", SAMPLED)
    assert not (tmp_path / "out").exists()


def test_two_files_of_prompts_are_refused(base_model: Path, model: Path, tmp_path: Path) -> None:
    asked(tmp_path / "in")
    with pytest.raises(StepError, match="holds 2 files, expected exactly one"):
        run(asked(tmp_path / "in", "more.txt"), base_model, model, tmp_path / "out", SAMPLED)


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("content", "template", "chat", "expected"),
    [
        ("Our vision is", None, None, "Our vision is"),
        ("Who are you?", None, MISTRAL, "[INST] Who are you? [/INST]"),
        ("What?", TEMPLATE, None, "Question: What?\nAnswer: "),
        ({"instruction": "Sum up.", "context": "{x}"}, TWO_COLUMNS, None, "Sum up.\n{x}\n"),
        ("Sum up {x}.", MISTRAL.prompt_template(), MISTRAL, "[INST] Sum up {x}. [/INST]"),
        (
            {"instruction": "Sum up.", "context": "{x}"},
            MISTRAL.prompt_template(),
            MISTRAL,
            "[INST] Sum up.\n\n{x} [/INST]",
        ),
        ({"prompt": "as it is"}, TWO_COLUMNS, None, "as it is"),
        ({"prompt": "as it is"}, None, MISTRAL, "as it is"),
    ],
)
def test_a_prompt_is_rendered_as_the_model_was_trained_to_read_it(content, template, chat, expected) -> None:  # type: ignore[no-untyped-def]
    ask = (lambda text: chat.asked([("user", text)])) if chat else None
    assert prompts.rendered([prompts.Prompt("p:1", content)], template, ask) == [expected]


def test_every_prompt_that_does_not_fit_the_template_is_told_with_its_line() -> None:
    found = prompts.read(b'"a text"\n{"question": "x"}\n{"prompt": "fine"}\n', "mine.jsonl")
    with pytest.raises(DataError) as raised:
        prompts.rendered(found, TWO_COLUMNS)
    assert len(raised.value.problems) == 2
    assert "mine.jsonl:1: is a text, but the model's template has the columns instruction, context" in str(raised.value)
    assert "mine.jsonl:2: has question; expected instruction, context (the model's template) or prompt" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "p.txt", "holds no prompts"),
        (b" \n \n", "p.jsonl", "holds no prompts"),
        (b"\xff", "p.txt", "not UTF-8"),
        (b"{", "p.jsonl", "p.jsonl:1: not valid JSON"),
        (b'"ok"\n[1]', "p.jsonl", "p.jsonl:2: is [1], expected a text in quotes or an object of texts"),
        (b'{"prompt": 3}', "p.jsonl", "expected a text in quotes"),
        (b"{}", "p.jsonl", "expected a text in quotes"),
        (b'{"prompt": " "}', "p.jsonl", "is empty"),
        (b'"\\ud800"', "p.jsonl", "half a surrogate pair"),
        (b"p\n" * 1001, "p.txt", "1,001 prompts, at most 1,000"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_with_its_line(content: bytes, name: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        prompts.read(content, name)
    assert said in str(raised.value)


@given(st.binary(max_size=80), st.sampled_from(["p.txt", "p.jsonl"]))
def test_any_bytes_are_prompts_or_refused(content: bytes, name: str) -> None:
    try:
        found = prompts.read(content, name)
    except DataError:
        return
    assert found
    prompts.rendered([prompts.Prompt(one.place, one.content) for one in found if isinstance(one.content, str)], None)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1, "max_new_tokens": 0}, "max_new_tokens is 0, allowed: 1 to 4096; top_k is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_parameters_that_mean_nothing_are_refused_together(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(StepError, match=said):
        Sampling(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True), st.integers(0, 12), st.floats(0.05, 1.0))
def test_only_the_likeliest_tokens_are_drawn_as_in_transformers(scores: list[int], top_k: int, top_p: float) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    given_scores = torch.tensor([scores]) / 8
    expected = given_scores.clone()
    if top_k:
        expected = TopKLogitsWarper(top_k)(torch.zeros(1, 1, dtype=torch.long), expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), expected)
    kept = torch.isfinite(_likely(given_scores, top_k, top_p))
    assert kept.any() and kept[0, given_scores.argmax()]
    assert (kept == torch.isfinite(expected)).sum() >= len(scores) - 1  # rounding may decide at the very edge


# ---------------------------------------------------------------- what is shown


def compared(prompt: str, base: str, tuned: str) -> Comparison:
    pair = Pair(prompt, Text(base, 3, True), Text(tuned, 4, False))
    return Comparison("domain", "tiny", "b" * 64, "d" * 64, "lora", Sampling(), [pair], 3.2)


def test_the_markdown_table_is_the_articles() -> None:
    table = comparison.markdown(compared("Our vision is", "to be\nthe best", "a | b <b>"))
    assert table.splitlines()[0] == "| prompt | before fine-tuning | after fine-tuning | parameters |"
    assert table.splitlines()[2] == (
        r"| Our vision is | to be<br>the best | a \| b &lt;b&gt; "
        r"| max\_new\_tokens: 150, temperature: 0.2, seed: 0 |"
    )


@given(st.text(), st.text())
def test_any_text_stays_in_its_cell(prompt: str, answer: str) -> None:
    table = comparison.markdown(compared(prompt, answer, answer))
    row = table.split("\n", 2)[2].removesuffix("\n")
    assert "\n" not in row
    assert row.replace("\\\\", "").replace(r"\|", "").count("|") == 5


def test_prompts_and_answers_are_text_and_only_our_script_runs() -> None:
    attack = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"' onload=alert(3) --></pre></style>"
    page = comparison_page.render(replace(compared(attack, attack, f"{attack}2"), base_model=attack, method=attack))
    assert page.count("<script") == 1 and "<img" not in page and "<!--" not in page
    assert "default-src 'none'" in page and "script-src 'sha256-" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@given(st.text(), st.text())
def test_any_text_leaves_the_page_well_formed(prompt: str, answer: str) -> None:
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "input"):
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Reader().feed(comparison_page.render(compared(prompt, answer, answer)))
    assert opened == []
