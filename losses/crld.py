"""CRLD: Hinton's loss within and across the views of a step, where teachers are certain (Zhang et al., ACM MM 2024).

With KD(a, b) = T^2 sum_k w_k KL(p^k of view b || p^S of view a), a weak view w and a strong one s of each sample:

    (KD(w, w) + KD(s, s)) / 2   where the teachers' largest probability on w is at least 0.9
    (KD(s, w) + KD(w, s)) / 2   where that on s is at least 0.2, a quarter as large

K teachers are fused as for `kd`; the largest probability is that of sum_k w_k p^k, at temperature 1. A term is the mean
over both views, as the label loss is here; the authors' code has sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.config import MethodConfig
from demkd.losses.base import Loss, TeacherLogits, mix, seen, seen_teachers, working_precision
from demkd.losses.kd import CoupledTargets, fuse_coupled, kd_loss

_LEAST_WEAK, _LEAST_STRONG, _CROSS_WEIGHT = 0.9, 0.2, 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class CertainTargets(CoupledTargets):
    """Soft targets, and the largest of the probabilities sum_k w_k p^k at temperature 1: (B,)."""

    confidence: Tensor


@torch.no_grad()
def _fuse(logits: TeacherLogits, _labels: Tensor, weights: Tensor, method: MethodConfig) -> CertainTargets:
    fused = fuse_coupled(seen_teachers(logits, method), weights=weights, temperature=method.temperature)
    p = mix([torch.softmax(working_precision(z), dim=1) for z in logits[1.0]], weights)
    return CertainTargets(soft_targets=fused.soft_targets, entropy=fused.entropy, confidence=p.amax(1))


def _terms(logits: Tensor, _labels: Tensor, targets: CertainTargets, method: MethodConfig) -> dict[str, Tensor]:
    """The weak views of B / 2 samples, then the strong ones."""
    z, confidence = seen(logits, method), targets.confidence.view(2, -1)
    of_other_view = z.roll(len(z) // 2, 0)
    within = kd_loss(z, targets, temperature=method.temperature)
    across = kd_loss(of_other_view, targets, temperature=method.temperature)
    return {
        "kd_loss": within * (confidence[0] >= _LEAST_WEAK).repeat(2),
        "cross_view_kd_loss": across * (confidence[1] >= _LEAST_STRONG).repeat(2),
    }


CRLD = Loss(
    fuse=_fuse,
    terms=_terms,
    factors=lambda _method: {"kd_loss": 1.0, "cross_view_kd_loss": _CROSS_WEIGHT},
    temperatures=lambda method: (method.temperature, 1.0),
    compares_views=True,
)
