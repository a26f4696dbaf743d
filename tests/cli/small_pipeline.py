"""A pipeline whose steps are named as ours and take no time: each does what its Outcome parameter asks for."""

import json
from pathlib import Path
from typing import Any

from cli.aws import Deployment
from pipeline_steps.contract import evaluation, files
from tests import evaluations
from tests.local_aws.sagemaker_server import ANYTHING, TRUST, processing, training

TOKENS = 7200  # of the training split, by the data card
MANIFEST = "instruction/dataset.manifest"
OUT = "/opt/ml/processing/output"
CARD = {
    "tokens": {"splits": {"train": {"tokens": TOKENS}}},
    "cost": {
        "instance_type": "ml.g5.12xlarge",
        "instance_count": 1,
        "tokens_per_epoch": TOKENS,
        "epochs": 1.0,
        "tokens_per_second": 7.2,
        "throughput_source": "assumed: 20% of the peak",
        "hours": TOKENS / 7.2 / 3600,
    },
}
PREPARE = f"cp /opt/ml/processing/input/sample/{files.DATA_CARD_FILE} {OUT}/report/"
TRAIN = (
    "echo 'loading'; echo 'progress: train 1/2 train_loss=2.5'; echo 'progress: train 2/2 train_loss=1.25';"
    "case $OUTCOME in slow) sleep 600;; broken) [ -e /opt/ml/input/data/flags/mended ] ||"
    " { echo 'out of memory' > /opt/ml/output/failure; exit 1; };; esac; head -c 2000 /dev/zero > /opt/ml/model/weights"
)
EVALUATE = f"cp /opt/ml/processing/input/sample/$OUTCOME.json {OUT}/evaluation/{files.EVALUATION_FILE}"


def make(deployment: Deployment, scratch: Path) -> None:
    """Create the pipeline, its role, its package group and its default dataset in `deployment`."""
    artifacts = f"s3://{deployment.artifact_bucket}"
    for outcome in ("passed", "refused", "broken", "slow"):
        folder = scratch / outcome
        folder.mkdir()
        found = evaluations.evaluation(gate=evaluations.verdict(outcome != "refused"))
        evaluation.write(folder, found, evaluations.answers())
        deployment.s3.upload_file(
            str(folder / files.EVALUATION_FILE), deployment.artifact_bucket, f"sample/{outcome}.json"
        )
    for key, body in ((f"sample/{files.DATA_CARD_FILE}", json.dumps(CARD)), ("flags/train.sh", TRAIN)):
        deployment.s3.put_object(Bucket=deployment.artifact_bucket, Key=key, Body=body)
    deployment.s3.put_object(Bucket=deployment.raw_bucket, Key=MANIFEST, Body="[]")
    iam = deployment.client("iam")
    iam.create_role(RoleName="jobs", AssumeRolePolicyDocument=json.dumps(TRUST))
    iam.put_role_policy(RoleName="jobs", PolicyName="anything", PolicyDocument=json.dumps(ANYTHING))
    role = f"arn:aws:iam::{deployment.settings.account}:role/jobs"
    deployment.sagemaker.create_model_package_group(ModelPackageGroupName=deployment.settings.model_package_group_name)
    for name, steps in (
        (deployment.settings.finetune_pipeline_name, _steps(artifacts, role, deployment)),
        (deployment.settings.deploy_pipeline_name, [_step("Deploy", "Fail", {"ErrorMessage": "not here"})]),
        (deployment.settings.compare_pipeline_name, [_step("Compare", "Fail", {"ErrorMessage": "not here"})]),
    ):
        definition = {"Version": "2020-12-01", "Parameters": PARAMETERS, "Steps": steps}
        deployment.sagemaker.create_pipeline(PipelineName=name, PipelineDefinition=json.dumps(definition), RoleArn=role)


