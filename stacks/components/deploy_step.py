"""The Deploy step's roles: its own, and that of whoever reads the model it releases."""

from dataclasses import dataclass

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3

from config.settings import Settings
from pipeline.definition import COPIED_MODELS, has_local_storage
from pipeline.sdk import training_image
from stacks.components.bedrock_import import bedrock_import
from stacks.components.endpoint_release import endpoint_release
from stacks.components.job_role import job_role
from stacks.components.permissions import delete_objects, list_objects, read_objects, use_key, write_objects
from stacks.components.step_code import StepCode


@dataclass(frozen=True)
class DeployStep:
    """`resources`: what the placeholders of its definition stand for. `in_network`: roles with interfaces in a VPC."""

    role: iam.Role
    in_network: list[iam.Role]
    resources: dict[str, str]


def deploy_step(
    stack: Stack,
    settings: Settings,
    *,
    code: StepCode,
    artifact_bucket: s3.IBucket,
    key: kms.IKey,
    role_name: str | None = None,
) -> DeployStep:
    """Roles that may release an approved package, to an endpoint of the stack's account and region or to Bedrock."""
    image = training_image(settings.images, settings.region, settings.training.instance_type)
    role = job_role(stack, "DeployRole", "Releases a model package to the endpoint", image, role_name)
    code.grant_read(role)
    # The volumes of an endpoint are attached in the name of who makes it.
    makes_endpoint = settings.release.target == "sagemaker" and not has_local_storage(settings.release.instance_type)
    volumes = makes_endpoint or not has_local_storage(settings.processing.deploy_instance_type)
    use_key(role, key, writes=True, volumes=volumes)

    # Where models are trained: when the model was written, what it answered then, and its adapter. Elsewhere: its copy.
    copies = [] if settings.trains else [f"{COPIED_MODELS}/*"]
    adapters = ["adapters/*"] if settings.release.serve == "adapter" else []
    read_objects(role, "Artifacts", artifact_bucket, *(copies or ["runs/*", *adapters]))
    list_objects(role, "Artifacts", artifact_bucket)
    write_objects(role, "Deployment", artifact_bucket, "runs/*", *adapters, *copies)
    if copies:
        delete_objects(role, "Copies", artifact_bucket, *copies)
    if settings.release.target == "bedrock":
        bedrock_role = bedrock_import(stack, role, artifact_bucket, key, settings)
        return DeployStep(role, [role], {"DeployRole": role.role_arn, "BedrockRole": bedrock_role.role_arn})
    serving_role = endpoint_release(stack, role, artifact_bucket, key, settings)
    return DeployStep(role, [role, serving_role], {"DeployRole": role.role_arn, "ServingRole": serving_role.role_arn})
