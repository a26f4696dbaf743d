"""A role for one service to do one thing."""

from collections.abc import Mapping

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from constructs import Construct


class ServiceRole(iam.Role):
    """A role that `service` may assume on behalf of this account only (no confused deputy), under `conditions` if any."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        service: str,
        description: str,
        conditions: Mapping[str, object] | None = None,
        role_name: str | None = None,
    ) -> None:
        own_account = {"StringEquals": {"aws:SourceAccount": Stack.of(scope).account}}
        principal = iam.ServicePrincipal(service, conditions={**own_account, **(conditions or {})})
        super().__init__(scope, id_, assumed_by=principal, description=description, role_name=role_name)
