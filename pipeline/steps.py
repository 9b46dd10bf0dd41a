"""What steps of training are made of: one alone, one whose data lie on the device, and all of an epoch.

N samples, B in a batch, S views of each in a step, L terms of the loss, R integers of a view's record.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from demkd.dataset import Views
from demkd.pipeline.objective import Labels
from demkd.pipeline.target_source import BatchTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInput:
    """What one step is made of: views (B, 3, H, W), uint8, labels, targets, and what each term counts for (L,)."""

    views: Tensor
    labels: Labels
    targets: BatchTargets
    factors: Tensor
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidentInput:
    """What one step is made of where all else lies on the device.

    Attributes:
        indices: (B,), the samples.
        records: (1, N, R), of all samples' views.
        targets: of all samples.
        factors: (L,).
    """

    indices: Tensor
    records: Tensor
    targets: BatchTargets
    factors: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochInput:
    """What the steps of an epoch have in common.

    Attributes:
        records: (S, N, R), of all samples' views in the S that a step shows.
        stream: the views of every step's samples; nothing is read before the first is taken.
        whole_batches: the samples of every step; `batches` are this process' parts of them.
    """

    records: Tensor
    whole_batches: Sequence[Tensor]
    batches: Sequence[Tensor]
    stream: Iterator[Views]
    factors: Tensor
    slot: int | None
