"""Models, model package groups, model packages (versions and their approval), endpoint configurations, and tags."""

import copy
import json
from typing import Any

from local_aws import networks, policies, role_use
from local_aws.sagemaker_api import (
    ConflictException,
    Request,
    ResourceNotFound,
    Response,
    Service,
    ValidationException,
    name_in,
    now,
    page,
    tags_of,
)

Record = dict[str, Any]


class Registry:
    """What is only stored: every field of a request comes back in Describe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._models: dict[str, Record] = {}
        self._groups: dict[str, Record] = {}
        self._packages: dict[str, Record] = {}  # by ARN
        self._endpoint_configs: dict[str, Record] = {}

    def state(self) -> list[dict[str, Record]]:
        """Models, groups, packages and endpoint configurations, for `take_over` of another one."""
        return [self._models, self._groups, self._packages, self._endpoint_configs]

    def take_over(self, state: list[dict[str, Record]]) -> None:
        """Know what another one's `state` holds."""
        for own, other in zip(self.state(), state, strict=True):
            own.update(other)

    # ------------------------------------------------------------------ models

    def create_model(self, request: Request) -> Response:
        containers = [request["PrimaryContainer"]] if "PrimaryContainer" in request else request.get("Containers", [])
        if len(containers) != 1:
            raise ValidationException(
                f"a model here has exactly one container (PrimaryContainer, or Containers with one); the request has {len(containers)}"
            )
        problems = _container_problems(containers[0], "Container")
        if ("Image" in containers[0]) == ("ModelPackageName" in containers[0]):
            problems.append("Container needs one of Image and ModelPackageName")
        problems += networks.problems("VpcConfig", request.get("VpcConfig"))
        if problems:
            raise ValidationException("; ".join(problems))
        if "ModelPackageName" in containers[0]:
            self.package(containers[0]["ModelPackageName"])
        if "ExecutionRoleArn" in request:
            self._service.check_role(request["ExecutionRoleArn"])
        name = request["ModelName"]
        arn = self._service.arn(f"model/{name}")
        self._add(self._models, name, request, {"ModelArn": arn}, "model")
        self._service.emit("SageMaker Model State Change", {"ModelName": name, "ModelArn": arn}, arn)
        return {"ModelArn": arn}

    def describe_model(self, request: Request) -> Response:
        return self.model(request["ModelName"])

    def list_models(self, request: Request) -> Response:
        items, token = self._page(self._models, request, name="ModelName")
        return {"Models": items, **token}

    def delete_model(self, request: Request) -> Response:
        self._remove(self._models, request["ModelName"], "model", "ModelArn")
        return {}

    def model(self, name: str) -> Record:
        """A model's record. Raises ValidationException if there is none."""
        return self._get(
            self._models, name_in(name), f'Could not find model "{self._service.arn("model/" + name_in(name))}".'
        )

    def container(self, model: Record) -> Record:
        """The container that a model serves: that of its model package, if it names one, with the model's own Environment on top."""
        container: Record = copy.deepcopy(model.get("PrimaryContainer") or model["Containers"][0])
        if "ModelPackageName" not in container:
            return container
        package = self.package(container["ModelPackageName"])
        packaged: Record = package["InferenceSpecification"]["Containers"][0]
        return {**packaged, "Environment": packaged.get("Environment", {}) | container.get("Environment", {})}

    # ------------------------------------------------------------------ model package groups

    def create_model_package_group(self, request: Request) -> Response:
        name = request["ModelPackageGroupName"]
        arn = self._service.arn(f"model-package-group/{name}")
        fields = {"ModelPackageGroupArn": arn, "ModelPackageGroupStatus": "Completed", "CreatedBy": {}, "_versions": 0}
        self._add(self._groups, name, request, fields, "model package group")
        return {"ModelPackageGroupArn": arn}

    def describe_model_package_group(self, request: Request) -> Response:
        return self._group(request["ModelPackageGroupName"])

    def list_model_package_groups(self, request: Request) -> Response:
        items, token = self._page(self._groups, request, name="ModelPackageGroupName")
        return {"ModelPackageGroupSummaryList": items, **token}

    def delete_model_package_group(self, request: Request) -> Response:
        group = self._group(request["ModelPackageGroupName"])
        name = group["ModelPackageGroupName"]
        with self._service.changed:
            left = [package for package in self._packages.values() if package.get("ModelPackageGroupName") == name]
        if left:
            raise ConflictException(
                f"Model package group {name} still holds {len(left)} model packages; delete them first"
            )
        self._remove(self._groups, name, "model package group", "ModelPackageGroupArn")
        return {}

    def put_model_package_group_policy(self, request: Request) -> Response:
        group, policy = self._group(request["ModelPackageGroupName"]), request["ResourcePolicy"]
        try:
            policies.statements(group["ModelPackageGroupArn"], json.loads(policy))
        except (ValueError, AttributeError, policies.PolicyError) as error:
            raise ValidationException(f"ResourcePolicy is no policy document: {error}") from None
        with self._service.changed:
            self._groups[group["ModelPackageGroupName"]]["_policy"] = policy
        return {"ModelPackageGroupArn": group["ModelPackageGroupArn"]}

    def get_model_package_group_policy(self, request: Request) -> Response:
        group = self._group(request["ModelPackageGroupName"])
        if "_policy" not in group:
            raise ValidationException(
                f"Cannot find a resource policy of Model Package Group {group['ModelPackageGroupArn']}."
            )
        return {"ResourcePolicy": group["_policy"]}

    def delete_model_package_group_policy(self, request: Request) -> Response:
        name = self._group(request["ModelPackageGroupName"])["ModelPackageGroupName"]
        with self._service.changed:
            self._groups[name].pop("_policy", None)
        return {}

    def group_policy(self, arn: str) -> str | None:
        """The resource policy of a model package group, if the ARN is one's that has one."""
        with self._service.changed:
            group = self._groups.get(name_in(arn), {}) if ":model-package-group/" in arn else {}
            return group.get("_policy")

    def has_group(self, name: str) -> bool:
        """Whether there is a model package group of that name (or ARN)."""
        with self._service.changed:
            return name_in(name) in self._groups

    def _group(self, name: str) -> Record:
        name = name_in(name)
        return self._get(
            self._groups,
            name,
            f"Model Package Group {self._service.arn('model-package-group/' + name)} does not exist.",
        )

    # ------------------------------------------------------------------ model packages

    def create_model_package(self, request: Request) -> Response:
        if ("ModelPackageName" in request) == ("ModelPackageGroupName" in request):
            raise ValidationException(
                "A model package needs one of ModelPackageName and ModelPackageGroupName (a version of that group)"
            )
        containers = request.get("InferenceSpecification", {}).get("Containers", [])
        problems = (
            []
            if containers
            else ["InferenceSpecification.Containers is missing: a model package names the image that serves it"]
        )
        for position, container in enumerate(containers, start=1):
            problems += _container_problems(container, f"InferenceSpecification.Containers[{position}]")
        problems += _model_card_problems(request)
        if problems:
            raise ValidationException("; ".join(problems))
        with self._service.changed:
            fields: Record = {}
            if "ModelPackageGroupName" in request:
                group = name_in(request["ModelPackageGroupName"])
                self._group(group)
                self._groups[group]["_versions"] += 1
                version = self._groups[group]["_versions"]
                name = f"{group}/{version}"
                fields = {
                    "ModelPackageGroupName": group,
                    "ModelPackageVersion": version,
                    "ModelApprovalStatus": request.get("ModelApprovalStatus", "PendingManualApproval"),
                }
            else:
                name = request["ModelPackageName"]
            arn = self._service.arn(f"model-package/{name}")
            done = [{"Name": name, "Status": "NotStarted"}]
            fields |= {"ModelPackageName": name, "ModelPackageArn": arn, "ModelPackageStatus": "Completed"}
            fields["ModelPackageStatusDetails"] = {"ValidationStatuses": [], "ImageScanStatuses": done}
            self._add(self._packages, arn, request, fields, "model package")
        self._emit_package(arn)
        return {"ModelPackageArn": arn}

    def describe_model_package(self, request: Request) -> Response:
        return self.package(request["ModelPackageName"])

    def list_model_packages(self, request: Request) -> Response:
        group = request.get("ModelPackageGroupName")
        with self._service.changed:
            chosen = {
                arn: package
                for arn, package in self._packages.items()
                if (group is None or package.get("ModelPackageGroupName") == name_in(group))
                and request.get("ModelApprovalStatus") in (None, package.get("ModelApprovalStatus"))
                and (request.get("ModelPackageType") != "Unversioned" or "ModelPackageVersion" not in package)
            }
        items, token = self._page(chosen, request, name="ModelPackageName")
        return {"ModelPackageSummaryList": items, **token}

    def update_model_package(self, request: Request) -> Response:
        arn = request["ModelPackageArn"]
        self.package(arn)
        if problems := _model_card_problems(request):
            raise ValidationException("; ".join(problems))
        changed: tuple[str, ...] = (
            "ModelApprovalStatus",
            "ApprovalDescription",
            "ModelPackageRegistrationType",
            "InferenceSpecification",
        )
        changed += ("SourceUri", "ModelCard", "ModelLifeCycle")
        with self._service.changed:
            package = self._packages[arn]
            package.update({field: copy.deepcopy(request[field]) for field in changed if field in request})
            properties = package.get("CustomerMetadataProperties", {}) | request.get("CustomerMetadataProperties", {})
            for name in request.get("CustomerMetadataPropertiesToRemove", []):
                properties.pop(name, None)
            package["CustomerMetadataProperties"] = properties
            package["LastModifiedTime"] = now()
        self._emit_package(arn)
        return {"ModelPackageArn": arn}

    def delete_model_package(self, request: Request) -> Response:
        self._remove(
            self._packages,
            self.package(request["ModelPackageName"])["ModelPackageArn"],
            "model package",
            "ModelPackageArn",
        )
        return {}

    def package(self, name_or_arn: str) -> Record:
        """A model package's record. Raises ValidationException if there is none."""
        arn = name_or_arn if name_or_arn.startswith("arn:") else self._service.arn(f"model-package/{name_or_arn}")
        return self._get(self._packages, arn, f"ModelPackage {arn} does not exist.")

    def _emit_package(self, arn: str) -> None:
        package = self.package(arn)
        shown: tuple[str, ...] = (
            "ModelPackageGroupName",
            "ModelPackageVersion",
            "ModelPackageArn",
            "ModelPackageDescription",
            "CreationTime",
        )
        shown += ("InferenceSpecification", "ModelPackageStatus", "ModelPackageStatusDetails", "ModelApprovalStatus")
        shown += ("ApprovalDescription", "CustomerMetadataProperties", "MetadataProperties", "LastModifiedTime")
        detail = {field: package[field] for field in shown if field in package}
        self._service.emit("SageMaker Model Package State Change", {**detail, "CertifyForMarketplace": False}, arn)

    # ------------------------------------------------------------------ endpoint configurations

    def create_endpoint_config(self, request: Request) -> Response:
        variants = request["ProductionVariants"]
        without = [variant["VariantName"] for variant in variants if "ModelName" not in variant]
        if without and len(without) < len(variants):
            raise ValidationException(
                f"production variants {', '.join(without)} have no ModelName and others have; an endpoint holds models or "
                "inference components"
            )
        if without and "ExecutionRoleArn" not in request:
            raise ValidationException(
                "ExecutionRoleArn is required for endpoint configurations whose production variants have no ModelName "
                "(they hold inference components)"
            )
        problems = networks.problems("VpcConfig", request.get("VpcConfig"))
        for variant in variants:
            key, instance_type = request.get("KmsKeyId"), str(variant.get("InstanceType"))
            problems += role_use.refused_volume_key("KmsKeyId", instance_type, key)
        if problems:
            raise ValidationException("; ".join(problems))
        if "ExecutionRoleArn" in request:
            self._service.check_role(request["ExecutionRoleArn"])
        for variant in variants:
            if "ModelName" in variant:
                self.model(variant["ModelName"])
        name = request["EndpointConfigName"]
        arn = self._service.arn(f"endpoint-config/{name}")
        self._add(self._endpoint_configs, name, request, {"EndpointConfigArn": arn}, "endpoint configuration")
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, request: Request) -> Response:
        return self.endpoint_config(request["EndpointConfigName"])

    def list_endpoint_configs(self, request: Request) -> Response:
        items, token = self._page(self._endpoint_configs, request, name="EndpointConfigName")
        return {"EndpointConfigs": items, **token}

    def delete_endpoint_config(self, request: Request) -> Response:
        self._remove(
            self._endpoint_configs, request["EndpointConfigName"], "endpoint configuration", "EndpointConfigArn"
        )
        return {}

    def endpoint_config(self, name: str) -> Record:
        """An endpoint configuration's record. Raises ValidationException if there is none."""
        arn = self._service.arn(f"endpoint-config/{name}")
        return self._get(self._endpoint_configs, name, f'Could not find endpoint configuration "{arn}".')

    def data_capture(self, name: str) -> Record | None:
        """The DataCaptureConfig of an endpoint configuration, if it is there and has one."""
        with self._service.changed:
            return self._endpoint_configs.get(name, {}).get("DataCaptureConfig")

    def serving_role(self, config_name: str, variant: str) -> str:
        """The role that a variant of an endpoint configuration serves as: its model's. Raises ValidationException."""
        variants = self.endpoint_config(config_name)["ProductionVariants"]
        model = next(one["ModelName"] for one in variants if one["VariantName"] == variant)
        return str(self.model(model)["ExecutionRoleArn"])

    # ------------------------------------------------------------------ tags of every resource of ours

    def add_tags(self, request: Request) -> Response:
        tags = self._tags(request["ResourceArn"])
        with self._service.changed:
            tags.update(tags_of(request))
        return {"Tags": _tag_list(tags)}

    def list_tags(self, request: Request) -> Response:
        return {"Tags": _tag_list(self._tags(request["ResourceArn"]))}

    def delete_tags(self, request: Request) -> Response:
        tags = self._tags(request["ResourceArn"])
        with self._service.changed:
            for key in request["TagKeys"]:
                tags.pop(key, None)
        return {}

    def _tags(self, arn: str) -> dict[str, str]:
        with self._service.changed:
            if arn not in self._service.tags:
                raise ResourceNotFound(f"Resource {arn} does not exist")
            return self._service.tags[arn]

    # ------------------------------------------------------------------ the stores

    def _add(self, store: dict[str, Record], key: str, request: Request, fields: Record, what: str) -> None:
        arn = next(value for field, value in fields.items() if field.endswith("Arn"))
        with self._service.changed:
            if key in store:
                raise ValidationException(f'Cannot create already existing {what} "{arn}".')
            record = {**copy.deepcopy(request), **fields, "CreationTime": now(), "LastModifiedTime": now()}
            record.pop("Tags", None)
            store[key] = record
            self._service.tags[arn] = tags_of(request)

    def _get(self, store: dict[str, Record], key: str, missing: str) -> Record:
        with self._service.changed:
            if key not in store:
                raise ValidationException(missing)
            return copy.deepcopy(store[key])

    def _remove(self, store: dict[str, Record], key: str, what: str, arn_field: str) -> None:
        with self._service.changed:
            record = store.pop(key, None)
            if record is None:
                raise ValidationException(f'Could not find {what} "{key}".')
            self._service.tags.pop(record[arn_field], None)

    def _page(self, store: dict[str, Record], request: Request, *, name: str) -> tuple[list[Record], dict[str, str]]:
        with self._service.changed:
            records = [copy.deepcopy(record) for record in store.values()]
        return page(records, request, name=name)


