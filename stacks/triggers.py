"""What starts the pipelines without hands: new data in S3, a schedule, drift, and an approved model package."""

from typing import get_args

from aws_cdk import Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_scheduler as scheduler
from constructs import Construct

from config.settings import Settings, TuningMode
from stacks.components import approvals, pipeline_target
from stacks.components.dead_letters import DeadLetters
from stacks.components.service_role import ServiceRole
from stacks.drift import DriftTriggers


class TriggersStack(Stack):
    """One rule for each tuning mode on the raw bucket, and one schedule: they start `<name>-finetune`.

    One rule on the model registry: an approval starts `<name>-deploy`, or is told to the serving places. What
    fails goes to `undelivered`.
    """

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        settings: Settings,
        raw_bucket: s3.IBucket,
        key: kms.IKey,
        finetune_pipeline: sagemaker.CfnPipeline,
        deploy_pipeline: sagemaker.CfnPipeline | None,
        monitor_pipeline: sagemaker.CfnPipeline | None,
        **kwargs: object,
    ) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]
        pipeline_arn = self.format_arn(
            service="sagemaker", resource="pipeline", resource_name=finetune_pipeline.pipeline_name
        )
        self.node.add_dependency(finetune_pipeline, *([deploy_pipeline] if deploy_pipeline else []))

        self.undelivered = DeadLetters(self, "Undelivered", key=key)

        events_role = ServiceRole(
            self, "EventsRole", service="events.amazonaws.com", description="Starts fine-tuning on new data"
        )
        schedule_role = ServiceRole(
            self, "ScheduleRole", service="scheduler.amazonaws.com", description="Starts fine-tuning on a schedule"
        )
        for role in (events_role, schedule_role):
            role.add_to_policy(
                iam.PolicyStatement(sid="Start", actions=["sagemaker:StartPipelineExecution"], resources=[pipeline_arn])
            )

        self.undelivered.accept_from(schedule_role)

        # A dataset is complete when its manifest is there: one event for many files, none for half of them.
        self.data_rules = [
            events.CfnRule(
                self,
                f"New{mode.capitalize()}Data",
                description=f"A manifest under {mode}/ in the raw bucket starts {settings.finetune_pipeline_name}",
                event_pattern={
                    "source": ["aws.s3"],
                    "detail-type": ["Object Created"],
                    "detail": {
                        "bucket": {"name": [raw_bucket.bucket_name]},
                        "object": {"key": [{"wildcard": f"{mode}/*.manifest"}]},
                    },
                },
                targets=[
                    pipeline_target.of_rule(
                        "finetune",
                        pipeline_arn,
                        events_role,
                        {"DatasetManifest": "$.detail.object.key", "TuningMode": mode, "StartedBy": "new data"},
                        self.undelivered,
                    )
                ],
            )
            for mode in get_args(TuningMode)
        ]

        hear = approvals.start_deploy if settings.serves else approvals.tell_places
        self.approval_rule = hear(self, settings, self.undelivered)

        scheduler.CfnSchedule(
            self,
            "Retraining",
            description=f"Starts {settings.finetune_pipeline_name} on its default dataset",
            schedule_expression=settings.schedule.expression,
            schedule_expression_timezone=settings.schedule.timezone,
            state="ENABLED" if settings.schedule.enabled else "DISABLED",
            flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
            target=pipeline_target.of_schedule(
                pipeline_arn,
                schedule_role,
                {
                    "DatasetManifest": settings.dataset.default_manifest,
                    "TuningMode": settings.dataset.tuning_mode,
                    "StartedBy": "schedule",
                },
                self.undelivered,
            ),
        )

        self.alarms: list[cloudwatch.IAlarm] = []
        if monitor_pipeline is not None:
            self.node.add_dependency(monitor_pipeline)
            drift = DriftTriggers(
                self,
                "DriftTriggers",
                settings=settings,
                finetune_role=events_role,
                finetune_arn=pipeline_arn,
                undelivered=self.undelivered,
            )
            self.alarms.append(drift.alarm)
