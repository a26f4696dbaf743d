"""Two accounts, each a server: what one asks of the other's, and that both sides must allow it."""

import itertools
import json
import os
import sys
import urllib.error
import urllib.request
from argparse import ArgumentTypeError
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

import local_aws
from local_aws import __main__ as local_aws_command
from local_aws import neighbours
from local_aws.settings import Settings
from tests.local_aws.conftest import create_pipeline, wait_for
from tests.local_aws.sagemaker_server import TRUST, processing
from tests.local_aws.test_enforcement import AROUND, TELL_KEYS

LONG = 120  # seconds to wait for what happens elsewhere
IMAGES = {"tools": Path(sys.prefix)}
ROLE = "arn:aws:iam::222222222222:role/deploy"
SENDER = "arn:aws:iam::111111111111:role/sender"
BUCKET, KEY, CONTENT = "artifacts", "models/one file", os.urandom(12 * 2**20 + 7)
PARTS = TransferConfig(multipart_threshold=2**20, multipart_chunksize=5 * 2**20)
BUS = "arn:aws:events:eu-west-1:222222222222:event-bus/models"
CONTAINER = {"Image": "web"}
SPECIFICATION = {"Containers": [CONTAINER], "SupportedContentTypes": ["a/b"], "SupportedResponseMIMETypes": ["a/b"]}


@dataclass
class Place:
    """A running server with clients of its administrator."""

    aws: local_aws.LocalAws
    region: str
    session: boto3.Session = field(default_factory=lambda: boto3.Session("local", "local"))
    made: dict[Any, Any] = field(default_factory=dict)  # clients, which take long to make

    def client(self, service: str, region: str = "", session: boto3.Session | None = None) -> Any:
        who, where = session or self.session, region or self.region
        if (service, where, who) not in self.made:
            client: Any = who.client(service, where, endpoint_url=self.aws.url)  # type: ignore[call-overload]
            self.made[service, where, who] = client
        return self.made[service, where, who]


