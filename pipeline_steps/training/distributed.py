"""One process for each GPU of each instance, through torch's own launcher and process groups.

LoRA: every GPU holds the model, gradients are averaged (DistributedDataParallel). QLoRA and full: the weights lie in
shards, gathered layer by layer (FSDP2). Without GPUs one process an instance, over gloo.
"""

import json
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed

from pipeline_steps.contract.errors import StepError
from pipeline_steps.training.decoder import Decoder

PORT = 29_500  # where the first host's process group listens


def launch_everywhere(resources: Path, arguments: list[str]) -> None:
    """Become torch's launcher if this job has several GPUs or hosts; else return, and this process does it all.

    resources: SageMaker's resourceconfig.json; without the file there is one host. `arguments` are the step's.
    """
    if "RANK" in os.environ:  # the launcher started this process
        return
    hosts, current, interface = ["localhost"], "localhost", None
    if resources.is_file():
        given = json.loads(resources.read_text(encoding="utf-8"))
        hosts, current = sorted(given["hosts"]), given["current_host"]
        interface = given.get("network_interface_name")
    processes = max(1, torch.cuda.device_count())
    if len(hosts) * processes == 1:
        return
    if interface:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    program = [sys.argv[0]] if sys.argv[0].endswith(".zip") else ["-m", "pipeline_steps"]
    launcher = [
        sys.executable, "-m", "torch.distributed.run",
        f"--nnodes={len(hosts)}", f"--node-rank={hosts.index(current)}", f"--nproc-per-node={processes}",
        f"--master-addr={hosts[0]}", f"--master-port={PORT}",
        *program, "fine-tune", *arguments,
    ]  # fmt: skip
    print(f"{len(hosts)} hosts with {processes} processes each; this is {current}", flush=True)
    os.execv(sys.executable, launcher)


@dataclass(frozen=True)
class World:
    """All processes of the training, and this one's place among them."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> "World":
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if size > 1:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, device_id=device if device.type == "cuda" else None)
        return cls(rank, size, device)

    def leave(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on any process. Over the hosts' network; no GPU waits for it."""
        if self.size == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in together]

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over the processes."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def wait_for_all(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def first_decides(self, value: float) -> float:
        """The first process's `value`, on all of them."""
        if self.size == 1:
            return value
        decided = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(decided, src=0)
        return float(decided)


def sharded(model: Decoder, world: World) -> bool:
    """Whether the weights lie in shards over the devices."""
    return world.size > 1 and model.tuning.method != "lora"


def shard(model: Decoder, world: World) -> None:
    """Lay the weights of QLoRA and full tuning in shards, before they are loaded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if model.tuning.method == "full":
        # Masters, gradients' sums and moments in float32: small updates are not rounded away.
        model.float()
        policy = MixedPrecisionPolicy(param_dtype=model.tuning.kind, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def back_to_shards(model: Decoder) -> None:
    """Give up what a forward without a backward left gathered: it would not see what is written into the shards."""
    if hasattr(model, "reshard"):
        model.reshard()  # the layers have done so; the model's own weights wait for a backward


def replicate(model: Decoder, world: World) -> Any:
    """The model as it is called in training: LoRA's gradients are averaged over the devices after each step."""
    if world.size == 1 or sharded(model, world):
        return model
    from torch.nn.parallel import DistributedDataParallel

    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False)


def unless_last(called: Any, last: bool) -> AbstractContextManager[None]:
    """Gradients of a step are averaged once, with its last stream."""
    if last or not hasattr(called, "no_sync"):
        return nullcontext()
    return called.no_sync()


class Interruption:
    """Hears SIGTERM, by which SageMaker announces the end of a job: two minutes are left."""

    def __init__(self) -> None:
        self.heard = False
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True


def gpu_bytes(device: torch.device) -> float:
    """Memory of the GPU. Raises StepError if something else has already taken a tenth of it."""
    free, total = torch.cuda.mem_get_info(device)
    if free < 0.9 * total:
        raise StepError(
            f"{(total - free) / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB are taken by another process; end it first"
        )
    return float(total)
