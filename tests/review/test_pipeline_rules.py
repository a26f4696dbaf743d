"""Our own rules over the definitions: all that we ship keep them, and each finds the job that breaks it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.settings import NetworkSettings, ReleaseSettings, Settings, load
from pipeline_steps.contract.instances import has_local_storage
from review import pipeline_rules
from review.pipeline_rules import Job
from tests.pipeline.test_jumpstart import settings_of

VPC = {"vpc": "vpc-01234567", "subnet_ids": ["subnet-01234567"], "security_group_ids": ["sg-01234567"]}


def changed(environment: str, **groups: dict[str, Any]) -> Settings:
    values = load(environment).model_dump()
    for group, settings in groups.items():
        values[group] = (values[group] or {}) | settings
    return Settings.model_validate(values)


def broken(settings: Settings) -> set[tuple[str, str]]:
    return {(job.step, rule) for job in pipeline_rules.jobs(settings) for rule, _ in pipeline_rules.problems(job)}


@pytest.fixture(scope="module")
def private() -> dict[str, Job]:
    """The jobs of a shipped configuration by their steps; `make check` looks at all that are shipped."""
    return {job.step: job for job in pipeline_rules.jobs(load("private"))}


def test_every_job_in_a_vpc_keeps_every_rule(private: dict[str, Job]) -> None:
    assert private.keys() == {"PrepareData", "FineTune", "Evaluate", "Deploy", "Compare", "Monitor"}
    assert [problem for job in private.values() for problem in pipeline_rules.problems(job)] == []


def test_so_do_jobs_of_configurations_that_are_not_shipped(tmp_path: Path) -> None:
    server = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/t"
    other = changed(
        "prod",
        network=VPC,
        gate={"judge_model_id": "j"},
        training={"mlflow_tracking_uri": server, "instance_type": "ml.p3.2xlarge"},
        processing={"prepare_instance_count": 4, "evaluate_instance_type": "ml.p3.2xlarge"},
    )
    assert broken(other) == set()
    bedrock = load("dev").model_copy(
        update={"release": ReleaseSettings(target="bedrock"), "network": NetworkSettings(vpc="create")}
    )
    assert broken(bedrock) == set()
    jumpstart = settings_of(tmp_path).model_copy(update={"network": NetworkSettings(vpc="create")})
    assert broken(jumpstart) == set()


def set_(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a request: the member at `path` gets another value, or goes (None)."""

    def change(request: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            request = request[parent]
        if value is None:
            del request[last]
        else:
            request[last] = value

    return change


def drop_argument(flag: str) -> Callable[[dict[str, Any]], None]:
    return lambda request: request["AppSpecification"]["ContainerArguments"].remove(flag)


BREAKS: dict[str, list[tuple[str, Callable[[dict[str, Any]], None]]]] = {
    "ends_in_time": [
        ("Evaluate", set_("StoppingCondition", None)),
        ("FineTune", set_("StoppingCondition.MaxRuntimeInSeconds", 10**9)),
    ],
    "says_whose_it_is": [
        ("Deploy", set_("Tags", None)),
        ("FineTune", set_("Tags", [{"Key": "application", "Value": "x"}])),
    ],
    "has_its_output_encrypted": [
        ("PrepareData", set_("ProcessingOutputConfig.KmsKeyId", None)),
        ("FineTune", set_("OutputDataConfig.KmsKeyId", "alias/aws/s3")),
    ],
    "has_its_volumes_encrypted": [
        ("PrepareData", set_("ProcessingResources.ClusterConfig.VolumeKmsKeyId", None)),
        ("Evaluate", set_("ProcessingResources.ClusterConfig.VolumeKmsKeyId", "${Key}")),
    ],
    "has_no_network_unless_it_must_ask": [
        ("FineTune", set_("EnableNetworkIsolation", False)),
        ("Evaluate", set_("NetworkConfig.EnableNetworkIsolation", None)),
    ],
    "is_in_the_network": [
        ("FineTune", set_("VpcConfig", None)),
        ("Deploy", set_("NetworkConfig.VpcConfig", {"Subnets": ["other"], "SecurityGroupIds": ["other"]})),
    ],
    "has_what_serves_in_the_network": [("Deploy", drop_argument("${Subnet2}")), ("Deploy", drop_argument("${SecurityGroup}"))],
    "encrypts_what_its_hosts_say": [
        ("FineTune", set_("EnableInterContainerTrafficEncryption", False)),
        ("PrepareData", set_("ProcessingResources.ClusterConfig.InstanceCount", 2)),
    ],
    "holds_no_secret": [
        ("Evaluate", set_("Environment", {"MODE": "x"})),
        ("FineTune", set_("HyperParameters.token", f"hf_{'a' * 30}")),
    ],
    "installs_nothing": [
        ("Evaluate", set_("AppSpecification.ContainerEntrypoint", ["sh", "-c", "pip install x"])),
    ],
}  # fmt: skip


def test_every_rule_has_a_job_that_breaks_it() -> None:
    assert BREAKS.keys() == {rule.__name__ for rule in pipeline_rules.RULES}


@pytest.mark.parametrize(("rule", "step", "change"), [(rule, *one) for rule, all_ in BREAKS.items() for one in all_])
def test_a_job_that_breaks_a_rule_is_found_by_that_rule_alone(
    private: dict[str, Job], rule: str, step: str, change: Callable[[dict[str, Any]], None]
) -> None:
    job = private[step]
    request = copy.deepcopy(job.request)
    change(request)
    assert [name for name, _ in pipeline_rules.problems(replace(job, request=request))] == [rule]


def test_every_job_has_a_role_of_its_own_kind(private: dict[str, Job]) -> None:
    roles = {step: job.request["RoleArn"] for step, job in private.items()}
    assert roles["FineTune"] == "${TrainRole}" and roles["PrepareData"] == "${PrepareRole}"
    assert len({roles[name] for name in ("PrepareData", "FineTune", "Evaluate", "Deploy", "Monitor")}) == 5


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
