"""Requests and answers as SageMaker's data capture leaves them in S3: one JSON object a line, in folders by hour."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True)
class Exchange:
    """A request's prompt and its answer. `finish_reason`, `max_new_tokens`: None where the exchange does not say."""

    prompt: str
    answer: str
    finish_reason: str | None
    max_new_tokens: int | None
    custom_attributes: tuple[str, ...] = ()


def folders(destination: str, endpoint: str, variant: str, since: datetime, until: datetime) -> Iterator[str]:
    """S3 prefixes that hold what was captured between two times (UTC)."""
    hour = since.replace(minute=0, second=0, microsecond=0)
    while hour <= until:
        yield f"{destination.rstrip('/')}/{endpoint}/{variant}/{hour:%Y/%m/%d/%H}/"
        hour += timedelta(hours=1)


def read(line: str) -> Exchange | None:
    """The exchange of one captured line, or None if it is in a form that no client of ours sends.

    Known are the forms that the serving image takes: `inputs` as text or columns, OpenAI's `prompt` and `messages`.
    """
    try:
        record = json.loads(line)
        captured = record["captureData"]
        request, answer = (json.loads(_data(captured[side])) for side in ("endpointInput", "endpointOutput"))
        answer = answer[0] if isinstance(answer, list) else answer
        prompt = _prompt(request)
        text, reason = _answer(answer)
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    parameters = request.get("parameters") or request
    limit = parameters.get("max_new_tokens") or parameters.get("max_tokens")
    attributes = tuple(record.get("eventMetadata", {}).get("customAttributes", ()))
    return Exchange(prompt, text, reason, limit if isinstance(limit, int) else None, attributes)


def _data(side: dict[str, str]) -> str:
    return base64.b64decode(side["data"]).decode() if side["encoding"] == "BASE64" else side["data"]


def _prompt(request: dict[str, Any]) -> str:
    if "messages" in request:
        return "\n".join(str(message["content"]) for message in request["messages"])
    asked = request["inputs"] if "inputs" in request else request["prompt"]
    return "\n".join(str(value) for value in asked.values()) if isinstance(asked, dict) else str(asked)


def _answer(answer: dict[str, Any]) -> tuple[str, str | None]:
    if "generated_text" in answer:
        return str(answer["generated_text"]), (answer.get("details") or {}).get("finish_reason")
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return str(text), choice.get("finish_reason")
