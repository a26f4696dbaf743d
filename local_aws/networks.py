"""Networks of jobs and models: what a VpcConfig may name, and what is reached from there.

A host in a VPC reaches a service through the internet, if its subnet has a route there, or through an endpoint of the VPC
whose policy lets the call pass. On AWS a request without a way hangs until the client gives up; here it is refused at once.
"""

import functools
import json
from typing import Any

from moto.ec2.exceptions import InvalidSubnetIdError
from moto.ec2.models import ec2_backends

from local_aws import policies
from local_aws.policies import Call, Statement
from local_aws.settings import Settings

# Services whose endpoints are named otherwise than botocore names the service.
ENDPOINT_NAMES = {"sagemaker": "sagemaker.api", "sagemaker-runtime": "sagemaker.runtime", "cloudwatch": "monitoring"}
ANYWHERE = "0.0.0.0/0"

_settings: Settings


class NoWay(Exception):
    """A host in a VPC asks what it cannot reach from there; the message says what is missing."""

    code = "NoWayOutOfTheVpc"


def install(settings: Settings) -> None:
    global _settings
    _settings = settings


def subnets_of(vpc_config: dict[str, Any] | None) -> tuple[str, ...]:
    """Where a host with this VpcConfig has its interfaces."""
    return tuple(vpc_config["Subnets"]) if vpc_config else ()


def vpc_of(subnet: str) -> str:
    """Id of the VPC of a subnet that exists."""
    return str(_ec2().get_subnet(subnet).vpc_id)


def problems(where: str, vpc_config: dict[str, Any] | None) -> list[str]:
    """What SageMaker would refuse in a VpcConfig: subnets and groups must be there, all in one VPC."""
    if not vpc_config:
        return []
    found, vpcs = [], {}
    for subnet in vpc_config["Subnets"]:
        try:
            vpcs[subnet] = vpc_of(subnet)
        except InvalidSubnetIdError:
            found.append(f"{where}.Subnets: the subnet '{subnet}' does not exist")
    for group in vpc_config["SecurityGroupIds"]:
        known = _ec2().get_security_group_from_id(group)
        if known is None:
            found.append(f"{where}.SecurityGroupIds: the security group '{group}' does not exist")
        else:
            vpcs[group] = str(known.vpc_id)
    if len(set(vpcs.values())) > 1:
        told = ", ".join(f"{name} is in {vpc}" for name, vpc in vpcs.items())
        found.append(f"{where}: subnets and security groups must be of one VPC; {told}")
    return found


def require_way(subnets: tuple[str, ...], service: str, call: Call, region: str = "") -> None:
    """Raise NoWay unless a host in these subnets (none: outside of any VPC) reaches the service (botocore's name).

    `region` is the service's, if it is another one than ours: an endpoint of a VPC leads to its own region only.
    """
    if not subnets or any(_leads_to_the_internet(subnet) for subnet in subnets):
        return
    vpc, name = vpc_of(subnets[0]), ENDPOINT_NAMES.get(service, service)
    if region not in ("", _settings.region):
        raise NoWay(
            f"nothing leads from {', '.join(subnets)} to {name} of {region}: endpoints of {vpc} lead to services of "
            f"{_settings.region} only, and it has no route to the internet"
        )
    endpoints = [one for one in list(_ec2().vpc_end_points.values()) if _serves(one, vpc, name, subnets)]
    if not endpoints:
        raise NoWay(
            f"nothing leads from {', '.join(subnets)} to {name}: {vpc} has no endpoint for it there, and no route to the "
            f"internet; add an endpoint com.amazonaws.{_settings.region}.{name}"
        )
    for endpoint in endpoints:
        statements = _parsed(endpoint.id, str(endpoint.policy_document))
        matching = policies.matching(statements, call, resource_policy=True)
        if not any(one.allows for one in matching) or any(not one.allows for one in matching):
            raise NoWay(
                f"{call.principal} is not authorized to perform: {call.action} on resource: {call.resource} because no VPC "
                f"endpoint policy allows the {call.action} action (of {endpoint.id}, {name})"
            )


def _serves(endpoint: Any, vpc: str, name: str, subnets: tuple[str, ...]) -> bool:
    """Whether an endpoint leads from the subnets to the service, by the service's own name."""
    if endpoint.vpc_id != vpc or endpoint.service_name.split(f".{_settings.region}.", 1)[-1] != name:
        return False
    if endpoint.vpc_endpoint_type == "Interface":
        return bool(endpoint.private_dns_enabled)
    tables = {_route_table(subnet).id for subnet in subnets}
    return tables <= set(endpoint.route_table_ids)


def _leads_to_the_internet(subnet: str) -> bool:
    return any(route.destination_cidr_block == ANYWHERE for route in _route_table(subnet).routes)


def _route_table(subnet: str) -> Any:
    """The route table of a subnet: its own, or else the VPC's main one."""
    ec2 = _ec2()
    tables = [one for one in list(ec2.route_tables.values()) if one.vpc_id == ec2.get_subnet(subnet).vpc_id]
    own = [one for one in tables if any(each.get("SubnetId") == subnet for each in one.associations)]
    return (own or [one for one in tables if one.main_association_id])[0]


@functools.lru_cache(maxsize=64)
def _parsed(endpoint: str, text: str) -> list[Statement]:
    return policies.statements(endpoint, json.loads(text))


def _ec2() -> Any:
    return ec2_backends[_settings.account][_settings.region]
