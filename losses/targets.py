"""Fused targets: K teachers for the price of one.

With fixed weights, a weighted sum of divergences from K teachers differs from one cross-entropy by a constant:

    sum_k w_k KL(t_k || s) = CE(sum_k w_k t_k, s) - sum_k w_k H(t_k)

so the teachers' soft targets are averaged once per slot, and a training step sees a single teacher (docs/methods.md,
"Fused targets"). Averaging logits, or whole probabilities before decoupling, is not the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from demkd.losses.decoupling import (
    entropy_of,
    log_parts,
    probabilities,
    require_class_numbers,
    working_precision,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Targets:
    """Soft targets of B samples; every field has B rows."""

    def rows(self, indices: Tensor) -> Self:
        """The targets of some samples."""
        return type(self)(**{field.name: getattr(self, field.name).index_select(0, indices) for field in fields(self)})

    def part(self, rows: slice) -> Self:
        """The targets of neighbouring samples."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put blocks of samples together."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoupledTargets(_Targets):
    """For DKD's two losses.

    Attributes:
        binary: (B, 2), sum_k w_k b^k: the label or not.
        others: (B, C), sum_k w_k q^k: which of the others; 0 in the label's place.
        binary_entropy: (B,), sum_k w_k H(b^k); the constant that turns cross-entropy into divergence.
        others_entropy: (B,), sum_k w_k H(q^k).
    """

    binary: Tensor
    others: Tensor
    binary_entropy: Tensor
    others_entropy: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CoupledTargets(_Targets):
    """For Hinton's loss.

    Attributes:
        soft_targets: (B, C), sum_k w_k p^k.
        entropy: (B,), sum_k w_k H(p^k).
    """

    soft_targets: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationTargets(_Targets):
    """For DIST's two losses.

    Attributes:
        directions: (B, C), sum_k w_k of each teacher's probabilities, centred over the classes and of length 1.
        soft_targets: (B, C), sum_k w_k p^k.
    """

    directions: Tensor
    soft_targets: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelTargets(_Targets):
    """For MLKD's losses at several temperatures.

    Attributes:
        soft_targets: (B, M, C), sum_k w_k p^k at M temperatures; (B, 2 M, C) where logits are standardised for the
            divergences, those of the raw logits, for the Gram matrices, being the last.
        entropy: (B,), the sum over the first M of T^2 sum_k w_k H(p^k).
    """

    soft_targets: Tensor
    entropy: Tensor


@torch.no_grad()
def fuse_decoupled(
    logits: Sequence[Tensor], labels: Tensor, *, tckd_weights: Tensor, nckd_weights: Tensor, temperature: float
) -> DecoupledTargets:
    """Fuse the K teachers' logits, each (B, C), with weights (K, B) for each of the two losses, without gradient."""
    parts = [log_parts(z, labels, temperature=temperature) for z in logits]
    binaries = [part.binary.exp() for part in parts]
    others = [probabilities(part.others, labels) for part in parts]
    return DecoupledTargets(
        binary=_mix(binaries, tckd_weights),
        others=_mix(others, nckd_weights),
        binary_entropy=_mix(
            [entropy_of(part.binary, b) for part, b in zip(parts, binaries, strict=True)], tckd_weights
        ),
        others_entropy=_mix([entropy_of(part.others, q) for part, q in zip(parts, others, strict=True)], nckd_weights),
    )


@torch.no_grad()
def fuse_coupled(logits: Sequence[Tensor], *, weights: Tensor, temperature: float) -> CoupledTargets:
    """Fuse the K teachers' logits, each (B, C), with weights (K, B), without gradient."""
    log_p = [torch.log_softmax(working_precision(z) / temperature, dim=1) for z in logits]
    p = [lp.exp() for lp in log_p]
    return CoupledTargets(
        soft_targets=_mix(p, weights),
        entropy=_mix([entropy_of(*pair) for pair in zip(log_p, p, strict=True)], weights),
    )


