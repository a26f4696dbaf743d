"""What a release to Bedrock needs: the role with which Bedrock reads a model, and Deploy's rights to have it imported."""

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3

from config.settings import Settings
from stacks.components.endpoint_release import read_package
from stacks.components.permissions import list_objects, read_objects, use_key, write_objects
from stacks.components.service_role import ServiceRole

BEDROCK = "bedrock.amazonaws.com"
MODELS = "bedrock/*"  # in the artifact bucket: copies of the models that are to be imported


def bedrock_import(
    stack: Stack, deploy_role: iam.Role, artifact_bucket: s3.IBucket, key: kms.IKey, settings: Settings
) -> iam.Role:
    """The role for Bedrock."""

    def arn(resource: str) -> str:
        return stack.format_arn(service="bedrock", resource=resource, resource_name="*")

    def allow(sid: str, actions: list[str], resources: list[str], conditions: dict[str, object] | None = None) -> None:
        deploy_role.add_to_policy(
            iam.PolicyStatement(sid=sid, actions=actions, resources=resources, conditions=conditions)
        )

    role = ServiceRole(
        stack,
        "BedrockRole",
        service=BEDROCK,
        description="Bedrock reads the models that it imports",
        conditions={"ArnLike": {"aws:SourceArn": arn("model-import-job")}},
    )
    read_objects(role, "Model", artifact_bucket, MODELS)
    list_objects(role, "Model", artifact_bucket, MODELS)
    use_key(role, key)

    read_objects(deploy_role, "Copies", artifact_bucket, MODELS)
    write_objects(deploy_role, "Copies", artifact_bucket, MODELS)
    ours = {"aws:RequestTag/application": settings.name}
    allow("ImportModel", ["bedrock:CreateModelImportJob", "bedrock:TagResource"], ["*"], {"StringEquals": ours})
    allow("FindModels", ["bedrock:ListImportedModels", "bedrock:ListModelImportJobs"], ["*"])  # they know no resources
    allow(
        "SeeModel",
        ["bedrock:GetImportedModel", "bedrock:GetModelImportJob"],
        [arn("imported-model"), arn("model-import-job")],
    )
    allow(
        "RemoveModel",
        ["bedrock:DeleteImportedModel"],
        [arn("imported-model")],
        {"StringEquals": {"aws:ResourceTag/application": settings.name}},
    )
    # Bedrock keeps the imported model under the key with a grant that it makes in the caller's name.
    allow(
        "EncryptModel",
        ["kms:CreateGrant", "kms:DescribeKey"],
        [key.key_arn],
        {"StringEquals": {"kms:ViaService": f"bedrock.{stack.region}.amazonaws.com"}},
    )
    allow("PassRoles", ["iam:PassRole"], [role.role_arn], {"StringEquals": {"iam:PassedToService": BEDROCK}})
    deploy_role.add_to_policy(read_package(stack, settings))
    return role
