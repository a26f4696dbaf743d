"""Endpoints that really serve: CreateEndpoint, UpdateEndpoint and what belongs to them, over fleets of processes."""

import copy
import logging
import re
import threading
from typing import Any

from local_aws import alarms, deployments, role_use
from local_aws.authorization import Caller
from local_aws.containers import stop_together
from local_aws.deployments import Deployment, Plan, RolledBack
from local_aws.endpoint_router import Endpoint, Router
from local_aws.fleets import Fleet, check_count, production_variant
from local_aws.object_store import ObjectStore
from local_aws.registry import Registry
from local_aws.request_actions import Place, Wanted
from local_aws.sagemaker_api import (
    Request,
    Response,
    Service,
    ValidationException,
    now,
    page,
    tags_of,
)
from local_aws.serving_process import EndpointFailed

log = logging.getLogger(__name__)

SHUTDOWN_GRACE_SECONDS = 2.0


class Endpoints:
    """The operations on endpoints, and the router of their requests."""

    def __init__(self, service: Service, store: ObjectStore, registry: Registry) -> None:
        self._service = service
        self._store = store
        self._registry = registry
        self._endpoints: dict[str, Endpoint] = {}
        self._fleets: set[Fleet] = set()  # every one that may have processes: in service, starting, or ending
        self._stopping = threading.Event()
        self.router = Router(service, self._endpoints)

    # ------------------------------------------------------------------ operations

    def create_endpoint(self, request: Request) -> Response:
        name, config = request["EndpointName"], request["EndpointConfigName"]
        fleet = self._new_fleet(name, config)
        deployments.read(
            request.get("DeploymentConfig"), _least_instances(fleet)
        )  # kept, but there is nothing to shift from
        arn = self._service.arn(f"endpoint/{name}")
        times = {"CreationTime": now(), "LastModifiedTime": now()}
        record = {
            "EndpointName": name,
            "EndpointArn": arn,
            "EndpointConfigName": config,
            "EndpointStatus": "Creating",
            **self._configured(config),
            **times,
        }
        with self._service.changed:
            if name in self._endpoints:
                raise ValidationException(f'Cannot create already existing endpoint "{arn}".')
            endpoint = Endpoint(record)
            endpoint.pending = fleet
            self._endpoints[name] = endpoint
            self._service.tags[arn] = tags_of(request)
            self._fleets.add(fleet)
        self._emit(endpoint)
        self._in_background(self._create, endpoint, fleet)
        return {"EndpointArn": arn}

    def update_endpoint(self, request: Request) -> Response:
        endpoint = self.find(request["EndpointName"])
        if endpoint.status == "Failed":
            raise ValidationException(f'Cannot update failed endpoint "{endpoint.arn}": delete it and create it again.')
        retained = endpoint if request.get("RetainAllVariantProperties") else None
        excluded = {one["VariantPropertyType"] for one in request.get("ExcludeRetainedVariantProperties", [])}
        fleet = self._new_fleet(endpoint.name, request["EndpointConfigName"], retained, excluded)
        config = request.get("DeploymentConfig")
        if request.get("RetainDeploymentConfig"):
            if config is not None:
                raise ValidationException("RetainDeploymentConfig is true, so DeploymentConfig may not be given")
            config = endpoint.record.get("LastDeploymentConfig")
        plan = deployments.read(config, _least_instances(fleet))
        if unknown := alarms.missing(plan.alarms):
            raise ValidationException(f"AutoRollbackConfiguration names alarms that do not exist: {', '.join(unknown)}")
        with self._service.changed:
            self._refuse_in_progress(endpoint)
            endpoint.pending = fleet
            endpoint.record.pop("FailureReason", None)
            if config is not None:
                endpoint.record["LastDeploymentConfig"] = copy.deepcopy(config)
            self._set(endpoint, {"EndpointStatus": "Updating"})
            self._fleets.add(fleet)
        self._emit(endpoint)
        self._in_background(self._update, endpoint, fleet, plan)
        return {"EndpointArn": endpoint.arn}

    def update_endpoint_weights_and_capacities(self, request: Request) -> Response:
        endpoint = self.find(request["EndpointName"])
        with self._service.changed:
            self._refuse_in_progress(endpoint)
            if endpoint.fleet is None:
                raise ValidationException(
                    f'Cannot update failed endpoint "{endpoint.arn}": delete it and create it again.'
                )
            wanted = request["DesiredWeightsAndCapacities"]
            for one in wanted:
                if endpoint.fleet.variant(one["VariantName"]) is None:
                    raise ValidationException(
                        f'The variant name(s) "{one["VariantName"]}" does not exist within endpoint.'
                    )
                check_count(one["VariantName"], one.get("DesiredInstanceCount", 1))
                if one.get("DesiredInstanceCount", 1) < 1:
                    raise ValidationException("DesiredInstanceCount must be at least 1")
            for one in wanted:
                variant = endpoint.fleet.variant(one["VariantName"])
                assert variant is not None
                variant.desired_weight = float(one.get("DesiredWeight", variant.desired_weight))
                variant.desired_count = int(one.get("DesiredInstanceCount", variant.desired_count))
            endpoint.record.pop("FailureReason", None)
            self._set(endpoint, {"EndpointStatus": "Updating"})
        self._emit(endpoint)
        self._in_background(self._resize, endpoint, endpoint.fleet)
        return {"EndpointArn": endpoint.arn}

    def describe_endpoint(self, request: Request) -> Response:
        endpoint = self.find(request["EndpointName"])
        with self._service.changed:
            described = copy.deepcopy(endpoint.record)
            if endpoint.fleet is not None:
                described["ProductionVariants"] = [variant.summary() for variant in endpoint.fleet.variants]
            if endpoint.pending is not None:
                described["PendingDeploymentSummary"] = {
                    "EndpointConfigName": endpoint.pending.config_name,
                    "ProductionVariants": [deployments.pending_summary(one) for one in endpoint.pending.variants],
                    "StartTime": endpoint.pending.created,
                }
            return described

    def list_endpoints(self, request: Request) -> Response:
        with self._service.changed:
            records = [copy.deepcopy(endpoint.record) for endpoint in self._endpoints.values()]
        endpoints, token = page(records, request, name="EndpointName", status="EndpointStatus")
        return {"Endpoints": endpoints, **token}

    def delete_endpoint(self, request: Request) -> Response:
        endpoint = self.find(request["EndpointName"])
        with self._service.changed:
            if endpoint.components:
                raise ValidationException(
                    f"Cannot delete endpoint {endpoint.name}: it holds the inference components "
                    f"{', '.join(sorted(endpoint.components))}; delete them first"
                )
            self._refuse_in_progress(endpoint)
            self._set(endpoint, {"EndpointStatus": "Deleting"})
        self._emit(endpoint)
        self._in_background(self._delete, endpoint)
        return {}

    def shutdown(self) -> None:
        """End every serving process."""
        self._stopping.set()
        with self._service.changed:
            fleets = list(self._fleets)
        stop_together(fleets, SHUTDOWN_GRACE_SECONDS)

    # ------------------------------------------------------------------ life of an endpoint

    def _new_fleet(
        self, name: str, config_name: str, retained: Endpoint | None = None, excluded: set[str] | None = None
    ) -> Fleet:
        """The fleet of a configuration, not started; with the weights and counts of `retained` but for the `excluded`."""
        config = self._registry.endpoint_config(config_name)
        variants = [
            production_variant(self._service, self._store, self._registry, name, variant)
            for variant in config["ProductionVariants"]
        ]
        for variant in variants:
            old = retained.fleet.variant(variant.name) if retained is not None and retained.fleet is not None else None
            if old is not None and "DesiredInstanceCount" not in (excluded or ()):
                variant.desired_count = old.desired_count
            if old is not None and "DesiredWeight" not in (excluded or ()):
                variant.weight = variant.desired_weight = old.desired_weight
        return Fleet(config_name, variants)

    def _configured(self, config_name: str) -> dict[str, Any]:
        """What DescribeEndpoint repeats of the configuration that serves."""
        capture = self._registry.endpoint_config(config_name).get("DataCaptureConfig")
        if capture is None:
            return {}
        enabled = bool(capture.get("EnableCapture", False))
        shown = {
            "EnableCapture": enabled,
            "CaptureStatus": "Started" if enabled else "Stopped",
            "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
            "DestinationS3Uri": capture["DestinationS3Uri"],
            "KmsKeyId": capture.get("KmsKeyId", ""),
        }
        return {"DataCaptureConfig": shown}

    def _create(self, endpoint: Endpoint, fleet: Fleet) -> None:
        failure = self._failure_of(endpoint, fleet.start)
        if failure is None:
            self._serve(endpoint, fleet)
        else:
            endpoint.pending = None
            self._set(endpoint, {"EndpointStatus": "Failed", "FailureReason": failure})
            self.retire(fleet)
        self._emit(endpoint)

    def _update(self, endpoint: Endpoint, fleet: Fleet, plan: Plan) -> None:
        """Deploy a fleet; what served before goes on if that fails, as at SageMaker: InService, the old configuration."""
        old = endpoint.fleet
        assert old is not None
        deployment = Deployment(self._service, endpoint, fleet, plan, alarms.alarmed, self._stopping)

        def deploy() -> None:
            if plan.alarms:
                self._look_at_alarms(endpoint, fleet)
            deployment.run()

        failure = self._failure_of(endpoint, deploy)
        if failure is None:
            self._serve(endpoint, fleet)
            self._emit(endpoint)
            self.retire(old)
            return
        whole = all(variant.count >= variant.desired_count for variant in old.variants)
        endpoint.pending = None
        self._set(
            endpoint,
            {"EndpointStatus": "InService" if whole else "UpdateRollbackFailed", "FailureReason": failure},
        )
        self._emit(endpoint)
        self.retire(fleet)

    def _look_at_alarms(self, endpoint: Endpoint, fleet: Fleet) -> None:
        """SageMaker reads the alarms of an update with the role of what it deploys. Raises EndpointFailed if that may not."""
        place = Place(self._service.settings.region, self._service.settings.account)
        wanted = Wanted("cloudwatch:DescribeAlarms", place.arn("cloudwatch", "alarm:*"))
        for role in {variant.served.role for variant in fleet.variants if variant.served and variant.served.role}:
            try:
                role_use.require(Caller(role, endpoint.name), [wanted])
            except role_use.RoleUseDenied as error:
                raise EndpointFailed(str(error)) from None

    def _serve(self, endpoint: Endpoint, fleet: Fleet) -> None:
        with self._service.changed:
            endpoint.fleet, endpoint.pending = fleet, None
            for variant in fleet.variants:
                variant.status = None
            endpoint.traffic.shift([(fleet, 1.0)])
            endpoint.record.pop("DataCaptureConfig", None)
            configured = self._configured(fleet.config_name)
            self._set(endpoint, {"EndpointStatus": "InService", "EndpointConfigName": fleet.config_name, **configured})

    def _resize(self, endpoint: Endpoint, fleet: Fleet) -> None:
        before = [(variant, variant.count, variant.weight) for variant in fleet.variants]
        failure = self._failure_of(endpoint, fleet.start)
        if failure is not None:
            self._set(endpoint, {"EndpointStatus": "RollingBack", "FailureReason": failure})
            for variant, count, weight in before:
                variant.desired_count, variant.desired_weight = count, weight
            self._failure_of(endpoint, fleet.start)
        with self._service.changed:
            for variant in fleet.variants:
                variant.weight = variant.desired_weight
            endpoint.traffic.shift([(fleet, 1.0)])
            self._set(endpoint, {"EndpointStatus": "InService"})
        self._emit(endpoint)

    def _failure_of(self, endpoint: Endpoint, work: Any) -> str | None:
        """Why `work` did not succeed, or None."""
        try:
            work()
        except (EndpointFailed, RolledBack) as error:
            return str(error)[:1024]
        except Exception as error:
            log.exception("endpoint %s", endpoint.arn)
            return f"InternalServerError: {type(error).__name__}: {error}"[:1024]
        return None

    def _delete(self, endpoint: Endpoint) -> None:
        if endpoint.fleet is not None:
            endpoint.traffic.shift([])
            self.retire(endpoint.fleet)
        with self._service.changed:
            self._endpoints.pop(endpoint.name, None)
            self._service.tags.pop(endpoint.arn, None)
            self._service.changed.notify_all()

    def watch(self, fleet: Fleet) -> None:
        """Remember a fleet that may have processes, for the end of the server."""
        with self._service.changed:
            self._fleets.add(fleet)

    def retire(self, fleet: Fleet) -> None:
        """Let a fleet end its requests and stop; the traffic has moved on."""
        fleet.retire()
        with self._service.changed:
            self._fleets.discard(fleet)

    def serving(self) -> list[Endpoint]:
        """Every endpoint that has instances in service."""
        with self._service.changed:
            return [endpoint for endpoint in self._endpoints.values() if endpoint.fleet is not None]

    def find(self, name: str) -> Endpoint:
        """The endpoint of that name. Raises ValidationException."""
        with self._service.changed:
            if name not in self._endpoints:
                raise ValidationException(f'Could not find endpoint "{self._service.arn("endpoint/" + name)}".')
            return self._endpoints[name]

    def _refuse_in_progress(self, endpoint: Endpoint) -> None:
        if endpoint.status not in ("InService", "Failed", "UpdateRollbackFailed"):
            raise ValidationException(
                f'Cannot update in-progress endpoint "{endpoint.arn}": its status is {endpoint.status}.'
            )

    def _set(self, endpoint: Endpoint, fields: dict[str, Any]) -> None:
        with self._service.changed:
            endpoint.record.update({**fields, "LastModifiedTime": now()})
            self._service.changed.notify_all()

    def _emit(self, endpoint: Endpoint) -> None:
        with self._service.changed:
            record = copy.deepcopy(endpoint.record)
        # The events spell the status in capitals: IN_SERVICE.
        record["EndpointStatus"] = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", record["EndpointStatus"]).upper()
        self._service.emit("SageMaker Endpoint State Change", record, endpoint.arn)

    @staticmethod
    def _in_background(work: Any, *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()


def _least_instances(fleet: Fleet) -> int:
    return min(max(1, variant.desired_count) for variant in fleet.variants)
