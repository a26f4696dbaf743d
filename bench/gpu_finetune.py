"""Fine-tuning Mistral 7B on one GPU: ours against what a user would pick, in one run.

    python3 -m bench.gpu_finetune            # on a machine with a GPU; --help lists the cases

Random weights of the true Mistral-7B-v0.1 shape, rows of random ids whose lengths are lognormal (median 180, mean about
259, at most 2048 tokens: instruction data). Each case runs in a fresh process. Only real tokens count, padding does
not. Writes bench/results/gpu-finetune.json.

The peers: `trl` is TRL's SFTTrainer with packing and variable-length attention, its own defaults otherwise;
`hf-trainer` is a notebook's Trainer with padded batches. Both train LoRA of rank 16 on all linear layers.

FLOPs of a token: LoRA 4 N + 6 n, full 6 N, and the attention's 12 L d c (c: positions attended); what is computed
again does not count. N: weights in products (7.110e9), n: the adapter's. MFU is over 989.4 TFLOP/s (H100 SXM, bf16).
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_steps import packing

RESULTS = Path(__file__).parent / "results" / "gpu-finetune.json"
PEAK_FLOPS = 989.4e12
WARM_UP, MEASURED = 4, 12  # optimizer steps
RANK, ALPHA = 16, 32
LONGEST = 2048  # tokens of a row
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "triton")


def configuration() -> Any:
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, max_position_embeddings=32768, sliding_window=4096, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip


# ---------------------------------------------------------------- data


def lengths(rows: int, seed: int = 0) -> list[int]:
    """Tokens of each row."""
    median, mean = 180.0, 260.0
    drawn = np.random.default_rng(seed).lognormal(math.log(median), math.sqrt(2 * math.log(mean / median)), rows)
    return [int(length) for length in np.clip(np.round(drawn), 16, LONGEST)]


def rows(number: int, vocabulary: int) -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(3, vocabulary, length).tolist() for length in lengths(number)]


def micro_batches(number: int, tokens: int, vocabulary: int) -> Iterator[list[list[int]]]:
    """`number` lists of rows that have together at most `tokens` tokens, and nearly that many."""
    drawn = rows(number * tokens // 250 + 50, vocabulary)
    plans = list(packing.plan([len(row) for row in drawn], tokens))
    # The last plans are what was left over: shorter than the others.
    return ([drawn[row] for row in plan] for plan in plans[:number])


# ---------------------------------------------------------------- measurement


class Meter:
    """Device time of optimizer steps, real tokens in them, and the most memory allocated."""

    def __init__(self, warm_up: int = WARM_UP) -> None:
        self.warm_up = warm_up  # steps that do not count
        self.events: list[Any] = []
        self.tokens: list[int] = []
        self.attended: list[float] = []
        self.losses: list[Any] = []

    def start(self, lengths_of_documents: list[int]) -> None:
        """Called when a step's work begins."""
        import torch

        if len(self.events) == self.warm_up:
            torch.cuda.reset_peak_memory_stats()
        self.events.append(torch.cuda.Event(enable_timing=True))
        self.events[-1].record()
        self.tokens.append(sum(lengths_of_documents))
        self.attended.append(sum(length * (length + 1) / 2 for length in lengths_of_documents))

    def result(self, adapter_weights: int, full: bool) -> dict[str, Any]:
        import torch

        end = torch.cuda.Event(enable_timing=True)
        end.record()
        torch.cuda.synchronize()
        events = [*self.events, end]
        seconds = [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)][self.warm_up :]
        tokens, attended = sum(self.tokens[self.warm_up :]), sum(self.attended[self.warm_up :])
        config = configuration()
        products = _products(config)
        flops = tokens * (6 * products if full else 4 * products + 6 * adapter_weights)
        flops += 12 * config.num_hidden_layers * config.hidden_size * attended
        losses = [float(loss) for loss in self.losses]
        return {
            "real_tokens_per_s": round(tokens / sum(seconds), 1),
            "mfu": round(flops / sum(seconds) / PEAK_FLOPS, 4),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "loss": round(sum(losses) / len(losses), 4),
            "first_loss": round(losses[0], 4),
            "step_ms": round(sorted(seconds)[len(seconds) // 2] * 1e3, 1),
            "spread": round((max(seconds) - min(seconds)) / sorted(seconds)[len(seconds) // 2], 3),
            "tokens_per_step": round(tokens / len(seconds)),
            "adapter_weights": adapter_weights,
        }


def _products(config: Any) -> int:
    from pipeline_steps.training.decoder import parameters_of

    sizes = parameters_of(config)
    return sizes["products"] + sizes["head"]


def kinds_of_kernels(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds on the device in one step, by kind of kernel."""
    import re

    import torch
    from torch.profiler import ProfilerActivity, profile

    kinds = {
        "attention": r"flash|fmha|attention",
        "products": r"gemm|nvjet|cutlass|cublas|splitk",
        "ours": r"_rms_norm|_rotate|_swiglu|_quantize|_dequantize",
        "between devices": r"nccl",
        "optimizer": r"adam|multi_tensor",
        "copies": r"memcpy|memset|copy",
    }
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    events = [event for event in recorded.events() if event.device_time_total]
    begin, end = min(event.time_range.start for event in events), max(event.time_range.end for event in events)
    for event in events:
        kind = next((kind for kind, names in kinds.items() if re.search(names, event.name, re.IGNORECASE)), "other")
        spent[kind] += event.device_time_total / 1e3
    spent["idle"] = (end - begin) / 1e3 - spent.total()
    return {kind: round(milliseconds, 1) for kind, milliseconds in spent.most_common()}


# ---------------------------------------------------------------- ours


def ours(
    method: str = "lora",
    tokens: int = 12_288,
    recompute: str = "nothing",
    fp8: bool = False,
    accumulate: int = 1,
    warm_up: int = WARM_UP,
    measured: int = MEASURED,
) -> dict[str, Any]:
    """The product's decoder, optimizer and devices, in steps of `accumulate` streams of `tokens` on each device."""
    import torch

    from pipeline_steps.contract.hyperparameters import Hyperparameters
    from pipeline_steps.encoding import Encoded
    from pipeline_steps.training import distributed
    from pipeline_steps.training.batches import Stream
    from pipeline_steps.training.decoder import Decoder
    from pipeline_steps.training.optimizer import optimizer_for
    from pipeline_steps.training.projections import Tuning, store

    world, config = distributed.World.join(), configuration()
    with torch.device("meta"):
        model = Decoder(config, Tuning(method, RANK, ALPHA, fp8=fp8))  # type: ignore[arg-type]
    if distributed.sharded(model, world):
        distributed.shard(model, world)
    model.to_empty(device=world.device)
    random = torch.Generator(world.device).manual_seed(0)

    def drawn(*shape: int) -> Any:
        return torch.empty(*shape, dtype=torch.bfloat16, device=world.device).normal_(0, 0.02, generator=random)

    with torch.no_grad():
        for weight in model.plain_weights().values():
            store(weight, torch.ones(weight.shape, device=world.device) if weight.dim() == 1 else drawn(*weight.shape))
        for _, projection in model.projections():
            projection.load({part: drawn(rows, projection.inputs) for part, rows in projection.parts.items()})
    model.reset_adapters(seed=0)
    model.recompute = recompute  # type: ignore[assignment]
    model.train()
    called, parameters = distributed.replicate(model, world), model.trained_parameters()
    settings = Hyperparameters(
        peft_type="None" if method == "full" else "lora", learning_rate=1e-5 if method == "full" else 1e-4
    )
    optimizer = optimizer_for(parameters, settings)
    torch.cuda.empty_cache()
    meter = Meter(warm_up)

    def step(batches: list[list[list[int]]]) -> None:
        meter.start([len(row) for batch in batches for row in batch])
        learned = learned_of_all[len(meter.losses)]
        total = torch.zeros((), device=world.device)
        for number, batch in enumerate(batches, start=1):
            stream = Stream.of([Encoded(row, row) for row in batch], world.device)
            with distributed.unless_last(called, number == len(batches)):
                loss = stream.loss(called) / learned
                (loss * world.size).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.losses.append(world.sum(total))

    # A step takes the same streams however many devices share them.
    together = accumulate * world.size
    number = (warm_up + measured + 1) * together
    batches = list(micro_batches(number, tokens, config.vocab_size))
    of_all = [batches[start : start + together] for start in range(0, number, together)]
    learned_of_all = [sum(len(row) - 1 for batch in one for row in batch) for one in of_all]
    steps = [one[world.rank :: world.size] for one in of_all]
    for one in steps[:-1]:
        step(one)
    adapter = 0 if method == "full" else sum(w.numel() for w in parameters)
    result = meter.result(adapter, full=method == "full") | {"gpus": world.size}
    result["real_tokens_per_s"] = round(result["real_tokens_per_s"] * world.size, 1)  # of all GPUs together
    result["device_ms"] = kinds_of_kernels(lambda: step(steps[-1]))
    world.leave()
    return result if world.first else {}


def without_kernels() -> dict[str, Any]:
    """Ours with plain torch in place of the Triton kernels."""
    from pipeline_steps.training import kernels

    kernels.fast = lambda tensor: False
    return ours(tokens=8192)


def without_pieces_of_logits() -> dict[str, Any]:
    """Ours with the logits of all tokens at one time."""
    from pipeline_steps.training import decoder

    decoder._LOGIT_BYTES = 2**40
    return ours(tokens=8192)


def peft_in_our_loop(compiled: bool = False) -> dict[str, Any]:
    """transformers and PEFT, autograd as it is, on our streams: what the written-out backward is worth.

    compiled: each layer by torch.compile, with lengths that may change.
    """
    import torch
    from peft import get_peft_model

    from pipeline_steps.training.attention import Documents

    config, device = configuration(), torch.device("cuda")
    attention_over_documents()
    model = get_peft_model(random_model("torch_varlen"), lora_of_peft(), autocast_adapter_dtype=False)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    meter, backbone = Meter(), model.get_base_model()
    if compiled:
        for layer in backbone.model.layers:
            layer.compile(dynamic=True)
    for batch in micro_batches(WARM_UP + MEASURED, 8192, config.vocab_size):
        meter.start([len(row) for row in batch])
        documents = Documents(tuple(len(row) for row in batch), device)
        ids = torch.tensor([token for row in batch for token in row], device=device)
        labels = torch.tensor([label for row in batch for label in (*row[1:], -100)], device=device)
        hidden = backbone.model(
            input_ids=ids[None], position_ids=documents.positions[None],
            cu_seq_lens_q=documents.borders, max_length_q=documents.longest,
        ).last_hidden_state[0]  # fmt: skip
        loss = torch.nn.functional.cross_entropy(backbone.lm_head(hidden).float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.losses.append(loss.detach())
    return meter.result(sum(weight.numel() for weight in parameters), full=False)


# ---------------------------------------------------------------- peers


def random_model(attention: str) -> Any:
    """transformers' Mistral with the same random weights' distribution, made on the GPU."""
    import torch
    from transformers import MistralForCausalLM

    config = configuration()
    config._attn_implementation = attention
    with torch.device("meta"):
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cuda")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1) if weight.dim() == 1 else weight.normal_(0, 0.02)
        rotary = model.model.rotary_emb  # its buffers were lost with the empty weights
        fresh = type(rotary)(config, device="cuda")
        for name, buffer in fresh.named_buffers():
            setattr(rotary, name, buffer)
        if hasattr(fresh, "original_inv_freq"):
            rotary.original_inv_freq = fresh.original_inv_freq
    return model


def attention_over_documents() -> None:
    """Let transformers call torch's variable-length FlashAttention, as its own package of that name is called."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def variable_length(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None,
        cu_seq_lens_q: Any = None, max_length_q: Any = None, **_: Any,
    ) -> Any:  # fmt: skip
        streams = (tensor.transpose(1, 2)[0].contiguous() for tensor in (query, key, value))
        longest = int(max_length_q)
        attended = varlen_attn(
            *streams, cu_seq_lens_q, cu_seq_lens_q, longest, longest, scale=scaling, window_size=(-1, 0)
        )
        return attended.unsqueeze(0), None

    ALL_ATTENTION_FUNCTIONS["torch_varlen"] = variable_length
    ALL_MASK_ATTENTION_FUNCTIONS["torch_varlen"] = lambda *_, **__: None


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {0: "<unk>", 1: "<s>", 2: "</s>"}
    vocabulary = {words.get(number, f"w{number}"): number for number in range(configuration().vocab_size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        eos_token="</s>", bos_token="<s>", unk_token="<unk>", pad_token="<unk>",
    )  # fmt: skip


def lora_of_peft(dropout: float = 0.0) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def timed(trainer: Any, meter: Meter) -> Any:
    """`trainer` that tells `meter` when a step begins, which documents are in it, and its loss."""
    import torch

    class Timed(trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            if "position_ids" in inputs:
                starts = torch.nonzero(inputs["position_ids"].flatten() == 0).flatten().tolist()
                borders = [*starts, inputs["position_ids"].numel()]
                documents = [after - before for before, after in pairwise(borders)]
            else:
                documents = inputs["attention_mask"].sum(-1).tolist()
            meter.start(documents)
            loss = super().training_step(model, inputs, *arguments, **options)
            meter.losses.append(loss.detach())
            return loss

    return Timed


def trainer_arguments(batch: int) -> dict[str, Any]:
    return {
        "output_dir": "build/bench/trainer",
        "per_device_train_batch_size": batch,
        "max_steps": WARM_UP + MEASURED,
        "bf16": True,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "report_to": [],
        "seed": 0,
        "disable_tqdm": True,
    }


def trl(dropout: float = 0.05) -> dict[str, Any]:
    """TRL as a user who read its speed guide would run it: packed, with variable-length attention."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    attention_over_documents()
    meter, batch = Meter(), 4
    needed = batch * LONGEST * (WARM_UP + MEASURED + 2)
    data = Dataset.from_dict({"input_ids": rows(needed // 250 + 50, configuration().vocab_size)})
    arguments = SFTConfig(**trainer_arguments(batch), max_length=LONGEST, packing=True, padding_free=True)
    trainer = timed(SFTTrainer, meter)(
        model=random_model("torch_varlen"), args=arguments, train_dataset=data, processing_class=tokenizer(),
        peft_config=lora_of_peft(dropout),
    )  # fmt: skip
    trainer.train()
    return meter.result(sum(w.numel() for w in trainer.model.parameters() if w.requires_grad), full=False)


def hf_trainer() -> dict[str, Any]:
    """transformers' Trainer as a notebook runs it: rows padded to the longest of four, checkpointing, sdpa."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    meter, batch = Meter(), 4
    model = get_peft_model(random_model("sdpa"), lora_of_peft())
    model.enable_input_require_grads()
    drawn = rows(batch * (WARM_UP + MEASURED + 2), configuration().vocab_size)
    data = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in drawn]
    arguments = TrainingArguments(
        **trainer_arguments(batch), gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, remove_unused_columns=False,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(tokenizer(), padding="longest")
    trainer = timed(Trainer, meter)(model=model, args=arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    return meter.result(sum(w.numel() for w in model.parameters() if w.requires_grad), full=False)


# ---------------------------------------------------------------- cases

CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "ours-lora": ours,
    "trl": trl,
    "trl-no-dropout": lambda: trl(0.0),
    "hf-trainer": hf_trainer,
    "ours-lora-8k-tokens": lambda: ours(tokens=8192),
    "ours-lora-2k-tokens": lambda: ours(tokens=LONGEST),
    "ours-lora-gate-up-again": lambda: ours(tokens=8192, recompute="gate_up"),
    "ours-lora-layer-again": lambda: ours(tokens=8192, recompute="layer"),
    "ours-lora-plain-kernels": without_kernels,
    "ours-lora-whole-logits": without_pieces_of_logits,
    "peft-in-our-loop": peft_in_our_loop,
    "peft-in-our-loop-compiled": lambda: peft_in_our_loop(compiled=True),
    "ours-lora-fp8": lambda: ours(fp8=True),
    "ours-lora-2-streams": lambda: ours(accumulate=2),  # the steps of ours-lora-2-gpus
    "ours-qlora": lambda: ours("qlora", tokens=8192, recompute="layer"),
    "ours-qlora-kept": lambda: ours("qlora"),
    "ours-full": lambda: ours("full", tokens=8192, recompute="gate_up", accumulate=4, warm_up=2, measured=5),
}
ON_TWO_GPUS: dict[str, Callable[[], dict[str, Any]]] = {
    "ours-lora-2-gpus": ours,
    "ours-qlora-2-gpus": lambda: ours("qlora", tokens=8192, recompute="layer"),
    "ours-full-2-gpus": lambda: ours("full", tokens=8192, recompute="gate_up", accumulate=4, warm_up=2, measured=5),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = CASES | ON_TWO_GPUS
    parser.add_argument(
        "cases", nargs="*",
        help=f"default: those of one GPU: {', '.join(CASES)}; where there are two GPUs also {', '.join(ON_TWO_GPUS)}",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--add", action="store_true", help="keep the other cases of an earlier command on the same machine"
    )
    parser.add_argument("--one", action="store_true", help="run the case in this process and print its result")
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.one:
        result = known[options.cases[0]]()
        if result:
            print("RESULT " + json.dumps(result))
        return 0
    results: list[dict[str, Any]] = []
    commands, failed = [" ".join(["python3 -m bench.gpu_finetune", *options.cases])], []
    if options.add:
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        commands.insert(0, earlier["command"])
        results = [row for row in earlier["rows"] if row["case"] not in options.cases]
    for case in options.cases or CASES:
        started = time.monotonic()
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"] if case in ON_TWO_GPUS else []
        finished = subprocess.run(
            [sys.executable, *launcher, "-m", "bench.gpu_finetune", "--one", case],
            env={
                **os.environ,
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
                # A Trainer that sees two GPUs would use both.
                "CUDA_VISIBLE_DEVICES": "0,1" if case in ON_TWO_GPUS else "0",
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
        if finished.returncode or not found:
            # torch's launcher says at length that a process failed; why, the process said before.
            said = finished.stderr.partition("torch/distributed/run.py")[0] or finished.stderr
            print(f"{case} failed:\n{said[-2500:]}", file=sys.stderr, flush=True)
            failed.append(case)
            continue
        result = {"case": case, **json.loads(found[0].removeprefix("RESULT "))}
        results.append(result)
        print(f"{time.monotonic() - started:6.0f} s  {json.dumps(result)}", flush=True)
        _write(options.output, "; ".join(commands), results)
    return int(bool(failed))


def _write(output: Path, command: str, results: list[dict[str, Any]]) -> None:
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    output.write_text(
        json.dumps(
            {
                "command": command,
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "device": torch.cuda.get_device_name(),
                "versions": versions,
                "rows": results,
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    raise SystemExit(main())
