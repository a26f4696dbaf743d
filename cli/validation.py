"""`finetune validate-data`: the PrepareData step itself over a folder on this machine; nothing is uploaded."""

import json
import subprocess
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from rich.table import Table

from cli import base_models
from cli.aws import REPOSITORY, STEPS_PYTHON, Deployment
from cli.console import CommandError, console, escape
from config import jumpstart_lock
from config.settings import load
from pipeline_steps.contract import files


def validate(environment: str, folder: Path, tuning_mode: str, tokenizer: Path | None, report: Path) -> bool:
    """Check `folder` with the limits of `environment`; leaves the data card in `report`.

    Returns whether all was checked that the pipeline checks: without a tokenizer, lengths are not. Raises CommandError
    where the pipeline would refuse the data; every problem has been printed then, and the bad rows lie in `report` with
    their reasons.
    """
    for what, path in (("data folder", folder), ("tokenizer folder", tokenizer)):
        if path is not None and not path.is_dir():
            raise CommandError(f"{path} is not a folder; name the {what}")
    if not STEPS_PYTHON.exists():
        raise CommandError(f"{STEPS_PYTHON} is missing: it runs the step; run 'make setup'")
    settings = load(environment)
    training = settings.training
    why_no_tokenizer = ""
    if tokenizer is None:
        try:
            tokenizer = base_models.tokenizer_folder(settings, lambda: Deployment.named(environment))
        except (CommandError, ClientError, BotoCoreError) as error:
            why_no_tokenizer = str(error).replace("\n", "; ")
    try:
        flags = jumpstart_lock.preparation_flags(settings)
        if settings.backend == "jumpstart":
            chosen = jumpstart_lock.training_of(settings)
            instance_type, max_tokens, peft_type = chosen.instance_type, chosen.max_input_length, "lora"
            epoch = chosen.values.get("epoch", "1")
        else:
            instance_type, max_tokens, peft_type = training.instance_type, training.max_input_length, training.peft_type
            epoch = str(training.epoch)
    except jumpstart_lock.LockError as error:
        raise CommandError(str(error)) from None
    command = [
        str(STEPS_PYTHON), "-m", "pipeline_steps", "prepare-data",
        "--raw", str(folder.resolve()),
        "--output", str(report.resolve()),
        "--tuning_mode", tuning_mode,
        *settings.dataset.flags(),
        *flags,
        "--instance_type", instance_type,
        "--instance_count", str(training.instance_count),
        "--peft_type", peft_type,
        "--epoch", epoch,
        *(["--tokenizer", str(tokenizer.resolve())] if tokenizer else []),
    ]  # fmt: skip
    finished = subprocess.run(command, cwd=REPOSITORY, check=False)
    if finished.returncode:
        raise CommandError(
            f"{folder} is refused, for the reasons above; the pipeline would refuse it in the same words"
        )
    card = json.loads((report / files.DATA_CARD_FILE).read_text(encoding="utf-8"))
    _show(card)
    console.print(f"[bold]Data card[/] {report / files.DATA_CARD_PAGE}")
    if tokenizer is None:
        console.print(
            "[yellow]lengths, truncation and cost are not checked, without the base model's tokenizer:[/] "
            f"{escape(why_no_tokenizer)}"
        )
        console.print("Import the model once, or give a folder with its tokenizer: --tokenizer FOLDER, without any AWS")
    # Of a text for domain adaptation no row is too long: it is cut into pieces that fit.
    is_complete = tokenizer is not None or tuning_mode == "domain"
    if is_complete:
        console.print("[green]the data is accepted[/]")
    else:
        console.print(
            "[yellow]the data is accepted as far as it could be checked[/]; the pipeline would still refuse it if more "
            f"than {settings.dataset.max_truncated_share:.1%} of the rows are longer than {max_tokens} "
            "tokens (exit code 3)"
        )
    return is_complete


def _show(card: dict[str, Any]) -> None:
    rows = card["rows"]
    removed = {name.replace("_", " "): count for name, count in rows.items() if name not in ("read", "kept") and count}
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("split", "rows", "tokens", "median", "p95", "longest"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split, count in card["counts"].items():
        tokens = card["tokens"]["splits"][split] if card["tokens"] else {}
        table.add_row(
            split,
            f"{count:,}",
            *(f"{tokens[key]:,}" if tokens else "-" for key in ("tokens", "median", "p95", "longest")),
        )
    console.print(table)

    left_out = ", ".join(f"{count:,} {name}" for name, count in removed.items())
    console.print(f"{rows['read']:,} rows read, {rows['kept']:,} kept" + (f" ({left_out})" if left_out else ""))
    for leak in card["leaks"]["pairs"]:
        if leak["overlapping_rows"]:
            console.print(
                f"[yellow]leak:[/] {leak['overlapping_rows']:,} of {leak['rows']:,} {leak['held_out']} rows have most of "
                f"their words in {leak['seen_in']} rows too"
            )
    for kind, counts in card["personal_data"]["kinds"].items():
        console.print(
            f"[yellow]{escape(kind)}:[/] {counts['findings']:,} in {counts['rows']:,} rows ({card['personal_data']['policy']})"
        )
    if card["tokens"] and card["tokens"]["truncated"]["rows"]:
        truncated = card["tokens"]["truncated"]
        console.print(f"[yellow]truncation:[/] {truncated['rows']:,} rows ({truncated['share']:.1%}) lose their ends")
    if card["cost"] and card["cost"]["hours_per_epoch"] is not None:
        cost = card["cost"]
        usd = f" and costs about {cost['usd_per_epoch']:,.2f} USD" if cost["usd_per_epoch"] is not None else ""
        hours = cost["hours_per_epoch"]
        time = (
            f"about {hours:,.1f} h"
            if hours >= 1
            else f"about {hours * 60:.0f} min"
            if hours >= 1 / 60
            else "less than a minute"
        )
        console.print(f"an epoch takes {time}{usd} on {cost['instance_count']} x {cost['instance_type']}")
