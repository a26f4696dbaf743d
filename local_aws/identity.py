"""Roles as services assume them: the role must exist and trust the service."""

from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

from local_aws import authorization
from local_aws.authorization import AccessDenied, Caller
from local_aws.settings import Settings

SESSION_SECONDS = 12 * 3600

_settings: Settings


class RoleError(Exception):
    """A service cannot assume the role; the message is AWS's kind of AccessDenied and says what to do."""


def install(settings: Settings) -> None:
    global _settings
    _settings = settings


def check(role_arn: str, service: str) -> None:
    """Raise RoleError if the role is not there, or its trust policy does not allow the service."""
    if not any(role.arn == role_arn for role in list(iam_backends[_settings.account]["aws"].roles.values())):
        raise RoleError(
            f"AccessDenied: {service} cannot assume {role_arn}: there is no such role; create it or pass another"
        )
    try:
        authorization.authorize(Caller(service), "sts:AssumeRole", role_arn)
    except AccessDenied:
        name = role_arn.rsplit("/", 1)[-1]
        raise RoleError(
            f"AccessDenied: {service} cannot assume {role_arn}: the trust policy of {name} does not name this service; "
            f'add {{"Principal": {{"Service": "{service}"}}, "Action": "sts:AssumeRole"}} to it'
        ) from None


def assume(role_arn: str, service: str, name: str = "", subnets: tuple[str, ...] = ()) -> dict[str, str]:
    """Temporary credentials of the role for `service` (such as sagemaker.amazonaws.com), as environment variables.

    `name` says what acts as the role: a job, an endpoint; `subnets` where its host is in a VPC. Raises RoleError as `check` does.
    """
    check(role_arn, service)
    session = sts_backends[_settings.account]["aws"].assume_role(
        _settings.region, name or service.split(".")[0], role_arn, "", SESSION_SECONDS, ""
    )
    authorization.open_session(session.access_key_id, Caller(role_arn, name, subnets))
    return {
        "AWS_ACCESS_KEY_ID": session.access_key_id,
        "AWS_SECRET_ACCESS_KEY": session.secret_access_key,
        "AWS_SESSION_TOKEN": session.session_token,
    }
