"""MRKD: correlations of Pearson and of Kendall between raw logits ("Monotonic Rank Distillation", public code).

    1 - sum_k w_k r(z^S, z^k)               r over the classes of a sample
    1 - mean over pairs of classes i, j of tanh(beta / 2 (s_i - s_j) (t_i - t_j))

and the same over the samples of a batch, times batch_weight. s and t are the logits of the student and the teachers,
standardized over the same axis. So tanh is near 1 for a pair that both rank alike, as in Kendall's tau.

Pearson's over the classes is fused exactly, as DIST's. Kendall's is not linear in t: t is the weighted mean of the
teachers' standardized logits there (docs/results.md has the difference). Over the batch both have one term against
sum_k w_k z^k, as a class's column spans samples that weigh the teachers differently.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from demkd.config import MethodConfig
from demkd.losses.base import Loss, TeacherLogits, mix, seen, seen_teachers, working_precision
from demkd.losses.dist import RelationTargets, direction

_BETA = 0.5
_KENDALL_WEIGHT = 2.0  # of the authors' 32 beside 16
_MOST_PAIRS = 1 << 22  # over each axis in a step: all up to 362 classes with 64 samples; 65 of 500 distances at 1,000
_BLOCK = 1 << 17


def pair_distances(rows: int, length: int) -> list[range]:
    """The distances d of the pairs (i, i + d), modulo the length, that are compared in each row: d and -d.

    All of them, unless these are more than `_MOST_PAIRS` in all rows: then 1 and others at equal steps, so that every
    element is in as many pairs as any other.
    """
    half, count = length // 2, max(1, _MOST_PAIRS // (rows * length))
    if count >= half:
        return [range(1, max(length, 2))]
    step = half // count
    near = range(1, 1 + step * count, step)
    return [near, range(length - near[-1], length, step)]


def kendall(student: Tensor, teachers: Tensor) -> Tensor:
    """The mean over pairs of tanh(beta / 2 (s_i - s_j) (t_i - t_j)) in each row, of directions (R, n): (R,).

    Directions are standardized logits over sqrt(n - 1). The targets are constants.
    """
    agreement: Tensor = _Kendall.apply(student, teachers * (_BETA / 2 * (student.shape[1] - 1)))
    return agreement


class _Kendall(torch.autograd.Function):
    """The mean over pairs of tanh((s_i - s_j) (t_i - t_j)), with the gradient by hand, block by block of rows.

    On a CPU the blocks stay in its cache: half the time of autograd at 100 classes, a quarter at 1,000.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teachers: Tensor) -> Tensor:
        rows, length = student.shape
        parts = pair_distances(rows, length)
        block = rows if student.device.type != "cpu" else max(1, _BLOCK // (length * len(parts[0])))
        values, slopes = [], []
        for s, t in zip(torch.split(student, block), torch.split(teachers, block), strict=True):
            value, slope = torch.zeros_like(s), torch.zeros_like(s)
            for distances in parts:
                gaps = _gaps(t, distances)
                agreement = _gaps(s, distances).mul_(gaps).tanh_()
                value += agreement.sum(1)
                slope += torch.addcmul(gaps, gaps, agreement.square_(), value=-1).sum(1)
            values.append(value.sum(1))
            slopes.append(slope)
        pairs = length * sum(map(len, parts))  # each pair from both sides
        ctx.save_for_backward(torch.cat(slopes) * (2 / pairs))
        return torch.cat(values) / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * of_rows[:, None], None


def _gaps(values: Tensor, distances: range) -> Tensor:
    """x_i - x_(i + d) of values (R, n): (R, D, n)."""
    others = torch.cat((values, values), dim=1)[:, distances.start :].unfold(1, values.shape[1], distances.step)
    return values[:, None] - others[:, : len(distances)]


def _possible(logits: Tensor) -> Tensor:
    """Logits (B, C) where -inf, an impossible class, is the smallest other logit: it has no place in a correlation."""
    z = working_precision(logits)
    possible = z > -torch.inf
    return torch.where(possible, z, torch.where(possible, z, torch.inf).amin(1, keepdim=True))


@torch.no_grad()
def _fuse(logits: TeacherLogits, _labels: Tensor, weights: Tensor, method: MethodConfig) -> RelationTargets:
    z = [_possible(of_teacher) for of_teacher in seen_teachers(logits, method)]
    return RelationTargets(directions=mix([direction(x) for x in z], weights), soft_targets=mix(z, weights))


def _terms(logits: Tensor, _labels: Tensor, targets: RelationTargets, method: MethodConfig) -> dict[str, Tensor]:
    z = working_precision(seen(logits, method))
    of_samples, teachers = direction(z), targets.directions
    of_classes, together = direction(z.T), direction(targets.soft_targets.T)
    return {
        "inter_class_loss": 1 - (of_samples * teachers).sum(1),
        "intra_class_loss": 1 - (of_classes * together).sum(1).mean(),
        "inter_class_rank_loss": 1 - kendall(of_samples, teachers),
        "intra_class_rank_loss": 1 - kendall(of_classes, together).mean(),
    }


RANK = Loss(
    fuse=_fuse,
    terms=_terms,
    factors=lambda method: {
        "inter_class_loss": 1.0,
        "intra_class_loss": method.batch_weight,
        "inter_class_rank_loss": _KENDALL_WEIGHT,
        "intra_class_rank_loss": _KENDALL_WEIGHT * method.batch_weight,
    },
    needs_all_logits=True,
)
