"""What a student is told of its teachers' logits: for each word of `loss`, how K teachers are fused, and the loss.

A new loss is a function or two in `losses/`, one line of `LOSSES`, and (for `--help`) its word in `CHOICES`; the
stages know it then, from a cache, with live teachers, with every weighting. K teachers, B samples, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demkd.losses import (
    CoupledTargets,
    DecoupledTargets,
    LevelTargets,
    RelationTargets,
    decoupled_kd_loss,
    fuse_coupled,
    fuse_decoupled,
    fuse_enhanced,
    fuse_levels,
    fuse_relations,
    gram_losses,
    inter_class_loss,
    intra_class_loss,
    kd_loss,
    level_kd_loss,
    power_sums,
    standardised,
)
from demkd.pipeline.methods import Method
from demkd.pipeline.weighing import TeacherWeights

SoftTargets = CoupledTargets | DecoupledTargets | RelationTargets | LevelTargets
# The K teachers' logits, (B, C) each, as they are read for a softmax at each of a loss's temperatures: the same at all,
# unless a cache kept a few, whose others are one number then, right at that temperature.
TeacherLogits = Mapping[float, Sequence[Tensor]]

_LEVELS = (2.0, 3.0, 5.0, 6.0)  # MLKD's temperatures besides its own


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitLoss:
    """One word of `loss`.

    Attributes:
        factors: the terms of the loss, and what each counts for within it.
        fuse: the targets of B samples from their logits, labels (B,) and weights.
        terms: of the student's logits (B, C) and labels (B,): (B,) each, or a scalar where it is of the whole batch.
        temperatures: at which the teachers' logits are looked at.
    """

    factors: Callable[[Method], dict[str, float]]
    fuse: Callable[[TeacherLogits, Tensor, TeacherWeights, Method], SoftTargets]
    terms: Callable[[Tensor, Tensor, Any, Method], tuple[Tensor, ...]]
    temperatures: Callable[[Method], tuple[float, ...]] = lambda method: (method.temperature,)


def fuse(logits: TeacherLogits, labels: Tensor, method: Method, weights: TeacherWeights) -> SoftTargets:
    """The soft targets of B samples from K teachers' logits."""
    return LOSSES[method.loss].fuse(logits, labels, weights, method)


def logit_terms(logits: Tensor, labels: Tensor, targets: SoftTargets, method: Method) -> dict[str, Tensor]:
    """The terms of the student's logits (B, C), not yet weighted: (B,) each, or a scalar for the batch.

    With S views a step, the batch is one of S B, and there is one value a view: samples are compared within it.
    """
    loss, views = LOSSES[method.loss], method.views_per_step
    if views == 1:
        terms = loss.terms(logits, labels, targets, method)
    else:
        size = len(labels) // views
        rows = [slice(view * size, (view + 1) * size) for view in range(views)]
        found = [loss.terms(logits[one], labels[one], targets.part(one), method) for one in rows]
        terms = tuple(torch.stack([term.mean() for term in of_views]) for of_views in zip(*found, strict=True))
    return dict(zip(loss.factors(method), terms, strict=True))


def loss_temperatures(method: Method) -> tuple[float, ...]:
    """At which a method's loss looks at the teachers' logits."""
    return LOSSES[method.loss].temperatures(method) if method.needs_teachers else ()


def _looked_at(logits: TeacherLogits, method: Method, temperature: float) -> list[Tensor]:
    return [_shown(z, method) for z in logits[temperature]]


def _shown(logits: Tensor, method: Method) -> Tensor:
    """What the loss sees of logits."""
    return standardised(logits) if method.standardise else logits


def _fuse_kd(logits: TeacherLogits, _labels: Tensor, weights: TeacherWeights, method: Method) -> CoupledTargets:
    z = _looked_at(logits, method, method.temperature)
    return fuse_coupled(z, weights=weights.logits, temperature=method.temperature)


def _fuse_dkd(logits: TeacherLogits, labels: Tensor, weights: TeacherWeights, method: Method) -> DecoupledTargets:
    z = _looked_at(logits, method, method.temperature)
    return fuse_decoupled(
        z, labels, tckd_weights=weights.logits, nckd_weights=weights.logits, temperature=method.temperature
    )


