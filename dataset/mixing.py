"""MixUp and CutMix on top of other views: a view of two samples, and the share of the label that each has.

Partner and share are pure functions of (seed, view index, sample), so that batches may have any size and order, and
the teachers see the mixed view. The larger share is always the sample's own: mixing i into j with share s is mixing j
into i with 1 - s, so the pairs are as published, and a sample's top-1 keeps its meaning.

Params are the base's params of the sample, then of the partner, the partner's number in two parts, and then the share
(MixUp) or the box (CutMix), in 65,535ths. B samples, N in all.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from demkd.dataset import seeds
from demkd.dataset.augment import Augmentation, Indices, Mixture, Params, Sizes
from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.resized_crop import Floats
from demkd.errors import DataError

_WHOLE = 65_535
_ATTEMPTS = 64
_LARGEST_ALPHA = 2.0  # beyond, the draw by rejection would take too long, and all shares are near a half anyway


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mixing(Augmentation):
    """What MixUp and CutMix have in common."""

    mixes: ClassVar[bool] = True
    num_mix_params: ClassVar[int]

    base: Augmentation = field(default_factory=CropFlip)  # if its views are finitely many, they are drawn independently
    alpha: float = 1.0  # of the share's distribution, Beta(alpha, alpha)

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= _LARGEST_ALPHA:
            raise DataError(f"`mix_alpha` is {self.alpha}: choose above 0, at most {_LARGEST_ALPHA:g}")
        if self.base.mixes:
            raise DataError(f"views that are mixed already ({self.base.name}) cannot be mixed again: choose one")

    @property
    def num_params(self) -> int:
        return 2 * self.base.num_params + 2 + self.num_mix_params

    @property
    def view_size(self) -> int | None:
        return self.base.view_size

    def check_images(self, sizes: Sizes) -> None:
        self.base.check_images(sizes)

    def make_params(self, *, view_seed: int, view_indices: Sequence[int], indices: Indices, sizes: Sizes) -> Params:
        sides = sizes[0] if self.view_size is None else np.array((self.view_size, self.view_size))
        views = []
        for view_index in view_indices:
            draws = seeds.uniforms(seeds.MIXTURE, view_seed=view_seed, view_index=view_index, indices=indices, count=3)
            partners = (draws[:, 0] * len(sizes)).astype(np.int64)
            own, other = (
                self.base.make_epoch_params(run_seed=view_seed, epoch=view_index, indices=samples, sizes=sizes)
                for samples in (indices, partners)
            )
            mix = self._mix_params(_beta_share(self.alpha, view_seed, view_index, indices), draws[:, 1:], sides)
            numbers = np.stack((partners >> 16, partners & _WHOLE), axis=1)
            views.append(np.concatenate((own, other, numbers, np.rint(mix)), axis=1))
        return np.stack(views).astype(np.uint16)

    def partners(self, params: Sequence[int]) -> tuple[int, ...]:
        place = 2 * self.base.num_params
        return ((params[place] << 16) + params[place + 1],)

    def mixture(self, params: Tensor) -> Mixture:
        high, low, *mix = params.long()[:, 2 * self.base.num_params :].unbind(1)
        return Mixture(partners=(high << 16) + low, share=self._share(*mix))

    def apply(self, images: Sequence[Tensor], params: Sequence[int], size: int | None) -> Tensor:
        length = self.base.num_params
        own = self.base.apply(images[:1], params[:length], size)
        other = self.base.apply(images[1:], params[length : 2 * length], size)
        return self._mix(own, other, *params[2 * length + 2 :])

    @abstractmethod
    def _mix_params(self, share: Floats, center: Floats, sides: Floats) -> Floats:
        """The params of the mixture: (B, num_mix_params).

        The share (B,) is from Beta(alpha, alpha), the center (B, 2) uniform in [0, 1); sides (2,) are the views'.
        """

    @abstractmethod
    def _share(self, *mix: Tensor) -> Tensor:
        """The sample's own share (B,)."""

    @abstractmethod
    def _mix(self, own: Tensor, other: Tensor, *mix: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class MixUp(_Mixing):
    """share x own + (1 - share) x other, rounded to whole levels (Zhang et al. 2018)."""

    name: ClassVar[str] = "mixup"
    num_mix_params: ClassVar[int] = 1

    def _mix_params(self, share: Floats, center: Floats, sides: Floats) -> Floats:  # noqa: ARG002
        return np.maximum(share, 1 - share)[:, None] * _WHOLE

    def _share(self, *mix: Tensor) -> Tensor:
        return mix[0] / _WHOLE

    def _mix(self, own: Tensor, other: Tensor, *mix: int) -> Tensor:
        return torch.lerp(other.float(), own.float(), mix[0] / _WHOLE).round_().to(torch.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class CutMix(_Mixing):
    """A box of one view in the other (Yun et al. 2019); the share is the area of whole pixels that shows the sample.

    As published, the box has a uniform center, the area 1 - s before it is clipped at the edges, and s from
    Beta(alpha, alpha). If the clipped box has more than half of the area, it shows the sample, otherwise the partner.
    Its sides are shares of the view's, so that views of two sizes are mixed alike.
    """

    name: ClassVar[str] = "cutmix"
    num_mix_params: ClassVar[int] = 5  # whether the box shows the sample itself; top, left, bottom, right

    def _mix_params(self, share: Floats, center: Floats, sides: Floats) -> Floats:
        half = np.sqrt(1 - share)[:, None] / 2
        start, end = (np.rint(np.clip(corner, 0, 1) * sides) / sides for corner in (center - half, center + half))
        inside = (end - start).prod(axis=1, keepdims=True) > 0.5
        return np.concatenate((inside, start * _WHOLE, end * _WHOLE), axis=1)

    def _share(self, *mix: Tensor) -> Tensor:
        inside, (top, left, bottom, right) = mix[0] > 0, (number / _WHOLE for number in mix[1:])
        area = (bottom - top) * (right - left)
        return torch.where(inside, area, 1 - area)

    def _mix(self, own: Tensor, other: Tensor, *mix: int) -> Tensor:
        height, width = own.shape[1:]
        top, bottom = (round(number / _WHOLE * height) for number in mix[1::2])
        left, right = (round(number / _WHOLE * width) for number in mix[2::2])
        around, box = (other, own) if mix[0] else (own, other)
        mixed = around.clone()
        mixed[:, top:bottom, left:right] = box[:, top:bottom, left:right]
        return mixed


def _beta_share(alpha: float, view_seed: int, view_index: int, indices: Indices) -> Floats:
    """Draws (B,) from Beta(alpha, alpha), by Johnk's rejection (1964)."""
    share = np.full(len(indices), 0.5)
    open_rows = np.arange(len(indices))
    for attempt in range(_ATTEMPTS):
        rows, first = indices[open_rows], 3 + 2 * attempt
        draws = seeds.uniforms(
            seeds.MIXTURE, view_seed=view_seed, view_index=view_index, indices=rows, count=2, first=first
        )
        own, other = np.log(np.maximum(draws, 2.0**-60)).T / alpha  # as logarithms: alpha may be small
        total = np.logaddexp(own, other)
        accepted = total <= 0
        share[open_rows[accepted]] = np.exp(own - total)[accepted]
        open_rows = open_rows[~accepted]
        if not len(open_rows):
            break
    return share
