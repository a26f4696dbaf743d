"""CloudFormation: the resource types that moto skips or thins out, made real; and no type skipped in silence.

A type that neither moto nor this module knows is refused by name when the change set is made, as AWS does. A resource
that cannot be created rolls the stack back, with the reason in its events, where the CDK CLI reads it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moto.cloudformation import models as stack_models
from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.core.common_models import CloudFormationModel
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket

from local_aws import event_types, network_types, operations_types, serving_types, stack_changes
from local_aws.events import client
from local_aws.settings import Settings

Properties = dict[str, Any]

# Types without an effect on what runs.
IGNORED = {"AWS::CDK::Metadata"}


@dataclass(frozen=True)
class Resource:
    """What exists after a create or an update: what Ref gives, and what Fn::GetAtt can ask for."""

    physical_id: str
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResourceType:
    """One CloudFormation type over the service's own API.

    `name_property` holds the resource's name ("" if it has none). `put(name, properties, exists)` creates or updates.
    `properties` are those that it understands; any other one fails by name. A change of one of `replaced_by`, as of the
    name, makes a new resource and deletes the old one.
    """

    name: str
    name_property: str
    properties: frozenset[str]
    put: Callable[[str, Properties, bool], Resource]
    delete: Callable[[str, Properties], None]
    replaced_by: frozenset[str]


# ---------------------------------------------------------------- the types


def put_bucket(name: str, properties: Properties, exists: bool) -> Resource:
    s3 = client("s3")
    region = s3.meta.region_name
    if not exists:
        location = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=name, **location)
    if exists:  # what the template no longer holds goes back to the service's default
        s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration={})
        s3.delete_bucket_encryption(Bucket=name)
        s3.put_bucket_logging(Bucket=name, BucketLoggingStatus={})
        s3.delete_public_access_block(Bucket=name)
        s3.delete_bucket_ownership_controls(Bucket=name)
        s3.delete_bucket_lifecycle(Bucket=name)
        s3.delete_bucket_tagging(Bucket=name)
        if "VersioningConfiguration" not in properties and "Status" in s3.get_bucket_versioning(Bucket=name):
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    if "BucketEncryption" in properties:
        rules = [
            {
                "ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"],
                "BucketKeyEnabled": _boolean(rule.get("BucketKeyEnabled", False)),
            }
            for rule in properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        ]
        s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": rules})
    if "VersioningConfiguration" in properties:
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=properties["VersioningConfiguration"])
    if "PublicAccessBlockConfiguration" in properties:
        block = {key: _boolean(value) for key, value in properties["PublicAccessBlockConfiguration"].items()}
        s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=block)
    if "OwnershipControls" in properties:
        s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls=properties["OwnershipControls"])
    if "LoggingConfiguration" in properties:
        logging = properties["LoggingConfiguration"]
        target = {"TargetBucket": logging["DestinationBucketName"], "TargetPrefix": logging.get("LogFilePrefix", "")}
        s3.put_bucket_logging(Bucket=name, BucketLoggingStatus={"LoggingEnabled": target})
    if "LifecycleConfiguration" in properties:
        rules = [_lifecycle_rule(rule) for rule in properties["LifecycleConfiguration"]["Rules"]]
        s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    if "NotificationConfiguration" in properties:
        wanted = properties["NotificationConfiguration"]
        if unknown := wanted.keys() - {"EventBridgeConfiguration"}:
            raise ValueError(f"NotificationConfiguration.{', '.join(sorted(unknown))} is not implemented")
        bridge = _boolean(wanted["EventBridgeConfiguration"].get("EventBridgeEnabled", True))
        configuration: Properties = {"EventBridgeConfiguration": {}} if bridge else {}
        s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration=configuration)
    if "Tags" in properties:
        s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": properties["Tags"]})
    return Resource(
        name,
        {
            "Arn": f"arn:aws:s3:::{name}",
            "DomainName": f"{name}.s3.amazonaws.com",
            "RegionalDomainName": f"{name}.s3.{region}.amazonaws.com",
        },
    )


def _lifecycle_rule(rule: Properties) -> Properties:
    """CloudFormation's form of a lifecycle rule as the API's."""
    names = {
        "Status": "Status",
        "NoncurrentVersionExpiration": "NoncurrentVersionExpiration",
        "AbortIncompleteMultipartUpload": "AbortIncompleteMultipartUpload",
    }
    converted: Properties = {names[key]: value for key, value in rule.items() if key in names}
    converted["Filter"] = {"Prefix": rule.get("Prefix", "")}
    if "Id" in rule:
        converted["ID"] = rule["Id"]
    expiration = {
        api: rule[key]
        for key, api in (("ExpirationInDays", "Days"), ("ExpiredObjectDeleteMarker", "ExpiredObjectDeleteMarker"))
        if key in rule
    }
    if expiration:
        converted["Expiration"] = expiration
    known = {*names, "Prefix", "Id", "ExpirationInDays", "ExpiredObjectDeleteMarker"}
    if unknown := rule.keys() - known:
        raise ValueError(f"LifecycleConfiguration rule: {', '.join(sorted(unknown))} is not implemented")
    return converted


def put_bucket_policy(name: str, properties: Properties, exists: bool) -> Resource:
    client("s3").put_bucket_policy(Bucket=properties["Bucket"], Policy=json.dumps(properties["PolicyDocument"]))
    return Resource(properties["Bucket"])


def put_pipeline(name: str, properties: Properties, exists: bool) -> Resource:
    definition = properties["PipelineDefinition"]
    if isinstance(definition, str):
        definition = json.loads(definition)
    request: Properties = {
        "PipelineName": name,
        "RoleArn": properties["RoleArn"],
        **{
            key: properties[key]
            for key in ("PipelineDisplayName", "PipelineDescription", "ParallelismConfiguration")
            if key in properties
        },
    }
    if "PipelineDefinitionBody" in definition:
        request["PipelineDefinition"] = definition["PipelineDefinitionBody"]
    else:
        request["PipelineDefinitionS3Location"] = {
            key: value
            for key, value in definition["PipelineDefinitionS3Location"].items()
            if key in ("Bucket", "Key", "Version")
        }
        location = request["PipelineDefinitionS3Location"]
        location["ObjectKey"] = location.pop("Key")
        if "Version" in location:
            location["VersionId"] = location.pop("Version")
    sagemaker = client("sagemaker")
    if exists:
        sagemaker.update_pipeline(**request)
    else:
        sagemaker.create_pipeline(**request, Tags=properties.get("Tags", []))
    return Resource(name)


def put_model_package_group(name: str, properties: Properties, exists: bool) -> Resource:
    sagemaker = client("sagemaker")
    description = properties.get("ModelPackageGroupDescription", name)
    if not exists:
        sagemaker.create_model_package_group(
            ModelPackageGroupName=name, ModelPackageGroupDescription=description, Tags=properties.get("Tags", [])
        )
    group = sagemaker.describe_model_package_group(ModelPackageGroupName=name)
    if group["ModelPackageGroupDescription"] != description:  # SageMaker has no call for it
        raise ValueError("ModelPackageGroupDescription cannot be changed; give the group another name")
    if "ModelPackageGroupPolicy" in properties:
        policy = json.dumps(properties["ModelPackageGroupPolicy"])
        sagemaker.put_model_package_group_policy(ModelPackageGroupName=name, ResourcePolicy=policy)
    else:
        sagemaker.delete_model_package_group_policy(ModelPackageGroupName=name)
    arn = group["ModelPackageGroupArn"]
    return Resource(arn, {"ModelPackageGroupArn": arn})


def put_schedule(name: str, properties: Properties, exists: bool) -> Resource:
    scheduler = client("scheduler")
    request = {key: value for key, value in properties.items() if key != "Name"}
    answer = (scheduler.update_schedule if exists else scheduler.create_schedule)(Name=name, **request)
    return Resource(name, {"Arn": answer["ScheduleArn"]})


def put_topic_policy(name: str, properties: Properties, exists: bool) -> Resource:
    for topic in properties["Topics"]:
        document = json.dumps(properties["PolicyDocument"])
        client("sns").set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=document)
    return Resource(name)


def put_subscription(name: str, properties: Properties, exists: bool) -> Resource:
    answer = client("sns").subscribe(
        TopicArn=properties["TopicArn"],
        Protocol=properties["Protocol"],
        Endpoint=properties["Endpoint"],
        ReturnSubscriptionArn=True,
    )
    return Resource(answer["SubscriptionArn"])


def put_queue_policy(name: str, properties: Properties, exists: bool) -> Resource:
    for queue in properties["Queues"]:
        client("sqs").set_queue_attributes(
            QueueUrl=queue, Attributes={"Policy": json.dumps(properties["PolicyDocument"])}
        )
    return Resource(name)


def put_alarm(name: str, properties: Properties, exists: bool) -> Resource:
    numbers = {"Threshold": float, "Period": int, "EvaluationPeriods": int, "DatapointsToAlarm": int}
    request = {key: numbers[key](value) if key in numbers else value for key, value in properties.items()}
    request["AlarmName"] = name
    cloudwatch = client("cloudwatch")
    cloudwatch.put_metric_alarm(**request)
    arn = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"][0]["AlarmArn"]
    return Resource(name, {"Arn": arn})


def put_key(name: str, properties: Properties, exists: bool) -> Resource:
    kms = client("kms")
    tags = [{"TagKey": tag["Key"], "TagValue": tag["Value"]} for tag in properties.get("Tags", [])]
    if exists:
        kms.update_key_description(KeyId=name, Description=properties.get("Description", ""))
        kms.tag_resource(KeyId=name, Tags=tags)
    else:
        name = kms.create_key(Description=properties.get("Description", ""), Tags=tags)["KeyMetadata"]["KeyId"]
    kms.put_key_policy(KeyId=name, PolicyName="default", Policy=json.dumps(properties["KeyPolicy"]))
    rotates = _boolean(properties.get("EnableKeyRotation", False))
    (kms.enable_key_rotation if rotates else kms.disable_key_rotation)(KeyId=name)
    return Resource(name, {"Arn": kms.describe_key(KeyId=name)["KeyMetadata"]["Arn"], "KeyId": name})


def delete_key(name: str, properties: Properties) -> None:
    """As CloudFormation: the key is usable no more, and gone after the longest waiting period there is."""
    client("kms").schedule_key_deletion(KeyId=name, PendingWindowInDays=properties.get("PendingWindowInDays", 30))


def put_alias(name: str, properties: Properties, exists: bool) -> Resource:
    put = client("kms").update_alias if exists else client("kms").create_alias
    put(AliasName=properties["AliasName"], TargetKeyId=properties["TargetKeyId"])
    return Resource(properties["AliasName"])


def _put_serving(kind: str) -> Callable[[str, Properties, bool], Resource]:
    return lambda name, properties, exists: Resource(*serving_types.put_sagemaker(kind, name, properties, exists))


def _serving_type(kind: str, properties: str, replaced_by: str) -> ResourceType:
    name_property = serving_types.SAGEMAKER_NAMES[kind]
    return _type(
        f"AWS::SageMaker::{kind}",
        name_property,
        f"{name_property} {properties} Tags",
        _put_serving(kind),
        lambda id_, _: serving_types.delete_sagemaker(kind, id_),
        replaced_by,
    )


def _nothing_to_delete(physical_id: str, properties: Properties) -> None:
    """What it was part of is deleted with it."""


def _type(
    name: str,
    name_property: str,
    properties: str,
    put: Any,
    delete: Any = _nothing_to_delete,
    replaced_by: str = "",
) -> ResourceType:
    return ResourceType(name, name_property, frozenset(properties.split()), put, delete, frozenset(replaced_by.split()))


def _made(put: Callable[[str, Properties, bool], tuple[str, dict[str, str]]]) -> Callable[..., Resource]:
    """A `put` that gives the physical id and the attributes."""
    return lambda name, properties, exists: Resource(*put(name, properties, exists))


def _by_id(delete: Callable[[str], None]) -> Callable[[str, Properties], None]:
    """A `delete` that needs no properties."""
    return lambda physical_id, properties: delete(physical_id)


MODEL_PROPERTIES = "PrimaryContainer Containers ExecutionRoleArn EnableNetworkIsolation VpcConfig"
CONFIG_PROPERTIES = "ProductionVariants DataCaptureConfig ExecutionRoleArn EnableNetworkIsolation VpcConfig KmsKeyId"
NETWORK_TYPES = [
    _type(
        "AWS::EC2::VPC",
        "",
        "CidrBlock EnableDnsSupport EnableDnsHostnames Tags",
        _made(network_types.put_vpc),
        _by_id(network_types.delete_vpc),
        "CidrBlock",
    ),
    _type(
        "AWS::EC2::Subnet",
        "",
        "VpcId CidrBlock AvailabilityZone MapPublicIpOnLaunch Tags",
        _made(network_types.put_subnet),
        _by_id(network_types.delete_subnet),
        "VpcId CidrBlock AvailabilityZone",
    ),
    _type(
        "AWS::EC2::RouteTable",
        "",
        "VpcId Tags",
        _made(network_types.put_route_table),
        _by_id(network_types.delete_route_table),
        "VpcId",
    ),
    _type(
        "AWS::EC2::SubnetRouteTableAssociation",
        "",
        "SubnetId RouteTableId",
        lambda _, properties, exists: Resource(*network_types.put_association(properties)),
        _by_id(network_types.delete_association),
        "SubnetId RouteTableId",
    ),
    _type(
        "AWS::EC2::SecurityGroup",
        "GroupName",
        "GroupName GroupDescription VpcId SecurityGroupIngress SecurityGroupEgress Tags",
        _made(network_types.put_security_group),
        _by_id(network_types.delete_security_group),
        "GroupDescription VpcId SecurityGroupIngress SecurityGroupEgress",
    ),
    *(
        _type(
            f"AWS::EC2::SecurityGroup{direction}",
            "",
            f"{network_types.RULE_PROPERTIES} {peer}",
            lambda _, properties, exists, direction=direction: Resource(*network_types.put_rule(direction, properties)),
            lambda _, properties, direction=direction: network_types.delete_rule(direction, properties),
            f"{network_types.RULE_PROPERTIES} {peer}",
        )
        for direction, peer in (("Ingress", "SourceSecurityGroupId"), ("Egress", "DestinationSecurityGroupId"))
    ),
    _type(
        "AWS::EC2::VPCEndpoint",
        "",
        "VpcId ServiceName VpcEndpointType RouteTableIds SubnetIds SecurityGroupIds PrivateDnsEnabled PolicyDocument Tags",
        _made(network_types.put_endpoint),
        _by_id(network_types.delete_endpoint),
        "VpcId ServiceName VpcEndpointType RouteTableIds SubnetIds SecurityGroupIds PrivateDnsEnabled",
    ),
    _type(
        "AWS::EC2::FlowLog",
        "",
        "ResourceId ResourceType TrafficType LogDestinationType LogGroupName DeliverLogsPermissionArn Tags",
        _made(network_types.put_flow_log),
        _by_id(network_types.delete_flow_log),
        "ResourceId ResourceType TrafficType LogDestinationType LogGroupName DeliverLogsPermissionArn",
    ),
    _type(
        "AWS::Logs::LogGroup",
        "LogGroupName",
        "LogGroupName KmsKeyId RetentionInDays Tags",
        _made(network_types.put_log_group),
        _by_id(network_types.delete_log_group),
    ),
]
TYPES = [
    _type(
        "AWS::S3::Bucket",
        "BucketName",
        "BucketName BucketEncryption VersioningConfiguration PublicAccessBlockConfiguration OwnershipControls "
        "LifecycleConfiguration LoggingConfiguration NotificationConfiguration Tags AccessControl",
        put_bucket,
        lambda id_, _: client("s3").delete_bucket(Bucket=id_),
    ),
    _type(
        "AWS::S3::BucketPolicy",
        "",
        "Bucket PolicyDocument",
        put_bucket_policy,
        lambda id_, _: client("s3").delete_bucket_policy(Bucket=id_),
        "Bucket",
    ),
    _type(
        "AWS::SageMaker::Pipeline",
        "PipelineName",
        "PipelineName PipelineDefinition PipelineDisplayName PipelineDescription ParallelismConfiguration RoleArn Tags",
        put_pipeline,
        lambda id_, _: client("sagemaker").delete_pipeline(PipelineName=id_),
    ),
    _type(
        "AWS::SageMaker::ModelPackageGroup",
        "ModelPackageGroupName",
        "ModelPackageGroupName ModelPackageGroupDescription ModelPackageGroupPolicy Tags",
        put_model_package_group,
        lambda id_, _: client("sagemaker").delete_model_package_group(ModelPackageGroupName=id_.rsplit("/", 1)[-1]),
    ),
    _type(
        "AWS::Scheduler::Schedule",
        "Name",
        "Name Description ScheduleExpression ScheduleExpressionTimezone FlexibleTimeWindow Target State GroupName "
        "StartDate EndDate",
        put_schedule,
        lambda id_, properties: client("scheduler").delete_schedule(
            Name=id_, **({"GroupName": properties["GroupName"]} if "GroupName" in properties else {})
        ),
        "GroupName",
    ),
    _type(
        "AWS::KMS::Key",
        "",
        "Description EnableKeyRotation KeyPolicy PendingWindowInDays Tags",
        put_key,
        delete_key,
    ),
    _type(
        "AWS::KMS::Alias",
        "",
        "AliasName TargetKeyId",
        put_alias,
        lambda id_, _: client("kms").delete_alias(AliasName=id_),
        "AliasName",
    ),
    _type("AWS::SNS::TopicPolicy", "", "Topics PolicyDocument", put_topic_policy),
    _type(
        "AWS::SNS::Subscription",
        "",
        "TopicArn Protocol Endpoint",
        put_subscription,
        lambda id_, _: client("sns").unsubscribe(SubscriptionArn=id_),
        "TopicArn Protocol Endpoint",
    ),
    _type(
        "AWS::SQS::Queue",
        "QueueName",
        f"QueueName {operations_types.QUEUE_PROPERTIES} Tags",
        _made(operations_types.put_queue),
        _by_id(operations_types.delete_queue),
    ),
    _type("AWS::SQS::QueuePolicy", "", "Queues PolicyDocument", put_queue_policy),
    _type(
        "AWS::CloudWatch::Dashboard",
        "DashboardName",
        "DashboardName DashboardBody Tags",
        lambda name, properties, exists: Resource(operations_types.put_dashboard(name, properties)),
        _by_id(operations_types.delete_dashboard),
    ),
    _type(
        "AWS::Budgets::Budget",
        "",
        "Budget NotificationsWithSubscribers ResourceTags",
        lambda name, properties, exists: Resource(operations_types.put_budget(name, properties, exists)),
        _by_id(operations_types.delete_budget),
    ),
    _type(
        "AWS::CloudWatch::Alarm",
        "AlarmName",
        "AlarmName AlarmDescription AlarmActions OKActions InsufficientDataActions ActionsEnabled MetricName Namespace "
        "Statistic ExtendedStatistic Dimensions Period Unit EvaluationPeriods DatapointsToAlarm Threshold "
        "ComparisonOperator TreatMissingData EvaluateLowSampleCountPercentile Metrics Tags",
        put_alarm,
        lambda id_, _: client("cloudwatch").delete_alarms(AlarmNames=[id_]),
    ),
    _type(
        "AWS::Events::EventBus",
        "Name",
        "Name Description Tags",
        _made(event_types.put_bus),
        _by_id(event_types.delete_bus),
    ),
    _type(
        "AWS::Events::EventBusPolicy",
        "",
        "EventBusName StatementId Statement Action Principal Condition",
        lambda _, properties, exists: Resource(event_types.put_bus_policy(properties)),
        lambda id_, properties: event_types.delete_bus_policy(properties),
        "EventBusName StatementId",
    ),
    *NETWORK_TYPES,
    _serving_type("Model", MODEL_PROPERTIES, f"{MODEL_PROPERTIES} Tags"),
    _serving_type("EndpointConfig", CONFIG_PROPERTIES, f"{CONFIG_PROPERTIES} Tags"),
    _serving_type(
        "Endpoint",
        "EndpointConfigName DeploymentConfig RetainAllVariantProperties ExcludeRetainedVariantProperties "
        "RetainDeploymentConfig",
        "",
    ),
    _serving_type(
        "InferenceComponent",
        "EndpointName VariantName Specification RuntimeConfig DeploymentConfig",
        "EndpointName VariantName",
    ),
    _type(
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "",
        "MaxCapacity MinCapacity ResourceId RoleARN ScalableDimension ServiceNamespace SuspendedState",
        lambda _, properties, exists: Resource(serving_types.put_scalable_target(properties)),
        _by_id(serving_types.delete_scalable_target),
        "ResourceId ScalableDimension ServiceNamespace",
    ),
    _type(
        "AWS::ApplicationAutoScaling::ScalingPolicy",
        "",
        "PolicyName PolicyType ResourceId ScalableDimension ServiceNamespace ScalingTargetId "
        "TargetTrackingScalingPolicyConfiguration StepScalingPolicyConfiguration",
        lambda _, properties, exists: Resource(serving_types.put_scaling_policy(properties)),
        lambda _, properties: serving_types.delete_scaling_policy(properties),
        "PolicyName ResourceId ScalableDimension ServiceNamespace ScalingTargetId",
    ),
]


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() == "true"


# ---------------------------------------------------------------- into moto


def install(settings: Settings) -> None:
    """Teach moto's CloudFormation our types; call it before the first stack."""
    for resource_type in TYPES:
        _register(resource_type)
    for name in IGNORED:
        _register(_type(name, "", "Analytics", lambda id_, properties, exists: Resource(id_)))
    parsing.get_model_list.cache_clear()
    parsing.get_model_map.cache_clear()
    parsing.get_name_type_map.cache_clear()
    # The property that names a resource: ours, where moto has a class of its own for the type.
    parsing.resource_name_property_from_type = lambda type_: parsing.get_name_type_map().get(type_)
    stack_changes.install()
    backend = stack_models.CloudFormationBackend
    backend.create_change_set = _checked(backend.create_change_set)
    # moto reads bucket policies without their conditions, so "deny what is not TLS" would deny everything; enforcement.py
    # reads them whole.
    FakeBucket.get_permission = lambda self, action, resource: PermissionResult.NEUTRAL
    # CDK's policy of a log bucket names the bucket that is logged, so that it comes after it; S3 does not mind, moto does.
    FakeBucket._log_permissions_enabled_policy = lambda self, target_bucket, target_prefix: True


