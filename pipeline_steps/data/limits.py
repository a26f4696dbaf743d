"""What stops a dataset before it is published: each function raises DataError with all that its limit is about."""

from collections import Counter
from typing import TYPE_CHECKING

from pipeline_steps.contract import dataset
from pipeline_steps.contract.errors import DataError
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
