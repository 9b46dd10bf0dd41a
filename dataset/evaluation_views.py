"""Pictures as an evaluation shows them: as they are, or resized and cut to the middle, as torchvision and timm do.

No record is drawn: every picture has one such view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.resized_crop import interpolation_mode
from demkd.dataset.views import Indices, Records, Renderer, Sizes, ViewPolicy


class _Plain(ViewPolicy):
    """One view a picture, of which nothing is drawn."""

    @property
    def record_length(self) -> int:
        return 0

    @property
    def num_distinct_views(self) -> int:
        return 1

    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices, sizes: Sizes) -> Records:  # noqa: ARG002
        return np.zeros((len(slots), len(indices), 0), np.uint16)


@dataclass(frozen=True, kw_only=True, slots=True)
class AsTheyAre(_Plain):
    """The pictures, which must be of one size."""

    name: ClassVar[str] = "as-they-are"

    def require_pictures(self, sizes: Sizes) -> None:
        CropFlip(padding=0, flip=False).require_pictures(sizes)

    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:  # noqa: ARG002
        return pictures[0].permute(2, 0, 1)

    def renderer(self, pixels: Tensor) -> Renderer:
        return lambda indices, _records: pixels[indices].permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class CentreCrop(_Plain):
    """The middle `size` x `size` pixels of the picture whose shorter side was resized to `size / crop_ratio`."""

    name: ClassVar[str] = "centre-crop"

    size: int
    crop_ratio: float = 0.875
    interpolation: str = "bilinear"

    @property
    def view_size(self) -> int:
        return self.size

    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:  # noqa: ARG002
        from torchvision.transforms.v2 import functional as F

        side = size or self.size
        shorter = int(side / self.crop_ratio + 1e-6)  # 224 / (224 / 232) is 231.99999999999997
        mode = interpolation_mode(self.interpolation)
        picture = F.resize(pictures[0].permute(2, 0, 1), [shorter], interpolation=mode, antialias=True)
        cut: Tensor = F.center_crop(picture, [side, side])
        return cut


def no_records(samples: int) -> Tensor:
    """The records (N, 0) of views of which nothing is drawn."""
    return torch.zeros(samples, 0, dtype=torch.int32)
