"""What AWS's training images do with `train`: a stand-in for the SageMaker training toolkit that is their entrypoint.

    python3 -m local_aws.training_toolkit

The hyperparameters sagemaker_submit_directory (an archive in a channel) and sagemaker_program name a script; it runs
with the other hyperparameters as flags and with the toolkit's variables, SM_CHANNEL_<NAME> and SM_MODEL_DIR first of all.
It runs in the container's Python and needs only its standard library. Packages that a script brings are not installed:
those of the image, which the local AWS was given, are there.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ML = Path("/opt/ml")
PROGRAM, DIRECTORY, LOG_LEVEL = "sagemaker_program", "sagemaker_submit_directory", "sagemaker_container_log_level"
OF_THE_TOOLKIT = (PROGRAM, DIRECTORY, LOG_LEVEL, "sagemaker_job_name", "sagemaker_region")


class ToolkitError(Exception):
    """The container cannot start its script; the message says why."""


def script_in(hyperparameters: dict[str, str], folder: Path) -> Path:
    """Unpack the script's archive into `folder`; returns the script. Raises ToolkitError if it is not there."""
    missing = [name for name in (PROGRAM, DIRECTORY) if not hyperparameters.get(name)]
    if missing:
        raise ToolkitError(f"the hyperparameters {', '.join(missing)} are missing, so there is no script to run")
    archive = Path(hyperparameters[DIRECTORY])
    if not archive.is_file():
        raise ToolkitError(
            f"{DIRECTORY} is {archive}, which is no file in the container; local AWS reads it from a channel"
        )
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    script = folder / hyperparameters[PROGRAM]
    if not script.is_file():
        raise ToolkitError(f"{PROGRAM} is {hyperparameters[PROGRAM]!r}, which is not in {archive}")
    return script


def environment(hyperparameters: dict[str, str], configuration: Path) -> dict[str, str]:
    """The toolkit's variables for the script."""
    channels = json.loads((configuration / "inputdataconfig.json").read_text(encoding="utf-8"))
    resources = json.loads((configuration / "resourceconfig.json").read_text(encoding="utf-8"))
    return {
        **{f"SM_CHANNEL_{name.upper()}": str(ML / "input" / "data" / name) for name in channels},
        **{f"SM_HP_{name.upper()}": value for name, value in hyperparameters.items()},
        "SM_CHANNELS": json.dumps(sorted(channels)),
        "SM_CURRENT_HOST": resources["current_host"],
        "SM_HOSTS": json.dumps(resources["hosts"]),
        "SM_HPS": json.dumps(hyperparameters),
        "SM_MODEL_DIR": str(ML / "model"),
        "SM_NUM_GPUS": "0",  # instances have none here
        "SM_OUTPUT_DATA_DIR": str(ML / "output" / "data"),
    }


def main() -> int:
    configuration = ML / "input" / "config"
    given = json.loads((configuration / "hyperparameters.json").read_text(encoding="utf-8"))
    own = {name: value for name, value in given.items() if name not in OF_THE_TOOLKIT}
    with tempfile.TemporaryDirectory() as folder:
        try:
            script = script_in(given, Path(folder))
        except (ToolkitError, tarfile.TarError, OSError) as error:
            return _failed(f"{type(error).__name__}: {error}")
        without_ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        flags = [part for name, value in own.items() for part in (f"--{name}", value)]
        finished = subprocess.run(
            [sys.executable, script.name, *flags],
            cwd=script.parent,
            env={**without_ours, **environment(own, configuration)},
            check=False,
        )
    if finished.returncode and not (ML / "output" / "failure").exists():
        return _failed(f"ExecuteUserScriptError: {script.name} ended with exit code {finished.returncode}")
    return finished.returncode


def _failed(message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    (ML / "output" / "failure").write_text(message, encoding="utf-8")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
