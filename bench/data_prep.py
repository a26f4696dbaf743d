"""Data preparation against its peers: JSON lines -> rendered, tokenized (and packed) rows of token ids.

    .venv-bench/bin/python -m bench.data_prep

Each case runs in a fresh process, on the same generated rows, with Mistral's tokenizer, and must give the same token
ids; else the benchmark ends with an error. Writes bench/results/data-prep.json; what it generates stays in
build/bench/data-prep/ and is used again.

The peers render and tokenize, the last one packs too; `ours` does the same with the product's parts. `ours-whole-step`
is PrepareData itself: it also looks for personal data, duplicates and leaks, divides the rows and writes their texts.

Timed is the work from the file of rows to token ids on disk, reading the rows and loading the tokenizer included,
imports not. `base_mb` is the memory before the work, `peak_mb` the most during it, over the process and its children.
"""

import argparse
import gc
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import generated_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CAPACITY = 2048  # tokens of a sequence; a longer row is cut
ROWS = (15_000, 120_000, 1_000_000)
PEERS_UP_TO = 120_000  # rows; --all-peers goes on
REPEATED_UP_TO, REPEATS = 15_000, 3
CHECKED_ROWS = 5_000  # whose texts are encoded by SentencePiece too
SAMPLE_SECONDS = 0.05
SAMPLING_SHARE = 0.05  # of the time at most, so that measuring does not slow down what is measured
RESULTS = Path(__file__).parent / "results" / "data-prep.json"
BUILD = Path(__file__).parents[1] / "build" / "bench" / "data-prep"
PACKAGES = (
    "tokenizers",
    "transformers",
    "datasets",
    "trl",
    "torch",
    "pyarrow",
    "numpy",
    "mistral-common",
    "sentencepiece",
)

# What a case left: batch by batch all token ids, the length of each row, and how many packed sequences they are in.
Batches = Iterator[tuple["NDArray[np.int32]", "NDArray[np.int32]", int]]


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Task:
    jsonl: Path
    tokenizer: Path
    output: Path  # an empty folder


# A case imports what it needs and returns its work, which returns a reader of what the work left.
Work = Callable[[Task], Callable[[], Batches]]


