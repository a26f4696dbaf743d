"""A role for one service to do one thing."""

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from constructs import Construct


class ServiceRole(iam.Role):
    """A role that `service` may assume on behalf of this account only (no confused deputy)."""

    def __init__(self, scope: Construct, id_: str, *, service: str, description: str) -> None:
        principal = iam.ServicePrincipal(
            service, conditions={"StringEquals": {"aws:SourceAccount": Stack.of(scope).account}}
        )
        super().__init__(scope, id_, assumed_by=principal, description=description)
