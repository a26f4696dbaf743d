"""pipeline_steps/ as one zip that Python runs: `python3 <hash>.zip <step> ...`, the same bytes everywhere."""

import hashlib
import zipfile
from pathlib import Path

from aws_cdk import aws_s3_assets as assets
from constructs import Construct

PACKAGE = "pipeline_steps"
ENTRY = f"from {PACKAGE}.__main__ import main\n\nraise SystemExit(main())\n"

# The earliest time a zip entry can hold: file times would change the bytes, and with them the address.
EPOCH = (1980, 1, 1, 0, 0, 0)


def build_zip(repository: Path, output_folder: Path) -> Path:
    """Write the step code of `repository` to `output_folder`/<sha256>.zip and return that path.

    The content depends on the sources alone: sorted entries, fixed times and modes, no compiled files.
    """
    sources = sorted(
        path for path in (repository / PACKAGE).rglob("*.py") if "__pycache__" not in path.relative_to(repository).parts
    )
    if not sources:
        raise FileNotFoundError(f"{repository / PACKAGE} holds no Python files; run from a complete checkout")
    output_folder.mkdir(parents=True, exist_ok=True)
    unfinished = output_folder / "step_code.zip.partial"
    with zipfile.ZipFile(unfinished, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        _add(archive, "__main__.py", ENTRY.encode())
        for path in sources:
            _add(archive, path.relative_to(repository).as_posix(), path.read_bytes())
    finished = output_folder / f"{hashlib.sha256(unfinished.read_bytes()).hexdigest()}.zip"
    return unfinished.replace(finished)


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
