"""Datasets on their way to the raw bucket: the files first, then the manifest that declares them complete."""

import json
from collections.abc import Callable
from pathlib import Path

from cli.aws import Deployment
from cli.console import CommandError

MANIFEST = "dataset.manifest"


def upload(
    deployment: Deployment, folder: Path, tuning_mode: str, on_file: Callable[[str], None] = lambda _: None
) -> str:
    """Upload `folder` to raw/<tuning_mode>/ and its manifest last; returns the manifest's key.

    The manifest is SageMaker's ManifestFile form: a prefix, then the names below it. Its arrival starts the pipeline,
    so an upload that breaks off starts nothing.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder; name the folder that holds train/")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".manifest"
    )
    if not files:
        raise CommandError(f"{folder} holds no files; a dataset folder holds train/ with the data in it")

    bucket = deployment.raw_bucket
    names = [path.relative_to(folder).as_posix() for path in files]
    for path, name in zip(files, names, strict=True):
        on_file(name)
        deployment.s3.upload_file(str(path), bucket, f"{tuning_mode}/{name}")
    manifest = [{"prefix": f"s3://{bucket}/{tuning_mode}/"}, *names]
    key = f"{tuning_mode}/{MANIFEST}"
    deployment.s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(manifest, indent=1).encode())
    return key
