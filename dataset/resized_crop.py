"""Resized crop: a random part of the picture, brought to one size; the usual augmentation of photos.

A view is a box of the picture, drawn as torchvision's RandomResizedCrop draws it (Szegedy et al. 2015), resized with
antialiasing, flipped or not. The box is kept in pixels of the picture, so that networks with inputs of different sizes
see the same part of it. S slots, B samples, N in all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from demkd.dataset import seeded
from demkd.dataset.errors import ViewsError
from demkd.dataset.views import Indices, Records, Sizes, ViewPolicy

INTERPOLATIONS = ("bilinear", "bicubic")
_ATTEMPTS = 10  # torchvision's
_DRAWS = 5  # numbers an attempt: area, ratio, top, left; and the flip

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizedCrop(ViewPolicy):
    """A record is the box's top, left, height and width in pixels, and whether it is flipped.

    Attributes:
        size: height and width of the views, unless a network asks for others.
        scale: least and largest share of the picture's area.
        ratio: least and largest width by height of the box, before it is resized to a square.

    Raises:
        ViewsError: if a parameter cannot be.
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
            raise ViewsError(f"`size` is {self.size}: give pixels, 1 to 4096")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ViewsError(f"`scale` is {self.scale}: give the least and the largest share of the area, in 0 to 1")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ViewsError(f"`ratio` is {self.ratio}: give the least and the largest width by height, above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise ViewsError(f"`interpolation` cannot be {self.interpolation!r}: choose {' or '.join(INTERPOLATIONS)}")

    @property
    def record_length(self) -> int:
        return 5

    @property
    def view_size(self) -> int:
        return self.size

    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices, sizes: Sizes) -> Records:
        """Boxes of torchvision's distribution: ten attempts at an area and a ratio, then the largest central box."""
        return np.stack([self._draw(view_seed, slot, indices, sizes[indices]) for slot in slots])

    def _draw(self, view_seed: int, slot: int, indices: Indices, sizes: Sizes) -> Records:
        """(B, 5) of samples (B,), whose pictures have sizes (B, 2)."""
        boxes = _central_boxes(sizes, self.ratio)
        left_over = np.arange(len(indices))
        for attempt in range(_ATTEMPTS):
            draws = seeded.uniforms(
                seeded.BOX,
                view_seed=view_seed,
                slot=slot,
                indices=indices[left_over],
                first=attempt * _DRAWS,
                count=_DRAWS,
            )
            if not attempt:
                boxes[:, 4] = self.flip & (draws[:, 4] < 0.5)
            found, fits = self._attempt(draws, sizes[left_over])
            boxes[left_over[fits], :4] = found[fits]
            left_over = left_over[~fits]
            if not len(left_over):
                break
        return boxes.astype(np.uint16)

    def _attempt(self, draws: Floats, sizes: Sizes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Boxes (b, 4) for uniform draws (b, 5), and which of them fit into the pictures."""
        height, width = sizes[:, 0], sizes[:, 1]
        area = height * width * _between(self.scale, draws[:, 0])
        ratio = np.exp(_between((math.log(self.ratio[0]), math.log(self.ratio[1])), draws[:, 1]))
        wide = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        high = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        top = (draws[:, 2] * np.maximum(height - high + 1, 1)).astype(np.int64)
        left = (draws[:, 3] * np.maximum(width - wide + 1, 1)).astype(np.int64)
        return np.stack((top, left, high, wide), axis=1), fits

    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:
        """With torchvision's resize, and so to its very pixels."""
        from torchvision.transforms.v2 import functional as F

        top, left, height, width, flipped = record
        picture, side = pictures[0], size or self.size
        if not (height > 0 and top + height <= picture.shape[0] and width > 0 and left + width <= picture.shape[1]):
            raise ViewsError(
                f"the box {width} x {height} at ({left}, {top}) lies outside a picture of {picture.shape[1]} x "
                f"{picture.shape[0]} pixels: the pictures are not those that the views were drawn for"
            )
        box = picture[top : top + height, left : left + width].permute(2, 0, 1)
        mode = interpolation_mode(self.interpolation)
        view: Tensor = F.resize(box, [side, side], interpolation=mode, antialias=True)
        return view.flip(2) if flipped else view


def interpolation_mode(name: str) -> Any:
    """torchvision's name of one of `INTERPOLATIONS`."""
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)


def _between(bounds: tuple[float, float], share: Floats) -> Floats:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _central_boxes(sizes: Sizes, ratio: tuple[float, float]) -> NDArray[np.int64]:
    """The largest central boxes (B, 5) whose ratio is allowed, not flipped."""
    height, width = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    own = width / height
    wide = np.where(own > ratio[1], np.rint(height * ratio[1]), width).astype(np.int64)
    high = np.where(own < ratio[0], np.rint(width / ratio[0]), height).astype(np.int64)
    wide, high = np.clip(wide, 1, width), np.clip(high, 1, height)
    return np.stack(((height - high) // 2, (width - wide) // 2, high, wide, np.zeros_like(high)), axis=1)
