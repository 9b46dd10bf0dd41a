"""Crop and flip: the usual augmentation of small pictures, whose finitely many outcomes are numbered.

A view is a crop of the picture's own size out of the picture padded with zeros, flipped or not: RandomCrop(H, padding)
and RandomHorizontalFlip have exactly (2 padding + 1)^2 x 2 outcomes, and a record is the number of one of them.
B views in a batch, N samples, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.dataset import seeded
from demkd.dataset.errors import ViewsError
from demkd.dataset.views import Indices, Records, Renderer, Sizes, ViewPolicy

_MOST_VIEWS = 1 << 16  # that a record of 16 bits can number


@dataclass(frozen=True, kw_only=True, slots=True)
class CropFlip(ViewPolicy):
    """Number `(top * (2 * padding + 1) + left) * flips + flipped` is the crop at (top, left) of the padded picture.

    `flips` is 2 with flipping and 1 without.

    Raises:
        ViewsError: if the padding is below 0, or so large that there are more than 65,536 views.
    """

    name: ClassVar[str] = "crop-flip"

    padding: int
    flip: bool

    def __post_init__(self) -> None:
        if self.padding < 0 or self.num_distinct_views > _MOST_VIEWS:
            raise ViewsError(
                f"a padding of {self.padding} gives {self.num_distinct_views:,} views, and there may be "
                f"{_MOST_VIEWS:,}: choose a padding from 0 to {90 if self.flip else 127}"
            )

    @property
    def record_length(self) -> int:
        return 1

    @property
    def num_distinct_views(self) -> int:
        """How many different views a picture has."""
        return self._offsets**2 * self._flips

    @property
    def _offsets(self) -> int:
        return 2 * self.padding + 1

    @property
    def _flips(self) -> int:
        return 2 if self.flip else 1

    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices, sizes: Sizes) -> Records:  # noqa: ARG002
        """Each sample meets all views in a random order of its own, so that none comes twice: (S, B, 1)."""
        length = max(slots) + 1
        self.require(length)
        keys = seeded.view_keys(view_seed=view_seed, indices=indices)
        return seeded.permutations(keys, size=self.num_distinct_views, length=length)[list(slots), :, None]

    def draw_epoch(self, *, run_seed: int, epoch: int, indices: Indices, sizes: Sizes) -> Records:  # noqa: ARG002
        """Independent uniform views, as ordinary training draws them; repetitions are possible: (B, 1)."""
        keys = seeded.epoch_keys(run_seed=run_seed, epoch=epoch, indices=indices)
        return (keys % np.uint64(self.num_distinct_views)).astype(np.uint16)[:, None]

    def require_pictures(self, sizes: Sizes) -> None:
        """Refuse pictures of different sizes, which make no batch.

        Raises:
            ViewsError: with two of the sizes.
        """
        other = np.argmax((sizes != sizes[0]).any(1))
        if other:
            (height, width), (high, wide) = sizes[0], sizes[other]
            raise ViewsError(
                f"crop-flip keeps the pictures' own size, and picture 0 is {width} x {height} pixels, picture {other} "
                f"{wide} x {high}: choose `view=resized-crop`, or resize all to one size"
            )

    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:
        if size is not None:
            raise ViewsError(f"crop-flip keeps the pictures' own size and gives no {size} pixels: leave `size` out")
        return self.renderer(pictures[0][None])(torch.zeros(1, dtype=torch.int64), torch.tensor([list(record)]))[0]

    def renderer(self, pixels: Tensor) -> Renderer:
        """Pads all pictures once, (N, H + 2 padding, W + 2 padding, 3) bytes; a batch is then one gather."""
        margin = self.padding
        padded = F.pad(pixels, (0, 0, margin, margin, margin, margin))
        samples, height, width, _ = pixels.shape
        sample, row, column, channel = padded.stride()
        # Every crop as an overlapping window of the same memory: (N, top, left, H, W, 3).
        windows = padded.as_strided(
            (samples, self._offsets, self._offsets, height, width, 3), (sample, row, column, row, column, channel)
        )

        def cut(indices: Tensor, records: Tensor) -> Tensor:
            top, left, flipped = self.locate(records[:, 0].long())
            views = windows[indices, top, left]  # (B, H, W, 3)
            if self.flip:
                views = torch.where(flipped.view(-1, 1, 1, 1), views.flip(2), views)
            return views.permute(0, 3, 1, 2)

        return cut

    def locate(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The top, left and flipped of view numbers (B,)."""
        crop, flipped = numbers // self._flips, numbers % self._flips
        return crop // self._offsets, crop % self._offsets, flipped.bool()
