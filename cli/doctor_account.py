"""What `finetune doctor` looks at in the account: who asks, what is deployed, what jobs and endpoints will need.

Each finding is (check, state, what was found, what to do). What cannot be asked is "not checked", with the reason.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

from cli.aws import Deployment
from pipeline_steps.contract import files

Row = tuple[str, Any, str, str]
BOOTSTRAP_PARAMETER = "/cdk-bootstrap/hnb659fds/version"
LEAST_BOOTSTRAP = 6  # aws-cdk-lib's templates refuse an older one
IMAGE = re.compile(
    r"(?P<registry>\d{12})\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/(?P<name>[^:@]+)(:(?P<tag>[^@]+)|@(?P<digest>sha256:.+))"
)
IMAGE_KEYS = ("ImageUri", "TrainingImage", "Image")
KMS_KEYS = ("KmsKeyId", "VolumeKmsKeyId", "OutputKmsKeyId")


def findings(deployment: Deployment, environment: str) -> Iterator[Row]:
    """Everything, in the order in which one thing needs another."""
    who = list(credentials(deployment))
    yield from who
    if who[0][1] != "ok":
        yield "the account", "not checked", "without credentials nothing of it can be asked", ""
        return
    for check, look in (
        ("region", region),
        ("CDK bootstrap", bootstrap),
        ("quotas", quotas),
    ):
        yield from _asked(check, look, deployment)
    deployed = list(_asked("stacks", lambda one: stacks(one, environment), deployment))
    yield from deployed
    if any(state != "ok" for _, state, _, _ in deployed):
        reason = "they are named by the stacks, which are not all deployed"
        yield "images, data, keys", "not checked", reason, "deploy, then run this again"
        return
    of_trainings = (("base model", base_model), ("dataset", dataset)) if deployment.settings.trains else ()
    for check, look in (
        *of_trainings,
        ("images", images),
        ("KMS keys", kms_keys),
        ("VPC endpoints", vpc_endpoints),
    ):
        yield from _asked(check, look, deployment)


def _asked(check: str, look: Callable[[Deployment], Iterator[Row]], deployment: Deployment) -> Iterator[Row]:
    """What `look` finds; a question that is not allowed or not answered is told, and never passes for ok."""
    try:
        yield from look(deployment)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        action = error.operation_name
        if code in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnrecognizedClientException"):
            yield check, "not checked", f"these credentials may not call {action}", f"allow {action}, or ask who may"
        else:
            yield check, "not checked", f"{action} answers {code}: {error.response['Error'].get('Message', '')}", ""
    except BotoCoreError as error:
        yield check, "not checked", str(error), ""


# ---------------------------------------------------------------- who and where


def credentials(deployment: Deployment) -> Iterator[Row]:
    try:
        who = deployment.client("sts").get_caller_identity()
    except NoCredentialsError:
        yield "credentials", "error", "there are none", "aws configure, aws sso login, or AWS_PROFILE=..."
        return
    except (ClientError, BotoCoreError) as error:
        yield "credentials", "error", str(error), "log in again, or choose another profile with AWS_PROFILE=..."
        return
    wanted = deployment.settings.account
    if wanted and who["Account"] != wanted:
        told = f"{who['Arn']} is in account {who['Account']}, and the configuration says {wanted}"
        yield "credentials", "error", told, "use credentials of that account, or change `account`"
    else:
        yield "credentials", "ok", who["Arn"], ""


def region(deployment: Deployment) -> Iterator[Row]:
    name = deployment.settings.region
    try:
        deployment.sagemaker.list_pipelines(MaxResults=1)
    except EndpointConnectionError:
        yield "region", "error", f"SageMaker does not answer in {name}", "is there a network, and is `region` right?"
    else:
        yield "region", "ok", f"SageMaker answers in {name}", ""


def bootstrap(deployment: Deployment) -> Iterator[Row]:
    ssm, target = deployment.client("ssm"), f"npx cdk bootstrap (region {deployment.settings.region})"
    try:
        version = int(ssm.get_parameter(Name=BOOTSTRAP_PARAMETER)["Parameter"]["Value"])
    except ssm.exceptions.ParameterNotFound:
        yield "CDK bootstrap", "error", "this account and region are not bootstrapped", target
        return
    if version < LEAST_BOOTSTRAP:
        yield "CDK bootstrap", "error", f"version {version}, and {LEAST_BOOTSTRAP} or later is needed", target
    else:
        yield "CDK bootstrap", "ok", f"version {version}", ""


def stacks(deployment: Deployment, environment: str) -> Iterator[Row]:
    cloudformation, deploy = deployment.client("cloudformation"), f"make deploy ENVIRONMENT={environment}"
    missing, there = [], []
    settings = deployment.settings
    wanted = ["storage", *(("pipeline", "triggers") if settings.trains else ("serving",)), "operations"]
    if settings.network is not None and settings.network.is_created:
        wanted.append("network")
    for name in map(settings.stack_name, wanted):
        try:
            status = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
        except ClientError as error:
            if "does not exist" not in str(error):
                raise
            missing.append(name)
            continue
        if status.endswith("_COMPLETE") and "ROLLBACK" not in status:
            there.append(name)
        elif status.endswith("_IN_PROGRESS"):
            yield "stacks", "warning", f"{name} is {status}", "wait for it"
        else:
            yield "stacks", "error", f"{name} is {status}", f"its events say why; then {deploy}"
    if missing:
        yield "stacks", "warning", f"not deployed: {', '.join(missing)}", deploy
    if there and not missing:
        yield "stacks", "ok", ", ".join(there), ""


# ---------------------------------------------------------------- what jobs and endpoints need


def quotas(deployment: Deployment) -> Iterator[Row]:
    """Quotas of the instances that the configuration names, against how many of them are used at once."""
    values = _quota_values(deployment)
    for name, (needed, least) in sorted(needs(deployment).items()):
        ask = f"Service Quotas, Amazon SageMaker: ask for {needed} or more of '{name}'"
        value = values.get(name)
        if value is None:
            yield "quota", "not checked", f"there is no quota '{name}'", "is the instance type right?"
        elif value < least:
            yield "quota", "error", f"{name}: {value:g}, and {least} are needed", ask
        elif value < needed:
            told = f"{name}: {value:g}; a release runs the old and the new instances side by side, up to {needed}"
            yield "quota", "warning", told, ask
        else:
            yield "quota", "ok", f"{name}: {value:g}, up to {needed} are used", ""


def needs(deployment: Deployment) -> dict[str, tuple[int, int]]:
    """Quota's name -> instances that may be used at once, and without which nothing works."""
    settings = deployment.settings
    training, processing, release = settings.training, settings.processing, settings.release
    found: dict[str, tuple[int, int]] = {}
    jobs = [(settings.monitoring.instance_type, 1)] if settings.monitoring.enabled else []
    if settings.trains:
        kind, count = "spot training job" if training.spot else "training job", training.instance_count
        found[f"{training.instance_type} for {kind} usage"] = (count, count)
        if training.keep_alive_minutes:
            found[f"{training.instance_type} for training warm pool usage"] = (count, count)
        jobs += [
            (processing.prepare_instance_type, processing.prepare_instance_count),
            (processing.evaluate_instance_type, 1),
        ]
    if settings.serves:
        jobs.append((processing.deploy_instance_type, 1))
    for instance_type, count in jobs:
        name = f"{instance_type} for processing job usage"
        most = max(count, found.get(name, (0, 0))[0])
        found[name] = (most, most)
    if not settings.serves:
        return found
    most = max(release.instance_count, release.max_instance_count or 0)
    side_by_side = most if release.shape == "inference_components" else 2 * most
    found[f"{release.instance_type} for endpoint usage"] = (side_by_side, release.instance_count)
    return found


