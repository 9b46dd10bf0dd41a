"""Mean and standard deviation of each channel, and the values that published networks were trained with."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.dataset.errors import DataError

_MOST = 1_000_000
_LEAST = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel, for pixels in [0, 1].

    Raises:
        DataError: if a value is none, or none that float32 could use.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not (all(abs(mean) <= _MOST for mean in self.mean) and all(_LEAST <= std <= _MOST for std in self.std)):
            raise DataError(
                f"a normalisation with mean {self.mean} and standard deviation {self.std} cannot be: give finite "
                f"numbers up to {_MOST:,}, and standard deviations above 0, {_LEAST} at least"
            )

    def apply(self, views: Tensor) -> Tensor:
        """Turn views (B, 3, H, W), uint8, into a network's input, float32, in the same memory layout."""
        scale, shift = _factors(self, views.device)
        return torch.addcmul(shift, views.float(), scale)

    @classmethod
    def of(cls, pixels: Tensor) -> "Normalisation":
        """Measure the channels of pixels (N, H, W, 3), uint8, exactly: from their histograms."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        share = [torch.bincount(pixels[..., c].flatten(), minlength=256).double() for c in range(3)]
        means = [float((s * levels).sum() / s.sum()) for s in share]
        squares = [float((s * levels**2).sum() / s.sum()) for s in share]
        stds = [max(square - mean**2, 1e-8) ** 0.5 for mean, square in zip(means, squares, strict=True)]
        return cls(mean=_rounded(means), std=_rounded(stds))


# Of the published CIFAR and ImageNet checkpoints (READMEs of RepDistiller, mdistiller and torchvision); "none" is for
# networks that take pixels in [0, 1] and do the rest themselves.
NORMALISATIONS = {
    "cifar10": Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "cifar100": Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    "imagenet": Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "none": Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}


def as_normalisation(value: "str | Normalisation | Sequence[Sequence[float]]") -> Normalisation:
    """A name of `NORMALISATIONS`, the text `m,m,m/s,s,s`, or a pair of mean and standard deviation.

    Raises:
        DataError: saying what is understood.
    """
    if isinstance(value, Normalisation):
        return value
    if isinstance(value, str) and value in NORMALISATIONS:
        return NORMALISATIONS[value]
    try:
        parts = [part.split(",") for part in value.split("/")] if isinstance(value, str) else value
        mean, std = ([float(number) for number in part] for part in parts)
        (m0, m1, m2), (s0, s1, s2) = mean, std
    except (ValueError, TypeError):
        names = ", ".join(NORMALISATIONS)
        raise DataError(f"`normalise={value}` is not understood: give one of {names}, or m,m,m/s,s,s") from None
    return Normalisation(mean=(m0, m1, m2), std=(s0, s1, s2))


@functools.cache
def _factors(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift (3, 1, 1) of raw pixels; made once, because every step needs them on the device."""
    scale = [1 / (255 * std) for std in normalisation.std]
    shift = [-mean / std for mean, std in zip(normalisation.mean, normalisation.std, strict=True)]
    return torch.tensor(scale, device=device).view(3, 1, 1), torch.tensor(shift, device=device).view(3, 1, 1)


def _rounded(values: list[float]) -> tuple[float, float, float]:
    """Four digits, as the field publishes them: a stable text in recipes and fingerprints."""
    first, second, third = (round(value, 4) for value in values)
    return first, second, third
