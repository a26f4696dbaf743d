"""What serves a tuned model asks it with the prompt that it was trained with, in both forms of a request."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_aws.lmi import formatter
from local_aws.lmi.payloads import BadRequest
from pipeline_steps import serving
from pipeline_steps.contract.prompt_template import DEFAULT, PromptTemplate
from pipeline_steps.models import load_tokenizer

TEXTS = st.text(alphabet="ab{}%'\"\\\n é", max_size=12)


def render(folder: Path, inputs: Any) -> Any:
    return formatter.apply(formatter.load(folder), {"inputs": inputs, "parameters": {}}, None)["inputs"]


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> Any:
    return load_tokenizer(base_model)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS)
def test_both_forms_render_as_training_did(
    tmp_path: Path, tokenizer: Any, before: str, between: str, after: str, question: str, background: str
) -> None:
    def literal(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    prompt = f"{literal(before)}{{q}}{literal(between)}{{c}}{literal(after)}{{q}}"
    template = PromptTemplate(prompt, "{answer}")
    serving.write(tmp_path, template, None, tokenizer)
    row = {"q": question, "c": background}
    expected = template.render_prompt(row)
    assert render(tmp_path, row) == expected
    chat = [{"role": "system", "content": background}, {"role": "user", "content": question}]
    rendered = load_tokenizer(tmp_path).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == expected


def test_a_text_is_asked_as_it_is_and_a_chat_may_be_without_background(tmp_path: Path, tokenizer: Any) -> None:
    serving.write(tmp_path, DEFAULT, None, tokenizer)
    assert render(tmp_path, "as {it} is") == "as {it} is"
    chat = [{"role": "user", "content": "Why?"}]
    rendered = load_tokenizer(tmp_path).apply_chat_template(chat, tokenize=False)
    assert rendered == DEFAULT.render_prompt({"instruction": "Why?", "context": ""})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"instruction": "a"}, "'context' is missing; the columns of this model's prompt are instruction, context"),
        ({"instruction": "a", "context": "b", "x": "c"}, "'x' is unknown"),
        ({"instruction": 1, "context": "b"}, "'instruction' is no text"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path: Path, tokenizer: Any, inputs: Any, words: str) -> None:
    serving.write(tmp_path, DEFAULT, None, tokenizer)
    with pytest.raises(BadRequest, match=words) as caught:
        render(tmp_path, inputs)
    assert caught.value.code == 424


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "system", "content": "a"}],
    ],
)
def test_a_longer_chat_is_refused(tmp_path: Path, tokenizer: Any, messages: list[dict[str, str]]) -> None:
    serving.write(tmp_path, DEFAULT, None, tokenizer)
    with pytest.raises(Exception, match="this model answers one question"):
        load_tokenizer(tmp_path).apply_chat_template(messages, tokenize=False)


def test_three_columns_are_for_inputs_only(tmp_path: Path, tokenizer: Any) -> None:
    serving.write(tmp_path, PromptTemplate("{a}{b}{c}", "{d}"), None, tokenizer)
    assert render(tmp_path, {"a": "1", "b": "2", "c": "3"}) == "123"
    with pytest.raises(Exception, match="columns a, b, c"):
        load_tokenizer(tmp_path).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)


def test_a_leading_token_of_the_tokenizer_leads_the_chat_too() -> None:
    template = serving.chat_template(PromptTemplate("{q}", "{a}"), bos_token="<s>")
    assert json.dumps("<s>") in template
