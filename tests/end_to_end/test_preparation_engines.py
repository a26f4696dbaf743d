"""PrepareData on a Ray cluster with two workers, over S3's own protocol: the very files that one instance makes."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import local_aws
from cli.aws import LOCAL_CREDENTIALS, REPOSITORY, STEPS_PYTHON

VOCABULARY = [f"{syllable}{number}" for number in range(60) for syllable in ("ba", "ke", "lo", "mi", "nu")]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with local_aws.start(tmp_path_factory.mktemp("aws"), {}) as server:
        yield server


@pytest.fixture(scope="module")
def s3(aws: Any) -> Any:
    return boto3.client("s3", endpoint_url=aws.url, region_name="us-east-1", **LOCAL_CREDENTIALS)


def rows(start: int, number: int) -> list[dict[str, str]]:
    def text(seed: str, words: int) -> str:
        return " ".join(random.Random(seed).choices(VOCABULARY, k=words))

    return [
        {"instruction": "Answer.", "context": text(f"{n}", 60), "response": text(f"{n} answer", 12)}
        for n in range(start, start + number)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files with duplicates among them."""
    train = tmp_path_factory.mktemp("raw") / "train"
    train.mkdir()
    for number in range(5):
        content = rows(number * 40, 40) + rows(0, 5)  # the first five rows again in every file
        content += [{**row, "context": f"{row['context']} more"} for row in rows(number * 40 + 20, 3)]
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (train / f"{number}.jsonl").write_text(lines, encoding="utf-8")
    return train.parent


def prepare(aws: Any, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": LOCAL_CREDENTIALS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": LOCAL_CREDENTIALS["aws_secret_access_key"],
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [str(STEPS_PYTHON), "-m", "pipeline_steps", "prepare-data", "--tuning_mode", "instruction"]
    return subprocess.run(
        [*command, "--output", str(output / "report"), *arguments],
        cwd=output, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def published(s3: Any, bucket: str) -> dict[str, bytes]:
    keys = [found["Key"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {
        key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys if not key.endswith("data_card.html")
    }


def test_ray_publishes_the_very_files_that_one_instance_publishes(
    aws: Any, s3: Any, folder: Path, tmp_path: Path
) -> None:
    for bucket in ("raw", "alone", "ray"):
        s3.create_bucket(Bucket=bucket)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl"))
    for name in names:
        s3.upload_file(str(folder / name), "raw", f"instruction/{name}")
    manifest = json.dumps([{"prefix": "s3://raw/instruction/"}, *names])
    s3.put_object(Bucket="raw", Key="instruction/dataset.manifest", Body=manifest.encode())

    alone = prepare(aws, tmp_path, "--raw", str(folder), "--publish_to", "s3://alone/datasets")
    assert alone.returncode == 0, alone.stderr
    expected = published(s3, "alone")
    assert len([key for key in expected if "/train/examples-" in key]) == 5

    on_ray = prepare(
        aws, tmp_path, "--engine", "ray",
        "--raw", "s3://raw/instruction/dataset.manifest",
        "--publish_to", "s3://ray/datasets",
    )  # fmt: skip
    assert on_ray.returncode == 0, on_ray.stderr
    assert published(s3, "ray") == expected, "and nothing else is left there"
    assert "progress: examine 5/5" in on_ray.stdout
    card = json.loads((tmp_path / "report" / "data_card.json").read_text(encoding="utf-8"))
    assert card["rows"] == {
        "read": 240, "kept": 200, "quarantined": 0, "exact_duplicates": 25, "near_duplicates": 15, "left_out": 0,
    }  # fmt: skip


def test_ray_tells_bad_rows_in_the_same_words_and_publishes_nothing(
    aws: Any, s3: Any, folder: Path, tmp_path: Path
) -> None:
    s3.create_bucket(Bucket="bad")
    s3.put_object(Bucket="bad", Key="raw/x.jsonl", Body=b'{"instruction": 1}\n{')
    s3.put_object(
        Bucket="bad", Key="raw/m.manifest", Body=json.dumps([{"prefix": "s3://bad/raw/"}, "x.jsonl"]).encode()
    )
    finished = prepare(
        aws, tmp_path, "--engine", "ray", "--raw", "s3://bad/raw/m.manifest", "--publish_to", "s3://bad/datasets"
    )
    assert finished.returncode == 1
    assert "x.jsonl:2: not valid JSON" in finished.stderr
    assert {key.split("/")[0] for key in published(s3, "bad")} == {"raw"}, "no scratch files are left"
