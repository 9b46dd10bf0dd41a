"""MixUp and CutMix on top of other views: a view of two samples, and how much of the labels is whose.

Partner and share are pure functions of (seed, slot, sample), so that batches may be of any size and order, and the
teachers answer the mixed picture. The larger share is always the sample's own: mixing i into j with share s is mixing j
into i with 1 - s, so the pairs are as usual, and a sample's top-1 still means something.

A record is the sample's own of the views below, the partner's, the partner's number in two parts, and then the share
(MixUp) or the box (CutMix), in 65,535ths. S slots, B samples, N in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.dataset import seeded
from demkd.dataset.errors import ViewsError
from demkd.dataset.views import Indices, Mixture, Records, Sizes, ViewPolicy

_WHOLE = 65_535
_ATTEMPTS = 64
_LARGEST_ALPHA = 2.0  # beyond, the draw by rejection would take too long, and mixtures are all near a half anyway


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mixing(ViewPolicy):
    """What MixUp and CutMix have in common.

    Attributes:
        base: the views that are mixed; where they are finitely many, they are drawn independently here.
        alpha: of the Beta(alpha, alpha) distribution of the share.

    Raises:
        ViewsError: if alpha cannot be.
    """

    numbers: ClassVar[int]

    base: ViewPolicy
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= _LARGEST_ALPHA:
            raise ViewsError(f"`mix_alpha` is {self.alpha}: choose above 0, at most {_LARGEST_ALPHA:g}")
        if self.base.mixes:
            raise ViewsError(f"views that are mixed already ({self.base.name}) cannot be mixed again: choose one")

    @property
    def record_length(self) -> int:
        return 2 * self.base.record_length + 2 + self.numbers

    @property
    def view_size(self) -> int | None:
        return self.base.view_size

    @property
    def mixes(self) -> bool:
        return True

    def require_pictures(self, sizes: Sizes) -> None:
        self.base.require_pictures(sizes)

    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices, sizes: Sizes) -> Records:
        return np.stack([self._draw(view_seed, slot, indices, sizes) for slot in slots])

    def _draw(self, view_seed: int, slot: int, indices: Indices, sizes: Sizes) -> Records:
        draws = seeded.uniforms(seeded.MIXTURE, view_seed=view_seed, slot=slot, indices=indices, count=3)
        partners = (draws[:, 0] * len(sizes)).astype(np.int64)
        share = self._share(view_seed, slot, indices)
        parts = [
            self.base.draw_epoch(run_seed=view_seed, epoch=slot, indices=indices, sizes=sizes),
            self.base.draw_epoch(run_seed=view_seed, epoch=slot, indices=partners, sizes=sizes),
            np.stack((partners >> 16, partners & _WHOLE), axis=1),
            self._numbers(share, draws[:, 1:]),
        ]
        return np.concatenate(parts, axis=1).astype(np.uint16)

    def _share(self, view_seed: int, slot: int, indices: Indices) -> NDArray[np.float64]:
        """The larger of s and 1 - s, s from Beta(alpha, alpha), by Johnk's rejection (1964): (B,)."""
        share = np.full(len(indices), 0.5)
        left_over = np.arange(len(indices))
        for attempt in range(_ATTEMPTS):
            draws = seeded.uniforms(
                seeded.MIXTURE,
                view_seed=view_seed,
                slot=slot,
                indices=indices[left_over],
                count=2,
                first=3 + 2 * attempt,
            )
            own, other = np.log(np.maximum(draws, 2.0**-60)).T / self.alpha  # as logarithms: alpha may be small
            total = np.logaddexp(own, other)
            taken = total <= 0
            share[left_over[taken]] = np.exp(own - total)[taken]
            left_over = left_over[~taken]
            if not len(left_over):
                break
        larger: NDArray[np.float64] = np.maximum(share, 1 - share)
        return larger

    def _numbers(self, share: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """What a record says of the mixture: (B, numbers)."""
        raise NotImplementedError

    def others(self, record: Sequence[int]) -> tuple[int, ...]:
        place = 2 * self.base.record_length
        return ((record[place] << 16) + record[place + 1],)

    def mixture(self, records: Tensor) -> Mixture:
        place = 2 * self.base.record_length
        whole = records.long()
        return Mixture(
            partners=(whole[:, place] << 16) + whole[:, place + 1], share=self._own_share(whole[:, place + 2 :])
        )

    def _own_share(self, numbers: Tensor) -> Tensor:
        raise NotImplementedError

    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:
        length = self.base.record_length
        own = self.base.render(pictures[:1], record[:length], size)
        other = self.base.render(pictures[1:], record[length : 2 * length], size)
        return self._mix(own, other, record[2 * length + 2 :])

    def _mix(self, own: Tensor, other: Tensor, numbers: Sequence[int]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class MixUp(_Mixing):
    """share x own + (1 - share) x other, rounded to whole levels (Zhang et al. 2018)."""

    name: ClassVar[str] = "mixup"
    numbers: ClassVar[int] = 1

    def _numbers(self, share: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:  # noqa: ARG002
        return np.rint(share * _WHOLE).astype(np.int64)[:, None]

    def _own_share(self, numbers: Tensor) -> Tensor:
        return numbers[:, 0] / _WHOLE

    def _mix(self, own: Tensor, other: Tensor, numbers: Sequence[int]) -> Tensor:
        return torch.lerp(other.float(), own.float(), numbers[0] / _WHOLE).round_().to(torch.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class CutMix(_Mixing):
    """A box of the other view in one's own (Yun et al. 2019); the share is the area that stays.

    The box has a random centre and is cut off at the edges, as published; its sides are shares of the view's, so that
    views of two sizes are mixed alike.
    """

    name: ClassVar[str] = "cutmix"
    numbers: ClassVar[int] = 4  # top, left, bottom, right

    def _numbers(self, share: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        half = np.sqrt(1 - share)[:, None] / 2
        corners = np.concatenate((draws - half, draws + half), axis=1)
        return np.rint(np.clip(corners, 0, 1) * _WHOLE).astype(np.int64)

    def _own_share(self, numbers: Tensor) -> Tensor:
        top, left, bottom, right = (numbers / _WHOLE).unbind(1)
        return 1 - (bottom - top) * (right - left)

    def _mix(self, own: Tensor, other: Tensor, numbers: Sequence[int]) -> Tensor:
        height, width = own.shape[1:]
        top, bottom = (round(number / _WHOLE * height) for number in numbers[::2])
        left, right = (round(number / _WHOLE * width) for number in numbers[1::2])
        mixed = own.clone()
        mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        return mixed
