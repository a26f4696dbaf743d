"""What SageMaker tells a processing job's container of itself: which of its instances it is, and the job's name."""

import json
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path("/opt/ml/config")
NO_JOB = "no-job"


@dataclass(frozen=True)
class Instances:
    """The hosts of this job, in order, and which of them this one is (from 0)."""

    number: int = 0
    hosts: tuple[str, ...] = ("localhost",)

    @property
    def count(self) -> int:
        return len(self.hosts)


def instances() -> Instances:
    """The instances of this job; outside of a container, one."""
    path = CONFIG / "resourceconfig.json"
    if not path.is_file():
        return Instances()
    content = json.loads(path.read_text(encoding="utf-8"))
    hosts = sorted(content["hosts"], key=lambda host: int(host.rpartition("-")[2]))
    return Instances(hosts.index(content["current_host"]), tuple(hosts))


def input_uris() -> dict[str, str]:
    """Where this job's inputs lie in S3, by their names; outside of a container, none."""
    path = CONFIG / "processingjobconfig.json"
    inputs = json.loads(path.read_text(encoding="utf-8"))["ProcessingInputs"] if path.is_file() else []
    return {one["InputName"]: one["S3Input"]["S3Uri"] for one in inputs}


def name() -> str:
    """The job's name; outside of a container, one that says so."""
    path = CONFIG / "processingjobconfig.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["ProcessingJobName"]) if path.is_file() else NO_JOB
