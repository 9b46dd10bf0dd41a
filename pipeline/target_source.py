"""Where a student's views and soft targets come from: labels only, here; `cached_teachers.py`; `live_teachers.py`.

All three give the training loop the same two things: at the start of an epoch, which view every sample shows; for a
batch, what the teachers say about it. N samples, K teachers, B in a batch, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import CacheMissingError, TeacherCache
from demkd.dataset import seeded
from demkd.losses import CoupledTargets, DecoupledTargets, fuse_coupled, fuse_decoupled
from demkd.pipeline.methods import Method
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.weighing import TeacherWeights

SoftTargets = CoupledTargets | DecoupledTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochViews:
    """The view (N,) that every sample shows in an epoch, and the slot it came from, if from one."""

    view: Tensor
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


class TargetSource(Protocol):
    """Views and batch_targets; the training loop knows no more of teachers."""

    def hint_shapes(self, views: Tensor) -> list[tuple[int, ...]]:
        """The shape of one sample's features by teacher, for the adapters; some views (B, 3, H, W) to try."""

    def start_epoch(self, epoch: int) -> EpochViews:
        """Prepare epoch 1, 2, ..."""

    def batch_targets(self, indices: Tensor, views: Tensor) -> BatchTargets:
        """What the teachers say about samples (B,) in the epoch's views (B, 3, H, W), uint8."""

    def statistics(self) -> TeacherStatistics | None:
        """How the teachers were weighted in this epoch."""


ViewPlan = Callable[[int], EpochViews]


def scheduled_views(view_of: Callable[[int], NDArray[np.uint16]], *, slots: int, run_seed: int) -> ViewPlan:
    """Epoch e shows slot `slot_of_epoch(e)`, whose views (N,) are `view_of(slot)`."""

    def plan(epoch: int) -> EpochViews:
        slot = seeded.slot_of_epoch(run_seed=run_seed, epoch=epoch, slots=slots)
        return EpochViews(view=as_tensor(view_of(slot)), slot=slot)

    return plan


def independent_views(*, run_seed: int, samples: int, num_distinct_views: int) -> ViewPlan:
    """Every epoch draws every sample's view anew, as ordinary training does."""

    def plan(epoch: int) -> EpochViews:
        view = seeded.random_views(
            run_seed=run_seed, epoch=epoch, samples=samples, num_distinct_views=num_distinct_views
        )
        return EpochViews(view=as_tensor(view), slot=None)

    return plan


class LabelsOnly:
    """No teachers: plain training."""

    def __init__(self, plan: ViewPlan) -> None:
        self._plan = plan

    def hint_shapes(self, views: Tensor) -> list[tuple[int, ...]]:  # noqa: ARG002
        return []

    def start_epoch(self, epoch: int) -> EpochViews:
        return self._plan(epoch)

    def batch_targets(self, indices: Tensor, views: Tensor) -> BatchTargets:  # noqa: ARG002
        return BatchTargets()

    def statistics(self) -> None:
        return None


def fuse(logits: Sequence[Tensor], labels: Tensor, method: Method, weights: TeacherWeights) -> SoftTargets:
    """The soft targets of B samples from K teachers' logits, (B, C) each."""
    if method.decouple == "coupled":
        return fuse_coupled(logits, weights=weights.nckd, temperature=method.temperature)
    return fuse_decoupled(
        logits,
        labels,
        tckd_weights=weights.tckd,
        nckd_weights=weights.nckd,
        temperature=method.temperature,
    )


def hint_layer(file: TeacherCache) -> str:
    """Which of a cached teacher's features a student matches: those of its last map, else the first there are.

    Raises:
        CacheMissingError: if there are none, with both cures.
    """
    features = file.shape.features
    if not features:
        raise CacheMissingError(
            f"teacher {file.name} was cached without features, which this method needs: run cache-teachers again "
            "with --features last, which adds them, or choose --method de-mkd-logits"
        )
    last = str(file.provenance.notes.get("hint_layer", ""))
    return next((key for key in features if key.partition("@")[0] == last), next(iter(features)))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of its own: maps of a file are read-only, which PyTorch tensors cannot be."""
    return torch.from_numpy(np.array(array, dtype=np.int64 if array.dtype == np.uint16 else None))
