"""CloudFormation's types of networks over EC2's API: VPCs, subnets, routes, security groups, endpoints and logs of traffic."""

import json
from typing import Any

from botocore.exceptions import ClientError

from local_aws.events import client

Properties = dict[str, Any]
Made = tuple[str, dict[str, str]]  # physical id, attributes

# CloudFormation's properties of a rule -> EC2's.
_RANGES = {"CidrIp": "IpRanges", "CidrIpv6": "Ipv6Ranges"}
_GROUPS = ("SourceSecurityGroupId", "DestinationSecurityGroupId")
RULE_PROPERTIES = "GroupId IpProtocol FromPort ToPort Description CidrIp CidrIpv6"


def put_vpc(name: str, properties: Properties, exists: bool) -> Made:
    ec2 = client("ec2")
    if not exists:
        name = ec2.create_vpc(CidrBlock=properties["CidrBlock"])["Vpc"]["VpcId"]
    for key in ("EnableDnsSupport", "EnableDnsHostnames"):
        default = key == "EnableDnsSupport"
        ec2.modify_vpc_attribute(VpcId=name, **{key: {"Value": _boolean(properties.get(key, default))}})
    _tag(name, properties)
    return name, {"VpcId": name, "CidrBlock": properties["CidrBlock"]}


def delete_vpc(id_: str) -> None:
    """Raises ValueError while something lies in it that somebody else made, as EC2 does."""
    ec2 = client("ec2")
    for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [id_]}])["Subnets"]:
        raise ValueError(f"The vpc '{id_}' has dependencies and cannot be deleted: {subnet['SubnetId']}")
    ec2.delete_vpc(VpcId=id_)


def put_subnet(name: str, properties: Properties, exists: bool) -> Made:
    ec2 = client("ec2")
    if not exists:
        asked = {key: properties[key] for key in ("VpcId", "CidrBlock", "AvailabilityZone") if key in properties}
        name = ec2.create_subnet(**asked)["Subnet"]["SubnetId"]
    public = _boolean(properties.get("MapPublicIpOnLaunch", False))
    ec2.modify_subnet_attribute(SubnetId=name, MapPublicIpOnLaunch={"Value": public})
    _tag(name, properties)
    return name, {"SubnetId": name, "VpcId": properties["VpcId"]}


def delete_subnet(id_: str) -> None:
    client("ec2").delete_subnet(SubnetId=id_)


def put_route_table(name: str, properties: Properties, exists: bool) -> Made:
    if not exists:
        name = client("ec2").create_route_table(VpcId=properties["VpcId"])["RouteTable"]["RouteTableId"]
    _tag(name, properties)
    return name, {"RouteTableId": name}


def delete_route_table(id_: str) -> None:
    client("ec2").delete_route_table(RouteTableId=id_)


def put_association(properties: Properties) -> Made:
    answer = client("ec2").associate_route_table(
        SubnetId=properties["SubnetId"], RouteTableId=properties["RouteTableId"]
    )
    return answer["AssociationId"], {"Id": answer["AssociationId"]}


def delete_association(id_: str) -> None:
    client("ec2").disassociate_route_table(AssociationId=id_)


def put_security_group(name: str, properties: Properties, exists: bool) -> Made:
    """The group, with the rules of its own properties; those of resources of their own come and go beside them."""
    ec2 = client("ec2")
    if not exists:
        name = ec2.create_security_group(
            GroupName=properties.get("GroupName", name),
            Description=properties["GroupDescription"],
            VpcId=properties["VpcId"],
        )["GroupId"]
        if properties.get("SecurityGroupEgress"):  # EC2's own rule lets everything out
            everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
            ec2.revoke_security_group_egress(GroupId=name, IpPermissions=[everything])
        for direction in ("Ingress", "Egress"):
            for rule in properties.get(f"SecurityGroup{direction}", []):
                put_rule(direction, {**rule, "GroupId": name})
    _tag(name, properties)
    return name, {"GroupId": name, "VpcId": properties["VpcId"]}


def delete_security_group(id_: str) -> None:
    client("ec2").delete_security_group(GroupId=id_)


