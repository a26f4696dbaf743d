"""Deploy: an approved model package -> an endpoint that was seen to answer, or the old endpoint untouched.

out   deployment/    deployment.json, written last
"""

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.progress import report

DEPLOYMENT_SCHEMA_VERSION = 1
PACKAGE_TAG = "model-package"
MODEL_START_SECONDS = 1200  # 15 GB from S3 and into the GPU
POLL_SECONDS = 2.0
REQUEST = {"inputs": "Hello, my name is", "parameters": {"max_new_tokens": 8, "do_sample": False}}


@dataclass(frozen=True)
class DeployJob:
    model_package_arn: str
    endpoint_name: str
    instance_type: str
    instance_count: int
    inference_ami_version: str
    role_arn: str
    wait_minutes: float
    output: Path


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="deploy", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model_package_arn", required=True)
    parser.add_argument("--endpoint_name", required=True)
    parser.add_argument("--instance_type", required=True)
    parser.add_argument("--instance_count", type=int, default=1)
    parser.add_argument("--inference_ami_version", required=True)
    parser.add_argument("--role_arn", required=True, help="role that the endpoint's containers assume")
    parser.add_argument("--wait_minutes", type=float, default=45)
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/output") / files.DEPLOYMENT_OUTPUT)
    run(DeployJob(**vars(parser.parse_args(arguments))))


