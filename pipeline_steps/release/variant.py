"""The shape `variant`: an endpoint with instances of its own, updated blue/green with a canary.

UpdateEndpoint starts new instances beside the old ones, gives the canary its traffic, then all of it, and goes back by
itself when an alarm rings or an instance does not come up. It says InService in both cases.
"""

import time
from typing import Any

from botocore.exceptions import ClientError

from pipeline_steps.contract import releases
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report
from pipeline_steps.release import alarms, scaling
from pipeline_steps.release.job import (
    MODEL_START_SECONDS,
    POLL_SECONDS,
    ROLLBACK_MINUTES,
    Action,
    Aws,
    DeployJob,
    ReleaseFailed,
    create_once,
    delete_if_there,
    found,
    is_busy,
    is_taken,
    volume_key,
    vpc_config,
)
from pipeline_steps.release.package import Package, delete_model
from pipeline_steps.release.requests import Target, Visitor

BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


class Variant:
    """The release of one package to one endpoint. `name` is that of its model, its configuration and its alarms."""

    def __init__(self, aws: Aws, job: DeployJob, package: Package) -> None:
        self._aws, self._job, self._package = aws, job, package
        self.target = Target(job.endpoint_name, None)
        content = {"model": model_request(job, package), "configuration": configuration_request(job, "")}
        self.name = releases.release_name(job.endpoint_name, package.arn, content)
        self.previous: str | None = None  # the release that was seen to serve before

    # ------------------------------------------------------------------ the way there

    def begin(self) -> Action:
        """Start what leads to the endpoint serving this release. Waits while somebody else changes the endpoint.

        Raises StepError, and then leaves nothing of this release behind.
        """
        try:
            return self._begin()
        except StepError:
            endpoint = self._endpoint() or {}
            coming = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
            if self.name not in (endpoint.get("EndpointConfigName"), coming):
                self._delete_parts(self.name)
            raise

    def _begin(self) -> Action:
        deadline = time.monotonic() + self._job.max_update_minutes * 60
        while True:
            endpoint = self._endpoint()
            if endpoint is None:
                self._make_parts()
                if self._try(
                    self._aws.sagemaker.create_endpoint,
                    EndpointName=self._job.endpoint_name,
                    EndpointConfigName=self.name,
                ):
                    return "created"
                continue
            status, serving = endpoint["EndpointStatus"], endpoint["EndpointConfigName"]
            seen = releases.Serving.of(self._tags(endpoint))
            self.previous = seen.release if seen and seen.release != self.name else None
            coming = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
            if status == "Failed":  # it serves nobody, and DeleteEndpoint is all that SageMaker allows
                print(f"the endpoint {self.target} is Failed ({endpoint.get('FailureReason')}); made anew", flush=True)
                self._delete_endpoint()
            elif status in BUSY:
                if status == "Creating" and serving == self.name:
                    return "joined"
                if status == "Updating" and coming == self.name:
                    self.previous = serving
                    return "joined"
                self._wait_a_little(deadline, f"is {status}" + (f" (to {coming})" if coming else ""))
            elif status != "InService":
                raise StepError(
                    f"the endpoint {self.target} is {status}: {endpoint.get('FailureReason', 'no reason given')}; "
                    "mend or delete it, and start the deploy pipeline again"
                )
            elif serving == self.name:
                return "unchanged" if seen and seen.release == self.name else "resumed"
            elif self._update(serving):
                self.previous = serving
                return "updated"

    def wait(self, visitor: Visitor) -> None:
        """Wait until the endpoint is InService with this release. Raises ReleaseFailed with the reason if it is not."""
        started = time.monotonic()
        limit = (self._job.max_update_minutes + ROLLBACK_MINUTES) * 60
        stage = ""
        while (seconds := time.monotonic() - started) < limit:
            endpoint = self._endpoint()
            if endpoint is None:
                raise ReleaseFailed(f"the endpoint {self.target} was deleted meanwhile", by_model=False)
            status = endpoint["EndpointStatus"]
            if status not in BUSY:
                break
            if stage != (stage := _stage(endpoint)):
                print(f"{self.target}: {stage}", flush=True)
            report(
                "wait for endpoint", int(seconds), int(limit), requests=visitor.asked, failed_requests=visitor.failed
            )
            time.sleep(POLL_SECONDS)
        else:
            raise ReleaseFailed(
                f"the endpoint {self.target} was not InService after {limit / 60:g} minutes", by_model=False
            )
        why = endpoint.get("FailureReason", "no reason given")
        if status != "InService":
            raise ReleaseFailed(f"the endpoint {self.target} is {status}: {why}")
        if endpoint["EndpointConfigName"] != self.name:
            rang = alarms.ringing(self._aws, [*releases.alarm_names(self.name), *self._job.quality_alarms])
            words = [why, *(f"the alarm {name} rings: {reason}" for name, reason in rang.items())]
            if visitor.failed:
                words.append(
                    f"{visitor.failed} of our {visitor.asked} requests failed, the last with: {visitor.last_failure}"
                )
            raise ReleaseFailed(f"the update to {self.name} was rolled back by SageMaker: {'; '.join(words)}")

    def confirm(self) -> None:
        """Write on the endpoint what it was seen to serve, and read that it says and serves so."""
        endpoint = self._endpoint()
        if endpoint is None or endpoint["EndpointConfigName"] != self.name:
            serves = endpoint["EndpointConfigName"] if endpoint else "nothing"
            raise ReleaseFailed(f"the endpoint {self.target} serves {serves} and not {self.name}", by_model=False)
        self._aws.sagemaker.add_tags(ResourceArn=endpoint["EndpointArn"], Tags=tags(self._package, self.name))
        seen = releases.Serving.of(self._tags(endpoint))
        if seen != releases.Serving(self._package.arn, self.name):
            raise StepError(
                f"the tags of the endpoint {self.target} name {seen} after they were set to {self._package.arn}"
            )

    def settle(self) -> None:
        """What follows a good release: autoscaling, and no more earlier releases than are kept."""
        scaling.scale_variant(self._aws, self._job)
        kept = {self.name, self.previous}
        pages = self._aws.sagemaker.get_paginator("list_endpoint_configs").paginate(
            NameContains=f"{self._job.endpoint_name[:40]}-v", SortBy="CreationTime", SortOrder="Descending"
        )
        names = [one["EndpointConfigName"] for page in pages for one in page["EndpointConfigs"]]
        ours = [name for name in names if releases.is_release(name, self._job.endpoint_name)]
        for name in ours:
            if name != self.name:
                alarms.delete(self._aws, name)
        for name in [name for name in ours if name not in kept][max(self._job.kept_releases - len(kept - {None}), 0) :]:
            self._delete_parts(name)
            print(f"removed the earlier release {name}", flush=True)

    # ------------------------------------------------------------------ the way back

    def take_back(self) -> str:
        """Bring back what was there before; says what serves now. Raises StepError if it cannot."""
        deadline = time.monotonic() + (self._job.max_update_minutes + ROLLBACK_MINUTES) * 60
        while True:
            endpoint = self._endpoint()
            if endpoint is None:
                self._delete_parts(self.name)
                return "the endpoint was removed, nothing is left behind"
            if endpoint["EndpointStatus"] in BUSY:
                self._wait_a_little(deadline, f"is {endpoint['EndpointStatus']}")
            elif endpoint["EndpointStatus"] == "Failed" or endpoint["EndpointConfigName"] == self.name:
                if (
                    self.previous is None
                    or found(self._describe_configuration, EndpointConfigName=self.previous) is None
                ):
                    self._delete_endpoint()
                else:  # all traffic at once, and whatever rings: it served well before
                    self._try(
                        self._aws.sagemaker.update_endpoint,
                        EndpointName=self._job.endpoint_name,
                        EndpointConfigName=self.previous,
                    )
            else:
                self._delete_parts(self.name)
                scaling.scale_variant(self._aws, self._job)
                return f"the endpoint {self.target} serves {endpoint['EndpointConfigName']} as before"

    # ------------------------------------------------------------------ parts

    def _endpoint(self) -> dict[str, Any] | None:
        return found(self._aws.sagemaker.describe_endpoint, EndpointName=self._job.endpoint_name)

    @property
    def _describe_configuration(self) -> Any:
        return self._aws.sagemaker.describe_endpoint_config

    def _tags(self, endpoint: dict[str, Any]) -> list[dict[str, str]]:
        answer = self._aws.sagemaker.list_tags(ResourceArn=endpoint["EndpointArn"])
        return list(answer["Tags"])

    def _make_parts(self) -> None:
        sagemaker = self._aws.sagemaker
        create_once(sagemaker.create_model, "ModelName", self.name, model_request(self._job, self._package))
        create_once(
            sagemaker.create_endpoint_config,
            "EndpointConfigName",
            self.name,
            configuration_request(self._job, self.name) | {"Tags": tags(self._package, self.name)},
        )

    def _update(self, serving: str) -> bool:
        """Start the update; False if somebody else was faster."""
        self._make_parts()
        old = self._describe_configuration(EndpointConfigName=serving)["ProductionVariants"][0]
        if "ModelName" not in old:
            raise StepError(
                f"the endpoint {self.target} hosts inference components and release.shape is 'variant'; SageMaker cannot change "
                "the one into the other: delete the endpoint, or give this deployment another name"
            )
        if (
            old.get("InstanceType") != self._job.instance_type
        ):  # SageMaker refuses it while autoscaling holds the old type
            scaling.stop(self._aws, scaling.target_of_variant(self._job.endpoint_name))
        alarms.put(self._aws, self._job, self.name, fleet(self._job, self.name))
        request = update_request(self._job, self.name)
        request["DeploymentConfig"] |= alarms.rollback(self._aws, self._job, self.name)
        return self._try(self._aws.sagemaker.update_endpoint, **request)

    def _try(self, call: Any, **request: Any) -> bool:
        """Ask for a change; False if the endpoint is being changed by somebody else at this moment."""
        try:
            call(**request)
        except ClientError as error:
            if is_busy(error) or is_taken(error):
                return False
            raise StepError(f"SageMaker refuses to change the endpoint {self.target}: {error}") from error
        return True

    def _delete_endpoint(self) -> None:
        scaling.stop(self._aws, scaling.target_of_variant(self._job.endpoint_name))
        self._try(self._aws.sagemaker.delete_endpoint, EndpointName=self._job.endpoint_name)

    def _delete_parts(self, name: str) -> None:
        alarms.delete(self._aws, name)
        delete_if_there(self._aws.sagemaker.delete_endpoint_config, EndpointConfigName=name)
        delete_model(self._aws, self._job, name)

    def _wait_a_little(self, deadline: float, what: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise StepError(
                f"the endpoint {self.target} {what}, by another release or by hand, and stayed so; "
                "when it is InService again, start the deploy pipeline again"
            )
        print(f"waiting up to {left / 60:.0f} minutes: the endpoint {self.target} {what}", flush=True)
        time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------- requests, as SageMaker receives them


def tags(package: Package, release: str) -> list[dict[str, str]]:
    values = {
        releases.PACKAGE_TAG: package.arn,
        releases.RELEASE_TAG: release,
        releases.MODEL_DIGEST_TAG: package.model_digest,
    }
    return [{"Key": key, "Value": value} for key, value in values.items()]


def fleet(job: DeployJob, release: str) -> dict[str, str]:
    """Dimensions of the new instances' metrics alone: the old ones' errors must not judge the new model."""
    return {"EndpointName": job.endpoint_name, "VariantName": releases.VARIANT, "EndpointConfigName": release}


def model_request(job: DeployJob, package: Package) -> dict[str, Any]:
    return {
        "ExecutionRoleArn": job.role_arn,
        "Containers": [package.served_container],
        "EnableNetworkIsolation": True,
        **vpc_config(job),
    }


def configuration_request(job: DeployJob, model_name: str) -> dict[str, Any]:
    variant: dict[str, Any] = {
        "VariantName": releases.VARIANT,
        "ModelName": model_name,
        "InstanceType": job.instance_type,
        "InitialInstanceCount": job.instance_count,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": MODEL_START_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": MODEL_START_SECONDS,
        "InferenceAmiVersion": job.inference_ami_version,
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},  # answers differ a lot in length
    }
    request: dict[str, Any] = {"ProductionVariants": [variant], **volume_key(job)}
    if job.captured_percent:
        request["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": job.captured_percent,
            "DestinationS3Uri": job.captured_to,
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        }
    return request


def update_request(job: DeployJob, release: str) -> dict[str, Any]:
    """UpdateEndpoint without its alarms."""
    routing: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": job.canary_wait_seconds}
    if job.canary_instances:
        canary = {"Type": "INSTANCE_COUNT", "Value": job.canary_instances}
        routing |= {"Type": "CANARY", "CanarySize": canary}
    request: dict[str, Any] = {
        "EndpointName": job.endpoint_name,
        "EndpointConfigName": release,
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": routing,
                "TerminationWaitInSeconds": job.bake_seconds,
                "MaximumExecutionTimeoutInSeconds": job.max_update_minutes * 60,
            }
        },
    }
    if job.max_instance_count is not None:  # keep the instances that autoscaling has added
        request["RetainAllVariantProperties"] = True
    return request


def _stage(endpoint: dict[str, Any]) -> str:
    """The endpoint's status with what its variants are at (ActivatingTraffic, Baking ...)."""
    pending = endpoint.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
    at = {
        one["Status"]
        for variant in [*endpoint.get("ProductionVariants", []), *pending]
        for one in variant.get("VariantStatus", [])
    }
    return str(endpoint["EndpointStatus"]) + (f", {', '.join(sorted(at))}" if at else "")
