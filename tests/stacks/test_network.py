"""The network: what a created VPC has and has not, and what roles may do in one, created or the user's."""

from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Environment, Stack
from aws_cdk import aws_kms as kms
from aws_cdk.assertions import Template

from config.settings import NetworkSettings, Settings, load
from stacks.network import NetworkStack
from tests.pipeline.test_jumpstart import settings_of
from tests.stacks.policies import statements_of

MINE = {
    "vpc": "vpc-0123456789abcdef0",
    "subnet_ids": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"],
    "security_group_ids": ["sg-0123456789abcdef0"],
}
PLACE = "arn:{'Ref': 'AWS::Partition'}:ec2:us-east-1:123456789012"


def with_network(settings: Settings, network: dict[str, Any]) -> Settings:
    return settings.model_copy(update={"network": NetworkSettings.model_validate(network)})


def created(settings: Settings) -> Template:
    app, environment = App(), Environment(account="123456789012", region="us-east-1")
    key = kms.Key(Stack(app, "data", env=environment), "Key")
    network = with_network(settings, {"vpc": "create"})
    return Template.from_stack(NetworkStack(app, "network", settings=network, key=key, env=environment))


@pytest.fixture(scope="module")
def network() -> Template:
    return created(load("prod"))


def test_nothing_leads_to_the_internet_and_every_service_that_is_asked_has_an_endpoint(network: Template) -> None:
    types = {resource["Type"] for resource in network.to_json()["Resources"].values()}
    assert not types & {
        "AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route", "AWS::EC2::VPCGatewayAttachment",
        "AWS::EC2::VPCPeeringConnection", "AWS::EC2::TransitGatewayAttachment",
    }  # fmt: skip
    endpoints = [one["Properties"] for one in network.find_resources("AWS::EC2::VPCEndpoint").values()]
    named = {one["ServiceName"].removeprefix("com.amazonaws.us-east-1.") for one in endpoints}
    assert named == load("prod").asked_services.keys()
    assert all(one.get("PrivateDnsEnabled") or one["VpcEndpointType"] == "Gateway" for one in endpoints)
    subnets = network.find_resources("AWS::EC2::Subnet").values()
    assert [one["Properties"]["MapPublicIpOnLaunch"] for one in subnets] == [False, False]


def test_endpoints_carry_our_principals_only_and_s3s_to_our_buckets_and_jumpstarts_only(
    network: Template, tmp_path: Path
) -> None:
    ours = {"aws:PrincipalAccount": "123456789012"}
    for one in network.find_resources("AWS::EC2::VPCEndpoint").values():
        (statement,) = one["Properties"]["PolicyDocument"]["Statement"]
        of_s3 = {"aws:ResourceAccount": "123456789012"} if one["Properties"]["VpcEndpointType"] == "Gateway" else {}
        assert statement["Condition"] == {"StringEquals": ours | of_s3}
    endpoints = created(settings_of(tmp_path)).find_resources("AWS::EC2::VPCEndpoint").values()
    (s3,) = [one["Properties"] for one in endpoints if one["Properties"]["VpcEndpointType"] == "Gateway"]
    _, of_jumpstart = s3["PolicyDocument"]["Statement"]
    assert of_jumpstart["Action"] == ["s3:GetObject", "s3:ListBucket"]
    assert all("jumpstart-cache-prod-us-east-1" in str(one) for one in of_jumpstart["Resource"])


def test_roles_of_jobs_may_put_interfaces_into_the_users_subnets_and_take_them_out_again(tmp_path: Path) -> None:
    statements = statements_of(tmp_path, with_network(load("prod"), MINE))
    by_name = {one["Sid"]: one for one in statements if "ec2:" in str(one["Action"])}
    assert len([one for one in statements if one["Sid"] == "AddInterfaces"]) == 6  # five kinds of jobs, and what serves

    def arns(value: Any) -> list[str]:
        listed = value if isinstance(value, list) else [value]
        return [one if isinstance(one, str) else "".join(str(part) for part in one["Fn::Join"][1]) for one in listed]

    assert by_name["AddInterfaces"]["Action"] == "ec2:CreateNetworkInterface"
    assert arns(by_name["AddInterfaces"]["Resource"]) == [
        f"{PLACE}:network-interface/*",
        *(f"{PLACE}:subnet/{one}" for one in MINE["subnet_ids"]),
        f"{PLACE}:security-group/sg-0123456789abcdef0",
    ]
    removal = by_name["LendAndRemoveInterfaces"]
    assert arns(removal["Resource"]) == [f"{PLACE}:network-interface/*"]
    assert arns(removal["Condition"]["ArnEquals"]["ec2:Vpc"]) == [f"{PLACE}:vpc/{MINE['vpc']}"]
    assert all(action.startswith("ec2:Describe") for action in by_name["SeeNetwork"]["Action"])
    (start,) = [one for one in statements if one["Sid"] == "StartJobs"]
    assert start["Condition"] == {
        "ForAllValues:StringEquals": {
            "sagemaker:VpcSubnets": MINE["subnet_ids"],
            "sagemaker:VpcSecurityGroupIds": MINE["security_group_ids"],
        },
        "Null": {"sagemaker:VpcSubnets": "false", "sagemaker:VpcSecurityGroupIds": "false"},
    }


def test_jobs_pull_the_images_of_their_own_kind_by_digest_too_and_no_others(tmp_path: Path) -> None:
    values = load("prod").model_dump()
    values["images"]["training_image_uri"] = (
        f"210987654321.dkr.ecr.eu-west-1.amazonaws.com/team/train@sha256:{'a' * 64}"
    )
    layers = [one for one in statements_of(tmp_path, Settings.model_validate(values)) if one["Sid"] == "ImageLayers"]
    found = ["".join(str(part) for part in one["Resource"]["Fn::Join"][1]).split(":ecr:")[1] for one in layers]
    assert found.count("eu-west-1:210987654321:repository/team/train") == 5  # all that work; the sixth serves
    assert [one for one in found if "team/train" not in one] == ["us-east-1:763104351884:repository/djl-inference"]


def test_without_a_network_no_role_may_touch_one(tmp_path: Path) -> None:
    assert "ec2:" not in str(statements_of(tmp_path, load("prod")))
