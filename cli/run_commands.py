"""The commands for executions, from before the start to long after it: docs/operations.md."""

from pathlib import Path
from typing import Annotated

import typer

from cli import cleanup, costs, doctor, executions, history, history_page, interventions, job_logs, parameters
from cli.aws import Deployment
from cli.console import FAILED, CommandError, console, escape, plain
from cli.options import Environment, Json, Yes, confirm, deployment_of, end, show_until_end, tell

Execution = Annotated[
    str | None, typer.Argument(help="ARN or id of an execution, started by anyone.", show_default="the newest")
]
Follow = Annotated[bool, typer.Option(help="Show the steps until the execution ends.")]
Price = Annotated[
    list[str] | None, typer.Option("--price", help="TYPE=USD an hour of an instance, over the table's; repeat it.")
]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `finetune`."""
    for name, command in (
        ("start", start_command),
        ("status", status_command),
        ("logs", logs_command),
        ("history", history_command),
        ("cost", cost_command),
        ("retry", retry_command),
        ("stop", stop_command),
        ("cleanup", cleanup_command),
        ("doctor", doctor_command),
    ):
        app.command(name)(command)


def start_command(
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="Name=Value; repeat it. Defaults: the configuration.")
    ] = None,
    price: Price = None,
    follow: Follow = False,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Start the fine-tuning pipeline by hand, after a check of its parameters and an estimate of its cost."""
    given = parameters.parse(parameter or [])
    deployment = deployment_of(environment, as_json)
    values = parameters.checked(deployment, given)
    prices = costs.Prices.of(deployment.settings, price or [])
    with console.status("estimating"):
        estimated = costs.Estimator(deployment, prices).estimate(values)
    console.print("[bold]Estimated cost of the instances[/]")
    console.print(costs.render(estimated, prices.notes(estimated)))
    arn = executions.start(deployment, given, description=costs.describe(estimated))
    console.print(arn)
    if follow:
        show_until_end(deployment, arn)
    tell(as_json, {"execution": arn, "estimate": [one.to_dict() for one in estimated]})


def status_command(
    execution: Execution = None, follow: Follow = False, as_json: Json = False, environment: Environment = "dev"
) -> None:
    """Show the steps of an execution, their state, time and reason."""
    deployment = deployment_of(environment, as_json, "either")
    arn = _chosen(deployment, execution)
    console.print(arn)
    if follow:
        view = executions.follow(deployment, arn)
        tell(as_json, view.to_dict())
        return end(view)
    view = executions.describe(deployment, arn)
    console.print(executions.render(view))
    console.print(f"{view.status} {escape(view.reason)}".rstrip())
    tell(as_json, view.to_dict())


def logs_command(
    step: Annotated[str, typer.Argument(help="Name of a step, such as FineTune.")],
    execution: Execution = None,
    follow: Annotated[bool, typer.Option(help="Go on until the step's job has ended.")] = False,
    environment: Environment = "dev",
) -> None:
    """Print what a step's job wrote."""
    deployment = deployment_of(environment, needs="either")
    for line in job_logs.of_step(deployment, _chosen(deployment, execution), step, follow):
        print(plain(line), flush=follow)


