"""ToBedrock: an approved model package -> an imported model of Amazon Bedrock, where a release needs no endpoint.

out   deployment/    deployment.json, written last
      S3             <import_to>/<model digest>/, what Bedrock reads: weights, configuration, tokenizer, chat template

Running it again with the same package joins the job that imports it, or changes nothing.
"""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from pipeline_steps import flags, s3
from pipeline_steps.contract import files, json_files, releases
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.messages import tell_result
from pipeline_steps.contract.progress import report
from pipeline_steps.release import package as packages
from pipeline_steps.release.job import Aws
from pipeline_steps.release.package import Package

DEPLOYMENT_SCHEMA_VERSION = 2
POLL_SECONDS = 2.0
CONFIG = "config.json"
WEIGHTS_ENDING = ".safetensors"
# What Bedrock reads of a model's folder; the adapter, our reports and model.py stay where they are.
READ_BY_BEDROCK = re.compile(
    r"(model[^/]*\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json|chat_template\.(jinja|json)|"
    r"tokenizer[^/]*|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt)"
)
# Architectures that FineTune tunes and that Bedrock's user guide names for custom model import.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class ImportJob:
    """main's flags. `role_arn` is what Bedrock reads the model with, `key_arn` encrypts the imported model.

    `import_to` is an S3 prefix. `kept_releases`: imported models of this deployment that stay, the newest one among them.
    """

    model_package_arn: str
    model_package_group: str
    model_name: str
    role_arn: str
    key_arn: str
    import_to: str
    max_update_minutes: int
    kept_releases: int
    output: Path


def main(arguments: list[str]) -> None:
    output = Path("/opt/ml/processing/output") / files.DEPLOYMENT_OUTPUT
    run(flags.parse(ImportJob, "to-bedrock", __doc__.split("\n\n")[0], output, arguments))


def run(job: ImportJob) -> dict[str, Any]:
    """Import the package's model and wait for it; returns what deployment.json says."""
    import boto3

    started = time.monotonic()
    bedrock = boto3.client("bedrock")

    # 1. Only what was approved is imported, only while it is what was approved, and only if Bedrock can run it.
    package = packages.read(Aws(job.model_package_arn), job.model_package_arn, job.model_package_group)
    names = readable_files(package)

    # 2. The model: there already, on its way, or imported now.
    source = publish(job, package, names)
    name = imported_name(job, package, source)
    action, previous = "unchanged", [one["modelName"] for one in imported_models(bedrock, job)]
    if name not in previous:
        action, arn = begin(bedrock, job, package, name, source)
        print(f"{name}: the import {action}: {arn}", flush=True)
        wait(bedrock, arn, job.max_update_minutes)

    # 3. What there is now; earlier models beyond those that are kept.
    model = bedrock.get_imported_model(modelIdentifier=name)
    removed = remove_old(bedrock, job, name)
    content = {
        "schema_version": DEPLOYMENT_SCHEMA_VERSION,
        "imported_model_arn": model["modelArn"],
        "model_package_arn": package.arn,
        "model_digest": package.model_digest,
        "release": name,
        "action": action,
        "architecture": model.get("modelArchitecture"),
        "takes_messages": model.get("instructSupported"),
        "custom_model_units": model.get("customModelUnits", {}).get("customModelUnitsPerModelCopy"),
        "removed": removed,
        "seconds": round(time.monotonic() - started, 1),
    }
    json_files.write(job.output / files.DEPLOYMENT_FILE, content)
    tell_result(f"Bedrock has {package.arn} as {model['modelArn']} ({action}); nobody has asked it yet")
    return content


# ---------------------------------------------------------------- 1. what is imported


def readable_files(package: Package) -> list[str]:
    """Names of the files that Bedrock needs of the package's model. Raises StepError with all that it lacks."""
    found = {one.uri.removeprefix(package.model_uri) for one in s3.objects_below(package.model_uri)}
    names = sorted(name for name in found if READ_BY_BEDROCK.fullmatch(name))
    problems = []
    if not any(name.endswith(WEIGHTS_ENDING) for name in names):
        problems.append(f"no merged weights (model*{WEIGHTS_ENDING})")
    problems += [f"no {name}" for name in (CONFIG, "tokenizer.json", "tokenizer_config.json") if name not in names]
    if CONFIG in names:
        architectures = read_json(package.model_uri + CONFIG).get("architectures") or ["none named"]
        if not set(architectures) <= set(ARCHITECTURES):
            problems.append(
                f"the architecture {', '.join(map(str, architectures))}; Bedrock imports {', '.join(ARCHITECTURES)} of those "
                "that are tuned here"
            )
    if problems:
        raise StepError(
            f"Bedrock cannot import {package.arn}: {package.model_uri} has {'; '.join(problems)}. Release it to an endpoint "
            "(release.target: sagemaker), or tune another model"
        )
    return names


