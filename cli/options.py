"""What commands have in common: their options, how these complete in a shell, and how they ask and tell."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cli import executions
from cli.aws import Deployment, Needs
from cli.console import EXECUTION_FAILED, CommandError, console
from config.settings import TuningMode, environments, load


def _environments(incomplete: str) -> list[str]:
    """Names of config/, their serving places, and YAML files beside the user that begin so."""
    files = [str(path) for path in Path().glob(f"{incomplete}*.yaml")]
    whole, slash, _ = incomplete.partition("/")
    places = [f"{whole}/{place}" for place in load(whole).serving] if slash and whole in environments() else []
    return [name for name in [*environments(), *places, *files] if name.startswith(incomplete)]


def _modes(incomplete: str) -> list[str]:
    return [mode for mode in get_args(TuningMode) if mode.startswith(incomplete)]


Environment = Annotated[
    str,
    typer.Option(
        "--environment",
        "-e",
        help="A file of config/ without .yaml; 'local' is the local AWS that runs; ENVIRONMENT/PLACE one of its serving places.",
        autocompletion=_environments,
    ),
]
Mode = Annotated[str, typer.Option(help="instruction, domain or chat.", autocompletion=_modes)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def check_mode(mode: str) -> str:
    if mode not in get_args(TuningMode):
        raise CommandError(f"--mode is {mode!r}; allowed: {', '.join(get_args(TuningMode))}")
    return mode


def deployment_of(environment: str, as_json: bool = False, needs: Needs = "pipelines") -> Deployment:
    """The deployment of the environment; with `as_json` stdout belongs to the JSON alone."""
    console.stderr = as_json
    return Deployment.named(environment, needs)


def confirm(question: str, yes: bool) -> None:
    """Ask; raises CommandError unless the answer is yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question} Nobody can be asked here; add --yes. Nothing was changed")
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was changed")


def show_until_end(deployment: Deployment, execution: str) -> None:
    """Show an execution until it ends; raises CommandError unless it succeeds."""
    end(executions.follow(deployment, execution))


def end(view: executions.ExecutionView) -> None:
    """Raise CommandError, with the exit code of failed executions, unless this one has succeeded."""
    if view.status != "Succeeded":
        raise CommandError(f"the execution ended as {view.status}: {view.reason}", EXECUTION_FAILED)


def tell(as_json: bool, content: dict[str, Any]) -> None:
    """Print `content` as JSON, where that is asked for."""
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