@dataclass
class Two:
    """Where pipelines run and where models are served, with the job's credentials and the package that both talk of."""

    pipelines: Place
    serving: Place
    job: boto3.Session
    package: str
    key: str

    def sagemaker(self, session: boto3.Session | None = None) -> Any:
        """The other region's SageMaker, asked in the serving account."""
        return self.serving.client("sagemaker", self.pipelines.region, session or self.job)

    def grant(self, **actions: str) -> None:
        """Let the job's role do so much: action (its colon as _) = resource."""
        allowed = [
            {"Sid": name, "Effect": "Allow", "Action": name.replace("_", ":"), "Resource": on} for name, on in actions.items()
        ]  # fmt: skip
        document = policy(AROUND, *allowed)
        self.serving.client("iam").put_role_policy(RoleName="deploy", PolicyName="p", PolicyDocument=document)

    def share_group(self, *actions: str) -> None:
        group = {"ModelPackageGroupName": "models"}
        if not actions:
            self.pipelines.client("sagemaker").delete_model_package_group_policy(**group)
            return
        statement = shared(list(actions), [self.package.rsplit("/", 1)[0] + "/*", group_arn(self.package)])
        self.pipelines.client("sagemaker").put_model_package_group_policy(**group, ResourcePolicy=policy(statement))

    def share_bucket(self, *actions: str) -> None:
        s3 = self.pipelines.client("s3")
        if not actions:
            s3.delete_bucket_policy(Bucket=BUCKET)
            return
        statement = shared(list(actions), [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"])
        s3.put_bucket_policy(Bucket=BUCKET, Policy=policy(statement))

    def share_key(self, shares: bool) -> None:
        owner = {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::111111111111:root"},
            "Action": "kms:*",
            "Resource": "*",
        }
        reader = {**shared("kms:Decrypt", "*"), "Principal": {"AWS": ROLE}}
        reader["Condition"] = {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}
        document = policy(owner, *([reader] if shares else []))
        self.pipelines.client("kms").put_key_policy(KeyId=self.key, PolicyName="default", Policy=document)


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def shared(actions: Any, resources: Any) -> dict[str, Any]:
    """A statement of the pipelines' account that lets the serving account decide who of it may."""
    principal = {"AWS": "arn:aws:iam::222222222222:root"}
    return {"Sid": "Serving", "Effect": "Allow", "Principal": principal, "Action": actions, "Resource": resources}


def group_arn(package: str) -> str:
    return package.replace(":model-package/", ":model-package-group/").rsplit("/", 1)[0]


def refusal(call: Any, **arguments: Any) -> str:
    """What a call is refused with; nothing if it passes."""
    try:
        call(**arguments)
    except ClientError as error:
        return f"{error.response['Error']['Code']}: {error.response['Error']['Message']}"
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("neighbours")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Two]:
    def start(account: str, region: str) -> local_aws.LocalAws:
        root = tmp_path_factory.mktemp("aws")
        return local_aws.start(root, IMAGES, account=account, region=region, neighbours=folder)

    with start("111111111111", "us-east-1") as first, start("222222222222", "eu-west-1") as second:
        pipelines, serving = Place(first, "us-east-1"), Place(second, "eu-west-1")
        iam = serving.client("iam")
        iam.create_role(RoleName="deploy", AssumeRolePolicyDocument=json.dumps(TRUST))
        iam.put_role_policy(RoleName="deploy", PolicyName="p", PolicyDocument=policy(AROUND))
        job = credentials_of_a_job(serving, "deploy-job")

        sagemaker, s3 = pipelines.client("sagemaker"), pipelines.client("s3")
        sagemaker.create_model_package_group(ModelPackageGroupName="models")
        package = sagemaker.create_model_package(ModelPackageGroupName="models", InferenceSpecification=SPECIFICATION)
        key = pipelines.client("kms").create_key()["KeyMetadata"]["Arn"]
        rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}}
        s3.create_bucket(Bucket=BUCKET)
        s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
        s3.put_object(Bucket=BUCKET, Key=KEY, Body=CONTENT, ContentType="text/x-model", Metadata={"digest": "abc"})
        here = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
        serving.client("s3").create_bucket(Bucket="served", **here)
        yield Two(pipelines, serving, job, package["ModelPackageArn"], key)
    assert list(folder.iterdir()) == []  # who has ended is nobody's neighbour


def credentials_of_a_job(place: Place, name: str, **fields: Any) -> boto3.Session:
    sagemaker = place.client("sagemaker")
    sagemaker.create_processing_job(ProcessingJobName=name, **processing(TELL_KEYS, RoleArn=ROLE, **fields))

    def ended() -> Any:
        job = sagemaker.describe_processing_job(ProcessingJobName=name)
        return job if job["ProcessingJobStatus"] not in ("InProgress", "Stopping") else None

    return boto3.Session(*wait_for(ended, LONG)["ExitMessage"].split())


def test_a_server_is_its_account_in_its_region(two: Two, folder: Path) -> None:
    for place, account in ((two.pipelines, "111111111111"), (two.serving, "222222222222")):
        assert place.client("sts").get_caller_identity()["Account"] == account
    assert two.serving.client("sts", session=two.job).get_caller_identity()["Account"] == "222222222222"
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["111111111111-us-east-1.json", "222222222222-eu-west-1.json"]
    assert [path.stat().st_mode & 0o777 for path in (folder, *files)] == [0o700, 0o600, 0o600]


