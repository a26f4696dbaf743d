"""Networks: a VPC from a stack, what a VpcConfig may name, and what a job in a VPC reaches."""

import json
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.local_aws.sagemaker_server import ACCOUNT, BUCKET, ROLE, Server, processing, running_server, training

TELL_KEYS = 'printf "%s %s %s" $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_SESSION_TOKEN > /opt/ml/output/message'
RESOURCES: dict[str, Any] = {
    "Vpc": {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.1.0.0/24", "EnableDnsHostnames": True}},
    "Routes": {"Type": "AWS::EC2::RouteTable", "Properties": {"VpcId": {"Ref": "Vpc"}}},
    "Subnet": {
        "Type": "AWS::EC2::Subnet",
        "Properties": {
            "VpcId": {"Ref": "Vpc"},
            "CidrBlock": "10.1.0.0/25",
            "AvailabilityZone": {"Fn::Select": [0, {"Fn::GetAZs": ""}]},
        },
    },
    "Association": {
        "Type": "AWS::EC2::SubnetRouteTableAssociation",
        "Properties": {"SubnetId": {"Ref": "Subnet"}, "RouteTableId": {"Ref": "Routes"}},
    },
    "Group": {
        "Type": "AWS::EC2::SecurityGroup",
        "Properties": {
            "GroupDescription": "jobs",
            "VpcId": {"Ref": "Vpc"},
            "SecurityGroupEgress": [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIp": "0.0.0.0/0"}],
        },
    },
    "Among": {
        "Type": "AWS::EC2::SecurityGroupIngress",
        "Properties": {"GroupId": {"Ref": "Group"}, "IpProtocol": "-1", "SourceSecurityGroupId": {"Ref": "Group"}},
    },
    "S3": {
        "Type": "AWS::EC2::VPCEndpoint",
        "Properties": {
            "VpcId": {"Ref": "Vpc"},
            "ServiceName": "com.amazonaws.us-east-1.s3",
            "RouteTableIds": [{"Ref": "Routes"}],
            "PolicyDocument": {
                "Statement": [
                    {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": f"arn:aws:s3:::{BUCKET}*"}
                ]
            },
        },
    },
    "Sagemaker": {
        "Type": "AWS::EC2::VPCEndpoint",
        "Properties": {
            "VpcId": {"Ref": "Vpc"},
            "ServiceName": "com.amazonaws.us-east-1.sagemaker.api",
            "VpcEndpointType": "Interface",
            "SubnetIds": [{"Ref": "Subnet"}],
            "SecurityGroupIds": [{"Ref": "Group"}],
            "PrivateDnsEnabled": True,
        },
    },
}
OUTPUTS = {name: {"Value": {"Ref": name}} for name in ("Vpc", "Routes", "Subnet", "Group", "S3")}


@pytest.fixture(scope="module")
def server() -> Server:
    return running_server()


@pytest.fixture(scope="module")
def made(server: Server) -> dict[str, str]:
    """Physical ids of the network, which a stack made."""
    cloudformation = server.client("cloudformation")
    template = json.dumps({"Resources": RESOURCES, "Outputs": OUTPUTS})
    cloudformation.create_stack(StackName="network", TemplateBody=template)
    (stack,) = cloudformation.describe_stacks(StackName="network")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack
    return {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}


def inside(made: dict[str, str]) -> dict[str, Any]:
    return {"Subnets": [made["Subnet"]], "SecurityGroupIds": [made["Group"]]}


@pytest.fixture(scope="module")
def session(server: Server, made: dict[str, str]) -> boto3.Session:
    """The credentials of a job in the VPC."""
    request = processing(TELL_KEYS, NetworkConfig={"VpcConfig": inside(made)})
    server.sagemaker.create_processing_job(ProcessingJobName="in-a-vpc", **request)
    key, secret, token = server.processing_job("in-a-vpc")["ExitMessage"].split()
    return boto3.Session(key, secret, token, region_name="us-east-1")


def code_of(server: Server, session: boto3.Session, service: str, call: str, **arguments: Any) -> tuple[str, str]:
    client: Any = session.client(service, endpoint_url=server.process.url)  # type: ignore[call-overload]
    try:
        getattr(client, call)(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["Error"]["Message"]
    return "allowed", ""


def test_a_stack_makes_a_network_with_the_rules_that_it_names_and_no_others(
    server: Server, made: dict[str, str]
) -> None:
    ec2 = server.client("ec2")
    (group,) = ec2.describe_security_groups(GroupIds=[made["Group"]])["SecurityGroups"]
    (out,) = group["IpPermissionsEgress"]
    assert (out["FromPort"], out["IpRanges"]) == (443, [{"CidrIp": "0.0.0.0/0"}])
    (among,) = group["IpPermissions"]
    assert among["UserIdGroupPairs"][0]["GroupId"] == made["Group"]
    assert ec2.describe_vpc_attribute(VpcId=made["Vpc"], Attribute="enableDnsHostnames")["EnableDnsHostnames"]["Value"]


def test_a_property_of_a_network_that_is_not_implemented_is_named(server: Server) -> None:
    vpc = {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.2.0.0/24", "Ipv4IpamPoolId": "p"}}
    cloudformation = server.client("cloudformation")
    cloudformation.create_stack(StackName="ipam", TemplateBody=json.dumps({"Resources": {"Vpc": vpc}}))
    (stack,) = cloudformation.describe_stacks(StackName="ipam")["Stacks"]
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE" and "Ipv4IpamPoolId" in stack["StackStatusReason"]


def test_a_job_in_a_vpc_reaches_what_it_has_endpoints_for_and_nothing_else(
    server: Server, session: boto3.Session
) -> None:
    assert code_of(server, session, "s3", "list_objects_v2", Bucket=BUCKET)[0] == "allowed"
    assert code_of(server, session, "sagemaker", "list_models")[0] == "allowed"
    for service, call, arguments, name in (
        ("cloudwatch", "put_metric_data", {"Namespace": "n", "MetricData": [{"MetricName": "m", "Value": 1}]}, "monitoring"),
        ("sagemaker-runtime", "invoke_endpoint", {"EndpointName": "e", "Body": b""}, "sagemaker.runtime"),
    ):  # fmt: skip
        code, message = code_of(server, session, service, call, **arguments)
        assert code == "NoWayOutOfTheVpc" and f"add an endpoint com.amazonaws.us-east-1.{name}" in message


def test_the_policy_of_an_endpoint_keeps_data_from_other_buckets_for_programs_and_for_outputs(
    server: Server, session: boto3.Session, made: dict[str, str]
) -> None:
    server.s3.create_bucket(Bucket="elsewhere")
    code, message = code_of(server, session, "s3", "put_object", Bucket="elsewhere", Key="k", Body=b"")
    assert code == "NoWayOutOfTheVpc" and "no VPC endpoint policy allows the s3:PutObject action" in message
    request = processing("true", outputs={"x": "s3://elsewhere/x"}, NetworkConfig={"VpcConfig": inside(made)})
    command = ["sh", "-c", "echo data > /opt/ml/processing/output/x/file"]
    request["AppSpecification"]["ContainerEntrypoint"] = command
    server.sagemaker.create_processing_job(ProcessingJobName="to-elsewhere", **request)
    assert "no VPC endpoint policy allows the s3:PutObject" in server.processing_job("to-elsewhere")["FailureReason"]


def test_a_route_to_the_internet_leads_to_every_service(
    server: Server, session: boto3.Session, made: dict[str, str]
) -> None:
    ec2 = server.client("ec2")
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=made["Vpc"])
    route = {"RouteTableId": made["Routes"], "DestinationCidrBlock": "0.0.0.0/0"}
    ec2.create_route(**route, GatewayId=gateway)
    metric = {"Namespace": "n", "MetricData": [{"MetricName": "m", "Value": 1}]}
    assert code_of(server, session, "cloudwatch", "put_metric_data", **metric)[0] == "allowed"
    ec2.delete_route(**route)
    ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=made["Vpc"])
    assert code_of(server, session, "cloudwatch", "put_metric_data", **metric)[0] == "NoWayOutOfTheVpc"


def test_a_network_that_is_not_there_or_is_two_is_refused_by_jobs_models_and_endpoints(
    server: Server, made: dict[str, str]
) -> None:
    missing = {"Subnets": ["subnet-0123456789abcdef0"], "SecurityGroupIds": ["sg-0123456789abcdef0"]}
    said = (
        "the subnet 'subnet-0123456789abcdef0' does not exist.*the security group 'sg-0123456789abcdef0' does not exist"
    )
    sagemaker, variant = server.sagemaker, {"VariantName": "v", "InstanceType": "ml.g5.xlarge"}
    hosting = {"EndpointConfigName": "c", "ProductionVariants": [variant], "ExecutionRoleArn": ROLE}
    for create, request in (
        (sagemaker.create_processing_job, {"ProcessingJobName": "j", **processing("true", NetworkConfig={"VpcConfig": missing})}),
        (sagemaker.create_training_job, {"TrainingJobName": "j", **training("true", VpcConfig=missing)}),
        (sagemaker.create_model, {"ModelName": "m", "PrimaryContainer": {"Image": "web"}, "VpcConfig": missing}),
        (sagemaker.create_endpoint_config, {**hosting, "VpcConfig": missing}),
    ):  # fmt: skip
        with pytest.raises(ClientError, match=said):
            create(**request)
    ec2 = server.client("ec2")
    other = ec2.describe_subnets(Filters=[{"Name": "cidr-block", "Values": ["172.31.0.0/20"]}])["Subnets"][0][
        "SubnetId"
    ]
    two = {"Subnets": [made["Subnet"], other], "SecurityGroupIds": [made["Group"]]}
    with pytest.raises(ClientError, match=f"must be of one VPC; .*{made['Subnet']} is in {made['Vpc']}"):
        sagemaker.create_training_job(TrainingJobName="j", **training("true", VpcConfig=two))


def test_an_endpoint_configuration_takes_no_key_for_instances_with_disks_of_their_own(server: Server) -> None:
    variant = {"VariantName": "v", "InstanceType": "ml.g5.xlarge"}
    with pytest.raises(ClientError, match=r"KmsKeyId cannot be given for ml\.g5\.xlarge, which has local storage"):
        server.sagemaker.create_endpoint_config(
            EndpointConfigName="keyed", ExecutionRoleArn=ROLE, ProductionVariants=[variant],
            KmsKeyId=f"arn:aws:kms:us-east-1:{ACCOUNT}:key/k",
        )  # fmt: skip


def test_a_deleted_stack_leaves_nothing_of_its_network(server: Server, made: dict[str, str]) -> None:
    server.client("cloudformation").delete_stack(StackName="network")
    ec2 = server.client("ec2")
    assert made["Vpc"] not in [one["VpcId"] for one in ec2.describe_vpcs()["Vpcs"]]
    assert made["Group"] not in [one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"]]
