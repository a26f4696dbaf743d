"""Requests of a role are answered as its policies say; the errors are AWS's."""

import json
import urllib.error
import urllib.request
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.local_aws.sagemaker_server import ACCOUNT, BUCKET, TRUST, Server, processing, running_server

ROLE = "narrow"
ARN = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"
AROUND = {  # what SageMaker does with the role of any job
    "Effect": "Allow",
    "Action": ["logs:*", "cloudwatch:PutMetricData"],
    "Resource": "*",
}
TELL_KEYS = 'printf "%s %s %s" $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_SESSION_TOKEN > /opt/ml/output/message'


@pytest.fixture(scope="module")
def server() -> Server:
    server = running_server()
    server.client("iam").create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(TRUST))
    server.put("narrow/one", "1")
    return server


def allow(server: Server, *statements: dict[str, Any]) -> None:
    document = {"Version": "2012-10-17", "Statement": [AROUND, *statements]}
    server.client("iam").put_role_policy(RoleName=ROLE, PolicyName="p", PolicyDocument=json.dumps(document))


@pytest.fixture(scope="module")
def session(server: Server) -> boto3.Session:
    """The credentials that a job with the role got."""
    allow(server)
    server.sagemaker.create_processing_job(ProcessingJobName="keys", **processing(TELL_KEYS, RoleArn=ARN))
    key, secret, token = server.processing_job("keys")["ExitMessage"].split()
    return boto3.Session(key, secret, token, region_name="us-east-1")


