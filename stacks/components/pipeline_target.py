"""Pipelines and buses as targets: what EventBridge's rules and schedules start, again for an hour if it fails, and kept if it cannot be."""

from collections.abc import Mapping

from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_scheduler as scheduler

from stacks.components.dead_letters import DeadLetters

RETRY = {"maximum_event_age_in_seconds": 3600, "maximum_retry_attempts": 10}


def of_rule(
    id_: str, pipeline_arn: str, role: iam.IRole, parameters: Mapping[str, str], undelivered: DeadLetters
) -> events.CfnRule.TargetProperty:
    """`role` starts the pipeline with `parameters`, whose values may be paths into the event ($.detail...)."""
    return events.CfnRule.TargetProperty(
        id=id_,
        arn=pipeline_arn,
        role_arn=role.role_arn,
        sage_maker_pipeline_parameters=events.CfnRule.SageMakerPipelineParametersProperty(
            pipeline_parameter_list=[
                events.CfnRule.SageMakerPipelineParameterProperty(name=name, value=value)
                for name, value in parameters.items()
            ]
        ),
        retry_policy=events.CfnRule.RetryPolicyProperty(**RETRY),
        dead_letter_config=events.CfnRule.DeadLetterConfigProperty(arn=undelivered.queue_arn),
    )


def of_bus(id_: str, bus_arn: str, role: iam.IRole, undelivered: DeadLetters) -> events.CfnRule.TargetProperty:
    """`role` hands the event on to the event bus of another account or region."""
    return events.CfnRule.TargetProperty(
        id=id_,
        arn=bus_arn,
        role_arn=role.role_arn,
        retry_policy=events.CfnRule.RetryPolicyProperty(**RETRY),
        dead_letter_config=events.CfnRule.DeadLetterConfigProperty(arn=undelivered.queue_arn),
    )


def of_schedule(
    pipeline_arn: str, role: iam.IRole, parameters: Mapping[str, str] | None, undelivered: DeadLetters
) -> scheduler.CfnSchedule.TargetProperty:
    """`role` starts the pipeline with `parameters`; None for a pipeline that has none."""
    given = None
    if parameters is not None:
        given = scheduler.CfnSchedule.SageMakerPipelineParametersProperty(
            pipeline_parameter_list=[
                scheduler.CfnSchedule.SageMakerPipelineParameterProperty(name=name, value=value)
                for name, value in parameters.items()
            ]
        )
    return scheduler.CfnSchedule.TargetProperty(
        arn=pipeline_arn,
        role_arn=role.role_arn,
        retry_policy=scheduler.CfnSchedule.RetryPolicyProperty(**RETRY),
        dead_letter_config=scheduler.CfnSchedule.DeadLetterConfigProperty(arn=undelivered.queue_arn),
        sage_maker_pipeline_parameters=given,
    )