PARAMETERS: list[dict[str, Any]] = [
    {"Name": "Outcome", "Type": "String", "DefaultValue": "passed"},
    {"Name": "DatasetManifest", "Type": "String", "DefaultValue": MANIFEST},
    {"Name": "TuningMode", "Type": "String", "DefaultValue": "instruction", "EnumValues": ["instruction", "domain"]},
    {"Name": "PeftType", "Type": "String", "DefaultValue": "lora", "EnumValues": ["lora", "None"]},
    {"Name": "Epoch", "Type": "Float", "DefaultValue": 1.0},
    {"Name": "LearningRate", "Type": "Float", "DefaultValue": 2e-4},
    {"Name": "TrainingInstanceType", "Type": "String", "DefaultValue": "ml.g5.12xlarge"},
    {"Name": "TrainingInstanceCount", "Type": "Integer", "DefaultValue": 1},
    {"Name": "MinTestRows", "Type": "Integer", "DefaultValue": 20},
    {"Name": "ApprovalStatus", "Type": "String", "DefaultValue": "PendingManualApproval"},
]


def _step(name: str, kind: str, arguments: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"Name": name, "Type": kind, "Arguments": arguments, **fields}


def _steps(artifacts: str, role: str, deployment: Deployment) -> list[dict[str, Any]]:
    image = f"{deployment.settings.account}.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:1"
    outcome = {"OUTCOME": {"Get": "Parameters.Outcome"}}

    def run(name: str) -> dict[str, Any]:
        return {
            "Std:Join": {"On": "/", "Values": [f"{artifacts}/runs", {"Get": "Execution.PipelineExecutionId"}, name]}
        }

    def job(command: str, output: str, instance_type: str) -> dict[str, Any]:
        request = processing(command, {"sample": f"{artifacts}/sample/"}, {output: run(output)}, RoleArn=role)
        request["AppSpecification"]["ImageUri"] = image
        request["ProcessingResources"]["ClusterConfig"]["InstanceType"] = instance_type
        return {**request, "Environment": outcome}

    fine_tune = training("sh /opt/ml/input/data/flags/train.sh", {"flags": f"{artifacts}/flags/"}, RoleArn=role)
    fine_tune["Environment"] = {**outcome, "EPOCH": {"Get": "Parameters.Epoch"}}
    fine_tune["AlgorithmSpecification"]["TrainingImage"] = image
    fine_tune["OutputDataConfig"]["S3OutputPath"] = run("model")
    fine_tune["StoppingCondition"] = {"MaxRuntimeInSeconds": 3600}
    fine_tune["ResourceConfig"] |= {
        "InstanceType": {"Get": "Parameters.TrainingInstanceType"},
        "InstanceCount": {"Get": "Parameters.TrainingInstanceCount"},
    }
    model = {
        "Image": image,
        "ModelDataSource": {
            "S3DataSource": {
                "S3Uri": {"Get": "Steps.FineTune.ModelArtifacts.S3ModelArtifacts"},
                "S3DataType": "S3Prefix",
                "CompressionType": "None",
            }
        },
    }
    register = {
        "ModelPackageGroupName": deployment.settings.model_package_group_name,
        "ModelApprovalStatus": {"Get": "Parameters.ApprovalStatus"},
        "InferenceSpecification": {
            "Containers": [model],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
    }
    report = {"PropertyFileName": "E", "OutputName": files.EVALUATION_OUTPUT, "FilePath": files.EVALUATION_FILE}

    def evaluated(path: str) -> dict[str, Any]:
        return {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.E"}, "Path": path}}

    gate = {
        "Conditions": [{"Type": "Equals", "LeftValue": evaluated("gate.passed"), "RightValue": True}],
        "IfSteps": [_step("Register", "RegisterModel", register)],
        "ElseSteps": [_step("Fail", "Fail", {"ErrorMessage": evaluated("gate.message")})],
    }
    return [
        _step(
            "PrepareData",
            "Processing",
            job(PREPARE, files.REPORT_OUTPUT, deployment.settings.processing.prepare_instance_type),
        ),
        _step(
            "FineTune",
            "Training",
            fine_tune,
            DependsOn=["PrepareData"],
            CacheConfig={"Enabled": True, "ExpireAfter": "P30D"},
        ),
        _step(
            "Evaluate",
            "Processing",
            job(EVALUATE, files.EVALUATION_OUTPUT, deployment.settings.processing.evaluate_instance_type),
            DependsOn=["FineTune"],
            PropertyFiles=[report],
        ),
        _step("QualityGate", "Condition", gate),
    ]
