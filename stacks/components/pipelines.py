"""SageMaker Pipelines in a stack: the pipeline with its definition filled in, and what its role may do in our name."""

from aws_cdk import Fn, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sagemaker as sagemaker

from config.settings import Settings
from pipeline.definition import CREATED_SECURITY_GROUP, CREATED_SUBNETS
from stacks.components.permissions import pass_role
from stacks.network import Network


def add_pipeline(
    stack: Stack, id_: str, name: str, description: str, definition: str, resources: dict[str, str], role: iam.Role
) -> sagemaker.CfnPipeline:
    used = {key: value for key, value in resources.items() if f"${{{key}}}" in definition}
    pipeline = sagemaker.CfnPipeline(
        stack,
        id_,
        pipeline_name=name,
        pipeline_display_name=name,
        pipeline_description=description,
        # The service wants this key in PascalCase although CDK's own properties are not.
        pipeline_definition={"PipelineDefinitionBody": Fn.sub(definition, used)},
        role_arn=role.role_arn,
    )
    pipeline.node.add_dependency(role)  # its policies too: a pipeline must not exist before it may run
    return pipeline


def grant_run_jobs(
    stack: Stack, role: iam.Role, job_roles: list[iam.Role], settings: Settings, network: Network | None
) -> None:
    """What the pipeline service does in our name: run and stop jobs, register packages, pass the jobs' roles.

    Where nothing is trained it runs Deploy only. With a network no job starts outside of it, whatever a definition says.
    """

    def arn(resource: str, name: str) -> str:
        return stack.format_arn(service="sagemaker", resource=resource, resource_name=name)

    # The service names the jobs of an execution `pipelines-<execution>-<step>-<suffix>`.
    kinds = {"ProcessingJob": "processing-job", **({"TrainingJob": "training-job"} if settings.trains else {})}
    jobs = [arn(kind, "pipelines-*") for kind in kinds.values()]
    role.add_to_policy(
        iam.PolicyStatement(
            sid="StartJobs",
            actions=[f"sagemaker:Create{kind}" for kind in kinds],
            resources=jobs,
            conditions=_inside(network) if network else None,
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="RunJobs",
            actions=[
                "sagemaker:AddTags",
                *(f"sagemaker:{verb}{kind}" for verb in ("Describe", "Stop") for kind in kinds),
            ],
            resources=jobs,
        )
    )
    if settings.trains:
        _grant_register(stack, role, settings)
    role.add_to_policy(pass_role(job_roles))


def _grant_register(stack: Stack, role: iam.Role, settings: Settings) -> None:
    group = settings.model_package_group_name
    of_group = stack.format_arn(service="sagemaker", resource="model-package-group", resource_name=group)
    of_packages = stack.format_arn(service="sagemaker", resource="model-package", resource_name=f"{group}/*")
    role.add_to_policy(
        iam.PolicyStatement(
            sid="RegisterPackages",
            actions=["sagemaker:CreateModelPackage", "sagemaker:DescribeModelPackage", "sagemaker:AddTags"],
            resources=[of_group, of_packages],
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="ReadPackageGroup",
            actions=["sagemaker:DescribeModelPackageGroup"],
            resources=[of_group],
        )
    )


def network_resources(network: Network | None) -> dict[str, str]:
    """What a definition's placeholders for a VPC that the stacks make stand for."""
    if network is None:
        return {}
    subnets = dict(zip(CREATED_SUBNETS, network.subnet_ids, strict=False))
    return {**subnets, CREATED_SECURITY_GROUP: network.security_group_ids[0]}


def _inside(network: Network) -> dict[str, dict[str, object]]:
    """The condition that a job names subnets and groups of the network, and no others. ForAllValues holds of none too."""
    wanted = {"VpcSubnets": network.subnet_ids, "VpcSecurityGroupIds": network.security_group_ids}
    return {
        "ForAllValues:StringEquals": {f"sagemaker:{key}": ids for key, ids in wanted.items()},
        "Null": {f"sagemaker:{key}": "false" for key in wanted},
    }
