"""pipeline_steps/ and the packages that its image lacks, as one zip that Python runs: `python3 <hash>.zip <step> ...`.

The same bytes everywhere, so that no job installs anything: jobs need no package index and no network.
"""

import hashlib
import os
import zipfile
from pathlib import Path

from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3_assets as assets
from constructs import Construct

from stacks.components.permissions import list_objects, read_objects

PACKAGE = "pipeline_steps"
ENTRY = f"from {PACKAGE}.__main__ import main\n\nraise SystemExit(main())\n"

# The earliest time a zip entry can hold: file times would change the bytes, and with them the address.
EPOCH = (1980, 1, 1, 0, 0, 0)


def build_zip(repository: Path, packages: Path, output_folder: Path) -> Path:
    """Write the step code of `repository` and `packages` to `output_folder`/<sha256>.zip and return that path.

    `packages` holds pipeline_steps/requirements.txt as installed by `make setup`: pure Python, which runs from a zip.
    The content depends on the sources alone: sorted entries, fixed times and modes, no compiled files.
    """
    sources = _python_files(repository / PACKAGE, repository)
    if not sources:
        raise FileNotFoundError(f"{repository / PACKAGE} holds no Python files; run from a complete checkout")
    installed = _package_files(packages)
    if not installed:
        raise FileNotFoundError(f"{packages} holds no packages for the steps; run 'make setup'")
    compiled = [name for name in installed if name.endswith((".so", ".pyd"))]
    if compiled:
        raise ValueError(f"{packages} holds compiled modules, which cannot run from a zip: {', '.join(compiled)}")
    output_folder.mkdir(parents=True, exist_ok=True)
    unfinished = output_folder / f"step_code.{os.getpid()}.partial"  # two builds of one checkout do not meet
    with zipfile.ZipFile(unfinished, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        _add(archive, "__main__.py", ENTRY.encode())
        for name, path in sorted({**sources, **installed}.items()):
            _add(archive, name, path.read_bytes())
    finished = output_folder / f"{hashlib.sha256(unfinished.read_bytes()).hexdigest()}.zip"
    return unfinished.replace(finished)


def _python_files(folder: Path, root: Path) -> dict[str, Path]:
    return {
        path.relative_to(root).as_posix(): path
        for path in folder.rglob("*.py")
        if "__pycache__" not in path.relative_to(root).parts
    }


def _package_files(packages: Path) -> dict[str, Path]:
    """Modules and data of the packages, without what only pip and type checkers read (metadata, scripts, stubs)."""
    return {
        path.relative_to(packages).as_posix(): path
        for path in packages.rglob("*")
        if path.is_file()
        and path.suffix != ".pyi"
        and not path.name.startswith(".")
        and not {"__pycache__", "bin"} & set(path.relative_to(packages).parts)
        and not path.relative_to(packages).parts[0].endswith(".dist-info")
    }


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


class StepCode(Construct):
    """The zip as a CDK asset: uploaded by `cdk deploy`, content-addressed, no Lambda and no timestamp."""

    def __init__(self, scope: Construct, id_: str, *, zip_file: Path) -> None:
        super().__init__(scope, id_)
        self.asset = assets.Asset(self, "Zip", path=str(zip_file))

    @property
    def resources(self) -> dict[str, str]:
        """What the placeholders of a definition stand for."""
        return {"CodeBucket": self.asset.s3_bucket_name, "CodeKey": self.asset.s3_object_key}

    def grant_read(self, role: iam.Role) -> None:
        """What a job of `role` needs to get its program."""
        read_objects(role, "StepCode", self.asset.bucket, self.asset.s3_object_key)
        list_objects(role, "StepCode", self.asset.bucket, self.asset.s3_object_key)
