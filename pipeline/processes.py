"""Training on several processes, which torchrun starts: who is who, whose part of a batch is whose, and one voice.

What a step does is a pure function of seed, epoch and sample, so processes need not be told: only gradients, sums of
figures and the state of a resumed run travel. Rank 0 owns the run folder. B samples in a batch, W processes.
"""

import gc
import hashlib
import itertools
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from demkd.errors import ToldElsewhereError, UserError
from demkd.pipeline.progress import Progress, SilentProgress, Task
from demkd.pipeline.results import EpochReport

if TYPE_CHECKING:
    from demkd.pipeline.compute import Compute

Value = TypeVar("Value")

_PATIENCE = timedelta(hours=2)  # with a rank that still looks at its pictures; one that died is noticed at once
_JOINS = itertools.count()  # a process may train one network after the other, and notes of before mean nothing then
_LEAST = 2  # samples a process needs of a batch: batch normalisation cannot use one


class ProcessesError(UserError, RuntimeError):
    """Processes that cannot work together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes that train one network together.

    Attributes:
        rank: this one's number, from 0.
        size: W.
        store: where they can leave short notes; None for a process on its own, or a group that the user made.
        joined: whether there is a process group, if only of one.
    """

    rank: int = 0
    size: int = 1
    joined: bool = False
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def least_batch(self) -> int:
        """The smallest batch that gives every process what batch normalisation needs."""
        return _LEAST * self.size

    def part(self, batch: Tensor) -> Tensor:
        """This process' samples of a batch (B,): contiguous, sizes differing by one at most."""
        return batch if self.size == 1 else torch.tensor_split(batch, self.size)[self.rank]

    def parallel(self, model: nn.Module, device: torch.device, *, uses_all: bool) -> nn.Module:
        """A module whose gradients are the mean over all processes; call this instead of the model.

        Args:
            uses_all: whether every parameter is known to get a gradient in every step.
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

    def total(self, figures: Tensor) -> Tensor:
        """The sum over all processes."""
        if not self.joined:
            return figures
        figures = figures.clone()
        dist.all_reduce(figures)
        return figures

    def share(self, value: Value) -> Value:
        """What rank 0 has, for all; the values must be picklable, tensors on the CPU."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process rank 0's running statistics, which each else has of its own samples."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Refuse to begin where processes would do different things.

        Raises:
            ProcessesError: naming the rank, and what differs, with both values.
        """
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
                raise ProcessesError(
                    f"{name} is {_short(other.get(name))} in rank {rank} and {_short(first.get(name))} in rank 0: "
                    "start all with the same command, version, data and cache"
                )

    def says_first(self, text: str) -> bool:
        """Whether no other process has said this yet; where they cannot know, whether this is rank 0."""
        if self.store is None:
            return self.is_first
        return bool(self.store.add(hashlib.sha256(text.encode()).hexdigest(), 1) == 1)

    def voice(self, progress: Progress) -> Progress:
        """Bars on rank 0 alone, and every warning once, whoever has it first."""
        return progress if self.size == 1 else _OneVoice(progress, self)


ALONE = World()


class _OneVoice:
    """A progress that speaks for all processes."""

    def __init__(self, progress: Progress, world: World) -> None:
        self._loud, self._world = progress, world
        self._own: Progress = progress if world.is_first else SilentProgress()

    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        return self._own.task(description, total=total, unit=unit, done=done)

    def epoch(self, report: EpochReport) -> None:
        self._own.epoch(report)

    def settings(self, chosen: Mapping[str, object]) -> None:
        self._own.settings(chosen)

    def note(self, text: str) -> None:
        self._own.note(text)

    def warn(self, text: str) -> None:
        if self._world.says_first(text):
            self._loud.warn(text)


def announced() -> tuple[int, int] | None:
    """Rank and number of processes, as torchrun says in the environment; None outside of it.

    Raises:
        ProcessesError: if it says half of it.
    """
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


def speaks() -> bool:
    """Whether this process tells what was done: the only one, or rank 0."""
    return (announced() or (0, 1))[0] == 0


@contextmanager
def joined(compute: "Compute") -> "Iterator[Compute]":
    """Join the processes that torchrun started, if it did; the same compute, with its world.

    A group that exists already is used, and left as it is. What one process has to say when it fails is said once.

    Raises:
        ProcessesError: if there is nowhere to meet.
        ToldElsewhereError: if another process failed, and said why.
    """
    if dist.is_available() and dist.is_initialized():
        yield replace(compute, world=World(rank=dist.get_rank(), size=dist.get_world_size(), joined=True))
        return
    places = announced()
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
            _once(world, ProcessesError(str(error)))  # so that the others know that something was said
            raise
        lost = ProcessesError(
            f"another process ended without a word ({str(error).splitlines()[0][:200]}): run the same command again, "
            "which goes on"
        )
        raise _once(world, lost) from error
    # After a failure nobody answers any more; then the group ends with the process.
    gc.collect()  # a data-parallel module that outlives its group ends the process (measured: one run in three)
    dist.destroy_process_group()


def _join(rank: int, size: int, device: torch.device) -> World:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ProcessesError(
                f"rank {rank} of {size} does not know where to meet the others, because {name} is not set: start all "
                "processes with torchrun"
            )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        own = PrefixStore(f"demkd/{next(_JOINS)}", store)
        dist.init_process_group(_backend(device), store=own, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ProcessesError(
            f"rank {rank} of {size} does not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]})"
        ) from error
    return World(rank=rank, size=size, joined=True, store=PrefixStore("said", own))


def _backend(device: torch.device) -> str:
    """NCCL between GPUs, where each process has one; Gloo for all else."""
    if device.type != "cuda":
        return "gloo"
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return "cpu:gloo,cuda:nccl" if here <= torch.cuda.device_count() else "gloo"


def _once(world: World, error: UserError) -> UserError:
    """The error with its rank, for the first process that has one; for the others, that it was said."""
    try:
        said = world.store.add("failed", 1) > 1
    except RuntimeError:  # who kept the store is gone
        said = not world.is_first
    if said or isinstance(error, ToldElsewhereError):
        return ToldElsewhereError("another process said what is wrong")
    return error if world.size == 1 else ProcessesError(f"rank {world.rank} of {world.size}: {error}")


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "Connection"))


def _short(text: str | None) -> str:
    shown = "(absent)" if text is None else text
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def require_batch(batch_size: int, world: World) -> None:
    """Refuse a batch that is too small for so many processes.

    Raises:
        ProcessesError: saying what would do.
    """
    if batch_size < world.least_batch:
        raise ProcessesError(
            f"`batch_size` is {batch_size}, and {world.size} processes share it, which each need {_LEAST} samples: "
            f"choose at least {world.least_batch}, or start fewer processes"
        )


def require_samples(samples: int, least: int, world: World) -> None:
    """Refuse data so few that an epoch would have no step.

    Raises:
        ProcessesError: saying what would do.
    """
    if samples < least:
        some = "1 picture" if samples == 1 else f"{samples} pictures"
        shared = f" on {world.size} processes" if world.size > 1 else ""
        raise ProcessesError(
            f"`train` has {some}, of which an epoch has no step{shared}: give at least {least} (batch normalisation "
            "needs two views in a step of every process, and each of `views_per_decode` epochs shows other pictures)"
        )
