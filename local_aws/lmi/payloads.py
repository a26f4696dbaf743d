"""Requests as LMI takes them: {"inputs": ..., "parameters": {...}}, and OpenAI's chat form {"messages": [...], ...}."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_NEW_TOKENS = 30  # of the form with inputs, as in LMI; a chat goes on to the model's length, as in vLLM
ROLES = ("system", "user", "assistant")


class BadRequest(Exception):
    """The request cannot be answered as it stands; the text says what is wrong and what is allowed."""

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Rule:
    """What a generation parameter may be."""

    allowed: str
    accepts: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(member, str) and member for member in value)


TRUTH = Rule("true or false", lambda value: isinstance(value, bool))
COUNT = Rule("a whole number from 1", lambda value: _whole(value) and value >= 1)
STOP = Rule(
    "a text or a list of texts, none empty", lambda value: (isinstance(value, str) and value != "") or _texts(value)
)
SAMPLING = {
    "repetition_penalty": Rule("a number above 0", lambda value: _number(value) and value > 0),
    "seed": Rule("a whole number from 0", lambda value: _whole(value) and 0 <= value < 2**63),
    "stop": STOP,
    "temperature": Rule("a number from 0", lambda value: _number(value) and value >= 0),
    "top_k": Rule("a whole number from 1, or -1 for all", lambda value: _whole(value) and (value >= 1 or value == -1)),
    "top_p": Rule("a number above 0, up to 1", lambda value: _number(value) and 0 < value <= 1),
}
PARAMETERS = {
    **SAMPLING,
    "details": TRUTH,
    "do_sample": TRUTH,
    "max_new_tokens": COUNT,
    "return_full_text": TRUTH,
    "stop_sequences": STOP,
}
CHAT_FIELDS = {
    **SAMPLING,
    "max_completion_tokens": COUNT,
    "max_tokens": COUNT,
    "messages": Rule("a list of messages", lambda value: isinstance(value, list) and value != []),
    "model": Rule("a text", lambda value: isinstance(value, str)),
    "n": Rule("1", lambda value: value == 1 and _whole(value)),
    "stream": TRUTH,
    "stream_options": Rule("an object", lambda value: isinstance(value, dict)),
    "user": Rule("a text", lambda value: isinstance(value, str)),
}


@dataclass(frozen=True)
class Generation:
    """A checked request. `greedy` decides between the likeliest token and sampling; `max_new_tokens` None is no limit."""

    prompt: str
    messages: tuple[Mapping[str, str], ...]
    max_new_tokens: int | None
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    full_text: bool
    details: bool
    stream: bool
    usage_in_stream: bool = False

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


def read_json(body: bytes) -> dict[str, Any]:
    """A request's body as an object. Raises BadRequest."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequest('the body must be an object: {"inputs": "text", "parameters": {...}} or {"messages": [...]}')
    return request


def read_request(request: dict[str, Any]) -> Generation:
    """Check a request. Raises BadRequest with every problem at once."""
    return _read_chat(request) if "messages" in request else _read_inputs(request)


def _read_inputs(request: dict[str, Any]) -> Generation:
    problems = [
        f"unknown field '{name}'; the fields are inputs, parameters, stream"
        for name in request
        if name not in ("inputs", "parameters", "stream")
    ]
    prompt, parameters = request.get("inputs"), request.get("parameters") or {}
    if not isinstance(prompt, str) or not prompt:
        problems.append("'inputs' is missing or is no text; it holds the prompt")
    if not isinstance(request.get("stream", False), bool):
        problems.append("'stream' must be true or false")
    if not isinstance(parameters, dict):
        raise BadRequest("; ".join([*problems, "'parameters' must be an object"]))
    problems += _problems(parameters, PARAMETERS, "parameter")
    if problems:
        raise BadRequest("; ".join(problems))
    given = {name: value for name, value in parameters.items() if value is not None}
    if "stop_sequences" in given:
        given.setdefault("stop", given["stop_sequences"])
    return Generation(
        prompt=str(prompt),
        messages=(),
        max_new_tokens=given.get("max_new_tokens", DEFAULT_NEW_TOKENS),
        # As in LMI: sampling when it is asked for, or when a temperature is given; temperature 0 is greedy.
        greedy=not given.get("do_sample", "temperature" in given) or given.get("temperature") == 0,
        full_text=given.get("return_full_text", False),
        details=given.get("details", False),
        stream=request.get("stream", False),
        **_sampling(given),
    )


def _read_chat(request: dict[str, Any]) -> Generation:
    problems = _problems(request, CHAT_FIELDS, "field")
    messages = request["messages"] if isinstance(request["messages"], list) else []
    for position, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            problems.append(f"message {position} has the role {json.dumps(role)}; the roles are {', '.join(ROLES)}")
        elif not isinstance(message.get("content"), str):
            problems.append(f"message {position} has no 'content' that is a text")
    if problems:
        raise BadRequest("; ".join(problems))
    given = {name: value for name, value in request.items() if value is not None}
    return Generation(
        prompt="",
        messages=tuple({"role": message["role"], "content": message["content"]} for message in messages),
        max_new_tokens=given.get("max_completion_tokens", given.get("max_tokens")),
        greedy=given.get("temperature", 1.0) == 0,
        full_text=False,
        details=False,
        stream=given.get("stream", False),
        usage_in_stream=bool(given.get("stream_options", {}).get("include_usage", False)),
        **_sampling(given),
    )


def _problems(values: dict[str, Any], rules: dict[str, Rule], what: str) -> list[str]:
    problems = []
    for name, value in values.items():
        rule = rules.get(name)
        if rule is None:
            problems.append(f"unknown {what} '{name}'; the {what}s are {', '.join(sorted(rules))}")
        elif value is not None and not rule.accepts(value):
            problems.append(f"{what} '{name}' is {json.dumps(value)}, and must be {rule.allowed}")
    return problems


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    stop = given.get("stop", [])
    return {
        "temperature": float(given.get("temperature", 1.0)),
        "top_k": given.get("top_k", -1),
        "top_p": float(given.get("top_p", 1.0)),
        "repetition_penalty": float(given.get("repetition_penalty", 1.0)),
        "seed": given.get("seed"),
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
    }
