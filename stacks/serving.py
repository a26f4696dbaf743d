"""A serving place: an account and region that releases what the pipelines of another one have registered."""

from pathlib import Path

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_events as events
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from config.settings import Settings
from pipeline.definition import deploy_definition
from stacks.components import approvals
from stacks.components.dead_letters import DeadLetters
from stacks.components.deploy_step import deploy_step
from stacks.components.other_accounts import read_from_registry
from stacks.components.permissions import use_network
from stacks.components.pipelines import add_pipeline, grant_run_jobs, network_resources
from stacks.components.service_role import ServiceRole
from stacks.components.step_code import StepCode
from stacks.network import Network


class ServingStack(Stack):
    """`<name>-deploy`, its roles, and the bus on which the registry's account tells which package was approved."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        *,
        settings: Settings,
        artifact_bucket: s3.IBucket,
        key: kms.IKey,
        step_code_zip: Path,
        network: Network | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]
        assert settings.place is not None, "the settings are those of a serving place: Settings.at"
        code = StepCode(self, "StepCode", zip_file=step_code_zip)
        deploy = deploy_step(
            self,
            settings,
            code=code,
            artifact_bucket=artifact_bucket,
            key=key,
            role_name=settings.deploy_role_name(settings.place),
        )
        read_from_registry(deploy.role, settings)
        pipeline_role = ServiceRole(
            self, "PipelineRole", service="sagemaker.amazonaws.com", description="Runs the step of the pipeline"
        )
        if network is not None:
            for role in deploy.in_network:
                use_network(role, network)
        grant_run_jobs(self, pipeline_role, [deploy.role], settings, network)
        self.deploy_pipeline = add_pipeline(
            self,
            "DeployPipeline",
            settings.deploy_pipeline_name,
            "Releases one approved model package",
            deploy_definition(settings),
            {
                "ArtifactBucket": artifact_bucket.bucket_name,
                **code.resources,
                **deploy.resources,
                "Key": key.key_arn,
                **network_resources(network),
            },
            pipeline_role,
        )
        self.undelivered = DeadLetters(self, "Undelivered", key=key)
        self._hear_of_approvals(settings)

        CfnOutput(self, "DeployPipelineName", value=settings.deploy_pipeline_name)
        CfnOutput(self, "EndpointName", value=settings.endpoint_name)

    def _hear_of_approvals(self, settings: Settings) -> None:
        registry = settings.registry
        bus = events.CfnEventBus(
            self,
            "Approvals",
            name=approvals.bus_name(settings),
            description=f"The registry of {settings.name}, in account {registry.account}, tells what was approved",
        )
        events.CfnEventBusPolicy(
            self,
            "Registry",
            event_bus_name=bus.name,
            statement_id="Registry",
            statement={
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:{self.partition}:iam::{registry.account}:root"},
                "Action": "events:PutEvents",
                "Resource": bus.attr_arn,
            },
        )
        rule = approvals.start_deploy(self, settings, self.undelivered, event_bus_name=bus.name)
        rule.node.add_dependency(bus, self.deploy_pipeline)
