"""The little that steps ask of S3 themselves; everything else comes and goes through the job's channels."""

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
