"""Statements against AWS's reference: what grants nothing, and what grants everything, is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from review import service_authorization

BUCKET, OBJECT = "arn:aws:s3:::b", "arn:aws:s3:::b/k"


def privilege(*keys: str, **kinds: list[str]) -> dict[str, Any]:
    """An action that carries condition keys of its own and knows kinds of resources with theirs."""
    found = {kind: {"condition_keys": of_kind} for kind, of_kind in kinds.items()}
    return {"resource_types": {**found, "": {"condition_keys": list(keys)}}}


# In the form of the reference, which is 11 MB and lies in another environment; `make check` reads it.
KNOWN = {
    "s3": {
        "privileges": {
            "GetObject": privilege(object=[]),
            "ListBucket": privilege("s3:prefix", bucket=[]),
            "ListAllMyBuckets": privilege(),
        },
        "resources": {
            "object": {"arn": "arn:${Partition}:s3:::${BucketName}/${ObjectName}", "condition_keys": []},
            "bucket": {"arn": "arn:${Partition}:s3:::${BucketName}", "condition_keys": ["s3:BucketTag"]},
        },
    }
}


@pytest.mark.parametrize(
    ("statement", "rules"),
    [
        ({"Action": "s3:GetObject", "Resource": OBJECT}, []),
        ({"Action": "s3:ListAllMyBuckets", "Resource": "*"}, []),
        ({"Action": ["s3:GetObject", "s3:ListBucket"], "Resource": [BUCKET, OBJECT]}, []),
        ({"Action": "s3:ReadObject", "Resource": OBJECT}, ["UnknownAction", "UnusedResource"]),
        ({"Action": "s3:GetObject", "Resource": "*"}, ["NeedlessWildcard"]),
        ({"Action": "s3:GetObject", "Resource": BUCKET}, ["NoSuchResource", "UnusedResource"]),
        ({"Action": "s3:GetObject", "Resource": [OBJECT, "arn:aws:sns:r:1:t"]}, ["UnusedResource"]),
        ({"Action": "s3:ListBucket", "Resource": BUCKET, "Condition": {"StringLike": {"s3:prefix": "a"}}}, []),
        ({"Action": "s3:ListBucket", "Resource": BUCKET, "Condition": {"StringLike": {"s3:BucketTag": "a"}}}, []),
        ({"Action": "s3:GetObject", "Resource": OBJECT, "Condition": {"StringLike": {"aws:SourceVpce": "a"}}}, []),
        (
            {"Action": "s3:GetObject", "Resource": OBJECT, "Condition": {"StringLike": {"s3:prefix": "a"}}},
            ["NoSuchConditionKey"],
        ),
    ],
)
def test_what_does_not_belong_together_is_found(statement: dict[str, Any], rules: list[str]) -> None:
    assert [rule for rule, _ in service_authorization.of_statement(statement, KNOWN)] == rules


def test_functions_of_a_template_are_read_as_the_arns_that_they_give(tmp_path: Path) -> None:
    joined = {"Fn::Join": ["", [{"Fn::ImportValue": "giver:BucketArn"}, "/runs/*"]]}
    policy = {"Sid": "Read", "Effect": "Allow", "Action": "s3:GetObject", "Resource": joined}
    bare = policy | {"Sid": "Bare", "Resource": {"Fn::ImportValue": "giver:BucketArn"}}
    output = {"Value": {"Fn::GetAtt": ["Data", "Arn"]}, "Export": {"Name": "giver:BucketArn"}}
    role = {"Type": "AWS::IAM::Policy", "Properties": {"PolicyDocument": {"Statement": [policy, bare]}}}
    giver = {"Resources": {"Data": {"Type": "AWS::S3::Bucket"}}, "Outputs": {"Arn": output}}
    for name, template in (("giver", giver), ("taker", {"Resources": {"RolePolicy": role}})):
        (tmp_path / name).write_text(json.dumps(template), encoding="utf-8")
    found = service_authorization.problems([tmp_path / "giver", tmp_path / "taker"], KNOWN)
    assert {place for _, place, _ in found} == {"RolePolicy#Bare"}