@torch.no_grad()
def fuse_enhanced(
    logits: Sequence[Tensor], labels: Tensor, *, weights: Tensor, temperature: float, power: float
) -> CoupledTargets:
    """OFA's targets: p^g, and (p_y + 1)^g - 1 for the label, of power g (Hao et al., NeurIPS 2023).

    They are no probabilities, and the loss a cross-entropy: there is no constant. g = 1 leaves p as it is.

    Raises:
        ValueError: if the labels are no class numbers.
    """
    require_class_numbers(logits[0], labels)
    label = labels[:, None]
    enhanced = []
    for z in logits:
        p = torch.softmax(working_precision(z) / temperature, dim=1)
        # expm1 and log1p: 1 + p_y would lose what there is of a small p_y
        enhanced.append(p.pow(power).scatter_(1, label, torch.expm1(power * torch.log1p(p.gather(1, label)))))
    return CoupledTargets(soft_targets=_mix(enhanced, weights), entropy=torch.zeros_like(enhanced[0][:, 0]))


@torch.no_grad()
def fuse_relations(logits: Sequence[Tensor], *, weights: Tensor, temperature: float) -> RelationTargets:
    """Fuse the K teachers' logits, each (B, C), with weights (K, B), without gradient."""
    p = [torch.softmax(working_precision(z) / temperature, dim=1) for z in logits]
    return RelationTargets(
        directions=_mix([direction(one) for one in p], weights),
        soft_targets=_mix(p, weights),
    )


@torch.no_grad()
def fuse_levels(
    levels: Sequence[tuple[float, Sequence[Tensor]]],
    *,
    weights: Tensor,
    gram_levels: Sequence[tuple[float, Sequence[Tensor]]] = (),
) -> LevelTargets:
    """Fuse the K teachers' logits, each (B, C), at M temperatures with weights (K, B), without gradient.

    Args:
        gram_levels: other logits for the Gram matrices, at as many temperatures; those of `levels` if left out.
    """
    fused = [fuse_coupled(logits, weights=weights, temperature=temperature) for temperature, logits in levels]
    others = [fuse_coupled(logits, weights=weights, temperature=temperature) for temperature, logits in gram_levels]
    entropy = torch.zeros_like(fused[0].entropy)
    for (temperature, _), one in zip(levels, fused, strict=True):
        entropy += temperature**2 * one.entropy
    return LevelTargets(
        soft_targets=torch.stack([one.soft_targets for one in (*fused, *others)], dim=1), entropy=entropy
    )


def power_sums(logits: Tensor, tempered: Tensor, *, temperature: float) -> Tensor:
    """sum_c p_c^(1/T), p = softmax(z): WTTM's weight of a sample, from 1 (certain) to C^(1 - 1/T) (Zheng, Yang, 2024).

    Args:
        logits, tempered: z (B, C), as read for a softmax at temperature 1 and at T; the same unless few were kept.
    """
    whole = torch.logsumexp(working_precision(logits), dim=1)
    return (torch.logsumexp(working_precision(tempered) / temperature, dim=1) - whole / temperature).exp()


def centred(values: Tensor, *, dim: int) -> Tensor:
    """Values less their mean; exactly 0 where all are equal, which a rounded mean would not give."""
    shifted = values - values.detach().amax(dim, keepdim=True)
    return shifted - shifted.mean(dim, keepdim=True)


def direction(p: Tensor) -> Tensor:
    """Probabilities (B, C), centred over the classes and of length 1; 0 where all classes are equal."""
    apart = centred(p, dim=1)
    squares = apart.square().sum(1, keepdim=True)
    differ = squares > 0
    return torch.where(differ, apart, 0.0) / torch.where(differ, squares, 1.0).sqrt()


def _mix(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_k w_k x_k of K tensors (B, ...) and weights (K, B)."""
    total = torch.zeros_like(values[0])
    for value, weight in zip(values, weights.to(values[0].dtype), strict=True):
        total.addcmul_(value, weight.view(-1, *[1] * (value.dim() - 1)))
    return total
