"""Who may do what: every call of a role, and of a service on somebody's resource, is authorized and written down.

Roles are assumed by services (identity.py): their credentials are in jobs and endpoints, and the services' own work in
their name (data in and out, logs, images) names the same role. Credentials of people, which no service handed out, are
those of an administrator here and are not looked at.
"""

import functools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from moto.iam.models import iam_backends
from moto.kms.models import kms_backends
from moto.s3.models import s3_backends
from moto.sns.models import sns_backends
from moto.sqs.models import sqs_backends

from local_aws import networks, policies
from local_aws.policies import Call, Context, Statement
from local_aws.settings import Settings

MOST_RECORDS = 100_000
# Services whose resource policy must agree, whatever an identity policy says.
RESOURCE_POLICY_DECIDES = ("kms", "sts")


@dataclass(frozen=True)
class Caller:
    """Who calls: a role's ARN, or a service. `name` is the job, endpoint or execution that acts as the role.

    `subnets` are those of the host that calls, if it is in a VPC.
    """

    principal: str
    name: str = ""
    subnets: tuple[str, ...] = ()

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


def require_way(caller: Caller, service: str, action: str, resource: str, context: Context | None = None) -> None:
    """Raise networks.NoWay unless the caller's host reaches the service (botocore's name) with this call."""
    networks.require_way(caller.subnets, service, _call(caller, action, resource, context))


def _call(caller: Caller, action: str, resource: str, context: Context | None) -> Call:
    own_account = {"aws:PrincipalAccount": _settings.account, "aws:PrincipalArn": caller.principal}
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
    role_statements = _role_statements(caller.principal) if is_role else []
    resource_statements = _resource_statements(call.resource)
    identity = policies.matching(role_statements, call)
    resource = policies.matching(resource_statements, call, resource_policy=True)
    for kind, found in (("identity", identity), ("resource", resource)):
        if any(not statement.allows for statement in found):
            raise AccessDenied(caller, call.action, call.resource, f"with an explicit deny in a {kind}-based policy")
    by_identity, by_resource = [one.id for one in identity], [one.id for one in resource]
    if is_role and call.action.split(":")[0] not in RESOURCE_POLICY_DECIDES:
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


def _role_statements(arn: str) -> list[Statement]:
    role = next((one for one in list(_iam().roles.values()) if one.arn == arn), None)
    if role is None:
        return []
    found: list[Statement] = []
    for name, document in role.policies.items():
        found += _parsed(f"{role.name}/{name}", _text(document))
    for managed in role.managed_policies.values():
        found += _parsed(f"{role.name}/{managed.name}", _text(managed.document))
    return found


def _resource_statements(arn: str) -> list[Statement]:
    service = arn.split(":")[2] if arn.count(":") >= 5 else ""
    find = _RESOURCE_POLICIES.get(service)
    document = find(arn) if find else None
    return _parsed(arn.split("/", 1)[0] if service == "s3" else arn, _text(document)) if document else []


def _bucket_policy(arn: str) -> Any:
    bucket = s3_backends[_settings.account]["aws"].buckets.get(arn.split(":::", 1)[1].split("/", 1)[0])
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


def _trust_policy(arn: str) -> Any:
    role = next((one for one in list(_iam().roles.values()) if one.arn == arn), None)
    return role.assume_role_policy_document if role is not None else None


_RESOURCE_POLICIES: dict[str, Callable[[str], Any]] = {
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
