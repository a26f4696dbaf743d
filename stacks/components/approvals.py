"""An approval in the model registry: it starts `<name>-deploy` here, or is told to the places that serve."""

from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam

from config.settings import Settings
from stacks.components import pipeline_target
from stacks.components.dead_letters import DeadLetters
from stacks.components.service_role import ServiceRole


def bus_name(settings: Settings) -> str:
    """Of the event bus in each serving place."""
    return f"{settings.name}-approvals"


def start_deploy(
    stack: Stack, settings: Settings, undelivered: DeadLetters, event_bus_name: str | None = None
) -> events.CfnRule:
    """An approval by whatever hand starts the release of its package.

    SageMaker may send an event twice, and a package that is approved at registration is released by the pipeline that
    made it too: Deploy joins a release that is under way, and changes nothing that is served.
    """
    deploy_arn = stack.format_arn(service="sagemaker", resource="pipeline", resource_name=settings.deploy_pipeline_name)
    role = ServiceRole(
        stack, "ApprovalRole", service="events.amazonaws.com", description="Starts the release of an approved package"
    )
    role.add_to_policy(
        iam.PolicyStatement(sid="Start", actions=["sagemaker:StartPipelineExecution"], resources=[deploy_arn])
    )
    target = pipeline_target.of_rule(
        "deploy", deploy_arn, role, {"ModelPackageArn": "$.detail.ModelPackageArn"}, undelivered
    )
    what = f"starts {settings.deploy_pipeline_name}"
    return _rule(stack, settings, what, [target], event_bus_name=event_bus_name)


def tell_places(stack: Stack, settings: Settings, undelivered: DeadLetters) -> events.CfnRule:
    """An approval by whatever hand is told to every serving place."""
    buses = {
        name: f"arn:{stack.partition}:events:{place.region}:{place.account}:event-bus/{bus_name(settings)}"
        for name, place in settings.serving.items()
    }
    role = ServiceRole(
        stack, "ApprovalRole", service="events.amazonaws.com", description="Tells serving places of approved packages"
    )
    role.add_to_policy(iam.PolicyStatement(sid="Tell", actions=["events:PutEvents"], resources=list(buses.values())))
    targets = [pipeline_target.of_bus(name, arn, role, undelivered) for name, arn in buses.items()]
    return _rule(stack, settings, f"is told to {', '.join(buses)}", targets)


def _rule(stack: Stack, settings: Settings, what: str, targets: list[Any], **on_a_bus: Any) -> events.CfnRule:
    group = settings.model_package_group_name
    of_account = {} if settings.trains else {"account": [settings.registry.account]}
    return events.CfnRule(
        stack,
        "ApprovedPackage",
        description=f"An approved package of {group} {what}",
        event_pattern={
            **of_account,
            "source": ["aws.sagemaker"],
            "detail-type": ["SageMaker Model Package State Change"],
            "detail": {"ModelPackageGroupName": [group], "ModelApprovalStatus": ["Approved"]},
        },
        targets=targets,
        **on_a_bus,
    )
