"""What every SageMaker operation here shares: request validation, errors, names, paging and the state lock."""

import datetime
import difflib
import functools
import json
import logging
import math
import re
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape

from local_aws import events, identity
from local_aws.settings import Settings

log = logging.getLogger(__name__)

PRINCIPAL = "sagemaker.amazonaws.com"
Request = dict[str, Any]
Response = dict[str, Any]


class ServiceError(Exception):
    """An error of the API: `code` is AWS's name for it."""

    code = "InternalFailure"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationException(ServiceError):
    """The request is wrong; the message names the field, the value and what is allowed."""

    code = "ValidationException"


class ResourceInUse(ServiceError):
    """A resource with that name is there already, or something still uses it."""

    code = "ResourceInUse"


class ResourceNotFound(ServiceError):
    """No resource has that name."""

    code = "ResourceNotFound"


class ConflictException(ServiceError):
    """The resource is in a state that does not allow the request."""

    code = "ConflictException"


class UnsupportedOperation(ServiceError):
    """The operation exists in AWS, but not here."""

    code = "UnsupportedOperation"


class Service:
    """The settings and the one lock that guards all state of the SageMaker rooms.

    `changed` is notified whenever a status changes, so that whoever waits for a job or an endpoint never polls.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.changed = threading.Condition(threading.RLock())
        self.tags: dict[str, dict[str, str]] = {}  # ARN of every resource of ours -> its tags

    def check_role(self, role: str) -> None:
        """Raise ValidationException unless SageMaker can assume the role, as the service does when it is handed one."""
        try:
            identity.check(role, PRINCIPAL)
        except identity.RoleError as error:
            raise ValidationException(
                f"Could not assume role {role}. Please ensure that the role exists and allows principal "
                f"'{PRINCIPAL}' to assume the role. ({error})"
            ) from None

    def emit(self, detail_type: str, detail: dict[str, Any], arn: str) -> None:
        """Send an event of SageMaker to this server's EventBridge. Not to be called with the lock held.

        What goes wrong with an event is in the server's log; it never stops the job that the event is about.
        """
        try:
            events.emit("aws.sagemaker", detail_type, _event_value(detail), [arn])
        except Exception:
            log.exception("the event '%s' of %s was not sent", detail_type, arn)

    def arn(self, resource: str) -> str:
        """`resource` is `<type>/<name>`, for example `training-job/my-job`."""
        return f"arn:aws:sagemaker:{self.settings.region}:{self.settings.account}:{resource}"


def _event_value(value: Any) -> Any:
    """Times become milliseconds since 1970, as in SageMaker's events."""
    if isinstance(value, datetime.datetime):
        return int(value.timestamp() * 1000)
    if isinstance(value, dict):
        return {name: _event_value(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_event_value(member) for member in value]
    return value


def now() -> datetime.datetime:
    """The current time, in UTC and with its time zone, as the SDKs return times."""
    return datetime.datetime.now(datetime.UTC)


def random_id(length: int) -> str:
    """A random name of lower-case hexadecimal digits."""
    return uuid.uuid4().hex[:length]


def json_body(body: bytes) -> Request:
    """The JSON object in a request's body. Raises ValidationException."""
    try:
        request = json.loads(body or b"{}")
    except ValueError as error:
        raise ValidationException(f"The request is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise ValidationException(f"The request must be a JSON object, and is {type(request).__name__}")
    return request


def tags_of(request: Request) -> dict[str, str]:
    """The Tags of a request, [{"Key", "Value"}], as a plain mapping."""
    return {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])}


def name_in(name_or_arn: str) -> str:
    """The resource name in what may be a name or an ARN; most operations accept both."""
    return name_or_arn.rsplit("/", 1)[-1] if name_or_arn.startswith("arn:") else name_or_arn


@functools.cache
def service_model() -> ServiceModel:
    """Botocore's description of the SageMaker API."""
    return botocore.session.Session().get_service_model("sagemaker")


def validate(operation: str, request: Any) -> None:
    """Check a request against botocore's service model, as the service does before it looks at anything else.

    Raises ValidationException with every problem at once, in the words of AWS. Two things differ from AWS on purpose:
    a value of a wrong type is a ValidationException too (AWS: SerializationException), and a field that the
    operation does not know is refused (AWS ignores it), because here it is always a mistake.
    """
    validate_shape(service_model().operation_model(operation).input_shape, request)


def validate_shape(shape: Shape | None, request: Any) -> None:
    """The same for the input of any service's operation."""
    problems = list(_problems(shape, request, "")) if shape is not None else []
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        raise ValidationException(count + "; ".join(problems))


_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float, str, datetime.datetime),
    "blob": (str, bytes),
}


