"""Autoscaling of what serves, by requests for each instance (or copy) and minute; with components down to none."""

from typing import Any

from pipeline_steps.contract import releases
from pipeline_steps.release.job import Aws, DeployJob, delete_if_there

WAKE_ALARM = "wake"
SCALE_OUT_SECONDS = 60
SCALE_IN_SECONDS = 300  # a model takes minutes to start: do not let it go for a short pause
COOLDOWN = {"ScaleOutCooldown": SCALE_OUT_SECONDS, "ScaleInCooldown": SCALE_IN_SECONDS}


def target_of_variant(endpoint: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{releases.VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def target_of_component(component: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{component}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }


def scale_variant(aws: Aws, job: DeployJob) -> None:
    """Between instance_count and max_instance_count, or not at all."""
    target = target_of_variant(job.endpoint_name)
    if job.max_instance_count is None:
        stop(aws, target)
        return
    aws.autoscaling.register_scalable_target(
        **target, MinCapacity=job.instance_count, MaxCapacity=job.max_instance_count
    )
    aws.autoscaling.put_scaling_policy(**tracking(job, target, "SageMakerVariantInvocationsPerInstance"))


def scale_component(aws: Aws, job: DeployJob, component: str) -> None:
    """Copies of a component, and with them instances; the first request after none wakes it through an alarm."""
    target = target_of_component(component)
    least = 0 if job.scale_to_zero else job.instance_count
    aws.autoscaling.register_scalable_target(**target, MinCapacity=least, MaxCapacity=job.max_instance_count)
    aws.autoscaling.put_scaling_policy(**tracking(job, target, "SageMakerInferenceComponentInvocationsPerCopy"))
    if not job.scale_to_zero:
        return
    # Tracking divides by the number of copies, so it cannot lead away from zero; a step on a failed request does.
    waking = aws.autoscaling.put_scaling_policy(
        **target,
        PolicyName=f"{component}-{WAKE_ALARM}",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Maximum",
            "Cooldown": SCALE_OUT_SECONDS,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
        },
    )
    aws.cloudwatch.put_metric_alarm(
        AlarmName=f"{component}-{WAKE_ALARM}",
        AlarmDescription=f"{component} was asked while it had no copy; starts one",
        AlarmActions=[waking["PolicyARN"]],
        Namespace="AWS/SageMaker",
        MetricName="NoCapacityInvocationFailures",
        Dimensions=[{"Name": "InferenceComponentName", "Value": component}],
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        DatapointsToAlarm=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
    )


def tracking(job: DeployJob, target: dict[str, str], metric: str) -> dict[str, Any]:
    return {
        **target,
        "PolicyName": f"{target['ResourceId'].split('/')[1]}-requests",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": job.target_invocations_per_minute,
            "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
            **COOLDOWN,
        },
    }


def stop(aws: Aws, target: dict[str, str]) -> None:
    """End the autoscaling of a target, if there is one. Its policies go with it."""
    delete_if_there(aws.autoscaling.deregister_scalable_target, **target)
