"""Resized crop: a random box of the image, resized to one size; and the center crop of an evaluation.

The box is drawn as torchvision's RandomResizedCrop draws it (Szegedy et al. 2015), resized with antialiasing, flipped
or not. It is stored in pixels of the image, so that networks with different input sizes see the same part of it.
V views, B samples of a batch, N in all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from demkd.config import CROP_PCT
from demkd.dataset import seeds
from demkd.dataset.augment import Augmentation, Indices, Params, Sizes
from demkd.errors import DataError

INTERPOLATIONS = ("bilinear", "bicubic")
_ATTEMPTS = 10  # torchvision's
_DRAWS = 5  # numbers an attempt: area, ratio, top, left; and the flip

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizedCrop(Augmentation):
    """Params are the box's top, left, height and width in pixels, and whether the view is flipped.

    Attributes:
        size: default height and width of the views.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height of the box, before it is resized to a square.
    """

    name: ClassVar[str] = "resized-crop"

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise DataError(f"`size` is {self.size}: give pixels, 1 to 4096")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"`scale` is {self.scale}: give the smallest and largest share of the area, in 0 to 1")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise DataError(f"`ratio` is {self.ratio}: give the smallest and largest width by height, above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(f"`interpolation` cannot be {self.interpolation!r}: choose {' or '.join(INTERPOLATIONS)}")

    @property
    def num_params(self) -> int:
        return 5

    @property
    def view_size(self) -> int:
        return self.size

    def make_params(self, *, view_seed: int, view_indices: Sequence[int], indices: Indices, sizes: Sizes) -> Params:
        return np.stack([self._boxes(view_seed, view_index, indices, sizes[indices]) for view_index in view_indices])

    def _boxes(self, view_seed: int, view_index: int, indices: Indices, sizes: Sizes) -> Params:
        """Params (B, 5) of samples (B,), whose images have sizes (B, 2), of torchvision's distribution.

        That is ten attempts at an area and a ratio; where none fits, the largest central box of an allowed ratio.
        """
        height, width = sizes.T.astype(np.int64)
        least, most = self.ratio
        wide = np.where(width / height > most, np.rint(height * most), width).astype(np.int64)
        high = np.where(width / height < least, np.rint(width / least), height).astype(np.int64)
        wide, high = np.clip(wide, 1, width), np.clip(high, 1, height)
        boxes = np.stack(((height - high) // 2, (width - wide) // 2, high, wide, np.zeros_like(high)), axis=1)
        open_rows = np.arange(len(indices))
        for attempt in range(_ATTEMPTS):
            rows, first = indices[open_rows], attempt * _DRAWS
            draws = seeds.uniforms(
                seeds.BOX, view_seed=view_seed, view_index=view_index, indices=rows, first=first, count=_DRAWS
            )
            if not attempt:
                boxes[:, 4] = self.flip & (draws[:, 4] < 0.5)
            height, width = sizes[open_rows].T
            area = height * width * _between(self.scale, draws[:, 0])
            ratio = np.exp(_between((math.log(least), math.log(most)), draws[:, 1]))
            wide = np.rint(np.sqrt(area * ratio)).astype(np.int64)
            high = np.rint(np.sqrt(area / ratio)).astype(np.int64)
            fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
            top = (draws[:, 2] * np.maximum(height - high + 1, 1)).astype(np.int64)
            left = (draws[:, 3] * np.maximum(width - wide + 1, 1)).astype(np.int64)
            boxes[open_rows[fits], :4] = np.stack((top, left, high, wide), axis=1)[fits]
            open_rows = open_rows[~fits]
            if not len(open_rows):
                break
        return boxes.astype(np.uint16)

    def apply(self, images: Sequence[Tensor], params: Sequence[int], size: int | None) -> Tensor:
        top, left, height, width, flipped = params
        image, side = images[0], size or self.size
        if not (height > 0 and top + height <= image.shape[0] and width > 0 and left + width <= image.shape[1]):
            raise DataError(
                f"the box {width} x {height} at ({left}, {top}) lies outside an image of {image.shape[1]} x "
                f"{image.shape[0]} pixels: the images are not those that the views were drawn for"
            )
        box = image[top : top + height, left : left + width].permute(2, 0, 1)
        view = _resize(box, [side, side], self.interpolation)
        return view.flip(2) if flipped else view


@dataclass(frozen=True, kw_only=True, slots=True)
class CenterCrop(Augmentation):
    """The center `size` x `size` pixels of the image whose shorter side was resized to `size / crop_pct`.

    As torchvision and timm evaluate. Nothing is drawn: every image has one such view, without params.
    """

    name: ClassVar[str] = "center-crop"

    size: int
    crop_pct: float = CROP_PCT
    interpolation: str = "bilinear"

    @property
    def num_params(self) -> int:
        return 0

    @property
    def num_distinct_views(self) -> int:
        return 1

    @property
    def view_size(self) -> int:
        return self.size

    def make_params(self, *, view_seed: int, view_indices: Sequence[int], indices: Indices, sizes: Sizes) -> Params:  # noqa: ARG002
        return np.zeros((len(view_indices), len(indices), 0), np.uint16)

    def apply(self, images: Sequence[Tensor], params: Sequence[int], size: int | None) -> Tensor:  # noqa: ARG002
        from torchvision.transforms.v2 import functional as F

        side = size or self.size
        shorter = int(side / self.crop_pct + 1e-6)  # 224 / (224 / 232) is 231.99999999999997
        view: Tensor = F.center_crop(_resize(images[0].permute(2, 0, 1), [shorter], self.interpolation), [side, side])
        return view


def _resize(image: Tensor, size: list[int], interpolation: str) -> Tensor:
    """With torchvision's resize, and so to its very pixels."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    resized: Tensor = F.resize(image, size, interpolation=InterpolationMode(interpolation), antialias=True)
    return resized


def _between(bounds: tuple[float, float], share: Floats) -> Floats:
    return bounds[0] + (bounds[1] - bounds[0]) * share
