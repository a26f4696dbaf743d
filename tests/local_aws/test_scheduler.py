"""Schedules that fire, with the clock moved."""

import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

import local_aws
from tests.local_aws.conftest import ACCOUNT, REGION, create_pipeline, create_role, wait_for

Client = Callable[[str], Any]


def advance(aws: local_aws.LocalAws, query: str, method: str = "POST") -> None:
    urllib.request.urlopen(urllib.request.Request(f"{aws.url}/_local/clock?{query}", method=method), timeout=5).close()


def executions(client: Client, pipeline: str) -> list[Any]:
    answer = client("sagemaker").list_pipeline_executions(PipelineName=pipeline)
    return list(answer["PipelineExecutionSummaries"])


def schedule(client: Client, name: str, pipeline: str, role: str, state: str) -> None:
    client("scheduler").create_schedule(
        Name=name,
        ScheduleExpression="rate(7 days)",
        FlexibleTimeWindow={"Mode": "OFF"},
        State=state,
        Target={
            "Arn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:pipeline/{pipeline}",
            "RoleArn": role,
            "SageMakerPipelineParameters": {"PipelineParameterList": [{"Name": "Mode", "Value": "weekly"}]},
        },
    )


def test_two_weeks_start_the_weekly_pipeline_twice_and_a_disabled_schedule_never(
    aws: local_aws.LocalAws, client: Client
) -> None:
    role = create_role(client, "scheduled", "scheduler.amazonaws.com")
    for name, state in (("weekly", "ENABLED"), ("off", "DISABLED")):
        create_pipeline(client, f"{name}-pipeline", role, [{"Name": "Mode", "Type": "String"}])
        schedule(client, name, f"{name}-pipeline", role, state)

    assert executions(client, "weekly-pipeline") == []
    advance(aws, f"advance_seconds={14 * 86400 + 60}")

    wait_for(lambda: len(executions(client, "weekly-pipeline")) == 2)
    assert executions(client, "off-pipeline") == []
    arn = executions(client, "weekly-pipeline")[0]["PipelineExecutionArn"]
    values = client("sagemaker").list_pipeline_parameters_for_execution(PipelineExecutionArn=arn)
    assert values["PipelineParameters"] == [{"Name": "Mode", "Value": "weekly"}]


@pytest.mark.parametrize(
    ("query", "method"), [("", "POST"), ("advance_seconds=-1", "POST"), ("advance_seconds=1", "GET")]
)
def test_the_clock_refuses_what_it_cannot_do(aws: local_aws.LocalAws, query: str, method: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        advance(aws, query, method)