def run(job: DeployJob) -> None:
    started = time.monotonic()
    sagemaker = boto3.client("sagemaker")

    # 1. Only what was approved is released.
    package = sagemaker.describe_model_package(ModelPackageName=job.model_package_arn)
    if package["ModelApprovalStatus"] != "Approved":
        raise StepError(
            f"{job.model_package_arn} is {package['ModelApprovalStatus']}; only an Approved package is released: "
            "approve it first, then start the deploy pipeline again"
        )

    # 2. Model and configuration, named by what they hold: the same release again finds them and changes nothing.
    name = release_name(job)
    create_once(sagemaker.create_model, "ModelName", name, model_request(job))
    create_once(sagemaker.create_endpoint_config, "EndpointConfigName", name, configuration_request(job, name))

    # 3. The endpoint.
    old = served(sagemaker, job.endpoint_name)
    if old == name:
        action = "unchanged"
    elif old is None:
        action = "created"
        sagemaker.create_endpoint(EndpointName=job.endpoint_name, EndpointConfigName=name, Tags=tags(job))
    else:
        action = "updated"
        sagemaker.update_endpoint(EndpointName=job.endpoint_name, EndpointConfigName=name)

    # 4. Seen to serve what was asked for, and to answer; otherwise what was there before comes back.
    try:
        wait_until_served(sagemaker, job, name)
        response = ask(job.endpoint_name)
    except StepError as error:
        if action != "unchanged":
            try:
                take_back(sagemaker, job, name, old)
            except (ClientError, StepError) as second:
                raise StepError(f"{error}; and it could not be taken back: {second}") from None
        raise StepError(
            f"{error}; {'the endpoint serves ' + old + ' as before' if old else 'the endpoint was removed'}"
        ) from None
    arn = sagemaker.describe_endpoint(EndpointName=job.endpoint_name)["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=tags(job))

    json_files.write(
        job.output / files.DEPLOYMENT_FILE,
        {
            "schema_version": DEPLOYMENT_SCHEMA_VERSION,
            "endpoint_name": job.endpoint_name,
            "endpoint_config_name": name,
            "model_package_arn": job.model_package_arn,
            "action": action,
            "request": REQUEST,
            "response": response,
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    print(f"{job.endpoint_name} {action}: serves {job.model_package_arn}", flush=True)


def release_name(job: DeployJob) -> str:
    """Name of the model and the configuration: endpoint, package version, and a hash of all that the release holds."""
    content = [job.model_package_arn, job.instance_type, job.instance_count, job.inference_ami_version, job.role_arn]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    return f"{job.endpoint_name[:40]}-v{job.model_package_arn.rsplit('/', 1)[-1]}-{digest}"


def tags(job: DeployJob) -> list[dict[str, str]]:
    return [{"Key": PACKAGE_TAG, "Value": job.model_package_arn}]


def model_request(job: DeployJob) -> dict[str, Any]:
    return {
        "ExecutionRoleArn": job.role_arn,
        "Containers": [{"ModelPackageName": job.model_package_arn}],
        "EnableNetworkIsolation": True,
        "Tags": tags(job),
    }


def configuration_request(job: DeployJob, model_name: str) -> dict[str, Any]:
    variant: dict[str, Any] = {
        "VariantName": "AllTraffic",
        "ModelName": model_name,
        "InstanceType": job.instance_type,
        "InitialInstanceCount": job.instance_count,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": MODEL_START_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": MODEL_START_SECONDS,
        "InferenceAmiVersion": job.inference_ami_version,
    }
    return {"ProductionVariants": [variant], "Tags": tags(job)}


def create_once(create: Any, key: str, name: str, request: dict[str, Any]) -> None:
    """Create the resource; one of that name holds the same content, since the name is made of it."""
    try:
        create(**{key: name}, **request)
    except ClientError as error:
        if "already exist" not in str(error).lower():
            raise StepError(f"SageMaker refuses {name}: {error}") from error


def served(sagemaker: Any, endpoint_name: str) -> str | None:
    """Name of the configuration that the endpoint serves, or None without an endpoint."""
    try:
        endpoint = sagemaker.describe_endpoint(EndpointName=endpoint_name)
    except ClientError as error:
        if "could not find" in str(error).lower():
            return None
        raise
    if endpoint["EndpointStatus"] != "InService":
        raise StepError(
            f"the endpoint {endpoint_name} is {endpoint['EndpointStatus']}; wait until it is InService, or delete it if it Failed, "
            "and start the deploy pipeline again"
        )
    return str(endpoint["EndpointConfigName"])


def wait_until_served(sagemaker: Any, job: DeployJob, name: str) -> None:
    """Wait until the endpoint is InService with the configuration `name`.

    SageMaker rolls a failed update back and says InService again, so the status alone proves nothing.
    """
    deadline = time.monotonic() + job.wait_minutes * 60
    started = time.monotonic()
    while time.monotonic() < deadline:
        endpoint = sagemaker.describe_endpoint(EndpointName=job.endpoint_name)
        status = endpoint["EndpointStatus"]
        if status == "Failed":
            raise StepError(
                f"the endpoint {job.endpoint_name} failed: {endpoint.get('FailureReason', 'no reason given')}"
            )
        if status == "InService":
            if endpoint["EndpointConfigName"] != name:
                raise StepError(
                    f"the update to {name} was rolled back by SageMaker: {endpoint.get('FailureReason', 'no reason given')}"
                )
            return
        report("wait for endpoint", int(time.monotonic() - started), int(job.wait_minutes * 60))
        time.sleep(POLL_SECONDS)
    raise StepError(f"the endpoint {job.endpoint_name} was not InService after {job.wait_minutes:g} minutes")


def ask(endpoint_name: str) -> Any:
    """A real request; the answer must hold a text."""
    try:
        answer = boto3.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=endpoint_name, ContentType="application/json", Body=json.dumps(REQUEST)
        )
    except ClientError as error:
        raise StepError(f"the endpoint {endpoint_name} does not answer: {error}") from error
    body = answer["Body"].read().decode(errors="replace")
    try:
        content = json.loads(body)
        text = (content[0] if isinstance(content, list) else content)["generated_text"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str) or not text:
        raise StepError(f"the endpoint {endpoint_name} answers without a generated_text: {body[:200]}")
    return content


def take_back(sagemaker: Any, job: DeployJob, name: str, old: str | None) -> None:
    """Put the endpoint back to what it was before."""
    if old is None:
        sagemaker.delete_endpoint(EndpointName=job.endpoint_name)
        return
    if sagemaker.describe_endpoint(EndpointName=job.endpoint_name)["EndpointConfigName"] == name:
        sagemaker.update_endpoint(EndpointName=job.endpoint_name, EndpointConfigName=old)
        wait_until_served(sagemaker, job, old)
