"""What a release to an endpoint needs: the role that models are served with, and Deploy's rights to move the endpoint."""

from aws_cdk import ArnFormat, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3

from config.settings import Settings
from pipeline.definition import COPIED_MODELS
from pipeline.sdk import serving_image
from stacks.components.job_role import job_role
from stacks.components.permissions import list_objects, pass_role, read_objects, use_key, write_objects


def endpoint_release(
    stack: Stack, deploy_role: iam.Role, artifact_bucket: s3.IBucket, key: kms.IKey, settings: Settings
) -> iam.Role:
    """Grants `deploy_role` what a release calls, and returns the role that models are served with."""
    serving_role = _serving_role(stack, artifact_bucket, key, settings)
    _grant_release(stack, deploy_role, serving_role, settings)
    return serving_role


def _serving_role(stack: Stack, artifact_bucket: s3.IBucket, key: kms.IKey, settings: Settings) -> iam.Role:
    image = serving_image(settings.images, settings.region)
    role = job_role(stack, "ServingRole", "Serves a released model", image)
    served = ("adapters/*", "base-models/*") if settings.release.serve == "adapter" else ("runs/*",)
    if not settings.trains:
        served = (f"{COPIED_MODELS}/*",)
    read_objects(role, "Model", artifact_bucket, *served)
    list_objects(role, "Model", artifact_bucket, *served)
    captures = settings.monitoring.enabled
    use_key(role, key, writes=captures)
    if captures:
        write_objects(role, "Traffic", artifact_bucket, "captured/*")
    return role


def _grant_release(stack: Stack, role: iam.Role, serving_role: iam.Role, settings: Settings) -> None:
    """What release/ calls: read the package, make models and configurations, move the endpoint, watch it, ask it."""

    def arn(resource: str, name: str) -> str:
        return stack.format_arn(service="sagemaker", resource=resource, resource_name=name)

    package = packages_of(stack, settings)
    endpoint, component = settings.endpoint_name, settings.name
    role.add_to_policy(read_package(stack, settings))
    role.add_to_policy(
        iam.PolicyStatement(
            sid="RejectPackage",
            actions=["sagemaker:UpdateModelPackage"],  # a model whose release failed; approving is for people
            resources=[package],
            conditions={"StringEquals": {"sagemaker:ModelApprovalStatus": "Rejected"}},
        )
    )
    hosts_components = settings.release.shape == "inference_components"
    scales = settings.release.max_instance_count is not None
    copies = not settings.trains  # the model is served from a copy, which goes with it
    things = ["Endpoint", "EndpointConfig", *(["InferenceComponent"] if hosts_components else [])]
    of_the_shape = ["UpdateInferenceComponent", "UpdateInferenceComponentRuntimeConfig"] if hosts_components else []
    if scales and not hosts_components:
        of_the_shape.append("UpdateEndpointWeightsAndCapacities")
    components = [arn("inference-component", name) for name in (component, f"{endpoint}-base")]
    role.add_to_policy(
        iam.PolicyStatement(
            sid="MoveEndpoint",
            actions=[
                "sagemaker:AddTags",
                *[f"sagemaker:{verb}{thing}" for verb in ("Create", "Delete", "Describe") for thing in things],
                "sagemaker:CreateModel",
                *(["sagemaker:DescribeModel"] if copies else []),
                "sagemaker:DeleteModel",
                "sagemaker:InvokeEndpoint",
                "sagemaker:ListTags",
                "sagemaker:UpdateEndpoint",
                *[f"sagemaker:{action}" for action in of_the_shape],
            ],
            resources=[
                arn("endpoint", endpoint),
                *(arn("endpoint-config", f"{name}-*") for name in sorted({endpoint, component})),
                *(arn("model", f"{name}-*") for name in sorted({endpoint, component})),
                *(components if hosts_components else []),
                *([] if copies else [package]),
            ],
        )
    )
    listed = {"Models": hosts_components or copies, "EndpointConfigs": not hosts_components}
    role.add_to_policy(
        iam.PolicyStatement(
            sid="ListParts",
            actions=[f"sagemaker:List{things}" for things, needed in listed.items() if needed],
            resources=["*"],  # they know no resources
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="Alarms",
            actions=["cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm"],
            resources=[
                _alarm_arn(stack, name)
                for name in (
                    *(f"{name}-*" for name in sorted({endpoint, component})),
                    f"TargetTracking-endpoint/{endpoint}/*",  # autoscaling's own
                    *(f"TargetTracking-inference-component/{name}*" for name in sorted({endpoint, component})),
                )
            ],
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="Autoscaling",
            actions=[
                f"application-autoscaling:{action}"
                for action in (
                    "DeregisterScalableTarget",  # of an earlier configuration
                    *(["PutScalingPolicy", "RegisterScalableTarget"] if scales else []),
                )
            ],
            # The ARN of a target holds an id that is not known before it is registered.
            resources=[
                stack.format_arn(service="application-autoscaling", resource="scalable-target", resource_name="*")
            ],
            conditions={"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}},
        )
    )
    if scales:
        role.add_to_policy(
            iam.PolicyStatement(
                sid="AutoscalingRole",
                actions=["iam:CreateServiceLinkedRole"],  # the first scalable target of an account
                resources=[
                    stack.format_arn(
                        service="iam",
                        region="",
                        resource="role",
                        resource_name="aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*",
                    )
                ],
                conditions={"StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}},
            )
        )
    role.add_to_policy(pass_role([serving_role]))
    for one in (role, serving_role):  # SageMaker looks at the alarms of an update with the endpoint's role
        one.add_to_policy(
            iam.PolicyStatement(
                sid="WatchAlarms", actions=["cloudwatch:DescribeAlarms"], resources=[_alarm_arn(stack, "*")]
            )
        )


def read_package(stack: Stack, settings: Settings) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        sid="ReadPackage", actions=["sagemaker:DescribeModelPackage"], resources=[packages_of(stack, settings)]
    )


def packages_of(stack: Stack, settings: Settings) -> str:
    """ARN of the packages that are released, in the account and region of the registry."""
    registry = settings.registry
    return stack.format_arn(
        service="sagemaker",
        resource="model-package",
        resource_name=f"{settings.model_package_group_name}/*",
        account=None if settings.trains else registry.account,
        region=None if settings.trains else registry.region,
    )


def _alarm_arn(stack: Stack, name: str) -> str:
    return stack.format_arn(
        service="cloudwatch", resource="alarm", resource_name=name, arn_format=ArnFormat.COLON_RESOURCE_NAME
    )
