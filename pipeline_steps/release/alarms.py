"""The CloudWatch alarms that take a release back: SageMaker watches them while it moves traffic."""

from typing import Any

from pipeline_steps.contract import releases
from pipeline_steps.release.job import Aws, DeployJob

Dimensions = dict[str, str]
MICROSECONDS = 1_000_000
PERIOD_SECONDS = 60  # AWS publishes an endpoint's metrics once a minute


def put(aws: Aws, job: DeployJob, watched: str, dimensions: Dimensions) -> None:
    """Create or renew the two alarms of `watched` (a release, or a component) on the metrics with these dimensions."""
    for request in requests(job, watched, dimensions):
        aws.cloudwatch.put_metric_alarm(**request)


def requests(job: DeployJob, watched: str, dimensions: Dimensions) -> list[dict[str, Any]]:
    """PutMetricAlarm for both. No traffic rings neither: what is missing is not breaching."""
    errors, latency = releases.alarm_names(watched)
    shared = {
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
        "Period": PERIOD_SECONDS,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
    }
    return [
        {
            **shared,
            "AlarmName": errors,
            "AlarmDescription": f"More than {job.max_error_share:.0%} of the answers of {watched} are 5xx; its release is taken back",
            "MetricName": "Invocation5XXErrors",
            "Statistic": "Average",  # of 0 and 1 for each request: the share of failed ones
            "EvaluationPeriods": 1,
            "Threshold": job.max_error_share,
        },
        {
            **shared,
            "AlarmName": latency,
            "AlarmDescription": f"{watched} answers in more than {job.max_p95_latency_seconds:g} s (p95); its release is taken back",
            "MetricName": "ModelLatency",
            "ExtendedStatistic": "p95",
            "EvaluationPeriods": 2,  # the first requests warm the model up
            "Threshold": job.max_p95_latency_seconds * MICROSECONDS,
        },
    ]


def rollback(aws: Aws, job: DeployJob, watched: str) -> dict[str, Any]:
    """AutoRollbackConfiguration, in a dictionary of its own, with every alarm that does not ring already.

    One that rings before the update would take back any release, also the one that mends what it rings for.
    """
    names = [*releases.alarm_names(watched), *job.quality_alarms]
    already = ringing(aws, names)
    for name, reason in already.items():
        print(f"the alarm {name} rings already, so it cannot judge this release and is left out: {reason}", flush=True)
    judging = [{"AlarmName": name} for name in names if name not in already]
    return {"AutoRollbackConfiguration": {"Alarms": judging}} if judging else {}


def ringing(aws: Aws, names: list[str]) -> dict[str, str]:
    """Those of the alarms that ring now, with the reason that CloudWatch gives."""
    alarms = aws.cloudwatch.describe_alarms(AlarmNames=names)["MetricAlarms"]
    return {
        alarm["AlarmName"]: alarm.get("StateReason", "no reason given")
        for alarm in alarms
        if alarm["StateValue"] == "ALARM"
    }


def delete(aws: Aws, watched: str) -> None:
    aws.cloudwatch.delete_alarms(AlarmNames=releases.alarm_names(watched))  # those that are not there are no error
