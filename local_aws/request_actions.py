"""What a request of an API asks of IAM: actions on resources, with the condition keys that they carry.

As the Service Authorization Reference has it, the actions that an operation needs beside its own included. An operation
that is not known here cannot be authorized, so a role's call of it fails by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from local_aws.policies import Context

Params = Mapping[str, Any]
SAGEMAKER = "sagemaker.amazonaws.com"


class UnknownRequest(Exception):
    """Nothing is known of what an operation needs; the message names it."""


@dataclass(frozen=True)
class Wanted:
    """One action on one resource."""

    action: str
    resource: str
    context: Context = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Place:
    """Region and account, for ARNs."""

    region: str
    account: str

    def arn(self, service: str, resource: str) -> str:
        return f"arn:aws:{service}:{self.region}:{self.account}:{resource}"


def wanted(service: str, operation: str, params: Params, place: Place) -> list[Wanted]:
    """What `operation` of a service (botocore's name) with these parameters needs. Raises UnknownRequest."""
    if service == "sagemaker":
        return _sagemaker(operation, params, place)
    describe = _OTHERS.get((service, operation))
    if describe is None:
        raise UnknownRequest(
            f"local AWS does not know which permissions {service}:{operation} needs; add it to request_actions.py"
        )
    return describe(params, place)


# ---------------------------------------------------------------- SageMaker

# What operations are about: the field that names it, and its kind in an ARN.
_THINGS = {
    "EndpointConfig": ("EndpointConfigName", "endpoint-config"),
    "Endpoint": ("EndpointName", "endpoint"),
    "InferenceComponent": ("InferenceComponentName", "inference-component"),
    "ModelPackageGroup": ("ModelPackageGroupName", "model-package-group"),
    "ModelPackage": ("ModelPackageName", "model-package"),
    "Model": ("ModelName", "model"),
    "PipelineExecution": ("PipelineExecutionArn", "pipeline-execution"),
    "Pipeline": ("PipelineName", "pipeline"),
    "ProcessingJob": ("ProcessingJobName", "processing-job"),
    "TrainingJob": ("TrainingJobName", "training-job"),
    "TransformJob": ("TransformJobName", "transform-job"),
}
_ROLE_FIELDS = ("RoleArn", "ExecutionRoleArn")
_OF_THE_WHOLE_ACCOUNT = {  # they know no resources
    f"List{thing}s"
    for thing in ("Endpoint", "EndpointConfig", "InferenceComponent", "Model", "ModelPackageGroup", "Pipeline")
} | {"ListProcessingJobs", "ListTrainingJobs"}


def _sagemaker(operation: str, params: Params, place: Place) -> list[Wanted]:
    action = f"sagemaker:{operation}"
    if operation in _OF_THE_WHOLE_ACCOUNT:
        return [Wanted(action, "*")]
    if operation in ("AddTags", "DeleteTags", "ListTags"):
        return [Wanted(action, str(params.get("ResourceArn", "")))]
    if operation == "ListModelPackages":
        group = _name(params.get("ModelPackageGroupName", "*"))
        return [Wanted(action, place.arn("sagemaker", f"model-package-group/{group}"))]
    if operation in ("ListPipelineExecutions", "StartPipelineExecution"):
        return [Wanted(action, place.arn("sagemaker", f"pipeline/{_name(params.get('PipelineName', ''))}"))]
    if operation == "ListPipelineExecutionSteps":
        return [Wanted(action, str(params.get("PipelineExecutionArn", "")))]
    if operation == "CreateModelPackage" and "ModelPackageGroupName" in params:
        group = _name(params["ModelPackageGroupName"])
        return [
            Wanted(action, place.arn("sagemaker", f"model-package-group/{group}")),
            Wanted(action, place.arn("sagemaker", f"model-package/{group}/*")),  # its version is not known yet
        ]
    return _of_a_thing(operation, params, place)


def _of_a_thing(operation: str, params: Params, place: Place) -> list[Wanted]:
    action = f"sagemaker:{operation}"
    match = re.match(r"(Create|Describe|Delete|Update|Stop|Retry)(\w+)", operation)
    thing = next((one for one in sorted(_THINGS, key=len, reverse=True) if match and match[2].startswith(one)), None)
    if match is None or thing is None:
        raise UnknownRequest(f"local AWS does not know which permissions {action} needs; add it to request_actions.py")
    field_name, kind = _THINGS[thing]
    given = str(params.get(field_name) or params.get(f"{thing}Arn") or "")
    resource = given if given.startswith("arn:") else place.arn("sagemaker", f"{kind}/{given.lower()}")
    found = [Wanted(action, resource, _sagemaker_context(params))]
    if operation in ("CreateEndpoint", "UpdateEndpoint"):
        name = str(params.get("EndpointConfigName", "")).lower()
        found.append(Wanted(action, place.arn("sagemaker", f"endpoint-config/{name}")))
        if params.get("DeploymentConfig", {}).get("AutoRollbackConfiguration", {}).get("Alarms"):
            found.append(Wanted("cloudwatch:DescribeAlarms", place.arn("cloudwatch", "alarm:*")))
    if operation == "CreateInferenceComponent":
        found.append(Wanted(action, place.arn("sagemaker", f"endpoint/{str(params.get('EndpointName', '')).lower()}")))
    if match[1] == "Create" and params.get("Tags"):
        found.append(Wanted("sagemaker:AddTags", resource))
    passed = {"iam:PassedToService": SAGEMAKER}
    return found + [Wanted("iam:PassRole", str(params[name]), passed) for name in _ROLE_FIELDS if params.get(name)]


def _sagemaker_context(params: Params) -> Context:
    context: dict[str, str | list[str]] = {}
    if status := params.get("ModelApprovalStatus"):
        context["sagemaker:ModelApprovalStatus"] = str(status)
    if vpc := params.get("VpcConfig") or params.get("NetworkConfig", {}).get("VpcConfig"):
        context["sagemaker:VpcSubnets"] = [str(one) for one in vpc["Subnets"]]
        context["sagemaker:VpcSecurityGroupIds"] = [str(one) for one in vpc["SecurityGroupIds"]]
    return context


def invoke_endpoint(endpoint: str, component: str, place: Place) -> list[Wanted]:
    """What a request of the runtime API needs; `component` may be empty."""
    names = [f"endpoint/{endpoint.lower()}", *([f"inference-component/{component.lower()}"] if component else [])]
    return [Wanted("sagemaker:InvokeEndpoint", place.arn("sagemaker", name)) for name in names]


def _name(name_or_arn: Any) -> str:
    return str(name_or_arn).rsplit("/", 1)[-1].lower()


# ---------------------------------------------------------------- other services


def _alarm(name: str, place: Place) -> str:
    return place.arn("cloudwatch", f"alarm:{name}")


def _scalable_target(action: str) -> Callable[[Params, Place], list[Wanted]]:
    """Autoscaling does part of its work with the caller's permissions: it looks at the endpoint, and makes its alarms."""

    def describe(params: Params, place: Place) -> list[Wanted]:
        target = str(params["ResourceId"])
        context = {"application-autoscaling:service-namespace": str(params["ServiceNamespace"])}
        found = [
            Wanted(
                f"application-autoscaling:{action}", place.arn("application-autoscaling", "scalable-target/*"), context
            )
        ]
        kind, name = target.split("/")[:2]
        if action == "RegisterScalableTarget":
            found.append(
                Wanted(
                    "iam:CreateServiceLinkedRole",
                    f"arn:aws:iam::{place.account}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
                    "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
                    {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"},
                )
            )
            needs = ("DescribeEndpoint", "UpdateEndpointWeightsAndCapacities")
            if kind == "inference-component":
                needs = ("DescribeInferenceComponent", "UpdateInferenceComponentRuntimeConfig")
            found += [Wanted(f"sagemaker:{one}", place.arn("sagemaker", f"{kind}/{name.lower()}")) for one in needs]
        if action == "PutScalingPolicy" and params.get("PolicyType") == "TargetTrackingScaling":
            found.append(Wanted("cloudwatch:PutMetricAlarm", _alarm(f"TargetTracking-{target}-AlarmHigh", place)))
        if action == "DeregisterScalableTarget":
            found.append(Wanted("cloudwatch:DeleteAlarms", _alarm(f"TargetTracking-{target}-AlarmHigh", place)))
        return found

    return describe


def _on(service: str, action: str, resource: Callable[[Params], str]) -> Callable[[Params, Place], list[Wanted]]:
    def describe(params: Params, place: Place) -> list[Wanted]:
        named = resource(params)
        return [Wanted(action, named if named == "*" or named.startswith("arn:") else place.arn(service, named))]

    return describe


# Tags of an imported model by its name or ARN; bedrock.py, which knows them, puts itself here.
imported_model_tags: Callable[[str], dict[str, str]] = lambda identifier: {}  # noqa: E731


def _create_import(params: Params, place: Place) -> list[Wanted]:
    tags = {f"aws:RequestTag/{tag['key']}": str(tag["value"]) for tag in params.get("importedModelTags", [])}
    found = [Wanted(f"bedrock:{action}", "*", tags) for action in ("CreateModelImportJob", "TagResource")]
    found.append(Wanted("iam:PassRole", str(params["roleArn"]), {"iam:PassedToService": "bedrock.amazonaws.com"}))
    via = {"kms:ViaService": f"bedrock.{place.region}.amazonaws.com"}
    key = params.get("importedModelKmsKeyId")
    return found + [Wanted(f"kms:{action}", str(key), via) for action in ("CreateGrant", "DescribeKey") if key]


def _imported_model(action: str) -> Callable[[Params, Place], list[Wanted]]:
    def describe(params: Params, place: Place) -> list[Wanted]:
        identifier = str(params["modelIdentifier"])
        tags = {f"aws:ResourceTag/{name}": value for name, value in imported_model_tags(identifier).items()}
        arn = identifier if identifier.startswith("arn:") else place.arn("bedrock", "imported-model/named")
        return [Wanted(f"bedrock:{action}", arn, tags)]

    return describe


_OTHERS: dict[tuple[str, str], Callable[[Params, Place], list[Wanted]]] = {
    ("cloudwatch", "PutMetricData"): lambda params, place: [
        Wanted("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": str(params["Namespace"])})
    ],
    ("cloudwatch", "PutMetricAlarm"): lambda params, place: [
        Wanted("cloudwatch:PutMetricAlarm", _alarm(str(params["AlarmName"]), place))
    ],
    ("cloudwatch", "DeleteAlarms"): lambda params, place: [
        Wanted("cloudwatch:DeleteAlarms", _alarm(str(name), place)) for name in params["AlarmNames"]
    ],
    ("cloudwatch", "DescribeAlarms"): lambda params, place: [Wanted("cloudwatch:DescribeAlarms", _alarm("*", place))],
    ("cloudwatch", "GetMetricStatistics"): _on("cloudwatch", "cloudwatch:GetMetricStatistics", lambda params: "*"),
    ("cloudwatch", "GetMetricData"): _on("cloudwatch", "cloudwatch:GetMetricData", lambda params: "*"),
    ("cloudwatch", "ListMetrics"): _on("cloudwatch", "cloudwatch:ListMetrics", lambda params: "*"),
    ("bedrock", "CreateModelImportJob"): _create_import,
    ("bedrock", "GetModelImportJob"): _on(
        "bedrock", "bedrock:GetModelImportJob", lambda params: str(params["jobIdentifier"])
    ),
    ("bedrock", "ListModelImportJobs"): _on("bedrock", "bedrock:ListModelImportJobs", lambda params: "*"),
    ("bedrock", "ListImportedModels"): _on("bedrock", "bedrock:ListImportedModels", lambda params: "*"),
    ("bedrock", "GetImportedModel"): _imported_model("GetImportedModel"),
    ("bedrock", "DeleteImportedModel"): _imported_model("DeleteImportedModel"),
    ("sns", "Publish"): _on("sns", "sns:Publish", lambda params: str(params.get("TopicArn", "*"))),
    ("sqs", "SendMessage"): _on("sqs", "sqs:SendMessage", lambda params: str(params["QueueUrl"]).rsplit("/", 1)[-1]),
    ("secretsmanager", "GetSecretValue"): _on(
        "secretsmanager", "secretsmanager:GetSecretValue", lambda params: f"secret:{params['SecretId']}"
    ),
    ("ssm", "GetParameter"): _on("ssm", "ssm:GetParameter", lambda params: f"parameter/{params['Name'].lstrip('/')}"),
    ("sts", "GetCallerIdentity"): lambda params, place: [],  # needs no permission
    **{
        ("application-autoscaling", action): _scalable_target(action)
        for action in ("RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy", "DeleteScalingPolicy")
    },
    ("application-autoscaling", "DescribeScalableTargets"): _on(
        "application-autoscaling", "application-autoscaling:DescribeScalableTargets", lambda params: "*"
    ),
    ("application-autoscaling", "DescribeScalingPolicies"): _on(
        "application-autoscaling", "application-autoscaling:DescribeScalingPolicies", lambda params: "*"
    ),
}


# ---------------------------------------------------------------- S3


def s3_object(action: str, bucket: str, key: str) -> Wanted:
    return Wanted(f"s3:{action}", f"arn:aws:s3:::{bucket}/{key}")


def s3_list(bucket: str, prefix: str) -> Wanted:
    return Wanted("s3:ListBucket", f"arn:aws:s3:::{bucket}", {"s3:prefix": prefix})
