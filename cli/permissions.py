"""Which statement of which policy a run needed: every call that local AWS allowed names the statements that did."""

import json
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from cli.aws import Deployment
from cli.console import CommandError, console


@dataclass(frozen=True)
class Need:
    """A call that only one statement allows."""

    action: str
    resource: str
    by: str  # step, endpoint or service that made it


@dataclass
class Statement:
    """A statement that allows something, in a policy of the deployment's."""

    id: str  # as local AWS names it: <policy>#<Sid or number>
    owner: str  # logical id of the role, key, bucket or topic
    name: str
    actions: list[str]
    used: set[str] = field(default_factory=set)  # actions that were called
    needs: list[Need] = field(default_factory=list)

    @property
    def unused(self) -> list[str]:
        """Actions that nobody called."""
        return [action for action in self.actions if action not in self.used]


def statements(*deployments: Deployment) -> list[Statement]:
    """Every allowing statement of the deployments' roles and resource policies, with the calls that need it.

    Several are accounts that ask each other. Raises CommandError on AWS, which does not tell.
    """
    found = {one.id: one for deployment in deployments for one in _deployed(deployment)}
    for record in (one for deployment in deployments for one in _records(deployment)):
        for grant in record["allowed_by"]:
            for statement in {one: found[one] for one in grant if one in found}.values():
                statement.used |= {one for one in statement.actions if _same(one, record["action"])}
            if len(set(grant)) == 1 and grant[0] in found:
                by = ", ".join(dict.fromkeys(_step(name) for name in record["names"] if name)) or record["principal"]
                found[grant[0]].needs.append(Need(record["action"], record["resource"], by))
    return list(found.values())


def show(deployment: Deployment) -> None:
    """Print the table: statement removed -> the first call that is then denied, and whose it is."""
    table = Table("policy of", "statement", "removed, this is denied", "in", title="Every statement and who needs it")
    for one in statements(deployment):
        need = one.needs[0] if one.needs else None
        denied = f"{need.action} on {need.resource}" if need else "nothing in this run"
        table.add_row(one.owner, one.name, denied, need.by if need else "", style=None if need else "yellow")
    console.print(table)


def _records(deployment: Deployment) -> list[dict[str, Any]]:
    """What was allowed to whom in one account, and by which statements."""
    if deployment.endpoint_url is None:
        raise CommandError("AWS does not tell which statement allowed a call; run this against local AWS (-e local)")
    request = urllib.request.Request(f"{deployment.endpoint_url}/_local/authorizations", method="POST")
    with urllib.request.urlopen(request) as answer:
        records: list[dict[str, Any]] = json.load(answer)
    return records


def _deployed(deployment: Deployment) -> list[Statement]:
    cloudformation, iam = deployment.client("cloudformation"), deployment.client("iam")
    found: list[Statement] = []
    stacks = [one["StackName"] for one in cloudformation.describe_stacks()["Stacks"]]
    for stack in sorted(name for name in stacks if name.startswith(f"{deployment.settings.name}-")):
        for resource in cloudformation.list_stack_resources(StackName=stack)["StackResourceSummaries"]:
            owner, id_ = resource["LogicalResourceId"], resource.get("PhysicalResourceId", "")
            if resource["ResourceType"] == "AWS::IAM::Role":
                for name in iam.list_role_policies(RoleName=id_)["PolicyNames"]:
                    document = iam.get_role_policy(RoleName=id_, PolicyName=name)["PolicyDocument"]
                    found += _statements(f"{id_}/{name}", owner, document)
                role = iam.get_role(RoleName=id_)["Role"]
                trusts = _statements(role["Arn"], owner, role["AssumeRolePolicyDocument"])
                found += [Statement(one.id, owner, "trust", one.actions) for one in trusts]
            elif resource["ResourceType"] == "AWS::KMS::Key":
                kms = deployment.client("kms")
                arn = kms.describe_key(KeyId=id_)["KeyMetadata"]["Arn"]
                policy = kms.get_key_policy(KeyId=id_, PolicyName="default")["Policy"]
                found += _statements(arn, owner, json.loads(policy))
            elif resource["ResourceType"] == "AWS::SNS::Topic":
                policy = deployment.client("sns").get_topic_attributes(TopicArn=id_)["Attributes"]["Policy"]
                found += _statements(id_, owner, json.loads(policy))
    return found


def _statements(policy: str, owner: str, document: Any) -> list[Statement]:
    listed = document["Statement"] if isinstance(document["Statement"], list) else [document["Statement"]]
    return [
        Statement(
            f"{policy}#{name}", owner, name, one["Action"] if isinstance(one["Action"], list) else [one["Action"]]
        )
        for name, one in ((str(one.get("Sid") or number), one) for number, one in enumerate(listed))
        if one["Effect"] == "Allow"
    ]


def _same(pattern: str, action: str) -> bool:
    return pattern.lower() == action.lower() or (
        pattern.endswith("*") and action.lower().startswith(pattern[:-1].lower())
    )


def _step(name: str) -> str:
    """FineTune of pipelines-<execution>-FineTune-<random>; other names as they are."""
    parts = name.split("-")
    return parts[2] if parts[0] == "pipelines" and len(parts) >= 4 else name
