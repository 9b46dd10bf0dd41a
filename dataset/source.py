"""A source of pictures: sample i is the same picture with the same label for ever, and a digest says which.

N samples, C classes, B in a batch, H and W pixels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import DataError
from demkd.dataset.normalisation import Normalisation
from demkd.dataset.views import Renderer, ViewPolicy

_LARGEST_PADDING = 64


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """One split of a data set.

    Attributes:
        name: what messages call it; no part of any digest.
        split: "train" or "test".
        labels: (N,), int64, in 0..C-1.
        class_names: C names; the position is the label.
        origin: what `load_images` loads it by; None for a Python object.
        normalisation: what was published with the data set, or None.
    """

    name: str
    split: str
    labels: Tensor
    class_names: tuple[str, ...]
    origin: str | None = None
    normalisation: Normalisation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    @abstractmethod
    def picture_size(self) -> tuple[int, int]:
        """Height and width of every picture."""

    @property
    @abstractmethod
    def default_policy(self) -> ViewPolicy:
        """The views that a network is trained on unless told otherwise."""

    @abstractmethod
    def fetch(self, indices: Tensor) -> Tensor:
        """The pictures (B, H, W, 3), uint8, of samples (B,)."""

    @abstractmethod
    def renderer(self, policy: ViewPolicy, device: torch.device) -> Renderer:
        """What makes views of this source's pictures on a device, from indices (B,) and records (B, R)."""

    def block(self, indices: Tensor, policy: ViewPolicy, device: torch.device) -> Renderer:
        """What makes views of some samples (B,), whose pictures are read once, from positions 0..B-1 and records."""
        return policy.renderer(self.fetch(indices).to(device))

    @abstractmethod
    def plain(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """What gives the pictures as they are, (B, 3, H, W), uint8, on a device, from indices (B,)."""

    @abstractmethod
    def measured_normalisation(self) -> Normalisation:
        """Mean and standard deviation of these pictures."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What identifies the pictures, whatever they are called and wherever they lie."""

    def usual_normalisation(self) -> Normalisation:
        """What a network trained on this split expects: the published values, else those of these pictures."""
        return self.normalisation or self.measured_normalisation()

    def labels_sha256(self) -> str:
        """Digest of the labels in sample order, as little-endian 64-bit integers."""
        return hashlib.sha256(self.labels.numpy().astype("<i8").tobytes()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What identifies the split, as provenances keep it: digests and words that are the same everywhere."""
        return {
            "split": self.split,
            "samples": len(self),
            "class_names": list(self.class_names),
            "labels_sha256": self.labels_sha256(),
            **self.identity(),
        }


@dataclass(frozen=True, kw_only=True)
class MemoryImages(ImageSource):
    """Pictures of one size, decoded, all in memory.

    Attributes:
        pixels: (N, H, W, 3), uint8.
        policy: the default views, or None for crop and flip with an eighth of the height as padding.
    """

    pixels: Tensor
    policy: ViewPolicy | None = None
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _renderers: dict[tuple[ViewPolicy, torch.device], Renderer] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise DataError(f"the {self.split} split of {self.name} has no pictures: nothing to do with it")
        assert self.pixels.dtype == torch.uint8
        assert self.pixels.shape[0] == len(self.labels)

    @property
    def picture_size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def default_policy(self) -> ViewPolicy:
        padding = min(max(self.picture_size[0] // 8, 1), _LARGEST_PADDING)
        return self.policy or CropFlip(padding=padding, flip=True)

    def fetch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]

    def renderer(self, policy: ViewPolicy, device: torch.device) -> Renderer:
        """Made once for a policy, because a policy may keep a copy of all pictures."""
        key = (policy, device)
        if key not in self._renderers:
            self._renderers.clear()
            self._renderers[key] = policy.renderer(self.pixels.to(device))
        return self._renderers[key]

    def block(self, indices: Tensor, policy: ViewPolicy, device: torch.device) -> Renderer:
        render, samples = self.renderer(policy, device), indices.to(device)
        return lambda positions, records: render(samples[positions], records)

    def plain(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        pixels = self.pixels.to(device)
        return lambda indices: pixels[indices].permute(0, 3, 1, 2)

    def measured_normalisation(self) -> Normalisation:
        return Normalisation.of(self.pixels)

    def identity(self) -> dict[str, Any]:
        """The size, and a digest of every pixel in sample order; taken once, because pixels do not change."""
        if "pixels" not in self._digests:
            digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
            digest.update(self.pixels.contiguous().numpy().data)
            self._digests["pixels"] = digest.hexdigest()
        return {"picture_size": list(self.picture_size), "pixels_sha256": self._digests["pixels"]}