def read_json(uri: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "file.json"
        s3.download(uri, path)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content


def publish(job: ImportJob, package: Package, names: list[str]) -> str:
    """Copy the files, inside S3, to a prefix of their own; returns it. Bedrock's role may read there and nowhere else."""
    source = f"{job.import_to.rstrip('/')}/{package.model_digest}/"
    if not s3.exists(source + CONFIG):  # copied last
        ordered = sorted(names, key=lambda name: name == CONFIG)
        for number, name in enumerate(ordered, start=1):
            s3.copy(package.model_uri + name, source + name)
            report("copy for import", number, len(ordered))
    return source


def imported_name(job: ImportJob, package: Package, source: str) -> str:
    """Of the package and all that its import is made of; Bedrock takes no two hyphens beside each other."""
    name = releases.release_name(job.model_name, package.arn, {"source": source, "key": job.key_arn})
    return re.sub("-+", "-", name)


# ---------------------------------------------------------------- 2. the import


def begin(bedrock: Any, job: ImportJob, package: Package, name: str, source: str) -> tuple[str, str]:
    """Start the import, or join one of the same name: "joined" or "started", and the job's ARN."""
    jobs = pages(bedrock.list_model_import_jobs, "modelImportJobSummaries", nameContains=name)
    for one in jobs:
        if one["status"] == "InProgress":
            return "joined", str(one["jobArn"])
    # A name is taken for good: after a failure the next try has the next number. Two that start at once have one token,
    # and so one job.
    attempt = f"{name}-{len(jobs) + 1}"
    try:
        created = bedrock.create_model_import_job(**import_request(job, package, name, source, attempt))
    except ClientError as error:
        raise StepError(f"Bedrock refuses to import {package.arn} as {name}: {error}") from error
    return "started", str(created["jobArn"])


def import_request(job: ImportJob, package: Package, name: str, source: str, attempt: str) -> dict[str, Any]:
    """CreateModelImportJob, as Bedrock receives it."""
    tags = [
        {"key": "application", "value": job.model_name},
        {"key": releases.PACKAGE_TAG, "value": package.arn},
        {"key": releases.MODEL_DIGEST_TAG, "value": package.model_digest},
    ]
    return {
        "jobName": attempt,
        "importedModelName": name,
        "roleArn": job.role_arn,
        "modelDataSource": {"s3DataSource": {"s3Uri": source}},
        "importedModelKmsKeyId": job.key_arn,
        "jobTags": tags,
        "importedModelTags": tags,
        "clientRequestToken": attempt,
    }


def wait(bedrock: Any, arn: str, minutes: int) -> None:
    """Follow the job to its end. Raises StepError with Bedrock's reason if that is no imported model."""
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < minutes * 60:
        found = bedrock.get_model_import_job(jobIdentifier=arn)
        if found["status"] == "Failed":
            raise StepError(
                f"Bedrock could not import the model ({arn}): {found.get('failureMessage', 'no reason given')}; the models that "
                "were imported before are untouched. When the cause is mended, start the deploy pipeline again"
            )
        if found["status"] == "Completed":
            return
        report("wait for import", int(seconds), minutes * 60)
        time.sleep(POLL_SECONDS)
    raise StepError(
        f"{arn} was not done after {minutes} minutes (release.max_update_minutes); it goes on in Bedrock: start the deploy "
        "pipeline again, which joins it"
    )


# ---------------------------------------------------------------- 3. earlier models


def imported_models(bedrock: Any, job: ImportJob) -> list[dict[str, Any]]:
    """This deployment's imported models, the newest first."""
    prefix = re.sub("-+", "-", job.model_name[:40]).rstrip("-")
    found = pages(
        bedrock.list_imported_models,
        "modelSummaries",
        nameContains=prefix,
        sortBy="CreationTime",
        sortOrder="Descending",
    )
    return [one for one in found if re.fullmatch(rf"{re.escape(prefix)}-v\d+-[0-9a-f]{{8}}", one["modelName"])]


def remove_old(bedrock: Any, job: ImportJob, serving: str) -> list[str]:
    """Delete imported models beyond `kept_releases`, never the one that was released now; returns their names."""
    others = [one["modelName"] for one in imported_models(bedrock, job) if one["modelName"] != serving]
    old = others[job.kept_releases - 1 :]
    for name in old:
        bedrock.delete_imported_model(modelIdentifier=name)
    return old


def pages(call: Any, key: str, **request: Any) -> list[dict[str, Any]]:
    """All that a List call answers."""
    found: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        answer = call(**request, **token)
        found += answer.get(key, [])
        if "nextToken" not in answer:
            return found
        token = {"nextToken": answer["nextToken"]}
