"""JumpStart as the tests have it: a hub document, and a bucket with weights and script, on a local AWS."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from cli.aws import Deployment

FOLDER = Path(__file__).parent
MODEL_ID, VERSION = "huggingface-llm-mistral-7b", "2.9.1"
BUCKET = "jumpstart-cache-prod-us-east-1"


def document() -> dict[str, Any]:
    """A hub document in the documented shape, written for the tests."""
    content: dict[str, Any] = json.loads((FOLDER / "document.json").read_text(encoding="utf-8"))
    return content


def publish(root: Path, *versions: str, **changed: Any) -> None:
    """Put the document, with top-level keys `changed` (None: removed), into the hub of the local AWS with the folder `root`."""
    content = {name: value for name, value in {**document(), **changed}.items() if value is not None}
    for version in versions or (VERSION,):
        path = root / "hubs" / "SageMakerPublicHub" / MODEL_ID / f"{version}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def fill_bucket(deployment: Deployment, model: Path) -> None:
    """JumpStart's bucket with the base model of the folder `model` and the tests' training script."""
    deployment.s3.create_bucket(Bucket=BUCKET)
    for uri, path in (
        (document()["TrainingArtifactUri"], model),
        (document()["TrainingPrepackedScriptUri"], FOLDER / "transfer_learning.py"),
    ):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                archive.add(file, file.name)
        deployment.s3.put_object(Bucket=BUCKET, Key=uri.partition(f"{BUCKET}/")[2], Body=packed.getvalue())


def clear(root: Path) -> None:
    shutil.rmtree(root / "hubs", ignore_errors=True)
