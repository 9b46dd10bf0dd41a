"""A student against labels and fused targets: cross-entropy, Hinton's loss, and DKD's two.

The latter are divergences scaled by the squared temperature.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from demkd.losses.decoupling import log_parts, probabilities, require_class_numbers, working_precision
from demkd.losses.targets import CoupledTargets, DecoupledTargets


def label_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the label, of logits (B, C) and labels (B,): (B,).

    Args:
        smoothing: the share of the target that is spread over all classes (Szegedy et al. 2016).

    Raises:
        ValueError: if the labels are no class numbers.
    """
    require_class_numbers(logits, labels)
    return F.cross_entropy(working_precision(logits), labels, reduction="none", label_smoothing=smoothing)


def kd_loss(logits: Tensor, targets: CoupledTargets, *, temperature: float) -> Tensor:
    """T^2 sum_k w_k KL(p^k || p^S), of the student's logits (B, C): (B,) (Hinton et al. 2015)."""
    log_p = torch.log_softmax(working_precision(logits) / temperature, dim=1)
    return temperature**2 * (-(targets.soft_targets * log_p).sum(1) - targets.entropy)


def decoupled_kd_loss(
    logits: Tensor, labels: Tensor, targets: DecoupledTargets, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """T^2 sum_k w_k KL(b^k || b^S) and T^2 sum_k w_k KL(q^k || q^S): TCKD (B,) and NCKD (B,) (Zhao et al. 2022).

    With two classes there is one other class, q is always 1, and NCKD is 0. The targets are constants.

    Raises:
        ValueError: if the labels are no class numbers.
    """
    binary, others = _DecoupledCrossEntropies.apply(logits, labels, targets.binary, targets.others, temperature)
    tckd = binary - targets.binary_entropy
    nckd = others - targets.others_entropy
    return temperature**2 * tckd, temperature**2 * nckd


class _DecoupledCrossEntropies(torch.autograd.Function):
    """CE(b, b^S) and CE(q, q^S) with the gradient by hand; autograd's many small steps cost three times as much.

    With m the label's margin, at temperature T, and |.| a target's sum, which is the weights' (1, as a rule):

        dCE(b, b^S) / dm = |b| b^S_y - b_y            dm / dz = (onehot(y) - q^S) / T
        dCE(q, q^S) / dz = (|q| q^S - q) / T, which is 0 in the label's place
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, binary: Tensor, others: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        log_b, log_q = log_parts(logits, labels, temperature=temperature)
        ctx.save_for_backward(labels, binary, others, log_b, log_q)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return -(binary * log_b).sum(1), -(others * log_q).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_binary: Tensor, of_others: Tensor) -> tuple[Tensor | None, ...]:
        labels, binary, others, log_b, log_q = ctx.saved_tensors
        by_margin = of_binary * (binary.sum(1) * log_b[:, 0].exp() - binary[:, 0]) / ctx.temperature
        scale = of_others / ctx.temperature
        gradient = probabilities(log_q, labels) * (scale * others.sum(1) - by_margin)[:, None]
        gradient = gradient.addcmul_(others, scale[:, None], value=-1).scatter_(1, labels[:, None], by_margin[:, None])
        return gradient.to(ctx.dtype), None, None, None, None