def _quota_values(deployment: Deployment) -> dict[str, float]:
    """Applied values by name; for a quota that was never changed, its default."""
    client, values = deployment.client("service-quotas"), {}
    for operation in ("list_aws_default_service_quotas", "list_service_quotas"):
        try:
            for page in client.get_paginator(operation).paginate(ServiceCode="sagemaker"):
                values.update({one["QuotaName"]: float(one["Value"]) for one in page["Quotas"]})
        except client.exceptions.NoSuchResourceException:
            continue  # no list of this kind for the service
    return values


def base_model(deployment: Deployment) -> Iterator[Row]:
    """The imported weights: the marker, and every file that it lists."""
    bucket, name = deployment.artifact_bucket, deployment.settings.base_model.name
    prefix = f"base-models/{name}/"
    fix = f"finetune import-model FOLDER (base_model.name is {name})"
    try:
        marker = deployment.s3.get_object(Bucket=bucket, Key=prefix + files.BASE_MODEL_FILE)["Body"].read()
    except deployment.s3.exceptions.NoSuchKey:
        yield "base model", "error", f"{name} is not in s3://{bucket}/{prefix}", fix
        return
    wanted = set(json.loads(marker)["files"])
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    there = {one["Key"].removeprefix(prefix) for page in pages for one in page.get("Contents", [])}
    if lost := sorted(wanted - there):
        yield "base model", "error", f"{name} lacks {', '.join(lost)}", f"delete s3://{bucket}/{prefix}, then {fix}"
    else:
        yield "base model", "ok", f"{name}: {len(wanted)} files, digest {json.loads(marker)['digest'][:12]}", ""


