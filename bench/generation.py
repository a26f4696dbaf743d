"""Generation for evaluation: ours against what transformers offers, in one run.

    python3 -m bench.generation            # --help lists the cases

With a GPU: random weights of the true Mistral-7B-v0.1 shape, prompts of random ids (lognormal lengths, median 180), and
answers whose lengths are given (lognormal, median 48, at most 256), since random weights never end. Without one:
SmolLM2-135M-Instruct on examples/instruction, greedy, at most 64 tokens, ended by the model. Only tokens of answers
count, not what a padded batch goes on to write. Each case runs in a fresh process after a warm-up (two prompts; for ours
on a GPU all of them, so that the CUDA graphs are there, as for the second model of an evaluation). Writes bench/results/evaluation.json.

The peers: `one-by-one` is model.generate on each prompt; `padded` is model.generate on batches of 64 (CPU: 12), sorted by
length; `transformers-continuous` is transformers' own continuous batching.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
REPOSITORY = Path(__file__).parents[1]
CASES = ("one-by-one", "padded", "transformers-continuous", "ours")
MARK = "result: "


@dataclass(frozen=True)
class Work:
    """`limits`: tokens that each answer may have, or has where `end` is None. `end`: the end-of-sequence token."""

    model: Any
    prompts: list[list[int]]
    limits: list[int]
    end: int | None

    def first(self, number: int) -> "Work":
        return Work(self.model, self.prompts[:number], self.limits[:number], self.end)


def drawn(number: int, median: float, mean: float, low: int, high: int, seed: int) -> list[int]:
    values = np.random.default_rng(seed).lognormal(math.log(median), math.sqrt(2 * math.log(mean / median)), number)
    return [int(value) for value in np.clip(np.round(values), low, high)]


def on_gpu(number: int) -> Work:
    import torch
    from transformers import AutoModelForCausalLM

    from bench.gpu_finetune import configuration

    torch.manual_seed(0)
    config = configuration()
    config.use_cache = True
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    random = np.random.default_rng(1)
    prompts = [
        random.integers(3, config.vocab_size, length).tolist() for length in drawn(number, 180, 260, 16, 1024, 2)
    ]
    return Work(model, prompts, drawn(number, 48, 64, 4, 256, 3), None)


def on_cpu(number: int, gguf: Path | None) -> Work:
    from bench import small_model
    from pipeline_steps.models import load_model, load_tokenizer

    folder = small_model.folder(gguf)
    tokenizer = load_tokenizer(folder)
    lines = (REPOSITORY / "examples" / "instruction" / "train" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:number]]
    texts = [f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['context']}\n\n" for row in rows]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    return Work(load_model(folder).eval(), prompts, [64] * number, tokenizer.eos_token_id)


# ---------------------------------------------------------------- cases: how many tokens of answers were made


def padded(work: Work, batch: int) -> int:
    import torch

    device, tokens = work.model.device, 0
    order = sorted(range(len(work.prompts)), key=lambda place: len(work.prompts[place]))
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            longest = max(len(work.prompts[place]) for place in places)
            ids = torch.zeros(len(places), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, place in enumerate(places):
                prompt = work.prompts[place]
                ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
            output = work.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(work.limits[place] for place in places),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=work.end,
                pad_token_id=0,
            )[:, longest:].tolist()
            tokens += sum(_length(row, work, place) for row, place in zip(output, places, strict=True))
    return tokens


def _length(row: Sequence[int], work: Work, place: int) -> int:
    """Tokens of an answer, its end included."""
    if work.end is not None and work.end in row:
        return row.index(work.end) + 1
    return min(len(row), work.limits[place])


def transformers_continuous(work: Work) -> int:
    from transformers import GenerationConfig

    work.model.set_attn_implementation("paged|sdpa")
    end = -1 if work.end is None else work.end
    config = GenerationConfig(max_new_tokens=max(work.limits), do_sample=False, eos_token_id=end, pad_token_id=0)
    manager = work.model.init_continuous_batching(generation_config=config)
    manager.start()
    try:
        for place, prompt in enumerate(work.prompts):
            manager.add_request(prompt, request_id=str(place), max_new_tokens=work.limits[place])
        tokens = 0
        for _ in work.prompts:
            while True:
                result = manager.get_result(timeout=60)
                if result is None:
                    raise RuntimeError("transformers' continuous batching gave no answer for 60 s")
                if result.is_finished():
                    break
            tokens += len(result.generated_tokens)
    finally:
        manager.stop(block=True)
    return tokens


def ours(work: Work) -> int:
    from pipeline_steps.generation import Generator

    generator = getattr(work.model, "benchmark_generator", None) or Generator(work.model)
    work.model.benchmark_generator = generator  # so that the warm-up's CUDA graphs are there, as for a second model
    answers = generator.generate(work.prompts, work.limits, -1 if work.end is None else work.end)
    return sum(len(answer.ids) + answer.ended for answer in answers)


def measure(case: str, prompts: int, gguf: Path | None) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    work = on_gpu(prompts) if gpu else on_cpu(prompts, gguf)
    run = {
        "one-by-one": lambda work: padded(work, 1),
        "padded": lambda work: padded(work, 64 if gpu else 12),
        "transformers-continuous": transformers_continuous,
        "ours": ours,
    }[case]
    if case == "one-by-one":
        work = work.first(4)  # each as slow as the next

    def timed(work: Work) -> tuple[int, float]:
        started = time.perf_counter()
        tokens = run(work)
        if gpu:
            torch.cuda.synchronize()
        return tokens, time.perf_counter() - started

    # Ours captures its CUDA graphs with the first model and has them for the next: both runs are told.
    first = timed(work if case == "ours" and gpu else work.first(2))
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    tokens, seconds = timed(work)
    return {
        "case": case,
        "output_tokens_per_s": round(tokens / seconds, 1),
        "prompts": len(work.prompts),
        "output_tokens": tokens,
        "seconds": round(seconds, 2),
        **({"with_graphs_to_capture": round(first[0] / first[1], 1)} if case == "ours" and gpu else {}),
        **({"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)} if gpu else {}),
    }


def device() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "CPU",
    )
    return f"{cpu}, {torch.get_num_threads()} threads"


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        prog="bench.generation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=CASES, help="default: all of them")
    parser.add_argument("--prompts", type=int, default=512 if torch.cuda.is_available() else 48)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each case; the median is kept")
    parser.add_argument("--gguf", type=Path, help="the small model's file, if it cannot be downloaded")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(MARK + json.dumps(measure(options.measure, options.prompts, options.gguf)), flush=True)
        return

    found: list[dict[str, Any]] = []
    for case in options.case or CASES:
        command = [sys.executable, "-m", "bench.generation", "--measure", case, "--prompts", str(options.prompts)]
        command += ["--gguf", str(options.gguf)] if options.gguf else []
        runs = []
        for _ in range(options.repeats):
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in finished.stdout.splitlines() if line.startswith(MARK)]
            if finished.returncode or not lines:
                runs.append({"case": case, "output_tokens_per_s": None, "error": finished.stderr.strip()[-400:]})
                break
            runs.append(json.loads(lines[0].removeprefix(MARK)))
        runs.sort(key=lambda run: run["output_tokens_per_s"] or 0)
        found.append(runs[len(runs) // 2])
        print(f"{case:24} {found[-1]['output_tokens_per_s']} output tokens/s {found[-1].get('error', '')}", flush=True)
        write(found)  # each case's result is kept, whatever becomes of the next


def write(found: list[dict[str, Any]]) -> None:
    speeds = {row["case"]: row["output_tokens_per_s"] for row in found}
    for row in found:
        for peer in ("one-by-one", "padded"):
            if row["output_tokens_per_s"] and speeds.get(peer):
                row[f"times_{peer.replace('-', '_')}"] = round(row["output_tokens_per_s"] / speeds[peer], 2)
    # Rows of every device lie in one file: a run on the CPU does not undo the GPU's.
    here = {"device": device(), "date": datetime.date.today().isoformat()}
    here |= {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    kept = [row for row in _rows() if row["device"] != here["device"]]
    command = "python3 -m bench.generation " + " ".join(sys.argv[1:])
    result = {"command": command.strip(), **here, "rows": [*kept, *({**row, **here} for row in found)]}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _rows() -> list[Any]:
    return list(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]) if RESULTS.is_file() else []


if __name__ == "__main__":
    main()
