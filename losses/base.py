"""What the losses share: the entry of a loss, soft targets of a batch, and the loss with the labels.

K teachers, B samples, C classes. Everything is computed in float32, or in float64 for float64 logits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.config import MethodConfig

# The K teachers' logits, (B, C) each, by the temperature of the softmax that reads them. They are the same at all
# temperatures, except in a cache of the largest logits: its other classes share one number, exact at that temperature.
TeacherLogits = Mapping[float, Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftTargets:
    """Soft targets of B samples, fused from K teachers; every field has B rows."""

    def rows(self, rows: Tensor | slice) -> Self:
        """The targets of some samples."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(rows, slice):
            return type(self)(**{name: value[rows] for name, value in values.items()})
        return type(self)(**{name: value.index_select(0, rows) for name, value in values.items()})

    @classmethod
    def concatenate(cls, parts: Sequence["SoftTargets"]) -> Self:
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What the student learns from its teachers in a batch."""

    soft: SoftTargets | None = None  # fused, of B samples; None for a method without teachers
    hints: Sequence[Tensor] = ()  # features of each of K teachers, (B, ...); empty for a method without features
    hint_weights: Tensor | None = None  # (K, B)
    method: MethodConfig | None = None  # for which they were fused; None if that is not to be checked

    def rows(self, indices: Tensor) -> "Targets":
        """The targets of some samples."""
        return Targets(
            soft=self.soft and self.soft.rows(indices),
            hints=[hint.index_select(0, indices) for hint in self.hints],
            hint_weights=None if self.hint_weights is None else self.hint_weights.index_select(1, indices),
            method=self.method,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PartnerLabels:
    """Labels (B,) of the images that MixUp or CutMix mixes in, and the share (B,) of each image's own label."""

    labels: Tensor
    share: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBatch:
    """A batch on the device. With S views a step, B is S times the samples: all in one view, then all in the next."""

    images: Tensor  # (B, 3, H, W), float32, normalized: the student's input, in the views that the teachers saw
    labels: Tensor  # (B,), int64
    targets: Targets
    indices: Tensor  # (B,), the numbers of the samples
    epoch: int  # from 0
    partner: PartnerLabels | None = None  # labels of the images that MixUp or CutMix mixes in, and shares


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A loss between the student's and the teachers' logits: one entry of `LOSSES`.

    Attributes:
        fuse: soft targets from teacher logits, labels (B,), weights (K, B) and the method; without gradient.
        terms: named terms from the student's logits (B, C), labels (B,), the soft targets and the method: (B,) each, or
            a scalar where a term compares the samples of a batch.
        factors: the factor of each term, by the same names.
        temperatures: at which `fuse` reads the teachers' logits.
        class_power: with C classes, fewer than `full_weight_classes` N, `kd_weight` is multiplied by (C/N)^class_power.
        needs_all_logits: the largest of a `top_k` cache are not enough.
        compares_views: `terms` takes all S views of a step, S B rows, view by view; else one view after another.
    """

    fuse: Callable[[TeacherLogits, Tensor, Tensor, MethodConfig], SoftTargets]
    terms: Callable[[Tensor, Tensor, Any, MethodConfig], dict[str, Tensor]]
    factors: Callable[[MethodConfig], dict[str, float]] = lambda _method: {"kd_loss": 1.0}
    temperatures: Callable[[MethodConfig], tuple[float, ...]] = lambda method: (method.temperature,)
    class_power: int = 1
    needs_all_logits: bool = False
    compares_views: bool = False


def label_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, C) with labels (B,): (B,).

    `smoothing` is the share of the target that is spread over all classes (Szegedy et al. 2016).
    """
    check_class_numbers(logits, labels)
    return F.cross_entropy(working_precision(logits), labels, reduction="none", label_smoothing=smoothing)


def standardized(logits: Tensor) -> Tensor:
    """Logits (..., C) of mean 0 and deviation 1: (z - mean) / (deviation + 1e-7) (Sun et al., CVPR 2024).

    The deviation is the sample's (C - 1), as in the authors' code. A logit of -inf stays one, and the others are
    standardized among themselves. Equal logits become 0 and have no gradient; the formula's would be ten million times
    as large as any other.
    """
    z = working_precision(logits)
    possible = z > -torch.inf
    count = possible.sum(-1, keepdim=True)
    # Less the largest first: equal logits are exactly 0 then, however large; a rounded mean would leave a rest.
    shifted = torch.where(possible, z - z.detach().amax(-1, keepdim=True), 0.0)
    centered = torch.where(possible, shifted - shifted.sum(-1, keepdim=True) / count, 0.0)
    variance = centered.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)
    differ = variance > 0
    deviation = torch.where(differ, variance, 1.0).sqrt()
    scaled = torch.where(differ, centered, 0.0) / (deviation + 1e-7)
    return torch.where(possible, scaled, -torch.inf)


def seen(logits: Tensor, method: MethodConfig) -> Tensor:
    """Logits as the method's loss sees them: standardized, or as they are."""
    return standardized(logits) if method.standardize else logits


def seen_teachers(logits: TeacherLogits, method: MethodConfig, *, temperature: float | None = None) -> list[Tensor]:
    """The same of K teachers, read at the method's temperature or another one."""
    return [seen(z, method) for z in logits[method.temperature if temperature is None else temperature]]


def mix(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_k w_k x_k of K tensors (B, ...) and weights (K, B)."""
    total = torch.zeros_like(values[0])
    for value, weight in zip(values, weights.to(values[0].dtype), strict=True):
        total.addcmul_(value, weight.view(-1, *[1] * (value.dim() - 1)))
    return total


def entropy_of(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """-sum p log p in nats, of log p (..., C) and, where it is known already, p: (...); 0 log 0 is 0."""
    p = log_p.exp() if p is None else p
    return -(p * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)


def working_precision(logits: Tensor) -> Tensor:
    """float64 stays; everything else is computed in float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def check_class_numbers(logits: Tensor, labels: Tensor) -> None:
    """Refuse soft or mixed labels, which have no target class."""
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must be class numbers, int64 and ({len(logits)},) for logits {tuple(logits.shape)}, but are "
            f"{labels.dtype} and {tuple(labels.shape)}: soft or mixed labels have no target class"
        )
