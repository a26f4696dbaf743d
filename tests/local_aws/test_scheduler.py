"""Schedules that fire, with the clock moved."""

import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import local_aws
from tests.local_aws.conftest import ACCOUNT, REGION, create_pipeline, create_role, wait_for

Client = Callable[[str], Any]


MADRID = ZoneInfo("Europe/Madrid")


def advance(aws: local_aws.LocalAws, query: str, method: str = "POST") -> str:
    """Move the clock; returns its time."""
    request = urllib.request.Request(f"{aws.url}/_local/clock?{query}", method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode().strip())


def executions(client: Client, pipeline: str) -> list[Any]:
    answer = client("sagemaker").list_pipeline_executions(PipelineName=pipeline, MaxResults=100)
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


def test_a_year_of_mondays_with_uploads_in_between_starts_exactly_the_runs_it_should(
    aws: local_aws.LocalAws, client: Client
) -> None:
    """Every Monday at 03:00 in Madrid, over both changes of the clock; an upload of three files in every fourth week."""
    pipeline, role = "yearly", create_role(client, "yearly", "scheduler.amazonaws.com")
    create_pipeline(client, pipeline, role, [{"Name": "StartedBy", "Type": "String"}])
    target = {"Arn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:pipeline/{pipeline}", "RoleArn": role}
    client("s3").create_bucket(Bucket="yearly")
    client("s3").put_bucket_notification_configuration(
        Bucket="yearly", NotificationConfiguration={"EventBridgeConfiguration": {}}
    )
    pattern = {
        "source": ["aws.s3"],
        "detail": {"bucket": {"name": ["yearly"]}, "object": {"key": [{"wildcard": "*.manifest"}]}},
    }
    events_role = create_role(client, "yearly-events", "events.amazonaws.com")

    def started_by(what: str) -> dict[str, Any]:
        return {"PipelineParameterList": [{"Name": "StartedBy", "Value": what}]}

    client("events").put_rule(Name="yearly", EventPattern=json.dumps(pattern))
    by_data = {**target, "Id": "one", "RoleArn": events_role, "SageMakerPipelineParameters": started_by("new data")}
    client("events").put_targets(Rule="yearly", Targets=[by_data])
    # From a moment that is the same in every run: the first second after a Monday's 03:00.
    now = datetime.fromisoformat(advance(aws, "advance_seconds=0"))
    monday = (now.astimezone(MADRID) + timedelta(days=7 - now.astimezone(MADRID).weekday())).replace(
        hour=3, minute=0, second=1, microsecond=0
    )
    advance(aws, f"advance_seconds={(monday.astimezone(UTC) - now).total_seconds()}")
    client("scheduler").create_schedule(
        Name="yearly",
        ScheduleExpression="cron(0 3 ? * MON *)",
        ScheduleExpressionTimezone="Europe/Madrid",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={**target, "SageMakerPipelineParameters": started_by("schedule")},
    )
    expected = 0
    for week in range(52):
        uploads = week % 4 == 0
        if uploads:
            for name in ("train.jsonl", "template.json", "data.manifest"):
                client("s3").put_object(Bucket="yearly", Key=name, Body=b"{}")
        # To the next Monday, 03:00:01 by the clock on the wall: an hour less or more when the clocks are changed.
        after = monday.replace(tzinfo=None) + timedelta(days=7)
        seconds = (after.replace(tzinfo=MADRID).astimezone(UTC) - monday.astimezone(UTC)).total_seconds()
        monday = after.replace(tzinfo=MADRID)
        advance(aws, f"advance_seconds={seconds}")
        expected += 2 if uploads else 1
    wait_for(lambda: len(executions(client, pipeline)) >= expected, seconds=60)
    reasons = [parameter_of(client, one["PipelineExecutionArn"]) for one in executions(client, pipeline)]
    assert Counter(reasons) == {"schedule": 52, "new data": 13}


def parameter_of(client: Client, execution: str) -> str:
    answer = client("sagemaker").list_pipeline_parameters_for_execution(PipelineExecutionArn=execution)
    return str(answer["PipelineParameters"][0]["Value"])
