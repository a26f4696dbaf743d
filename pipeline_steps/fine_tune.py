"""FineTune: training split + base model -> adapter and merged model, with the prompt template beside the weights.

in    channels train/ and validation/ (a dataset's splits), model/ (an imported base model); hyperparameters.json;
      checkpoints/ of this run, if it was interrupted
out   model/    adapter/, then the merged model and tokenizer at the root, prompt_template.json, hyperparameters.json,
                seen_rows.hashes (which rows it learned from), training.json (loss curve, speed, ancestors), written last

Several GPUs or hosts: each process runs this step whole; training/distributed.py starts them and joins what they do.
"""

import argparse
import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps import serving
from pipeline_steps.contract import costs, dataset, files, hyperparameters, json_files, seen_rows
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.hyperparameters import Hyperparameters
from pipeline_steps.contract.progress import report
from pipeline_steps.encoding import Encoded, read_encoded
from pipeline_steps.models import base_model_digest, folder_digest, load_tokenizer, product_dtype
from pipeline_steps.text_encoder import TextEncoder

if TYPE_CHECKING:
    from pipeline_steps.training.decoder import Decoder
    from pipeline_steps.training.distributed import World

CPU_TOKENS = 2048  # of a stream where there is no GPU whose memory would say
EVALUATION_SHARE = 0.1  # of the training's time, at most
MOST_EVALUATIONS = 10
TREND_STEPS = 10  # whose mean loss tells whether training falls apart


@dataclass(frozen=True)
class FineTuneJob:
    train: Path
    validation: Path
    model: Path
    output: Path
    hyperparameters: Hyperparameters
    checkpoints: Path | None = None
    machines: tuple[int, str] | None = None  # how many instances of which type


@dataclass
class History:
    """What the training has seen so far; it survives an interruption with the checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, evaluations not counted
    losses: list[float] = field(default_factory=list)  # of each step, nats per learned token
    validations: list[tuple[int, float]] = field(default_factory=list)  # step and loss; step 0 is the base model
    best_step: int = 0  # 0: none yet
    best_loss: float = math.inf
    without_improvement: int = 0
    tracking_run: str = ""  # MLflow's id of the run


class Interrupted(Exception):
    """The service ends this job; its checkpoint is written."""


STARTED = time.monotonic()  # as near to the container's start as this process knows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="fine-tune", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--input", type=Path, default=Path("/opt/ml/input"), help="config/ and data/ as SageMaker lays them"
    )
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/model"))
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("/opt/ml/checkpoints"), help="used if the folder exists"
    )
    options = parser.parse_args(arguments)
    texts = json.loads((options.input / "config" / "hyperparameters.json").read_text(encoding="utf-8"))
    resources = options.input / "config" / "resourceconfig.json"
    settings = with_time_that_is_paid(hyperparameters.parse(texts), resources)

    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # lengths differ from step to step
    from pipeline_steps.training import distributed

    distributed.launch_everywhere(resources, arguments)
    data = options.input / "data"
    checkpoints = options.checkpoints if options.checkpoints.is_dir() else None
    job = FineTuneJob(
        data / "train",
        data / "validation",
        data / "model",
        options.output,
        settings,
        checkpoints,
        machines_of(resources),
    )
    try:
        run(job)
    except Interrupted as interrupted:
        print(interrupted, flush=True)


def machines_of(resources: Path) -> tuple[int, str] | None:
    """How many instances of which type this job has, by SageMaker's resourceconfig.json; None outside of a job."""
    if not resources.is_file():
        return None
    given = json.loads(resources.read_text(encoding="utf-8"))
    return len(given["hosts"]), given["current_instance_type"]


def with_time_that_is_paid(settings: Hyperparameters, resources: Path) -> Hyperparameters:
    """`settings` whose max_hours hold max_cost_usd too, by the job's instances in SageMaker's resourceconfig.json."""
    if not settings.max_cost_usd:
        return settings
    machines = machines_of(resources)
    if machines is None:
        raise StepError(f"max_cost_usd is {settings.max_cost_usd:g}, but {resources} is missing: no instance to price")
    hosts, instance_type = machines
    hours = costs.hours_for(settings.max_cost_usd, instance_type, hosts, settings.usd_per_hour or None)
    print(f"{settings.max_cost_usd:g} USD pay {hosts} x {instance_type} for {hours:.3g} hours of training", flush=True)
    return replace(settings, max_hours=min(hours, settings.max_hours or hours))


