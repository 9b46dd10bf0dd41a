"""DKD: the divergence taken apart into the target class and the others (Zhao et al., CVPR 2022).

For p = softmax(z / T) and label y:  b = (p_y, 1 - p_y),  q = softmax over the classes other than y.

    T^2 (tckd_weight sum_k w_k KL(b^k || b^S) + nckd_weight sum_k w_k KL(q^k || q^S))

K teachers are fused part by part, b and q each averaged; an average of whole probabilities is not the same. log b is
the log-sigmoid of the label's margin, its logit less the logsumexp of the others: 1 - p_y, or a sum of probabilities
under a logarithm, would lose the rest of an over-confident prediction to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from demkd.config import MethodConfig
from demkd.losses.base import (
    Loss,
    SoftTargets,
    TeacherLogits,
    check_class_numbers,
    entropy_of,
    mix,
    seen,
    seen_teachers,
    working_precision,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoupledTargets(SoftTargets):
    """Soft targets of both parts."""

    binary: Tensor  # (B, 2), sum_k w_k b^k
    others: Tensor  # (B, C), sum_k w_k q^k; 0 in the label's place
    binary_entropy: Tensor  # (B,), sum_k w_k H(b^k), the constant that turns cross-entropy into divergence
    others_entropy: Tensor  # (B,), sum_k w_k H(q^k)


class LogParts(NamedTuple):
    """log b (B, 2), and log q (B, C) with 0 in the label's place, where q is 0."""

    binary: Tensor
    others: Tensor


def log_parts(logits: Tensor, labels: Tensor, *, temperature: float) -> LogParts:
    """Decouple logits (B, C) with respect to labels (B,)."""
    check_class_numbers(logits, labels)
    label = labels[:, None]
    scaled = working_precision(logits) / temperature
    of_others = scaled.scatter(1, label, -torch.inf)
    log_q = of_others.log_softmax(1)
    # The logsumexp of the others, read off where z / T is largest: one fused softmax instead of the eight steps of
    # logsumexp, and log q is closest to 0 there, so that least is rounded away.
    rest = of_others.amax(1, keepdim=True) - log_q.amax(1, keepdim=True)
    margin = scaled.gather(1, label) - rest
    return LogParts(binary=F.logsigmoid(torch.cat((margin, -margin), dim=1)), others=log_q.scatter(1, label, 0.0))


def probabilities(log_q: Tensor, labels: Tensor) -> Tensor:
    """q (B, C) of log q, 0 in the label's place."""
    return log_q.exp().scatter(1, labels[:, None], 0.0)


@torch.no_grad()
def fuse_decoupled(
    logits: Sequence[Tensor], labels: Tensor, *, weights: Tensor, temperature: float
) -> DecoupledTargets:
    """Fuse the logits of K teachers, (B, C) each, with weights (K, B)."""
    parts = [log_parts(z, labels, temperature=temperature) for z in logits]
    binaries = [part.binary.exp() for part in parts]
    others = [probabilities(part.others, labels) for part in parts]
    return DecoupledTargets(
        binary=mix(binaries, weights),
        others=mix(others, weights),
        binary_entropy=mix([entropy_of(part.binary, b) for part, b in zip(parts, binaries, strict=True)], weights),
        others_entropy=mix([entropy_of(part.others, q) for part, q in zip(parts, others, strict=True)], weights),
    )


def decoupled_kd_loss(
    logits: Tensor, labels: Tensor, targets: DecoupledTargets, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """T^2 sum_k w_k KL(b^k || b^S) and T^2 sum_k w_k KL(q^k || q^S) of the student's logits (B, C): (B,) each.

    With two classes there is one other class, q is always 1, and the second is 0. The targets are constants.
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


def _fuse(logits: TeacherLogits, labels: Tensor, weights: Tensor, method: MethodConfig) -> DecoupledTargets:
    z = seen_teachers(logits, method)
    return fuse_decoupled(z, labels, weights=weights, temperature=method.temperature)


def _terms(z: Tensor, labels: Tensor, targets: DecoupledTargets, method: MethodConfig) -> dict[str, Tensor]:
    tckd, nckd = decoupled_kd_loss(seen(z, method), labels, targets, temperature=method.temperature)
    return {"target_class_kd": tckd, "non_target_class_kd": nckd}


DKD = Loss(
    fuse=_fuse,
    terms=_terms,
    factors=lambda method: {"target_class_kd": method.tckd_weight, "non_target_class_kd": method.nckd_weight},
)
