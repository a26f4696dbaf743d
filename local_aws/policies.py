"""IAM's evaluation of policies: which statements allow a call, and which deny it. Pure: no state, no moto.

What this module does not know (an element, an operator, a condition key, a policy variable) is an error by name and never
a silent yes or no. Left out on purpose, since no policy here has one: permission boundaries, session policies, SCPs.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Context = Mapping[str, str | list[str]]

# The condition keys that a call may carry (request_actions.py and authorization.py fill them in), in lower case.
KNOWN_KEYS = frozenset(
    (
        "application-autoscaling:service-namespace",
        "aws:calledvia",
        "aws:principalaccount",
        "aws:principalarn",
        "aws:principalisawsservice",
        "aws:principalservicename",
        "aws:requestedregion",
        "aws:resourceaccount",
        "aws:securetransport",
        "aws:sourceaccount",
        "aws:sourcearn",
        "aws:sourceowner",
        "aws:tagkeys",
        "aws:viaawsservice",
        "cloudwatch:namespace",
        "ec2:vpc",
        "events:detail-type",
        "events:source",
        "iam:awsservicename",
        "iam:passedtoservice",
        "kms:calleraccount",
        "kms:encryptioncontext:aws:logs:arn",
        "kms:grantisforawsresource",
        "kms:viaservice",
        "s3:prefix",
        "s3:tlsversion",
        "sagemaker:modelapprovalstatus",
        "sagemaker:vpcsecuritygroupids",
        "sagemaker:vpcsubnets",
        "sns:endpoint",
        "sns:protocol",
    )
)
TAG_KEYS = ("aws:requesttag/", "aws:resourcetag/")  # each with the tag's own key
KNOWN_ELEMENTS = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "Condition"}


class PolicyError(Exception):
    """A policy says something that this evaluation does not know; the message names the statement and what it is."""


@dataclass(frozen=True)
class Statement:
    """A statement of a policy. `id` names its policy and its Sid, or its number from 0 where it has none."""

    id: str
    document: Mapping[str, Any] = field(hash=False)

    @property
    def allows(self) -> bool:
        return bool(self.document["Effect"] == "Allow")


@dataclass(frozen=True)
class Call:
    """What somebody wants to do. `principal` is a role's ARN or a service such as events.amazonaws.com."""

    principal: str
    action: str
    resource: str
    context: Context = field(default_factory=dict, hash=False)


def statements(policy: str, document: Mapping[str, Any]) -> list[Statement]:
    """The statements of a policy document. Raises PolicyError for an element that is not known."""
    found = [
        Statement(f"{policy}#{one.get('Sid') or number}", one)
        for number, one in enumerate(as_list(document.get("Statement", [])))
    ]
    for statement in found:
        if unknown := statement.document.keys() - KNOWN_ELEMENTS:
            raise PolicyError(f"{statement.id}: {', '.join(sorted(unknown))} is not implemented by local AWS")
    return found


def matching(
    candidates: Iterable[Statement], call: Call, *, resource_policy: bool = False, of_account: str | None = None
) -> list[Statement]:
    """The statements that speak about the call; in a resource policy only those whose Principal is the caller.

    `of_account` is the caller's account, if it is not the resource's: who names that account names all who are in it.
    """
    return [
        statement
        for statement in candidates
        if (
            not resource_policy
            or _names(statement, call.principal)
            or (of_account is not None and names_account(statement, of_account))
        )
        and _applies(statement, call)
    ]


def names_account(statement: Statement, account: str) -> bool:
    """Whether a statement of a resource policy leaves the decision to the identity policies of the account."""
    principals = statement.document.get("Principal")
    named = as_list(principals.get("AWS", [])) if isinstance(principals, dict) else []
    return any(one == account or re.fullmatch(f"arn:aws[a-z-]*:iam::{account}:root", one) for one in named)


