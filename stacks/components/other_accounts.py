"""What the pipelines' account and the serving places allow each other: Deploy reads there what was approved, and may reject it.

Both sides must allow it. This account names the one role of each place by the account and the role's ARN, so that neither
has to be deployed first.
"""

from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3

from config.settings import Settings

MODELS = "runs/*"  # in the artifact bucket: models, and the evaluations with the answers they are known by
S3_ANYWHERE = {"StringLike": {"kms:ViaService": "s3.*.amazonaws.com"}}  # a copy to another region is read by S3 there


def open_to_places(stack: Stack, bucket: s3.Bucket, key: kms.Key, settings: Settings) -> None:
    """Policies of the artifact bucket and its key, for the Deploy jobs of the serving places."""
    places = _Places(stack, settings)
    bucket.add_to_resource_policy(
        places.statement("PlacesReadModels", ["s3:GetObject"], [bucket.arn_for_objects(MODELS)])
    )
    bucket.add_to_resource_policy(
        places.statement(
            "PlacesListModels", ["s3:ListBucket"], [bucket.bucket_arn], {"StringLike": {"s3:prefix": MODELS}}
        )
    )
    key.add_to_resource_policy(places.statement("PlacesReadModels", ["kms:Decrypt"], ["*"], S3_ANYWHERE))


def packages_for_places(stack: Stack, settings: Settings) -> dict[str, Any] | None:
    """ModelPackageGroupPolicy: the places see a package and may reject it; approving it is for people here."""
    if settings.serves:
        return None
    places = _Places(stack, settings)
    packages = stack.format_arn(
        service="sagemaker", resource="model-package", resource_name=f"{settings.model_package_group_name}/*"
    )
    rejects = {"StringEquals": {"sagemaker:ModelApprovalStatus": "Rejected"}}
    statements = [
        places.statement("PlacesReadPackages", ["sagemaker:DescribeModelPackage"], [packages]),
        places.statement("PlacesRejectPackages", ["sagemaker:UpdateModelPackage"], [packages], rejects),
    ]
    policy: dict[str, Any] = stack.resolve(iam.PolicyDocument(statements=statements))
    return policy


def read_from_registry(role: iam.Role, settings: Settings) -> None:
    """A place's side, beside the packages: `role` reads models in the account and region that registers them."""
    stack = Stack.of(role)
    account, region = settings.registry.account, settings.registry.region
    # CloudFormation makes the bucket's and the key's names there, so that only their account is known here.
    there = {"StringEquals": {"aws:ResourceAccount": account}}
    below = {"StringLike": {"s3:prefix": MODELS}}
    buckets = f"arn:{stack.partition}:s3:::*"
    keys = stack.format_arn(service="kms", account=account, region=region, resource="key", resource_name="*")
    for sid, action, resource, conditions in (
        ("ReadRegistered", "s3:GetObject", f"{buckets}/{MODELS}", there),
        ("ListRegistered", "s3:ListBucket", buckets, {**there, **below}),
        ("DecryptRegistered", "kms:Decrypt", keys, S3_ANYWHERE),
    ):
        role.add_to_policy(iam.PolicyStatement(sid=sid, actions=[action], resources=[resource], conditions=conditions))


class _Places:
    """The Deploy roles of all serving places, as principals of resource policies."""

    def __init__(self, stack: Stack, settings: Settings) -> None:
        accounts = sorted({place.account for place in settings.serving.values()})
        self._accounts = [iam.AccountPrincipal(account) for account in accounts]
        self._roles = [
            f"arn:{stack.partition}:iam::{place.account}:role/{settings.deploy_role_name(name)}"
            for name, place in settings.serving.items()
        ]

    def statement(
        self, sid: str, actions: list[str], resources: list[str], conditions: dict[str, Any] | None = None
    ) -> iam.PolicyStatement:
        return iam.PolicyStatement(
            sid=sid,
            principals=self._accounts,
            actions=actions,
            resources=resources,
            conditions={"ArnEquals": {"aws:PrincipalArn": self._roles}, **(conditions or {})},
        )