def datasets_case(*, batched: bool, processes: int | None = None, pack: bool = False) -> Work:
    """Hugging Face `datasets` as its documentation and TRL use it; rendered and tokenized in one pass."""
    import datasets
    from transformers import AutoTokenizer

    from pipeline_steps.contract.prompt_template import DEFAULT

    if pack:
        from trl.data_utils import pack_dataset

    def work(task: Task) -> Callable[[], Batches]:
        tokenizer = AutoTokenizer.from_pretrained(str(task.tokenizer))
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id

        def ids(texts: Any) -> Any:
            encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            return encoded["input_ids"]

        def by_row(row: dict[str, str]) -> dict[str, list[int]]:
            prompt, completion = ids(DEFAULT.render_prompt(row)), ids(DEFAULT.render_completion(row))
            return {"input_ids": [first, *prompt, *completion, last][:CAPACITY]}

        def by_batch(columns: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            prompts = ids([DEFAULT.render_prompt(row) for row in rows])
            completions = ids([DEFAULT.render_completion(row) for row in rows])
            pairs = zip(prompts, completions, strict=True)
            return {"input_ids": [[first, *prompt, *completion, last][:CAPACITY] for prompt, completion in pairs]}

        rows = datasets.load_dataset(
            "json", data_files=str(task.jsonl), split="train", cache_dir=str(task.output / "cache")
        )
        encode = by_batch if batched else by_row
        encoded = rows.map(encode, batched=batched, num_proc=processes, remove_columns=rows.column_names)
        left = pack_dataset(encoded, CAPACITY, "bfd") if pack else encoded
        return lambda: dataset_batches(left)

    return work


def dataset_batches(left: Any) -> Batches:
    """Rows of a dataset; packed ones by their `seq_lengths`."""
    import numpy as np
    import pyarrow.compute as pc

    packed = "seq_lengths" in left.column_names
    for batch in left.with_format("arrow").iter(batch_size=1000):
        ids = batch["input_ids"].combine_chunks()
        lengths = pc.list_flatten(batch["seq_lengths"]) if packed else pc.list_value_length(ids)
        yield (
            ids.flatten().to_numpy(zero_copy_only=False).astype(np.int32),
            lengths.to_numpy().astype(np.int32),
            len(batch) if packed else 0,
        )


def our_case(*, whole_step: bool) -> Work:
    from bench import our_preparation

    prepare = our_preparation.encode_and_pack
    if whole_step:
        from bench import our_whole_step

        prepare = our_whole_step.whole_step

    def work(task: Task) -> Callable[[], Batches]:
        prepare(task.jsonl, task.tokenizer, task.output, CAPACITY)
        return lambda: our_preparation.read(task.output, CAPACITY)

    return work


CASES: dict[str, Callable[[], Work]] = {
    "datasets-map-by-row": lambda: datasets_case(batched=False),
    "datasets-batched": lambda: datasets_case(batched=True),
    "datasets-batched-num-proc-2": lambda: datasets_case(batched=True, processes=2),
    "datasets-batched-trl-pack": lambda: datasets_case(batched=True, pack=True),
    "ours": lambda: our_case(whole_step=False),
    "ours-whole-step": lambda: our_case(whole_step=True),
}
OURS = [case for case in CASES if case.startswith("ours")]


# ---------------------------------------------------------------- the same rows, whoever made them


@dataclass(frozen=True)
class Left:
    """What rows of token ids are, whatever their order: the same digest, the same rows."""

    rows: int
    tokens: int
    sequences: int
    ids_digest: str  # the sum of 64-bit hashes of each row's ids


def summary(batches: Batches) -> Left:
    rows = tokens = sequences = digest = 0
    for ids, lengths, packed in batches:
        content = ids.astype("<i4").tobytes()
        position = 0
        for length in lengths.tolist():
            row = content[position * 4 : (position + length) * 4]
            digest += struct.unpack("<Q", hashlib.blake2b(row, digest_size=8).digest())[0]
            position += length
        if position != len(ids):
            raise ValueError(f"rows of {position} tokens in a batch of {len(ids)}")
        rows, tokens, sequences = rows + len(lengths), tokens + len(ids), sequences + packed
    return Left(rows, tokens, sequences, f"{digest % 2**64:016x}")


@dataclass(frozen=True)
class Expected:
    """What every case must give for a file of rows; and how many different words, split at spaces, the file has."""

    rows: int
    tokens: int
    ids_digest: str
    words: int
    distinct_words: int


def expected(jsonl: Path, tokenizer_folder: Path) -> Expected:
    """By the tokenizers library alone, one text after the other; kept beside the file."""
    import numpy as np
    from tokenizers import Tokenizer

    from pipeline_steps.contract.prompt_template import DEFAULT

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    first, last = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    words = 0
    distinct: set[int] = set()  # of hashes: a few million words in little memory

    def batches() -> Batches:
        nonlocal words
        with jsonl.open(encoding="utf-8") as lines:
            while block := [json.loads(line) for line in islice(lines, 1000)]:
                for row in block:
                    split = " ".join(row.values()).split()
                    words += len(split)
                    distinct.update(map(hash, split))
                texts = [text for row in block for text in (DEFAULT.render_prompt(row), DEFAULT.render_completion(row))]
                encoded = [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
                pairs = zip(encoded[::2], encoded[1::2], strict=True)
                ids = [[first, *prompt, *completion, last][:CAPACITY] for prompt, completion in pairs]
                yield np.concatenate([np.array(row, np.int32) for row in ids]), np.array([len(row) for row in ids]), 0

    found = summary(batches())
    return Expected(found.rows, found.tokens, found.ids_digest, words, len(distinct))


# ---------------------------------------------------------------- one measurement


@dataclass(frozen=True)
class Measurement:
    seconds: float
    base_mb: float
    peak_mb: float
    left: Left


def measure(case: str, task: Task) -> Measurement:
    """The case in a process of its own, which says when it is ready, when it is done, and then what it left."""
    shutil.rmtree(task.output, ignore_errors=True)
    task.output.mkdir(parents=True)
    os.sync()  # so that nobody waits for what another wrote
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=in_child, args=(case, task, theirs))
    process.start()
    theirs.close()
    assert process.pid
    try:
        receive(ours)  # imported
        base = peak = memory_mb(process.pid)
        ours.send("go")
        pause = SAMPLE_SECONDS
        while not ours.poll(pause):
            started = time.perf_counter()
            peak = max(peak, memory_mb(process.pid))
            took = time.perf_counter() - started
            pause = max(SAMPLE_SECONDS - took, took / SAMPLING_SHARE)
        seconds = receive(ours)
        left = receive(ours)
    finally:
        process.join(timeout=10)
        process.kill()
        shutil.rmtree(task.output, ignore_errors=True)
    return Measurement(seconds, base, peak, left)


def receive(connection: Connection) -> Any:
    try:
        kind, value = connection.recv()
    except EOFError:
        raise SystemExit("the case's process ended without a word (out of memory?)") from None
    if kind == "failed":
        raise SystemExit(value)
    return value


def in_child(case: str, task: Task, parent: Connection) -> None:
    try:
        work = CASES[case]()
        gc.collect()
        parent.send(("ready", None))
        parent.recv()
        started = time.perf_counter()
        read = work(task)
        parent.send(("seconds", time.perf_counter() - started))
        parent.send(("left", summary(read())))
    except BaseException:
        parent.send(("failed", traceback.format_exc()))


def memory_mb(pid: int) -> float:
    """Memory of a process and its children that is theirs: anonymous and shared memory, no mapped files.

    Of one process that is RssAnon + RssShmem, which the kernel keeps count of. Of several it is the sum of Pss_Anon +
    Pss_Shmem, so that what they share after a fork counts once; the kernel walks all pages for that.
    """
    processes = family(pid)
    if len(processes) == 1:
        return kilobytes(processes[0], "status", ("RssAnon:", "RssShmem:")) / 1024
    return sum(kilobytes(one, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) for one in processes) / 1024


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for one in found:
        for thread in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, thread.read_text().split())
            except OSError:  # the thread ended
                continue
    return found