def test_a_package_is_described_listed_and_rejected_from_another_account(two: Two) -> None:
    calls = ("DescribeModelPackage", "UpdateModelPackage", "ListModelPackages")
    two.grant(**{f"sagemaker_{call}": "*" for call in calls})
    two.share_group(*(f"sagemaker:{call}" for call in calls))
    sagemaker = two.sagemaker()
    why = "it does not answer"
    sagemaker.update_model_package(ModelPackageArn=two.package, ModelApprovalStatus="Rejected", ApprovalDescription=why)
    described = sagemaker.describe_model_package(ModelPackageName=two.package)
    assert (described["ModelApprovalStatus"], described["ApprovalDescription"]) == ("Rejected", why)
    listed = sagemaker.list_model_packages(ModelPackageGroupName=group_arn(two.package))
    assert [one["ModelPackageArn"] for one in listed["ModelPackageSummaryList"]] == [two.package]
    at_home = two.pipelines.client("sagemaker").describe_model_package(ModelPackageName=two.package)
    assert at_home["ModelApprovalStatus"] == "Rejected"
    with urllib.request.urlopen(f"{two.pipelines.aws.url}/_local/authorizations", b"") as answer:
        records = json.load(answer)
    (told,) = [one for one in records if one["action"] == "sagemaker:UpdateModelPackage"]
    assert (told["principal"], told["names"]) == (ROLE, ["deploy-job"])
    group = group_arn(two.package)
    assert told["allowed_by"] == [[f"{group}#Serving"], ["deploy/p#sagemaker_UpdateModelPackage"]]
    assert told["context"]["aws:PrincipalAccount"] == "222222222222"
    assert told["context"]["aws:ResourceAccount"] == "111111111111"


def test_both_accounts_must_allow_a_package_to_be_described(two: Two) -> None:
    for own, its in itertools.product((True, False), repeat=2):
        two.grant(**({"sagemaker_DescribeModelPackage": two.package} if own else {}))
        two.share_group(*(["sagemaker:DescribeModelPackage"] if its else []))
        said = refusal(two.sagemaker().describe_model_package, ModelPackageName=two.package)
        assert (said == "") is (own and its), (own, its, said)
        if said:
            missing = "identity" if its else "resource"
            assert said == (
                "AccessDeniedException: User: arn:aws:sts::222222222222:assumed-role/deploy/deploy-job is not authorized to "
                f"perform: sagemaker:DescribeModelPackage on resource: {two.package} because no {missing}-based policy allows "
                "the sagemaker:DescribeModelPackage action"
            )


def test_an_object_needs_identity_bucket_and_key_of_both_accounts(two: Two) -> None:
    s3 = two.serving.client("s3", session=two.job)
    for get, decrypt, bucket, key in itertools.product((True, False), repeat=4):
        actions = ({"s3_GetObject": f"arn:aws:s3:::{BUCKET}/*"} if get else {}) | (
            {"kms_Decrypt": two.key} if decrypt else {}
        )
        two.grant(**actions)
        two.share_bucket(*(["s3:GetObject"] if bucket else []))
        two.share_key(key)
        said = refusal(s3.get_object, Bucket=BUCKET, Key=KEY, Range="bytes=0-0")
        assert (said == "") is all((get, decrypt, bucket, key)), (get, decrypt, bucket, key, said)
        if said:
            wanted = (
                f"kms:Decrypt on resource: {two.key}"
                if get and bucket
                else "s3:GetObject on resource: arn:aws:s3:::artifacts"
            )
            assert (
                said.startswith("AccessDenied: User: arn:aws:sts::222222222222:assumed-role/deploy") and wanted in said
            )


