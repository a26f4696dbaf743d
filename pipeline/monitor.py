"""<name>-monitor: Monitor alone, on a schedule; its metrics are watched by an alarm that starts `<name>-finetune`."""

from sagemaker.mlops.workflow.steps import StepTypeEnum

from config.settings import Settings
from pipeline.definition import processing_request
from pipeline.sdk import RequestStep, definition_json
from pipeline_steps.contract import drift, files

# What the stacks watch and show.
NAMESPACE, DIMENSION, DRIFTED = drift.NAMESPACE, drift.DIMENSION, drift.DRIFTED
ANSWER_WORDS = drift.ANSWER_WORDS
SHARES = (drift.REFUSED, drift.REPETITION, drift.UNENDED, drift.SIMILARITY)


def monitor_definition(settings: Settings) -> str:
    """JSON of `<name>-monitor`."""
    return definition_json(settings.monitor_pipeline_name, [], [monitor(settings)], settings.region)


def monitor(settings: Settings) -> RequestStep:
    """Captured traffic -> metrics of how far it is from what the serving model was evaluated on."""
    request = processing_request(
        settings,
        role="${MonitorRole}",
        instance_type=settings.monitoring.instance_type,
        arguments=[
            "monitor",
            "--deployment", settings.name,
            "--endpoint_name", settings.endpoint_name,
            "--captured_to", "s3://${ArtifactBucket}/captured",
            *settings.monitoring.flags(),
        ],
        inputs={},
        outputs=[files.DRIFT_OUTPUT],
    )  # fmt: skip
    return RequestStep("Monitor", StepTypeEnum.PROCESSING, request, describe_shape="DescribeProcessingJobResponse")
