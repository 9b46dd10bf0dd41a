"""The loss of a batch, term by term: labels, the teachers' logits, their features.

B in a batch, C classes, K teachers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from demkd.losses import CoupledTargets, decoupled_kd_loss, hint_loss, kd_loss, label_loss
from demkd.pipeline.methods import RELEASED_SCALES, Method
from demkd.pipeline.supervision import Guidance


class Objective:
    """Label loss + faded-in logit loss + hint loss (method.md, "DE-MKD as implemented")."""

    def __init__(self, method: Method, *, epochs: int, teachers: int) -> None:
        """Fix what does not depend on the batch.

        Args:
            epochs: of the schedule, of which `method.warmup` is a share.
            teachers: K.
        """
        self._method = method
        self._warmup_epochs = method.warmup * epochs
        released = RELEASED_SCALES[method.name](teachers) if method.reduction == "released" else 1.0
        self._kd_weight = method.kd_weight * released
        self._hint_weight = method.hint_weight / max(teachers, 1)

    def fade_in(self, epoch: int) -> float:
        """The factor of the logit loss in epoch 1, 2, ...: it rises to 1 over the warm-up."""
        return min(epoch / self._warmup_epochs, 1.0) if self._warmup_epochs else 1.0

    def terms(
        self, logits: Tensor, labels: Tensor, guidance: Guidance, adapted: Sequence[Tensor], *, epoch: int
    ) -> dict[str, Tensor]:
        """Every term's mean over the batch, unweighted, and their weighted sum, "loss".

        Args:
            logits: (B, C), the student's.
            adapted: the student's features by teacher, adapted to the teacher's shape.
        """
        terms = {"label_loss": label_loss(logits, labels).mean()}
        loss = terms["label_loss"]
        if guidance.targets is not None:
            kd_terms, kd = self._logit_loss(logits, labels, guidance)
            terms |= kd_terms
            loss = loss + self.fade_in(epoch) * self._kd_weight * kd
        if adapted:
            assert guidance.hint_weights is not None
            distances = torch.stack([hint_loss(a, h) for a, h in zip(adapted, guidance.hints, strict=True)])  # (K, B)
            terms["hint_loss"] = (guidance.hint_weights * distances).sum(0).mean()
            loss = loss + self._hint_weight * terms["hint_loss"]
        return {**terms, "loss": loss}

    def _logit_loss(self, logits: Tensor, labels: Tensor, guidance: Guidance) -> tuple[dict[str, Tensor], Tensor]:
        method, targets = self._method, guidance.targets
        if isinstance(targets, CoupledTargets):
            kd = kd_loss(logits, targets, temperature=method.temperature).mean()
            return {"kd_loss": kd}, kd
        assert targets is not None
        tckd, nckd = decoupled_kd_loss(logits, labels, targets, temperature=method.temperature)
        terms = {"target_class_kd": tckd.mean(), "non_target_class_kd": nckd.mean()}
        tckd_mean, nckd_mean = terms.values()
        return terms, method.tckd_weight * tckd_mean + method.nckd_weight * nckd_mean
