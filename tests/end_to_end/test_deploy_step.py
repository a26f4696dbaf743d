"""Deploy itself, as its job runs it, on a local AWS with a container that answers at once from its model's files.

Many ways of a release in little time: test_release.py has the whole product with a real model.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

import local_aws
from config.settings import ReleaseSettings
from pipeline_steps.contract import evaluation, files, releases
from pipeline_steps.contract.evaluation import GoldenRequest
from tests.evaluations import evaluation as sample_evaluation

REPOSITORY = Path(__file__).parents[2]
ACCOUNT, REGION, BUCKET, GROUP = "123456789012", "us-east-1", "models", "echo"
TIME_FACTOR = 300
TRUST = {
    "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}]
}
ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
# Answers every prompt with the words of the file answer.txt among the model's files, or among those of the adapter asked for.
SERVE = """#!/usr/bin/env python3
import http.server, json, os

ADAPTERS = {}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer({})
    def do_DELETE(self):
        ADAPTERS.pop(self.path.rsplit("/", 1)[-1], None)
        self.answer({})
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/adapters":
            adapter = json.loads(body)
            ADAPTERS[adapter["name"]] = open(adapter["src"] + "/answer.txt").read()
            return self.answer({})
        name = self.headers.get("X-Amzn-SageMaker-Adapter-Identifier")
        text = ADAPTERS[name] if name else open("/opt/ml/model/answer.txt").read()
        self.answer([{"generated_text": text}])
    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Step:
    """What a run of Deploy left: its exit code, what it printed, and deployment.json, if it came so far."""

    code: int
    output: str
    deployment: dict[str, Any]


