"""MLKD: Hinton's loss at several temperatures, and Gram matrices over the batch (Jin et al., CVPR 2023).

    sum over temperatures of T^2 sum_k w_k KL(p^k || p^S)
    sum over temperatures of ||P P' - Q Q'||^2 / B and of ||P' P - Q' Q||^2 / C, each times batch_weight

Rows of P are the student's probabilities, of Q sum_k w_k p^k. The divergences are fused exactly; the Gram terms are one
term each for K teachers, and always of raw logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.config import MethodConfig
from demkd.losses.base import Loss, SoftTargets, TeacherLogits, seen, seen_teachers, working_precision
from demkd.losses.kd import fuse_coupled


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelTargets(SoftTargets):
    """Soft targets at M temperatures.

    Where logits are standardized for the divergences, `soft_targets` is (B, 2 M, C): those of the raw logits, for the
    Gram matrices, come last.
    """

    soft_targets: Tensor  # (B, M, C), sum_k w_k p^k
    entropy: Tensor  # (B,), the sum over the first M of T^2 sum_k w_k H(p^k)


def level_kd_loss(logits: Tensor, targets: LevelTargets, *, temperatures: Sequence[float]) -> Tensor:
    """sum_T T^2 sum_k w_k KL(p^k || p^S) of the student's logits (B, C): (B,)."""
    z = working_precision(logits)
    crosses = [
        -(temperature**2) * (targets.soft_targets[:, m] * torch.log_softmax(z / temperature, dim=1)).sum(1)
        for m, temperature in enumerate(temperatures)
    ]
    return torch.stack(crosses).sum(0) - targets.entropy


def gram_losses(logits: Tensor, targets: LevelTargets, *, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The squares of P P' - Q Q' by row (B,), whose mean is 1/B of all, and 1/C of those of P' P - Q' Q, a scalar.

    With D = P - Q, the latter is D'P + Q'D, whose squares are sums over products of (B, B) matrices: no (C, C) matrix
    of a hundred thousand classes, and no difference of large numbers where P is near Q.
    """
    z, first = working_precision(logits), targets.soft_targets.shape[1] - len(temperatures)
    of_samples = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    of_classes = torch.zeros((), dtype=z.dtype, device=z.device)
    for m, temperature in enumerate(temperatures):
        p, q = torch.softmax(z / temperature, dim=1), targets.soft_targets[:, first + m].to(z.dtype)
        d, student, teachers = p - q, p @ p.T, q @ q.T
        of_samples = of_samples + (student - teachers).square().sum(1)
        squares = (d @ d.T) * (student + teachers) + 2 * (d @ q.T) * (d @ p.T).T
        of_classes = of_classes + squares.sum() / p.shape[1]
    return of_samples, of_classes


def _temperatures(method: MethodConfig) -> tuple[float, ...]:
    return (method.temperature, 2.0, 3.0, 5.0, 6.0)


@torch.no_grad()
def _fuse(logits: TeacherLogits, _labels: Tensor, weights: Tensor, method: MethodConfig) -> LevelTargets:
    temperatures = _temperatures(method)
    raw = [fuse_coupled(logits[t], weights=weights, temperature=t) for t in temperatures]
    levels = raw
    if method.standardize:  # needs all logits, which are the same at any temperature
        z = seen_teachers(logits, method)
        levels = [fuse_coupled(z, weights=weights, temperature=t) for t in temperatures]
    entropy = torch.zeros_like(levels[0].entropy)
    for temperature, level in zip(temperatures, levels, strict=True):
        entropy += temperature**2 * level.entropy
    fused = [*levels, *raw] if method.standardize else levels
    return LevelTargets(soft_targets=torch.stack([level.soft_targets for level in fused], dim=1), entropy=entropy)


def _terms(z: Tensor, _labels: Tensor, targets: LevelTargets, method: MethodConfig) -> dict[str, Tensor]:
    temperatures = _temperatures(method)
    kd = level_kd_loss(seen(z, method), targets, temperatures=temperatures)
    samples, classes = gram_losses(z, targets, temperatures=temperatures)
    return {"kd_loss": kd, "sample_gram_loss": samples, "class_gram_loss": classes}


MLKD = Loss(
    fuse=_fuse,
    terms=_terms,
    factors=lambda method: {
        "kd_loss": 1.0,
        "sample_gram_loss": method.batch_weight,
        "class_gram_loss": method.batch_weight,
    },
    temperatures=_temperatures,
    class_power=2,  # the squares of its (C, C) matrices fall with the square of the classes
)