def put_rule(direction: str, properties: Properties) -> Made:
    ec2 = client("ec2")
    allow = ec2.authorize_security_group_ingress if direction == "Ingress" else ec2.authorize_security_group_egress
    answer = allow(GroupId=properties["GroupId"], IpPermissions=[_permission(properties)])
    rules = answer.get("SecurityGroupRules") or [{}]
    return rules[0].get("SecurityGroupRuleId", f"{properties['GroupId']}-{direction}"), {}


def delete_rule(direction: str, properties: Properties) -> None:
    ec2 = client("ec2")
    revoke = ec2.revoke_security_group_ingress if direction == "Ingress" else ec2.revoke_security_group_egress
    revoke(GroupId=properties["GroupId"], IpPermissions=[_permission(properties)])


def _permission(rule: Properties) -> Properties:
    """CloudFormation's form of a rule as EC2's."""
    told = {"Description": rule["Description"]} if "Description" in rule else {}
    permission: Properties = {"IpProtocol": str(rule["IpProtocol"])}
    permission |= {key: int(rule[key]) for key in ("FromPort", "ToPort") if key in rule}
    permission |= {api: [{key: rule[key], **told}] for key, api in _RANGES.items() if key in rule}
    groups = [{"GroupId": rule[key], **told} for key in _GROUPS if key in rule]
    if groups:
        permission["UserIdGroupPairs"] = groups
    if unknown := rule.keys() - {*RULE_PROPERTIES.split(), *_GROUPS}:
        raise ValueError(f"a security group's rule: {', '.join(sorted(unknown))} is not implemented")
    return permission


def put_endpoint(name: str, properties: Properties, exists: bool) -> Made:
    ec2 = client("ec2")
    request = {key: properties[key] for key in ("RouteTableIds", "SubnetIds", "SecurityGroupIds") if key in properties}
    policy = {"PolicyDocument": json.dumps(properties["PolicyDocument"])} if "PolicyDocument" in properties else {}
    if exists:  # where it is cannot be changed but by a new one
        ec2.modify_vpc_endpoint(VpcEndpointId=name, **policy, **({} if policy else {"ResetPolicy": True}))
    else:
        name = ec2.create_vpc_endpoint(
            VpcId=properties["VpcId"],
            ServiceName=properties["ServiceName"],
            VpcEndpointType=properties.get("VpcEndpointType", "Gateway"),
            PrivateDnsEnabled=_boolean(properties.get("PrivateDnsEnabled", False)),
            **request,
            **policy,
        )["VpcEndpoint"]["VpcEndpointId"]
    _tag(name, properties)
    return name, {"Id": name}


def delete_endpoint(id_: str) -> None:
    client("ec2").delete_vpc_endpoints(VpcEndpointIds=[id_])


def put_flow_log(name: str, properties: Properties, exists: bool) -> Made:
    ec2 = client("ec2")
    if not exists:
        request = {key: value for key, value in properties.items() if key not in ("ResourceId", "Tags")}
        answer = ec2.create_flow_logs(ResourceIds=[properties["ResourceId"]], **request)
        if answer["Unsuccessful"]:
            raise ValueError(str(answer["Unsuccessful"][0]["Error"]["Message"]))
        (name,) = answer["FlowLogIds"]
    _tag(name, properties)
    return name, {"Id": name}


def delete_flow_log(id_: str) -> None:
    client("ec2").delete_flow_logs(FlowLogIds=[id_])


def put_log_group(name: str, properties: Properties, exists: bool) -> Made:
    logs, tags = client("logs"), {tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])}
    key = {"kmsKeyId": properties["KmsKeyId"]} if "KmsKeyId" in properties else {}
    if not exists:
        logs.create_log_group(logGroupName=name, tags=tags, **key)
    elif key:
        logs.associate_kms_key(logGroupName=name, **key)
    if "RetentionInDays" in properties:
        logs.put_retention_policy(logGroupName=name, retentionInDays=int(properties["RetentionInDays"]))
    arn = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"][0]["arn"]
    return name, {"Arn": arn}


def delete_log_group(name: str) -> None:
    logs = client("logs")
    try:
        logs.delete_log_group(logGroupName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise


def _tag(id_: str, properties: Properties) -> None:
    if tags := properties.get("Tags"):
        client("ec2").create_tags(Resources=[id_], Tags=tags)


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() == "true"
