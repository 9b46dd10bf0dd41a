"""A student against labels and fused targets: cross-entropy, Hinton's loss, and DKD's two.

The latter are divergences scaled by the squared temperature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.losses.decoupling import log_parts, working_precision
from demkd.losses.targets import CoupledTargets, DecoupledTargets


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the label, of logits (B, C) and labels (B,): (B,)."""
    return F.cross_entropy(working_precision(logits), labels, reduction="none")


def kd_loss(logits: Tensor, targets: CoupledTargets, *, temperature: float) -> Tensor:
    """T^2 sum_k w_k KL(p^k || p^S), of the student's logits (B, C): (B,) (Hinton et al. 2015)."""
    log_p = torch.log_softmax(working_precision(logits) / temperature, dim=1)
    return temperature**2 * (-(targets.soft_targets * log_p).sum(1) - targets.entropy)


def decoupled_kd_loss(
    logits: Tensor, labels: Tensor, targets: DecoupledTargets, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """T^2 sum_k w_k KL(b^k || b^S) and T^2 sum_k w_k KL(q^k || q^S): TCKD (B,) and NCKD (B,) (Zhao et al. 2022).

    With two classes there is one other class, q is always 1, and NCKD is 0.
    """
    log_b, log_q = log_parts(logits, labels, temperature=temperature)
    tckd = -(targets.binary * log_b).sum(1) - targets.binary_entropy
    nckd = -(targets.others * log_q).sum(1) - targets.others_entropy
    return temperature**2 * tckd, temperature**2 * nckd
