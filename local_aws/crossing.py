"""Requests between accounts and regions: what is asked of another place is answered there, by the neighbour it belongs to.

On AWS the client's region is the endpoint that is asked, an ARN names the account, and bucket names are global. What crosses:
DescribeModelPackage, UpdateModelPackage and ListModelPackages of SageMaker; HeadObject, GetObject and ListObjectsV2 of S3, and
copies from another place's bucket into one of our own (copies.py). Events cross on their own (events.py). All else that asks
for another place is refused by name. The neighbour authorizes the caller (authorization.py).
"""

import http.client
import io
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from moto.s3.models import s3_backends
from moto.sts.exceptions import STSValidationError
from moto.sts.models import STSBackend

from local_aws import authorization, copies, events, neighbours, request_actions, service_faults
from local_aws.authorization import ADMINISTRATOR, AccessDenied, Caller
from local_aws.neighbours import CALLER_HEADER, QUESTIONS, SECRET_HEADER, Neighbour, NeighbourError
from local_aws.networks import NoWay
from local_aws.policies import PolicyError
from local_aws.request_actions import Place, s3_list, s3_object
from local_aws.settings import Settings

Environment = dict[str, Any]
Application = Callable[[Environment, Any], Iterable[bytes]]

SCOPE = re.compile(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/aws4_request")  # region and service that a signature names
SAGEMAKER = {  # what crosses, and the field whose ARN names the account
    "DescribeModelPackage": "ModelPackageName",
    "ListModelPackages": "ModelPackageGroupName",
    "UpdateModelPackage": "ModelPackageArn",
}
S3_READS = ("GetObject", "HeadObject", "ListObjectsV2")
OF_THE_CONNECTION = ("connection", "date", "keep-alive", "server", "transfer-encoding")
PIECE_BYTES = 2**20

_settings: Settings


def install(settings: Settings) -> None:
    global _settings
    _settings = settings
    if settings.neighbours is not None:
        STSBackend.assume_role = _own_role(STSBackend.assume_role)


def over(application: Application) -> Application:
    """`application`, with the neighbours' requests to us and ours to them before it."""
    if _settings.neighbours is None:
        return application

    def answer(environment: Environment, start_response: Any) -> Iterable[bytes]:
        if _variable(SECRET_HEADER) in environment or _variable(CALLER_HEADER) in environment:
            return _of_a_neighbour(application, environment, start_response)
        scope = SCOPE.search(environment.get("HTTP_AUTHORIZATION", ""))
        region, service = (scope[1], scope[2]) if scope else ("", "")
        try:
            if service == "sagemaker" and "HTTP_X_AMZ_TARGET" in environment:
                return _sagemaker(application, environment, start_response, region)
            if service == "s3":
                return _s3(application, environment, start_response)
        except (NeighbourError, NoWay) as error:
            return _refuse(environment, start_response, service, 400, error.code, str(error))
        return application(environment, start_response)

    return answer


def _own_role(original: Callable[..., Any]) -> Callable[..., Any]:
    """moto hands out credentials of a role of any account, which would act in this one."""

    def assume_role(self: Any, region_name: str, role_session_name: str, role_arn: str, *rest: Any, **more: Any) -> Any:
        account = role_arn.split(":")[4] if role_arn.count(":") >= 5 else _settings.account
        if account != _settings.account:
            raise STSValidationError(
                f"AssumeRole of {role_arn} is not implemented by local AWS in account {_settings.account}; ask the server of "
                f"account {account}"
            )
        return original(self, region_name, role_session_name, role_arn, *rest, **more)

    return assume_role


# ---------------------------------------------------------------- to a neighbour


def _sagemaker(application: Application, environment: Environment, start_response: Any, region: str) -> Iterable[bytes]:
    operation = environment["HTTP_X_AMZ_TARGET"].rsplit(".", 1)[-1]
    named_by = SAGEMAKER.get(operation)
    if named_by is None:
        if region == _settings.region:
            return application(environment, start_response)
        text = f"{operation} of {region} cannot be asked in {_settings.region} here; of another place these can: "
        return _refuse(
            environment, start_response, "sagemaker", 400, "UnsupportedOperation", text + ", ".join(sorted(SAGEMAKER))
        )
    body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
    environment["wsgi.input"] = io.BytesIO(body)
    try:
        params = dict(json.loads(body or b"{}"))
    except (TypeError, ValueError):
        return application(environment, start_response)  # which tells what is wrong
    arn = str(params.get(named_by) or "").split(":")
    place = Place(region, arn[4] if len(arn) > 5 else _settings.account)
    if place == _own_place():
        return application(environment, start_response)
    neighbour, caller = neighbours.at(place), _caller(environment)
    first = request_actions.wanted("sagemaker", operation, params, place)[0]
    authorization.require_way(caller, "sagemaker", first.action, first.resource, first.context, region)
    return _forward(environment, start_response, neighbour, caller, body)


def _s3(application: Application, environment: Environment, start_response: Any) -> Iterable[bytes]:
    bucket, key = _bucket_and_key(environment)
    caller = _caller(environment)
    if holder := _holder(bucket):
        place = holder.place
        operation, _ = service_faults.operation("s3", {**environment, "PATH_INFO": f"/{bucket}/{key}"})
        if operation == "CreateBucket":
            text = (
                f"The bucket {bucket} is in account {place.account}, {place.region}; bucket names are unique everywhere"
            )
            return _refuse(environment, start_response, "s3", 409, "BucketAlreadyExists", text)
        if operation not in S3_READS:
            text = (
                f"{operation or environment['REQUEST_METHOD']} of {bucket}, which is in account {place.account}, "
                f"{place.region}, is not implemented by local AWS; there it answers {', '.join(S3_READS)}, and copies from "
                "there into a bucket here"
            )
            return _refuse(environment, start_response, "s3", 501, "NotImplemented", text)
        query = parse_qs(environment.get("QUERY_STRING", ""))
        read = "GetObjectVersion" if "versionId" in query else "GetObject"
        wanted = s3_object(read, bucket, key) if key else s3_list(bucket, query.get("prefix", [""])[0])
        authorization.require_way(caller, "s3", wanted.action, wanted.resource, wanted.context, place.region)
        return _forward(environment, start_response, holder, caller)
    source = copies.source_of(environment)
    if source is not None and (holder := _holder(source.bucket)):
        # The service reads it, so that the caller needs no way but to the service.
        wanted = s3_object(source.action, source.bucket, source.key)
        authorization.require_way(caller, "s3", wanted.action, wanted.resource, wanted.context)
        return copies.answer(
            application, environment, start_response, source, holder, neighbours.told(caller.principal, caller.name)
        )
    return application(environment, start_response)


def _forward(
    environment: Environment, start_response: Any, neighbour: Neighbour, caller: Caller, body: bytes = b""
) -> Iterable[bytes]:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").title(): str(value)
        for name, value in environment.items()
        if name.startswith("HTTP_") or name == "CONTENT_TYPE"
    }
    for name in ("Connection", "Expect", "Host", "Transfer-Encoding"):
        headers.pop(name, None)
    path = environment["REQUEST_URI"]
    if bucket := _bucket_in(environment["HTTP_HOST"]):  # the neighbour is asked by path
        path = f"/{bucket}{path}"
    answer = neighbours.send(
        neighbour, environment["REQUEST_METHOD"], path, headers, body, neighbours.told(caller.principal, caller.name)
    )
    kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in OF_THE_CONNECTION]
    start_response(f"{answer.status} {answer.reason}", kept)
    return _Pieces(answer)


