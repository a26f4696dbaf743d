"""Stacks that hold an endpoint: it is there when the stack is, changes with it, and goes with it."""

import json
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_aws.endpoints import SOURCE, invoke
from tests.local_aws.sagemaker_server import ROLE, Server, running_server


@pytest.fixture(scope="module")
def server() -> Server:
    server = running_server()
    server.put("endpoint/model/weights", "W")
    return server


def template(name: str, answer: str, faults: str = "") -> str:
    container = {
        "Image": "web",
        "ModelDataSource": SOURCE,
        "Environment": {"ANSWER": answer, "LOCAL_AWS_FAULTS": faults},
    }
    variant = {
        "VariantName": "v",
        "ModelName": f"{name}-{answer}",
        "InstanceType": "ml.g5.4xlarge",
        "InitialInstanceCount": "1",
        "InitialVariantWeight": "1",
    }
    tracking = {
        "TargetValue": "5",
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }
    resources: dict[str, Any] = {
        "Model": (
            "SageMaker::Model",
            {"ModelName": f"{name}-{answer}", "ExecutionRoleArn": ROLE, "PrimaryContainer": container},
        ),
        "Config": (
            "SageMaker::EndpointConfig",
            {"EndpointConfigName": f"{name}-{answer}", "ProductionVariants": [variant]},
        ),
        "Endpoint": (
            "SageMaker::Endpoint",
            {"EndpointName": name, "EndpointConfigName": f"{name}-{answer}"},
        ),
        "Target": (
            "ApplicationAutoScaling::ScalableTarget",
            {
                "ServiceNamespace": "sagemaker",
                "ResourceId": {"Fn::Sub": "endpoint/${Endpoint.EndpointName}/variant/v"},
                "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
                "MinCapacity": "1",
                "MaxCapacity": "2",
            },
        ),
        "Policy": (
            "ApplicationAutoScaling::ScalingPolicy",
            {
                "PolicyName": name,
                "PolicyType": "TargetTrackingScaling",
                "ScalingTargetId": {"Ref": "Target"},
                "TargetTrackingScalingPolicyConfiguration": tracking,
            },
        ),
    }
    before = {"Config": "Model", "Endpoint": "Config"}
    content = {
        key: {
            "Type": f"AWS::{kind}",
            "Properties": properties,
            **({"DependsOn": before[key]} if key in before else {}),
        }
        for key, (kind, properties) in resources.items()
    }
    return json.dumps({"Resources": content})


def test_an_endpoint_lives_with_its_stack(server: Server) -> None:
    name = f"stack-{uuid.uuid4().hex[:8]}"
    stacks, scaling = server.client("cloudformation"), server.client("application-autoscaling")
    stacks.create_stack(StackName=name, TemplateBody=template(name, "one"))
    assert invoke(server, name, "hi").startswith("one")
    policies = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert [policy["ResourceId"] for policy in policies] == [f"endpoint/{name}/variant/v"]

    stacks.update_stack(StackName=name, TemplateBody=template(name, "two"))
    (stack,) = stacks.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "UPDATE_COMPLETE", stack
    assert invoke(server, name, "hi").startswith("two")

    stacks.delete_stack(StackName=name)
    with pytest.raises(ClientError, match="Could not find endpoint"):
        server.sagemaker.describe_endpoint(EndpointName=name)
    assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []


def test_a_stack_whose_endpoint_does_not_come_up_fails_with_the_reason(server: Server) -> None:
    name = f"stack-{uuid.uuid4().hex[:8]}"
    stacks = server.client("cloudformation")
    stacks.create_stack(StackName=name, TemplateBody=template(name, "x", "exit_at_start"))
    (stack,) = stacks.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    assert "did not pass the ping health check" in stack["StackStatusReason"]
    assert server.sagemaker.list_endpoints(NameContains=name)["Endpoints"] == []


def with_component(name: str, answer: str) -> str:
    """A stack with an endpoint for components, and a component on it."""
    whole = json.loads(template(name, answer))["Resources"]
    config = whole["Config"]["Properties"]
    (variant,) = config["ProductionVariants"]
    del variant["ModelName"], variant["InitialVariantWeight"]
    config |= {"EndpointConfigName": name, "ExecutionRoleArn": ROLE}
    whole["Endpoint"]["Properties"]["EndpointConfigName"] = name
    component = {
        "InferenceComponentName": name,
        "EndpointName": name,
        "VariantName": "v",
        "Specification": {
            "ModelName": f"{name}-{answer}",
            "ComputeResourceRequirements": {"NumberOfAcceleratorDevicesRequired": "1", "MinMemoryRequiredInMb": "1024"},
        },
        "RuntimeConfig": {"CopyCount": "1"},
    }
    kept = {key: whole[key] for key in ("Model", "Config", "Endpoint")}
    kept["Component"] = {
        "Type": "AWS::SageMaker::InferenceComponent",
        "Properties": component,
        "DependsOn": ["Endpoint", "Model"],
    }
    return json.dumps({"Resources": kept})


def test_an_inference_component_lives_with_its_stack(server: Server) -> None:
    name = f"stack-{uuid.uuid4().hex[:8]}"
    stacks = server.client("cloudformation")
    stacks.create_stack(StackName=name, TemplateBody=with_component(name, "one"))
    assert invoke(server, name, "hi", InferenceComponentName=name).startswith("one")

    stacks.update_stack(StackName=name, TemplateBody=with_component(name, "two"))
    (stack,) = stacks.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "UPDATE_COMPLETE", stack
    assert invoke(server, name, "hi", InferenceComponentName=name).startswith("two")

    stacks.delete_stack(StackName=name)
    assert server.sagemaker.list_inference_components(NameContains=name)["InferenceComponents"] == []
    assert server.sagemaker.list_endpoints(NameContains=name)["Endpoints"] == []
