"""Where, how precisely and with whom networks compute."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from demkd.errors import UserError
from demkd.pipeline.processes import ALONE, World

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ComputeError(UserError, ValueError):
    """A device or precision that this machine does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """A device and a precision; networks and views are channels-last in memory, which convolutions like best.

    Attributes:
        world: the processes that train one network together.
    """

    device: torch.device
    precision: str
    world: World = ALONE

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass; weights, losses and entropies stay float32."""
        dtype = PRECISIONS[self.precision]
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32
        )
        return context

    def place(self, network: nn.Module) -> nn.Module:
        """Put a network on the device, in the memory layout of the views."""
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def wait(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_compute(*, device: str = "auto", precision: str = "auto") -> Compute:
    """Resolve "auto": the GPU if there is one; bfloat16 where the processor multiplies in it.

    Raises:
        ComputeError: if the device or precision is unknown or absent.
    """
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
    if chosen.type == "cuda":
        _require_own_gpu(chosen)
    return chosen


def _require_own_gpu(device: torch.device) -> None:
    """Refuse the number of a GPU that torchrun's other processes on this machine would be given too.

    The number that a process would get anyway is its own; where there is one GPU, it is that of all.
    """
    here, own = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), _own_gpu()
    if here > 1 and device.index != own:
        raise ComputeError(
            f"`device` is {device}, and the {here} processes on this machine would share it: leave it out, and each "
            f"takes the GPU of its LOCAL_RANK, this one cuda:{own} (CUDA_VISIBLE_DEVICES says which GPUs there are)"
        )


def _own_gpu() -> int:
    """The GPU of this process: torchrun numbers those of a machine."""
    local = os.environ.get("LOCAL_RANK", "0")
    return (int(local) if local.isdigit() else 0) % torch.cuda.device_count()


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 units; elsewhere bfloat16 is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes: list[Callable[[], bool]] = [
        probe
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if (probe := getattr(torch.cpu, name, None)) is not None
    ]
    return any(probe() for probe in probes)