class _Pieces:
    """A neighbour's answer as WSGI wants it; the server calls `close` however the request ends."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._answer.read(PIECE_BYTES):
            yield piece

    def close(self) -> None:
        self._answer.close()


def _caller(environment: Environment) -> Caller:
    return authorization.caller_in(environment.get("HTTP_AUTHORIZATION", ""))


def _holder(bucket: str) -> Neighbour | None:
    """The neighbour that has the bucket; none if it is here, or nowhere."""
    if not bucket or bucket in s3_backends[_settings.account]["aws"].buckets:
        return None
    return neighbours.holder(bucket)


def _bucket_and_key(environment: Environment) -> tuple[str, str]:
    path = unquote(environment["REQUEST_URI"].partition("?")[0]).lstrip("/")
    if bucket := _bucket_in(environment["HTTP_HOST"]):
        return bucket, path
    bucket, _, key = path.partition("/")
    return bucket, key


def _bucket_in(host: str) -> str:
    """The bucket that stands before the host's own name, if there is one."""
    name = host.rsplit(":", 1)[0].lower()
    return name.removesuffix(".localhost") if name.endswith(".localhost") else ""


# ---------------------------------------------------------------- of a neighbour


def _of_a_neighbour(application: Application, environment: Environment, start_response: Any) -> Iterable[bytes]:
    """A request that says that a neighbour has sent it."""
    if not neighbours.is_ours(environment.pop(_variable(SECRET_HEADER), "")):
        text = f"only a neighbour of this server may send {SECRET_HEADER} and {CALLER_HEADER}, and this secret is not ours\n"
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [text.encode()]
    told = json.loads(environment.pop(_variable(CALLER_HEADER)))
    home = Place(told["region"], told["account"]) if told else None
    caller = Caller(told["principal"], told["name"], home=home) if told.get("principal") else ADMINISTRATOR
    question = environment["PATH_INFO"].removeprefix(QUESTIONS)
    if question != environment["PATH_INFO"]:
        asked = json.loads(environment["wsgi.input"].read(int(environment["CONTENT_LENGTH"])))
        content = json.dumps(_ANSWERS[question](asked, caller)).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
        return [content]
    if caller == ADMINISTRATOR:
        return application(environment, start_response)
    # Everything behind this knows callers by their access keys, so for this one request the caller has one.
    key = f"NEIGHBOUR{secrets.token_hex(16)}"
    environment["HTTP_AUTHORIZATION"] = re.sub(
        r"Credential=[^/]+", f"Credential={key}", environment["HTTP_AUTHORIZATION"]
    )
    authorization.open_session(key, caller)
    try:
        return application(environment, start_response)
    finally:
        authorization.close_session(key)


