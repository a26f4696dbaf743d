"""What JumpStart's training may read besides our own buckets: its weights, its script, its image."""

from pathlib import Path

from config.settings import load
from tests.pipeline.test_jumpstart import settings_of
from tests.stacks.policies import statements_of


def test_the_training_reads_the_weights_and_the_script_that_the_lock_names_and_nothing_else(tmp_path: Path) -> None:
    of_jumpstart = [one for one in statements_of(tmp_path, settings_of(tmp_path)) if "jumpstart-cache-prod" in str(one)]
    (reads,) = [one["Resource"] for one in of_jumpstart if one["Action"] == "s3:GetObject"]
    read = [str(one) for one in reads]
    assert len(read) == 2 and all(
        "*" not in resource.split("jumpstart-cache-prod-us-east-1/")[1][:20] for resource in read
    )
    assert any("train-huggingface-llm-mistral-7b.tar.gz*" in resource for resource in read)
    assert all("s3:prefix" in str(one["Condition"]) for one in of_jumpstart if one["Action"] == "s3:ListBucket")


def test_our_own_training_may_read_nothing_of_jumpstart(tmp_path: Path) -> None:
    assert not [one for one in statements_of(tmp_path, load("prod")) if "jumpstart" in str(one)]


def test_every_statement_of_its_roles_has_a_name_too(tmp_path: Path) -> None:
    assert all(one.get("Sid") for one in statements_of(tmp_path, settings_of(tmp_path)))