def tried(server: Server, session: boto3.Session, *calls: tuple[str, str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(code, message) of each call, made with the job's credentials."""
    said = []
    for service, call, arguments in calls:
        client = session.client(service, endpoint_url=server.process.url)  # type: ignore[call-overload]
        try:
            getattr(client, call)(**arguments)
            said.append(("allowed", ""))
        except ClientError as error:
            said.append((error.response["Error"]["Code"], error.response["Error"]["Message"]))
    return said


def test_s3_tells_what_is_missing_only_to_who_may_list(server: Server, session: boto3.Session) -> None:
    get = ("s3", "head_object", {"Bucket": BUCKET, "Key": "narrow/one"})
    missing = ("s3", "head_object", {"Bucket": BUCKET, "Key": "narrow/none"})
    other = ("s3", "get_object", {"Bucket": BUCKET, "Key": "other/one"})
    read = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/narrow/*"}
    allow(server, read)
    codes = tried(server, session, get, missing, other)
    assert [code for code, _ in codes] == ["allowed", "403", "AccessDenied"]
    assert codes[2][1] == (
        f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/keys is not authorized to perform: s3:GetObject on resource: "
        f"arn:aws:s3:::{BUCKET}/other/one because no identity-based policy allows the s3:GetObject action"
    )
    allow(server, read, {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{BUCKET}"})
    assert [code for code, _ in tried(server, session, get, missing)] == ["allowed", "404"]


def test_a_copy_reads_and_writes_and_a_deletion_of_many_is_one_of_each(server: Server, session: boto3.Session) -> None:
    copy = ("s3", "copy_object", {"Bucket": BUCKET, "Key": "narrow/two", "CopySource": f"{BUCKET}/secret/one"})
    delete = (
        "s3",
        "delete_objects",
        {"Bucket": BUCKET, "Delete": {"Objects": [{"Key": "narrow/x"}, {"Key": "other/x"}]}},
    )
    mine = f"arn:aws:s3:::{BUCKET}/narrow/*"
    allow(server, {"Effect": "Allow", "Action": ["s3:PutObject", "s3:DeleteObject"], "Resource": mine})
    (first, why), (second, _) = tried(server, session, copy, delete)
    assert (
        first == second == "AccessDenied" and "s3:GetObject on resource: arn:aws:s3:::sagemaker-tests/secret/one" in why
    )


def test_an_explicit_deny_of_the_bucket_wins(server: Server, session: boto3.Session) -> None:
    bucket = "denies"
    server.s3.create_bucket(Bucket=bucket)
    server.s3.put_object(Bucket=bucket, Key="a", Body=b"")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"}
    server.s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    allow(server, {"Effect": "Allow", "Action": "s3:*", "Resource": "*"})
    ((code, why),) = tried(server, session, ("s3", "get_object", {"Bucket": bucket, "Key": "a"}))
    assert code == "AccessDenied" and why.endswith("with an explicit deny in a resource-based policy")


def test_an_encrypted_object_needs_its_key_too(server: Server, session: boto3.Session) -> None:
    key = server.client("kms").create_key()["KeyMetadata"]["Arn"]
    server.s3.create_bucket(Bucket="encrypted")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
    server.s3.put_bucket_encryption(Bucket="encrypted", ServerSideEncryptionConfiguration={"Rules": [rule]})
    server.s3.put_object(Bucket="encrypted", Key="a", Body=b"")
    calls = [
        ("s3", "get_object", {"Bucket": "encrypted", "Key": "a"}),
        ("s3", "put_object", {"Bucket": "encrypted", "Key": "b", "Body": "b"}),
    ]
    s3 = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    allow(server, s3)
    (_, read), (_, write) = tried(server, session, *calls)
    assert "kms:Decrypt on resource" in read and "kms:GenerateDataKey on resource" in write
    allow(server, s3, {"Effect": "Allow", "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": key})
    assert [code for code, _ in tried(server, session, *calls)] == ["allowed", "allowed"]


def test_sagemaker_and_cloudwatch_are_asked_with_resources_and_conditions(
    server: Server, session: boto3.Session
) -> None:
    calls = [
        ("sagemaker", "describe_training_job", {"TrainingJobName": "mine-1"}),
        ("sagemaker", "describe_training_job", {"TrainingJobName": "yours-1"}),
        ("cloudwatch", "put_metric_data", {"Namespace": "Mine", "MetricData": [{"MetricName": "m", "Value": 1}]}),
        ("cloudwatch", "put_metric_data", {"Namespace": "Yours", "MetricData": [{"MetricName": "m", "Value": 1}]}),
        ("sagemaker-runtime", "invoke_endpoint", {"EndpointName": "yours", "Body": "x"}),
        ("dynamodb", "list_tables", {}),
        ("sts", "get_caller_identity", {}),
    ]
    metrics = {"StringEquals": {"cloudwatch:namespace": ["Mine", "/aws/sagemaker/ProcessingJobs"]}}
    document = [
        {"Effect": "Allow", "Action": "logs:*", "Resource": "*"},
        {"Effect": "Allow", "Action": "sagemaker:Describe*", "Resource": "arn:aws:sagemaker:*:*:training-job/mine-*"},
        {"Effect": "Allow", "Action": "cloudwatch:PutMetricData", "Resource": "*", "Condition": metrics},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": document})
    server.client("iam").put_role_policy(RoleName=ROLE, PolicyName="p", PolicyDocument=policy)
    said = tried(server, session, *calls)
    assert [code for code, _ in said] == [
        "ValidationException", "AccessDeniedException", "allowed", "AccessDenied", "AccessDeniedException",
        "AccessDeniedException", "allowed",
    ]  # fmt: skip
    assert "does not know which permissions dynamodb:ListTables needs" in said[5][1]


def test_a_job_whose_role_may_not_write_logs_does_not_start(server: Server) -> None:
    read = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [read]})
    server.client("iam").put_role_policy(RoleName=ROLE, PolicyName="p", PolicyDocument=policy)
    server.sagemaker.create_processing_job(ProcessingJobName="no-logs", **processing("true", RoleArn=ARN))
    job = server.processing_job("no-logs")
    assert job["ProcessingJobStatus"] == "Failed" and "AccessDenied" in job["FailureReason"]
    assert "logs:CreateLogGroup on resource" in job["FailureReason"]


def test_a_volume_key_is_refused_for_instances_with_disks_of_their_own(server: Server) -> None:
    request = processing("true")
    cluster = request["ProcessingResources"]["ClusterConfig"]
    cluster |= {"InstanceType": "ml.g5.xlarge", "VolumeKmsKeyId": "arn:aws:kms:us-east-1:123456789012:key/k"}
    with pytest.raises(
        ClientError, match=r"VolumeKmsKeyId cannot be given for ml\.g5\.xlarge, which has local storage"
    ):
        server.sagemaker.create_processing_job(ProcessingJobName="volume", **request)


def test_what_was_allowed_is_told_with_the_statements_that_did(server: Server, session: boto3.Session) -> None:
    read = {
        "Sid": "Read",
        "Effect": "Allow",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/narrow/told",
    }
    server.put("narrow/told", "1")
    allow(server, read)
    tried(server, session, ("s3", "get_object", {"Bucket": BUCKET, "Key": "narrow/told"}))
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.process.url}/_local/authorizations", method="POST")
    ) as answer:
        records = json.load(answer)
    (record,) = [one for one in records if one["resource"] == read["Resource"] and one["principal"] == ARN]
    assert record["action"] == "s3:GetObject" and record["names"] == ["keys"] and record["count"] == 1
    assert record["allowed_by"] == [[f"{ROLE}/p#Read"]]


def test_peoples_credentials_are_an_administrators(server: Server) -> None:
    stranger = boto3.client(
        "s3", "us-east-1", endpoint_url=server.process.url, aws_access_key_id="somebody", aws_secret_access_key="x"
    )
    assert stranger.head_object(Bucket=BUCKET, Key="narrow/one")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1:80", ""])
def test_a_page_that_resolves_its_name_to_this_machine_is_refused(server: Server, host: str) -> None:
    request = urllib.request.Request(
        f"{server.process.url}/_local/clock?advance_seconds=1", method="POST", headers={"Host": host}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403 and b"local AWS answers to localhost" in refused.value.read()