def _role_policies(asked: dict[str, Any], caller: Caller) -> Any:
    return authorization.role_policies(asked["role"])


def _has_bucket(asked: dict[str, Any], caller: Caller) -> Any:
    return asked["name"] in s3_backends[_settings.account]["aws"].buckets


def _event(asked: dict[str, Any], caller: Caller) -> Any:
    """Why the bus does not take the event; nothing if it does."""
    try:
        events.put_on_bus(asked["bus"], asked["event"], caller)
    except (AccessDenied, PolicyError, events.TargetError) as error:
        return str(error)
    return ""


_ANSWERS: dict[str, Callable[[dict[str, Any], Caller], Any]] = {
    "bucket": _has_bucket,
    "event": _event,
    "role_policies": _role_policies,
}


def _own_place() -> Place:
    return Place(_settings.region, _settings.account)


def _variable(header: str) -> str:
    """A header's name in a WSGI environment."""
    return f"HTTP_{header.upper().replace('-', '_')}"


def _refuse(
    environment: Environment, start_response: Any, service: str, status: int, code: str, text: str
) -> Iterable[bytes]:
    # Whoever is still sending the body would not read an answer.
    environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
    if service == "s3":
        kind, body = "application/xml", f"<Error><Code>{code}</Code><Message>{escape(text)}</Message></Error>"
    else:
        kind, body = "application/x-amz-json-1.1", json.dumps({"__type": code, "message": text})
    content = body.encode()
    start_response(f"{status} {code}", [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]
