"""The pipelines, the roles that their jobs assume, and the model package group."""

import re
from pathlib import Path

from aws_cdk import ArnFormat, CfnOutput, Fn, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from config import jumpstart_lock
from config.jumpstart_lock import LockError, Training
from config.settings import Settings
from pipeline.definition import (
    CREATED_SECURITY_GROUP,
    CREATED_SUBNETS,
    compare_definition,
    deploy_definition,
    finetune_definition,
    has_local_storage,
)
from pipeline.monitor import NAMESPACE as TRAFFIC_NAMESPACE
from pipeline.monitor import monitor_definition
from pipeline.sdk import serving_image, training_image
from stacks.components.bedrock_import import bedrock_import
from stacks.components.permissions import (
    delete_objects,
    list_objects,
    read_objects,
    use_key,
    use_network,
    write_objects,
)
from stacks.components.service_role import ServiceRole
from stacks.components.step_code import StepCode
from stacks.network import Network

ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<repository>[^:@]+)"
)

# What a training does on a tracking server.
MLFLOW_ACTIONS = (
    "CreateExperiment", "GetExperiment", "GetExperimentByName", "CreateRun", "GetRun", "UpdateRun", "LogParam", "LogMetric",
    "LogBatch", "SetTag",
)  # fmt: skip


class PipelineStack(Stack):
    """`<name>-finetune`, `<name>-deploy` and `<name>-compare`, one role for each kind of job, one model package group."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        settings: Settings,
        raw_bucket: s3.IBucket,
        artifact_bucket: s3.IBucket,
        key: kms.IKey,
        step_code_zip: Path,
        network: Network | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]
        code = StepCode(self, "StepCode", zip_file=step_code_zip).asset
        group = sagemaker.CfnModelPackageGroup(
            self,
            "ModelPackageGroup",
            model_package_group_name=settings.model_package_group_name,
            model_package_group_description=f"Models tuned by {settings.finetune_pipeline_name}",
        )
        group.apply_removal_policy(RemovalPolicy.RETAIN if settings.keep_data else RemovalPolicy.DESTROY)

        image = training_image(settings.images, settings.region, settings.training.instance_type)
        of_jumpstart = jumpstart_lock.training_of(settings) if settings.backend == "jumpstart" else None
        trains = of_jumpstart.lock.image_uri(of_jumpstart.instance_type) if of_jumpstart else image
        prepare_role = self._job_role(
            "PrepareRole", "Checks, splits and publishes datasets", settings.images.prepare_image_uri or image
        )
        train_role = self._job_role("TrainRole", "Fine-tunes the base model", trains)
        evaluate_role = self._job_role("EvaluateRole", "Scores base and tuned model", image)
        deploy_role = self._job_role("DeployRole", "Releases a model package to the endpoint", image)
        pipeline_role = ServiceRole(
            self, "PipelineRole", service="sagemaker.amazonaws.com", description="Runs the steps of the pipelines"
        )

        takes_key = {
            prepare_role: settings.processing.prepare_instance_type,
            train_role: settings.training.instance_type,
            evaluate_role: settings.processing.evaluate_instance_type,
            deploy_role: settings.processing.deploy_instance_type,
        }
        for role, instance_type in takes_key.items():
            read_objects(role, "StepCode", code.bucket, code.s3_object_key)
            list_objects(role, "StepCode", code.bucket, code.s3_object_key)
            # The volumes of an endpoint are attached in the name of who makes it.
            makes_endpoint = (
                role is deploy_role
                and settings.release.target == "sagemaker"
                and not has_local_storage(settings.release.instance_type)
            )
            use_key(role, key, writes=True, volumes=makes_endpoint or not has_local_storage(instance_type))

        read_objects(prepare_role, "RawData", raw_bucket, "*")
        list_objects(prepare_role, "RawData", raw_bucket)
        # base-models/: the tokenizer, and whether the weights are there; runs/: whether the approved model still is.
        read_objects(prepare_role, "Artifacts", artifact_bucket, "datasets/*", "base-models/*", "runs/*")
        list_objects(prepare_role, "Artifacts", artifact_bucket)
        write_objects(prepare_role, "Datasets", artifact_bucket, "datasets/*", "runs/*")
        if settings.processing.prepare_instance_count > 1:  # what instances hand each other
            delete_objects(prepare_role, "Exchanged", artifact_bucket, "datasets/.exchange/*")
        self._grant_find_packages(prepare_role, settings)
        self._grant_see_other_runs(prepare_role, settings.finetune_pipeline_name)

        read_objects(train_role, "Artifacts", artifact_bucket, "datasets/*", "base-models/*", "checkpoints/*")
        list_objects(train_role, "Artifacts", artifact_bucket, "datasets/*", "base-models/*", "checkpoints/*")
        write_objects(train_role, "Model", artifact_bucket, "runs/*", "checkpoints/*")
        if settings.training.mlflow_server:
            train_role.add_to_policy(
                iam.PolicyStatement(
                    sid="Track",
                    actions=[f"sagemaker-mlflow:{action}" for action in MLFLOW_ACTIONS],
                    resources=[settings.training.mlflow_server],
                )
            )

        if of_jumpstart is not None:
            self._grant_jumpstart(train_role, evaluate_role, of_jumpstart)

        read = ("datasets/*", "base-models/*", "prompts/*", "runs/*")
        read_objects(evaluate_role, "Artifacts", artifact_bucket, *read)
        list_objects(evaluate_role, "Artifacts", artifact_bucket, *read)
        write_objects(evaluate_role, "Evaluation", artifact_bucket, "runs/*")
        if settings.gate.judge_model_id:
            self._grant_judge(evaluate_role, settings.gate.judge_model_id)

        # When the model was written, what it answered then, and its adapter.
        adapters = settings.release.serve == "adapter"
        read_objects(deploy_role, "Artifacts", artifact_bucket, "runs/*", *(["adapters/*"] if adapters else []))
        list_objects(deploy_role, "Artifacts", artifact_bucket)
        write_objects(deploy_role, "Deployment", artifact_bucket, "runs/*", *(["adapters/*"] if adapters else []))
        in_network = [*takes_key]  # SageMaker puts interfaces of theirs into the VPC, if there is one
        if settings.release.target == "bedrock":
            bedrock_role = bedrock_import(self, deploy_role, artifact_bucket, key, settings.name)
            deploy_role.add_to_policy(self._read_package(settings))
            reader = {"BedrockRole": bedrock_role.role_arn}
        else:
            serving_role = self._serving_role(artifact_bucket, key, settings)
            self._grant_release(deploy_role, serving_role, settings)
            reader = {"ServingRole": serving_role.role_arn}
            in_network.append(serving_role)
        job_roles = [*takes_key]
        monitor_role = None
        if settings.monitoring.enabled:
            monitor_role = self._job_role("MonitorRole", "Compares the endpoint's traffic with its evaluation", image)
            read_objects(monitor_role, "StepCode", code.bucket, code.s3_object_key)
            list_objects(monitor_role, "StepCode", code.bucket, code.s3_object_key)
            use_key(monitor_role, key, writes=True, volumes=not has_local_storage(settings.monitoring.instance_type))
            self._grant_look_at_traffic(monitor_role, artifact_bucket, settings)
            job_roles.append(monitor_role)
            in_network.append(monitor_role)

        if network is not None:
            for role in in_network:
                use_network(role, network)

        # The pipeline reads property files itself and hands each job its role.
        read_objects(pipeline_role, "PropertyFiles", artifact_bucket, "runs/*")
        use_key(pipeline_role, key)
        self._grant_run_jobs(pipeline_role, job_roles, settings, network)

        resources = {
            "RawBucket": raw_bucket.bucket_name,
            "ArtifactBucket": artifact_bucket.bucket_name,
            "CodeBucket": code.s3_bucket_name,
            "CodeKey": code.s3_object_key,
            "PrepareRole": prepare_role.role_arn,
            "TrainRole": train_role.role_arn,
            "EvaluateRole": evaluate_role.role_arn,
            "DeployRole": deploy_role.role_arn,
            **reader,
            "Key": key.key_arn,
            **_network_resources(network),
        }
        self.finetune_pipeline = self._pipeline(
            "FinetunePipeline",
            settings.finetune_pipeline_name,
            "Prepares data, fine-tunes, evaluates, and registers and releases what passed the gate",
            finetune_definition(settings),
            resources,
            pipeline_role,
        )
        self.deploy_pipeline = self._pipeline(
            "DeployPipeline",
            settings.deploy_pipeline_name,
            "Releases one approved model package",
            deploy_definition(settings),
            resources,
            pipeline_role,
        )
        self.compare_pipeline = self._pipeline(
            "ComparePipeline",
            settings.compare_pipeline_name,
            "Answers prompts with the base and with a tuned model",
            compare_definition(settings),
            resources,
            pipeline_role,
        )
        self.monitor_pipeline = None
        if monitor_role is not None:
            self.monitor_pipeline = self._pipeline(
                "MonitorPipeline",
                settings.monitor_pipeline_name,
                "Compares the endpoint's traffic with what its model was evaluated on",
                monitor_definition(settings),
                {**resources, "MonitorRole": monitor_role.role_arn},
                pipeline_role,
            )
        self.finetune_pipeline.add_resource_dependency(group)

        CfnOutput(self, "FinetunePipelineName", value=settings.finetune_pipeline_name)
        CfnOutput(self, "DeployPipelineName", value=settings.deploy_pipeline_name)
        CfnOutput(self, "ComparePipelineName", value=settings.compare_pipeline_name)
        CfnOutput(self, "EndpointName", value=settings.endpoint_name)

    def _job_role(self, id_: str, description: str, image: str) -> iam.Role:
        """A role for jobs of one kind, with what SageMaker does around their program; `image` is pulled with it."""
        role = ServiceRole(self, id_, service="sagemaker.amazonaws.com", description=description)
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Logs",
                actions=["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                resources=[
                    self.format_arn(service="logs", resource=f"log-group:/aws/sagemaker/*{streams}")
                    for streams in ("", ":log-stream:*")
                ],
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Metrics",
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],  # the action knows no resources; the namespace limits it
                conditions={"StringLike": {"cloudwatch:namespace": ["/aws/sagemaker/*", "aws/sagemaker/*"]}},
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="ImageToken", actions=["ecr:GetAuthorizationToken"], resources=["*"]
            )  # knows no resources
        )
        found = ECR_IMAGE.match(image)
        if found is None:  # settings have no other; a lock file may
            raise LockError(f"the image {image!r} is not in Amazon ECR; look the JumpStart model up again")
        repository = f"ecr:{found['region']}:{found['account']}:repository/{found['repository']}"
        role.add_to_policy(
            iam.PolicyStatement(
                sid="ImageLayers",
                actions=["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                resources=[f"arn:{self.partition}:{repository}"],
            )
        )
        return role

    def _grant_find_packages(self, role: iam.Role, settings: Settings) -> None:
        """What prepare_data.py asks the registry: whether the same data was trained with the same parameters."""
        group = settings.model_package_group_name
        role.add_to_policy(
            iam.PolicyStatement(
                sid="FindPackages",
                actions=["sagemaker:ListModelPackages", "sagemaker:DescribeModelPackage"],
                resources=[
                    self.format_arn(service="sagemaker", resource="model-package-group", resource_name=group),
                    self.format_arn(service="sagemaker", resource="model-package", resource_name=f"{group}/*"),
                ],
            )
        )

    def _grant_see_other_runs(self, role: iam.Role, pipeline_name: str) -> None:
        """What overlap.py asks: which executions of the pipeline have not ended, and how far they are."""
        pipeline = self.format_arn(service="sagemaker", resource="pipeline", resource_name=pipeline_name)
        role.add_to_policy(
            iam.PolicyStatement(sid="FindRuns", actions=["sagemaker:ListPipelineExecutions"], resources=[pipeline])
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="FollowRuns",
                actions=["sagemaker:ListPipelineExecutionSteps"],
                resources=[f"{pipeline}/execution/*"],
            )
        )

    def _grant_look_at_traffic(self, role: iam.Role, artifact_bucket: s3.IBucket, settings: Settings) -> None:
        """What monitor.py reads: the traffic, and the serving model's evaluation, training prompts and tokenizer."""
        read_objects(role, "Artifacts", artifact_bucket, "captured/*", "datasets/*", "runs/*")
        list_objects(role, "Artifacts", artifact_bucket)
        write_objects(role, "Drift", artifact_bucket, "runs/*")
        role.add_to_policy(
            iam.PolicyStatement(
                sid="TrafficMetrics",
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],  # the action knows no resources; the namespace limits it
                conditions={"StringEquals": {"cloudwatch:namespace": TRAFFIC_NAMESPACE}},
            )
        )

        def arn(resource: str, name: str) -> str:
            return self.format_arn(service="sagemaker", resource=resource, resource_name=name)

        role.add_to_policy(
            iam.PolicyStatement(
                sid="SeeWhatServes",
                actions=[
                    "sagemaker:DescribeEndpoint",
                    "sagemaker:DescribeEndpointConfig",
                    "sagemaker:DescribeModelPackage",
                    "sagemaker:ListTags",
                ],
                resources=[
                    arn("endpoint", settings.endpoint_name),
                    arn("endpoint-config", f"{settings.endpoint_name}-*"),
                    arn("model-package", f"{settings.model_package_group_name}/*"),
                ],
            )
        )

    def _grant_jumpstart(self, train_role: iam.Role, evaluate_role: iam.Role, training: Training) -> None:
        """JumpStart's weights and script for the training; its job's own word for FromJumpStart."""
        uris = (training.lock.model_uri(training.instance_type), training.lock.script_uri)
        places = [uri.removeprefix("s3://").partition("/") for uri in uris]
        train_role.add_to_policy(
            iam.PolicyStatement(
                sid="ReadJumpStart",
                actions=["s3:GetObject"],
                resources=[f"arn:{self.partition}:s3:::{bucket}/{key}*" for bucket, _, key in places],
            )
        )
        train_role.add_to_policy(
            iam.PolicyStatement(
                sid="ListJumpStart",
                actions=["s3:ListBucket"],
                resources=sorted({f"arn:{self.partition}:s3:::{bucket}" for bucket, _, _ in places}),
                conditions={"StringLike": {"s3:prefix": [f"{key}*" for _, _, key in places]}},
            )
        )
        evaluate_role.add_to_policy(
            iam.PolicyStatement(
                sid="ReadTraining",
                actions=["sagemaker:DescribeTrainingJob"],
                resources=[self.format_arn(service="sagemaker", resource="training-job", resource_name="pipelines-*")],
            )
        )

    def _grant_judge(self, role: iam.Role, model_id: str) -> None:
        """What judge.py calls. An inference profile, such as us.anthropic..., answers from models of several regions."""
        model = model_id.split(".", 1)[1] if model_id.count(".") > 1 else model_id
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Judge",
                actions=["bedrock:InvokeModel"],
                resources=[
                    f"arn:{self.partition}:bedrock:*::foundation-model/{model}",
                    self.format_arn(service="bedrock", resource="inference-profile", resource_name=model_id),
                ],
            )
        )

    def _serving_role(self, artifact_bucket: s3.IBucket, key: kms.IKey, settings: Settings) -> iam.Role:
        image = serving_image(settings.images, settings.region)
        role = self._job_role("ServingRole", "Serves a released model", image)
        served = ("adapters/*", "base-models/*") if settings.release.serve == "adapter" else ("runs/*",)
        read_objects(role, "Model", artifact_bucket, *served)
        list_objects(role, "Model", artifact_bucket, *served)
        captures = settings.monitoring.enabled
        use_key(role, key, writes=captures)
        if captures:
            write_objects(role, "Traffic", artifact_bucket, "captured/*")
        return role

    def _read_package(self, settings: Settings) -> iam.PolicyStatement:
        package = self.format_arn(
            service="sagemaker", resource="model-package", resource_name=f"{settings.model_package_group_name}/*"
        )
        return iam.PolicyStatement(sid="ReadPackage", actions=["sagemaker:DescribeModelPackage"], resources=[package])

    def _grant_release(self, role: iam.Role, serving_role: iam.Role, settings: Settings) -> None:
        """What release/ calls: read the package, make models and configurations, move the endpoint, watch it, ask it."""

        def arn(resource: str, name: str) -> str:
            return self.format_arn(service="sagemaker", resource=resource, resource_name=name)

        package = arn("model-package", f"{settings.model_package_group_name}/*")
        endpoint, component = settings.endpoint_name, settings.name
        role.add_to_policy(self._read_package(settings))
        role.add_to_policy(
            iam.PolicyStatement(
                sid="RejectPackage",
                actions=["sagemaker:UpdateModelPackage"],  # a model whose release failed; approving is for people
                resources=[package],
                conditions={"StringEquals": {"sagemaker:ModelApprovalStatus": "Rejected"}},
            )
        )
        hosts_components = settings.release.shape == "inference_components"
        scales = settings.release.max_instance_count is not None
        things = ["Endpoint", "EndpointConfig", *(["InferenceComponent"] if hosts_components else [])]
        of_the_shape = ["UpdateInferenceComponent", "UpdateInferenceComponentRuntimeConfig"] if hosts_components else []
        if scales and not hosts_components:
            of_the_shape.append("UpdateEndpointWeightsAndCapacities")
        components = [arn("inference-component", name) for name in (component, f"{endpoint}-base")]
        role.add_to_policy(
            iam.PolicyStatement(
                sid="MoveEndpoint",
                actions=[
                    "sagemaker:AddTags",
                    *[f"sagemaker:{verb}{thing}" for verb in ("Create", "Delete", "Describe") for thing in things],
                    "sagemaker:CreateModel",
                    "sagemaker:DeleteModel",
                    "sagemaker:InvokeEndpoint",
                    "sagemaker:ListTags",
                    "sagemaker:UpdateEndpoint",
                    *[f"sagemaker:{action}" for action in of_the_shape],
                ],
                resources=[
                    arn("endpoint", endpoint),
                    *(arn("endpoint-config", f"{name}-*") for name in sorted({endpoint, component})),
                    *(arn("model", f"{name}-*") for name in sorted({endpoint, component})),
                    *(components if hosts_components else []),
                    package,
                ],
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="ListParts",
                actions=["sagemaker:ListModels" if hosts_components else "sagemaker:ListEndpointConfigs"],
                resources=["*"],  # they know no resources
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Alarms",
                actions=["cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm"],
                resources=[
                    self._alarm_arn(name)
                    for name in (
                        *(f"{name}-*" for name in sorted({endpoint, component})),
                        f"TargetTracking-endpoint/{endpoint}/*",  # autoscaling's own
                        *(f"TargetTracking-inference-component/{name}*" for name in sorted({endpoint, component})),
                    )
                ],
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="Autoscaling",
                actions=[
                    f"application-autoscaling:{action}"
                    for action in (
                        "DeregisterScalableTarget",  # of an earlier configuration
                        *(["PutScalingPolicy", "RegisterScalableTarget"] if scales else []),
                    )
                ],
                # The ARN of a target holds an id that is not known before it is registered.
                resources=[
                    self.format_arn(service="application-autoscaling", resource="scalable-target", resource_name="*")
                ],
                conditions={"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}},
            )
        )
        if scales:
            role.add_to_policy(
                iam.PolicyStatement(
                    sid="AutoscalingRole",
                    actions=["iam:CreateServiceLinkedRole"],  # the first scalable target of an account
                    resources=[
                        self.format_arn(
                            service="iam",
                            region="",
                            resource="role",
                            resource_name="aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*",
                        )
                    ],
                    conditions={
                        "StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}
                    },
                )
            )
        role.add_to_policy(_pass_role([serving_role]))
        for one in (role, serving_role):  # SageMaker looks at the alarms of an update with the endpoint's role
            one.add_to_policy(
                iam.PolicyStatement(
                    sid="WatchAlarms", actions=["cloudwatch:DescribeAlarms"], resources=[self._alarm_arn("*")]
                )
            )

    def _alarm_arn(self, name: str) -> str:
        return self.format_arn(
            service="cloudwatch", resource="alarm", resource_name=name, arn_format=ArnFormat.COLON_RESOURCE_NAME
        )

    def _grant_run_jobs(
        self, role: iam.Role, job_roles: list[iam.Role], settings: Settings, network: Network | None
    ) -> None:
        """What the pipeline service does in our name: run and stop jobs, register packages, pass the jobs' roles.

        With a network no job starts outside of it, whatever a definition says.
        """

        def arn(resource: str, name: str) -> str:
            return self.format_arn(service="sagemaker", resource=resource, resource_name=name)

        # The service names the jobs of an execution `pipelines-<execution>-<step>-<suffix>`.
        jobs = [arn("processing-job", "pipelines-*"), arn("training-job", "pipelines-*")]
        role.add_to_policy(
            iam.PolicyStatement(
                sid="StartJobs",
                actions=["sagemaker:CreateProcessingJob", "sagemaker:CreateTrainingJob"],
                resources=jobs,
                conditions=_inside(network) if network else None,
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="RunJobs",
                actions=[
                    "sagemaker:AddTags",
                    "sagemaker:DescribeProcessingJob",
                    "sagemaker:DescribeTrainingJob",
                    "sagemaker:StopProcessingJob",
                    "sagemaker:StopTrainingJob",
                ],
                resources=jobs,
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="RegisterPackages",
                actions=["sagemaker:CreateModelPackage", "sagemaker:DescribeModelPackage", "sagemaker:AddTags"],
                resources=[
                    arn("model-package-group", settings.model_package_group_name),
                    arn("model-package", f"{settings.model_package_group_name}/*"),
                ],
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="ReadPackageGroup",
                actions=["sagemaker:DescribeModelPackageGroup"],
                resources=[arn("model-package-group", settings.model_package_group_name)],
            )
        )
        role.add_to_policy(_pass_role(job_roles))

    def _pipeline(
        self, id_: str, name: str, description: str, definition: str, resources: dict[str, str], role: iam.Role
    ) -> sagemaker.CfnPipeline:
        used = {key: value for key, value in resources.items() if f"${{{key}}}" in definition}
        pipeline = sagemaker.CfnPipeline(
            self,
            id_,
            pipeline_name=name,
            pipeline_display_name=name,
            pipeline_description=description,
            # The service wants this key in PascalCase although CDK's own properties are not.
            pipeline_definition={"PipelineDefinitionBody": Fn.sub(definition, used)},
            role_arn=role.role_arn,
        )
        pipeline.node.add_dependency(role)  # its policies too: a pipeline must not exist before it may run
        return pipeline


def _network_resources(network: Network | None) -> dict[str, str]:
    """What a definition's placeholders for a VPC that the stacks make stand for."""
    if network is None:
        return {}
    subnets = dict(zip(CREATED_SUBNETS, network.subnet_ids, strict=False))
    return {**subnets, CREATED_SECURITY_GROUP: network.security_group_ids[0]}


def _inside(network: Network) -> dict[str, dict[str, object]]:
    """The condition that a job names subnets and groups of the network, and no others. ForAllValues holds of none too."""
    wanted = {"VpcSubnets": network.subnet_ids, "VpcSecurityGroupIds": network.security_group_ids}
    return {
        "ForAllValues:StringEquals": {f"sagemaker:{key}": ids for key, ids in wanted.items()},
        "Null": {f"sagemaker:{key}": "false" for key in wanted},
    }


def _pass_role(roles: list[iam.Role]) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        sid="PassRoles",
        actions=["iam:PassRole"],
        resources=[role.role_arn for role in roles],
        conditions={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
    )
