"""Drift: a schedule looks at the endpoint's traffic, and an alarm on what it finds starts a training."""

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_scheduler as scheduler
from constructs import Construct

from config.settings import Settings
from pipeline.monitor import DIMENSION, DRIFTED, NAMESPACE
from stacks.components import pipeline_target
from stacks.components.dead_letters import DeadLetters
from stacks.components.service_role import ServiceRole


class DriftTriggers(Construct):
    """Starts `<name>-monitor` by the clock, and `<name>-finetune` once for each time that traffic begins to be off."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        settings: Settings,
        finetune_role: iam.IRole,
        finetune_arn: str,
        undelivered: DeadLetters,
    ) -> None:
        """`finetune_role` lets EventBridge start the pipeline `finetune_arn`."""
        super().__init__(scope, id_)
        stack = Stack.of(self)
        monitor_arn = stack.format_arn(
            service="sagemaker", resource="pipeline", resource_name=settings.monitor_pipeline_name
        )
        role = ServiceRole(
            self, "MonitorScheduleRole", service="scheduler.amazonaws.com", description="Starts the look at the traffic"
        )
        role.add_to_policy(
            iam.PolicyStatement(sid="Start", actions=["sagemaker:StartPipelineExecution"], resources=[monitor_arn])
        )
        undelivered.accept_from(role)
        scheduler.CfnSchedule(
            self,
            "Monitoring",
            description=f"Starts {settings.monitor_pipeline_name}",
            schedule_expression=settings.monitoring.expression,
            schedule_expression_timezone=settings.monitoring.timezone,
            flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
            target=pipeline_target.of_schedule(monitor_arn, role, None, undelivered),
        )

        # Between two looks there is no data, and the alarm stays as it is: it rings once until a look finds all well.
        self.alarm = cloudwatch.Alarm(
            self,
            "Drift",
            alarm_description=(
                f"What {settings.endpoint_name} is asked or answers has drifted from what its model was evaluated on; "
                f"{settings.finetune_pipeline_name} is started, and trains if the data is new. The figures are on the "
                f"dashboard and in drift.json of the last run of {settings.monitor_pipeline_name}"
            ),
            metric=cloudwatch.Metric(
                namespace=NAMESPACE,
                metric_name=DRIFTED,
                dimensions_map={DIMENSION: settings.name},
                statistic="Maximum",
                period=Duration.minutes(5),
            ),
            threshold=1,
            evaluation_periods=1,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.IGNORE,
        )
        events.CfnRule(
            self,
            "Drifted",
            description=f"Drift starts {settings.finetune_pipeline_name}",
            event_pattern={
                "source": ["aws.cloudwatch"],
                "detail-type": ["CloudWatch Alarm State Change"],
                "detail": {"alarmName": [self.alarm.alarm_name], "state": {"value": ["ALARM"]}},
            },
            targets=[
                pipeline_target.of_rule(
                    "finetune",
                    finetune_arn,
                    finetune_role,
                    {
                        "DatasetManifest": settings.dataset.default_manifest,
                        "TuningMode": settings.dataset.tuning_mode,
                        "StartedBy": "drift",
                    },
                    undelivered,
                )
            ],
        )
