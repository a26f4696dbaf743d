"""The shape `inference_components`: copies of the model on instances that several components may share.

An endpoint without a model of its own hosts the component <name>. With `serve: merged` that is the tuned model; with
`serve: adapter` it is the LoRA adapter on the base component <endpoint>-base, which other deployments' adapters share.
Components are updated copy by copy; with scale_to_zero nothing runs while nobody asks.
"""

import hashlib
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from pipeline_steps import s3
from pipeline_steps.contract import files, releases
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
from pipeline_steps.release.variant import tags

BUSY = ("Creating", "Updating", "Deleting")
ENDPOINT_BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
BASE_DIGEST_TAG = "base-model-digest"
HOST_MEMORY_MB = 1024  # a copy takes one accelerator; that, and not host memory, limits how many fit on an instance
ADAPTERS_AT_ONCE = 8  # on the GPU together; more wait in host memory
ADAPTERS_IN_HOST_MEMORY = 64


class Components:
    """The release of one package as the component `job.component_name`."""

    def __init__(self, aws: Aws, job: DeployJob, package: Package) -> None:
        self._aws, self._job, self._package = aws, job, package
        self.target = Target(job.endpoint_name, job.component_name)
        self._adapter_uri = publish_adapter(job, package) if job.serve == "adapter" else None
        content = {"model": model_request(job, package), "component": specification(job, "", self._adapter_uri)}
        self.name = releases.release_name(job.component_name, package.arn, content)
        self.previous: str | None = None
        self._before: dict[str, Any] | None = None  # the specification that was served before
        self._made: list[str] = []  # what this run created: endpoint, base, component

    @property
    def base_name(self) -> str:
        return f"{self._job.endpoint_name}-base"

    # ------------------------------------------------------------------ the way there

    def begin(self) -> Action:
        """Start what leads to the component serving this release. Waits while somebody else changes it.

        Raises StepError, and then leaves nothing of this release behind.
        """
        try:
            return self._begin()
        except StepError:
            component = self._component(self._job.component_name)
            if component is None:
                self._remove_what_was_made(time.monotonic() + ROLLBACK_MINUTES * 60)
            if component is None or not self._serves(component):
                delete_model(self._aws, self._job, self.name)
            raise

    def _begin(self) -> Action:
        deadline = time.monotonic() + self._job.max_update_minutes * 60
        self._ensure_endpoint(deadline)
        if self._job.serve == "adapter":
            self._ensure_base(deadline)
        while True:
            component = self._component(self._job.component_name)
            if component is None:
                self._make_model()
                if self._create_component(self._job.component_name, self._specification(), self._tags()):
                    return "created"
                continue
            status = component["InferenceComponentStatus"]
            seen = releases.Serving.of(self._tags_of(component))
            if status in BUSY:
                self._wait_a_little(deadline, f"{self.target} is {status}, by another release or by hand")
            elif status == "Failed" and seen is None:  # it never served: nothing to keep
                print(f"{self.target} is Failed ({component.get('FailureReason')}); made anew", flush=True)
                self._try(
                    self._aws.sagemaker.delete_inference_component, InferenceComponentName=self._job.component_name
                )
            elif self._serves(component):
                self.previous = seen.release if seen and seen.release != self.name else None
                return "unchanged" if seen and seen.release == self.name else "resumed"
            else:
                self.previous = seen.release if seen else None
                self._before = asked_again(component["Specification"])
                if self._update(component):
                    return "updated"

    def wait(self, visitor: Visitor) -> None:
        """Wait until the component is InService with this release. Raises ReleaseFailed with the reason if it is not."""
        started = time.monotonic()
        limit = (self._job.max_update_minutes + ROLLBACK_MINUTES) * 60
        while (seconds := time.monotonic() - started) < limit:
            component = self._component(self._job.component_name)
            if component is None:
                raise ReleaseFailed(f"{self.target} was deleted meanwhile", by_model=False)
            if component["InferenceComponentStatus"] not in BUSY:
                break
            report(
                "wait for component", int(seconds), int(limit), requests=visitor.asked, failed_requests=visitor.failed
            )
            time.sleep(POLL_SECONDS)
        else:
            raise ReleaseFailed(f"{self.target} was not InService after {limit / 60:g} minutes", by_model=False)
        why = component.get("FailureReason", "no reason given")
        if component["InferenceComponentStatus"] != "InService":
            raise ReleaseFailed(f"{self.target} is {component['InferenceComponentStatus']}: {why}")
        if not self._serves(component):
            rang = alarms.ringing(
                self._aws, [*releases.alarm_names(self._job.component_name), *self._job.quality_alarms]
            )
            words = [why, *(f"the alarm {name} rings: {reason}" for name, reason in rang.items())]
            raise ReleaseFailed(f"the update to {self.name} was rolled back by SageMaker: {'; '.join(words)}")

    def confirm(self) -> None:
        component = self._component(self._job.component_name)
        if component is None or not self._serves(component):
            raise ReleaseFailed(f"{self.target} does not serve {self.name}", by_model=False)
        self._aws.sagemaker.add_tags(ResourceArn=component["InferenceComponentArn"], Tags=self._tags())
        seen = releases.Serving.of(self._tags_of(component))
        if seen != releases.Serving(self._package.arn, self.name):
            raise StepError(f"the tags of {self.target} name {seen} after they were set to {self._package.arn}")

    def settle(self) -> None:
        """Autoscaling of what has copies (an adapter has none of its own), and no more earlier models than are kept."""
        scaling.scale_component(self._aws, self._job, self._with_copies)
        kept = {self.name, self.previous}
        pages = self._aws.sagemaker.get_paginator("list_models").paginate(
            NameContains=f"{self._job.component_name[:40]}-v", SortBy="CreationTime", SortOrder="Descending"
        )
        names = [model["ModelName"] for page in pages for model in page["Models"]]
        ours = [name for name in names if releases.is_release(name, self._job.component_name) and name not in kept]
        for name in ours[max(self._job.kept_releases - len(kept - {None}), 0) :]:
            delete_model(self._aws, self._job, name)
            print(f"removed the earlier model {name}", flush=True)

    # ------------------------------------------------------------------ the way back

    def take_back(self) -> str:
        deadline = time.monotonic() + (self._job.max_update_minutes + ROLLBACK_MINUTES) * 60
        while True:
            component = self._component(self._job.component_name)
            if component is not None and component["InferenceComponentStatus"] in BUSY:
                self._wait_a_little(deadline, f"{self.target} is {component['InferenceComponentStatus']}")
            elif component is not None and self._before is None:
                self._try(
                    self._aws.sagemaker.delete_inference_component, InferenceComponentName=self._job.component_name
                )
            elif component is not None and (
                component["InferenceComponentStatus"] == "Failed" or self._serves(component)
            ):
                self._try(
                    self._aws.sagemaker.update_inference_component,
                    InferenceComponentName=self._job.component_name,
                    Specification=self._before,
                )
            else:
                break
        if component is None:
            self._remove_what_was_made(deadline)
        if self._job.serve == "merged":
            delete_model(self._aws, self._job, self.name)
        if component is None:
            return "the component was removed, nothing of it is left behind"
        return f"{self.target} serves {self.previous or 'what it served'} as before"

    def _remove_what_was_made(self, deadline: float) -> None:
        sagemaker = self._aws.sagemaker
        alarms.delete(self._aws, self._job.component_name)
        if "base" in self._made:
            self._try(sagemaker.delete_inference_component, InferenceComponentName=self.base_name)
            while self._component(self.base_name) is not None:
                self._wait_a_little(deadline, f"{self.base_name} is being removed")
            delete_if_there(sagemaker.delete_model, ModelName=self._base_model_name())
        if "endpoint" in self._made:
            self._try(sagemaker.delete_endpoint, EndpointName=self._job.endpoint_name)
            while self._endpoint() is not None:
                self._wait_a_little(deadline, f"the endpoint {self._job.endpoint_name} is being removed")
            delete_if_there(sagemaker.delete_endpoint_config, EndpointConfigName=self._configuration_name())

    # ------------------------------------------------------------------ endpoint and base

    def _ensure_endpoint(self, deadline: float) -> None:
        """An endpoint that hosts components, InService. A shared one is left as whoever made it wants it."""
        sagemaker, name = self._aws.sagemaker, self._job.endpoint_name
        configuration = self._configuration_name()
        while True:
            endpoint = self._endpoint()
            if endpoint is None:
                self._make_configuration(configuration)
                if self._try(sagemaker.create_endpoint, EndpointName=name, EndpointConfigName=configuration):
                    self._made.append("endpoint")
                continue
            status = endpoint["EndpointStatus"]
            if status in ENDPOINT_BUSY:
                self._wait_a_little(deadline, f"the endpoint {name} is {status}")
            elif status != "InService":
                raise StepError(
                    f"the endpoint {name} is {status}: {endpoint.get('FailureReason', 'no reason given')}; "
                    "mend or delete it, and start the deploy pipeline again"
                )
            elif endpoint["EndpointConfigName"] == configuration or self._job.is_shared:
                return
            else:
                variant = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
                if "ModelName" in variant["ProductionVariants"][0]:
                    raise StepError(
                        f"the endpoint {name} serves a model of its own and release.shape is 'inference_components'; SageMaker "
                        "cannot change the one into the other: delete the endpoint, or give this deployment another name"
                    )
                if (
                    "FailureReason" in endpoint
                    and endpoint["EndpointConfigName"] != configuration
                    and "update" in self._made
                ):
                    raise ReleaseFailed(
                        f"the endpoint {name} was not changed to {configuration}: {endpoint['FailureReason']}",
                        by_model=False,
                    )
                self._make_configuration(configuration)
                if self._try(sagemaker.update_endpoint, EndpointName=name, EndpointConfigName=configuration):
                    self._made.append("update")

    def _ensure_base(self, deadline: float) -> None:
        """The base model as a component that takes adapters. It must be the very base that the adapter was trained on."""
        name, digest = self.base_name, self._package.base_model_digest
        model = self._base_model_name()
        while True:
            component = self._component(name)
            if component is None:
                create_once(
                    self._aws.sagemaker.create_model, "ModelName", model, base_model_request(self._job, self._package)
                )
                if self._create_component(name, computed(model), [{"Key": BASE_DIGEST_TAG, "Value": digest}]):
                    self._made.append("base")
                continue
            status = component["InferenceComponentStatus"]
            if status in BUSY:
                self._wait_a_little(deadline, f"the base component {name} is {status}")
                continue
            if status != "InService":
                raise ReleaseFailed(
                    f"the base component {name} is {status}: {component.get('FailureReason', 'no reason given')}",
                    by_model=False,
                )
            there = {tag["Key"]: tag["Value"] for tag in self._tags_of(component)}.get(BASE_DIGEST_TAG)
            if there != digest:
                raise StepError(
                    f"the base component {name} serves the base model {str(there)[:12]} and this adapter was trained on "
                    f"{digest[:12]}; an adapter fits its own base only: give this deployment an endpoint of its own (release.endpoint)"
                )
            return

    # ------------------------------------------------------------------ parts

    @property
    def _with_copies(self) -> str:
        return self.base_name if self._job.serve == "adapter" else self._job.component_name

    def _endpoint(self) -> dict[str, Any] | None:
        return found(self._aws.sagemaker.describe_endpoint, EndpointName=self._job.endpoint_name)

    def _component(self, name: str) -> dict[str, Any] | None:
        return found(self._aws.sagemaker.describe_inference_component, InferenceComponentName=name)

    def _tags_of(self, component: dict[str, Any]) -> list[dict[str, str]]:
        return list(self._aws.sagemaker.list_tags(ResourceArn=component["InferenceComponentArn"])["Tags"])

    def _tags(self) -> list[dict[str, str]]:
        return tags(self._package, self.name)

    def _specification(self) -> dict[str, Any]:
        return specification(self._job, self.name, self._adapter_uri)

    def _serves(self, component: dict[str, Any]) -> bool:
        now = component["Specification"]
        if self._adapter_uri is not None:
            return bool(now.get("Container", {}).get("ArtifactUrl") == self._adapter_uri)
        return bool(now.get("ModelName") == self.name)

    def _make_model(self) -> None:
        if self._job.serve == "merged":
            create_once(
                self._aws.sagemaker.create_model, "ModelName", self.name, model_request(self._job, self._package)
            )

    def _create_component(self, name: str, wanted: dict[str, Any], marks: list[dict[str, str]]) -> bool:
        request: dict[str, Any] = {
            "InferenceComponentName": name,
            "EndpointName": self._job.endpoint_name,
            "Specification": wanted,
            # What a new component is must not be said before it was seen: its release tag comes later.
            "Tags": [tag for tag in marks if tag["Key"] != releases.RELEASE_TAG],
        }
        if "BaseInferenceComponentName" not in wanted:
            request |= {
                "VariantName": releases.VARIANT,
                "RuntimeConfig": {"CopyCount": 1},
            }  # none is refused at creation
        return self._try(self._aws.sagemaker.create_inference_component, **request)

    def _update(self, component: dict[str, Any]) -> bool:
        self._make_model()
        request: dict[str, Any] = {
            "InferenceComponentName": self._job.component_name,
            "Specification": self._specification(),
        }
        if self._job.serve == "merged":
            alarms.put(
                self._aws, self._job, self._job.component_name, {"InferenceComponentName": self._job.component_name}
            )
            request["DeploymentConfig"] = rolling_update(self._job) | alarms.rollback(
                self._aws, self._job, self._job.component_name
            )
            if not component["RuntimeConfig"]["CurrentCopyCount"]:  # asleep: nothing could be asked
                request["RuntimeConfig"] = {"CopyCount": 1}
        return self._try(self._aws.sagemaker.update_inference_component, **request)

    def _try(self, call: Any, **request: Any) -> bool:
        """Ask for a change; False if somebody else changes the same thing at this moment."""
        try:
            call(**request)
        except ClientError as error:
            if is_busy(error) or is_taken(error):
                return False
            raise StepError(f"SageMaker refuses to change {self.target}: {error}") from error
        return True

    def _configuration_name(self) -> str:
        return f"{self._job.endpoint_name[:40]}-shared-{_digest(configuration_request(self._job))}"

    def _make_configuration(self, name: str) -> None:
        create_once(
            self._aws.sagemaker.create_endpoint_config, "EndpointConfigName", name, configuration_request(self._job)
        )

    def _base_model_name(self) -> str:
        return f"{self.base_name[:40]}-{_digest(base_model_request(self._job, self._package))}"

    def _wait_a_little(self, deadline: float, what: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise StepError(f"{what}, and stayed so; when it is InService again, start the deploy pipeline again")
        print(f"waiting up to {left / 60:.0f} minutes: {what}", flush=True)
        time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------- requests, as SageMaker receives them


def configuration_request(job: DeployJob) -> dict[str, Any]:
    variant: dict[str, Any] = {
        "VariantName": releases.VARIANT,
        "InstanceType": job.instance_type,
        "InitialInstanceCount": job.instance_count,
        "ModelDataDownloadTimeoutInSeconds": MODEL_START_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": MODEL_START_SECONDS,
        "InferenceAmiVersion": job.inference_ami_version,
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        "ManagedInstanceScaling": {
            "Status": "ENABLED",
            "MinInstanceCount": 0 if job.scale_to_zero else job.instance_count,
            "MaxInstanceCount": job.max_instance_count,
        },
    }
    return {
        "ExecutionRoleArn": job.role_arn,
        "EnableNetworkIsolation": True,
        **vpc_config(job),
        **volume_key(job),
        "ProductionVariants": [variant],
    }


def model_request(job: DeployJob, package: Package) -> dict[str, Any]:
    """The tuned model. Its isolation is the endpoint configuration's."""
    return {"ExecutionRoleArn": job.role_arn, "Containers": [package.served_container]}


def base_model_request(job: DeployJob, package: Package) -> dict[str, Any]:
    """The base model in the container of the package, made ready for adapters."""
    lora = {
        "OPTION_ENABLE_LORA": "true",
        "OPTION_MAX_LORAS": str(ADAPTERS_AT_ONCE),
        "OPTION_MAX_CPU_LORAS": str(ADAPTERS_IN_HOST_MEMORY),
        "OPTION_MAX_LORA_RANK": str(job.max_lora_rank),
    }
    source = {"S3Uri": job.base_model_uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {
        "Image": package.container["Image"],
        "ModelDataSource": {"S3DataSource": source},
        "Environment": package.container.get("Environment", {}) | lora,
    }
    return {"ExecutionRoleArn": job.role_arn, "Containers": [container]}


def specification(job: DeployJob, model_name: str, adapter_uri: str | None) -> dict[str, Any]:
    """What the component serves: a model with compute of its own, or an adapter on the base."""
    if adapter_uri is None:
        return computed(model_name)
    return {
        "BaseInferenceComponentName": f"{job.endpoint_name}-base",
        "Container": {"ArtifactUrl": adapter_uri},
    }


def computed(model_name: str) -> dict[str, Any]:
    return {
        "ModelName": model_name,
        "StartupParameters": {
            "ModelDataDownloadTimeoutInSeconds": MODEL_START_SECONDS,
            "ContainerStartupHealthCheckTimeoutInSeconds": MODEL_START_SECONDS,
        },
        "ComputeResourceRequirements": {
            "NumberOfAcceleratorDevicesRequired": 1.0,
            "MinMemoryRequiredInMb": HOST_MEMORY_MB,
        },
    }


def asked_again(served: dict[str, Any]) -> dict[str, Any]:
    """A described specification in the form of a request."""
    wanted = {key: value for key, value in served.items() if key != "Container"}
    if url := served.get("Container", {}).get("ArtifactUrl"):
        wanted["Container"] = {"ArtifactUrl": url}
    return wanted


def rolling_update(job: DeployJob) -> dict[str, Any]:
    """Half of the copies at a time at most, and as fast back as it can."""
    return {
        "RollingUpdatePolicy": {
            "MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
            "WaitIntervalInSeconds": job.canary_wait_seconds,
            "MaximumExecutionTimeoutInSeconds": job.max_update_minutes * 60,
            "RollbackMaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 100},
        }
    }


def publish_adapter(job: DeployJob, package: Package) -> str:
    """The package's adapter as the .tar.gz that an adapter component wants, in S3 under the digest of its content."""
    prefix = f"{package.model_uri}{files.ADAPTER_FOLDER}/"
    found_there = sorted(one.uri for one in s3.objects_below(prefix))
    if not found_there:
        raise StepError(
            f"{package.arn} has no adapter below {prefix}: it was tuned in full (PeftType None); "
            "serve it merged (release.serve), or train with peft_type lora"
        )
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "adapter.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for uri in found_there:
                path = Path(scratch) / "file"
                s3.download(uri, path)
                content = path.read_bytes()
                entry = tarfile.TarInfo(uri.removeprefix(prefix))  # without times and owners: the same bytes each time
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        uri = f"{job.adapters_uri}/{package.model_digest}/adapter.tar.gz"
        if not s3.exists(uri):
            s3.upload(archive, uri)
    return uri


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
