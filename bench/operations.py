"""Whether local AWS and the commands stay responsive under load: many executions at once, a long history, many steps.

    .venv/bin/python -m bench.operations

50 executions of one job each start at the same moment; a pipeline is executed 1,000 times; a definition of 60 steps, each a
job, runs. Meanwhile and afterwards requests and commands are timed. Prints one line a figure; writes
bench/results/operations.json.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

import local_aws
from cli import executions, history
from cli.aws import Deployment
from config.settings import BaseModelSettings, Settings

RESULTS = Path(__file__).parent / "results" / "operations.json"
REGION = "us-east-1"
AT_ONCE, IN_HISTORY, STEPS = 50, 1000, 60
STARTERS = 16  # clients that start executions at the same time
SHOWN = 20  # executions in a history, as by default
SAMPLES = 10  # of a command's time


class Bench:
    """A running local AWS, its clients, and the figures so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sagemaker = self._client("sagemaker")
        self.rows: list[dict[str, Any]] = []
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
        iam = self._client("iam")
        role = iam.create_role(RoleName="bench", AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))
        anything = json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        )
        iam.put_role_policy(RoleName="bench", PolicyName="anything", PolicyDocument=anything)
        self.role = role["Role"]["Arn"]

    def _client(self, service: str) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(max_pool_connections=STARTERS),
        )

    def deployment(self, name: str) -> Deployment:
        """The deployment whose pipeline is `<name>-finetune`, as the commands see it."""
        return Deployment(Settings(name=name, base_model=BaseModelSettings(name="none")), self.url)

    def row(self, case: str, figure: str, value: float, unit: str) -> None:
        self.rows.append({"case": case, "figure": figure, "value": round(value, 3), "unit": unit})
        print(f"{case}: {figure}: {value:,.3f} {unit}")

    def create(self, name: str, steps: list[dict[str, Any]]) -> float:
        """Create `<name>-finetune`; returns the seconds it took."""
        body = json.dumps({"Version": "2020-12-01", "Parameters": [], "Steps": steps})
        clock = time.monotonic()
        self.sagemaker.create_pipeline(PipelineName=f"{name}-finetune", PipelineDefinition=body, RoleArn=self.role)
        return time.monotonic() - clock

    def start(self, name: str, count: int) -> list[str]:
        """Start `<name>-finetune` so many times, STARTERS at once; returns the executions' ARNs."""

        def one(_: int) -> str:
            answer = self.sagemaker.start_pipeline_execution(PipelineName=f"{name}-finetune")
            return str(answer["PipelineExecutionArn"])

        with ThreadPoolExecutor(STARTERS) as starters:
            return list(starters.map(one, range(count)))

    def wait(self, arns: list[str]) -> None:
        for arn in arns:
            while self.status(arn) in executions.RUNNING:
                time.sleep(0.2)
            if self.status(arn) != "Succeeded":
                raise SystemExit(f"{arn} ended as {self.status(arn)}")

    def status(self, arn: str) -> str:
        return str(self.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"])

    def time(self, case: str, what: str, call: Callable[[], Any], samples: int = SAMPLES) -> None:
        """Median and longest of some calls, in seconds."""
        seconds = []
        for _ in range(samples):
            clock = time.monotonic()
            call()
            seconds.append(time.monotonic() - clock)
        self.row(case, f"{what}, median", statistics.median(seconds), "s")
        self.row(case, f"{what}, longest", max(seconds), "s")


def job(name: str, role: str, **fields: Any) -> dict[str, Any]:
    arguments = {
        "RoleArn": role,
        "ProcessingResources": {
            "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
        },
        "AppSpecification": {"ImageUri": "bench:1", "ContainerEntrypoint": ["true"]},
    }
    return {"Name": name, "Type": "Processing", "Arguments": arguments, **fields}


def many_at_once(bench: Bench) -> None:
    case = f"{AT_ONCE} executions at once"
    bench.create("queue", [job("Work", bench.role)])
    deployment, clock = bench.deployment("queue"), time.monotonic()
    arns = bench.start("queue", AT_ONCE)
    bench.row(case, "until all are accepted", time.monotonic() - clock, "s")
    bench.time(case, "meanwhile: state of one with its steps", lambda: executions.describe(deployment, arns[-1]))
    bench.wait(arns)
    bench.row(case, "until all have succeeded", time.monotonic() - clock, "s")


def long_history(bench: Bench) -> None:
    case = f"{IN_HISTORY} executions in the history"
    equal = {"Conditions": [{"Type": "Equals", "LeftValue": 1, "RightValue": 1}], "IfSteps": [], "ElseSteps": []}
    bench.create("history", [{"Name": "End", "Type": "Condition", "Arguments": equal}])
    deployment, clock = bench.deployment("history"), time.monotonic()
    arns = bench.start("history", IN_HISTORY)
    bench.wait(arns[-STARTERS:])
    bench.row(case, "until all have run", time.monotonic() - clock, "s")
    bench.time(case, "start of one more", lambda: bench.start("history", 1))
    bench.time(case, "the newest one", lambda: executions.newest(deployment))
    bench.time(case, f"finetune history --last {SHOWN}", lambda: history.runs(deployment, SHOWN))
    bench.time(case, f"finetune history --last {IN_HISTORY}", lambda: history.runs(deployment, IN_HISTORY), samples=1)


def many_steps(bench: Bench) -> None:
    case = f"{STEPS} steps"
    steps = [job("S0", bench.role)]
    # Each waits for one of the first ten: up to 50 at once.
    steps += [job(f"S{n}", bench.role, **({"DependsOn": [f"S{n % 10}"]} if n > 9 else {})) for n in range(1, STEPS)]
    bench.row(case, "create the pipeline", bench.create("steps", steps), "s")
    deployment, clock = bench.deployment("steps"), time.monotonic()
    (arn,) = bench.start("steps", 1)
    bench.time(case, "meanwhile: state of all steps", lambda: executions.describe(deployment, arn))
    bench.wait([arn])
    bench.row(case, "until it has succeeded", time.monotonic() - clock, "s")


@contextmanager
def running() -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_aws.start(Path(scratch), {"bench": Path(sys.prefix)}) as aws,
    ):
        yield Bench(aws.url)


def device() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((one.partition(":")[2].strip() for one in lines if one.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {name}"


def main() -> None:
    os.environ["AWS_DEFAULT_REGION"] = REGION
    load_before = os.getloadavg()[0]
    with running() as bench:
        for case in (many_at_once, long_history, many_steps):
            case(bench)
    result = {
        "command": "python -m bench.operations",
        "date": datetime.now(UTC).date().isoformat(),
        "device": device(),
        "load_average_before": round(load_before, 1),
        "rows": bench.rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