def dataset(deployment: Deployment) -> Iterator[Row]:
    """The default manifest, which the schedule and a start by hand read."""
    bucket, key = deployment.raw_bucket, deployment.settings.dataset.default_manifest
    try:
        deployment.s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
            raise
        who = (
            "the schedule and `finetune start` need"
            if deployment.settings.schedule.enabled
            else "`finetune start` needs"
        )
        yield "dataset", "warning", f"s3://{bucket}/{key} does not exist; {who} it", "finetune upload FOLDER"
    else:
        yield "dataset", "ok", f"s3://{bucket}/{key}", ""


def images(deployment: Deployment) -> Iterator[Row]:
    """Every image that the deployed pipelines name, asked for as a job's host asks for it."""
    ecr = deployment.client("ecr")
    for uri in sorted(_texts(_definitions(deployment), IMAGE_KEYS)):
        match = IMAGE.fullmatch(uri)
        if match is None:
            yield "image", "not checked", f"{uri} is no image in ECR", ""
            continue
        try:
            wanted = {"imageTag": match["tag"]} if match["tag"] else {"imageDigest": match["digest"]}
            answer = ecr.batch_get_image(registryId=match["registry"], repositoryName=match["name"], imageIds=[wanted])
        except ecr.exceptions.RepositoryNotFoundException:
            answer = {"images": []}
        if answer["images"]:
            yield "image", "ok", uri, ""
        else:
            fix = "choose versions that exist in `images` of the configuration, or push yours; then deploy again"
            yield "image", "error", f"{uri} does not exist", fix


def kms_keys(deployment: Deployment) -> Iterator[Row]:
    """Keys that the pipelines and the buckets name: they must be there, and enabled."""
    kms, keys = deployment.client("kms"), _texts(_definitions(deployment), KMS_KEYS)
    for bucket in (*([deployment.raw_bucket] if deployment.settings.trains else []), deployment.artifact_bucket):
        try:
            keys |= _texts(deployment.s3.get_bucket_encryption(Bucket=bucket), ("KMSMasterKeyID",))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ServerSideEncryptionConfigurationNotFoundError":
                raise
    if not keys:
        yield "KMS keys", "ok", "none is configured: AWS's own keys encrypt", ""
    for key in sorted(keys):
        try:
            state = kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"]
        except kms.exceptions.NotFoundException:
            yield "KMS key", "error", f"{key} does not exist", "name a key of this region in the configuration"
            continue
        if state == "Enabled":
            yield "KMS key", "ok", key, ""
        else:
            yield "KMS key", "error", f"{key} is {state}", "enable it, or name another key in the configuration"


def vpc_endpoints(deployment: Deployment) -> Iterator[Row]:
    """For jobs in a VPC: the subnets, and the endpoints through which these reach AWS. Without a way a job hangs."""
    subnets = _texts(_definitions(deployment), ("Subnets",))
    if not subnets:
        yield "VPC endpoints", "ok", "no VPC is configured", ""
        return
    ec2 = deployment.client("ec2")
    try:
        found = ec2.describe_subnets(SubnetIds=sorted(subnets))["Subnets"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidSubnetID.NotFound":
            raise
        yield "VPC", "error", str(error), "name subnets of this account and region in the configuration"
        return
    for vpc in sorted({one["VpcId"] for one in found}):
        pages = ec2.get_paginator("describe_vpc_endpoints").paginate(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
        names = {one["ServiceName"] for page in pages for one in page["VpcEndpoints"]}
        asked = deployment.settings.asked_services
        missing = [name for name in asked if not any(one.endswith(f".{name}") for one in names)]
        if missing:
            told = (
                f"{vpc} has none for {', '.join(missing)}: jobs reach these only through a NAT gateway, if there is one"
            )
            yield "VPC endpoints", "warning", told, "add the endpoints, or a route through a NAT gateway"
        else:
            yield "VPC endpoints", "ok", f"{vpc}: {', '.join(asked)}", ""


def _definitions(deployment: Deployment) -> list[Any]:
    described = (
        deployment.sagemaker.describe_pipeline(PipelineName=name) for name in deployment.settings.pipeline_names
    )
    return [json.loads(one["PipelineDefinition"]) for one in described]


def _texts(value: Any, names: tuple[str, ...]) -> set[str]:
    """All texts, at any depth, of members with one of these names."""
    if isinstance(value, list):
        return {text for member in value for text in _texts(member, names)}
    if not isinstance(value, dict):
        return set()
    found = {text for name, member in value.items() if name not in names for text in _texts(member, names)}
    for name in names:
        member = value.get(name, [])
        found |= {text for text in (member if isinstance(member, list) else [member]) if isinstance(text, str) and text}
    return found
