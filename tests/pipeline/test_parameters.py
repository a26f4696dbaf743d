"""What a run-time parameter can change: values inside our buckets, never which bucket is read or written."""

import json
from collections.abc import Iterator
from typing import Any

from config.settings import load
from pipeline.definition import compare_definition, deploy_definition, finetune_definition

OUR_BUCKETS = ("${RawBucket}", "${ArtifactBucket}", "${CodeBucket}")


def uris(value: Any) -> Iterator[Any]:
    """Every S3 place in a definition, as it stands there: a text or an expression."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key in ("S3Uri", "S3OutputPath"):
                yield member
            else:
                yield from uris(member)
    elif isinstance(value, list):
        for member in value:
            yield from uris(member)


def bucket_of(uri: Any) -> str:
    """The bucket of a place, or the expression that may name any."""
    if isinstance(uri, str):
        return uri.removeprefix("s3://").split("/")[0]
    joined = uri.get("Std:Join", {})
    first, *others = joined.get("Values", [uri])
    if first == "s3:/":
        first = others[0]
    return bucket_of(first) if isinstance(first, str) or "Std:Join" in first else str(first.get("Get", first))


def test_no_parameter_can_lead_out_of_our_buckets() -> None:
    settings = load("prod")
    for make in (finetune_definition, deploy_definition, compare_definition):
        definition = json.loads(make(settings))
        found = [bucket_of(uri) for uri in uris(definition)]
        assert found
        for bucket in found:
            # What an earlier step of the execution told of its own output is below our buckets too.
            assert bucket in OUR_BUCKETS or bucket.startswith(("Steps.", "{'Std:JsonGet'")), bucket
        assert not [one["Name"] for one in definition["Parameters"] if "Uri" in one["Name"]], "a URI names a bucket"
