"""Losses that compare relations instead of probabilities: DIST's correlations, MLKD's Gram matrices.

What compares the samples of a batch depends on the batch: `intra_class_loss` and `gram_losses`.
B samples, C classes, M temperatures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from demkd.losses.decoupling import working_precision
from demkd.losses.targets import LevelTargets, RelationTargets, centred, direction

_EPSILON = 1e-8  # of the authors' code: it silences classes to which no sample of the batch gives any probability


def inter_class_loss(logits: Tensor, targets: RelationTargets, *, temperature: float) -> Tensor:
    """T^2 (1 - sum_k w_k r(p^S, p^k)), r being Pearson's correlation over the classes: (B,) (Huang et al. 2022).

    A correlation is linear in the teacher's direction, so K teachers are fused like soft targets.
    """
    p = torch.softmax(working_precision(logits) / temperature, dim=1)
    return temperature**2 * (1 - (direction(p) * targets.directions).sum(1))


def intra_class_loss(logits: Tensor, targets: RelationTargets, *, temperature: float) -> Tensor:
    """T^2 (1 - r), r being the mean over classes of the correlation over the batch with sum_k w_k p^k: a scalar.

    One term for K teachers: a class's column spans samples that weigh the teachers differently.
    """
    p = centred(torch.softmax(working_precision(logits) / temperature, dim=1), dim=0)
    q = centred(targets.soft_targets, dim=0)
    squares = p.square().sum(0)
    differ = squares > 0  # else no correlation, and a gradient of 0 instead of one by 1e-8
    lengths = torch.where(differ, squares, 1.0).sqrt() * q.square().sum(0).sqrt()
    correlation = (torch.where(differ, p, 0.0) * q).sum(0) / (lengths + _EPSILON)
    return temperature**2 * (1 - correlation.mean())


def level_kd_loss(logits: Tensor, targets: LevelTargets, *, temperatures: Sequence[float]) -> Tensor:
    """sum_T T^2 sum_k w_k KL(p^k || p^S): (B,), at the first M of the targets' temperatures (Jin et al., CVPR 2023)."""
    z = working_precision(logits)
    crosses = [
        -(temperature**2) * (targets.soft_targets[:, m] * torch.log_softmax(z / temperature, dim=1)).sum(1)
        for m, temperature in enumerate(temperatures)
    ]
    return torch.stack(crosses).sum(0) - targets.entropy


def gram_losses(logits: Tensor, targets: LevelTargets, *, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """MLKD's differences of Gram matrices, against sum_k w_k p^k, summed over the targets' last M temperatures.

    With rows P of the student and Q of the targets: the squares of P P' - Q Q' by row (B,), whose mean is MLKD's 1/B of
    all, and 1/C of the squares of P' P - Q' Q, a scalar. With D = P - Q, the latter is D'P + Q'D, whose squares are
    sums over products of (B, B) matrices: no (C, C) matrix of a hundred thousand classes, and no difference of large
    numbers where P is near Q.
    """
    z, first = working_precision(logits), targets.soft_targets.shape[1] - len(temperatures)
    of_samples = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    of_classes = torch.zeros((), dtype=z.dtype, device=z.device)
    for m, temperature in enumerate(temperatures):
        p, q = torch.softmax(z / temperature, dim=1), targets.soft_targets[:, first + m]
        d, own, others = p - q, p @ p.T, q @ q.T
        of_samples = of_samples + (own - others).square().sum(1)
        squares = (d @ d.T) * (own + others) + 2 * (d @ q.T) * (d @ p.T).T
        of_classes = of_classes + squares.sum() / p.shape[1]
    return of_samples, of_classes
