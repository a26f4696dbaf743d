"""Rules of our own over the pipelines' definitions: what every job must say, whatever the configuration.

A rule is a function named as what holds; it returns what is wrong with a job, or None.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from config.settings import Settings
from pipeline.definition import (
    KEY,
    compare_definition,
    deploy_definition,
    finetune_definition,
    has_local_storage,
    vpc_config,
)
from pipeline.monitor import monitor_definition

LONGEST_HOURS = 672
SECRETS = re.compile(r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|hooks\.slack\.com")


@dataclass(frozen=True)
class Job:
    """A job of a definition: its step, the step's type (Processing or Training) and the request that the service gets."""

    pipeline: str
    step: str
    kind: str
    request: dict[str, Any]
    settings: Settings

    @property
    def network(self) -> dict[str, Any]:
        """Where the request says how the job is connected."""
        found: dict[str, Any] = self.request["NetworkConfig"] if self.kind == "Processing" else self.request
        return found

    @property
    def machines(self) -> dict[str, Any]:
        if self.kind == "Training":
            found: dict[str, Any] = self.request["ResourceConfig"]
        else:
            found = self.request["ProcessingResources"]["ClusterConfig"]
        return found

    @property
    def output(self) -> dict[str, Any]:
        name = "OutputDataConfig" if self.kind == "Training" else "ProcessingOutputConfig"
        found: dict[str, Any] = self.request[name]
        return found


def jobs(settings: Settings) -> Iterator[Job]:
    """Every job of every pipeline of a configuration."""
    definitions = {
        settings.finetune_pipeline_name: finetune_definition,
        settings.deploy_pipeline_name: deploy_definition,
        settings.compare_pipeline_name: compare_definition,
        settings.monitor_pipeline_name: monitor_definition,
    }
    for name in settings.pipeline_names:
        for step in _all_steps(json.loads(definitions[name](settings))["Steps"]):
            if step["Type"] in ("Processing", "Training"):
                yield Job(name, step["Name"], step["Type"], step["Arguments"], settings)


def _all_steps(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for step in steps:
        yield step
        if step["Type"] == "Condition":
            yield from _all_steps([*step["Arguments"]["IfSteps"], *step["Arguments"]["ElseSteps"]])


def problems(job: Job) -> Iterator[tuple[str, str]]:
    """(rule, what is wrong) of every rule that the job breaks."""
    for rule in RULES:
        if told := rule(job):
            yield rule.__name__, told


def may_ask(settings: Settings) -> dict[str, str]:
    """Steps whose container has a network, each with the reason. All others see none but the hosts of their job."""
    allowed = {
        "PrepareData": "asks the registry and S3 whether the same training has a model already",
        "Deploy": "releases: that is calls of SageMaker's API",
        "Monitor": "reads the traffic of the hours before, and writes its metrics",
    }
    if settings.training.mlflow_server:
        allowed["FineTune"] = "tells the MLflow server its metrics"
    if settings.gate.judge_model_id:
        allowed["Evaluate"] = "asks the judge"
    if settings.backend == "jumpstart":
        allowed["FromJumpStart"] = "asks SageMaker for what the training job has told"
    return allowed


# ---------------------------------------------------------------- the rules


def ends_in_time(job: Job) -> str | None:
    seconds = job.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 0)
    if 0 < seconds <= LONGEST_HOURS * 3600:
        return None
    return f"StoppingCondition.MaxRuntimeInSeconds is {seconds}; 1 to {LONGEST_HOURS * 3600} are allowed"


def says_whose_it_is(job: Job) -> str | None:
    tags = {tag["Key"]: tag["Value"] for tag in job.request.get("Tags", [])}
    return None if tags.get("application") == job.settings.name else f"Tags are {tags}; application is missing"


def has_its_output_encrypted(job: Job) -> str | None:
    key = job.output.get("KmsKeyId")
    return None if key == KEY else f"the output's KmsKeyId is {key}; it must be the deployment's key"


def has_its_volumes_encrypted(job: Job) -> str | None:
    """By the key, or by the hardware of instances that take none. FineTune's type is a run-time parameter: the default's."""
    instance_type = job.machines["InstanceType"]
    if not isinstance(instance_type, str):
        instance_type = job.settings.training.instance_type
    key, wanted = job.machines.get("VolumeKmsKeyId"), None if has_local_storage(instance_type) else KEY
    return None if key == wanted else f"VolumeKmsKeyId is {key}; for {instance_type} it must be {wanted}"


def has_no_network_unless_it_must_ask(job: Job) -> str | None:
    isolated, allowed = job.network.get("EnableNetworkIsolation", False), may_ask(job.settings)
    if isolated is (job.step not in allowed):
        return None
    return f"EnableNetworkIsolation is {isolated}; only {', '.join(allowed)} have a network"


def is_in_the_network(job: Job) -> str | None:
    given, wanted = job.network.get("VpcConfig"), vpc_config(job.settings).get("VpcConfig")
    return None if given == wanted else f"VpcConfig is {given}; the configuration says {wanted}"


def has_what_serves_in_the_network(job: Job) -> str | None:
    """Deploy makes the model: it must be told where."""
    wanted = vpc_config(job.settings).get("VpcConfig")
    if job.step != "Deploy" or wanted is None or job.settings.release.target == "bedrock":
        return None
    arguments = job.request["AppSpecification"]["ContainerArguments"]
    flags = list(itertools.pairwise(arguments))
    missing = [one for one in wanted["Subnets"] if ("--subnet", one) not in flags]
    missing += [one for one in wanted["SecurityGroupIds"] if ("--security_group", one) not in flags]
    return f"Deploy is not told of {', '.join(missing)}" if missing else None


def encrypts_what_its_hosts_say(job: Job) -> str | None:
    """A training's count is a run-time parameter, so that it holds for one host too."""
    alone = job.kind == "Processing" and job.machines["InstanceCount"] == 1
    encrypts = job.network.get("EnableInterContainerTrafficEncryption", False)
    return (
        None if alone or encrypts else "EnableInterContainerTrafficEncryption is missing, and it may have several hosts"
    )


def holds_no_secret(job: Job) -> str | None:
    """Nothing that looks like one, and none of our own jobs has an environment, where one would be tempting."""
    if job.request.get("Environment") and job.settings.backend != "jumpstart":
        return f"Environment is {job.request['Environment']}; what a step must know is an argument"
    found = SECRETS.search(json.dumps(job.request))
    return f"the request holds {found[0]!r}" if found else None


def installs_nothing(job: Job) -> str | None:
    text = json.dumps(job.request)
    found = [word for word in ("pip install", "requirements.txt") if word in text]
    return f"the request holds {found[0]!r}; packages travel in the step code" if found else None


RULES: tuple[Callable[[Job], str | None], ...] = (
    ends_in_time,
    says_whose_it_is,
    has_its_output_encrypted,
    has_its_volumes_encrypted,
    has_no_network_unless_it_must_ask,
    is_in_the_network,
    has_what_serves_in_the_network,
    encrypts_what_its_hosts_say,
    holds_no_secret,
    installs_nothing,
)
