"""Who may do what: every call of a role, and of a service on somebody's resource, is authorized and written down.

Roles are assumed by services (identity.py): their credentials are in jobs and endpoints, and the services' own work in
their name (data in and out, logs, images) names the same role. Credentials of people, which no service handed out, are
those of an administrator here and are not looked at.

A role of another account (neighbours.py) needs both: its own policies, which are asked for where it is at home, and the policy
of the resource, which is here.
"""

import functools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from moto.events.models import events_backends
from moto.iam.models import iam_backends
from moto.kms.models import kms_backends
from moto.s3.models import s3_backends
from moto.sns.models import sns_backends
from moto.sqs.models import sqs_backends

from local_aws import neighbours, networks, policies
from local_aws.policies import Call, Context, Statement
from local_aws.request_actions import Place
from local_aws.settings import Settings

MOST_RECORDS = 100_000
# Services whose resource policy must agree, whatever an identity policy says.
RESOURCE_POLICY_DECIDES = ("kms", "sts")


@dataclass(frozen=True)
class Caller:
    """Who calls: a role's ARN, or a service. `name` is the job, endpoint or execution that acts as the role.

    `subnets` are those of the host that calls, if it is in a VPC; `home` is where the role is, if not on this server.
    """

    principal: str
    name: str = ""
    subnets: tuple[str, ...] = ()
    home: Place | None = None

    @property
    def account(self) -> str:
        """A role's account; none for a service."""
        return self.principal.split(":")[4] if self.principal.startswith("arn:") else ""

    @property
    def arn(self) -> str:
        if not self.principal.startswith("arn:"):
            return self.principal
        session = self.principal.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/")
        return f"{session}/{self.name or 'session'}"


ADMINISTRATOR = Caller("")  # people, and this server for itself


class AccessDenied(Exception):
    """A call that the policies do not allow; `code` and the message are AWS's."""

    code = "AccessDenied"

    def __init__(self, caller: Caller, action: str, resource: str, why: str) -> None:
        super().__init__(f"User: {caller.arn} is not authorized to perform: {action} on resource: {resource} {why}")


@dataclass
class Record:
    """An allowed call. Each of `grants` lists statements of which one is enough; removing all of one denies the call."""

    call: Call
    grants: list[list[str]]
    names: list[str]
    count: int = 0


_settings: Settings
_sessions: dict[str, Caller] = {}
_records: dict[tuple[Any, ...], Record] = {}
_lock = threading.Lock()


def install(settings: Settings) -> None:
    global _settings
    _settings = settings


def open_session(access_key: str, caller: Caller) -> None:
    """From now on the access key's calls are those of `caller`."""
    with _lock:
        _sessions[access_key] = caller


def close_session(access_key: str) -> None:
    """The access key is nobody's any more."""
    with _lock:
        del _sessions[access_key]


def caller_of(access_key: str) -> Caller:
    """Whose access key it is; an administrator's if no service handed it out."""
    with _lock:
        return _sessions.get(access_key, ADMINISTRATOR)


def caller_in(authorization_header: str) -> Caller:
    """Who signed a request with this Authorization header (AWS4-HMAC-SHA256 Credential=KEY/...)."""
    _, found, rest = authorization_header.partition("Credential=")
    return caller_of(rest.split("/", 1)[0]) if found else ADMINISTRATOR


def authorize(caller: Caller, action: str, resource: str, context: Context | None = None) -> None:
    """Raise AccessDenied unless the policies allow the call; what they allow is recorded."""
    if caller == ADMINISTRATOR:
        return
    is_role = caller.principal.startswith("arn:")
    call = _call(caller, action, resource, context)
    grants = _grants(caller, call, is_role)
    key = (call.principal, action, resource, json.dumps(call.context, sort_keys=True))
    with _lock:
        if key not in _records and len(_records) >= MOST_RECORDS:
            return
        record = _records.setdefault(key, Record(call, grants, []))
        record.count += 1
        if caller.name not in record.names:
            record.names.append(caller.name)


def require_way(
    caller: Caller, service: str, action: str, resource: str, context: Context | None = None, region: str = ""
) -> None:
    """Raise networks.NoWay unless the caller's host reaches the service (botocore's name; of our region, if none is given)."""
    networks.require_way(caller.subnets, service, _call(caller, action, resource, context), region)


def _call(caller: Caller, action: str, resource: str, context: Context | None) -> Call:
    own_account = {"aws:PrincipalAccount": caller.account, "aws:PrincipalArn": caller.principal}
    of_service = {"aws:PrincipalIsAWSService": "true", "aws:SourceAccount": _settings.account}
    is_role = caller.principal.startswith("arn:")
    return Call(
        caller.principal,
        action,
        resource,
        {
            # Requests do not leave this machine, so that there is nothing that TLS would keep.
            "aws:SecureTransport": "true",
            "aws:RequestedRegion": _settings.region,
            "aws:ResourceAccount": _settings.account,
            **(own_account if is_role else of_service),
            **(context or {}),
        },
    )


def allowed(caller: Caller, action: str, resource: str) -> bool:
    """Whether `authorize` would let the call pass; it is recorded if so."""
    try:
        authorize(caller, action, resource)
    except AccessDenied:
        return False
    return True


