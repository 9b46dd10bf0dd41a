"""Fused targets: K teachers for the price of one.

With fixed weights, a weighted sum of divergences from K teachers differs from one cross-entropy by a constant:

    sum_k w_k KL(t_k || s) = CE(sum_k w_k t_k, s) - sum_k w_k H(t_k)

so the teachers' soft targets are averaged once per slot, and a training step sees a single teacher (docs/methods.md,
"Fused targets"). Averaging logits, or whole probabilities before decoupling, is not the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from demkd.losses.decoupling import entropy_of, log_parts, probabilities, working_precision


@dataclass(frozen=True, kw_only=True, slots=True)
class _Targets:
    """Soft targets of B samples; every field has B rows."""

    def rows(self, indices: Tensor) -> Self:
        """The targets of some samples."""
        return type(self)(**{field.name: getattr(self, field.name).index_select(0, indices) for field in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put blocks of samples together."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoupledTargets(_Targets):
    """For DKD's two losses.

    Attributes:
        binary: (B, 2), sum_k w_k b^k: the label or not.
        others: (B, C), sum_k w_k q^k: which of the others; 0 in the label's place.
        binary_entropy: (B,), sum_k w_k H(b^k); the constant that turns cross-entropy into divergence.
        others_entropy: (B,), sum_k w_k H(q^k).
    """

    binary: Tensor
    others: Tensor
    binary_entropy: Tensor
    others_entropy: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CoupledTargets(_Targets):
    """For Hinton's loss.

    Attributes:
        soft_targets: (B, C), sum_k w_k p^k.
        entropy: (B,), sum_k w_k H(p^k).
    """

    soft_targets: Tensor
    entropy: Tensor


@torch.no_grad()
def fuse_decoupled(
    logits: Sequence[Tensor], labels: Tensor, *, tckd_weights: Tensor, nckd_weights: Tensor, temperature: float
) -> DecoupledTargets:
    """Fuse the K teachers' logits, each (B, C), with weights (K, B) for each of the two losses, without gradient."""
    parts = [log_parts(z, labels, temperature=temperature) for z in logits]
    binaries = [part.binary.exp() for part in parts]
    others = [probabilities(part.others, labels) for part in parts]
    return DecoupledTargets(
        binary=_mix(binaries, tckd_weights),
        others=_mix(others, nckd_weights),
        binary_entropy=_mix(
            [entropy_of(part.binary, b) for part, b in zip(parts, binaries, strict=True)], tckd_weights
        ),
        others_entropy=_mix([entropy_of(part.others, q) for part, q in zip(parts, others, strict=True)], nckd_weights),
    )


@torch.no_grad()
def fuse_coupled(logits: Sequence[Tensor], *, weights: Tensor, temperature: float) -> CoupledTargets:
    """Fuse the K teachers' logits, each (B, C), with weights (K, B), without gradient."""
    log_p = [torch.log_softmax(working_precision(z) / temperature, dim=1) for z in logits]
    p = [lp.exp() for lp in log_p]
    return CoupledTargets(
        soft_targets=_mix(p, weights),
        entropy=_mix([entropy_of(*pair) for pair in zip(log_p, p, strict=True)], weights),
    )


def _mix(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_k w_k x_k of K tensors (B, ...) and weights (K, B)."""
    total = torch.zeros_like(values[0])
    for value, weight in zip(values, weights.to(values[0].dtype), strict=True):
        total.addcmul_(value, weight.view(-1, *[1] * (value.dim() - 1)))
    return total
