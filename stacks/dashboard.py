"""One page to look at: runs, training, evaluations, the endpoint, drift and cost."""

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from constructs import Construct

from config.settings import Settings
from pipeline.definition import ENDPOINT_VARIANT
from pipeline.monitor import ANSWER_WORDS, DIMENSION, NAMESPACE, SHARES

PIPELINES = "AWS/Sagemaker/ModelBuildingPipeline"  # AWS writes it with a small m
TRAININGS = "/aws/sagemaker/TrainingJobs"
HOSTS = "/aws/sagemaker/Endpoints"
LOGS_OF_STEPS = "/aws/sagemaker/ProcessingJobs"
HALF, WHOLE = 12, 24


class Dashboard(Construct):
    """The dashboard `<name>`. Figures of trainings and evaluations are those of every deployment in the account.

    It shows what is in this account and region: the pipelines that train, the endpoint, or both.
    """

    def __init__(self, scope: Construct, id_: str, *, settings: Settings) -> None:
        super().__init__(scope, id_)
        self._settings = settings
        self.name = settings.name
        board = cloudwatch.Dashboard(self, "Page", dashboard_name=self.name, default_interval=Duration.days(14))
        board.add_widgets(
            *([self._runs(settings.finetune_pipeline_name)] if settings.trains else []),
            *([self._runs(settings.deploy_pipeline_name)] if settings.serves else []),
        )
        if settings.trains:
            self._show_trainings(board)
        if settings.serves:
            self._show_endpoint(board)
        else:
            board.add_widgets(self._charges(Stack.of(self)))

    def _show_trainings(self, board: cloudwatch.Dashboard) -> None:
        board.add_widgets(
            self._searched("Training: loss", "train:loss", "validation:loss"),
            self._searched("Training: tokens a second", "train:tokens_per_second"),
        )
        board.add_widgets(
            cloudwatch.LogQueryWidget(
                title="Evaluations: the gate's verdicts, over base and champion, and what trainings cost",
                log_group_names=[LOGS_OF_STEPS],
                query_lines=[
                    "fields @timestamp, @message",
                    "filter @logStream like /-Evaluate-/ and (@message like /gate/ or @message like /cost:/)",
                    "sort @timestamp desc",
                    "limit 50",
                ],
                width=WHOLE,
            )
        )

    def _show_endpoint(self, board: cloudwatch.Dashboard) -> None:
        board.add_widgets(
            self._endpoint("Endpoint: requests and errors", "Sum", "Invocations", "Invocation5XXErrors"),
            self._endpoint("Endpoint: latency, microseconds", "p95", "ModelLatency", "OverheadLatency"),
        )
        board.add_widgets(
            self._hosts("Endpoint: GPU, %", "GPUUtilization", "GPUMemoryUtilization"), self._charges(Stack.of(self))
        )
        if self._settings.monitoring.enabled:
            board.add_widgets(
                self._traffic("Traffic: words of an answer", ANSWER_WORDS),
                self._traffic("Traffic: refused, repeated, not ended; similarity to the training set", *SHARES),
            )

    def _graph(
        self, title: str, metrics: list[cloudwatch.IMetric], region: str | None = None
    ) -> cloudwatch.GraphWidget:
        return cloudwatch.GraphWidget(title=title, left=metrics, width=HALF, region=region)

    def _runs(self, pipeline: str) -> cloudwatch.GraphWidget:
        names = ("ExecutionStarted", "ExecutionSucceeded", "ExecutionFailed", "ExecutionStopped")
        return self._graph(
            f"Runs of {pipeline}",
            [self._metric(PIPELINES, name, {"PipelineName": pipeline}, "Sum", Duration.hours(1)) for name in names],
        )

    def _searched(self, title: str, *names: str) -> cloudwatch.GraphWidget:
        """A metric of every training job whose step is FineTune: each run has a name of its own."""
        return self._graph(
            title,
            [
                cloudwatch.MathExpression(
                    expression=f"SEARCH('{{{TRAININGS},TrainingJobName}} MetricName=\"{name}\" FineTune', 'Average', 60)",
                    label=name,
                    using_metrics={},
                )
                for name in names
            ],
        )

    def _endpoint(self, title: str, statistic: str, *names: str) -> cloudwatch.GraphWidget:
        dimensions = endpoint_dimensions(self._settings)
        return self._graph(
            title, [self._metric("AWS/SageMaker", name, dimensions, statistic, Duration.minutes(5)) for name in names]
        )

    def _hosts(self, title: str, *names: str) -> cloudwatch.GraphWidget:
        return self._graph(
            title,
            [self._metric(HOSTS, name, variant_of(self._settings), "Average", Duration.minutes(5)) for name in names],
        )

    def _traffic(self, title: str, *names: str) -> cloudwatch.GraphWidget:
        dimensions = {DIMENSION: self._settings.name}
        return self._graph(
            title,
            [self._metric(NAMESPACE, name, dimensions, "Average", Duration.hours(1)) for name in names],
        )

    def _charges(self, stack: Stack) -> cloudwatch.GraphWidget:
        """AWS keeps what an account has been charged in one region of each partition."""
        dimensions = {"ServiceName": "AmazonSageMaker", "Currency": "USD"}
        metric = self._metric("AWS/Billing", "EstimatedCharges", dimensions, "Maximum", Duration.hours(6))
        return self._graph("SageMaker in this account, this month, USD", [metric], region="us-east-1")

    def _metric(
        self, namespace: str, name: str, dimensions: dict[str, str], statistic: str, period: Duration
    ) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=namespace, metric_name=name, dimensions_map=dimensions, statistic=statistic, period=period
        )


def variant_of(settings: Settings) -> dict[str, str]:
    """The dimensions of what SageMaker measures of an endpoint's instances."""
    return {"EndpointName": settings.endpoint_name, "VariantName": ENDPOINT_VARIANT}


def endpoint_dimensions(settings: Settings) -> dict[str, str]:
    """The dimensions of what SageMaker measures of the requests to this deployment's model."""
    if settings.inference_component_name:
        return {"InferenceComponentName": settings.inference_component_name}
    return variant_of(settings)
