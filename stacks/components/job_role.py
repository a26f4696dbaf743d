"""Roles for jobs and models: what SageMaker does around a program in its role's name, whatever the program does."""

import re

from aws_cdk import Stack
from aws_cdk import aws_iam as iam

from config.jumpstart_lock import LockError
from stacks.components.service_role import ServiceRole

ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<repository>[^:@]+)"
)


def job_role(stack: Stack, id_: str, description: str, image: str, role_name: str | None = None) -> iam.Role:
    """A role for jobs of one kind; `image` is pulled with it."""
    role = ServiceRole(stack, id_, service="sagemaker.amazonaws.com", description=description, role_name=role_name)
    role.add_to_policy(
        iam.PolicyStatement(
            sid="Logs",
            actions=["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            resources=[
                stack.format_arn(service="logs", resource=f"log-group:/aws/sagemaker/*{streams}")
                for streams in ("", ":log-stream:*")
            ],
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="Metrics",
            actions=["cloudwatch:PutMetricData"],
            resources=["*"],  # the action knows no resources; the namespace limits it
            conditions={"StringLike": {"cloudwatch:namespace": ["/aws/sagemaker/*", "aws/sagemaker/*"]}},
        )
    )
    role.add_to_policy(
        iam.PolicyStatement(
            sid="ImageToken", actions=["ecr:GetAuthorizationToken"], resources=["*"]
        )  # knows no resources
    )
    found = ECR_IMAGE.match(image)
    if found is None:  # settings have no other; a lock file may
        raise LockError(f"the image {image!r} is not in Amazon ECR; look the JumpStart model up again")
    repository = f"ecr:{found['region']}:{found['account']}:repository/{found['repository']}"
    role.add_to_policy(
        iam.PolicyStatement(
            sid="ImageLayers",
            actions=["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            resources=[f"arn:{stack.partition}:{repository}"],
        )
    )
    return role
