"""Hinton's loss: T^2 sum_k w_k KL(p^k || p^S), p = softmax(z / T) (Hinton, Vinyals, Dean 2015).

With fixed weights, a weighted sum of divergences from K teachers is one cross-entropy less a constant:

    sum_k w_k KL(p^k || p^S) = CE(sum_k w_k p^k, p^S) - sum_k w_k H(p^k)

so the teachers' probabilities are averaged once, and a step costs what one teacher does. An average of logits is not
the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.losses.base import Loss, SoftTargets, entropy_of, mix, seen, seen_teachers, working_precision


@dataclass(frozen=True, kw_only=True, slots=True)
class CoupledTargets(SoftTargets):
    """Soft targets over all classes."""

    soft_targets: Tensor  # (B, C), sum_k w_k p^k
    entropy: Tensor  # (B,), sum_k w_k H(p^k), the constant that turns cross-entropy into divergence


@torch.no_grad()
def fuse_coupled(logits: Sequence[Tensor], *, weights: Tensor, temperature: float) -> CoupledTargets:
    """Fuse the logits of K teachers, (B, C) each, with weights (K, B)."""
    log_p = [torch.log_softmax(working_precision(z) / temperature, dim=1) for z in logits]
    p = [lp.exp() for lp in log_p]
    return CoupledTargets(
        soft_targets=mix(p, weights), entropy=mix([entropy_of(*pair) for pair in zip(log_p, p, strict=True)], weights)
    )


def kd_loss(logits: Tensor, targets: CoupledTargets, *, temperature: float) -> Tensor:
    """T^2 sum_k w_k KL(p^k || p^S) of the student's logits (B, C): (B,)."""
    log_p = torch.log_softmax(working_precision(logits) / temperature, dim=1)
    return temperature**2 * (-(targets.soft_targets * log_p).sum(1) - targets.entropy)


KD = Loss(
    fuse=lambda logits, _labels, weights, method: fuse_coupled(
        seen_teachers(logits, method), weights=weights, temperature=method.temperature
    ),
    terms=lambda z, _labels, targets, method: {
        "kd_loss": kd_loss(seen(z, method), targets, temperature=method.temperature)
    },
)
