"""What local AWS adds to a step, outside the job's own process.

    .venv/bin/python -m bench.local_aws_overhead

Runs a pipeline of processing steps that only sleep, each reading and writing a model-sized file, and takes the known
sleeping time off each step's time. Prints one line a step; writes bench/results/local-aws-overhead.json.
"""

import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import boto3

import local_aws

SLEEP_SECONDS = 1.0
MODEL_BYTES = 270 * 2**20  # SmolLM2-135M in bfloat16
STEPS = 3
ACCOUNT, REGION, BUCKET = "123456789012", "us-east-1", "bench"
RESULTS = Path(__file__).parent / "results" / "local-aws-overhead.json"


def step(name: str, source: str, role: str) -> dict[str, object]:
    copy = f"cp /opt/ml/processing/input/model/* /opt/ml/processing/output/copy/ && sleep {SLEEP_SECONDS}"
    return {
        "Name": name,
        "Type": "Processing",
        "Arguments": {
            "RoleArn": role,
            "ProcessingResources": {
                "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
            },
            "AppSpecification": {"ImageUri": "bench:1", "ContainerEntrypoint": ["sh", "-c", copy]},
            "ProcessingInputs": [
                {
                    "InputName": "model",
                    "S3Input": {
                        "S3Uri": source,
                        "LocalPath": "/opt/ml/processing/input/model",
                        "S3DataType": "S3Prefix",
                        "S3InputMode": "File",
                    },
                }
            ],
            "ProcessingOutputConfig": {
                "Outputs": [
                    {
                        "OutputName": "copy",
                        "S3Output": {
                            "S3Uri": f"s3://{BUCKET}/{name}/",
                            "LocalPath": "/opt/ml/processing/output/copy",
                            "S3UploadMode": "EndOfJob",
                        },
                    }
                ]
            },
        },
    }


def main() -> None:
    os.environ["AWS_DEFAULT_REGION"] = REGION
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_aws.start(Path(scratch), {"bench": Path(sys.prefix)}) as aws,
    ):

        def client(service: str):  # type: ignore[no-untyped-def]
            return boto3.client(
                service, REGION, endpoint_url=aws.url, aws_access_key_id="local", aws_secret_access_key="local"
            )

        trust = {"Service": "sagemaker.amazonaws.com"}
        role = client("iam").create_role(
            RoleName="bench",
            AssumeRolePolicyDocument=json.dumps(
                {"Statement": [{"Effect": "Allow", "Principal": trust, "Action": "sts:AssumeRole"}]}
            ),
        )["Role"]["Arn"]
        anything = json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        )
        client("iam").put_role_policy(RoleName="bench", PolicyName="anything", PolicyDocument=anything)
        s3, sagemaker = client("s3"), client("sagemaker")
        s3.create_bucket(Bucket=BUCKET)
        model = Path(scratch) / "model.safetensors"
        model.write_bytes(os.urandom(2**20) * (MODEL_BYTES // 2**20))
        s3.upload_file(str(model), BUCKET, "start/model.safetensors")

        names = [f"Step{number}" for number in range(1, STEPS + 1)]
        sources = ["start", *names]
        steps = [
            step(name, f"s3://{BUCKET}/{source}/", role) | ({"DependsOn": [source]} if source in names else {})
            for name, source in zip(names, sources, strict=False)
        ]
        definition = {"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": steps}
        sagemaker.create_pipeline(
            PipelineName="bench", PipelineDefinition=json.dumps(definition), RoleArn=role, ClientRequestToken="b" * 32
        )
        arn = sagemaker.start_pipeline_execution(PipelineName="bench")["PipelineExecutionArn"]
        while (execution := sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn))[
            "PipelineExecutionStatus"
        ] == "Executing":
            time.sleep(0.2)
        if execution["PipelineExecutionStatus"] != "Succeeded":
            raise SystemExit(f"the execution failed: {execution.get('FailureReason')}")

        rows = []
        listed = sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
        for one in listed["PipelineExecutionSteps"]:
            added = (one["EndTime"] - one["StartTime"]).total_seconds() - SLEEP_SECONDS
            rows.append(
                {"step": one["StepName"], "megabytes_in_and_out": MODEL_BYTES / 2**20, "added_s": round(added, 2)}
            )
            print(f"{one['StepName']}: local AWS added {added:.2f} s (270 MB in, copied by the job, 270 MB out)")

    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "command": "python -m bench.local_aws_overhead",
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
