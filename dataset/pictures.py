"""A split of a data set, decoded once: every picture in one uint8 tensor, and what identifies it.

N samples, H and W pixels.
"""

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.dataset.errors import DataError
from demkd.dataset.views import CropFlip


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Mean and std of each channel, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """One split: sample i is `pixels[i]` with `labels[i]`, for ever.

    Attributes:
        source: what the user calls the data set, as `load_pictures` takes it; no part of any fingerprint.
        name: the same for messages.
        split: "train" or "test".
        pixels: (N, H, W, 3), uint8.
        labels: (N,), int64, in 0..C-1.
        class_names: C names; the position is the label.
        normalisation: the figures published with the data set, or None.
        policy: the views of a picture.
    """

    source: str
    name: str
    split: str
    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    normalisation: Normalisation | None
    policy: CropFlip

    def __post_init__(self) -> None:
        if len(self.pixels) == 0:
            raise DataError(f"the {self.split} split of {self.name} has no pictures: nothing to do with it")
        assert self.pixels.dtype == torch.uint8
        assert self.pixels.shape[0] == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def usual_normalisation(self) -> Normalisation:
        """What a network trained on this split expects: the published figures, else those of these pictures."""
        return self.normalisation or Normalisation.of(self.pixels)

    def pixels_sha256(self) -> str:
        """Digest of every pixel in sample order, with the shape; the same on every machine and for every path."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()

    def labels_sha256(self) -> str:
        """Digest of the labels in sample order, as little-endian 64-bit integers."""
        return hashlib.sha256(self.labels.numpy().astype("<i8").tobytes()).hexdigest()


@functools.cache
def _factors(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift (3, 1, 1) of raw pixels; made once, because every step needs them on the device."""
    scale = [1 / (255 * d) for d in normalisation.std]
    shift = [-m / d for m, d in zip(normalisation.mean, normalisation.std, strict=True)]
    return torch.tensor(scale, device=device).view(3, 1, 1), torch.tensor(shift, device=device).view(3, 1, 1)


def _rounded(values: list[float]) -> tuple[float, float, float]:
    """Four digits, as the field publishes them: a stable text in recipes and fingerprints."""
    first, second, third = (round(value, 4) for value in values)
    return first, second, third
