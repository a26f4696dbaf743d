"""Requests to the endpoint, answered whole or as they are written."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from cli.aws import Deployment
from cli.console import CommandError


def request(
    prompt: str | None, columns: list[str], chat: bool, max_new_tokens: int, temperature: float
) -> dict[str, Any]:
    """A request in the form that fits: a prompt as it is, the template's columns (Name=Value each), or a chat."""
    problems = [f"--column {pair}: expected Name=Value" for pair in columns if "=" not in pair]
    if (prompt is None) == (not columns):
        problems.append("give either a prompt or the columns of the prompt template (--column Name=Value)")
    if chat and columns:
        problems.append("--chat takes a question and no columns")
    if problems:
        raise CommandError("; ".join(problems))
    if chat:
        messages = [{"role": "user", "content": prompt}]
        return {"messages": messages, "max_tokens": max_new_tokens, "temperature": temperature}
    parameters: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        parameters["temperature"] = temperature
    inputs = dict(pair.split("=", 1) for pair in columns) if columns else prompt
    return {"inputs": inputs, "parameters": parameters}


def ask(deployment: Deployment, request: dict[str, Any]) -> Any:
    """The endpoint's whole answer. Raises CommandError with what the endpoint says against the request."""
    try:
        return deployment.invoke(request)
    except ClientError as error:
        raise CommandError(_reason(deployment, error)) from error


def stream(deployment: Deployment, request: dict[str, Any]) -> Iterator[str]:
    """The answer's text, piece by piece, while the model writes it."""
    try:
        answer = deployment.runtime.invoke_endpoint_with_response_stream(
            **deployment.invocation({**request, "stream": True})
        )
    except ClientError as error:
        raise CommandError(_reason(deployment, error)) from error
    for line in lines(parts(answer["Body"])):
        yield text_of(line)


def parts(events: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """The bytes of a response stream. Raises CommandError where the model or the service breaks it off."""
    for event in events:
        if "PayloadPart" in event:
            yield event["PayloadPart"]["Bytes"]
        else:
            kind, detail = next(iter(event.items()))
            raise CommandError(f"the answer was broken off ({kind}): {detail.get('Message', detail)}")


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a stream whose parts end anywhere; those without content are left out."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in whole if line.strip())
    if rest.strip():
        yield rest.decode()


def text_of(line: str) -> str:
    """The new text in a line of LMI's stream: JSON lines, or server-sent events with OPTION_TGI_COMPAT and for chats."""
    content = line.removeprefix("data:").strip()
    if content == "[DONE]" or line.startswith(("event:", ":", "id:")):
        return ""
    try:
        event = json.loads(content)
    except ValueError:
        raise CommandError(f"the endpoint streams what is no JSON: {line[:200]}") from None
    if "error" in event:
        raise CommandError(f"the answer was broken off: {event['error']}")
    if "choices" in event:
        delta = event["choices"][0].get("delta", {}) if event["choices"] else {}
        return str(delta.get("content") or "")
    token = event.get("token", {})
    return "" if token.get("special") else str(token.get("text", ""))


def _reason(deployment: Deployment, error: ClientError) -> str:
    name = deployment.settings.endpoint_name
    if "not found" in str(error).lower() or "could not find" in str(error).lower():
        return f"there is no endpoint {name}; approve a package (`finetune approve`) or release one (`finetune deploy`)"
    answer: dict[str, Any] = error.response
    said = answer.get("OriginalMessage") or answer["Error"].get("Message", str(error))
    status = answer.get("OriginalStatusCode")
    return f"the endpoint {name} answers {f'{status}: ' if status else ''}{said}"
