"""Batch normalisation over all processes' samples, so that they see the statistics that one process would."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from demkd.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SynchronisedError(UserError, TypeError):
    """A network whose batch normalisation cannot be synchronised."""


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Let a model's batch normalisations see all processes' samples: PyTorch's on GPUs, which has none for CPUs.

    Raises:
        SynchronisedError: if one is of a class that does more, such as timm's with its activation, which would be lost.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) not in _PLAIN:
            raise SynchronisedError(
                f"`sync_bn` knows PyTorch's batch normalisation, and {name} of the network is {type(module).__name__}, "
                "which does more than that: leave it out, or choose another network"
            )
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _SyncedBatchNorm.of(child))


class _SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose mean and variance are of all processes' samples (B, C, ...)."""

    @classmethod
    def of(cls, module: nn.modules.batchnorm._BatchNorm) -> "_SyncedBatchNorm":
        """What takes the place of a batch normalisation; its tensors are kept."""
        made = cls(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        made.__dict__.update(module.__dict__)
        return made

    def _check_input_dim(self, _input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in PyTorch
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        ones = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        sums = _sum(torch.cat((x.sum(dims), ones)))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _sum(centred.square().sum(dims)) / count
        with torch.no_grad():
            self._keep(mean, variance * count / (count - 1))
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _SumEverywhere(torch.autograd.Function):
    """The sum over all processes: whatever depends on it anywhere is in its gradient."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _sum(tensor: Tensor) -> Tensor:
    summed: Tensor = _SumEverywhere.apply(tensor)
    return summed


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total
