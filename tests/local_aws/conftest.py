"""One local AWS for the room's tests of the control plane, and clients of it."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import local_aws

REGION, ACCOUNT = "us-east-1", "123456789012"


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_aws.LocalAws]:
    root = tmp_path_factory.mktemp("local_aws")
    with local_aws.start(root, {"python": Path(sys.prefix)}) as running:
        yield running


@pytest.fixture(scope="session")
def client(aws: local_aws.LocalAws) -> Callable[[str], Any]:
    def make(service: str) -> Any:
        return boto3.client(
            service, REGION, endpoint_url=aws.url, aws_access_key_id="local", aws_secret_access_key="local"
        )

    return make


def create_role(client: Callable[[str], Any], name: str, service: str) -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    arn = client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    anything = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
    client("iam").put_role_policy(RoleName=name, PolicyName="anything", PolicyDocument=anything)
    return str(arn)


def create_pipeline(client: Callable[[str], Any], name: str, role: str, parameters: list[dict[str, Any]]) -> None:
    """A pipeline of one step that does nothing but end, told by the value of its first parameter."""
    step = {
        "Name": "End",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [{"Type": "Equals", "LeftValue": 1, "RightValue": 1}],
            "IfSteps": [],
            "ElseSteps": [],
        },
    }
    definition = {"Version": "2020-12-01", "Metadata": {}, "Parameters": parameters, "Steps": [step]}
    client("sagemaker").create_pipeline(
        PipelineName=name,
        PipelineDefinition=json.dumps(definition),
        RoleArn=role,
        ClientRequestToken=name.ljust(32, "x"),
    )


def wait_for(question: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true answer to `question`; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.05)
    pytest.fail(f"nothing happened within {seconds} s")
