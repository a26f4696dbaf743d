"""The little that steps ask of S3 themselves; everything else comes and goes through the job's channels."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import boto3
from botocore.exceptions import ClientError


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def exists(uri: str) -> bool:
    """Whether the object is there. Any answer but yes and no is an error."""
    bucket, key = _split(uri)
    try:
        boto3.client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    return True


def upload(path: Path, uri: str) -> None:
    bucket, key = _split(uri)
    boto3.client("s3").upload_file(str(path), bucket, key)


def download(uri: str, path: Path) -> None:
    bucket, key = _split(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    boto3.client("s3").download_file(bucket, key, str(path))


def copy(source: str, target: str) -> None:
    """Copy an object inside S3."""
    bucket, key = _split(source)
    target_bucket, target_key = _split(target)
    boto3.client("s3").copy({"Bucket": bucket, "Key": key}, target_bucket, target_key)


@dataclass(frozen=True)
class Object:
    """An object of S3; `modified` is the time at which S3 received it."""

    uri: str
    size_bytes: int
    modified: datetime


def objects_below(prefix: str) -> Iterator[Object]:
    """Each object below a prefix."""
    bucket, key = _split(prefix)
    for page in boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
        for found in page.get("Contents", []):
            yield Object(f"s3://{bucket}/{found['Key']}", int(found["Size"]), found["LastModified"])


def sizes_below(prefix: str) -> Iterator[tuple[str, int]]:
    """(URI, bytes) of each object below a prefix."""
    return ((found.uri, found.size_bytes) for found in objects_below(prefix))


def delete_all(prefix: str) -> None:
    bucket, _ = _split(prefix)
    client = boto3.client("s3")
    for uri, _ in list(sizes_below(prefix)):
        client.delete_object(Bucket=bucket, Key=_split(uri)[1])