def _problems(shape: Shape, value: Any, path: str) -> Iterable[str]:
    def failed(constraint: str) -> str:
        shown = "null" if value is None else f"'{value}'"
        return f"Value {shown} at '{path or shape.name}' failed to satisfy constraint: {constraint}"

    kind = shape.type_name
    wrong_type = not isinstance(value, _PYTHON_TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))
    if wrong_type:
        yield failed(f"Member must be of type {kind}")
        return
    yield from map(failed, _broken_constraints(shape, value))

    if isinstance(shape, StructureShape):
        prefix = f"{path}." if path else ""
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value null at '{prefix}{_camel(name)}' failed to satisfy constraint: Member must not be null"
        for name, member in value.items():
            if name not in shape.members:
                known = ", ".join(sorted(shape.members))
                yield f"Unknown field '{prefix}{name}' in {shape.name}; the fields are: {known}"
            elif member is not None:
                yield from _problems(shape.members[name], member, prefix + _camel(name))
    elif isinstance(shape, MapShape):
        for name, member in value.items():
            yield from _problems(shape.key, name, f"{path}.key")
            yield from _problems(shape.value, member, f"{path}.{name}.member")
    elif isinstance(shape, ListShape):
        for position, member in enumerate(value, start=1):
            yield from _problems(shape.member, member, f"{path}.{position}.member")


def _broken_constraints(shape: Shape, value: Any) -> Iterable[str]:
    rules = shape.metadata
    if "enum" in rules and value not in rules["enum"]:
        allowed = rules["enum"]
        if len(allowed) > 30:  # instance types: hundreds
            near = difflib.get_close_matches(str(value), allowed, n=8, cutoff=0.0)
            allowed = [*near, f"... {len(allowed)} values"]
        yield f"Member must satisfy enum value set: [{', '.join(allowed)}]"
    if isinstance(value, bool | datetime.datetime):
        return
    counted = isinstance(value, str | list | dict | bytes)
    size = len(value) if counted else value
    what = "length" if counted else "value"
    if isinstance(size, float) and not math.isfinite(size):
        yield "Member must be a finite number"
    if size < rules.get("min", -math.inf):
        yield f"Member must have {what} greater than or equal to {rules['min']}"
    if size > rules.get("max", math.inf):
        yield f"Member must have {what} less than or equal to {rules['max']}"
    if isinstance(value, str) and "pattern" in rules:
        pattern = _compiled(rules["pattern"])
        if pattern is not None and not pattern.fullmatch(value):
            yield f"Member must satisfy regular expression pattern: {rules['pattern']}"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    # The model's patterns are Java's; those that Python cannot read (\p{L} and the like) are not checked here.
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _camel(member: str) -> str:
    return member[:1].lower() + member[1:]


def page(
    items: Iterable[dict[str, Any]],
    request: Request,
    *,
    name: str,
    status: str = "",
    sort_keys: dict[str, str] | None = None,
    default_order: str = "Descending",
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Filter, sort and cut a list as the List operations do.

    `name` and `status` are the item's keys that NameContains and StatusEquals look at; `sort_keys` maps SortBy's values to
    the item's keys. Returns the page and {"NextToken": ...} when there is more.
    """
    kept = [item for item in items if _matches(item, request, name, status)]
    keys = {"Name": name, "CreationTime": "CreationTime", "Status": status, **(sort_keys or {})}
    key = keys.get(request.get("SortBy", ""), "CreationTime")
    kept.sort(key=lambda item: item[key], reverse=request.get("SortOrder", default_order) == "Descending")
    try:
        start = int(request.get("NextToken") or 0)
    except ValueError:
        raise ValidationException(
            f"Invalid NextToken '{request['NextToken']}'; use the one that the last page returned"
        ) from None
    end = start + request.get("MaxResults", 100)
    return kept[start:end], ({"NextToken": str(end)} if end < len(kept) else {})


def _matches(item: dict[str, Any], request: Request, name: str, status: str) -> bool:
    times: list[tuple[str, Callable[[float, float], bool]]] = [
        ("After", lambda then, limit: then > limit),
        ("Before", lambda then, limit: then < limit),
    ]
    return (
        request.get("NameContains", "").lower() in str(item.get(name, "")).lower()
        and request.get("StatusEquals") in (None, item.get(status))
        and all(
            compare(item[field].timestamp(), _timestamp(request[field + suffix]))
            for field in ("CreationTime", "LastModifiedTime")
            for suffix, compare in times
            if request.get(field + suffix) is not None
        )
    )


def _timestamp(value: Any) -> float:
    """A time as the JSON protocol sends it (seconds since 1970), or as an in-process caller gives it."""
    return value.timestamp() if isinstance(value, datetime.datetime) else float(value)
