"""Base models on their way to the artifact bucket: checked, digested, imported once."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from cli import model_files, model_sources
from cli.aws import REPOSITORY, Deployment
from cli.console import CommandError
from cli.transfers import Transfer
from config.settings import Settings
from pipeline_steps.contract import files, json_files

KEPT = REPOSITORY / "build" / "base-models"  # imported models without their weights, for validate-data
DIGEST_METADATA = "sha256"  # of an uploaded object: by it an import that goes on knows what is there

# Parts of a file are uploaded side by side and read from the disk while they are sent: memory holds no whole part.
UPLOAD = TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=64 * 2**20, max_concurrency=8)


def import_model(
    deployment: Deployment,
    source: str,
    name: str,
    say: Callable[[str], None],
    *,
    token_secret: str | None = None,
    accept_eula: bool = False,
) -> str:
    """Bring the model at `source` (model_sources.py) to base-models/<name>/ of the artifact bucket; returns its digest.

    A model that is there already is left alone; other bytes under the same name are refused, since cached results name
    the model by its place. An import that was cut off goes on with the files that are complete. Raises CommandError with
    all that is wrong with the source; then nothing is written.
    """
    bucket, prefix = deployment.artifact_bucket, f"base-models/{name}"
    found = model_sources.find(source, model_sources.Access(deployment, token_secret, accept_eula))
    present = _marker_in_bucket(deployment, bucket, prefix)
    if present and found.fixed and present["source"] == found.name:
        say(f"{name} is imported already")
        _forget_another(KEPT / deployment.settings.name / name, present)
        return str(present["digest"])

    with found.folder(say) as (folder, licence):
        chosen = model_files.choose_in(folder, source)
        for left_out in chosen.left_out:
            say(f"left out: {left_out}")
        say("reading digests")
        digests = {file: model_sources.sha256(folder / file) for file in chosen.names if file != files.BASE_MODEL_FILE}
        digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        sizes = {file: (folder / file).stat().st_size for file in digests}
        marker = {
            "schema_version": files.BASE_MODEL_SCHEMA_VERSION,
            "name": name,
            "digest": digest,
            "source": found.name,
            "licence": licence,
            "size_bytes": sum(sizes.values()),
            "files": digests,
        }
        if present and present["digest"] != digest:
            raise CommandError(
                f"s3://{bucket}/{prefix}/ holds another model (digest {str(present['digest'])[:12]}, this one {digest[:12]}); "
                "import it under another --name and set base_model.name in the configuration"
            )
        if present:
            say(f"{name} is imported already")
        else:
            _upload(deployment, bucket, prefix, folder, digests, sizes, say)
            # Written last: a model without it is not there.
            deployment.s3.put_object(
                Bucket=bucket, Key=f"{prefix}/{files.BASE_MODEL_FILE}", Body=json.dumps(marker, indent=1).encode()
            )
        _keep(folder, KEPT / deployment.settings.name / name, sizes, marker)
    return digest


def described(deployment: Deployment, name: str) -> str:
    """An imported model's digest, size, licence and source, for people."""
    marker = _marker_in_bucket(deployment, deployment.artifact_bucket, f"base-models/{name}")
    assert marker is not None
    licence = marker.get("licence") or "not told by the source"
    return (
        f"digest {marker['digest']}, {marker['size_bytes'] / 1e9:.2f} GB in {len(marker['files'])} files, "
        f"licence: {licence}, from {marker['source']}"
    )


def _upload(
    deployment: Deployment,
    bucket: str,
    prefix: str,
    folder: Path,
    digests: Mapping[str, str],
    sizes: Mapping[str, int],
    say: Callable[[str], None],
) -> None:
    """Every file that is not there with its digest; S3 checks each part that it gets by its SHA-256."""
    transfer = Transfer("uploading", sum(sizes.values()), say)
    for file, digest in digests.items():
        key = f"{prefix}/{file}"
        if not _is_there(deployment, bucket, key, sizes[file], digest):
            path = folder / file
            before = path.stat().st_mtime_ns
            deployment.s3.upload_file(
                str(path),
                bucket,
                key,
                ExtraArgs={"Metadata": {DIGEST_METADATA: digest}, "ChecksumAlgorithm": "SHA256"},
                Callback=transfer.add,
                Config=UPLOAD,
            )
            if (path.stat().st_mtime_ns, path.stat().st_size) != (before, sizes[file]):
                deployment.s3.delete_object(Bucket=bucket, Key=key)
                raise CommandError(f"{path} changed while it was uploaded; import again when nothing writes to it")
        transfer.done_with(file, sizes[file])


def _is_there(deployment: Deployment, bucket: str, key: str, size: int, digest: str) -> bool:
    try:
        head = deployment.s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    return bool(head["ContentLength"] == size and head["Metadata"].get(DIGEST_METADATA) == digest)


def tokenizer_folder(settings: Settings, connect: Callable[[], Deployment]) -> Path:
    """The imported base model of a deployment without its weights: kept on this machine once it has been here.

    Only where it has not is AWS asked, by `connect`. Raises CommandError if AWS or the model is not there.
    """
    name = settings.base_model.name
    folder = KEPT / settings.name / name
    if (folder / files.BASE_MODEL_FILE).is_file():
        return folder
    deployment = connect()
    bucket, prefix = deployment.artifact_bucket, f"base-models/{name}/"
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    sizes = {found["Key"].removeprefix(prefix): found["Size"] for page in pages for found in page.get("Contents", [])}
    if files.BASE_MODEL_FILE not in sizes:
        raise CommandError(
            f"the base model {name} is not in s3://{bucket}/{prefix}; import it once with 'finetune import-model'"
        )
    with tempfile.TemporaryDirectory() as scratch:
        for file in sizes:
            if not file.endswith(model_files.WEIGHTS):
                path = Path(scratch, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                deployment.s3.download_file(bucket, prefix + file, str(path))
        marker = json.loads(Path(scratch, files.BASE_MODEL_FILE).read_text(encoding="utf-8"))
        _keep(Path(scratch), folder, sizes, marker)
    return folder


def _keep(source: Path, folder: Path, sizes: Mapping[str, int], marker: dict[str, Any]) -> None:
    """Copy a model without its weights to `folder`; last its marker, with the size of the weights in it."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in sizes:
        if not file.endswith(model_files.WEIGHTS) and file != files.BASE_MODEL_FILE:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, folder / file)
    weights = sum(size for file, size in sizes.items() if file.endswith(model_files.WEIGHTS))
    json_files.write(folder / files.BASE_MODEL_FILE, {**marker, files.WEIGHT_BYTES: weights})


def _forget_another(folder: Path, marker: dict[str, Any]) -> None:
    """Remove what is kept in `folder` if it is of another model than the one in the bucket."""
    kept = folder / files.BASE_MODEL_FILE
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8"))["digest"] != marker["digest"]:
        shutil.rmtree(folder)


def _marker_in_bucket(deployment: Deployment, bucket: str, prefix: str) -> dict[str, Any] | None:
    try:
        answer = deployment.s3.get_object(Bucket=bucket, Key=f"{prefix}/{files.BASE_MODEL_FILE}")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise
    marker: dict[str, Any] = json.loads(answer["Body"].read())
    return marker
