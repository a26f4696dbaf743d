"""SageMaker's runtime API as a WSGI application: invocations go to the endpoints' router without a way through moto.

moto answers from whole bodies; here an answer is sent while it comes.
"""

import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from local_aws import enforcement
from local_aws.authorization import AccessDenied
from local_aws.endpoint_router import Router, StreamedAnswer, error_answer
from local_aws.networks import NoWay
from local_aws.serving_process import Answer

PATH = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)$")
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def over(application: Application, router: Router) -> Application:
    """`application`, with the runtime API before it."""

    def answer(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = PATH.match(environment["PATH_INFO"])
        # The same path may be an object of a bucket named "endpoints"; the signature names the service.
        if path is None or "/s3/" in environment.get("HTTP_AUTHORIZATION", ""):
            return application(environment, start_response)
        reply = _reply(router, urllib.parse.unquote(path[1]), path[2], environment)
        headers = list(reply.headers.items())
        if isinstance(reply, Answer):
            headers.append(("Content-Length", str(len(reply.body))))
        start_response(f"{reply.status} {_phrase(reply.status)}", headers)
        return _Pieces(reply) if isinstance(reply, StreamedAnswer) else [reply.body]

    return answer


def _reply(router: Router, name: str, operation: str, environment: dict[str, Any]) -> Answer | StreamedAnswer:
    if environment["REQUEST_METHOD"] != "POST":
        return error_answer(405, "ValidationError", f"{environment['REQUEST_METHOD']} is not allowed; use POST")
    length = environment.get("CONTENT_LENGTH")
    body = environment["wsgi.input"].read(int(length) if length else -1)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environment.items()
        if name.startswith("HTTP_") or name == "CONTENT_TYPE"
    }
    try:
        enforcement.authorize_invocation(headers, name)
    except AccessDenied as error:
        return error_answer(403, "AccessDeniedException", str(error))
    except NoWay as error:
        return error_answer(403, error.code, str(error))
    if operation == "invocations":
        return router.invoke(name, body, headers)
    if operation == "invocations-response-stream":
        return router.stream(name, body, headers)
    message = "InvokeEndpointAsync is not implemented by local AWS; use InvokeEndpoint"
    return error_answer(400, "ValidationError", message)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class _Pieces:
    """A streamed body as WSGI wants it; the server calls `close` however the request ends."""

    def __init__(self, answer: StreamedAnswer) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.pieces

    def close(self) -> None:
        self._answer.close()
