"""The full production configuration, in a VPC, on local AWS: deployed by the real CDK CLI, and taken away again."""

import os
import subprocess
from pathlib import Path
from typing import Any

import boto3

from cli import local
from cli.aws import LOCAL_CREDENTIALS, REPOSITORY
from config.settings import load

STACKS = ("storage", "network", "pipeline", "triggers", "operations")


def test_production_is_deployed_whole_and_destroyed_but_for_what_must_stay(tmp_path: Path) -> None:
    """docs/operations.md lists what stays."""
    configuration = tmp_path / "production.yaml"
    text = (REPOSITORY / "config" / "prod.yaml").read_text(encoding="utf-8")
    configuration.write_text(f'account: "123456789012"\nnetwork: {{vpc: create}}\n{text}', encoding="utf-8")
    settings = load(str(configuration))
    with local.running(settings, tmp_path / "aws") as aws:
        local.deploy(settings, aws.url, tmp_path / "cdk.log", str(configuration))

        def client(service: str) -> Any:
            return boto3.client(
                service,  # type: ignore[call-overload]
                endpoint_url=aws.url,
                region_name=settings.region,
                **LOCAL_CREDENTIALS,
            )

        def stacks() -> dict[str, str]:
            found = client("cloudformation").describe_stacks()["Stacks"]
            return {one["StackName"]: one["StackStatus"] for one in found if one["StackName"] != "CDKToolkit"}

        def there() -> dict[str, list[str]]:
            """Names of everything that the stacks make, by kind."""
            sagemaker, ours = client("sagemaker"), settings.name
            groups = sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]
            budgets = client("budgets").describe_budgets(AccountId=settings.account)["Budgets"]
            ec2, groups_of_logs = client("ec2"), client("logs").describe_log_groups()["logGroups"]
            parts = {
                "networks": ec2.describe_vpcs()["Vpcs"],
                "subnets": ec2.describe_subnets()["Subnets"],
                "route tables": ec2.describe_route_tables()["RouteTables"],
                "security groups": ec2.describe_security_groups()["SecurityGroups"],
                "logs of traffic": ec2.describe_flow_logs()["FlowLogs"],
                "endpoints": [one for one in ec2.describe_vpc_endpoints()["VpcEndpoints"] if one["State"] != "deleted"],
            }
            found = {
                **{
                    kind: [tag["Value"] for one in found for tag in one.get("Tags", []) if tag["Key"] == "application"]
                    for kind, found in parts.items()
                },
                "log groups": [one["logGroupName"] for one in groups_of_logs],
                "buckets": [one["Name"] for one in client("s3").list_buckets()["Buckets"]],
                "model package groups": [one["ModelPackageGroupName"] for one in groups],
                "pipelines": [one["PipelineName"] for one in sagemaker.list_pipelines()["PipelineSummaries"]],
                "rules": [one["Name"] for one in client("events").list_rules()["Rules"]],
                "schedules": [one["Name"] for one in client("scheduler").list_schedules()["Schedules"]],
                "queues": [url.rsplit("/", 1)[1] for url in client("sqs").list_queues().get("QueueUrls", [])],
                "topics": [one["TopicArn"].rsplit(":", 1)[1] for one in client("sns").list_topics()["Topics"]],
                "alarms": [one["AlarmName"] for one in client("cloudwatch").describe_alarms()["MetricAlarms"]],
                "dashboards": [
                    one["DashboardName"] for one in client("cloudwatch").list_dashboards()["DashboardEntries"]
                ],
                "budgets": [one["BudgetName"] for one in budgets],
                "roles": [one["RoleName"] for one in client("iam").list_roles()["Roles"]],
            }
            return {kind: [name for name in names if name.startswith(ours)] for kind, names in found.items()}

        assert set(stacks()) == {f"{settings.name}-{stack}" for stack in STACKS}
        assert set(stacks().values()) == {"CREATE_COMPLETE"}
        assert all(there().values()), there()

        finished = subprocess.run(
            [local.CDK, "destroy", "--all", "--force", "-c", f"environment={configuration}", "-o", str(tmp_path / "destroyed")],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PATH": f"{local.NODE}:{os.environ['PATH']}",
                "AWS_ENDPOINT_URL": aws.url,
                "AWS_REGION": settings.region,
                "AWS_ACCESS_KEY_ID": LOCAL_CREDENTIALS["aws_access_key_id"],
                "AWS_SECRET_ACCESS_KEY": LOCAL_CREDENTIALS["aws_secret_access_key"],
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        assert stacks() == {}
        left = {kind: names for kind, names in there().items() if names}
        assert {kind: len(names) for kind, names in left.items()} == {
            "buckets": 3, "model package groups": 1, "log groups": 1,
        }, left  # fmt: skip
        keys = [
            client("kms").describe_key(KeyId=one["KeyId"])["KeyMetadata"] for one in client("kms").list_keys()["Keys"]
        ]
        assert "Enabled" in [one["KeyState"] for one in keys if one["Description"] == f"Data of {settings.name}"]
