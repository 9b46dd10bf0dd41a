"""DIST: Pearson's correlation r instead of a divergence (Huang et al., NeurIPS 2022).

    T^2 (1 - sum_k w_k r(p^S, p^k)), r over the classes of a sample
    T^2 (1 - mean over classes of r(p^S, sum_k w_k p^k)), r over the samples of a batch, times batch_weight

A correlation is linear in the teacher's direction, its centered probabilities at length 1, so the first is fused
exactly. The second is one term for K teachers: a class's column spans samples that weigh the teachers differently.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.config import MethodConfig
from demkd.losses.base import Loss, SoftTargets, TeacherLogits, mix, seen, seen_teachers, working_precision

_EPSILON = 1e-8  # of the authors' code: it silences classes to which no sample of the batch gives any probability


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationTargets(SoftTargets):
    """Soft targets of both correlations."""

    directions: Tensor  # (B, C), sum_k w_k of each teacher's probabilities, centered over the classes and of length 1
    soft_targets: Tensor  # (B, C), sum_k w_k p^k


def inter_class_loss(logits: Tensor, targets: RelationTargets, *, temperature: float) -> Tensor:
    """T^2 (1 - sum_k w_k r(p^S, p^k)), r over the classes, of the student's logits (B, C): (B,)."""
    p = torch.softmax(working_precision(logits) / temperature, dim=1)
    return temperature**2 * (1 - (direction(p) * targets.directions).sum(1))


def intra_class_loss(logits: Tensor, targets: RelationTargets, *, temperature: float) -> Tensor:
    """T^2 (1 - r), r the mean over classes of the correlation over the batch, of logits (B, C): a scalar."""
    p = _centered(torch.softmax(working_precision(logits) / temperature, dim=1), dim=0)
    q = _centered(targets.soft_targets, dim=0)
    squares = p.square().sum(0)
    differ = squares > 0  # else no correlation, and a gradient of 0 instead of one by 1e-8
    lengths = torch.where(differ, squares, 1.0).sqrt() * q.square().sum(0).sqrt()
    correlation = (torch.where(differ, p, 0.0) * q).sum(0) / (lengths + _EPSILON)
    return temperature**2 * (1 - correlation.mean())


def _centered(values: Tensor, *, dim: int) -> Tensor:
    """Values less their mean; exactly 0 where all are equal, which a rounded mean would not give."""
    shifted = values - values.detach().amax(dim, keepdim=True)
    return shifted - shifted.mean(dim, keepdim=True)


def direction(values: Tensor) -> Tensor:
    """Values (R, n), each row centered and of length 1; 0 where all values of a row are equal."""
    apart = _centered(values, dim=1)
    squares = apart.square().sum(1, keepdim=True)
    differ = squares > 0
    return torch.where(differ, apart, 0.0) / torch.where(differ, squares, 1.0).sqrt()


@torch.no_grad()
def _fuse(logits: TeacherLogits, _labels: Tensor, weights: Tensor, method: MethodConfig) -> RelationTargets:
    p = [torch.softmax(working_precision(z) / method.temperature, dim=1) for z in seen_teachers(logits, method)]
    return RelationTargets(directions=mix([direction(q) for q in p], weights), soft_targets=mix(p, weights))


def _terms(z: Tensor, _labels: Tensor, targets: RelationTargets, method: MethodConfig) -> dict[str, Tensor]:
    return {
        "inter_class_loss": inter_class_loss(seen(z, method), targets, temperature=method.temperature),
        "intra_class_loss": intra_class_loss(seen(z, method), targets, temperature=method.temperature),
    }


DIST = Loss(
    fuse=_fuse, terms=_terms, factors=lambda method: {"inter_class_loss": 1.0, "intra_class_loss": method.batch_weight}
)
