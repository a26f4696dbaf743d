"""S3's server-side copies from a neighbour's bucket, and ranges of large objects.

The neighbour is asked for the bytes in the caller's name, for one part of a multipart copy at a time, and what has come is
put as if the caller had sent it. Metadata travel with an object that is copied whole, as on S3; its tags do not.
"""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

from moto.s3.responses import S3Response

from local_aws import neighbours
from local_aws.neighbours import Neighbour
from local_aws.object_store import read_range

Environment = dict[str, Any]

COPY_HEADERS = "HTTP_X_AMZ_COPY_SOURCE"
CONDITIONS = {
    f"{COPY_HEADERS}_{name.upper()}": name.replace("_", "-").title() for name in ("if_match", "if_none_match")
}
DESCRIBING = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(frozen=True)
class Source:
    """The object that is copied: its bucket and key, what reading it is to IAM, and the request for it as a path."""

    bucket: str
    key: str
    action: str
    path: str


def install() -> None:
    """Let S3 read no more of an object than is asked for."""
    S3Response.get_object = _range_alone(S3Response.get_object)


def source_of(environment: Environment) -> Source | None:
    """What a request copies, if it is a copy."""
    named = environment.get(COPY_HEADERS)
    if named is None or environment["REQUEST_METHOD"] != "PUT":
        return None
    path, _, query = named.partition("?")
    bucket, _, key = unquote(path).lstrip("/").partition("/")
    action = "GetObjectVersion" if "versionId" in parse_qs(query) else "GetObject"
    return Source(bucket, key, action, f"/{bucket}/{quote(key)}{'?' if query else ''}{query}")


def answer(
    application: Callable[[Environment, Any], Iterable[bytes]],
    environment: Environment,
    start_response: Any,
    source: Source,
    holder: Neighbour,
    caller: dict[str, str],
) -> Iterable[bytes]:
    """CopyObject, or UploadPartCopy, of an object that a neighbour has; what it refuses is the answer."""
    headers = {"Authorization": environment["HTTP_AUTHORIZATION"]}
    headers |= {name: environment[variable] for variable, name in CONDITIONS.items() if variable in environment}
    if span := environment.get(f"{COPY_HEADERS}_RANGE"):
        headers["Range"] = span
    with neighbours.send(holder, "GET", source.path, headers, b"", caller) as found:
        content = found.read()
        if found.status not in (200, 206):
            start_response(f"{found.status} {found.reason}", [("Content-Type", "application/xml")])
            return [content]
        given = {name.lower(): value for name, value in found.getheaders()}
    is_part = "uploadId" in parse_qs(environment.get("QUERY_STRING", ""))
    put = {name: value for name, value in environment.items() if not name.startswith(COPY_HEADERS)}
    if not is_part and put.pop("HTTP_X_AMZ_METADATA_DIRECTIVE", "COPY") == "COPY":
        put |= _metadata(given)
    put |= {"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": str(len(content))}
    return _as_copy(application, put, start_response, "CopyPartResult" if is_part else "CopyObjectResult", given)


def _metadata(given: dict[str, str]) -> Environment:
    """An object's headers, of lower-case names, as those of a request that puts it."""
    told = {name: value for name, value in given.items() if name in DESCRIBING or name.startswith("x-amz-meta-")}
    variables = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in told.items()}
    return {**variables, "CONTENT_TYPE": given.get("content-type", "")}


def _as_copy(
    application: Callable[[Environment, Any], Iterable[bytes]],
    put: Environment,
    start_response: Any,
    result: str,
    given: dict[str, str],
) -> Iterable[bytes]:
    """The answer to a put as the answer to a copy, whose body tells the ETag."""
    said: list[Any] = []
    body = b"".join(application(put, lambda status, headers, *_: said.append((status, headers))))
    status, headers = said[0]
    if status.startswith("200"):
        etag = next(value for name, value in headers if name.lower() == "etag")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<{result} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<LastModified>{now}</LastModified><ETag>{escape(etag)}</ETag></{result}>"
        ).encode()
        headers = [(name, value) for name, value in headers if name.lower() not in ("content-length", "content-type")]
        headers += [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        if version := given.get("x-amz-version-id"):
            headers.append(("x-amz-copy-source-version-id", version))
    start_response(status, headers)
    return [body]


def _range_alone(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """moto reads a whole object for each range of it."""

    def get_object(self: Any) -> Any:
        asked = RANGE.fullmatch(self.headers.get("range", ""))
        if asked is None or "partNumber" in self.querystring:
            return original(self)
        key, not_modified = self._get_key()
        first, last = int(asked[1]), min(int(asked[2]), key.size - 1)
        if not_modified or first > last:
            return original(self)
        headers = {**self._get_cors_headers_other(), **key.response_dict, **key.metadata}
        content = read_range(key, first, last)
        span = {"content-range": f"bytes {first}-{last}/{key.size}", "content-length": str(len(content))}
        return 206, {**headers, **span, "Accept-Ranges": "bytes"}, content

    return get_object
