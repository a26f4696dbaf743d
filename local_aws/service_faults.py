"""Faults of services, asked for by rule, so that what must survive them can be tested: S3 that slows down, a throttled API.

A rule is a list of NAME=VALUE, separated by commas (on the command line: --fault), or the same as a query
(POST /_local/faults?service=s3&operation=GetObject&error=SlowDown&times=3; ?clear=all removes every rule):

    service=s3            as boto3 names the client; s3, sagemaker, logs, events, ...
    operation=GetObject   one operation of it; without it all
    error=SlowDown        the code that is answered; ERRORS has them with their HTTP status
    key=runs/             of S3 only: keys that hold this text
    times=3               so many requests fail, then all go through; without it all fail
    share=0.5             that share of the requests fails, evenly spread

Requests of boto3, of any client and in any container, meet the rules; so do the transfers of jobs between S3 and their
folders, which are tried TRANSFER_ATTEMPTS times, as the clients do.
"""

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import botocore.session

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

ERRORS = {
    "SlowDown": (503, "Please reduce your request rate."),
    "ServiceUnavailable": (503, "The service is not available. Try again."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "RequestTimeout": (400, "Your socket connection to the server was not read from or written to in time."),
    "AccessDenied": (403, "Access Denied"),
    "ThrottlingException": (400, "Rate exceeded"),
    "InternalFailure": (500, "The request processing has failed because of an unknown error."),
}
TRANSFER_ATTEMPTS = 5  # boto3's own number for S3
TRANSFER_WAIT_SECONDS = 0.05  # before the second attempt; twice as long before each further one


class FaultRuleError(ValueError):
    """A rule that cannot be read; the text says what is allowed."""


class ServiceFault(Exception):
    """The service answers with an error."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.status, self.message = ERRORS[code]
        super().__init__(f"{code}: {self.message}")


@dataclass
class Rule:
    """One rule, and how often it is still to strike."""

    service: str
    error: str
    operation: str = ""
    key: str = ""
    times: float = float("inf")
    share: float = 1.0
    _owed: float = field(default=0.0, repr=False)  # share of a failure that is due

    @classmethod
    def of(cls, values: dict[str, str]) -> "Rule":
        """Raises FaultRuleError with every problem at once."""
        known = {"service", "operation", "error", "key", "times", "share"}
        problems = [f"'{name}' is unknown; known: {', '.join(sorted(known))}" for name in sorted(values.keys() - known)]
        problems += [f"{name} is missing" for name in ("service", "error") if not values.get(name)]
        if values.get("error", "SlowDown") not in ERRORS:
            problems.append(f"error is '{values['error']}'; known: {', '.join(ERRORS)}")
        service = values.get("service", "s3")
        if service not in botocore.session.Session().get_available_services():
            problems.append(f"service is '{service}', which boto3 does not know")
        elif (operation := values.get("operation")) and operation not in _operations(service):
            problems.append(f"operation is '{operation}', which {service} does not have")
        numbers = {}
        for name, low, high in (("times", 1, float("inf")), ("share", 0, 1)):
            try:
                numbers[name] = float(values.get(name, high))
                if not low <= numbers[name] <= high:
                    raise ValueError
            except ValueError:
                problems.append(f"{name} is '{values[name]}'; allowed: a number from {low} to {high:g}")
        if problems:
            raise FaultRuleError("fault rule: " + "; ".join(problems))
        return cls(service, values["error"], values.get("operation", ""), values.get("key", ""), **numbers)

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """A rule from `service=s3,error=SlowDown`. Raises FaultRuleError."""
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return cls.of({name.strip(): value.strip() for name, _, value in pairs})

    def strikes(self, service: str, operation: str, key: str) -> bool:
        """Whether this request fails; counts it."""
        if service != self.service or self.operation not in ("", operation) or self.key not in key or self.times < 1:
            return False
        self._owed += self.share
        if self._owed < 1:
            return False
        self._owed -= 1
        self.times -= 1
        return True


class ServiceFaults:
    """The rules of this server; without any, nothing happens."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def add(self, rule: Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def check(self, service: str, operation: str, key: str = "") -> None:
        """Raise ServiceFault if a rule wants this request to fail."""
        with self._lock:
            struck = next((rule for rule in self._rules if rule.strikes(service, operation, key)), None)
        if struck is not None:
            raise ServiceFault(struck.error)

    def transfer(self, operation: str, key: str) -> None:
        """Before one object of a job moves: try as the clients do. Raises ServiceFault if the last attempt fails too."""
        for attempt in range(TRANSFER_ATTEMPTS):
            try:
                return self.check("s3", operation, key)
            except ServiceFault:
                if attempt == TRANSFER_ATTEMPTS - 1:
                    raise
                time.sleep(TRANSFER_WAIT_SECONDS * 2**attempt)

    def over(self, application: Application) -> Application:
        """`application`, whose requests meet the rules."""

        def answer(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if not self._rules:
                return application(environment, start_response)
            service = _service(environment)
            try:
                self.check(service, *operation(service, environment))
            except ServiceFault as fault:
                # Whoever is still sending the body would not read an answer.
                environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
                return _error(service, fault, start_response)
            return application(environment, start_response)

        return answer


faults = ServiceFaults()  # of this process: one server


def _service(environment: dict[str, Any]) -> str:
    """The service that the request's signature names: .../20260101/us-east-1/s3/aws4_request."""
    match = re.search(r"/([a-z0-9-]+)/aws4_request", environment.get("HTTP_AUTHORIZATION", ""))
    return {"monitoring": "cloudwatch"}.get(match[1], match[1]) if match else "s3"


def operation(service: str, environment: dict[str, Any]) -> tuple[str, str]:
    """The operation that a request asks for, and the key of the object where it has one."""
    if "HTTP_X_AMZ_TARGET" in environment:
        return environment["HTTP_X_AMZ_TARGET"].rsplit(".", 1)[-1], ""
    if service != "s3":
        return "", ""
    _, _, key = unquote(environment["PATH_INFO"]).lstrip("/").partition("/")
    query = parse_qs(environment.get("QUERY_STRING", ""), keep_blank_values=True).keys()
    fitting = [
        (len(needed), name)
        for name, (method, has_key, needed) in _s3_requests().items()
        if method == environment["REQUEST_METHOD"] and has_key == bool(key) and needed <= query
    ]
    return (max(fitting)[1] if fitting else ""), key


@functools.cache
def _operations(service: str) -> frozenset[str]:
    return frozenset(botocore.session.Session().get_service_model(service).operation_names)


@functools.cache
def _s3_requests() -> dict[str, tuple[str, bool, frozenset[str]]]:
    """Operation of S3 -> HTTP method, whether it names an object, and the query parameters that it always has."""
    model, found = botocore.session.Session().get_service_model("s3"), {}
    for name in model.operation_names:
        described = model.operation_model(name)
        path, _, query = described.http["requestUri"].partition("?")
        needed = {part.partition("=")[0] for part in query.split("&") if part}
        shape = described.input_shape
        for member in shape.required_members if shape else []:
            serialization = shape.members[member].serialization
            if serialization.get("location") == "querystring":
                needed.add(serialization["name"])
        needed.discard("x-id")
        # Of two operations with the same request the common one is meant.
        if name not in (
            "CopyObject",
            "UploadPartCopy",
            "CreateSession",
            "RenameObject",
            "ListObjects",
            "ListDirectoryBuckets",
        ):
            found[name] = (described.http["method"], "{Key" in path, frozenset(needed))
    return found


def _error(service: str, fault: ServiceFault, start_response: Any) -> Iterable[bytes]:
    if service == "s3":
        kind = "application/xml"
        body = f"<Error><Code>{fault.code}</Code><Message>{escape(fault.message)}</Message></Error>"
    else:
        kind, body = "application/x-amz-json-1.1", json.dumps({"__type": fault.code, "message": fault.message})
    content = body.encode()
    start_response(f"{fault.status} {fault.code}", [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]
