"""Answers in LMI's forms: generated_text and OpenAI's chat completion, whole and as lines of JSON while tokens come."""

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is the engine's need alone
    from local_aws.lmi.engine import Sequence, Token

# Why an answer ended, in OpenAI's words.
CHAT_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
MODEL_NAME = "lmi"


def whole(sequence: "Sequence", tgi_compatible: bool) -> Any:
    """The answer in one piece."""
    tokens = list(sequence)
    text, reason = "".join(token.text for token in tokens), tokens[-1].finish_reason
    request = sequence.request
    if request.is_chat:
        assert reason is not None
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": CHAT_REASONS[reason]}
        return {**_chat_head("chat.completion"), "choices": [choice], "usage": _usage(sequence)}
    answer: dict[str, Any] = {"generated_text": request.prompt + text if request.full_text else text}
    if request.details:
        answer["details"] = {
            "finish_reason": reason,
            "generated_tokens": len(tokens),
            "inputs": None,
            "seed": request.seed,
            "tokens": [_token(token) for token in tokens],
        }
    return [answer] if tgi_compatible else answer


def lines(sequence: "Sequence") -> Iterator[Any]:
    """The answer as objects, one a token."""
    return _chat_lines(sequence) if sequence.request.is_chat else _lines(sequence)


def _lines(sequence: "Sequence") -> Iterator[Any]:
    request, text = sequence.request, ""
    for token in sequence:
        text += token.text
        line: dict[str, Any] = {"index": 0, "token": _token(token), "generated_text": None, "details": None}
        if token.finish_reason is not None:
            line["generated_text"] = request.prompt + text if request.full_text else text
            if request.details:
                line["details"] = {
                    "finish_reason": token.finish_reason,
                    "seed": request.seed,
                    "generated_tokens": len(sequence.ids),
                    "input_length": len(sequence.prompt),
                }
        yield line


def _chat_lines(sequence: "Sequence") -> Iterator[Any]:
    head = _chat_head("chat.completion.chunk")

    def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    for token in sequence:
        reason = None if token.finish_reason is None else CHAT_REASONS[token.finish_reason]
        if token.text or reason:
            yield chunk({"content": token.text}, reason)
    if sequence.request.usage_in_stream:
        yield {**head, "choices": [], "usage": _usage(sequence)}


def _token(token: "Token") -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": token.log_probability}


def _chat_head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": MODEL_NAME}


def _usage(sequence: "Sequence") -> dict[str, int]:
    asked, answered = len(sequence.prompt), len(sequence.ids)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