def test_objects_are_listed_read_and_copied_by_parts_and_whole(two: Two) -> None:
    reads = {"s3_GetObject": "*", "s3_GetObjectVersion": "*", "s3_ListBucket": f"arn:aws:s3:::{BUCKET}"}
    two.grant(**reads, s3_PutObject="arn:aws:s3:::served/*", kms_Decrypt="*")
    two.share_bucket("s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket")
    two.share_key(True)
    s3 = two.serving.client("s3", session=two.job)
    (listed,) = s3.list_objects_v2(Bucket=BUCKET, Prefix="models/one")["Contents"]
    assert (listed["Key"], listed["Size"]) == (KEY, len(CONTENT))
    head = s3.head_object(Bucket=BUCKET, Key=KEY)
    source = {"Bucket": BUCKET, "Key": KEY, "VersionId": head["VersionId"]}
    s3.copy(source, "served", "by-parts", Config=PARTS)
    assert s3.get_object(Bucket="served", Key="by-parts")["Body"].read() == CONTENT
    assert s3.head_object(Bucket="served", Key="by-parts")["ETag"].endswith('-3"')
    answer = s3.copy_object(Bucket="served", Key="whole", CopySource=source, CopySourceIfMatch=head["ETag"])
    assert answer["CopySourceVersionId"] == head["VersionId"]
    whole = s3.get_object(Bucket="served", Key="whole")
    assert (whole["Body"].read(), whole["ETag"]) == (CONTENT, answer["CopyObjectResult"]["ETag"])
    assert (whole["ContentType"], whole["Metadata"]) == ("text/x-model", {"digest": "abc"})
    plain = {"Bucket": BUCKET, "Key": "models/plain"}
    two.pipelines.client("s3").put_object(**plain, Body=b"plain")
    s3.copy(plain, "served", "plain")
    as_put = [client.head_object(**one) for client, one in ((s3, plain), (s3, {"Bucket": "served", "Key": "plain"}))]
    assert as_put[0].get("ContentType") == as_put[1].get("ContentType") and as_put[1]["ContentLength"] == 5
    middle = s3.get_object(Bucket=BUCKET, Key=KEY, Range="bytes=5-9999999999")
    assert (
        middle["Body"].read() == CONTENT[5:] and middle["ContentRange"] == f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
    )
    changed = refusal(s3.copy_object, Bucket="served", Key="no", CopySource=source, CopySourceIfMatch='"other"')
    assert changed.startswith("PreconditionFailed")
    elsewhere = refusal(s3.copy_object, Bucket="served", Key="no", CopySource={"Bucket": BUCKET, "Key": "models/none"})
    assert elsewhere.startswith("NoSuchKey")
    two.grant(s3_GetObject="*", s3_GetObjectVersion="*")
    assert "kms:Decrypt on resource" in refusal(s3.copy_object, Bucket="served", Key="no", CopySource=source)
    two.grant(s3_GetObject="*", s3_GetObjectVersion="*", kms_Decrypt="*")
    assert "s3:PutObject on resource: arn:aws:s3:::served/no" in refusal(
        s3.copy_object, Bucket="served", Key="no", CopySource=source
    )


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        (
            "put_object",
            {"Key": "x", "Body": b"x"},
            "NotImplemented: PutObject of artifacts, which is in account 111111111111",
        ),
        ("delete_object", {"Key": KEY}, "NotImplemented: DeleteObject of artifacts"),
        ("get_bucket_policy", {}, "NotImplemented: GetBucketPolicy of artifacts"),
        (
            "copy_object",
            {"Key": "x", "CopySource": {"Bucket": "served", "Key": "x"}},
            "NotImplemented: PutObject of artifacts",
        ),
        (
            "create_bucket",
            {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}},
            "BucketAlreadyExists: The bucket artifacts is in account 111111111111, us-east-1",
        ),
    ],
)
def test_a_bucket_of_another_account_is_only_read(two: Two, call: str, arguments: dict[str, Any], said: str) -> None:
    assert refusal(getattr(two.serving.client("s3"), call), Bucket=BUCKET, **arguments).startswith(said)


def test_what_does_not_cross_and_who_is_not_there_is_told_by_name(two: Two) -> None:
    said = refusal(two.sagemaker().list_pipelines)
    assert said.startswith("UnsupportedOperation: ListPipelines of us-east-1 cannot be asked in eu-west-1 here")
    nobody = two.serving.client("sagemaker", "ap-south-1", two.job)
    said = refusal(nobody.describe_model_package, ModelPackageName=two.package)
    assert said.startswith(
        "NoNeighbour: no local AWS answers for account 111111111111 in ap-south-1; this one is 222222222222"
    )
    assert (
        "knows 111111111111 in us-east-1; start python -m local_aws --account 111111111111 --region ap-south-1" in said
    )
    assert refusal(two.serving.client("s3").get_object, Bucket="nowhere-at-all", Key="x").startswith("NoSuchBucket")
    assume = two.serving.client("sts").assume_role
    assert "ask the server of account 111111111111" in refusal(assume, RoleArn=SENDER, RoleSessionName="me")
    assert refusal(assume, RoleArn=ROLE, RoleSessionName="me") == ""
    entry = {"Source": "x", "DetailType": "x", "Detail": "{}", "EventBusName": BUS}
    assert "is a bus of another account or region" in refusal(
        two.pipelines.client("events").put_events, Entries=[entry]
    )