def applies(statement: Statement, call: Call) -> bool:
    """Whether action, resource and conditions of the statement are those of the call, whoever makes it."""
    return _applies(statement, call)


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(statement: Statement, principal: str) -> bool:
    if "Principal" not in statement.document:
        raise PolicyError(f"{statement.id}: a statement of a resource policy needs a Principal")
    named = statement.document["Principal"]
    if named == "*" or "*" in as_list(named.get("AWS", [])):  # the two mean the same: everybody
        return True
    kind = "AWS" if principal.startswith("arn:") else "Service"
    if unknown := named.keys() - {"AWS", "Service"}:
        raise PolicyError(f"{statement.id}: Principal {', '.join(sorted(unknown))} is not implemented by local AWS")
    return any(one == principal for one in as_list(named.get(kind, [])))


def _applies(statement: Statement, call: Call) -> bool:
    document = statement.document
    return (
        _listed(statement, "Action", call.action, ignore_case=True)
        and _listed(statement, "Resource", call.resource)
        and all(
            _holds(statement, operator, key, as_list(wanted), call.context)
            for operator, keys in document.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _listed(statement: Statement, element: str, value: str, *, ignore_case: bool = False) -> bool:
    """Whether Action or Resource names the value, or NotAction or NotResource does not. A trust policy has no Resource."""
    document = statement.document
    if element in document:
        return any(like(pattern, value, ignore_case) for pattern in _patterns(statement, document[element]))
    if f"Not{element}" in document:
        return not any(like(pattern, value, ignore_case) for pattern in _patterns(statement, document[f"Not{element}"]))
    return element == "Resource"


def _patterns(statement: Statement, value: Any) -> list[str]:
    patterns = [str(one) for one in as_list(value)]
    if variables := [one for one in patterns if "${" in one]:
        raise PolicyError(f"{statement.id}: the policy variable in {variables[0]!r} is not implemented by local AWS")
    return patterns


def like(pattern: str, value: str, ignore_case: bool = False) -> bool:
    """IAM's wildcards: * is any text, ? any one character, and nothing else is special."""
    return _compiled(pattern, ignore_case).fullmatch(value) is not None


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    parts = (".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern))
    return re.compile("".join(parts), re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def _arn_like(pattern: str, value: str) -> bool:
    """Each of an ARN's six parts by itself: a * does not reach over a colon of the first five."""
    wanted, given = pattern.split(":", 5), value.split(":", 5)
    return len(wanted) == len(given) and all(map(like, wanted, given))


_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda wanted, given: wanted == given,
    "StringEqualsIgnoreCase": lambda wanted, given: wanted.lower() == given.lower(),
    "StringLike": like,
    "ArnEquals": _arn_like,
    "ArnLike": _arn_like,
    "Bool": lambda wanted, given: str(wanted).lower() == given.lower(),
    "NumericEquals": lambda wanted, given: float(given) == float(wanted),
    "NumericLessThan": lambda wanted, given: float(given) < float(wanted),
    "NumericLessThanEquals": lambda wanted, given: float(given) <= float(wanted),
    "NumericGreaterThan": lambda wanted, given: float(given) > float(wanted),
    "NumericGreaterThanEquals": lambda wanted, given: float(given) >= float(wanted),
}
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "NumericNotEquals": "NumericEquals",
}


def _holds(statement: Statement, operator: str, key: str, wanted: list[Any], context: Context) -> bool:
    if key.lower() not in KNOWN_KEYS and not key.lower().startswith(TAG_KEYS):
        raise PolicyError(f"{statement.id}: the condition key {key} is not implemented by local AWS")
    given = {name.lower(): value for name, value in context.items()}.get(key.lower())
    if operator == "Null":
        return (given is None) == (str(wanted[0]).lower() == "true")
    quantifier, _, name = operator.rpartition(":")
    name, if_exists = name.removesuffix("IfExists"), name.endswith("IfExists")
    negated, name = name in _NEGATED, _NEGATED.get(name, name)
    if name not in _OPERATORS or quantifier not in ("", "ForAnyValue", "ForAllValues"):
        raise PolicyError(f"{statement.id}: the condition operator {operator} is not implemented by local AWS")
    if given is None:
        return if_exists or negated or quantifier == "ForAllValues"
    compare = _OPERATORS[name]

    def one_holds(value: str) -> bool:
        return any(compare(str(pattern), value) for pattern in wanted) != negated

    values = [str(value) for value in as_list(given)]
    return all(map(one_holds, values)) if quantifier == "ForAllValues" else any(map(one_holds, values))
