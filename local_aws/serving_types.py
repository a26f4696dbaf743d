"""CloudFormation's types of serving: models, endpoints, inference components and their autoscaling, over the API."""

import time
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from local_aws.events import client

Properties = dict[str, Any]
POLL_SECONDS = 0.1
SAGEMAKER_NAMES = {
    "Model": "ModelName",
    "EndpointConfig": "EndpointConfigName",
    "Endpoint": "EndpointName",
    "InferenceComponent": "InferenceComponentName",
}


def coerced(shape: Shape, value: Any) -> Any:
    """A template's value as the API wants it: CloudFormation lets numbers and truth values be texts."""
    if isinstance(shape, StructureShape):
        return {name: coerced(shape.members[name], member) for name, member in value.items() if name in shape.members}
    if isinstance(shape, ListShape):
        return [coerced(shape.member, member) for member in value]
    if isinstance(shape, MapShape):
        return {name: coerced(shape.value, member) for name, member in value.items()}
    if shape.type_name in ("integer", "long"):
        return int(value)
    if shape.type_name in ("float", "double"):
        return float(value)
    if shape.type_name == "boolean":
        return value if isinstance(value, bool) else str(value).lower() == "true"
    return value


def request(service: Any, operation: str, properties: Properties) -> Properties:
    """What `operation` takes of a resource's properties."""
    shape = service.meta.service_model.operation_model(operation).input_shape
    return dict(coerced(shape, properties))


def put_sagemaker(kind: str, name: str, properties: Properties, exists: bool) -> tuple[str, dict[str, str]]:
    """Create or update a resource and wait until it is there; returns its ARN and its attributes.

    Raises RuntimeError with the service's reason if it does not come into service.
    """
    sagemaker, named = client("sagemaker"), SAGEMAKER_NAMES[kind]
    name = properties.get(named, name)  # moto has types of these names too, and does not look into this property
    wanted = {**properties, named: name}
    operation = f"{'Update' if exists else 'Create'}{kind}"
    call = {
        "CreateModel": sagemaker.create_model,
        "CreateEndpointConfig": sagemaker.create_endpoint_config,
        "CreateEndpoint": sagemaker.create_endpoint,
        "UpdateEndpoint": sagemaker.update_endpoint,
        "CreateInferenceComponent": sagemaker.create_inference_component,
        "UpdateInferenceComponent": sagemaker.update_inference_component,
    }[operation]
    arn = str(call(**request(sagemaker, operation, wanted))[f"{kind}Arn"])
    if kind in ("Endpoint", "InferenceComponent"):
        try:
            described = _in_service(sagemaker, kind, name)
        except RuntimeError:
            if not exists:  # what did not come up is not left behind
                delete_sagemaker(kind, arn)
            raise
        asked = properties.get("EndpointConfigName")
        if (kind == "Endpoint" and described["EndpointConfigName"] != asked) or "FailureReason" in described:
            raise RuntimeError(f"{name} was rolled back: {described.get('FailureReason', 'no reason given')}")
    return arn, {named: name, f"{kind}Arn": arn}


def delete_sagemaker(kind: str, arn: str) -> None:
    """Delete a resource and wait until it is gone."""
    sagemaker, name = client("sagemaker"), arn.rsplit("/", 1)[-1]
    key = {SAGEMAKER_NAMES[kind]: name}
    if kind == "Model":
        sagemaker.delete_model(**key)
    elif kind == "EndpointConfig":
        sagemaker.delete_endpoint_config(**key)
    elif kind == "Endpoint":
        sagemaker.delete_endpoint(**key)
        while sagemaker.list_endpoints(NameContains=name)["Endpoints"]:
            time.sleep(POLL_SECONDS)
    else:
        sagemaker.delete_inference_component(**key)
        while sagemaker.list_inference_components(NameContains=name)["InferenceComponents"]:
            time.sleep(POLL_SECONDS)


def _in_service(sagemaker: Any, kind: str, name: str) -> Properties:
    describe = {
        "Endpoint": sagemaker.describe_endpoint,
        "InferenceComponent": sagemaker.describe_inference_component,
    }[kind]
    while True:
        described = dict(describe(**{SAGEMAKER_NAMES[kind]: name}))
        status = described[f"{kind}Status"]
        if status == "InService":
            return described
        if status not in ("Creating", "Updating", "RollingBack"):
            raise RuntimeError(f"{name} is {status}: {described.get('FailureReason', 'no reason given')}")
        time.sleep(POLL_SECONDS)


def put_scalable_target(properties: Properties) -> str:
    scaling = client("application-autoscaling")
    scaling.register_scalable_target(**request(scaling, "RegisterScalableTarget", properties))
    return "|".join(properties[part] for part in ("ResourceId", "ScalableDimension", "ServiceNamespace"))


def delete_scalable_target(physical_id: str) -> None:
    client("application-autoscaling").deregister_scalable_target(**_parts(physical_id))


def put_scaling_policy(properties: Properties) -> str:
    scaling = client("application-autoscaling")
    target = _parts(properties["ScalingTargetId"]) if "ScalingTargetId" in properties else {}
    policy = request(scaling, "PutScalingPolicy", {**properties, **target})
    return str(scaling.put_scaling_policy(**policy)["PolicyARN"])


def delete_scaling_policy(properties: Properties) -> None:
    scaling = client("application-autoscaling")
    target = _parts(properties["ScalingTargetId"]) if "ScalingTargetId" in properties else {}
    scaling.delete_scaling_policy(**request(scaling, "DeleteScalingPolicy", {**properties, **target}))


def _parts(physical_id: str) -> Properties:
    """A scalable target's Ref: resource|dimension|namespace."""
    return dict(zip(("ResourceId", "ScalableDimension", "ServiceNamespace"), physical_id.split("|"), strict=True))