def _register(resource_type: ResourceType) -> None:
    """A model class of moto's for the type; moto finds it among the subclasses of CloudFormationModel."""

    def create(cls: Any, resource_name: str, cloudformation_json: Properties, *_: Any, **__: Any) -> Any:
        return cls(_put(resource_name, cloudformation_json["Properties"], False), cloudformation_json["Properties"])

    def update(
        cls: Any, original_resource: Any, new_resource_name: str, cloudformation_json: Properties, *_: Any, **__: Any
    ) -> Any:
        properties = cloudformation_json["Properties"]
        name = original_resource.physical_resource_id.rsplit("/", 1)[-1]
        old = original_resource.properties
        renamed = resource_type.name_property and properties.get(resource_type.name_property, name) != name
        if renamed or any(properties.get(key) != old.get(key) for key in resource_type.replaced_by):
            replacement = cls(_put(new_resource_name, properties, False), properties)
            resource_type.delete(original_resource.physical_resource_id, old)
            return replacement
        return cls(_put(name, properties, True), properties)

    def _put(name: str, properties: Properties, exists: bool) -> Resource:
        if unknown := properties.keys() - resource_type.properties:
            raise ValueError(f"{resource_type.name}: property {', '.join(sorted(unknown))} is not implemented")
        return resource_type.put(name, properties, exists)

    def initialize(self: Any, resource: Resource, properties: Properties) -> None:
        self.resource, self.properties = resource, properties

    name = resource_type.name.replace("::", "")
    # By this name a kept state finds the class again.
    globals()[name] = type(
        name,
        (CloudFormationModel,),
        {
            "__module__": __name__,
            "__init__": initialize,
            "physical_resource_id": property(lambda self: self.resource.physical_id),
            "get_cfn_attribute": lambda self, attribute: self.resource.attributes[attribute],
            "delete": lambda self, *_: resource_type.delete(self.resource.physical_id, self.properties),
            "cloudformation_name_type": staticmethod(lambda: resource_type.name_property),
            "cloudformation_type": staticmethod(lambda: resource_type.name),
            "has_cfn_attr": classmethod(lambda cls, attribute: True),
            "create_from_cloudformation_json": classmethod(create),
            "update_from_cloudformation_json": classmethod(update),
        },
    )


def _refuse_unknown_types(template: dict[str, Any]) -> None:
    unknown = [
        f"{resource['Type']} ({logical_id})"
        for logical_id, resource in template.get("Resources", {}).items()
        if resource["Type"] not in parsing.get_model_map() and resource["Type"] not in parsing.NULL_MODELS
    ]
    if unknown:
        raise ValidationError(
            message=f"Template format error: Unrecognized resource types: [{', '.join(sorted(unknown))}]; "
            "local AWS does not implement them"
        )


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    """A backend method that takes a template, after every type in it is known to be implemented."""

    def check(*arguments: Any, **keywords: Any) -> Any:
        template = keywords["template"]
        _refuse_unknown_types(stack_models.Stack.parse_template(template))
        return original(*arguments, **keywords)

    return check
