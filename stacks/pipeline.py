"""The pipelines, the roles that their jobs assume, and the model package group."""

from pathlib import Path

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from config import jumpstart_lock
from config.jumpstart_lock import Training
from config.settings import Settings
from pipeline.definition import compare_definition, deploy_definition, finetune_definition, has_local_storage
from pipeline.monitor import NAMESPACE as TRAFFIC_NAMESPACE
from pipeline.monitor import monitor_definition
from pipeline.sdk import training_image
from stacks.components.deploy_step import deploy_step
from stacks.components.job_role import job_role
from stacks.components.other_accounts import packages_for_places
from stacks.components.permissions import (
    delete_objects,
    list_objects,
    read_objects,
    use_key,
    use_network,
    write_objects,
)
from stacks.components.pipelines import add_pipeline, grant_run_jobs, network_resources
from stacks.components.service_role import ServiceRole
from stacks.components.step_code import StepCode
from stacks.network import Network

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
        code = StepCode(self, "StepCode", zip_file=step_code_zip)
        group = sagemaker.CfnModelPackageGroup(
            self,
            "ModelPackageGroup",
            model_package_group_name=settings.model_package_group_name,
            model_package_group_description=f"Models tuned by {settings.finetune_pipeline_name}",
            model_package_group_policy=packages_for_places(self, settings),
        )
        group.apply_removal_policy(RemovalPolicy.RETAIN if settings.keep_data else RemovalPolicy.DESTROY)

        image = training_image(settings.images, settings.region, settings.training.instance_type)
        of_jumpstart = jumpstart_lock.training_of(settings) if settings.backend == "jumpstart" else None
        trains = of_jumpstart.lock.image_uri(of_jumpstart.instance_type) if of_jumpstart else image
        prepare_role = job_role(
            self, "PrepareRole", "Checks, splits and publishes datasets", settings.images.prepare_image_uri or image
        )
        train_role = job_role(self, "TrainRole", "Fine-tunes the base model", trains)
        evaluate_role = job_role(self, "EvaluateRole", "Scores base and tuned model", image)
        pipeline_role = ServiceRole(
            self, "PipelineRole", service="sagemaker.amazonaws.com", description="Runs the steps of the pipelines"
        )

        takes_key = {
            prepare_role: settings.processing.prepare_instance_type,
            train_role: settings.training.instance_type,
            evaluate_role: settings.processing.evaluate_instance_type,
        }
        for role, instance_type in takes_key.items():
            code.grant_read(role)
            use_key(role, key, writes=True, volumes=not has_local_storage(instance_type))

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

        job_roles = [*takes_key]
        in_network = [*takes_key]  # SageMaker puts interfaces of theirs into the VPC, if there is one
        deploy_resources: dict[str, str] = {}
        if settings.serves:
            deploy = deploy_step(self, settings, code=code, artifact_bucket=artifact_bucket, key=key)
            job_roles.append(deploy.role)
            in_network += deploy.in_network
            deploy_resources = deploy.resources
        monitor_role = None
        if settings.monitoring.enabled:
            monitor_role = job_role(self, "MonitorRole", "Compares the endpoint's traffic with its evaluation", image)
            code.grant_read(monitor_role)
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
        grant_run_jobs(self, pipeline_role, job_roles, settings, network)

        resources = {
            "RawBucket": raw_bucket.bucket_name,
            "ArtifactBucket": artifact_bucket.bucket_name,
            **code.resources,
            "PrepareRole": prepare_role.role_arn,
            "TrainRole": train_role.role_arn,
            "EvaluateRole": evaluate_role.role_arn,
            **deploy_resources,
            "Key": key.key_arn,
            **network_resources(network),
        }
        self.finetune_pipeline = add_pipeline(
            self,
            "FinetunePipeline",
            settings.finetune_pipeline_name,
            "Prepares data, fine-tunes, evaluates, and registers and releases what passed the gate",
            finetune_definition(settings),
            resources,
            pipeline_role,
        )
        self.deploy_pipeline = None
        if settings.serves:
            self.deploy_pipeline = add_pipeline(
                self,
                "DeployPipeline",
                settings.deploy_pipeline_name,
                "Releases one approved model package",
                deploy_definition(settings),
                resources,
                pipeline_role,
            )
        self.compare_pipeline = add_pipeline(
            self,
            "ComparePipeline",
            settings.compare_pipeline_name,
            "Answers prompts with the base and with a tuned model",
            compare_definition(settings),
            resources,
            pipeline_role,
        )
        self.monitor_pipeline = None
        if monitor_role is not None:
            self.monitor_pipeline = add_pipeline(
                self,
                "MonitorPipeline",
                settings.monitor_pipeline_name,
                "Compares the endpoint's traffic with what its model was evaluated on",
                monitor_definition(settings),
                {**resources, "MonitorRole": monitor_role.role_arn},
                pipeline_role,
            )
        self.finetune_pipeline.add_resource_dependency(group)

        CfnOutput(self, "FinetunePipelineName", value=settings.finetune_pipeline_name)
        CfnOutput(self, "ComparePipelineName", value=settings.compare_pipeline_name)
        if settings.serves:
            CfnOutput(self, "DeployPipelineName", value=settings.deploy_pipeline_name)
            CfnOutput(self, "EndpointName", value=settings.endpoint_name)

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