def test_nobody_but_a_neighbour_says_who_calls(two: Two) -> None:
    told = {"principal": "", "name": "", "account": "111111111111", "region": "us-east-1"}
    two.grant()
    for headers in (
        {"X-Local-Aws-Caller": json.dumps(told)},
        {"X-Local-Aws-Caller": json.dumps(told), "X-Local-Aws-Secret": "guessed"},
        {"x-local-aws-secret": ""},
    ):
        for place in (two.pipelines, two.serving):
            request = urllib.request.Request(
                f"{place.aws.url}/_local/neighbours/role_policies", b'{"role": "x"}', headers
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == 403 and b"only a neighbour of this server may send" in refused.value.read()
        sagemaker = two.job.client("sagemaker", two.pipelines.region, endpoint_url=two.serving.aws.url)
        sagemaker.meta.events.register(
            "before-send.*", lambda request, headers=headers, **_: request.headers.update(headers)
        )
        assert refusal(sagemaker.describe_model_package, ModelPackageName=two.package).startswith("403")


def test_a_job_in_a_vpc_reaches_the_other_region_by_the_internet_only(two: Two) -> None:
    two.grant(sagemaker_DescribeModelPackage="*", s3_GetObject="*", kms_Decrypt="*", ec2_CreateNetworkInterface="*", **{
        f"ec2_{one}": "*" for one in ("CreateNetworkInterfacePermission", "DeleteNetworkInterface", "DeleteNetworkInterfacePermission",
        "DescribeDhcpOptions", "DescribeNetworkInterfaces", "DescribeSecurityGroups", "DescribeSubnets", "DescribeVpcs")
    })  # fmt: skip
    two.share_group("sagemaker:DescribeModelPackage")
    ec2 = two.serving.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.3.0.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.3.0.0/25")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="jobs", Description="jobs", VpcId=vpc)["GroupId"]
    ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName="com.amazonaws.eu-west-1.sagemaker.api", VpcEndpointType="Interface", SubnetIds=[subnet],
        SecurityGroupIds=[group], PrivateDnsEnabled=True,
    )  # fmt: skip
    inside = {"VpcConfig": {"Subnets": [subnet], "SecurityGroupIds": [group]}}
    job = credentials_of_a_job(two.serving, "in-a-vpc", NetworkConfig=inside)
    said = refusal(two.sagemaker(job).describe_model_package, ModelPackageName=two.package)
    assert said.startswith(f"NoWayOutOfTheVpc: nothing leads from {subnet} to sagemaker.api of us-east-1")
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    assert refusal(two.sagemaker(job).describe_model_package, ModelPackageName=two.package) == ""


@pytest.fixture(scope="module")
def road(two: Two) -> Iterator[Any]:
    """From an approval in the one account, over its rule and the other's bus, to a pipeline there; and who was lost."""
    home, there = two.pipelines, two.serving
    trust = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sts:AssumeRole"}
    home.client("iam").create_role(RoleName="sender", AssumeRolePolicyDocument=policy(trust))
    there.client("iam").create_role(RoleName="starter", AssumeRolePolicyDocument=policy(trust))
    starts = {"Effect": "Allow", "Action": "sagemaker:StartPipelineExecution", "Resource": "*"}
    there.client("iam").put_role_policy(RoleName="starter", PolicyName="p", PolicyDocument=policy(starts))
    create_pipeline(there.client, "serve", ROLE, [{"Name": "Package", "Type": "String"}])
    queue = "arn:aws:sqs:us-east-1:111111111111:lost"
    sends = {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue,
    }
    url = home.client("sqs").create_queue(QueueName="lost", Attributes={"Policy": policy(sends)})["QueueUrl"]
    pattern = {
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Model Package State Change"],
        "detail": {"ModelApprovalStatus": ["Approved"]},
    }
    events = home.client("events")
    events.put_rule(Name="approved", EventPattern=json.dumps(pattern))
    target = {"Id": "bus", "Arn": BUS, "RoleArn": SENDER, "DeadLetterConfig": {"Arn": queue}}
    events.put_targets(Rule="approved", Targets=[target])
    buses = there.client("events")
    buses.create_event_bus(Name="models")
    buses.put_rule(
        Name="serve", EventBusName="models", EventPattern=json.dumps({**pattern, "account": ["111111111111"]})
    )
    parameters = {"PipelineParameterList": [{"Name": "Package", "Value": "$.detail.ModelPackageArn"}]}
    target = {
        "Id": "pipeline",
        "Arn": "arn:aws:sagemaker:eu-west-1:222222222222:pipeline/serve",
        "RoleArn": "arn:aws:iam::222222222222:role/starter",
        "SageMakerPipelineParameters": parameters,
    }
    buses.put_targets(Rule="serve", EventBusName="models", Targets=[target])
    yield url


