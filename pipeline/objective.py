"""The loss of a batch, term by term: labels, the teachers' logits, their features.

B in a batch, C classes, K teachers, L terms of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.dataset import ViewPolicy
from demkd.losses import hint_loss, label_loss
from demkd.pipeline.logit_losses import LOSSES, logit_terms
from demkd.pipeline.methods import Method
from demkd.pipeline.target_source import BatchTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels (B,) of a batch; where two samples were mixed, also the other's, and the share (B,) of one's own."""

    own: Tensor
    other: Tensor | None = None
    share: Tensor | None = None

    @classmethod
    def of(cls, labels: Tensor, indices: Tensor, policy: ViewPolicy, records: Tensor) -> "Labels":
        """Those of samples (B,) in views of records (B, R), out of all (N,)."""
        if not policy.mixes:
            return cls(own=labels[indices])
        mixture = policy.mixture(records)
        return cls(own=labels[indices], other=labels[mixture.partners], share=mixture.share.to(torch.float32))


class Objective:
    """Label loss + faded-in logit loss + hint loss (docs/methods.md).

    The terms of a method are the entries of one tensor, in the order of `names`: summed up over an epoch and weighted
    into the loss all at once, where a tensor each would cost a small step of work each.
    """

    def __init__(self, method: Method, *, epochs: int, teachers: int, label_smoothing: float = 0.0) -> None:
        """Fix what does not depend on the batch.

        Args:
            epochs: of the schedule, of which `method.warmup` is a share.
            teachers: K.
        """
        self._method = method
        self._label_smoothing = label_smoothing
        self._warmup_epochs = method.warmup * epochs
        self._hint_weight = method.hint_weight / max(teachers, 1)
        self.names = tuple(self._factors(epoch=1))

    def fade_in(self, epoch: int) -> float:
        """The factor of the logit loss in epoch 1, 2, ...: it rises to 1 over the warm-up."""
        return min(epoch / self._warmup_epochs, 1.0) if self._warmup_epochs else 1.0

    def factors(self, *, epoch: int) -> Tensor:
        """What each term counts for in epoch 1, 2, ...: (L,), float64."""
        return torch.tensor(list(self._factors(epoch=epoch).values()), dtype=torch.float64)

    def terms(self, logits: Tensor, labels: Labels, batch_targets: BatchTargets, guesses: Sequence[Tensor]) -> Tensor:
        """Every term's mean over the batch, not yet weighted: (L,).

        What compares samples with each other (DIST, MLKD) compares those given here. Where several processes share a
        step, that is each one's part of it, unless the logits and targets were gathered before.

        Args:
            logits: (B, C), the student's.
            guesses: the student's features by teacher, adapted to the teacher's shape.
        """
        terms = {"label_loss": self._label_loss(logits, labels)}
        if batch_targets.targets is not None:
            terms |= logit_terms(logits, labels.own, batch_targets.targets, self._method)
        if guesses:
            assert batch_targets.hint_weights is not None
            distances = torch.stack(
                [hint_loss(a, h) for a, h in zip(guesses, batch_targets.hints, strict=True)]
            )  # (K, B)
            terms["hint_loss"] = (batch_targets.hint_weights * distances).sum(0)
        return torch.stack([terms[name].mean() for name in self.names])

    def _label_loss(self, logits: Tensor, labels: Labels) -> Tensor:
        """(B,); of two labels the mean, by their shares."""
        own = label_loss(logits, labels.own, smoothing=self._label_smoothing)
        if labels.other is None or labels.share is None:
            return own
        return torch.lerp(label_loss(logits, labels.other, smoothing=self._label_smoothing), own, labels.share)

    def _factors(self, *, epoch: int) -> dict[str, float]:
        method, factors = self._method, {"label_loss": 1.0}
        kd_weight = self.fade_in(epoch) * self._method.kd_weight
        if method.needs_teachers:
            factors |= {name: kd_weight * own for name, own in LOSSES[method.loss].factors(method).items()}
        if method.needs_features:
            factors["hint_loss"] = self._hint_weight
        return factors