def history_command(
    last: Annotated[int, typer.Option(min=1, help="How many executions.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Also write them, with charts, to this HTML file.")] = None,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Show the runs with their parameters, metrics and verdicts, and how the metrics went."""
    deployment = deployment_of(environment, as_json)
    with console.status("reading"):
        found = history.runs(deployment, last)
    if not found:
        console.print(f"{deployment.settings.finetune_pipeline_name} has not run yet; start it with 'finetune start'")
    else:
        console.print(history.render(found))
    if html:
        html.write_text(history_page.render(deployment.settings.name, found), encoding="utf-8")
        console.print(f"[bold]Page[/] {html}")
    tell(as_json, {"runs": [run.to_dict() for run in found]})


def cost_command(
    execution: Execution = None, price: Price = None, as_json: Json = False, environment: Environment = "dev"
) -> None:
    """Show what an execution's jobs cost, step by step, beside the estimate of its start."""
    deployment = deployment_of(environment, as_json)
    arn = _chosen(deployment, execution)
    prices = costs.Prices.of(deployment.settings, price or [])
    view = executions.describe(deployment, arn)
    counted = costs.actual(deployment, view.steps, prices)
    estimated = costs.estimated(deployment, view, prices)
    console.print(arn)
    if counted:
        console.print(costs.render(counted, prices.notes(counted), estimated))
    else:
        console.print("none of its steps has had a job yet")
    usd, unknown = costs.total(counted)
    tell(
        as_json,
        {
            "execution": arn,
            "steps": [one.to_dict() for one in counted],
            "usd": usd,
            "without": unknown,
            "estimate": [one.to_dict() for one in estimated.values()],
        },
    )


def retry_command(
    execution: Execution = None, follow: Follow = False, as_json: Json = False, environment: Environment = "dev"
) -> None:
    """Go on with an execution that failed or was stopped: what succeeded is not run again."""
    deployment = deployment_of(environment, as_json, "either")
    arn = _chosen(deployment, execution)
    again = interventions.retry(deployment, arn)
    console.print(f"{arn} goes on with {', '.join(again) or 'the steps that have not run yet'}")
    if follow:
        show_until_end(deployment, arn)
    tell(as_json, {"execution": arn, "again": again})


def stop_command(
    execution: Annotated[
        str | None,
        typer.Argument(help="ARN or id of an execution, started by anyone.", show_default="the one that runs"),
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Stop an execution, and wait until none of its jobs runs any more."""
    deployment = deployment_of(environment, as_json, "either")
    arn = executions.arn_of(deployment, execution) if execution else executions.the_running(deployment)
    confirm(f"stop {arn}?", yes)
    with console.status("stopping; a job has two minutes to save what it has"):
        jobs = interventions.stop(deployment, arn)
    console.print(f"stopped; of its {len(jobs)} jobs none runs any more. `finetune retry` goes on where it stopped")
    tell(as_json, {"execution": arn, "jobs": jobs})


def cleanup_command(
    keep_last: Annotated[int, typer.Option(min=0, help="How many of the newest runs stay.")] = 10,
    older_than_days: Annotated[
        int, typer.Option(min=0, help="Only runs that have not changed for so long go.")
    ] = cleanup.CACHE_DAYS,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete; without it only what would go is shown.")] = False,
    as_json: Json = False,
    environment: Environment = "dev",
) -> None:
    """Show which old runs can go and how large they are, and delete them with --yes.

    What is registered, serves, runs, or was reused by a run that stays, always stays.
    """
    deployment = deployment_of(environment, as_json)
    with console.status("looking at the runs"):
        runs = cleanup.plan(deployment, keep_last, older_than_days)
    gone = [run for run in runs if not run.kept_because]
    console.print(cleanup.render(runs))
    if older_than_days < cleanup.CACHE_DAYS and gone:
        console.print(
            f"[yellow]--older-than-days is {older_than_days}:[/] the step cache may hand out results for {cleanup.CACHE_DAYS} days; "
            "an execution of the same data and parameters would look for the files of a deleted run, and fail"
        )
    deleted = cleanup.delete(deployment, gone) if yes else 0
    if gone:
        console.print(f"{deleted:,} files were deleted" if yes else "nothing was deleted; add --yes to do it")
    tell(as_json, {"runs": [run.to_dict() for run in runs], "deleted_files": deleted})


def doctor_command(as_json: Json = False, environment: Environment = "dev") -> None:
    """Check what a deployment and a run need, and say how to mend what is missing. Exit code 1 if there is an error."""
    console.stderr = as_json
    found = doctor.examine(environment, lambda finding: console.print(doctor.line(finding)))
    errors = [finding for finding in found if finding.state == "error"]
    tell(as_json, {"findings": [finding.to_dict() for finding in found], "errors": len(errors)})
    if errors:
        raise typer.Exit(FAILED)


def _chosen(deployment: Deployment, execution: str | None) -> str:
    """ARN of the execution that is named, or of the newest. Raises CommandError without any."""
    arn = executions.arn_of(deployment, execution) if execution else executions.newest(deployment)
    if arn is None:
        raise CommandError(
            f"{deployment.settings.main_pipeline_name} has not run yet; 'finetune start' starts a run, an approval a release"
        )
    return arn