def run(job: FineTuneJob) -> None:
    settings = job.hyperparameters

    # 1. Inputs, checked before anything large is loaded.
    info = dataset.read_info(job.train, "train")
    validation_info = dataset.read_info(job.validation, "validation")
    if validation_info.dataset_digest != info.dataset_digest:
        raise StepError(
            f"train is of dataset {info.dataset_digest[:12]}, validation of {validation_info.dataset_digest[:12]}; "
            "both channels must come from the same preparation"
        )
    model_digest = base_model_digest(job.model)
    tokenizer = load_tokenizer(job.model)
    encoder = TextEncoder.of(tokenizer)

    # 2. Tokens, each with its training decision: PrepareData made them, while no GPU waited.
    train = _some(read_encoded(job.train, info, encoder, settings.max_input_length), settings.max_train_samples)
    validation = _some(
        read_encoded(job.validation, validation_info, encoder, settings.max_input_length), settings.max_val_samples
    )
    if settings.train_on_prompt:
        train = [Encoded(row.ids, row.ids) for row in train]

    # 3. The devices, and the model on them.
    from pipeline_steps.training.distributed import World

    world = World.join()
    try:
        training = Training(job, world, train, validation)
        training.run({"dataset": info.dataset_digest, "base_model": model_digest})
        training.write_model()
    finally:
        world.leave()
    if not world.first:
        return

    # 4. What belongs to the weights; the report last.
    serving.write(job.output, info.template, info.chat, tokenizer)
    seen = chain(dataset.read_examples(job.train, info), dataset.read_examples(job.validation, validation_info))
    seen_rows.write(job.output / files.SEEN_ROWS_FILE, seen)  # Evaluate asks whether a test row is among them
    json_files.write(job.output / files.HYPERPARAMETERS_FILE, {"schema_version": 1, **asdict(settings)})
    history = training.history
    digest, digests = folder_digest(job.output)
    json_files.write(
        job.output / files.TRAINING_FILE,
        {
            "schema_version": files.TRAINING_SCHEMA_VERSION,
            "dataset_digest": info.dataset_digest,
            "base_model_digest": model_digest,
            "model_digest": digest,
            "files": digests,
            "tuning_mode": info.tuning_mode,
            "training_job": os.environ.get("TRAINING_JOB_NAME"),
            "method": settings.method,
            "devices": world.size,
            "rows": len(train),
            "steps": history.step,
            "ended_by": training.ended_by,
            "tracking_lost": training.tracking.lost or None,
            "tokens": history.tokens,
            "tokens_per_second": round(history.tokens / history.seconds, 1),
            "seconds": round(history.seconds, 1),
            # What is paid beside the training itself: start, loading, validation, merging. Uploading comes after it.
            "overhead_seconds": round(time.monotonic() - STARTED - (history.seconds - training.seconds_before), 1),
            "instance_count": job.machines[0] if job.machines else None,
            "instance_type": job.machines[1] if job.machines else None,
            "best_step": history.best_step,
            "validation_loss": {
                "before": history.validations[0][1],
                "after": json_files.finite_or_none(training.kept_loss),
            },
            "validation": [
                {"step": step, "loss": json_files.finite_or_none(loss)} for step, loss in history.validations
            ],
            "curve": [{"step": step, "train_loss": loss} for step, loss in enumerate(history.losses, start=1)],
        },
    )