@pytest.mark.parametrize(("own", "its"), list(itertools.product((True, False), repeat=2)))
def test_an_approval_starts_the_other_accounts_pipeline_if_role_and_bus_agree(
    two: Two, road: str, own: bool, its: bool
) -> None:
    iam, buses, sqs = two.pipelines.client("iam"), two.serving.client("events"), two.pipelines.client("sqs")
    sends = {"Effect": "Allow", "Action": "events:PutEvents", "Resource": BUS if own else f"{BUS}-2"}
    iam.put_role_policy(RoleName="sender", PolicyName="p", PolicyDocument=policy(sends))
    takes = {
        "Sid": "Models",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111111111111:root" if its else "arn:aws:iam::333333333333:root"},
        "Action": "events:PutEvents",
        "Resource": BUS,
        "Condition": {"StringEquals": {"events:source": "aws.sagemaker"}},
    }
    buses.put_permission(EventBusName="models", Policy=policy(takes))
    sagemaker = two.serving.client("sagemaker")

    def started() -> list[str]:
        found = sagemaker.list_pipeline_executions(PipelineName="serve")["PipelineExecutionSummaries"]
        return [one["PipelineExecutionArn"] for one in found]

    before = started()
    two.pipelines.client("sagemaker").update_model_package(ModelPackageArn=two.package, ModelApprovalStatus="Approved")
    if own and its:
        execution = wait_for(lambda: set(started()) - set(before), LONG).pop()
        given = sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=execution)
        assert given["PipelineParameters"] == [{"Name": "Package", "Value": two.package}]
        return
    (lost,) = wait_for(lambda: sqs.receive_message(QueueUrl=road, MessageAttributeNames=["All"]).get("Messages"), LONG)
    sqs.delete_message(QueueUrl=road, ReceiptHandle=lost["ReceiptHandle"])
    event = json.loads(lost["Body"])
    assert (event["account"], event["region"]) == ("111111111111", "us-east-1")
    missing = "identity" if its else "resource"
    reason = lost["MessageAttributes"]["ERROR_MESSAGE"]["StringValue"]
    assert reason == (
        f"User: arn:aws:sts::111111111111:assumed-role/sender/events is not authorized to perform: events:PutEvents on "
        f"resource: {BUS} because no {missing}-based policy allows the events:PutEvents action"
    )
    assert started() == before


def test_a_server_refuses_a_place_that_is_taken_and_a_folder_that_is_open(
    two: Two, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        local_aws.LocalAwsError, match=r"222222222222 in eu-west-1 is answered for at http://localhost:\d+"
    ):
        local_aws.start(tmp_path / "aws", IMAGES, account="222222222222", region="eu-west-1", neighbours=folder)
    assert two.serving.client("sts").get_caller_identity()["Account"] == "222222222222"
    (tmp_path / "open").mkdir(mode=0o755)
    settings = Settings(
        tmp_path, {}, 1, "eu-west-1", "222222222222", "http://localhost:1", neighbours=tmp_path / "open"
    )
    with pytest.raises(neighbours.NeighbourError, match=r"holds secrets and is open to others \(mode 755.*chmod 700"):
        neighbours.install(settings)


@pytest.mark.parametrize("account", ["12345", "12345678901a", "1234567890123"])
def test_an_account_has_twelve_digits(account: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"'{account}' is not an account's number, which has 12 digits"):
        local_aws_command.account(account)
