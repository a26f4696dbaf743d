"""IAM's evaluation: what a statement says is what is allowed, and what it says in unknown words is an error by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_aws import policies, request_actions
from local_aws.policies import Call, PolicyError
from local_aws.request_actions import Place

ROLE = "arn:aws:iam::123456789012:role/job"
BUCKET = "arn:aws:s3:::data"


def matches(statement: dict[str, Any], call: Call, *, resource_policy: bool = False) -> bool:
    document = {"Statement": {"Effect": "Allow", **statement}}
    return bool(policies.matching(policies.statements("p", document), call, resource_policy=resource_policy))


def read(key: str = "train/a", **context: Any) -> Call:
    return Call(ROLE, "s3:GetObject", f"{BUCKET}/{key}", context)


@pytest.mark.parametrize(
    ("action", "resource", "expected"),
    [
        ("s3:GetObject", f"{BUCKET}/train/*", True),
        ("S3:getobject", f"{BUCKET}/train/*", True),  # actions have no case
        ("s3:GetObject", "arn:aws:s3:::DATA/train/*", False),  # resources have one
        ("s3:Get*", f"{BUCKET}/t?ain/a", True),
        ("s3:Get*", f"{BUCKET}/train/?", True),
        ("s3:GetObject", BUCKET, False),
        ("s3:GetObject", f"{BUCKET}/[t]rain/a", False),  # brackets are not special
        ("s3:PutObject", "*", False),
        (["s3:PutObject", "*"], ["nothing", "*"], True),
    ],
)
def test_actions_and_resources_have_iams_wildcards(action: Any, resource: Any, expected: bool) -> None:
    assert matches({"Action": action, "Resource": resource}, read()) is expected


def test_not_action_and_not_resource_are_all_the_others() -> None:
    assert matches({"NotAction": "s3:Put*", "Resource": "*"}, read())
    assert not matches({"NotAction": "s3:Get*", "Resource": "*"}, read())
    assert not matches({"Action": "*", "NotResource": f"{BUCKET}/*"}, read())
    assert matches({"Action": "*", "NotResource": f"{BUCKET}/test/*"}, read())


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"StringEquals": {"s3:prefix": "train"}}, True),
        ({"StringEquals": {"S3:Prefix": ["test", "train"]}}, True),
        ({"StringEquals": {"s3:prefix": "tr*"}}, False),
        ({"StringLike": {"s3:prefix": "tr*"}}, True),
        ({"StringNotEquals": {"s3:prefix": "train"}}, False),
        ({"StringNotLike": {"s3:prefix": "x*"}}, True),
        ({"StringEquals": {"aws:SourceAccount": "1"}}, False),  # the key is not in the call
        ({"StringEqualsIfExists": {"aws:SourceAccount": "1"}}, True),
        ({"StringNotEquals": {"aws:SourceAccount": "1"}}, True),
        ({"Null": {"aws:SourceAccount": "true"}}, True),
        ({"Null": {"s3:prefix": "true"}}, False),
        ({"Bool": {"aws:SecureTransport": "false"}}, False),
        ({"Bool": {"aws:SecureTransport": True}}, True),
        ({"NumericLessThan": {"s3:TlsVersion": 1.2}}, False),
        ({"ArnLike": {"aws:SourceArn": "arn:aws:events:*:123456789012:rule/*"}}, True),
        ({"ArnLike": {"aws:SourceArn": "arn:aws:*:rule/*"}}, False),  # a * stays in its part
        ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b", "c"]}}, True),
        ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a"]}}, False),
        ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["a"]}}, True),
        ({"StringLike": {"s3:prefix": "t*"}, "Bool": {"aws:SecureTransport": "false"}}, False),  # all must hold
    ],
)
def test_conditions_hold_as_in_iam(condition: dict[str, Any], expected: bool) -> None:
    context = {
        "s3:prefix": "train",
        "s3:TlsVersion": "1.3",
        "aws:SecureTransport": "true",
        "aws:SourceArn": "arn:aws:events:us-east-1:123456789012:rule/new-data",
        "aws:TagKeys": ["a", "b"],
    }
    assert matches({"Action": "*", "Resource": "*", "Condition": condition}, read(**context)) is expected


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ({"Condition": {"DateLessThan": {"s3:prefix": "2026"}}}, "operator DateLessThan"),
        ({"Condition": {"ForSomeValue:StringLike": {"s3:prefix": "a"}}}, "operator ForSomeValue:StringLike"),
        ({"Condition": {"StringEquals": {"aws:PrincipalOrgID": "o"}}}, "key aws:PrincipalOrgID"),
        ({"Resource": "arn:aws:s3:::data/${aws:username}"}, r"variable in 'arn:aws:s3:::data/\$\{aws:username\}'"),
        ({"NotPrincipal": "*"}, "NotPrincipal"),
    ],
)
def test_what_is_not_known_is_an_error_by_name_and_by_statement(statement: dict[str, Any], named: str) -> None:
    with pytest.raises(PolicyError, match=rf"p#1: .*{named}.* not implemented"):
        document = {
            "Statement": [{"Effect": "Allow"}, {"Effect": "Allow", "Action": "*", "Resource": "*", **statement}]
        }
        policies.matching(policies.statements("p", document)[1:], read())


def test_a_resource_policy_speaks_to_its_principals_only() -> None:
    call = Call("events.amazonaws.com", "sns:Publish", "topic")
    for principal, expected in (
        ("*", True),
        ({"AWS": "*"}, True),
        ({"AWS": "arn:aws:iam::123456789012:root"}, False),
        ({"Service": "events.amazonaws.com"}, True),
        ({"Service": ["a", "events.amazonaws.com"]}, True),
        ({"Service": "cloudwatch.amazonaws.com"}, False),
    ):
        statement = {"Action": "sns:Publish", "Resource": "topic", "Principal": principal}
        assert matches(statement, call, resource_policy=True) is expected
    with pytest.raises(PolicyError, match="needs a Principal"):
        matches({"Action": "*", "Resource": "*"}, call, resource_policy=True)
    with pytest.raises(PolicyError, match="Principal Federated"):
        matches({"Action": "*", "Resource": "*", "Principal": {"Federated": "x"}}, call, resource_policy=True)


def test_a_resource_policy_that_names_another_account_speaks_to_all_who_are_in_it() -> None:
    call = Call("arn:aws:iam::222222222222:role/deploy", "s3:GetObject", f"{BUCKET}/a")
    for principal, expected in (
        ({"AWS": "arn:aws:iam::222222222222:root"}, True),
        ({"AWS": ["arn:aws:iam::333333333333:root", "222222222222"]}, True),
        ({"AWS": "arn:aws:iam::222222222222:role/deploy"}, True),
        ({"AWS": "arn:aws:iam::222222222222:role/other"}, False),
        ({"AWS": "arn:aws:iam::333333333333:root"}, False),
        ({"Service": "222222222222"}, False),
    ):
        document = {"Statement": {"Effect": "Allow", "Principal": principal, "Action": "*", "Resource": "*"}}
        candidates = policies.statements("p", document)
        found = policies.matching(candidates, call, resource_policy=True, of_account="222222222222")
        assert bool(found) is expected, principal


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_a_star_is_any_text_and_everything_else_is_itself(start: str, middle: str, end: str) -> None:
    literal = start.replace("*", "").replace("?", "")
    assert policies.like(f"{literal}*", literal + middle)
    assert policies.like(literal, literal)
    assert policies.like(literal, literal + end) is (end == "")


@pytest.mark.parametrize(
    ("operation", "network", "expected"),
    [
        ("CreateTrainingJob", {"VpcConfig": {"Subnets": ["a", "b"], "SecurityGroupIds": ["g"]}}, True),
        ("CreateProcessingJob", {"NetworkConfig": {"VpcConfig": {"Subnets": ["a"], "SecurityGroupIds": ["g"]}}}, True),
        ("CreateTrainingJob", {"VpcConfig": {"Subnets": ["a", "c"], "SecurityGroupIds": ["g"]}}, False),
        ("CreateTrainingJob", {"VpcConfig": {"Subnets": ["a"], "SecurityGroupIds": ["h"]}}, False),
        ("CreateProcessingJob", {"NetworkConfig": {"EnableNetworkIsolation": True}}, False),
        ("CreateTrainingJob", {}, False),
    ],
)
def test_a_condition_on_the_network_admits_jobs_inside_it_only(operation: str, network: Any, expected: bool) -> None:
    condition = {  # as stacks/pipeline.py has it; ForAllValues alone would admit a job that names no network
        "ForAllValues:StringEquals": {"sagemaker:VpcSubnets": ["a", "b"], "sagemaker:VpcSecurityGroupIds": ["g"]},
        "Null": {"sagemaker:VpcSubnets": "false", "sagemaker:VpcSecurityGroupIds": "false"},
    }
    name = f"{operation.removeprefix('Create')}Name"
    (create, *_) = request_actions.wanted("sagemaker", operation, {name: "j", **network}, Place("us-east-1", "1" * 12))
    statement = {"Action": f"sagemaker:{operation}", "Resource": "*", "Condition": condition}
    assert matches(statement, Call(ROLE, create.action, create.resource, create.context)) is expected
