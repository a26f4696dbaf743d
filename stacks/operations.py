"""Who hears of trouble: a topic that is told of failed executions, triggers that could not start one, and a sick endpoint."""

from collections.abc import Sequence

from aws_cdk import CfnOutput, Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from config.settings import Settings
from pipeline.definition import ENDPOINT_VARIANT


class OperationsStack(Stack):
    """Failure topic, the rule that feeds it, and alarms: triggers that cannot reach a pipeline, errors and slowness of what serves."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        settings: Settings,
        key: kms.IKey,
        rules: Sequence[events.CfnRule],
        **kwargs: object,
    ) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]

        topic = sns.Topic(
            self,
            "Failures",
            display_name=f"{settings.name}: failed executions",
            enforce_ssl=True,
            master_key=key,
        )
        # A policy of our own replaces the default one, by which alarms may publish.
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="Alarms",
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": self.account}},
            )
        )
        if settings.failure_email:
            topic.add_subscription(subscriptions.EmailSubscription(settings.failure_email))

        events.Rule(
            self,
            "FailedExecution",
            description="An execution that failed or was refused by the gate is told to people",
            event_pattern=events.EventPattern(
                source=["aws.sagemaker"],
                detail_type=["SageMaker Model Building Pipeline Execution Status Change"],
                detail={
                    "currentPipelineExecutionStatus": ["Failed"],
                    "pipelineArn": [
                        self.format_arn(service="sagemaker", resource="pipeline", resource_name=name)
                        for name in (settings.finetune_pipeline_name, settings.deploy_pipeline_name)
                    ],
                },
            ),
            targets=[targets.SnsTopic(topic)],
        )

        # The event of an execution does not say why; that of the Fail step holds the gate's reasons.
        why = events.EventField.from_path("$.detail.failureReason")
        execution = events.EventField.from_path("$.detail.pipelineExecutionArn")
        events.Rule(
            self,
            "RefusedModel",
            description="A model that the gate refused is told to people with the reasons",
            event_pattern=events.EventPattern(
                source=["aws.sagemaker"],
                detail_type=["SageMaker Model Building Pipeline Execution Step Status Change"],
                detail={
                    "stepName": ["Fail"],
                    "currentStepStatus": ["Failed"],
                    "pipelineArn": [
                        self.format_arn(
                            service="sagemaker", resource="pipeline", resource_name=settings.finetune_pipeline_name
                        )
                    ],
                },
            ),
            targets=[targets.SnsTopic(topic, message=events.RuleTargetInput.from_text(f"{execution}: {why}"))],
        )

        for rule in rules:
            cloudwatch.Alarm(
                self,
                f"{rule.node.id}NotStarted",
                alarm_description=f"{rule.node.id}: EventBridge could not start an execution; see the target's role",
                metric=cloudwatch.Metric(
                    namespace="AWS/Events",
                    metric_name="FailedInvocations",
                    dimensions_map={"RuleName": rule.ref},
                    statistic="Sum",
                    period=Duration.minutes(5),
                ),
                threshold=1,
                evaluation_periods=1,
                comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            ).add_alarm_action(actions.SnsAction(topic))

        # For people, at any time; those that take a release back are Deploy's own (pipeline_steps/release/alarms.py).
        release = settings.release
        for id_, metric_name, statistic, threshold, what in (
            ("EndpointErrors", "Invocation5XXErrors", "Average", release.max_error_share, "answers too often with 5xx"),
            (
                "EndpointLatency",
                "ModelLatency",
                "p95",
                release.max_p95_latency_seconds * 1e6,
                "answers too slowly (p95)",
            ),
        ):
            cloudwatch.Alarm(
                self,
                id_,
                alarm_description=f"What {settings.deploy_pipeline_name} released {what}; `finetune rollback` goes back",
                metric=cloudwatch.Metric(
                    namespace="AWS/SageMaker",
                    metric_name=metric_name,
                    dimensions_map=(
                        {"InferenceComponentName": settings.inference_component_name}
                        if settings.inference_component_name
                        else {"EndpointName": settings.endpoint_name, "VariantName": ENDPOINT_VARIANT}
                    ),
                    statistic=statistic,
                    period=Duration.minutes(1),
                ),
                threshold=threshold,
                evaluation_periods=5,
                datapoints_to_alarm=3,
                comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            ).add_alarm_action(actions.SnsAction(topic))

        CfnOutput(self, "FailureTopicArn", value=topic.topic_arn)
