"""Where networks run: a device, a precision, and the ranks that torchrun started.

What a step does is a pure function of seed, epoch and sample, so only gradients, sums of figures and the state of a
resumed run travel between processes. Rank 0 owns the run folder. B samples in a batch, W processes.
"""

import gc
import itertools
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from demkd.dataset.workers import local_processes
from demkd.errors import ToldElsewhereError, UserError, shorten

Value = TypeVar("Value")

_TIMEOUT = timedelta(hours=2)  # of a rank that still reads its images; one that died is noticed at once
_GROUPS = itertools.count()  # a process may train one network after the other
_LEAST = 2  # samples of a batch for each rank: batch normalization cannot use one


class ProcessesError(UserError, RuntimeError):
    """Processes that cannot work together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The ranks that train one network together."""

    rank: int = 0
    size: int = 1  # W
    joined: bool = False  # whether there is a process group, if only of one
    store: Any = field(default=None, repr=False, compare=False)  # of torchrun's group, for the first error

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    @property
    def least_batch(self) -> int:
        """The smallest batch that gives every rank what batch normalization needs."""
        return _LEAST * self.size

    def shard_batch(self, batch: Tensor) -> Tensor:
        """This rank's samples of a batch (B,): contiguous, sizes differing by one at most."""
        return batch if self.size == 1 else torch.tensor_split(batch, self.size)[self.rank]

    def wrap(self, model: nn.Module, device: torch.device, *, uses_all: bool) -> nn.Module:
        """The model in DistributedDataParallel: gradients are the mean over all ranks.

        `uses_all` is whether every parameter gets a gradient in every step.
        """
        if not self.joined:
            return model
        parallel = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=not uses_all,
        )
        parallel.broadcast_buffers = False  # rank 0's running statistics are sent once an epoch, where they are used
        return parallel

    def all_reduce(self, figures: Tensor) -> Tensor:
        """The sum over all ranks."""
        if not self.joined:
            return figures
        figures = figures.clone()
        dist.all_reduce(figures)
        return figures

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value, in all ranks; it must be picklable, tensors on the CPU."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's running statistics to all ranks; each has those of its own samples."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuse ranks that would train different things."""
        if self.size == 1:
            return
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        all_facts: list[dict[str, str]] = [{} for _ in range(self.size)]
        dist.all_gather_object(all_facts, {**facts, **versions})
        first = all_facts[0]
        for rank, other in enumerate(all_facts):
            different = [name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
            if different:
                name = different[0]
                here, there = (shorten(facts.get(name, "(absent)"), 60) for facts in (first, other))
                raise ProcessesError(
                    f"{name} is {there} in rank {rank} and {here} in rank 0: "
                    "start all with the same command, version, data and cache"
                )


ALONE = World()


PRECISIONS = ("float32", "bfloat16")


class ComputeError(UserError, ValueError):
    """A device or precision that this machine does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """A device and a precision; networks and views are channels-last in memory, the fastest format for convolutions."""

    device: torch.device
    precision: str
    world: World = ALONE

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass; weights, losses and entropies stay float32."""
        enabled = self.precision == "bfloat16"
        context: AbstractContextManager[None] = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
        return context

    def place(self, network: nn.Module) -> nn.Module:
        """Put a network on the device, in the memory layout of the views."""
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def wait(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_compute(*, device: str = "auto", precision: str = "auto") -> Compute:
    """Resolve "auto": the GPU if there is one; bfloat16 where the hardware supports it natively."""
    chosen = _choose_device(device)
    if precision == "auto":
        precision = "bfloat16" if _multiplies_bfloat16(chosen) else "float32"
    if precision not in PRECISIONS:
        raise ComputeError(f"there is no precision {precision!r}: choose auto, {' or '.join(PRECISIONS)}")
    return Compute(device=chosen, precision=precision)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        device = f"cuda:{_own_gpu()}"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ComputeError(f"there is no device {device!r}: choose auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ComputeError(f"the device {device!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ComputeError(f"the device {device!r} is not there: this machine has {torch.cuda.device_count()} GPUs")
    # Each of torchrun's processes on a machine has a GPU of its own; where there is one GPU, it is that of all.
    if chosen.type == "cuda" and local_processes() > 1 and chosen.index != _own_gpu():
        raise ComputeError(
            f"`device` is {chosen}, and the {local_processes()} processes on this machine would share it: leave it "
            f"out, and each takes the GPU of its LOCAL_RANK, this one cuda:{_own_gpu()} (CUDA_VISIBLE_DEVICES says "
            "which GPUs there are)"
        )
    return chosen


def _own_gpu() -> int:
    """The GPU of this process: torchrun numbers those of a machine."""
    local = os.environ.get("LOCAL_RANK", "0")
    return (int(local) if local.isdigit() else 0) % torch.cuda.device_count()


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 units; elsewhere bfloat16 is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every version of PyTorch
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def ranks_from_environment() -> tuple[int, int] | None:
    """Rank and number of processes, from torchrun's environment variables; None without them."""
    names = ("RANK", "WORLD_SIZE")
    texts = [os.environ.get(name) for name in names]
    if texts == [None, None]:
        return None
    try:
        rank, size = (int(text or "") for text in texts)
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size:
        said = ", ".join(f"{name} is {text or 'absent'}" for name, text in zip(names, texts, strict=True))
        raise ProcessesError(f"{said}: start the processes with torchrun, which sets both, or unset both")
    return rank, size


