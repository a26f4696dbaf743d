"""Inference components: models with copies of their own on an endpoint's instances, and adapters on a base component."""

import copy
import logging
import threading
from typing import Any

from local_aws import alarms, deployments
from local_aws.deployments import Deployment, RolledBack
from local_aws.endpoint_router import Component, Endpoint
from local_aws.endpoints import Endpoints
from local_aws.fleets import DEFAULT_STARTUP_SECONDS, Fleet, Variant, check_count
from local_aws.object_store import ObjectStore
from local_aws.registry import Registry
from local_aws.sagemaker_api import Request, Response, Service, ValidationException, now, page, tags_of
from local_aws.serving_process import EndpointFailed, Served

log = logging.getLogger(__name__)

KIND = "inference component"


class InferenceComponents:
    """CreateInferenceComponent and what belongs to it. A copy is a process; there is no placement on instances."""

    def __init__(self, service: Service, store: ObjectStore, registry: Registry, endpoints: Endpoints) -> None:
        self._service, self._store, self._registry, self._endpoints = service, store, registry, endpoints
        self._components: dict[str, Component] = {}
        self._stopping = threading.Event()

    # ------------------------------------------------------------------ operations

    def create_inference_component(self, request: Request) -> Response:
        name, specification = request["InferenceComponentName"], request.get("Specification", {})
        endpoint = self._endpoints.find(request["EndpointName"])
        if endpoint.status != "InService":
            raise ValidationException(
                f'Cannot update in-progress endpoint "{endpoint.arn}": its status is {endpoint.status}.'
            )
        if not endpoint.hosts_components:
            raise ValidationException(
                f"Endpoint {endpoint.name} serves a model of its own; inference components need an endpoint "
                "configuration whose production variants have no ModelName"
            )
        base = self._base_of(specification, endpoint)
        self._check(request, specification, base)
        arn = self._service.arn(f"inference-component/{name}")
        assert endpoint.fleet is not None
        variant = request.get("VariantName", endpoint.fleet.variants[0].name)
        if endpoint.fleet.variant(variant) is None:
            raise ValidationException(f"Variant {variant} of endpoint {endpoint.name} not found")
        record = {
            "InferenceComponentName": name,
            "InferenceComponentArn": arn,
            "EndpointName": endpoint.name,
            "EndpointArn": endpoint.arn,
            "VariantName": variant,
            "InferenceComponentStatus": "Creating",
            "Specification": copy.deepcopy(specification),
            "CreationTime": now(),
            "LastModifiedTime": now(),
        }
        component = Component(record, base)
        copies = request.get("RuntimeConfig", {}).get("CopyCount", 1)
        if base is None:
            component.fleet = self._fleet(component, specification, copies)
        with self._service.changed:
            if name in self._components:
                raise ValidationException(f'Cannot create already existing inference component "{arn}".')
            self._components[name] = endpoint.components[name] = component
            self._service.tags[arn] = tags_of(request)
        self._emit(component)
        self._in_background(self._create, component)
        return {"InferenceComponentArn": arn}

    def update_inference_component(self, request: Request) -> Response:
        component = self._find(request["InferenceComponentName"])
        specification = request.get("Specification")
        copies = request.get("RuntimeConfig", {}).get("CopyCount")
        endpoint = self._endpoints.find(component.record["EndpointName"])
        fleet = None
        plan = deployments.ALL_AT_ONCE
        if specification is not None:
            base = self._base_of(specification, endpoint)
            if (base is None) != (component.base is None):
                raise ValidationException(
                    "An adapter cannot become a component with compute of its own, nor the reverse"
                )
            self._check(request, specification, base)
            if base is None:
                assert component.fleet is not None
                wanted = component.fleet.variants[0].desired_count if copies is None else copies
                fleet = self._fleet(component, specification, wanted)
                plan = deployments.read(_as_of_endpoints(request.get("DeploymentConfig")), max(1, wanted))
                if unknown := alarms.missing(plan.alarms):
                    raise ValidationException(f"AutoRollbackConfiguration names alarms that do not exist: {unknown}")
        with self._service.changed:
            self._refuse_in_progress(component)
            component.record.pop("FailureReason", None)
            if "DeploymentConfig" in request:
                component.record["LastDeploymentConfig"] = copy.deepcopy(request["DeploymentConfig"])
            self._set(component, {"InferenceComponentStatus": "Updating"})
        self._emit(component)
        if fleet is not None:
            self._in_background(self._deploy, component, fleet, specification, plan)
        elif specification is not None:
            self._in_background(self._replace_adapter, component, specification)
        else:
            self._in_background(self._resize, component, copies)
        return {"InferenceComponentArn": component.record["InferenceComponentArn"]}

    def update_inference_component_runtime_config(self, request: Request) -> Response:
        component = self._find(request["InferenceComponentName"])
        copies = request["DesiredRuntimeConfig"]["CopyCount"]
        check_count(component.name, copies)
        if component.base is not None:
            raise ValidationException(f"{component.name} is an adapter; copies are its base component's")
        with self._service.changed:
            self._refuse_in_progress(component)
            self._set(component, {"InferenceComponentStatus": "Updating"})
        self._in_background(self._resize, component, copies)
        return {"InferenceComponentArn": component.record["InferenceComponentArn"]}

    def describe_inference_component(self, request: Request) -> Response:
        component = self._find(request["InferenceComponentName"])
        with self._service.changed:
            described = copy.deepcopy(component.record)
        container = described["Specification"].setdefault("Container", {})
        owner = component.base or component
        if owner.fleet is not None:
            variant = owner.fleet.variants[0]
            assert variant.served is not None
            image = container.pop("Image", variant.served.image)
            container["DeployedImage"] = {"SpecifiedImage": image, "ResolvedImage": image}
            if component.base is None:
                counts = {"DesiredCopyCount": variant.desired_count, "CurrentCopyCount": component.traffic.count}
                described["RuntimeConfig"] = counts
        return described

    def list_inference_components(self, request: Request) -> Response:
        with self._service.changed:
            records = [
                copy.deepcopy(component.record)
                for component in self._components.values()
                if request.get("EndpointNameEquals") in (None, component.record["EndpointName"])
                and request.get("VariantNameEquals") in (None, component.record["VariantName"])
            ]
        found, token = page(records, request, name="InferenceComponentName", status="InferenceComponentStatus")
        return {"InferenceComponents": found, **token}

    def delete_inference_component(self, request: Request) -> Response:
        component = self._find(request["InferenceComponentName"])
        with self._service.changed:
            adapters = [other.name for other in self._components.values() if other.base is component]
            if adapters:
                raise ValidationException(
                    f"{component.name} is the base of the adapters {', '.join(adapters)}; delete them first"
                )
            self._refuse_in_progress(component)
            self._set(component, {"InferenceComponentStatus": "Deleting"})
        self._emit(component)
        self._in_background(self._delete, component)
        return {}

    def shutdown(self) -> None:
        """No deployment goes on; the processes end with their endpoints' fleets."""
        self._stopping.set()

    # ------------------------------------------------------------------ parts

    def _base_of(self, specification: dict[str, Any], endpoint: Endpoint) -> Component | None:
        name = specification.get("BaseInferenceComponentName")
        if name is None:
            return None
        base = endpoint.components.get(name)
        if base is None:
            raise ValidationException(f'Could not find inference component "{name}" on endpoint {endpoint.name}.')
        if base.base is not None or base.status != "InService":
            raise ValidationException(f"{name} cannot be a base: it is {'an adapter' if base.base else base.status}")
        return base

    def _check(self, request: Request, specification: dict[str, Any], base: Component | None) -> None:
        problems = []
        copies = request.get("RuntimeConfig", {}).get("CopyCount")
        container = specification.get("Container", {})
        if base is not None:
            if "ArtifactUrl" not in container:
                problems.append("an adapter needs Specification.Container.ArtifactUrl, the archive of its files")
            problems += [
                f"an adapter has no Specification.{field} of its own"
                for field in ("ModelName", "ComputeResourceRequirements", "StartupParameters")
                if field in specification
            ]
        else:
            if ("ModelName" in specification) == ("Image" in container):
                problems.append("Specification needs one of ModelName and Container.Image")
            if "ComputeResourceRequirements" not in specification:
                problems.append("Specification needs ComputeResourceRequirements")
            if copies == 0 and "EndpointName" in request:
                problems.append("RuntimeConfig.CopyCount must be at least 1 when a component is created")
            check_count(str(request["InferenceComponentName"]), copies or 1)
        if problems:
            raise ValidationException("; ".join(problems))

    def _fleet(self, component: Component, specification: dict[str, Any], copies: int) -> Fleet:
        """The copies of a component, not started."""
        endpoint = self._endpoints.find(component.record["EndpointName"])
        config = self._registry.endpoint_config(str(endpoint.record["EndpointConfigName"]))
        role, container = config.get("ExecutionRoleArn", ""), specification.get("Container", {})
        if "ModelName" in specification:
            model = self._registry.model(specification["ModelName"])
            definition, role = self._registry.container(model), model.get("ExecutionRoleArn", role)
            definition["Environment"] = definition.get("Environment", {}) | container.get("Environment", {})
        else:
            definition = {"Image": container["Image"], "Environment": container.get("Environment", {})}
            if "ArtifactUrl" in container:
                definition["ModelDataUrl"] = container["ArtifactUrl"]
        startup = specification.get("StartupParameters", {})
        served = Served(
            endpoint=endpoint.name,
            name=component.name,
            definition=definition,
            role=role,
            isolated=bool(config.get("EnableNetworkIsolation", False)),
            vpc=config.get("VpcConfig"),
            startup_seconds=float(startup.get("ContainerStartupHealthCheckTimeoutInSeconds", DEFAULT_STARTUP_SECONDS)),
            what=KIND,
        )
        counted = {"VariantName": component.name, "InitialInstanceCount": copies}
        fleet = Fleet(
            str(specification.get("ModelName", served.image)), [Variant(self._service, self._store, counted, served)]
        )
        self._endpoints.watch(fleet)
        return fleet

    def _create(self, component: Component) -> None:
        def work() -> None:
            if component.base is not None:
                self._load_adapter(component, component.record["Specification"]["Container"]["ArtifactUrl"])
                return
            assert component.fleet is not None
            component.fleet.start()
            component.traffic.shift([(component.fleet, 1.0)])

        failure = self._failure_of(component, work)
        self._end(component, failure, "Failed")
        if failure is not None and component.fleet is not None:
            self._endpoints.retire(component.fleet)

    def _load_adapter(self, component: Component, uri: str) -> None:
        assert component.base is not None and component.base.fleet is not None
        component.base.fleet.variants[0].replicas.add_adapter(component.name, uri)

    def _replace_adapter(self, component: Component, specification: dict[str, Any]) -> None:
        old = component.record["Specification"]
        failure = self._failure_of(
            component, lambda: self._load_adapter(component, specification["Container"]["ArtifactUrl"])
        )
        if failure is None:
            component.record["Specification"] = copy.deepcopy(specification)
        else:
            self._failure_of(component, lambda: self._load_adapter(component, old["Container"]["ArtifactUrl"]))
        self._end(component, failure, "InService")

    def _deploy(
        self, component: Component, fleet: Fleet, specification: dict[str, Any], plan: deployments.Plan
    ) -> None:
        """Copies of the new specification take the places of the old ones; on failure the old ones stay, or come back."""
        old = component.fleet
        assert old is not None
        fleet.variants[0].replicas.adapters.update(old.variants[0].replicas.adapters)
        deployment = Deployment(self._service, component, fleet, plan, alarms.alarmed, self._stopping)
        failure = self._failure_of(component, deployment.run)
        if failure is None:
            with self._service.changed:
                component.fleet = fleet
                component.record["Specification"] = copy.deepcopy(specification)
                component.traffic.shift([(fleet, 1.0)])
        whole = all(variant.count >= variant.desired_count for variant in old.variants)
        self._end(component, failure, "InService" if whole else "Failed")
        self._endpoints.retire(old if failure is None else fleet)

    def _resize(self, component: Component, copies: int) -> None:
        assert component.fleet is not None
        variant = component.fleet.variants[0]
        before, variant.desired_count = variant.desired_count, copies
        failure = self._failure_of(component, component.fleet.start)
        if failure is not None:
            variant.desired_count = before
        self._end(component, failure, "InService")

    def _delete(self, component: Component) -> None:
        if component.base is not None and component.base.fleet is not None:
            component.base.fleet.variants[0].replicas.remove_adapter(component.name)
        if component.fleet is not None:
            component.traffic.shift([])
            self._endpoints.retire(component.fleet)
        with self._service.changed:
            self._components.pop(component.name, None)
            self._endpoints.find(component.record["EndpointName"]).components.pop(component.name, None)
            self._service.tags.pop(component.record["InferenceComponentArn"], None)
            self._service.changed.notify_all()

    def _failure_of(self, component: Component, work: Any) -> str | None:
        try:
            work()
        except (EndpointFailed, RolledBack, ValidationException) as error:
            return str(error)[:1024]
        except Exception as error:
            log.exception("inference component %s", component.name)
            return f"InternalServerError: {type(error).__name__}: {error}"[:1024]
        return None

    def _end(self, component: Component, failure: str | None, status_after_failure: str) -> None:
        fields = {"InferenceComponentStatus": "InService" if failure is None else status_after_failure}
        self._set(component, fields if failure is None else {**fields, "FailureReason": failure})
        self._emit(component)

    def _find(self, name: str) -> Component:
        with self._service.changed:
            if name not in self._components:
                arn = self._service.arn("inference-component/" + name)
                raise ValidationException(f'Could not find inference component "{arn}".')
            return self._components[name]

    def _refuse_in_progress(self, component: Component) -> None:
        if component.status not in ("InService", "Failed"):
            raise ValidationException(
                f'Cannot update in-progress inference component "{component.record["InferenceComponentArn"]}": '
                f"its status is {component.status}."
            )

    def _set(self, component: Component, fields: dict[str, Any]) -> None:
        with self._service.changed:
            component.record.update({**fields, "LastModifiedTime": now()})
            self._service.changed.notify_all()

    def _emit(self, component: Component) -> None:
        with self._service.changed:
            record = copy.deepcopy(component.record)
        arn = record["InferenceComponentArn"]
        self._service.emit("SageMaker Inference Component State Change", record, arn)

    @staticmethod
    def _in_background(work: Any, *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()


def _as_of_endpoints(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """A component's DeploymentConfig in the words of an endpoint's: copies are what instances are there."""
    if config is None:
        return None
    policy = copy.deepcopy(config["RollingUpdatePolicy"])
    for size in ("MaximumBatchSize", "RollbackMaximumBatchSize"):
        if policy.get(size, {}).get("Type") == "COPY_COUNT":
            policy[size]["Type"] = "INSTANCE_COUNT"
    return {**config, "RollingUpdatePolicy": policy}
