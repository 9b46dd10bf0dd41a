"""Crop and flip: the usual augmentation of small images, whose finitely many views are numbered.

A view is a crop of the image's own size from the zero-padded image, flipped or not: RandomCrop(H, padding) and
RandomHorizontalFlip have exactly (2 padding + 1)^2 x 2 outcomes, and a view's param is the number of one of them.
B views of a batch, V view indices, N samples, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.dataset import seeds
from demkd.dataset.augment import Augmentation, BatchApply, Indices, Params, Sizes
from demkd.errors import DataError

_MOST_VIEWS = 1 << 16  # that a param of 16 bits can number


@dataclass(frozen=True, kw_only=True, slots=True)
class CropFlip(Augmentation):
    """View number `(top * (2 * padding + 1) + left) * flips + flipped` is the crop at (top, left) of the padded image.

    `flips` is 2 with flipping and 1 without. Without padding and flipping, the one view is the whole image.
    """

    name: ClassVar[str] = "crop-flip"

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0 or self.num_distinct_views > _MOST_VIEWS:
            raise DataError(
                f"a padding of {self.padding} gives {self.num_distinct_views:,} views, and there may be "
                f"{_MOST_VIEWS:,}: choose a padding from 0 to {90 if self.flip else 127}"
            )

    @property
    def num_params(self) -> int:
        return 1

    @property
    def num_distinct_views(self) -> int:
        return (2 * self.padding + 1) ** 2 * (1 + self.flip)

    def make_params(self, *, view_seed: int, view_indices: Sequence[int], indices: Indices, sizes: Sizes) -> Params:  # noqa: ARG002
        """Each sample shows all views in a random order of its own, so that none comes twice: (V, B, 1)."""
        length = max(view_indices) + 1
        self.check_views(length)
        keys = seeds.view_keys(view_seed=view_seed, indices=indices)
        return seeds.permutations(keys, size=self.num_distinct_views, length=length)[list(view_indices), :, None]

    def make_epoch_params(self, *, run_seed: int, epoch: int, indices: Indices, sizes: Sizes) -> Params:  # noqa: ARG002
        """Independent uniform views, as in ordinary training; a view may come twice: (B, 1)."""
        keys = seeds.epoch_keys(run_seed=run_seed, epoch=epoch, indices=indices)
        return (keys % np.uint64(self.num_distinct_views)).astype(np.uint16)[:, None]

    def check_images(self, sizes: Sizes) -> None:
        other = np.argmax((sizes != sizes[0]).any(1))
        if other:
            (height, width), (high, wide) = sizes[0], sizes[other]
            raise DataError(
                f"crop-flip keeps the images' own size, and image 0 is {width} x {height} pixels, image {other} "
                f"{wide} x {high}: choose `view=resized-crop`, or resize all to one size"
            )

    def apply(self, images: Sequence[Tensor], params: Sequence[int], size: int | None) -> Tensor:
        if size is not None:
            raise DataError(f"crop-flip keeps the images' own size and gives no {size} pixels: leave `size` out")
        return self.batch_apply(images[0][None])(torch.zeros(1, dtype=torch.int64), torch.tensor([list(params)]))[0]

    def batch_apply(self, images: Tensor) -> BatchApply:
        """Pads all images once, (N, H + 2 padding, W + 2 padding, 3) bytes; a batch is then one gather."""
        margin, offsets, flips = self.padding, 2 * self.padding + 1, 1 + self.flip
        padded = F.pad(images, (0, 0, margin, margin, margin, margin)) if margin else images
        samples, height, width, _ = images.shape
        sample, row, column, channel = padded.stride()
        # Every crop as an overlapping window of the same memory: (N, top, left, H, W, 3).
        windows = padded.as_strided(
            (samples, offsets, offsets, height, width, 3), (sample, row, column, row, column, channel)
        )

        def cut(indices: Tensor, params: Tensor) -> Tensor:
            numbers = params[:, 0].long()
            crop = numbers // flips
            views = windows[indices, crop // offsets, crop % offsets]  # (B, H, W, 3)
            if self.flip:
                views = torch.where((numbers % 2).bool().view(-1, 1, 1, 1), views.flip(2), views)
            return views.permute(0, 3, 1, 2)

        return cut
