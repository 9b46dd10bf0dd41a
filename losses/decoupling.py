"""Logits taken apart into "the label or not" and "which of the others" (Zhao et al., Decoupled KD, CVPR 2022).

For p = softmax(z / T) and label y:  b = (p_y, 1 - p_y),  q = softmax over the classes other than y.
log b is the log-sigmoid of the label's margin, its logit less the logsumexp of the others: 1 - p_y, or a sum of
probabilities under a logarithm, would lose the rest of an over-confident answer to rounding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LogParts(NamedTuple):
    """log b (B, 2), and log q (B, C) with 0 in the label's place, where q is 0."""

    binary: Tensor
    others: Tensor


def working_precision(logits: Tensor) -> Tensor:
    """float64 stays; everything else is computed in float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def require_class_numbers(logits: Tensor, labels: Tensor) -> None:
    """Refuse soft or mixed labels, which have no target class.

    Raises:
        ValueError: if labels are not (B,), int64, for logits (B, C).
    """
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must be class numbers, int64 and ({len(logits)},) for logits {tuple(logits.shape)}, but are "
            f"{labels.dtype} and {tuple(labels.shape)}: soft or mixed labels have no target class"
        )


def log_parts(logits: Tensor, labels: Tensor, *, temperature: float) -> LogParts:
    """Decouple logits (B, C) with respect to labels (B,).

    Raises:
        ValueError: if the labels are no class numbers.
    """
    require_class_numbers(logits, labels)
    label = labels[:, None]
    scaled = working_precision(logits) / temperature
    of_others = scaled.scatter(1, label, -torch.inf)
    log_q = of_others.log_softmax(1)
    # The logsumexp of the others, read off where z / T is largest: one fused softmax instead of the eight steps of
    # logsumexp, and log q is closest to 0 there, so that least is rounded away.
    rest = of_others.amax(1, keepdim=True) - log_q.amax(1, keepdim=True)
    margin = scaled.gather(1, label) - rest
    return LogParts(
        binary=F.logsigmoid(torch.cat((margin, -margin), dim=1)),
        others=log_q.scatter(1, label, 0.0),
    )


def probabilities(log_q: Tensor, labels: Tensor) -> Tensor:
    """q (B, C) of log q, 0 in the label's place."""
    return log_q.exp().scatter(1, labels[:, None], 0.0)


def entropy_of(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """-sum p log p of log p (..., C), and of p where it is there already, in nats: (...); 0 log 0 is 0."""
    p = log_p.exp() if p is None else p
    return -(p * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
