"""What SageMaker does with a role around the program of a job or a model: the image, the network, the logs, the metrics.

Nothing of it needs the role on this machine, so that each is asked for as AWS asks, and a role that may not is told.
"""

import re
from collections.abc import Iterable
from typing import Any

from local_aws import authorization, networks
from local_aws.authorization import AccessDenied, Caller
from local_aws.request_actions import Place, Wanted

ECR_IMAGE = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+)")
ECR_READS = ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
NETWORK_ACTIONS = (
    "CreateNetworkInterface",
    "CreateNetworkInterfacePermission",
    "DeleteNetworkInterface",
    "DeleteNetworkInterfacePermission",
)
NETWORK_READS = (
    "DescribeDhcpOptions",
    "DescribeNetworkInterfaces",
    "DescribeSecurityGroups",
    "DescribeSubnets",
    "DescribeVpcs",
)


# "You can't request a VolumeKmsKeyId when using an instance type with local storage" (API reference, ResourceConfig).
LOCAL_STORAGE = re.compile(r"ml\.(g4dn|g5|g6|g6e|gr6|p3dn|p4de?|p5(e|en)?|p6\S*|trn\d\w*|[cmrx]\d\w*d\w*)\.")


def refused_volume_key(where: str, instance_type: str, key: str | None) -> list[str]:
    """The problem of a volume key for instances whose disks are encrypted by their hardware, if there is one."""
    if not key or not LOCAL_STORAGE.match(instance_type):
        return []
    return [
        f"{where} cannot be given for {instance_type}, which has local storage that its hardware encrypts; leave it out"
    ]


class RoleUseDenied(Exception):
    """The role lacks what its job needs; the message starts with "ClientError: AccessDenied: "."""


def require(caller: Caller, uses: Iterable[Wanted]) -> None:
    """Raise RoleUseDenied for the first use that the policies do not allow."""
    for one in uses:
        try:
            authorization.authorize(caller, one.action, one.resource, one.context)
        except AccessDenied as error:
            raise RoleUseDenied(f"ClientError: AccessDenied: {error}") from None


def of_image(image: str) -> list[Wanted]:
    """Pulling an image from ECR; other images are nobody's."""
    match = ECR_IMAGE.match(image)
    if match is None:
        return []
    repository = f"arn:aws:ecr:{match[2]}:{match[1]}:repository/{match[3]}"
    return [Wanted("ecr:GetAuthorizationToken", "*"), *(Wanted(f"ecr:{action}", repository) for action in ECR_READS)]


def of_logs(place: Place, group: str, streams: Iterable[str]) -> list[Wanted]:
    """Writing what a program prints, and the metrics of its instance, which are named as its log group."""
    arn = place.arn("logs", f"log-group:{group}")
    uses = [Wanted(f"logs:{action}", arn) for action in ("CreateLogGroup", "DescribeLogStreams", "CreateLogStream")]
    uses += [Wanted("logs:PutLogEvents", f"{arn}:log-stream:{stream}") for stream in streams]
    namespace = re.sub(r"/Endpoints/.*", "/Endpoints", group)
    return [*uses, Wanted("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": namespace})]


def of_keys(volume_key: str | None, output_key: str | None) -> list[Wanted]:
    """Attaching an encrypted volume, and writing output under a key that the request names."""
    uses = []
    if volume_key:
        uses.append(Wanted("kms:CreateGrant", volume_key, {"kms:GrantIsForAWSResource": "true"}))
    if output_key:
        uses += [Wanted(f"kms:{action}", output_key) for action in ("Encrypt", "GenerateDataKey")]
    return uses


def of_network(place: Place, vpc: dict[str, Any] | None) -> list[Wanted]:
    """Putting network interfaces into a VPC, and taking them out again."""
    if not vpc:
        return []
    of_the_vpc = {"ec2:Vpc": place.arn("ec2", f"vpc/{networks.vpc_of(vpc['Subnets'][0])}")}
    resources = [
        place.arn("ec2", "network-interface/*"),
        *(place.arn("ec2", f"subnet/{one}") for one in vpc["Subnets"]),
        *(place.arn("ec2", f"security-group/{one}") for one in vpc["SecurityGroupIds"]),
    ]
    interface = resources[:1]
    return [
        *(Wanted("ec2:CreateNetworkInterface", one, of_the_vpc) for one in resources),
        *(Wanted(f"ec2:{action}", one, of_the_vpc) for action in NETWORK_ACTIONS[1:] for one in interface),
        *(Wanted(f"ec2:{action}", "*") for action in NETWORK_READS),
    ]