def kilobytes(pid: int, file: str, names: tuple[str, ...]) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:  # the process ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


# ---------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Result:
    """A case on so many rows, and the run that measured it: results of several runs may lie in one file."""

    case: str
    rows: int
    rows_per_s: int
    peak_mb: int
    fill: float | None  # real tokens / tokens of the sequences; None where nothing is packed
    seconds: float  # the median of `seconds_of_each`
    tokens_per_s: int
    base_mb: int
    seconds_of_each: list[float]
    ids_digest: str  # the same for every case of so many rows
    command: str
    date: str


def result(case: str, wanted: Expected, measured: list[Measurement]) -> Result:
    seconds = statistics.median(one.seconds for one in measured)
    sequences = measured[0].left.sequences
    return Result(
        case=case,
        rows=wanted.rows,
        rows_per_s=round(wanted.rows / seconds),
        peak_mb=round(max(one.peak_mb for one in measured)),
        fill=round(wanted.tokens / (sequences * CAPACITY), 4) if sequences else None,
        seconds=round(seconds, 2),
        tokens_per_s=round(wanted.tokens / seconds),
        base_mb=round(statistics.median(one.base_mb for one in measured)),
        seconds_of_each=[round(one.seconds, 2) for one in measured],
        ids_digest=wanted.ids_digest,
        command=command(),
        date=today(),
    )


def command() -> str:
    return " ".join(["python -m bench.data_prep", *sys.argv[1:]])


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def prepare_tokenizer(jsonl: Path) -> Path:
    """The folder of Mistral's tokenizer, checked against SentencePiece on the texts of the first rows."""
    from bench import mistral_tokenizer

    folder = BUILD / "tokenizer"
    mistral_tokenizer.write(folder)
    with jsonl.open(encoding="utf-8") as lines:
        texts = [text for line in islice(lines, CHECKED_ROWS) for text in json.loads(line).values()]
    mistral_tokenizer.check(folder, texts)
    print(f"tokenizer: the same ids as SentencePiece on {len(texts):,} texts", flush=True)
    return folder