class Training:
    """Steps, evaluations and checkpoints of one run."""

    def __init__(
        self, job: FineTuneJob, world: "World", train: Sequence[Encoded], validation: Sequence[Encoded]
    ) -> None:
        from transformers import AutoConfig

        from pipeline_steps.training import batches, decoder, distributed, fp8, memory, optimizer, projections
        from pipeline_steps.training.tracking import Tracking

        self.job, self.world, self.train, self.validation = job, world, train, validation
        self.settings = settings = job.hyperparameters
        self.lengths = [len(row.ids) for row in train]
        self.plan = batches.Plan.of(len(train), world.size, settings)
        config = AutoConfig.from_pretrained(job.model)
        decoder.check_supported(config)
        longest = max(*self.lengths, *(len(row.ids) for row in validation))
        window = getattr(config, "sliding_window", None)
        if window and longest > window:
            raise StepError(
                f"the longest row has {longest} tokens, this model attends to {window} only; "
                f"set max_input_length to {window} or less and prepare the data again"
            )

        # What fits, before anything is loaded.
        method: Any = settings.method
        if world.device.type == "cuda":
            memory_plan = memory.plan(
                config, method, settings.lora_r, longest, distributed.gpu_bytes(world.device), world.size,
                settings.gradient_checkpointing,
            )  # fmt: skip
            self.tokens, recompute = memory_plan.tokens, memory_plan.recompute
            self._say(
                f"about {memory_plan.bytes / 1e9:.1f} GB of GPU memory: streams of {self.tokens} tokens, "
                f"computing again: {recompute}"
            )
        else:
            self.tokens, recompute = max(CPU_TOKENS, longest), "nothing"

        self.tracking = Tracking(
            settings.mlflow_tracking_uri if world.first else "", os.environ.get("TRAINING_JOB_NAME", job.output.name)
        )
        tuning = projections.Tuning(
            method, settings.lora_r, settings.lora_alpha, settings.lora_dropout, product_dtype(world.device)
        )
        if settings.fp8:
            fp8.check_device(world.device)
            exact = self._measure(self._loaded(config, tuning, recompute))
            tuning = replace(tuning, fp8=True)
        self.model = self._loaded(config, tuning, recompute)
        if settings.fp8:
            self._say(fp8.check_quality(exact, self._measure(self.model)))
        self.in_shards = distributed.sharded(self.model, world)
        self.called = distributed.replicate(self.model, world)
        self.parameters = self.model.trained_parameters()
        self.optimizer = optimizer.optimizer_for(self.parameters, settings)
        self.interruption = distributed.Interruption()
        self.history = History()
        self.seconds_before = 0.0  # trained by earlier jobs that were cut off
        self.ended_by = "all steps done"
        self.best: list[Any] | None = None
        weights = sum(parameter.numel() for parameter in self.parameters)
        self._say(
            f"{len(train)} rows with {sum(self.lengths)} tokens, of which {sum(row.trained_tokens for row in train)} "
            f"are learned; {weights:,} trained weights ({settings.method}), {self.plan.steps} steps of "
            f"{self.plan.rows_per_step} rows, {world.size} x {world.device.type}"
        )

    def _loaded(self, config: Any, tuning: Any, recompute: Any) -> "Decoder":
        """The base model on this device, or this device's shards of it, with a new adapter."""
        import torch

        from pipeline_steps.training import distributed, merge
        from pipeline_steps.training.decoder import Decoder

        with torch.device("meta"):
            model = Decoder(config, tuning)
        if distributed.sharded(model, self.world):
            distributed.shard(model, self.world)
        model.to_empty(device=self.world.device)
        model.load(merge.checkpoint_tensors(self.job.model))
        model.reset_adapters(self.settings.seed)
        model.recompute = recompute
        return model

    def _measure(self, model: "Decoder") -> Any:
        """Loss and gradient of the first validation rows, as many as a stream holds."""
        from pipeline_steps.training import batches, fp8

        rows: list[Encoded] = []
        tokens = 0
        for row in self.validation:
            tokens += len(row.ids)
            if tokens > self.tokens and rows:
                break
            rows.append(row)
        return fp8.Measurement.of(model, batches.Stream.of(rows, self.world.device))

    # ---------------------------------------------------------------- the loop

    def run(self, ancestors: dict[str, str]) -> None:
        """Train, or go on where a checkpoint was written. Raises Interrupted after SIGTERM."""
        from pipeline_steps.training.checkpoints import Checkpoints

        settings, history = self.settings, self.history
        checkpoints = None
        if self.job.checkpoints is not None:
            # What is watched and how long it may take changes no step.
            left_out = {"logging_steps", "mlflow_tracking_uri", "max_hours", "max_cost_usd", "usd_per_hour"}
            what = {
                **ancestors,
                **{name: value for name, value in asdict(settings).items() if name not in left_out},
                "devices": self.world.size,
            }
            checkpoints = Checkpoints(
                self.job.checkpoints, what, self.world, self.in_shards, settings.save_steps, settings.save_total_limit
            )
            self._resume(checkpoints)
        self.tracking.start(history.tracking_run, {**ancestors, **asdict(settings), "devices": self.world.size})
        history.tracking_run = self.tracking.run_id
        if not history.validations:
            history.validations.append((0, self._validation_loss()))
        evaluate_at = self._evaluation_steps()
        before, started, measuring = history.seconds, time.monotonic(), 0.0
        self.seconds_before = before
        pending = None  # a step's loss is read when the next is under way: the device never waits for the host
        self.model.train()
        while history.step < self.plan.steps and self.ended_by == "all steps done":
            step = history.step + 1
            loss = self._step(step)
            if pending is not None:
                self._record(*pending)
            pending = (step, loss)
            history.step = step
            history.seconds = before + time.monotonic() - started - measuring
            last = step == self.plan.steps
            out_of_time = bool(settings.max_hours) and history.seconds + measuring > settings.max_hours * 3600
            due = checkpoints is not None and checkpoints.due(step)
            interrupted, out_of_time, due = self.world.any(self.interruption.heard, out_of_time, due)
            if step in evaluate_at or last or out_of_time or interrupted or due:
                self._record(*pending)
                pending = None
            if out_of_time:
                self.ended_by = f"the limit of {settings.max_hours:g} hours"
            if step in evaluate_at or last or out_of_time:
                evaluation_started = time.monotonic()
                self._evaluate(step)
                measuring += time.monotonic() - evaluation_started
            if checkpoints is not None and (due or interrupted):
                self._save(checkpoints)
            if interrupted:
                self._interrupt(saved=checkpoints is not None)
        self.kept_loss = history.validations[-1][1]
        if settings.load_best_model_at_end and self.best is not None and history.best_step != history.step:
            self._say(f"keeping step {history.best_step}: validation loss {history.best_loss:.6g}")
            self._restore(self.best)
            self.kept_loss = history.best_loss
        self.tracking.end({"ended_by": self.ended_by, "best_step": str(history.best_step)})
        self._say(
            f"ended by {self.ended_by}; validation loss {self.kept_loss:.6g} (before: {history.validations[0][1]:.6g}), "
            "nats per learned token"
        )

    def _step(self, step: int) -> Any:
        """One optimizer step; returns its loss, still on the device."""
        import torch

        from pipeline_steps.training import batches, distributed, optimizer

        torch.manual_seed(self.settings.seed * 1_000_003 + step * 1009 + self.world.rank)  # dropout's draws
        rows = self.plan.rows_of(step - 1)
        learned = sum(self.train[row].trained_tokens for row in rows)
        streams = batches.divide(rows, self.lengths, self.world.size, self.tokens)[self.world.rank]
        total = torch.zeros((), device=self.world.device)
        try:
            for number, places in enumerate(streams, start=1):
                stream = batches.Stream.of([self.train[place] for place in places], self.world.device)
                with distributed.unless_last(self.called, number == len(streams)):
                    loss = stream.loss(self.called) / learned
                    # Devices average their gradients; each divided by the tokens of all, so they must be summed.
                    (loss * self.world.size).backward()
                total += loss.detach()
        except torch.OutOfMemoryError as error:
            raise StepError(self._out_of_memory(step, error)) from error
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        rate = self.settings.learning_rate * optimizer.learning_rate_share(step - 1, self.plan.steps, self.settings)
        optimizer.set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.history.tokens += sum(self.lengths[row] for row in rows)
        return self.world.sum(total)

    def _record(self, step: int, loss_on_device: Any) -> None:
        """Read a step's loss, end the training if it falls apart, and say how far it is."""
        from pipeline_steps.training import optimizer

        settings, history = self.settings, self.history
        if len(history.losses) >= step:
            return
        loss = float(loss_on_device)
        advice = f"(learning rate {settings.learning_rate:g}, max_grad_norm {settings.max_grad_norm:g})"
        if not math.isfinite(loss):
            raise StepError(
                f"the training loss is {loss} at step {step} of {self.plan.steps} {advice}; the weights are lost: "
                "lower learning_rate or max_grad_norm, or check the data"
            )
        history.losses.append(loss)
        trend = deque(history.losses, maxlen=TREND_STEPS)
        if len(history.losses) >= 2 * TREND_STEPS:
            first = sum(history.losses[:TREND_STEPS]) / TREND_STEPS
            now = sum(trend) / TREND_STEPS
            if now > 2 * first + 2:
                raise StepError(
                    f"the training loss has risen from {first:.4g} to {now:.4g} nats per token at step {step} of "
                    f"{self.plan.steps} {advice}: it falls apart; lower learning_rate or max_grad_norm"
                )
        if self.world.first and (step == 1 or step % settings.logging_steps == 0 or step == self.plan.steps):
            share = optimizer.learning_rate_share(step - 1, self.plan.steps, settings)
            watched = {
                "train_loss": loss,
                "tokens_per_second": history.tokens / history.seconds,
                "learning_rate": settings.learning_rate * share,
            }
            self.tracking.log(step, **watched)
            left = history.seconds / history.step * (self.plan.steps - history.step)
            report("train", step, self.plan.steps, **watched, seconds_left=left)

    # ---------------------------------------------------------------- evaluation

    def _evaluation_steps(self) -> set[int]:
        """After which steps the validation loss is measured; always after the last one."""
        settings, steps = self.settings, self.plan.steps
        if settings.evaluation_strategy == "no":
            return set()
        if settings.evaluation_strategy == "epoch":
            epochs = math.floor(self.plan.epochs_at(steps))
            return {math.ceil(self.plan.rows * epoch / self.plan.rows_per_step) for epoch in range(1, epochs + 1)}
        if settings.eval_steps:
            return set(range(settings.eval_steps, steps, settings.eval_steps))
        # A forward alone is a third of a step's work.
        training = 3 * sum(self.lengths) * self.plan.epochs_at(steps)
        validation = sum(len(row.ids) for row in self.validation)
        times = max(1, min(MOST_EVALUATIONS, int(EVALUATION_SHARE * training / validation), steps))
        return {round(steps * number / times) for number in range(1, times + 1)}

    def _validation_loss(self) -> float:
        """Nats per learned token of the validation rows. Each device measures its share of them."""
        import torch

        from pipeline_steps.training import batches, distributed

        self.model.eval()
        lengths = [len(row.ids) for row in self.validation]
        shares = batches.divide(range(len(lengths)), lengths, self.world.size, self.tokens)[self.world.rank]
        total = torch.zeros((), device=self.world.device)
        with torch.no_grad():
            for places in shares:
                total += batches.Stream.of([self.validation[place] for place in places], self.world.device).loss(
                    self.model
                )
        distributed.back_to_shards(self.model)
        self.model.train()
        return float(self.world.sum(total)) / sum(row.trained_tokens for row in self.validation)

    def _evaluate(self, step: int) -> None:
        """Measure, keep the best, and end the training when it no longer improves."""
        settings, history = self.settings, self.history
        if history.validations[-1][0] == step:
            return
        loss = self._validation_loss()
        history.validations.append((step, loss))
        self._say(f"eval_loss={loss:.6g} step={step}")
        self.tracking.log(step, eval_loss=loss)
        if loss < history.best_loss - settings.early_stopping_threshold:
            history.without_improvement = 0
        else:
            history.without_improvement += 1
        if loss < history.best_loss:
            history.best_loss, history.best_step = loss, step
            if settings.load_best_model_at_end:
                self.best = [_local(parameter).detach().cpu().clone() for parameter in self.parameters]
        if settings.evaluation_strategy != "no" and history.without_improvement >= settings.early_stopping_patience:
            self.ended_by = (
                f"early stopping at step {step} of {self.plan.steps}: {history.without_improvement} evaluations in a "
                f"row did not improve on {history.best_loss:.6g}"
            )

    # ---------------------------------------------------------------- survival

    def _save(self, checkpoints: Any) -> None:
        tensors = {
            "parameters": [_local(parameter).detach().cpu() for parameter in self.parameters],
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "best": self.best or [],
        }
        state = {"history": {**asdict(self.history), "best_loss": json_files.finite_or_none(self.history.best_loss)}}
        checkpoints.save(self.history.step, tensors, state)

    def _resume(self, checkpoints: Any) -> None:
        found = checkpoints.newest()
        if found is None:
            return
        state, tensors = found
        values = state["history"]
        best = values["best_loss"]
        validations = [(step, loss) for step, loss in values["validations"]]
        self.history.__dict__.update(
            {**values, "best_loss": math.inf if best is None else best, "validations": validations}
        )
        self._restore(tensors["parameters"])
        self.best = tensors["best"] or None
        self.optimizer.load_state_dict(tensors["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.dim():
                    values[name] = _like(parameter, value)
        self._say(f"going on after step {self.history.step} of {self.plan.steps}, where a checkpoint was written")

    def _restore(self, values: list[Any]) -> None:
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                _local(parameter).copy_(value)

    def _interrupt(self, saved: bool) -> None:
        """Leave what there is: the best adapter so far, for whoever stopped the job, and word of the checkpoint."""
        if self.best is not None:
            self._restore(self.best)
        if self.settings.method != "full":
            self._write_adapter()
        where = "its checkpoint is written" if saved else "there is no checkpoint location, so a new start begins anew"
        raise Interrupted(f"interrupted after step {self.history.step} of {self.plan.steps}; {where}")

    def _out_of_memory(self, step: int, error: Exception) -> str:
        return (
            f"the GPU's memory ran out at step {step} of {self.plan.steps} with streams of {self.tokens} tokens, "
            f"computing again: {self.model.recompute}; set gradient_checkpointing True, shorten max_input_length (now "
            f"{self.settings.max_input_length}), use bits 4, or an instance type with more GPU memory. {error}"
        )

    # ---------------------------------------------------------------- output

    def write_model(self) -> None:
        """The adapter first, since a failed merge must not cost the training; then the merged, or the tuned, model."""
        import torch

        from pipeline_steps.training import merge

        output = self.job.output
        if self.settings.method == "full":
            weights = dict(self.model.weights())  # gathers shards, so on every device
            if self.world.first:
                from huggingface_hub import save_torch_state_dict

                output.mkdir(parents=True, exist_ok=True)
                save_torch_state_dict(
                    {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()},
                    output, max_shard_size="5GB",
                )  # fmt: skip
                self.model.config.save_pretrained(output)
            return
        adapter = self._write_adapter()
        if self.world.first:
            scale = self.model.tuning.scale
            merge.merge(self.job.model, adapter, scale, output, lambda done, of: report("merge", done, of))

    def _write_adapter(self) -> dict[str, Any]:
        """In PEFT's layout; returns its tensors."""
        adapter: dict[str, Any] = self.model.adapter()  # gathers shards, so on every device
        if self.world.first:
            from peft import LoraConfig
            from safetensors.torch import save_file

            folder = self.job.output / files.ADAPTER_FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            LoraConfig(
                task_type="CAUSAL_LM",
                r=self.settings.lora_r,
                lora_alpha=self.settings.lora_alpha,
                lora_dropout=self.settings.lora_dropout,
                target_modules=sorted({name.split(".")[-3] for name in adapter}),
                inference_mode=True,
            ).save_pretrained(folder)
            unfinished = folder / ".adapter_model.tmp"
            save_file(adapter, unfinished)
            unfinished.replace(folder / "adapter_model.safetensors")
        return adapter

    def _say(self, text: str) -> None:
        if self.world.first:
            print(text, flush=True)


def _some(rows: list[Encoded], most: int) -> list[Encoded]:
    return rows if most < 0 else rows[:most]


def _local(parameter: Any) -> Any:
    """This process's part of a weight."""
    to_local = getattr(parameter, "to_local", None)
    return parameter if to_local is None else to_local()


def _like(parameter: Any, local: Any) -> Any:
    """`local` as a part of a tensor that lies in shards as `parameter` does."""
    if not hasattr(parameter, "to_local"):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def _on_cpu(value: Any) -> Any:
    """Optimizer state with this process's parts of its tensors, on the CPU."""
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on_cpu(one) for one in value]
    return _local(value).detach().cpu() if hasattr(value, "detach") else value