def is_rank_zero() -> bool:
    """Whether this is the only process, or torchrun's first."""
    return (ranks_from_environment() or (0, 1))[0] == 0


@contextmanager
def process_group(compute: Compute) -> Iterator[Compute]:
    """Join the processes that torchrun started, if any; the same compute, with its world.

    A group that exists already is used, and left as it is. Of several ranks that fail, the first shows its error,
    and the others raise a ToldElsewhereError.
    """
    if dist.is_available() and dist.is_initialized():
        yield replace(compute, world=World(rank=dist.get_rank(), size=dist.get_world_size(), joined=True))
        return
    places = ranks_from_environment()
    if places is None:
        yield compute
        return
    world = _join(*places, compute.device)
    try:
        yield replace(compute, world=world)
    except UserError as error:
        raise _once(world, error) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise _once(world, ProcessesError(f"{error.filename}: {error.strerror}")) from error
    except RuntimeError as error:
        if not _is_lost_connection(error):
            _once(world, ProcessesError(str(error)))  # so that no other rank shows an error
            raise
        lost = ProcessesError(
            f"another rank exited unexpectedly ({str(error).splitlines()[0][:200]}): run the same command to resume"
        )
        raise _once(world, lost) from error
    # After a failure the other ranks may be gone: the group then ends with the process.
    gc.collect()  # a data-parallel module that outlives its group ends the process (measured: one run in three)
    dist.destroy_process_group()


def _join(rank: int, size: int, device: torch.device) -> World:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ProcessesError(
                f"rank {rank} of {size} cannot connect, because {name} is not set: start all processes with torchrun"
            )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
        own = PrefixStore(f"demkd/{next(_GROUPS)}", store)
        # NCCL between GPUs, where each process has one; Gloo for all else.
        nccl = device.type == "cuda" and local_processes() <= torch.cuda.device_count()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ProcessesError(
            f"rank {rank} of {size} cannot connect to {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]})"
        ) from error
    return World(rank=rank, size=size, joined=True, store=PrefixStore("errors", own))


def _once(world: World, error: UserError) -> UserError:
    """The error with its rank, for the first rank that fails; a ToldElsewhereError for the others."""
    try:
        shown = world.store.add("failed", 1) > 1
    except RuntimeError:  # the rank with the store is gone
        shown = not world.is_rank_zero
    if shown or isinstance(error, ToldElsewhereError):
        return ToldElsewhereError("another rank has shown its error")
    return error if world.size == 1 else ProcessesError(f"rank {world.rank} of {world.size}: {error}")


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "Connection"))


def python_module(name: str) -> list[str]:
    """The command that runs a module with this interpreter; give it `child_environment`."""
    return [sys.executable, "-P", "-m", name]  # -P: a file of the user's, in the current folder, hides no module


def child_environment() -> dict[str, str]:
    """This process's environment, with which another Python finds every module that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}