class Cloud:
    """A local AWS with a role, a bucket and a group, and runs of Deploy against it."""

    def __init__(self, aws: local_aws.LocalAws) -> None:
        self.aws = aws
        self.sagemaker, self.s3, self.cloudwatch = (
            self.client("sagemaker"),
            self.client("s3"),
            self.client("cloudwatch"),
        )
        self.autoscaling = self.client("application-autoscaling")
        iam = self.client("iam")
        self.role = iam.create_role(RoleName="r", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
        iam.put_role_policy(RoleName="r", PolicyName="anything", PolicyDocument=json.dumps(ANYTHING))
        self.s3.create_bucket(Bucket=BUCKET)
        self.sagemaker.create_model_package_group(ModelPackageGroupName=GROUP)

    def client(self, service: str) -> Any:
        return boto3.client(
            service, REGION, endpoint_url=self.aws.url, aws_access_key_id="local", aws_secret_access_key="local"
        )

    def package(
        self,
        answer: str,
        *,
        status: str = "Approved",
        recorded: str | None = None,
        faults: str = "",
        base: str = "b" * 64,
    ) -> str:
        """A model that answers `answer`, registered with `recorded` (the same) as what it answered at evaluation."""
        prefix = f"runs/{uuid.uuid4().hex}"
        training = {"schema_version": 1, "model_digest": uuid.uuid4().hex, "base_model_digest": base, "files": {}}
        self.s3.put_object(Bucket=BUCKET, Key=f"{prefix}/model/answer.txt", Body=answer.encode())
        self.s3.put_object(Bucket=BUCKET, Key=f"{prefix}/model/training.json", Body=json.dumps(training).encode())
        self.s3.put_object(Bucket=BUCKET, Key=f"{prefix}/model/adapter/answer.txt", Body=answer.encode())
        folder = Path(os.environ["PYTEST_TMP"]) / prefix
        golden = [GoldenRequest("Who are you?", {"max_new_tokens": 8, "do_sample": False}, recorded or answer)]
        evaluation.write(folder, sample_evaluation(golden_requests=golden), [])
        self.s3.upload_file(str(folder / files.EVALUATION_FILE), BUCKET, f"{prefix}/evaluation.json")
        source = {"S3Uri": f"s3://{BUCKET}/{prefix}/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
        return self.sagemaker.create_model_package(
            ModelPackageGroupName=GROUP,
            ModelApprovalStatus=status,
            InferenceSpecification={
                "Containers": [
                    {
                        "Image": "answers",
                        "ModelDataSource": {"S3DataSource": source},
                        "Environment": {"LOCAL_AWS_FAULTS": faults} if faults else {},
                    }
                ],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            ModelMetrics={
                "ModelQuality": {
                    "Statistics": {
                        "ContentType": "application/json",
                        "S3Uri": f"s3://{BUCKET}/{prefix}/evaluation.json",
                    }
                }
            },
        )["ModelPackageArn"]

    def start(self, package: str, endpoint: str, settings: ReleaseSettings, output: Path) -> "subprocess.Popen[str]":
        flags = [
            *("--model_package_arn", package, "--model_package_group", GROUP, "--role_arn", self.role),
            *("--endpoint_name", settings.endpoint or endpoint, "--component_name", endpoint),
            *("--base_model_uri", f"s3://{BUCKET}/base-models/base/", "--adapters_uri", f"s3://{BUCKET}/adapters"),
            *("--captured_to", f"s3://{BUCKET}/captured", "--captured_percent", "0"),
            *("--inference_ami_version", "al2-ami-sagemaker-inference-gpu-3-1", "--max_lora_rank", "64"),
            *settings.flags(),
            *("--output", str(output)),
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline_steps", "deploy", *flags],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "AWS_ENDPOINT_URL": self.aws.url,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ACCESS_KEY_ID": "local",
                "AWS_SECRET_ACCESS_KEY": "local",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, process: "subprocess.Popen[str]", output: Path) -> Step:
        said, _ = process.communicate(timeout=120)
        written = output / files.DEPLOYMENT_FILE
        deployment = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        return Step(process.returncode, said, deployment)

    def deploy(self, package: str, endpoint: str, settings: ReleaseSettings) -> Step:
        output = Path(os.environ["PYTEST_TMP"]) / uuid.uuid4().hex
        return self.end(self.start(package, endpoint, settings, output), output)

    def serves(self, endpoint: str, component: str | None = None) -> str:
        addressed = {"EndpointName": endpoint, **({"InferenceComponentName": component} if component else {})}
        answer = self.client("sagemaker-runtime").invoke_endpoint(**addressed, Body=b"{}")
        return json.loads(answer["Body"].read())[0]["generated_text"]

    def named(self, endpoint: str, component: str | None = None) -> dict[str, str]:
        """The tags of an endpoint, or of a component."""
        if component:
            described = self.sagemaker.describe_inference_component(InferenceComponentName=component)
            arn = described["InferenceComponentArn"]
        else:
            arn = self.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointArn"]
        return {tag["Key"]: tag["Value"] for tag in self.sagemaker.list_tags(ResourceArn=arn)["Tags"]}

    def parts(self, endpoint: str) -> dict[str, list[str]]:
        """Names of everything that a release makes beside the endpoint itself."""
        prefix = f"{endpoint}-"
        configs = self.sagemaker.list_endpoint_configs(NameContains=prefix)["EndpointConfigs"]
        models = self.sagemaker.list_models(NameContains=prefix)["Models"]
        alarms = self.cloudwatch.describe_alarms(AlarmNamePrefix=prefix)["MetricAlarms"]
        found = {
            "configurations": [one["EndpointConfigName"] for one in configs],
            "models": [one["ModelName"] for one in models],
            "alarms": [one["AlarmName"] for one in alarms],
        }
        return {kind: sorted(name for name in names if name.startswith(prefix)) for kind, names in found.items()}

    def copies(self, component: str) -> int:
        described = self.sagemaker.describe_inference_component(InferenceComponentName=component)
        return int(described["RuntimeConfig"]["CurrentCopyCount"])

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not so after {seconds} s"
            time.sleep(0.1)

    def status(self, package: str) -> tuple[str, str]:
        described = self.sagemaker.describe_model_package(ModelPackageName=package)
        return described["ModelApprovalStatus"], described.get("ApprovalDescription", "")


NOTHING = {"configurations": [], "models": [], "alarms": []}
CANARY = ReleaseSettings(
    instance_count=2, canary_instances=1, canary_wait_seconds=300, bake_seconds=0, kept_releases=2,
    max_p95_latency_seconds=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    root = tmp_path_factory.mktemp("deploy-step")
    program = root / "image" / "bin" / "serve"
    program.parent.mkdir(parents=True)
    program.write_text(SERVE, encoding="utf-8")
    program.chmod(0o755)
    os.environ["PYTEST_TMP"] = str(root)
    with local_aws.start(root / "aws", {"answers": root / "image"}, time_factor=TIME_FACTOR) as aws:
        yield Cloud(aws)


def test_releases_one_after_the_other_and_what_is_kept_of_them(cloud: Cloud) -> None:
    first = cloud.package("I am the first")
    step = cloud.deploy(first, "a", CANARY)
    assert (step.code, step.deployment["action"]) == (0, "created"), step.output
    assert cloud.serves("a") == "I am the first"
    assert cloud.named("a") == {
        "model-package": first,
        "release": step.deployment["release"],
        "model-digest": step.deployment["model_digest"],
    }

    assert cloud.deploy(first, "a", CANARY).deployment["action"] == "unchanged"

    for answer in ("I am the second", "I am the third", "I am the fourth"):
        package = cloud.package(answer)
        step = cloud.deploy(package, "a", CANARY)
        assert (step.code, step.deployment["action"]) == (0, "updated"), step.output
        assert cloud.serves("a") == answer
    assert step.deployment["requests_meanwhile"]["asked"] > 0
    kept = sorted([step.deployment["release"], step.deployment["previous_release"]])
    parts = cloud.parts("a")
    assert (parts["configurations"], parts["models"]) == (kept, kept)
    assert parts["alarms"] == sorted(releases.alarm_names(step.deployment["release"]))


def test_a_first_release_that_fails_leaves_nothing_behind(cloud: Cloud) -> None:
    package = cloud.package("I cannot start", faults="exit_at_start")
    step = cloud.deploy(package, "b", replace_count(CANARY, 3))
    assert step.code == 1
    assert "nothing is left behind" in step.output
    assert cloud.parts("b") == NOTHING
    with pytest.raises(cloud.sagemaker.exceptions.ClientError, match="Could not find endpoint"):
        cloud.sagemaker.describe_endpoint(EndpointName="b")
    status, why = cloud.status(package)
    assert status == "Rejected" and why.startswith("Its release failed: the endpoint b is Failed")
    again = cloud.deploy(package, "b", CANARY)
    assert again.code == 1 and "is Rejected (Its release failed" in again.output


def replace_count(settings: ReleaseSettings, most: int) -> ReleaseSettings:
    return ReleaseSettings.model_validate(settings.model_dump() | {"max_instance_count": most})


def test_wrong_answers_after_a_good_update_are_taken_back_with_the_reason(cloud: Cloud) -> None:
    good = cloud.package("I am the good one")
    assert cloud.deploy(good, "c", CANARY).code == 0
    before = cloud.parts("c")
    wrong = cloud.package("something else", recorded="what was evaluated")
    step = cloud.deploy(wrong, "c", CANARY)
    assert step.code == 1
    assert "does not answer as the evaluated model did: its answers share 0.00 of the words" in step.output
    assert "'something else' where 'what was evaluated' was recorded" in step.output
    assert cloud.serves("c") == "I am the good one"
    assert cloud.named("c")["model-package"] == good
    assert cloud.parts("c")["models"] == before["models"]
    assert cloud.status(wrong)[0] == "Rejected" and cloud.status(good)[0] == "Approved"


def test_an_update_by_somebody_else_is_waited_for(cloud: Cloud) -> None:
    old, new = cloud.package("I am old"), cloud.package("I am new")
    release = cloud.deploy(old, "d", CANARY).deployment["release"]
    configuration = cloud.sagemaker.describe_endpoint_config(EndpointConfigName=release)["ProductionVariants"]
    cloud.sagemaker.create_endpoint_config(EndpointConfigName="by-hand", ProductionVariants=configuration)
    routing = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 1500}  # 25 s here, in which the step has started
    cloud.sagemaker.update_endpoint(
        EndpointName="d",
        EndpointConfigName="by-hand",
        DeploymentConfig={"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}},
    )
    step = cloud.deploy(new, "d", CANARY)
    assert step.code == 0, step.output
    assert "the endpoint d is Updating (to by-hand)" in step.output
    assert step.deployment["previous_release"] == "by-hand"
    assert cloud.serves("d") == "I am new"


def test_a_release_that_was_cut_off_is_gone_on_with(cloud: Cloud) -> None:
    old, new = cloud.package("I am old"), cloud.package("I am new")
    assert cloud.deploy(old, "e", CANARY).code == 0
    output = Path(os.environ["PYTEST_TMP"]) / "cut-off"
    process = cloud.start(new, "e", CANARY, output)
    cloud.until(lambda: cloud.sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] == "Updating")
    process.kill()
    process.communicate()
    assert cloud.named("e")["model-package"] == old, "it is not said to serve what nobody has seen"
    step = cloud.deploy(new, "e", CANARY)
    assert step.code == 0, step.output
    assert step.deployment["action"] in ("joined", "resumed")
    assert cloud.named("e")["model-package"] == new and cloud.serves("e") == "I am new"


def test_an_alarm_that_rings_before_the_release_does_not_judge_it(cloud: Cloud) -> None:
    old, new = cloud.package("I am old"), cloud.package("I am new")
    settings = ReleaseSettings.model_validate(CANARY.model_dump() | {"quality_alarms": ["quality-of-f"]})
    cloud.cloudwatch.put_metric_alarm(
        AlarmName="quality-of-f", Namespace="ours", MetricName="bad", Statistic="Sum", Period=60, EvaluationPeriods=1,
        Threshold=0, ComparisonOperator="GreaterThanThreshold", TreatMissingData="breaching",
    )  # fmt: skip
    assert cloud.deploy(old, "f", settings).code == 0
    step = cloud.deploy(new, "f", settings)
    assert step.code == 0, step.output
    assert "the alarm quality-of-f rings already, so it cannot judge this release" in step.output


def test_autoscaling_follows_the_settings_and_goes_with_them(cloud: Cloud) -> None:
    package = cloud.package("I am scaled")
    assert cloud.deploy(package, "g", replace_count(CANARY, 5)).code == 0
    resource = "endpoint/g/variant/AllTraffic"
    targets = cloud.autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[resource])
    (target,) = targets["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 5)
    policies = cloud.autoscaling.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=resource)
    (policy,) = policies["ScalingPolicies"]
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["TargetValue"] == 60
    assert tracking["PredefinedMetricSpecification"]["PredefinedMetricType"] == "SageMakerVariantInvocationsPerInstance"
    assert cloud.deploy(package, "g", CANARY).deployment["action"] == "unchanged"
    after = cloud.autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[resource])
    assert after["ScalableTargets"] == []


@pytest.mark.parametrize("status", ["PendingManualApproval", "Rejected"])
def test_what_is_not_approved_is_refused_before_anything_is_made(cloud: Cloud, status: str) -> None:
    step = cloud.deploy(cloud.package("I am not approved", status=status), "h", CANARY)
    assert step.code == 1
    assert f"is {status}; only an Approved package is released" in step.output
    assert cloud.parts("h") == NOTHING


def test_a_package_of_another_group_is_refused(cloud: Cloud) -> None:
    step = cloud.deploy(cloud.package("I am ours").replace(f"/{GROUP}/", "/theirs/"), "h", CANARY)
    assert step.code == 1 and "there is no model package" in step.output


def test_bytes_that_were_changed_after_the_registration_are_refused(cloud: Cloud) -> None:
    package = cloud.package("I am approved")
    described = cloud.sagemaker.describe_model_package(ModelPackageName=package)
    uri = described["InferenceSpecification"]["Containers"][0]["ModelDataSource"]["S3DataSource"]["S3Uri"]
    time.sleep(1.1)  # S3 counts seconds
    cloud.s3.put_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/") + "answer.txt", Body=b"I am not")
    step = cloud.deploy(package, "h", CANARY)
    assert step.code == 1
    assert "1 of 3 objects below" in step.output and "answer.txt; they are not what was approved" in step.output
    assert cloud.parts("h") == NOTHING
    assert cloud.status(package)[0] == "Approved", "the model is not to blame"


def test_what_is_refused_by_sagemaker_leaves_nothing_behind(cloud: Cloud) -> None:
    package = cloud.package("I have no role")
    role, cloud.role = cloud.role, cloud.role + "-that-does-not-exist"
    try:
        step = cloud.deploy(package, "i", CANARY)
    finally:
        cloud.role = role
    assert step.code == 1 and "SageMaker refuses i-v" in step.output
    assert cloud.parts("i") == NOTHING
    assert cloud.status(package)[0] == "Approved", "the model is not to blame"


# ---------------------------------------------------------------- inference components

COMPONENTS = ReleaseSettings(
    shape="inference_components", max_instance_count=2, canary_wait_seconds=300, bake_seconds=0, kept_releases=2
)  # fmt: skip
ADAPTERS = ReleaseSettings.model_validate(COMPONENTS.model_dump() | {"serve": "adapter", "endpoint": "shared"})


def test_a_component_is_released_updated_and_taken_back(cloud: Cloud) -> None:
    first, second = cloud.package("I am the first"), cloud.package("I am the second")
    step = cloud.deploy(first, "k", COMPONENTS)
    assert (step.code, step.deployment["action"]) == (0, "created"), step.output
    assert cloud.serves("k", "k") == "I am the first" and cloud.named("k", "k")["model-package"] == first
    assert cloud.deploy(first, "k", COMPONENTS).deployment["action"] == "unchanged"

    step = cloud.deploy(second, "k", COMPONENTS)
    assert (step.code, step.deployment["action"]) == (0, "updated"), step.output
    assert cloud.serves("k", "k") == "I am the second" and cloud.named("k", "k")["model-package"] == second

    bad = cloud.package("I cannot start", faults="exit_at_start")
    wrong = cloud.package("something else", recorded="what was evaluated")
    for package, said in ((bad, "was rolled back"), (wrong, "does not answer as the evaluated model did")):
        step = cloud.deploy(package, "k", COMPONENTS)
        assert step.code == 1 and said in step.output, step.output
        assert cloud.serves("k", "k") == "I am the second" and cloud.named("k", "k")["model-package"] == second
        assert cloud.status(package)[0] == "Rejected"
    assert len(cloud.parts("k")["models"]) == 2


def test_a_component_sleeps_while_nobody_asks_wakes_when_somebody_does_and_is_updated_in_its_sleep(
    cloud: Cloud,
) -> None:
    settings = ReleaseSettings.model_validate(COMPONENTS.model_dump() | {"scale_to_zero": True})
    assert cloud.deploy(cloud.package("I sleep"), "z", settings).code == 0
    (target,) = cloud.autoscaling.describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=["inference-component/z"]
    )["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 2)

    cloud.until(lambda: cloud.copies("z") == 0)
    with pytest.raises(cloud.sagemaker.exceptions.ClientError, match="has no capacity"):
        cloud.serves("z", "z")
    cloud.until(lambda: cloud.copies("z") > 0)
    assert cloud.serves("z", "z") == "I sleep"

    cloud.until(lambda: cloud.copies("z") == 0)
    step = cloud.deploy(cloud.package("I was updated in my sleep"), "z", settings)
    assert (step.code, step.deployment["action"]) == (0, "updated"), step.output


def test_a_first_component_that_fails_leaves_nothing_behind(cloud: Cloud) -> None:
    step = cloud.deploy(cloud.package("I cannot start", faults="exit_at_start"), "m", COMPONENTS)
    assert step.code == 1 and "nothing of it is left behind" in step.output, step.output
    assert cloud.parts("m") == NOTHING
    with pytest.raises(cloud.sagemaker.exceptions.ClientError, match="Could not find endpoint"):
        cloud.sagemaker.describe_endpoint(EndpointName="m")


def test_two_deployments_share_a_base_with_an_adapter_each(cloud: Cloud) -> None:
    cloud.s3.put_object(Bucket=BUCKET, Key="base-models/base/answer.txt", Body=b"I am the base")
    one, two = cloud.package("I am adapter one"), cloud.package("I am adapter two")
    for package, name in ((one, "one"), (two, "two")):
        step = cloud.deploy(package, name, ADAPTERS)
        assert (step.code, step.deployment["action"]) == (0, "created"), step.output
        assert cloud.named("shared", name)["model-package"] == package
    assert cloud.serves("shared", "one") == "I am adapter one"
    assert cloud.serves("shared", "two") == "I am adapter two"
    assert cloud.serves("shared", "shared-base") == "I am the base"

    newer = cloud.package("I am a newer one")
    step = cloud.deploy(newer, "one", ADAPTERS)
    assert (step.code, step.deployment["action"]) == (0, "updated"), step.output
    assert cloud.serves("shared", "one") == "I am a newer one"
    wrong = cloud.package("something else", recorded="what was evaluated")
    assert cloud.deploy(wrong, "one", ADAPTERS).code == 1
    assert cloud.serves("shared", "one") == "I am a newer one"
    assert cloud.serves("shared", "two") == "I am adapter two"


def test_an_adapter_of_another_base_is_refused(cloud: Cloud) -> None:
    step = cloud.deploy(cloud.package("I am foreign", base="c" * 64), "three", ADAPTERS)
    assert step.code == 1
    assert "serves the base model bbbbbbbbbbbb and this adapter was trained on cccccccccccc" in step.output
    assert cloud.serves("shared", "two") == "I am adapter two"


def test_a_variant_does_not_become_a_component_nor_the_reverse(cloud: Cloud) -> None:
    package = cloud.package("I keep my shape")
    for name, kept, wanted, said in (
        ("v", CANARY, COMPONENTS, "serves a model of its own and release.shape is 'inference_components'"),
        ("w", COMPONENTS, CANARY, "hosts inference components and release.shape is 'variant'"),
    ):
        assert cloud.deploy(package, name, kept).code == 0
        step = cloud.deploy(package, name, wanted)
        assert step.code == 1 and said in step.output, step.output
    assert cloud.serves("v") == cloud.serves("w", "w") == "I keep my shape"
    assert cloud.status(package)[0] == "Approved"
