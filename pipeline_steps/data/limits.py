"""What stops a dataset before it is published: each function raises DataError with all that its limit is about."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.contract import costs, dataset
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.data import lengths
from pipeline_steps.data.duplicates import Decision
from pipeline_steps.data.findings import Findings

if TYPE_CHECKING:
    from pipeline_steps.prepare_data import PrepareJob

MINIMUM_ROWS = {"train": 2, "validation": 1, "test": 2}


def refuse_bad_rows(findings: Findings, allowed: int, mode: dataset.Mode) -> None:
    """Files that cannot be read, more bad rows than allowed, or no row at all."""
    problems = findings.file_problems
    if problems or findings.bad > allowed:
        problems += [
            f"{row['file']}:{row['line']}: {problem}" for row in findings.bad_rows() for problem in row["problems"]
        ]
        if allowed and findings.bad > allowed:
            problems.append(f"{findings.bad} rows are bad, at most {allowed} may be (max_quarantined_rows)")
    elif not findings.good:
        names = ", ".join(dict.fromkeys(part.file.name for part in findings.parts))
        text = "holds no text; write the text to learn from into it"
        problems = [f"{names}: {text if mode == 'domain' else 'no rows; write one JSON object a line'}"]
    if problems:
        raise DataError(problems)


def refuse_personal_data(findings: Findings) -> None:
    """Any personal data, under the policy `fail`."""
    kinds = findings.personal_data
    if kinds:
        counts = ", ".join(f"{kind}: {count['findings']} in {count['rows']} rows" for kind, count in kinds.items())
        raise DataError(
            [
                f"personal data was found ({counts}) and the policy is 'fail'; remove it, or set dataset.personal_data to "
                "redact or report",
                *(f"{one['row']}: {one['kind']} {one['masked']}" for one in findings.personal_data_examples()),
            ]
        )


def refuse_short_splits(decision: Decision, job: "PrepareJob") -> None:
    """Splits too small to train on or to hold out."""
    problems = [
        f"the {split} split has {decision.counts[split]} rows, at least {minimum} are needed; add rows or change the split "
        f"ratios (validation {job.validation_split_ratio}, test {job.test_split_ratio})"
        for split, minimum in MINIMUM_ROWS.items()
        if decision.counts[split] < minimum
    ]
    removed = len(decision.exact) + len(decision.near)
    if problems and removed:
        problems.append(f"{len(decision.exact)} exact and {len(decision.near)} near duplicates were left out before")
    if problems:
        raise DataError(problems)


def refuse_truncation(train_and_validation: Counter[int], max_input_length: int, allowed_share: float) -> None:
    """More rows longer than `max_input_length` than allowed: their ends would not be learned."""
    truncated = lengths.truncation(train_and_validation, max_input_length)
    if truncated["share"] > allowed_share:
        enough = lengths.quantile(train_and_validation, 1 - allowed_share)
        raise DataError(
            [
                f"{truncated['rows']} rows ({truncated['share']:.1%}) are longer than max_input_length ({max_input_length} "
                f"tokens; the longest has {max(train_and_validation)}) and would lose their ends; at most "
                f"{allowed_share:.1%} may (max_truncated_share): set training.max_input_length to {enough} or more, or "
                "shorten the rows"
            ]
        )


def refuse_what_no_gpu_holds(job: "PrepareJob", model_folder: Path, longest: int) -> str | None:
    """A training whose model or rows do not fit its GPUs, or that FineTune does not compute: told before it is paid for.

    longest: tokens of the longest row. Returns one line on what fits; None where the instance's GPUs are not known.
    """
    instance = costs.INSTANCES.get(job.instance_type or "")
    if instance is None:
        return None
    from transformers import AutoConfig

    from pipeline_steps.training import decoder, memory

    config = AutoConfig.from_pretrained(model_folder)
    method: Any = "full" if job.peft_type == "None" else "qlora" if job.bits == 4 else "lora"
    where = f"FineTune on {job.instance_count} x {job.instance_type}"
    try:
        decoder.check_supported(config)
        plan = memory.plan(
            config, method, job.lora_r, longest, instance.gpu_gib * 2**30, instance.gpus * job.instance_count,
            job.gradient_checkpointing,
        )  # fmt: skip
    except StepError as error:
        raise StepError(f"{where} would fail: {error}") from error
    return (
        f"{where} needs about {plan.bytes / 2**30:.1f} of {instance.gpu_gib:g} GiB of each GPU ({method}, streams of "
        f"{plan.tokens} tokens, computing again: {plan.recompute})"
    )
