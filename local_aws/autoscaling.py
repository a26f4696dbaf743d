"""Application Auto Scaling that scales: moto keeps targets and policies, a thread here follows the metrics.

Target tracking as AWS does it: out when the metric was above the target in each of 3 minutes, in when it was below nine
tenths of it in each of 15 minutes; cooldowns are kept. Step scaling acts when an alarm names the policy as its action.
All minutes and cooldowns are divided by the time factor of local AWS.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from moto.applicationautoscaling import models, responses
from moto.applicationautoscaling.models import ApplicationAutoscalingBackend, applicationautoscaling_backends

from local_aws import alarms
from local_aws.metrics import NAMESPACE, metrics, statistic
from local_aws.sagemaker_api import ServiceError
from local_aws.settings import Settings

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
MINUTES_OUT, MINUTES_IN = 3, 15
SLACK = 0.9
DEFAULT_COOLDOWN_SECONDS = 300
VARIANT, COMPONENT = "sagemaker:variant:DesiredInstanceCount", "sagemaker:inference-component:DesiredCopyCount"
Call = Callable[[str, dict[str, Any]], dict[str, Any]]


def install(settings: Settings, call: Call) -> None:
    """Follow policies of SageMaker's targets from now on; `call` answers SageMaker's operations."""
    known = [(dimension.name, dimension.value) for dimension in models.ScalableDimensionValueSet]
    with_components = Enum("ScalableDimensionValueSet", [*known, ("INFERENCE_COMPONENT", COMPONENT)])  # type: ignore[misc]
    models.ScalableDimensionValueSet = responses.ScalableDimensionValueSet = with_components  # moto lacks that one
    deregister = ApplicationAutoscalingBackend.deregister_scalable_target

    def deregister_with_policies(self: Any, namespace: str, r_id: str, dimension: str) -> None:
        deregister(self, namespace, r_id, dimension)
        for key, policy in list(self.policies.items()):
            if (policy.resource_id, policy.scalable_dimension) == (r_id, dimension):
                del self.policies[key]

    ApplicationAutoscalingBackend.deregister_scalable_target = deregister_with_policies
    scaler = Autoscaling(settings, call)
    alarms.actions["autoscaling"] = scaler.step
    threading.Thread(target=scaler.run, name="autoscaling", daemon=True).start()


class Autoscaling:
    """Changes instance and copy counts as the policies say."""

    def __init__(self, settings: Settings, call: Call) -> None:
        self._settings, self._call = settings, call
        self._scaled_out: dict[str, float] = {}  # resource -> when it last got more
        self._scaled: dict[str, float] = {}  # resource -> when it last got more or fewer
        self._lock = threading.Lock()

    @property
    def _backend(self) -> Any:
        return applicationautoscaling_backends[self._settings.account][self._settings.region]

    def run(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            for policy in list(self._backend.policies.values()):
                if policy.service_namespace == "sagemaker" and policy.policy_type == "TargetTrackingScaling":
                    try:
                        self._track(policy)
                    except ServiceError as error:  # the resource is gone, or busy: the next look tries again
                        log.debug("policy %s: %s", policy.policy_name, error)
                    except Exception:
                        log.exception("policy %s", policy.policy_name)

    def step(self, action: str, alarm: Any) -> None:
        """An alarm's action that names a step scaling policy."""
        policy = next((one for one in self._backend.policies.values() if one.policy_arn == action), None)
        if policy is None or policy.step_scaling_policy_configuration is None:
            log.error("alarm %s: there is no step scaling policy %s", alarm.name, action)
            return
        configuration = policy.step_scaling_policy_configuration
        adjustments = configuration.get("StepAdjustments", [])
        # The value that tripped the alarm is not kept; the steps of a threshold that was just crossed begin at 0.
        chosen = next((one for one in adjustments if one.get("MetricIntervalLowerBound", 0.0) in (None, 0, 0.0)), None)
        if chosen is None:
            log.error("policy %s has no step that begins at the alarm's threshold", policy.policy_name)
            return
        count, amount = self._count(policy), int(chosen["ScalingAdjustment"])
        kind = configuration.get("AdjustmentType", "ChangeInCapacity")
        wanted = {
            "ChangeInCapacity": count + amount,
            "ExactCapacity": amount,
            "PercentChangeInCapacity": count + math.ceil(count * amount / 100),
        }[kind]
        self._scale(policy, count, wanted, float(configuration.get("Cooldown", DEFAULT_COOLDOWN_SECONDS)))

    def _track(self, policy: Any) -> None:
        configuration = policy.target_tracking_scaling_policy_configuration
        count = self._count(policy)
        if not count:
            return  # nothing divides by no copies; a step scaling policy wakes them
        per_minute = self._invocations(policy, count)
        target = float(configuration["TargetValue"])
        recent = per_minute[-MINUTES_OUT:]
        if all(value > target for value in recent):
            wanted = math.ceil(count * max(recent) / target)
            self._scale(policy, count, wanted, float(configuration.get("ScaleOutCooldown", DEFAULT_COOLDOWN_SECONDS)))
        elif not configuration.get("DisableScaleIn", False) and all(value < SLACK * target for value in per_minute):
            wanted = math.ceil(count * max(per_minute) / target)
            self._scale(policy, count, wanted, float(configuration.get("ScaleInCooldown", DEFAULT_COOLDOWN_SECONDS)))

    def _invocations(self, policy: Any, count: int) -> list[float]:
        """Requests for each instance or copy in each of the last minutes, oldest first."""
        minute, now = 60 / self._settings.time_factor, time.time()
        edges = [now - minute * back for back in range(MINUTES_IN)][::-1]
        parts = resource(policy)
        dimensions = (
            {"InferenceComponentName": parts[0]}
            if policy.scalable_dimension == COMPONENT
            else {"EndpointName": parts[0], "VariantName": parts[1]}
        )
        points = metrics.between(NAMESPACE, "Invocations", dimensions, edges[0] - minute, edges)
        return [(statistic(part, "Sum") or 0.0) / count for part in points]

    def _count(self, policy: Any) -> int:
        parts = resource(policy)
        if policy.scalable_dimension == COMPONENT:
            described = self._call("DescribeInferenceComponent", {"InferenceComponentName": parts[0]})
            return int(described["RuntimeConfig"]["DesiredCopyCount"])
        variants = self._call("DescribeEndpoint", {"EndpointName": parts[0]}).get("ProductionVariants", [])
        return next((int(one["DesiredInstanceCount"]) for one in variants if one["VariantName"] == parts[1]), 0)

    def _scale(self, policy: Any, count: int, wanted: int, cooldown_seconds: float) -> None:
        target = self._backend.targets.get(policy.scalable_dimension, {}).get(policy.resource_id)
        if target is None:
            return
        wanted = min(max(wanted, int(target.min_capacity)), int(target.max_capacity))
        with self._lock:
            if wanted == count:
                return
            if wanted > count:  # a scale-in never delays the next scale-out
                since, wait = self._scaled_out.get(policy.resource_id, 0.0), cooldown_seconds
            else:  # a fresh target is not scaled in before there are minutes to look at
                since = max(self._scaled.get(policy.resource_id, 0.0), float(target.creation_time))
                wait = max(cooldown_seconds, MINUTES_IN * 60)
            if time.time() - since < wait / self._settings.time_factor:
                return
            parts = resource(policy)
            if policy.scalable_dimension == COMPONENT:
                request: dict[str, Any] = {
                    "InferenceComponentName": parts[0],
                    "DesiredRuntimeConfig": {"CopyCount": wanted},
                }
                self._call("UpdateInferenceComponentRuntimeConfig", request)
            else:
                change = {"VariantName": parts[1], "DesiredInstanceCount": wanted}
                request = {"EndpointName": parts[0], "DesiredWeightsAndCapacities": [change]}
                self._call("UpdateEndpointWeightsAndCapacities", request)
            self._scaled[policy.resource_id] = time.time()
            if wanted > count:
                self._scaled_out[policy.resource_id] = self._scaled[policy.resource_id]
        log.info("%s: %s scales from %d to %d", policy.policy_name, policy.resource_id, count, wanted)


def resource(policy: Any) -> list[str]:
    """[endpoint, variant] or [component] of endpoint/E/variant/V or inference-component/C."""
    return str(policy.resource_id).split("/")[1::2]
