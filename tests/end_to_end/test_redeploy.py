"""A second `cdk deploy`: what changed in the configuration is changed in place, and what runs goes on."""

import json
from pathlib import Path

from cli import local
from cli.aws import Deployment
from config.settings import load

CONFIGURATION = Path(__file__).with_name("tiny.yaml")


def default_of(deployment: Deployment, parameter: str) -> object:
    pipeline = deployment.sagemaker.describe_pipeline(PipelineName=deployment.settings.finetune_pipeline_name)
    definition = json.loads(pipeline["PipelineDefinition"])
    return next(found["DefaultValue"] for found in definition["Parameters"] if found["Name"] == parameter)


def test_a_changed_configuration_changes_the_deployed_pipeline_and_nothing_else(
    deployment: Deployment, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.yaml"
    text = CONFIGURATION.read_text(encoding="utf-8")
    changed.write_text(text.replace("epoch: 3.0", "epoch: 2.0"), encoding="utf-8")
    buckets, before = (deployment.raw_bucket, deployment.artifact_bucket), default_of(deployment, "Epoch")

    local.deploy(load(str(changed)), str(deployment.endpoint_url), tmp_path / "cdk.log", str(changed))

    assert (before, default_of(deployment, "Epoch")) == (3.0, 2.0)
    assert (deployment.raw_bucket, deployment.artifact_bucket) == buckets
    endpoint = deployment.sagemaker.describe_endpoint(EndpointName=deployment.settings.endpoint_name)
    assert endpoint["EndpointStatus"] == "InService"
