"""Mean and standard deviation of each channel, and the values that published networks were trained with."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demkd.config import plain
from demkd.errors import DataError

_MOST = 1_000_000
_LEAST = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", plain(tuple(self.mean)))
        object.__setattr__(self, "std", plain(tuple(self.std)))
        if not (all(abs(mean) <= _MOST for mean in self.mean) and all(_LEAST <= std <= _MOST for std in self.std)):
            raise DataError(
                f"a normalization cannot have mean {self.mean} and standard deviation {self.std}: give finite "
                f"numbers up to {_MOST:,}, and standard deviations above 0, {_LEAST} at least"
            )

    def apply(self, views: Tensor) -> Tensor:
        """Turn views (B, 3, H, W), uint8, into a network's input, float32, in the same memory layout."""
        scale, shift = _factors(self, views.device)
        return torch.addcmul(shift, views.float(), scale)

    @classmethod
    def of(cls, pixels: Tensor) -> "Normalization":
        """Measure the channels of pixels (N, H, W, 3), uint8, exactly: from their histograms."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = [torch.bincount(pixels[..., c].flatten(), minlength=256).double() for c in range(3)]
        means = [float((c * levels).sum() / c.sum()) for c in counts]
        squares = [float((c * levels**2).sum() / c.sum()) for c in counts]
        stds = [max(square - mean**2, 1e-8) ** 0.5 for mean, square in zip(means, squares, strict=True)]
        # Four digits, as the field publishes them: a stable text in recipes and fingerprints.
        (m0, m1, m2), (s0, s1, s2) = ([round(value, 4) for value in values] for values in (means, stds))
        return cls(mean=(m0, m1, m2), std=(s0, s1, s2))


# Of the published CIFAR and ImageNet checkpoints (READMEs of RepDistiller, mdistiller and torchvision); "none" is for
# networks that take pixels in [0, 1] and normalize them themselves.
NORMALIZATIONS = {
    "cifar10": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "cifar100": Normalization(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "none": Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}


def as_normalization(value: "str | Normalization | Sequence[Sequence[float]]") -> Normalization:
    """A name of `NORMALIZATIONS`, the text `m,m,m/s,s,s`, or a pair of mean and standard deviation."""
    if isinstance(value, Normalization):
        return value
    if isinstance(value, str) and value in NORMALIZATIONS:
        return NORMALIZATIONS[value]
    try:
        parts: Any = [part.split(",") for part in value.split("/")] if isinstance(value, str) else value
        (m0, m1, m2), (s0, s1, s2) = np.array(parts, float).tolist()
    except (ValueError, TypeError):
        names = ", ".join(NORMALIZATIONS)
        raise DataError(f"`normalize={value}` is not understood: give one of {names}, or m,m,m/s,s,s") from None
    return Normalization(mean=(m0, m1, m2), std=(s0, s1, s2))


@functools.cache
def _factors(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift (3, 1, 1) of raw pixels; made once, because every step needs them on the device."""
    scale = [1 / (255 * std) for std in normalization.std]
    shift = [-mean / std for mean, std in zip(normalization.mean, normalization.std, strict=True)]
    return torch.tensor(scale, device=device).view(3, 1, 1), torch.tensor(shift, device=device).view(3, 1, 1)
