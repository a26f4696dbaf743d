"""The deployed pipeline with PrepareData on two hosts: the very dataset that one host makes.

Goes on where test_product.py stopped: a model of this dataset, prepared by one host, is registered.
"""

from pathlib import Path

from cli import datasets, executions, local
from cli.aws import REPOSITORY, Deployment
from config.settings import load

CONFIGURATION = Path(__file__).with_name("tiny.yaml")


def test_two_hosts_prepare_the_dataset_that_one_host_has_prepared(deployment: Deployment, tmp_path: Path) -> None:
    changed = tmp_path / "two_hosts.yaml"
    text = CONFIGURATION.read_text(encoding="utf-8")
    changed.write_text(f"{text}processing:\n  prepare_instance_count: 2\n", encoding="utf-8")
    local.deploy(load(str(changed)), str(deployment.endpoint_url), tmp_path / "cdk.log", str(changed))

    before = executions.newest(deployment)
    datasets.upload(deployment, REPOSITORY / "examples" / "instruction", "instruction")
    view = executions.follow(deployment, executions.wait_for_newer(deployment, before))

    assert view.status == "Succeeded", view.reason
    assert [step.name for step in view.steps] == ["PrepareData", "NewTraining"]
    assert "was trained from the same" in view.steps[0].note, "the digest is that of one host's dataset"
    jobs = deployment.sagemaker.list_processing_jobs(SortBy="CreationTime", SortOrder="Descending", MaxResults=1)
    job = deployment.sagemaker.describe_processing_job(
        ProcessingJobName=jobs["ProcessingJobSummaries"][0]["ProcessingJobName"]
    )
    assert job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 2
