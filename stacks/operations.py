"""Who hears of what: the topic, its messages, the alarms behind some of them, the budget, and a dashboard to look at."""

from collections.abc import Sequence

from aws_cdk import CfnOutput, Duration, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from config.settings import Settings
from stacks.components.dead_letters import DeadLetters
from stacks.dashboard import HOSTS, Dashboard, endpoint_dimensions, variant_of
from stacks.notifications import Notifications

TOLD_AT_PERCENT = (80, 100)  # of the monthly budget


class OperationsStack(Stack):
    """The topic that people subscribe to, what is told there, and the dashboard `<name>`."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        settings: Settings,
        key: kms.IKey,
        undelivered: Sequence[sqs.IQueue],
        alarms: Sequence[cloudwatch.IAlarm],
        **kwargs: object,
    ) -> None:
        """`undelivered` hold starts that failed; `alarms` of other stacks are told too."""
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]
        topic = sns.Topic(
            self, "Notifications", display_name=f"{settings.name} on SageMaker", enforce_ssl=True, master_key=key
        )
        email = settings.operations.notification_email
        if email:
            topic.add_subscription(subscriptions.EmailSubscription(email))

        dashboard = Dashboard(self, "Dashboard", settings=settings)
        untold = DeadLetters(self, "Untold", key=key)
        notifications = Notifications(
            self, "Tell", settings=settings, topic=topic, untold=untold, dashboard=dashboard.name
        )
        of_the_endpoint = [*self._endpoint_alarms(settings), self._idle_alarm(settings)] if settings.serves else []
        notifications.tell_alarms(
            [
                *of_the_endpoint,
                *(self._queue_alarm(f"NotStarted{place}", queue, settings) for place, queue in enumerate(undelivered)),
                self._untold_alarm(untold),
                *alarms,
            ]
        )
        if settings.operations.monthly_budget_usd is not None:
            self._budget(settings.name, settings.operations.monthly_budget_usd, topic)

        CfnOutput(self, "NotificationTopicArn", value=topic.topic_arn)
        CfnOutput(self, "DashboardName", value=dashboard.name)

    def _endpoint_alarms(self, settings: Settings) -> list[cloudwatch.Alarm]:
        """For people, at any time; those that take a release back are Deploy's own (pipeline_steps/release/alarms.py)."""
        release = settings.release
        return [
            cloudwatch.Alarm(
                self,
                id_,
                alarm_description=f"What {settings.deploy_pipeline_name} released {what}; 'finetune rollback' goes back",
                metric=cloudwatch.Metric(
                    namespace="AWS/SageMaker",
                    metric_name=metric_name,
                    dimensions_map=endpoint_dimensions(settings),
                    statistic=statistic,
                    period=Duration.minutes(1),
                ),
                threshold=threshold,
                evaluation_periods=5,
                datapoints_to_alarm=3,
                comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            )
            for id_, metric_name, statistic, threshold, what in (
                ("EndpointErrors", "Invocation5XXErrors", "Average", release.max_error_share, "answers often with 5xx"),
                (
                    "EndpointLatency",
                    "ModelLatency",
                    "p95",
                    release.max_p95_latency_seconds * 1e6,
                    "answers too slowly (p95)",
                ),
            )
        ]

    def _idle_alarm(self, settings: Settings) -> cloudwatch.Alarm:
        """Nobody asks, and instances are paid: requests count where instances exist, since only they have a CPU."""
        hours = settings.operations.idle_endpoint_hours
        hour = Duration.hours(1)
        return cloudwatch.Alarm(
            self,
            "IdleEndpoint",
            alarm_description=(
                f"Nobody has asked the endpoint {settings.endpoint_name} for {hours} hours, and its instances are paid; "
                "delete it if it is not needed (approving a model brings it back), or use release.scale_to_zero"
            ),
            metric=cloudwatch.MathExpression(
                expression="FILL(requests, 0) + 0 * cpu",
                using_metrics={
                    "requests": cloudwatch.Metric(
                        namespace="AWS/SageMaker",
                        metric_name="Invocations",
                        dimensions_map=endpoint_dimensions(settings),
                        statistic="Sum",
                        period=hour,
                    ),
                    "cpu": cloudwatch.Metric(
                        namespace=HOSTS,
                        metric_name="CPUUtilization",
                        dimensions_map=variant_of(settings),
                        statistic="Average",
                        period=hour,
                    ),
                },
                period=hour,
            ),
            threshold=1,
            evaluation_periods=hours,
            comparison_operator=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )

    def _queue_alarm(self, id_: str, queue: sqs.IQueue, settings: Settings) -> cloudwatch.Alarm:
        return self._not_empty(
            id_,
            queue,
            f"A trigger could not start a run of {settings.name}: the queue {queue.queue_name} holds its event, and why",
        )

    def _untold_alarm(self, queue: sqs.IQueue) -> cloudwatch.Alarm:
        return self._not_empty("NotTold", queue, f"A message was not delivered: the queue {queue.queue_name} holds it")

    def _not_empty(self, id_: str, queue: sqs.IQueue, what: str) -> cloudwatch.Alarm:
        return cloudwatch.Alarm(
            self,
            id_,
            alarm_description=what,
            metric=queue.metric_approximate_number_of_messages_visible(period=Duration.minutes(5), statistic="Maximum"),
            threshold=1,
            evaluation_periods=1,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )

    def _budget(self, name: str, monthly_usd: float, topic: sns.Topic) -> None:
        """What carries this app's tag; the tag must be active for cost allocation in the account (docs/operations.md)."""
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                actions=["sns:Publish"],
                principals=[iam.ServicePrincipal("budgets.amazonaws.com")],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": self.account}},
            )
        )
        budget = budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_name=name,
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=monthly_usd, unit="USD"),
                cost_filters={"TagKeyValue": [f"user:application${name}"]},
            ),
            notifications_with_subscribers=[
                budgets.CfnBudget.NotificationWithSubscribersProperty(
                    notification=budgets.CfnBudget.NotificationProperty(
                        comparison_operator="GREATER_THAN",
                        notification_type="ACTUAL",
                        threshold=percent,
                        threshold_type="PERCENTAGE",
                    ),
                    subscribers=[
                        budgets.CfnBudget.SubscriberProperty(subscription_type="SNS", address=topic.topic_arn)
                    ],
                )
                for percent in TOLD_AT_PERCENT
            ],
        )
        budget.node.add_dependency(topic)
