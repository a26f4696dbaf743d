"""What people are told: each message says what happened, why, and where to look. docs/operations.md lists them."""

from collections.abc import Mapping, Sequence
from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from config.settings import Settings

STEP_CHANGE = "SageMaker Model Building Pipeline Execution Step Status Change"
PACKAGE_CHANGE = "SageMaker Model Package State Change"
ALARM_CHANGE = "CloudWatch Alarm State Change"


def part(path: str) -> str:
    """A part of the event, such as `detail.stepName`, to be put into a message."""
    return str(events.EventField.from_path(f"$.{path}"))


class Notifications(Construct):
    """One rule for each kind of message; all go to `topic`, and what cannot be told to `untold`."""

    def __init__(
        self, scope: Construct, id_: str, *, settings: Settings, topic: sns.ITopic, untold: sqs.IQueue, dashboard: str
    ) -> None:
        super().__init__(scope, id_)
        self._topic, self._untold = topic, untold
        self._name = settings.name
        stack = Stack.of(self)
        console = f"https://{stack.region}.console.aws.amazon.com"
        self._alarm_page = f"{console}/cloudwatch/home?region={stack.region}#alarmsV2:alarm"
        see = f"See: {console}/cloudwatch/home?region={stack.region}#dashboards/dashboard/{dashboard}"
        sagemaker = f"{console}/sagemaker/home?region={stack.region}#"

        def pipelines(*names: str) -> list[str]:
            return [stack.format_arn(service="sagemaker", resource="pipeline", resource_name=name) for name in names]

        watched = [name for name in settings.pipeline_names if name != settings.compare_pipeline_name]
        # The events of executions do not say why one failed; that of the failed step does, and an execution has one.
        run = f"Run: {part('detail.pipelineExecutionArn')}"
        why = f"Why: {part('detail.failureReason')}"
        failed = {"currentStepStatus": ["Failed"], "pipelineArn": pipelines(*watched)}
        if settings.trains:
            self._tell(
                "FailedRun",
                STEP_CHANGE,
                {**failed, "stepName": [{"anything-but": ["Fail", "Deploy"]}]},
                [
                    f"{self._name}: a run failed in {part('detail.stepName')}. Nothing that serves has changed.",
                    why,
                    run,
                    "Next: mend the cause and start it again; its jobs' logs: "
                    f"{sagemaker}/processing-jobs and {sagemaker}/jobs",
                    see,
                ],
            )
            self._tell(
                "RefusedModel",
                STEP_CHANGE,
                {**failed, "stepName": ["Fail"]},
                [
                    f"{self._name}: the gate refused a model. It is not registered, and nothing that serves has changed.",
                    why,
                    run,
                    "Next: 'finetune report' shows base and tuned model side by side; better data is the usual remedy.",
                    see,
                ],
            )
            self._tell(
                "ApprovalNeeded",
                PACKAGE_CHANGE,
                {
                    "ModelPackageGroupName": [settings.model_package_group_name],
                    "ModelApprovalStatus": ["PendingManualApproval"],
                    "ModelPackageStatus": ["Completed"],
                },
                [
                    f"{self._name}: model version {part('detail.ModelPackageVersion')} passed the gate and waits for approval.",
                    f"Why: {part('detail.CustomerMetadataProperties.improvement_over_base')}",
                    f"Model: {part('detail.ModelPackageArn')}",
                    "Next: 'finetune report' shows what it answers, 'finetune approve' releases it.",
                    see,
                ],
            )
        if settings.serves:
            self._tell(
                "NotReleased",
                STEP_CHANGE,
                {**failed, "stepName": ["Deploy"]},
                [
                    f"{self._name}: a model was not released, or was taken back.",
                    why,
                    run,
                    f"Next: see what serves with 'finetune endpoints', or at {sagemaker}/endpoints/{settings.endpoint_name}",
                    see,
                ],
            )
            # An approved package starts <name>-deploy, whoever approved it, so each release is told once.
            self._tell(
                "Released",
                STEP_CHANGE,
                {
                    "currentStepStatus": ["Succeeded"],
                    "stepName": ["Deploy"],
                    "pipelineArn": pipelines(settings.deploy_pipeline_name),
                },
                [
                    f"{self._name}: a model is released: {settings.endpoint_name} serves it, and was seen to answer as evaluated.",
                    run,
                    f"Endpoint: {sagemaker}/endpoints/{settings.endpoint_name}",
                    "Next: nothing. 'finetune rollback' goes back to the model before.",
                    see,
                ],
            )

    def tell_alarms(self, alarms: Sequence[cloudwatch.IAlarm]) -> None:
        """Tell people when one of these begins to ring, with its description; not when it ends."""
        self._tell(
            "Alarm",
            ALARM_CHANGE,
            {"alarmName": [alarm.alarm_name for alarm in alarms], "state": {"value": ["ALARM"]}},
            [
                f"{self._name}: {part('detail.configuration.description')}",
                f"Why: {part('detail.state.reason')}",
                f"Alarm: {self._alarm_page}/{part('detail.alarmName')}",
            ],
            source="aws.cloudwatch",
        )

    def _tell(
        self,
        id_: str,
        detail_type: str,
        detail: Mapping[str, Any],
        lines: Sequence[str],
        source: str = "aws.sagemaker",
    ) -> None:
        events.Rule(
            self,
            id_,
            description=f"Tells people: {id_}",
            event_pattern=events.EventPattern(source=[source], detail_type=[detail_type], detail=detail),
            targets=[
                targets.SnsTopic(
                    self._topic,
                    message=events.RuleTargetInput.from_multiline_text("\n".join(lines)),
                    dead_letter_queue=self._untold,
                )
            ],
        )
