"""SageMaker on this machine: its operations, installed over moto's answers so that jobs, pipelines and endpoints really run."""

import shutil
from collections.abc import Callable
from typing import Any

import botocore
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores
from moto.sagemaker.exceptions import SagemakerClientError
from moto.sagemaker.responses import SageMakerResponse

from local_aws import alarms, authorization, autoscaling, metrics
from local_aws.data_capture import DataCapture
from local_aws.endpoints import Endpoints
from local_aws.hubs import Hubs
from local_aws.inference_components import InferenceComponents
from local_aws.jobs import Jobs
from local_aws.object_store import ObjectStore
from local_aws.pipelines import Pipelines
from local_aws.registry import Registry
from local_aws.sagemaker_api import (
    Request,
    Response,
    Service,
    ServiceError,
    UnsupportedOperation,
    json_body,
    service_model,
    validate,
)
from local_aws.settings import Settings


class SageMaker:
    """All rooms of SageMaker, sharing one state. `operations` maps an operation's name to what answers it."""

    def __init__(self, settings: Settings) -> None:
        self.service = Service(settings)
        store = ObjectStore(settings)
        registry = self.registry = Registry(self.service)
        self.jobs = Jobs(self.service, store)
        self.endpoints = Endpoints(self.service, store, registry)
        self.pipelines = Pipelines(self.service, store, self.jobs)
        self.components = InferenceComponents(self.service, store, registry, self.endpoints)
        rooms = (registry, self.jobs, self.endpoints, self.components, self.pipelines, Hubs(self.service))
        self.operations: dict[str, Callable[[Request], Response]] = {
            operation: getattr(room, botocore.xform_name(operation))
            for operation in service_model().operation_names
            for room in rooms
            if hasattr(room, botocore.xform_name(operation))
        }

    def call(self, operation: str, request: Request) -> Response:
        """Answer one request, validated first. Raises the errors of sagemaker_api."""
        if operation not in self.operations:  # moto would answer some of them, and do nothing
            known = ", ".join(sorted(self.operations))
            raise UnsupportedOperation(f"{operation} is not implemented by local AWS; the operations are {known}")
        given = _without_nulls(request)
        validate(operation, given)
        return self.operations[operation](given)

    def state(self) -> dict[str, Any]:
        """After `shutdown`: all that is not a process, for `take_over` of another one."""
        processes = (":endpoint/", ":inference-component/")
        tags = {arn: tags for arn, tags in self.service.tags.items() if not any(kind in arn for kind in processes)}
        rooms = {"jobs": self.jobs.state(), "pipelines": self.pipelines.state(), "registry": self.registry.state()}
        return {"tags": tags, **rooms}

    def take_over(self, state: dict[str, Any]) -> None:
        """Go on with the state of another one, before the first request."""
        self.service.tags.update(state["tags"])
        self.jobs.take_over(state["jobs"])
        self.pipelines.take_over(state["pipelines"])
        self.registry.take_over(state["registry"])

    def shutdown(self) -> None:
        """End every pipeline, job and endpoint process; returns when they are gone."""
        self.pipelines.shutdown()
        self.jobs.shutdown()
        self.components.shutdown()
        self.endpoints.shutdown()


_current: SageMaker | None = None


def install(settings: Settings) -> SageMaker:
    """Make moto's server answer SageMaker's requests with what really runs. Call it once, before the server starts."""
    global _current
    for folder in ("jobs", "endpoints"):  # of a server that did not end in order
        shutil.rmtree(settings.root / folder, ignore_errors=True)
    sagemaker = _current = SageMaker(settings)
    for operation in service_model().operation_names:
        setattr(SageMakerResponse, camelcase_to_underscores(operation), _handler(sagemaker, operation))
    # A handler reads the JSON body itself: moto's own parser answers a wrong type with an internal error.
    SageMakerResponse.parse_parameters = lambda response, request: None
    authorization.add_resource_policies("sagemaker", sagemaker.registry.group_policy)
    endpoint_metrics = metrics.EndpointMetrics(settings)
    sagemaker.endpoints.router.listeners.append(endpoint_metrics.record)
    sagemaker.endpoints.router.listeners.append(DataCapture(sagemaker.registry).record)
    sagemaker.endpoints.router.count = endpoint_metrics.count
    alarms.install(settings, endpoint_metrics.flush)
    autoscaling.install(settings, sagemaker.call)
    return sagemaker


def shutdown() -> None:
    """End every pipeline, job and endpoint process; returns when they are gone."""
    if _current is not None:
        _current.shutdown()


def call(operation: str, request: Request) -> Response:
    """Answer a SageMaker request of this process, for example call("StartPipelineExecution", {"PipelineName": ...}).

    Raises sagemaker_api.ServiceError with `code` and `message`.
    """
    assert _current is not None, "call install() first"
    return _current.call(operation, request)


def interrupt(training_job: str) -> None:
    """Reclaim the spot instances of a running training job. Raises sagemaker_api.ValidationException if it has none."""
    assert _current is not None, "call install() first"
    _current.jobs.interrupt(training_job)


def _handler(sagemaker: SageMaker, operation: str) -> Callable[[SageMakerResponse], ActionResult]:
    def handle(response: SageMakerResponse) -> ActionResult:
        try:
            request = json_body(response.raw_body)
            answer = sagemaker.call(operation, request)
        except ServiceError as error:
            raise SagemakerClientError(error.code, error.message) from None
        return ActionResult(answer) if answer else EmptyResult()

    return handle


def _without_nulls(value: Any) -> Any:
    """JSON null is "not given", as the service reads it."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return value
