"""What roles may do with data: statements that name what they allow, one for each purpose.

CDK's own grants allow s3:GetObject*, s3:List* and more; these allow what the jobs were seen to need, and no more.
"""

from collections.abc import Mapping, Sequence

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3

from stacks.network import Network


def read_objects(role: iam.Role, sid: str, bucket: s3.IBucket, *patterns: str) -> None:
    """Read the objects whose keys match; `sid` names the purpose."""
    _allow(role, f"Read{sid}", ["s3:GetObject"], [bucket.arn_for_objects(pattern) for pattern in patterns])


def write_objects(role: iam.Role, sid: str, bucket: s3.IBucket, *patterns: str) -> None:
    """Write objects under keys that match. Nothing is deleted: the bucket keeps the versions before."""
    _allow(role, f"Write{sid}", ["s3:PutObject"], [bucket.arn_for_objects(pattern) for pattern in patterns])


def delete_objects(role: iam.Role, sid: str, bucket: s3.IBucket, *patterns: str) -> None:
    """Delete objects whose keys match; their versions stay."""
    _allow(role, f"Delete{sid}", ["s3:DeleteObject"], [bucket.arn_for_objects(pattern) for pattern in patterns])


def list_objects(role: iam.Role, sid: str, bucket: s3.IBucket, *prefixes: str) -> None:
    """List the keys below prefixes; without any of them the whole bucket.

    Who asks for one object and may not list the whole bucket is told 403, and never 404: a step that must tell a missing
    object from a forbidden one lists it all.
    """
    conditions = {"StringLike": {"s3:prefix": list(prefixes)}} if prefixes else None
    _allow(role, f"List{sid}", ["s3:ListBucket"], [bucket.bucket_arn], conditions)


def use_key(role: iam.Role, key: kms.IKey, *, writes: bool = False, volumes: bool = False) -> None:
    """Read what the key encrypts, write under it, and have SageMaker attach volumes that it encrypts."""
    _allow(role, "ReadWithKey", ["kms:Decrypt"], [key.key_arn])
    if writes:
        _allow(role, "WriteWithKey", ["kms:Encrypt", "kms:GenerateDataKey"], [key.key_arn])
    if volumes:
        for_aws = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        _allow(role, "AttachVolumes", ["kms:CreateGrant"], [key.key_arn], for_aws)


def use_network(role: iam.Role, network: Network) -> None:
    """What SageMaker does with the role of a job or a model in a VPC: interfaces in its subnets, and their removal.

    The documented permissions, each on what it knows of resources.
    """
    stack = Stack.of(role)

    def arns(resource: str, names: Sequence[str]) -> list[str]:
        return [stack.format_arn(service="ec2", resource=resource, resource_name=name) for name in names]

    interfaces, (vpc,) = arns("network-interface", ["*"]), arns("vpc", [network.vpc_id])
    places = [*arns("subnet", network.subnet_ids), *arns("security-group", network.security_group_ids)]
    _allow(role, "AddInterfaces", ["ec2:CreateNetworkInterface"], [*interfaces, *places])
    changes = ["CreateNetworkInterfacePermission", "DeleteNetworkInterface", "DeleteNetworkInterfacePermission"]
    of_the_vpc = {"ArnEquals": {"ec2:Vpc": vpc}}
    _allow(role, "LendAndRemoveInterfaces", [f"ec2:{action}" for action in changes], interfaces, of_the_vpc)
    seen = ["DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs"]
    _allow(role, "SeeNetwork", [f"ec2:Describe{things}" for things in seen], ["*"])  # they know no resources


def pass_role(roles: Sequence[iam.IRole]) -> iam.PolicyStatement:
    """Hand these roles to SageMaker, and to no other service."""
    return iam.PolicyStatement(
        sid="PassRoles",
        actions=["iam:PassRole"],
        resources=[role.role_arn for role in roles],
        conditions={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
    )


def _allow(
    role: iam.Role,
    sid: str,
    actions: Sequence[str],
    resources: Sequence[str],
    conditions: Mapping[str, object] | None = None,
) -> None:
    role.add_to_policy(
        iam.PolicyStatement(sid=sid, actions=list(actions), resources=list(resources), conditions=conditions)
    )
