"""Where a student's views and soft targets come from: labels only, here; `cached_teachers.py`; `live_teachers.py`.

All three give the training loop the same two things: at the start of an epoch, which view every sample shows; for a
batch, what the teachers say about it. N samples, K teachers, B in a batch, C classes, R integers of a view's record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import CacheMissingError, TeacherCache
from demkd.dataset import ImageSource, Records, ViewPolicy, seeded
from demkd.pipeline.logit_losses import SoftTargets
from demkd.pipeline.results import TeacherStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochViews:
    """The records (S, N, R) of the S views that all samples show in an epoch, and the first one's slot, if any."""

    records: Tensor
    slot: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTargets:
    """What the teachers say about a batch.

    Attributes:
        targets: fused soft targets of B samples, or None for labels only.
        hints: K teachers' features, (B, ...) each, or none.
        hint_weights: (K, B), or None.
    """

    targets: SoftTargets | None = None
    hints: Sequence[Tensor] = ()
    hint_weights: Tensor | None = None

    def rows(self, indices: Tensor) -> "BatchTargets":
        """What they say about some of the samples (B,)."""
        return BatchTargets(
            targets=self.targets and self.targets.rows(indices),
            hints=[hint.index_select(0, indices) for hint in self.hints],
            hint_weights=None if self.hint_weights is None else self.hint_weights.index_select(1, indices),
        )


BatchViews = Mapping[int | None, Tensor]  # by size, None being the pictures' own: (B, 3, H, W), uint8


class TargetSource(Protocol):
    """Views and soft targets; the training loop knows no more of teachers."""

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        """Of the views that its teachers must be shown, besides those of the student."""

    def hint_shapes(self, views: BatchViews) -> list[tuple[int, ...]]:
        """The shape of one sample's features by teacher, for the adapters; some views to try."""

    def start_epoch(self, epoch: int) -> EpochViews:
        """Prepare epoch 1, 2, ..., or a turn of epochs that share their views; at once, if that is the present one."""

    def batch_targets(self, indices: Tensor, views: BatchViews) -> BatchTargets:
        """What the teachers say about samples (B,) in the epoch's views; of S of them, all in each: (S B,)."""

    def all_targets(self) -> BatchTargets | None:
        """What the teachers say about all samples in this epoch, where it lies on the device; else ask by batch."""

    def statistics(self) -> TeacherStatistics | None:
        """How the teachers were weighted in this epoch."""


ViewPlan = Callable[[int], EpochViews]


def scheduled_views(
    records_of: Callable[[int], Records], *, slots: int, run_seed: int, place: int = 0, together: int = 1
) -> ViewPlan:
    """Epoch e shows slot `slot_of_epoch(e)`, whose records (N, R) are `records_of(slot)`."""

    def plan(epoch: int) -> EpochViews:
        slot = seeded.slot_of_epoch(run_seed=run_seed, epoch=epoch, slots=slots, place=place, together=together)
        return EpochViews(records=as_tensor(records_of(slot))[None], slot=slot)

    return plan


def independent_views(
    policy: ViewPolicy, source: ImageSource, *, run_seed: int, place: int = 0, together: int = 1
) -> ViewPlan:
    """Every epoch draws every sample's view anew, as ordinary training does; of several together, that at a place."""

    def plan(epoch: int) -> EpochViews:
        everyone, turn = np.arange(len(source)), (epoch - 1) * together + place + 1
        records = policy.draw_epoch(run_seed=run_seed, epoch=turn, indices=everyone, sizes=source.sizes)
        return EpochViews(records=as_tensor(records)[None], slot=None)

    return plan


class LabelsOnly:
    """No teachers: plain training."""

    def __init__(self, plan: ViewPlan) -> None:
        self._plan = plan

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        return ()

    def hint_shapes(self, views: BatchViews) -> list[tuple[int, ...]]:  # noqa: ARG002
        return []

    def start_epoch(self, epoch: int) -> EpochViews:
        return self._plan(epoch)

    def batch_targets(self, indices: Tensor, views: BatchViews) -> BatchTargets:  # noqa: ARG002
        return BatchTargets()

    def all_targets(self) -> BatchTargets:
        return BatchTargets()

    def statistics(self) -> None:
        return None


def cached_hint_layers(files: Sequence[TeacherCache], chosen: Mapping[str, str]) -> dict[str, str]:
    """Which of each cached teacher's features a student matches: the chosen ones, or those of its last map.

    Args:
        chosen: features as `inspect` lists them (`stage3`, `stage3@4x4`) by teacher; "" stands for all others.

    Raises:
        CacheMissingError: if a teacher has none, not these, or its last map in several sizes; with the cures.
    """
    return {file.name: _cached_hint_layer(file, chosen.get(file.name, chosen.get(""))) for file in files}


def _cached_hint_layer(file: TeacherCache, chosen: str | None) -> str:
    features = sorted(file.shape.features)
    if not features:
        raise CacheMissingError(
            f"teacher {file.name} was cached without features, which this method needs: call `cache_teachers` again "
            'with `features=last`, which adds them, or choose `method="de-mkd-logits"`'
        )
    last = str(file.provenance.notes.get("hint_layer", ""))
    fitting = [key for key in features if (key == chosen if chosen else key.partition("@")[0] == last)]
    if len(fitting) != 1:
        wanted = f"{chosen}" if chosen else f"its last map, {last}"
        count = "several sizes" if fitting else "no features"
        raise CacheMissingError(
            f"teacher {file.name} was cached with {count} of {wanted}: choose one of {', '.join(features)} "
            "(`hint_layer`), or call `cache_teachers` again with more `features`, which keeps these"
        )
    return fitting[0]


def one_after_another(views: Sequence[Tensor]) -> Tensor:
    """The views of a batch, (B, 3, H, W) each, as one batch of all."""
    return views[0] if len(views) == 1 else torch.cat(list(views))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of its own: maps of a file are read-only, which PyTorch tensors cannot be."""
    return torch.from_numpy(
        np.array(array, dtype={np.dtype("<u2"): np.int32, np.dtype("<u4"): np.int64}.get(array.dtype))
    )
