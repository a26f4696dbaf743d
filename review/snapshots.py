"""What the templates and definitions of a configuration say, as a text to read and to compare: snapshots/<environment>.txt.

A change of it is a change of what is deployed; whoever makes one sees it in the diff, and commits it with its cause.
"""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config.settings import load
from review import pipeline_rules

SHOWN = ("accounts", "accounts/us", "private", "prod")  # the others have less of the same
SNAPSHOTS = Path(__file__).with_name("snapshots")
HASH = re.compile(r"[0-9A-F]{8}$")  # that CDK adds to a logical id
UNTOLD = {"AWS::CDK::Metadata"}


def differences(environment: str, templates: list[Path]) -> list[str]:
    """Lines of a diff from the committed snapshot to what the templates say now; none if they agree."""
    path = _file(environment)
    committed = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return list(
        difflib.unified_diff(committed, list(summary(environment, templates)), path.name, "now", n=1, lineterm="")
    )


def write(environment: str, templates: list[Path]) -> None:
    SNAPSHOTS.mkdir(exist_ok=True)
    text = "\n".join(summary(environment, templates))
    _file(environment).write_text(f"{text}\n", encoding="utf-8")


def _file(environment: str) -> Path:
    return SNAPSHOTS / f"{environment.replace('/', '-')}.txt"


def summary(environment: str, templates: list[Path]) -> Iterator[str]:
    """Resources by stack, what each role may do, and the jobs of each pipeline."""
    for path in sorted(templates):
        resources = json.loads(path.read_text(encoding="utf-8"))["Resources"]
        yield f"{path.name.removesuffix('.template.json')}"
        for id_, resource in sorted(resources.items()):
            if resource["Type"] in UNTOLD:
                continue
            kept = " (kept)" if resource.get("DeletionPolicy") == "Retain" else ""
            yield f"  {HASH.sub('', id_)}  {resource['Type']}{kept}"
            if resource["Type"] == "AWS::IAM::Policy":
                for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                    yield from _statement(statement)
    for job in pipeline_rules.jobs(load(environment)):
        yield from _job(job)


def _statement(statement: dict[str, Any]) -> Iterator[str]:
    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
    condition = f" if {_text(statement['Condition'])}" if "Condition" in statement else ""
    resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
    yield f"    {statement['Sid']}: {', '.join(actions)}{condition}"
    for resource in resources:
        yield f"      on {_text(resource)}"


def _job(job: pipeline_rules.Job) -> Iterator[str]:
    isolated = "no network" if job.network.get("EnableNetworkIsolation") else "network"
    machines = job.machines
    yield f"{job.pipeline} {job.step}"
    yield f"  {job.request['RoleArn']}, {isolated}, {_text(job.network.get('VpcConfig', 'no VPC'))}"
    yield f"  {_text(machines['InstanceType'])} x {_text(machines['InstanceCount'])}, {machines['VolumeSizeInGB']} GB"
    yield f"  {job.request['StoppingCondition']['MaxRuntimeInSeconds']} s at most"


def _text(value: Any) -> str:
    """An intrinsic function or a pipeline variable in short; logical ids without their hashes."""
    if isinstance(value, dict):
        if list(value) == ["Ref"]:
            return f"${{{HASH.sub('', value['Ref'])}}}"
        if list(value) == ["Fn::GetAtt"]:
            name, attribute = value["Fn::GetAtt"]
            return f"${{{HASH.sub('', name)}.{attribute}}}"
        if list(value) == ["Fn::Join"]:
            on, parts = value["Fn::Join"]
            return str(on).join(map(_text, parts))
        if list(value) == ["Fn::ImportValue"]:
            return f"${{{HASH.sub('', re.sub(r'.*:ExportsOutput(Ref|FnGetAtt)', '', value['Fn::ImportValue']))}}}"
        if list(value) in (["Get"], ["Fn::Sub"]):
            return str(*value.values())
        return ", ".join(f"{key} {_text(member)}" for key, member in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return re.sub(r"[0-9a-f]{64}", "<hash>", str(value))
