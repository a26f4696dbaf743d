"""Streams of an endpoint as text: in whatever pieces they arrive, and however they break off."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import invocation
from cli.console import CommandError

LINES = [
    json.dumps({"token": {"id": 5, "text": "The ", "log_prob": -0.1}}),
    json.dumps({"token": {"id": 6, "text": "ferré", "log_prob": -0.2}}),
    json.dumps({"token": {"id": 2, "text": "</s>", "special": True}, "generated_text": "The ferré"}),
]


def text(lines: list[str]) -> str:
    return "".join(invocation.text_of(line) for line in lines)


@given(st.lists(st.integers(1, 40), min_size=1))
def test_a_stream_reads_the_same_however_it_is_cut(sizes: list[int]) -> None:
    content, chunks = ("\n".join(LINES) + "\n").encode(), []
    for size in sizes:
        chunks.append(content[:size])
        content = content[size:]
    assert text(list(invocation.lines([*chunks, content]))) == "The ferré"


def test_server_sent_events_and_chats_are_read_too() -> None:
    events = [f"data: {line}" for line in LINES]
    assert text(events) == "The ferré"
    chat = [json.dumps({"choices": [{"delta": {"content": part}}]}) for part in ("The ", "ferry")]
    assert text([*(f"data: {line}" for line in chat), "data: [DONE]"]) == "The ferry"


@pytest.mark.parametrize("line", ["no JSON", json.dumps({"error": "the model ran out of memory", "code": 424})])
def test_what_is_no_answer_is_told_and_not_printed(line: str) -> None:
    with pytest.raises(CommandError, match=r"no JSON|ran out of memory"):
        invocation.text_of(line)


def test_a_stream_that_the_service_breaks_off_is_an_error() -> None:
    events = [{"PayloadPart": {"Bytes": b"{}"}}, {"ModelStreamError": {"Message": "the container died"}}]
    with pytest.raises(CommandError, match=r"broken off \(ModelStreamError\): the container died"):
        list(invocation.parts(events))


def test_a_request_takes_the_form_that_fits_what_is_given() -> None:
    assert invocation.request("Hello", [], False, 8, 0.0) == {
        "inputs": "Hello",
        "parameters": {"max_new_tokens": 8, "do_sample": False},
    }
    columns = invocation.request(None, ["instruction=Sum up", "context=a=b"], False, 8, 0.7)
    assert columns["inputs"] == {"instruction": "Sum up", "context": "a=b"}
    assert columns["parameters"] == {"max_new_tokens": 8, "do_sample": True, "temperature": 0.7}
    assert invocation.request("Hello", [], True, 8, 0.0)["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("prompt", "columns", "chat", "said"),
    [
        (None, [], False, "either a prompt or the columns"),
        ("Hello", ["a=b"], False, "either a prompt or the columns"),
        (None, ["instruction"], False, "--column instruction: expected Name=Value"),
        (None, ["a=b"], True, "--chat takes a question and no columns"),
    ],
)
def test_what_is_no_request_is_told(prompt: str | None, columns: list[str], chat: bool, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        invocation.request(prompt, columns, chat, 8, 0.0)