# What a model package's card may hold; a card of its own (CreateModelCard) holds model_package_details too.
MODEL_CARD_SECTIONS = (
    "model_overview",
    "intended_uses",
    "business_details",
    "training_details",
    "evaluation_details",
    "additional_information",
)


def _model_card_problems(request: Request) -> list[str]:
    text = request.get("ModelCard", {}).get("ModelCardContent")
    if text is None:
        return []
    try:
        content = json.loads(text)
    except ValueError as error:
        return [f"ModelCard.ModelCardContent is not JSON: {error}"]
    if not isinstance(content, dict):
        return [f"ModelCard.ModelCardContent holds {type(content).__name__}, expected an object"]
    return [
        f"ModelCard.ModelCardContent has '{name}'; a model package's card has {', '.join(MODEL_CARD_SECTIONS)}"
        for name in content
        if name not in MODEL_CARD_SECTIONS
    ]


def _container_problems(container: Record, where: str) -> list[str]:
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    if source is None:
        return []
    problems = []
    if "ModelDataUrl" in container:
        problems.append(f"{where} has both ModelDataUrl and ModelDataSource; use one")
    if source["S3DataType"] == "S3Prefix" and not source["S3Uri"].endswith("/"):
        problems.append(
            f"{where}.ModelDataSource.S3DataSource.S3Uri '{source['S3Uri']}' is a prefix (S3Prefix) and must end with a slash (/)"
        )
    if source["S3DataType"] == "S3Object" and source["CompressionType"] == "None" and source["S3Uri"].endswith("/"):
        problems.append(
            f"{where}.ModelDataSource.S3DataSource.S3Uri '{source['S3Uri']}' is an object (S3Object) and must not end with a slash"
        )
    return problems


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
