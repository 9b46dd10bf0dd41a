"""The loss of a student: CE(labels) + min(epoch / warmup, 1) kd_weight L_logit + (hint_weight / K) L_hint.

K teachers, B samples, C classes, L terms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from demkd.config import ConfigError, MethodConfig, choose_method
from demkd.losses import LOSSES, PartnerLabels, TargetBatch, Targets, hint_loss, label_loss, logit_terms
from demkd.losses.base import working_precision

_SHARED = ("loss", "standardize", "temperature", "target_power", "views_per_step", "needs_features")  # with the targets


class DistillationLoss(nn.Module):
    """The loss of a method, for a training loop.

        criterion = demkd.DistillationLoss("de-mkd-logits", epochs=240)
        loss = criterion(student(batch.images), batch)

    Attributes:
        method: with its options.
        names: of the L terms; `terms` and `factors` follow their order. One tensor holds all terms: to sum and weight
            them one by one would cost a small step more than the loss.
    """

    def __init__(
        self, method: str | MethodConfig, *, epochs: int, label_smoothing: float = 0.0, **method_options: Any
    ) -> None:
        """Choose the terms.

        Args:
            method: the name of a preset, or a method. Give the loader the same.
            epochs: of the schedule; the logit loss fades in over the share `warmup` of it.
            method_options: options of the preset to change, such as `temperature=2.0`.

        Raises:
            ConfigError: if there is no such method, option or value.
        """
        super().__init__()
        if not isinstance(method, str) and method_options:
            raise ConfigError(f"`method` is a MethodConfig already: change {', '.join(method_options)} there")
        self.method = choose_method(method, **method_options) if isinstance(method, str) else method
        self.label_smoothing = label_smoothing
        self.warmup_epochs = self.method.warmup * epochs
        self._logit_factors = LOSSES[self.method.loss].factors(self.method) if self.method.needs_teachers else {}
        self.names = ("label_loss", *self._logit_factors, *(("hint_loss",) if self.method.needs_features else ()))

    def forward(self, logits: Tensor, batch: TargetBatch, features: Sequence[Tensor] = ()) -> Tensor:
        """The loss of the student's logits (B, C): a scalar.

        Args:
            features: for a method with a hint loss, the student's features for each teacher, in the teacher's shape.

        Raises:
            ValueError: if the targets are of another method or number of classes, or `features` not of K teachers.
        """
        targets = batch.targets
        for option in _SHARED if targets.method else ():
            in_targets, in_loss = getattr(targets.method, option), getattr(self.method, option)
            if in_targets != in_loss:
                raise ValueError(
                    f"`{option}` is {in_targets!r} in the targets, {in_loss!r} in the loss: give both the same method"
                )
        if targets.soft is None and self.method.needs_teachers:
            raise ValueError(f"the method {self.method.name} needs soft targets: give the loader this method")
        soft = getattr(targets.soft, "soft_targets", getattr(targets.soft, "others", logits))  # (B, ..., C)
        if soft.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"{logits.shape[-1]} logits, but {soft.shape[-1]} classes: give the student one logit per class"
            )
        if len(features) != len(targets.hints):
            raise ValueError(f"give features for {len(targets.hints)} teachers, not {len(features)}")
        factors = self.factors(batch.epoch, teachers=len(targets.hints), classes=logits.shape[1])
        with torch.autocast(logits.device.type, enabled=False):  # it would multiply matrices in half precision
            terms = self.terms(working_precision(logits), batch.labels, targets, features, batch.partner)
            return terms @ factors.to(terms)

    def terms(
        self,
        logits: Tensor,
        labels: Tensor,
        targets: Targets,
        features: Sequence[Tensor] = (),
        partner: PartnerLabels | None = None,
    ) -> Tensor:
        """The mean of every term over the batch, without its factor: (L,).

        What compares samples (DIST, MLKD) compares those given here. If processes share a batch, that is the part of
        each process, unless logits and targets are gathered before.
        """
        label = label_loss(logits, labels, smoothing=self.label_smoothing)
        if partner is not None:
            other = label_loss(logits, partner.labels, smoothing=self.label_smoothing)
            label = torch.lerp(other, label, partner.share.to(label.dtype))
        terms = {"label_loss": label}
        if targets.soft is not None:
            terms |= logit_terms(logits, labels, targets.soft, self.method)
        if features:
            assert targets.hint_weights is not None
            distances = torch.stack([hint_loss(a, h) for a, h in zip(features, targets.hints, strict=True)])  # (K, B)
            terms["hint_loss"] = (targets.hint_weights * distances).sum(0)
        return torch.stack([terms[name].mean() for name in self.names])

    def factors(self, epoch: int, *, teachers: int, classes: int) -> Tensor:
        """The factor of every term in epoch 0, 1, ...: (L,), float64, on the CPU.

        Args:
            teachers: K, by which `hint_weight` is divided.
            classes: C, by which `full_weight_classes` lowers `kd_weight`.
        """
        fade_in = min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        kd_weight = fade_in * self.method.kd_weight
        if self.method.needs_teachers and classes < self.method.full_weight_classes:
            kd_weight *= (classes / self.method.full_weight_classes) ** LOSSES[self.method.loss].class_power
        factors = [1.0, *(kd_weight * factor for factor in self._logit_factors.values())]
        if self.method.needs_features:
            factors.append(self.method.hint_weight / max(teachers, 1))
        return torch.tensor(factors, dtype=torch.float64)
