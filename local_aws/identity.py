"""Roles as services assume them: the role must exist and trust the service."""

import fnmatch
import json
from typing import Any
from urllib.parse import unquote

from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

from local_aws.settings import Settings

SESSION_SECONDS = 12 * 3600

_settings: Settings


class RoleError(Exception):
    """A service cannot assume the role; the message is AWS's kind of AccessDenied and says what to do."""


def install(settings: Settings) -> None:
    global _settings
    _settings = settings


def assume(role_arn: str, service: str) -> dict[str, str]:
    """Temporary credentials of the role for `service` (such as sagemaker.amazonaws.com), as environment variables.

    Raises RoleError if the role is not there, or its trust policy does not allow the service.
    """
    name = role_arn.rsplit("/", 1)[-1]
    role = next((role for role in _iam().roles.values() if role.arn == role_arn), None)
    if role is None:
        raise RoleError(
            f"AccessDenied: {service} cannot assume {role_arn}: there is no such role; create it or pass another"
        )
    document = role.assume_role_policy_document
    policy = json.loads(unquote(document)) if isinstance(document, str) else document
    if not _trusts(policy, service):
        raise RoleError(
            f"AccessDenied: {service} cannot assume {role_arn}: the trust policy of {name} does not name this service; "
            f'add {{"Principal": {{"Service": "{service}"}}, "Action": "sts:AssumeRole"}} to it'
        )
    session = sts_backends[_settings.account]["aws"].assume_role(
        _settings.region, service.split(".")[0], role_arn, "", SESSION_SECONDS, ""
    )
    return {
        "AWS_ACCESS_KEY_ID": session.access_key_id,
        "AWS_SECRET_ACCESS_KEY": session.secret_access_key,
        "AWS_SESSION_TOKEN": session.session_token,
    }


def _iam() -> Any:
    return iam_backends[_settings.account]["aws"]


def _trusts(policy: dict[str, Any], service: str) -> bool:
    allowed = False
    for statement in _as_list(policy["Statement"]):
        principals = statement.get("Principal", {})
        services = _as_list(principals.get("Service", [])) if isinstance(principals, dict) else _as_list(principals)
        actions = _as_list(statement["Action"])
        if not any(fnmatch.fnmatchcase("sts:AssumeRole", action) for action in actions):
            continue
        if not any(principal in ("*", service) for principal in services):
            continue
        account = statement.get("Condition", {}).get("StringEquals", {}).get("aws:SourceAccount", _settings.account)
        if _settings.account not in _as_list(account):
            continue
        if statement["Effect"] == "Deny":
            return False
        allowed = True
    return allowed


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
