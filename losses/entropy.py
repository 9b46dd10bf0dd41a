"""How unsure an answer is: Shannon entropies in nats, 0 for certainty and ln C for none."""

import torch
from torch import Tensor

from demkd.losses.decoupling import entropy_of, log_parts, probabilities, working_precision


def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The entropy of softmax(logits / temperature), of logits (..., C): (...).

    Temperature 1 by default: at the 4 of distillation all entropies crowd near ln C (docs/methods.md).
    """
    return entropy_of(torch.log_softmax(working_precision(logits) / temperature, dim=-1))


def target_class_entropy(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The entropy of b, "the label or not", of logits (B, C) and labels (B,): (B,)."""
    return entropy_of(log_parts(logits, labels, temperature=temperature).binary)


def non_target_class_entropy(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The entropy of q, "which of the others", of logits (B, C) and labels (B,): (B,)."""
    log_q = log_parts(logits, labels, temperature=temperature).others
    return entropy_of(log_q, probabilities(log_q, labels))
