"""python -m review.hashes: the SHA-256 of every file of every pinned package, as its index tells them.

constraints.txt, constraints-steps.txt and pipeline_steps/requirements.txt -> hashes.txt, hashes-steps.txt and
pipeline_steps/hashes.txt, from which `make setup` installs. All platforms' files are in it. torch is left out: its CPU
build is another file on each index, so it is pinned by version and installed by itself.
"""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
LOCKED = {
    "constraints.txt": "hashes.txt",
    "constraints-steps.txt": "hashes-steps.txt",
    "pipeline_steps/requirements.txt": "pipeline_steps/hashes.txt",
}
WITHOUT_HASH = ("torch",)
HEAD = "# Every package of {source} with the SHA-256 of its files; made by 'make constraints'.\n"


def pinned(text: str) -> list[str]:
    """The `name==version` lines of a requirements file that are installed by hash."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if "==" in line and line.split("==")[0] not in WITHOUT_HASH]


def locked(packages: list[str]) -> str:
    """The packages with the hashes of all their files. Raises CalledProcessError if the index does not have one of them."""
    command = [str(UV), "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--python-version", "3.11", "-"]
    return subprocess.run(command, input="\n".join(packages), stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    for source, target in LOCKED.items():
        packages = pinned((REPOSITORY / source).read_text(encoding="utf-8"))
        (REPOSITORY / target).write_text(HEAD.format(source=source) + locked(packages), encoding="utf-8")
        print(f"{target}: {len(packages)} packages")


if __name__ == "__main__":
    main()
