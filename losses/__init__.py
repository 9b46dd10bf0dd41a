"""The losses, one file each, and the weights of the teachers.

To add a loss, write its file (formula, targets of K fused teachers, terms, factors: see `kd.py`) and add one line to
`LOSSES`. `weights.py` turns a teacher's uncertainty into its weight; `criterion.py` puts labels, logits and features
together.

K teachers, B samples, C classes; losses are (B,), not reduced over the batch.
"""

import torch
from torch import Tensor

from demkd.config import ConfigError, MethodConfig
from demkd.losses.base import Loss, PartnerLabels, SoftTargets, TargetBatch, Targets, TeacherLogits, label_loss
from demkd.losses.crld import CRLD
from demkd.losses.dist import DIST
from demkd.losses.dkd import DKD, decoupled_kd_loss, fuse_decoupled
from demkd.losses.feature import hint_loss
from demkd.losses.kd import KD, CoupledTargets, fuse_coupled, kd_loss
from demkd.losses.mlkd import MLKD
from demkd.losses.ofa import OFA
from demkd.losses.rank import RANK
from demkd.losses.ttm import TTM, WTTM
from demkd.losses.weights import (
    UNCERTAINTIES,
    WEIGHT_FORMS,
    TeacherWeights,
    entropy,
    entropy_weights,
    mask_wrong_teachers,
    measure_teachers,
    measure_uncertainty,
    uniform_weights,
    weigh,
    wrong_above_uniform,
)

_WITH_A_LABEL = ("dkd", "ofa")  # losses that need one label a sample
LOSSES: dict[str, Loss] = {
    "kd": KD,
    "dkd": DKD,
    "ttm": TTM,
    "wttm": WTTM,
    "dist": DIST,
    "rank": RANK,
    "mlkd": MLKD,
    "crld": CRLD,
    "ofa": OFA,
}


def fuse(logits: TeacherLogits, labels: Tensor, method: MethodConfig, weights: TeacherWeights) -> SoftTargets:
    """Soft targets of B samples from the logits of K teachers."""
    return LOSSES[method.loss].fuse(logits, labels, weights.logits, method)


def loss_temperatures(method: MethodConfig) -> tuple[float, ...]:
    """The temperatures at which a method's loss reads the teachers' logits."""
    return LOSSES[method.loss].temperatures(method) if method.needs_teachers else ()


def logit_terms(logits: Tensor, labels: Tensor, targets: SoftTargets, method: MethodConfig) -> dict[str, Tensor]:
    """The terms of the student's logits (B, C), without their factors: (B,) each, or a scalar for the batch.

    With S views a step, B is S times the samples, view by view: each term is then (S,), a mean for each view, and what
    compares samples compares those of one view, unless the loss compares views.
    """
    loss, views = LOSSES[method.loss], method.views_per_step
    if views == 1 or loss.compares_views:
        return loss.terms(logits, labels, targets, method)
    size = len(labels) // views
    rows = [slice(view * size, (view + 1) * size) for view in range(views)]
    by_view = [loss.terms(logits[part], labels[part], targets.rows(part), method) for part in rows]
    return {name: torch.stack([of_view[name].mean() for of_view in by_view]) for name in by_view[0]}


def check_mixable(method: MethodConfig) -> None:
    """Refuse a method that needs one label a sample, or the same images in its views, where views mix two samples."""
    reason = "needs one label an image, and mixed images have two"
    if method.needs_teachers and LOSSES[method.loss].compares_views:
        raise ConfigError(
            f"{method.loss.upper()} compares two views of an image, and `mix` mixes other images into each: "
            "leave it out"
        )
    if method.loss in _WITH_A_LABEL:
        loss = "the decoupled loss" if method.loss == "dkd" else "OFA's loss"
        raise ConfigError(
            f"{loss} of {method.name} {reason}: choose kd, ebkd or another with `loss=kd`, or leave `mix` out"
        )
    if method.needs_teachers and method.weight_source == "cross_entropy":
        raise ConfigError(f"`weight_source=cross_entropy` {reason}: choose entropy, or leave `mix` out")
    if method.wrong_teacher == "mask":
        raise ConfigError(f"`wrong_teacher=mask` {reason}: choose keep, or leave `mix` out")


__all__ = [
    "LOSSES", "UNCERTAINTIES", "WEIGHT_FORMS", "CoupledTargets", "Loss", "PartnerLabels", "SoftTargets", "TargetBatch",
    "Targets", "TeacherLogits", "TeacherWeights", "check_mixable", "decoupled_kd_loss", "entropy", "entropy_weights",
    "fuse", "fuse_coupled", "fuse_decoupled", "hint_loss", "kd_loss", "label_loss", "logit_terms", "loss_temperatures",
    "mask_wrong_teachers", "measure_teachers", "measure_uncertainty", "uniform_weights", "weigh",
    "wrong_above_uniform",
]  # fmt: skip
