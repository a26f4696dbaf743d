"""A VPC without a way to the internet: jobs and models in it reach S3 and the services that they ask, and nothing else."""

from dataclasses import dataclass

from aws_cdk import Fn, RemovalPolicy, Stack, Tags
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from config import jumpstart_lock
from config.settings import NetworkSettings, Settings
from stacks.components.service_role import ServiceRole

# Nobody else's network is joined to it, so that any private range does. Two zones: 2,043 addresses each, two an instance.
CIDR, SUBNET_CIDRS = "10.0.0.0/20", ("10.0.0.0/21", "10.0.8.0/21")
HTTPS = 443
ALL = "-1"  # protocols
# Services whose endpoint is not named com.amazonaws.<region>.<service>.
OTHER_NAMES = {"experiments": "aws.sagemaker.{region}.experiments"}


@dataclass(frozen=True)
class Network:
    """Where jobs and models have their network interfaces."""

    vpc_id: str
    subnet_ids: list[str]
    security_group_ids: list[str]

    @classmethod
    def of_the_user(cls, settings: NetworkSettings) -> "Network":
        return cls(settings.vpc, settings.subnet_ids, settings.security_group_ids)


class NetworkStack(Stack):
    """VPC, a private subnet in each of two zones, endpoints for what jobs ask, and a log of who talked to whom."""

    def __init__(self, scope: Construct, id_: str, *, settings: Settings, key: kms.IKey, **kwargs: object) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]
        # Of the plain kind (L1): the L2 would look the zones up in the account, and bring a Lambda for the default group.
        vpc = ec2.CfnVPC(self, "Vpc", cidr_block=CIDR, enable_dns_support=True, enable_dns_hostnames=True)
        routes = ec2.CfnRouteTable(self, "Routes", vpc_id=vpc.ref)  # within the VPC, and to S3
        subnets = [self._subnet(number, cidr, vpc, routes) for number, cidr in enumerate(SUBNET_CIDRS)]
        for one in (vpc, routes, *subnets):
            Tags.of(one).add("Name", f"{settings.name}: {one.node.id}")

        jobs, endpoints = self._security_groups(vpc)
        self._endpoint_of_s3(settings, vpc, routes)
        for service in settings.asked_services:
            if service != "s3":
                self._endpoint(service, vpc, subnets, endpoints)
        self._flow_log(settings, vpc, key)
        self.network = Network(vpc.ref, [subnet.ref for subnet in subnets], [jobs.ref])

    def _subnet(self, number: int, cidr: str, vpc: ec2.CfnVPC, routes: ec2.CfnRouteTable) -> ec2.CfnSubnet:
        subnet = ec2.CfnSubnet(
            self,
            f"Subnet{number + 1}",
            vpc_id=vpc.ref,
            cidr_block=cidr,
            availability_zone=Fn.select(number, Fn.get_azs()),
            map_public_ip_on_launch=False,
        )
        ec2.CfnSubnetRouteTableAssociation(
            self, f"Subnet{number + 1}Routes", subnet_id=subnet.ref, route_table_id=routes.ref
        )
        return subnet

    def _security_groups(self, vpc: ec2.CfnVPC) -> tuple[ec2.CfnSecurityGroup, ec2.CfnSecurityGroup]:
        """Of jobs: with each other, and out to AWS. Of the endpoints: in from jobs."""
        jobs = ec2.CfnSecurityGroup(
            self,
            "Jobs",
            group_description="Jobs and models: the hosts of a job reach each other, and AWS",
            vpc_id=vpc.ref,
            security_group_egress=[
                ec2.CfnSecurityGroup.EgressProperty(
                    # S3's addresses are public ones; the route table leads to S3 only.
                    cidr_ip="0.0.0.0/0",
                    ip_protocol="tcp",
                    from_port=HTTPS,
                    to_port=HTTPS,
                    description="S3 and the endpoints of AWS",
                )
            ],
        )
        # Everything: encrypted traffic between containers is ESP and UDP 500, and NCCL takes any port.
        among = {"group_id": jobs.ref, "ip_protocol": ALL, "description": "hosts of one job"}
        ec2.CfnSecurityGroupIngress(self, "FromJobs", source_security_group_id=jobs.ref, **among)  # type: ignore[arg-type]
        ec2.CfnSecurityGroupEgress(self, "ToJobs", destination_security_group_id=jobs.ref, **among)  # type: ignore[arg-type]
        endpoints = ec2.CfnSecurityGroup(
            self,
            "Endpoints",
            group_description="Endpoints of AWS: asked by jobs",
            vpc_id=vpc.ref,
            security_group_ingress=[
                ec2.CfnSecurityGroup.IngressProperty(
                    source_security_group_id=jobs.ref,
                    ip_protocol="tcp",
                    from_port=HTTPS,
                    to_port=HTTPS,
                    description="jobs",
                )
            ],
            security_group_egress=[
                ec2.CfnSecurityGroup.EgressProperty(
                    # They start nothing; without a rule of ours EC2 would let everything out.
                    cidr_ip=CIDR,
                    ip_protocol="tcp",
                    from_port=HTTPS,
                    to_port=HTTPS,
                    description="this VPC only",
                )
            ],
        )
        return jobs, endpoints

    def _endpoint_of_s3(self, settings: Settings, vpc: ec2.CfnVPC, routes: ec2.CfnRouteTable) -> None:
        """Only our principals, and only our buckets: data has no way into somebody else's."""
        statements = [
            self._allowed_to_our_principals(["*"], ["*"], {"aws:ResourceAccount": self._accounts(settings)}),
        ]
        if settings.trains and settings.backend == "jumpstart":
            training = jumpstart_lock.training_of(settings)
            uris = (training.lock.model_uri(training.instance_type), training.lock.script_uri)
            buckets = sorted({uri.removeprefix("s3://").split("/")[0] for uri in uris})
            arns = [f"arn:{self.partition}:s3:::{bucket}{below}" for bucket in buckets for below in ("", "/*")]
            statements.append(self._allowed_to_our_principals(["s3:GetObject", "s3:ListBucket"], arns, {}))
        ec2.CfnVPCEndpoint(
            self,
            "S3",
            vpc_id=vpc.ref,
            service_name=f"com.amazonaws.{self.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[routes.ref],
            policy_document=iam.PolicyDocument(statements=statements),
        )

    def _endpoint(
        self, service: str, vpc: ec2.CfnVPC, subnets: list[ec2.CfnSubnet], group: ec2.CfnSecurityGroup
    ) -> None:
        name = OTHER_NAMES.get(service, f"com.amazonaws.{{region}}.{service}").format(region=self.region)
        ec2.CfnVPCEndpoint(
            self,
            "".join(part.capitalize() for part in service.replace("-", ".").split(".")),
            vpc_id=vpc.ref,
            service_name=name,
            vpc_endpoint_type="Interface",
            subnet_ids=[subnet.ref for subnet in subnets],
            security_group_ids=[group.ref],
            private_dns_enabled=True,  # the service's own name leads here
            policy_document=iam.PolicyDocument(statements=[self._allowed_to_our_principals(["*"], ["*"], {})]),
        )

    def _allowed_to_our_principals(
        self, actions: list[str], resources: list[str], more: dict[str, str | list[str]]
    ) -> iam.PolicyStatement:
        """An endpoint's policy grants nothing; it says whose credentials may be used through it."""
        return iam.PolicyStatement(
            principals=[iam.AnyPrincipal()],
            actions=actions,
            resources=resources,
            conditions={"StringEquals": {"aws:PrincipalAccount": self.account, **more}},
        )

    def _accounts(self, settings: Settings) -> str | list[str]:
        """Whose buckets are ours: a serving place reads models where they were registered."""
        registry = settings.registry.account
        return self.account if settings.trains or registry is None else [self.account, registry]

    def _flow_log(self, settings: Settings, vpc: ec2.CfnVPC, key: kms.IKey) -> None:
        group = logs.LogGroup(
            self,
            "Traffic",
            encryption_key=key,
            retention=logs.RetentionDays.ONE_YEAR,
            removal_policy=RemovalPolicy.RETAIN if settings.keep_data else RemovalPolicy.DESTROY,
        )
        role = ServiceRole(
            self, "FlowLogRole", service="vpc-flow-logs.amazonaws.com", description="Writes who talked to whom"
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="WriteTraffic",
                actions=["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                resources=[group.log_group_arn],
            )
        )
        ec2.CfnFlowLog(
            self,
            "FlowLog",
            resource_id=vpc.ref,
            resource_type="VPC",
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_group_name=group.log_group_name,
            deliver_logs_permission_arn=role.role_arn,
        ).node.add_dependency(role)