def _fuse_wttm(logits: TeacherLogits, _labels: Tensor, weights: TeacherWeights, method: Method) -> CoupledTargets:
    """The samples' own weights are constants, as the teachers' are."""
    temperature = method.temperature
    tempered = _looked_at(logits, method, temperature)
    sums = [
        power_sums(z, at, temperature=temperature)
        for z, at in zip(_looked_at(logits, method, 1.0), tempered, strict=True)
    ]
    return fuse_coupled(tempered, weights=weights.logits * torch.stack(sums), temperature=temperature)


def _fuse_relations(logits: TeacherLogits, _labels: Tensor, weights: TeacherWeights, method: Method) -> RelationTargets:
    z = _looked_at(logits, method, method.temperature)
    return fuse_relations(z, weights=weights.logits, temperature=method.temperature)


def _fuse_levels(logits: TeacherLogits, _labels: Tensor, weights: TeacherWeights, method: Method) -> LevelTargets:
    raw = [(temperature, logits[temperature]) for temperature in _levels(method)]
    if not method.standardise:
        return fuse_levels(raw, weights=weights.logits)
    shown = _looked_at(logits, method, method.temperature)  # of all logits, which are the same at any temperature
    levels = [(temperature, shown) for temperature in _levels(method)]
    return fuse_levels(levels, weights=weights.logits, gram_levels=raw)


def _fuse_ofa(logits: TeacherLogits, labels: Tensor, weights: TeacherWeights, method: Method) -> CoupledTargets:
    z = _looked_at(logits, method, method.temperature)
    return fuse_enhanced(z, labels, weights=weights.logits, temperature=method.temperature, power=method.target_power)


def _levels(method: Method) -> tuple[float, ...]:
    return (method.temperature, *_LEVELS)


LOSSES: dict[str, LogitLoss] = {
    "kd": LogitLoss(
        factors=lambda _method: {"kd_loss": 1.0},
        fuse=_fuse_kd,
        terms=lambda z, _labels, targets, method: (
            kd_loss(_shown(z, method), targets, temperature=method.temperature),
        ),
    ),
    "dkd": LogitLoss(
        factors=lambda method: {
            "target_class_kd": method.tckd_weight,
            "non_target_class_kd": method.nckd_weight,
        },
        fuse=_fuse_dkd,
        terms=lambda z, labels, targets, method: decoupled_kd_loss(
            _shown(z, method), labels, targets, temperature=method.temperature
        ),
    ),
    # The student's own temperature is 1, and there is no squared temperature.
    "ttm": LogitLoss(
        factors=lambda _method: {"kd_loss": 1.0},
        fuse=_fuse_kd,
        terms=lambda z, _labels, targets, method: (kd_loss(_shown(z, method), targets, temperature=1.0),),
    ),
    "wttm": LogitLoss(
        factors=lambda _method: {"kd_loss": 1.0},
        fuse=_fuse_wttm,
        terms=lambda z, _labels, targets, method: (kd_loss(_shown(z, method), targets, temperature=1.0),),
        temperatures=lambda method: (method.temperature, 1.0),
    ),
    "dist": LogitLoss(
        factors=lambda method: {"inter_class_loss": 1.0, "intra_class_loss": method.batch_weight},
        fuse=_fuse_relations,
        terms=lambda z, _labels, targets, method: (
            inter_class_loss(_shown(z, method), targets, temperature=method.temperature),
            intra_class_loss(_shown(z, method), targets, temperature=method.temperature),
        ),
    ),
    "mlkd": LogitLoss(
        factors=lambda method: {
            "kd_loss": 1.0,
            "sample_gram_loss": method.batch_weight,
            "class_gram_loss": method.batch_weight,
        },
        fuse=_fuse_levels,
        terms=lambda z, _labels, targets, method: (
            level_kd_loss(_shown(z, method), targets, temperatures=_levels(method)),
            *gram_losses(z, targets, temperatures=_levels(method)),
        ),
        temperatures=_levels,
    ),
    # Published without a squared temperature: `kd_loss` has one.
    "ofa": LogitLoss(
        factors=lambda method: {"kd_loss": method.temperature**-2},
        fuse=_fuse_ofa,
        terms=lambda z, _labels, targets, method: (
            kd_loss(_shown(z, method), targets, temperature=method.temperature),
        ),
    ),
}
