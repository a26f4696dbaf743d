"""Datasets and base models on their way to S3."""

import json
from pathlib import Path

import pytest

from cli import base_models, datasets
from cli.aws import Deployment
from cli.console import CommandError
from tests.cli.hub_server import safetensors


def quiet(_: str) -> None:
    pass


def keys(deployment: Deployment, bucket: str, prefix: str) -> list[str]:
    answer = deployment.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for entry in answer.get("Contents", [])]


def test_the_manifest_names_every_file_and_is_sagemakers_form(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("Our vision is\n", encoding="utf-8")
    (tmp_path / ".hidden").write_text("no", encoding="utf-8")
    (tmp_path / "old.manifest").write_text("[]", encoding="utf-8")

    key = datasets.upload(deployment, tmp_path, "domain")

    assert key == "domain/dataset.manifest"
    body = deployment.s3.get_object(Bucket=deployment.raw_bucket, Key=key)["Body"].read()
    prefix, *names = json.loads(body)
    assert prefix == {"prefix": f"s3://{deployment.raw_bucket}/domain/"}
    assert names == ["prompts.txt", "train/rows.jsonl"]
    assert sorted(keys(deployment, deployment.raw_bucket, "domain/")) == sorted(
        [key, *(f"domain/{name}" for name in names)]
    )


def test_a_folder_without_files_is_refused_and_nothing_is_uploaded(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="holds no files"):
        datasets.upload(deployment, tmp_path, "instruction")
    assert keys(deployment, deployment.raw_bucket, "instruction/") == []


def test_a_path_that_is_no_folder_is_told(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is not a folder"):
        datasets.upload(deployment, tmp_path / "nowhere", "instruction")


def test_a_model_is_imported_once_and_its_marker_names_every_file(deployment: Deployment, model: Path) -> None:
    digest = base_models.import_model(deployment, str(model), "once", quiet)
    said: list[str] = []
    assert base_models.import_model(deployment, str(model), "once", said.append) == digest
    assert said[-1] == "once is imported already" and not [line for line in said if "uploading" in line]
    bucket = deployment.artifact_bucket
    marker = json.loads(deployment.s3.get_object(Bucket=bucket, Key="base-models/once/base_model.json")["Body"].read())
    assert marker["digest"] == digest
    assert set(marker["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert marker["size_bytes"] == (model / "model.safetensors").stat().st_size + 4


def test_the_tokenizer_of_an_imported_model_is_fetched_once_and_kept_without_the_weights(
    deployment: Deployment, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Deployment:
        raise CommandError("AWS is asked")

    settings = deployment.settings
    monkeypatch.setattr(base_models, "KEPT", tmp_path / "kept")
    with pytest.raises(CommandError, match="AWS is asked"):
        base_models.tokenizer_folder(settings, nobody)
    with pytest.raises(CommandError, match=r"tiny is not in s3://.*finetune import-model"):
        base_models.tokenizer_folder(settings, lambda: deployment)

    base_models.import_model(deployment, str(model), "tiny", quiet)
    kept = base_models.tokenizer_folder(settings, nobody)
    content = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert set(content) == {"config.json", "tokenizer.json", "base_model.json"}
    assert json.loads(content["base_model.json"])["weight_bytes"] == (model / "model.safetensors").stat().st_size

    monkeypatch.setattr(base_models, "KEPT", tmp_path / "another machine")
    fetched = base_models.tokenizer_folder(settings, lambda: deployment)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == content
    assert base_models.tokenizer_folder(settings, nobody) == fetched


def test_other_bytes_under_the_same_name_are_refused_and_the_old_ones_stay(deployment: Deployment, model: Path) -> None:
    base_models.import_model(deployment, str(model), "taken", quiet)
    before = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(safetensors(b"other weights"))
    with pytest.raises(CommandError, match="holds another model"):
        base_models.import_model(deployment, str(model), "taken", quiet)
    stored = deployment.s3.get_object(Bucket=deployment.artifact_bucket, Key="base-models/taken/model.safetensors")
    assert stored["Body"].read() == before


def test_everything_that_a_model_folder_lacks_is_told_at_once(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(
        CommandError, match=r"pytorch_model\.bin is pickled.*no \*\.safetensors.*config\.json is missing.*no tokenizer"
    ):
        base_models.import_model(deployment, str(tmp_path), "broken", quiet)
    assert keys(deployment, deployment.artifact_bucket, "base-models/broken") == []


def test_a_stack_that_is_not_there_is_told_with_what_to_do(deployment: Deployment) -> None:
    with pytest.raises(CommandError, match=r"cli-pipeline.*(?s:.*)Deploy first"):
        deployment.output("pipeline", "EndpointName")
