"""The data card: what a person wants to know of a dataset before a GPU is paid for it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline_steps import packing
from pipeline_steps.contract import costs
from pipeline_steps.contract.chat_format import ChatFormat
from pipeline_steps.contract.dataset import SPLITS
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.data import duplicates, fingerprints, lengths, parts
from pipeline_steps.data.duplicates import Decision
from pipeline_steps.data.engine import Written
from pipeline_steps.data.findings import Findings
from pipeline_steps.data.sources import SourceFile
from pipeline_steps.text_encoder import TextEncoder

if TYPE_CHECKING:
    from pipeline_steps.prepare_data import PrepareJob


def figures(
    job: "PrepareJob",
    found: Sequence[SourceFile],
    template: PromptTemplate | None,
    chat: ChatFormat | None,
    findings: Findings,
    decision: Decision,
    written: Written,
    encoder: TextEncoder | None,
    model_parameters: float | None,
    last: costs.LastRun | None,
) -> dict[str, Any]:
    """The card without what publishing adds (digests and URIs)."""
    tokens = _tokens(job, written, encoder) if encoder else None
    return {
        "tuning_mode": job.tuning_mode,
        "counts": decision.counts,
        "rows": {
            "read": findings.good + findings.bad,
            "kept": sum(decision.counts.values()),
            "quarantined": findings.bad,
            "exact_duplicates": len(decision.exact),
            "near_duplicates": len(decision.near),
            "left_out": decision.left_out,
        },
        "files": [{"name": file.name, "bytes": file.size, "rows": _rows_of(file, findings)} for file in found],
        "split": {
            "validation_ratio": job.validation_split_ratio,
            "test_ratio": job.test_split_ratio,
            "seed": job.train_data_split_seed,
            "group": f"column {job.split_group_column!r}" if job.split_group_column else "prompt",
            "own_validation_folder": any(file.folder == "validation" for file in found),
        },
        "quarantine": {"limit": job.max_quarantined_rows, "examples": _bad_examples(findings)},
        "duplicates": _duplicates(findings, decision, written.texts),
        "leaks": _leaks(findings, decision, written.texts, parts.ngram_modulus(found)),
        "tokens": tokens,
        "cost": _cost(job, tokens, model_parameters, last),
        "personal_data": {
            "policy": job.personal_data,
            "kinds": findings.personal_data,
            "examples": findings.personal_data_examples()[: duplicates.EXAMPLES],
        },
        "template": template.to_dict() if template else None,
        "chat_format": chat.told() if chat else None,
        "samples": {
            split: [sample for one in written.splits[split] for sample in one.samples][: parts.SAMPLES]
            for split in SPLITS
        },
    }


def _rows_of(file: SourceFile, findings: Findings) -> int:
    return sum(
        summary.rows + summary.bad
        for part, summary in zip(findings.parts, findings.summaries, strict=True)
        if part.file.name == file.name
    )


def _bad_examples(findings: Findings) -> list[str]:
    examples = []
    for row in findings.bad_rows():
        examples += [f"{row['file']}:{row['line']}: {problem}" for problem in row["problems"]]
        if len(examples) >= duplicates.EXAMPLES:
            break
    return examples[: duplicates.EXAMPLES]


def _tokens(job: "PrepareJob", written: Written, encoder: TextEncoder) -> dict[str, Any]:
    by_split = {split: lengths.total(written.splits[split]) for split in SPLITS}
    # A domain text goes on in the next sequence; of other rows the end would be lost.
    learned = by_split["train"] + by_split["validation"] if job.tuning_mode != "domain" else {}
    sequences, fill = packing.fill(list(by_split["train"].elements()), job.max_input_length)
    return {
        "tokenizer_digest": encoder.digest,
        "max_input_length": job.max_input_length,
        "histogram": lengths.histogram(by_split, job.max_input_length),
        "splits": {split: lengths.statistics(written.splits[split]) for split in SPLITS},
        "truncated": {
            **lengths.truncation(learned, job.max_input_length),
            "limit": job.max_truncated_share,
        },
        "packing": {"sequences": sequences, "fill": round(fill, 4)},
    }


def _cost(
    job: "PrepareJob", tokens: dict[str, Any] | None, model_parameters: float | None, last: costs.LastRun | None
) -> dict[str, Any] | None:
    if tokens is None or job.instance_type is None:
        return None
    return asdict(
        costs.estimate(
            tokens["splits"]["train"]["tokens"],
            job.epoch,
            job.instance_type,
            job.instance_count,
            model_parameters,
            full=job.peft_type == "None",
            tokens_per_second=job.tokens_per_second,
            usd_per_hour=job.usd_per_hour,
            last=last,
        )
    )


def _duplicates(findings: Findings, decision: Decision, texts: dict[int, str]) -> dict[str, Any]:
    def example(one: duplicates.Removed) -> dict[str, Any]:
        return {"removed": findings.place(one.row), "kept": findings.place(one.kept), "text": texts.get(one.row, "")}

    return {
        "similarity": duplicates.SIMILARITY,
        "exact": [example(one) for one in decision.exact[: duplicates.EXAMPLES]],
        "near": [
            {**example(one), "similarity": round(one.similarity, 2), "kept_text": texts.get(one.kept, "")}
            for one in decision.near[: duplicates.EXAMPLES]
        ],
    }


def _leaks(findings: Findings, decision: Decision, texts: dict[int, str], modulus: int) -> dict[str, Any]:
    return {
        "ngram_words": fingerprints.NGRAM_WORDS,
        "overlap": duplicates.OVERLAP,
        "sampled_share": 1 / modulus,
        "pairs": [
            {
                "held_out": leak.held_out,
                "seen_in": leak.seen_in,
                "rows": leak.rows,
                "overlapping_rows": leak.overlapping_rows,
                "examples": [
                    {
                        "held_out": findings.place(one.held_out),
                        "seen_in": findings.place(one.seen_in),
                        "shared_ngrams": one.shared_ngrams,
                        "ngrams": one.ngrams,
                        "text": texts.get(one.held_out, ""),
                    }
                    for one in leak.examples
                ],
            }
            for leak in decision.leaks
        ],
    }


def removed_rows(findings: Findings, decision: Decision) -> Iterator[dict[str, Any]]:
    """Every duplicate with the row that was kept in its place."""
    for kind, removed in (("exact", decision.exact), ("near", decision.near)):
        for one in removed:
            yield {
                "removed": findings.place(one.row),
                "kept": findings.place(one.kept),
                "why": f"{kind} duplicate",
                "similarity": round(one.similarity, 2),
            }