def records() -> list[dict[str, Any]]:
    """Every allowed call once, in the order in which they came first."""
    with _lock:
        return [
            {
                "principal": record.call.principal,
                "action": record.call.action,
                "resource": record.call.resource,
                "context": dict(record.call.context),
                "allowed_by": record.grants,
                "names": record.names,
                "count": record.count,
            }
            for record in _records.values()
        ]


def _grants(caller: Caller, call: Call, is_role: bool) -> list[list[str]]:
    """The statements that allow the call, of each of the lists one must stay. Raises AccessDenied."""
    role_statements = _role_statements(caller) if is_role else []
    resource_statements = _resource_statements(call.resource)
    crosses = is_role and caller.account != _settings.account
    identity = policies.matching(role_statements, call)
    resource = policies.matching(
        resource_statements, call, resource_policy=True, of_account=caller.account if crosses else None
    )
    for kind, found in (("identity", identity), ("resource", resource)):
        if any(not statement.allows for statement in found):
            raise AccessDenied(caller, call.action, call.resource, f"with an explicit deny in a {kind}-based policy")
    by_identity, by_resource = [one.id for one in identity], [one.id for one in resource]
    if crosses:
        grants = [by_resource, by_identity]
    elif is_role and call.action.split(":")[0] not in RESOURCE_POLICY_DECIDES:
        grants = [[*by_identity, *by_resource]]
    else:
        delegated = [
            one.id
            for one in resource_statements
            if one.allows and policies.names_account(one, _settings.account) and policies.applies(one, call)
        ]
        grants = [delegated, by_identity] if is_role and not by_resource else [by_resource]
    if not all(grants):
        missing = "resource" if not is_role or (len(grants) == 2 and not grants[0]) else "identity"
        raise AccessDenied(
            caller, call.action, call.resource, f"because no {missing}-based policy allows the {call.action} action"
        )
    return grants


def role_policies(arn: str) -> list[tuple[str, str]]:
    """Name and document of each policy of a role of this server; none if there is no such role."""
    role = next((one for one in list(_iam().roles.values()) if one.arn == arn), None)
    if role is None:
        return []
    found = [(f"{role.name}/{name}", _text(document)) for name, document in role.policies.items()]
    return found + [(f"{role.name}/{one.name}", _text(one.document)) for one in role.managed_policies.values()]


def add_resource_policies(service: str, find: Callable[[str], Any]) -> None:
    """From now on `find` gives the policy of a resource of the service by its ARN, or nothing."""
    _RESOURCE_POLICIES[service] = find


def _role_statements(caller: Caller) -> list[Statement]:
    arn = caller.principal
    documents = role_policies(arn) if caller.home is None else neighbours.role_policies(caller.home, arn)
    return [statement for name, document in documents for statement in _parsed(name, document)]


def _resource_statements(arn: str) -> list[Statement]:
    service = arn.split(":")[2] if arn.count(":") >= 5 else ""
    find = _RESOURCE_POLICIES.get(service)
    holder = _policy_holder(arn)
    document = find(holder) if find else None
    return _parsed(holder, _text(document)) if document else []


def _policy_holder(arn: str) -> str:
    """The resource with the policy: an object's bucket, a model package's group."""
    if arn.startswith("arn:aws:s3:"):
        return arn.split("/", 1)[0]
    start, found, name = arn.partition(":model-package/")
    return f"{start}:model-package-group/{name.split('/', 1)[0]}" if found else arn


def _bucket_policy(arn: str) -> Any:
    bucket = s3_backends[_settings.account]["aws"].buckets.get(arn.split(":::", 1)[1])
    return bucket.policy if bucket is not None else None


def _key_policy(arn: str) -> Any:
    key = kms_backends[_settings.account][_settings.region].keys.get(arn.rsplit("/", 1)[-1])
    return key.policy if key is not None else None


def _topic_policy(arn: str) -> Any:
    topic = sns_backends[_settings.account][_settings.region].topics.get(arn)
    return topic.policy if topic is not None else None


def _queue_policy(arn: str) -> Any:
    queue = sqs_backends[_settings.account][_settings.region].queues.get(arn.rsplit(":", 1)[-1])
    return queue.policy if queue is not None else None


def _bus_policy(arn: str) -> Any:
    bus = events_backends[_settings.account][_settings.region].event_buses.get(arn.rsplit("/", 1)[-1])
    return bus.policy if bus is not None else None


def _trust_policy(arn: str) -> Any:
    role = next((one for one in list(_iam().roles.values()) if one.arn == arn), None)
    return role.assume_role_policy_document if role is not None else None


_RESOURCE_POLICIES: dict[str, Callable[[str], Any]] = {
    "events": _bus_policy,
    "s3": _bucket_policy,
    "kms": _key_policy,
    "sns": _topic_policy,
    "sqs": _queue_policy,
    "iam": _trust_policy,
}


def _iam() -> Any:
    return iam_backends[_settings.account]["aws"]


def _text(document: Any) -> str:
    if isinstance(document, bytes):
        return document.decode()
    if isinstance(document, dict):
        return json.dumps(document)
    text = str(document)
    return unquote(text) if text.startswith("%7B") else text


@functools.lru_cache(maxsize=1024)
def _parsed(policy: str, text: str) -> list[Statement]:
    return policies.statements(policy, json.loads(text))