def prepare_rows(rows: int) -> Path:
    path = BUILD / f"rows-{rows}-{generated_rows.digest()}.jsonl"
    if not path.exists():
        print(f"{rows:,} rows: generating {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        generated_rows.write(path, rows)
    return path


def prepare_expected(jsonl: Path, tokenizer: Path) -> Expected:
    """Kept beside the rows, under a name that has the tokenizer in it."""
    version = hashlib.sha256((tokenizer / "tokenizer.json").read_bytes()).hexdigest()[:12]
    path = jsonl.with_suffix(f".{version}.json")
    if not path.exists():
        print(f"{jsonl.name}: encoding all rows the plain way, to know what every case must give", flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # its memory goes with it
            wanted = pool.apply(expected, (jsonl, tokenizer))
        path.write_text(json.dumps(asdict(wanted)) + "\n", encoding="utf-8")
    return Expected(**json.loads(path.read_text(encoding="utf-8")))


def compare(jsonl: Path, tokenizer: Path, wanted: Expected, cases: Iterable[str], repeats: int) -> list[Result]:
    """All cases in turn, then all of them again: what else the machine does meets them alike."""
    measured: dict[str, list[Measurement]] = {case: [] for case in cases}
    for repeat in range(1, repeats + 1):
        for case, done in measured.items():
            print(f"{wanted.rows:,} rows, {case}, {repeat} of {repeats}: ", end="", flush=True)
            one = measure(case, Task(jsonl, tokenizer, BUILD / "work"))
            given = (one.left.rows, one.left.tokens, one.left.ids_digest)
            if given != (wanted.rows, wanted.tokens, wanted.ids_digest):
                raise SystemExit(f"{case} gave other token ids: {one.left}, expected {wanted}")
            print(f"{one.seconds:.2f} s, at most {one.peak_mb:.0f} MB, the same ids", flush=True)
            done.append(one)
    return [result(case, wanted, done) for case, done in measured.items()]


def device() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].partition(":")[2].strip() if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.1f} GB of memory"


def earlier_results(versions: dict[str, str]) -> list[Result]:
    """What RESULTS holds. Ends the program if it is of another machine or other versions."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, value in (("device", device()), ("versions", versions)):
        if content[name] != value:
            raise SystemExit(f"--keep: {RESULTS} is of another {name}: {content[name]}, here {value}")
    return [Result(**one) for one in content["rows"]]


def show(results: list[Result], left_out: list[tuple[int, str]]) -> None:
    header = ["case", "rows", "seconds", "rows/s", "tokens/s", "peak MB", "base MB", "fill", "runs"]
    lines = [
        [
            one.case,
            f"{one.rows:,}",
            f"{one.seconds:.2f}",
            f"{one.rows_per_s:,}",
            f"{one.tokens_per_s:,}",
            f"{one.peak_mb:,}",
            f"{one.base_mb:,}",
            "-" if one.fill is None else f"{one.fill:.2%}",
            str(len(one.seconds_of_each)),
        ]
        for one in results
    ]
    lines += [[case, f"{rows:,}", "not run: --all-peers", *[""] * 6] for rows, case in left_out]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
        for line in [header, *lines]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.data_prep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=int, action="append", help=f"may be repeated; default: {' '.join(map(str, ROWS))}"
    )
    parser.add_argument(
        "--all-peers", action="store_true", help=f"peers on more than {PEERS_UP_TO:,} rows too: slow, and gigabytes"
    )
    parser.add_argument(
        "--repeats", type=int, help=f"runs of each case; default: {REPEATS} up to {REPEATED_UP_TO:,} rows, else 1"
    )
    parser.add_argument("--case", choices=list(CASES), action="append", help="may be repeated; default: all")
    parser.add_argument(
        "--keep", action="store_true", help="results of other cases and sizes stay in the file, with their dates"
    )
    arguments = parser.parse_args()

    # For this process's children: nothing is asked of the network, and the terminal is ours.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(BUILD / "huggingface"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "DATASETS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
    }
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    earlier = earlier_results(versions) if arguments.keep and RESULTS.exists() else []
    results: list[Result] = []
    left_out: list[tuple[int, str]] = []
    for rows in sorted(set(arguments.rows or ROWS)):
        jsonl = prepare_rows(rows)
        tokenizer = prepare_tokenizer(jsonl)
        wanted = prepare_expected(jsonl, tokenizer)
        cases = arguments.case or list(CASES)
        if rows > PEERS_UP_TO and not arguments.all_peers:
            left_out += [(rows, case) for case in cases if case not in OURS]
            cases = [case for case in cases if case in OURS]
        repeats = arguments.repeats or (REPEATS if rows <= REPEATED_UP_TO else 1)
        results += compare(jsonl, tokenizer, wanted, cases, repeats)

    measured = {(one.case, one.rows) for one in results}
    results += [one for one in earlier if (one.case, one.rows) not in measured]
    order = list(CASES)
    results.sort(key=lambda one: (one.rows, order.index(one.case)))
    content = {
        "command": command(),
        "date": today(),
        "device": device(),
        "versions": versions,
        "tokens_of_a_sequence": CAPACITY,
        "rows": [asdict(one) for one in results],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    show(results, left_out)


if __name__ == "__main__":
    main()
