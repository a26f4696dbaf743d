"""What every job of every pipeline must say, whatever the configuration."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from config.settings import environments, has_local_storage, load
from pipeline.definition import compare_definition, deploy_definition, finetune_definition

LONGEST_HOURS = 672
# Jobs with a network, each with the reason. All others see none but their hosts.
NETWORKED = {
    "PrepareData": "asks the registry and S3 whether the same training has a model already",
    "Deploy": "releases: that is calls of SageMaker's API",
}


def jobs(environment: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(step, type, request) of every job of the configuration's pipelines."""
    settings = load(environment)
    for make in (finetune_definition, deploy_definition, compare_definition):
        yield from jobs_in(json.loads(make(settings))["Steps"])


def jobs_in(steps: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for step in steps:
        if step["Type"] in ("Processing", "Training"):
            yield step["Name"], step["Type"], step["Arguments"]
        elif step["Type"] == "Condition":
            yield from jobs_in([*step["Arguments"]["IfSteps"], *step["Arguments"]["ElseSteps"]])


@pytest.fixture(params=environments())
def every_job(request: pytest.FixtureRequest) -> list[tuple[str, str, dict[str, Any]]]:
    found = list(jobs(request.param))
    assert {name for name, _, _ in found} >= {"PrepareData", "FineTune", "Evaluate", "Deploy", "Compare"}
    return found


def test_every_job_ends_in_time_and_says_whose_it_is(every_job: Any) -> None:
    for name, _, request in every_job:
        assert 0 < request["StoppingCondition"]["MaxRuntimeInSeconds"] <= LONGEST_HOURS * 3600, name
        assert "application" in {tag["Key"] for tag in request["Tags"]}, name


def test_every_job_has_a_role_of_its_own_kind(every_job: Any) -> None:
    roles = {name: request["RoleArn"] for name, _, request in every_job}
    assert roles["FineTune"] == "${TrainRole}" and roles["PrepareData"] == "${PrepareRole}"
    assert len({roles[name] for name in ("PrepareData", "FineTune", "Evaluate", "Deploy")}) == 4


def test_every_output_and_every_volume_that_takes_one_has_the_key(every_job: Any) -> None:
    for name, kind, request in every_job:
        if kind == "Training":
            output, volume = request["OutputDataConfig"], request["ResourceConfig"]
        else:
            output, volume = request["ProcessingOutputConfig"], request["ProcessingResources"]["ClusterConfig"]
        assert output["KmsKeyId"] == "${Key}", name
        if isinstance(volume["InstanceType"], str):  # FineTune's is a run-time parameter
            assert volume.get("VolumeKmsKeyId") == (None if has_local_storage(volume["InstanceType"]) else "${Key}"), (
                name
            )


def test_only_jobs_that_must_ask_aws_have_a_network(every_job: Any) -> None:
    for name, kind, request in every_job:
        isolated = (
            request["EnableNetworkIsolation"]
            if kind == "Training"
            else request["NetworkConfig"]["EnableNetworkIsolation"]
        )
        assert isolated is (name not in NETWORKED), name
        if kind == "Training":
            assert request["EnableInterContainerTrafficEncryption"] is True


def test_no_definition_holds_a_secret_an_account_or_an_install(every_job: Any) -> None:
    for name, _, request in every_job:
        text = json.dumps(request)
        assert not re.search(r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|hooks\.slack\.com", text), name
        assert "pip install" not in text and "requirements.txt" not in text, name
        assert not request.get("Environment", {}), name  # where secrets would be tempting


@pytest.mark.parametrize(
    ("instance_type", "local"),
    [
        ("ml.g5.12xlarge", True), ("ml.g6e.xlarge", True), ("ml.p4d.24xlarge", True), ("ml.p5.48xlarge", True),
        ("ml.m5d.large", True), ("ml.c6gd.large", True), ("ml.r5dn.large", True), ("ml.g4dn.xlarge", True),
        ("ml.m5.xlarge", False), ("ml.t3.medium", False), ("ml.p3.2xlarge", False), ("ml.c5.large", False), ("ml.inf2.xlarge", False),
    ],
)  # fmt: skip
def test_instances_with_disks_of_their_own_take_no_key(instance_type: str, local: bool) -> None:
    assert has_local_storage(instance_type) is local
