"""The weight of each teacher: a method's weight options, applied to the teachers' logits or entropies.

K teachers, B samples (a batch, or a whole slot of N), C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from demkd.dataset import seeded
from demkd.losses import (
    UNCERTAINTIES,
    effective_teachers,
    entropy_weights,
    mask_wrong_teachers,
    standardised,
    uniform_weights,
    wrong_and_trusted,
)
from demkd.pipeline.methods import METHODS, Method
from demkd.pipeline.results import TeacherStatistics

DEFAULT_WEIGHTING = "entropy at temperature 1, one_minus_softmax, tau 1"
# Fields of a method that do not change the weights, or that apply to precomputed ones too. A change in
# any other field makes the weights be computed: to forget a new field here costs time, and never gives wrong weights.
NOT_ABOUT_WEIGHTS = (
    "name",
    "loss",
    "standardise",
    "batch_weight",
    "target_power",
    "views_per_step",
    "kd_weight",
    "temperature",
    "tckd_weight",
    "nckd_weight",
    "warmup",
    "hint_weight",
    "feature_weighting",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWeights:
    """Weights (K, B) of the logit loss and of the hint loss; each sums to 1 over the teachers."""

    logits: Tensor
    hint: Tensor

    def of_samples(self, rows: slice | Tensor) -> "TeacherWeights":
        return TeacherWeights(logits=self.logits[:, rows], hint=self.hint[:, rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffle:
    """From which teacher (K, N) or sample (N,) to take weights, for the controls; see `dataset/seeded.py`."""

    teachers: Tensor | None = None
    samples: Tensor | None = None

    @classmethod
    def draw(cls, method: Method, *, seed: int, slot: int, teachers: int, samples: int) -> "Shuffle":
        """The shuffle of a slot, the same in every epoch that reads it."""
        if method.shuffle == "teachers":
            order = seeded.shuffled_teachers(seed=seed, slot=slot, samples=samples, teachers=teachers)
            return cls(teachers=torch.from_numpy(order))
        if method.shuffle == "samples":
            return cls(samples=torch.from_numpy(seeded.shuffled_samples(seed=seed, slot=slot, samples=samples)))
        return cls()

    def of_samples(self, indices: Tensor) -> "Shuffle":
        """The part of a shuffle between teachers for some samples (B,); one between samples needs all of them."""
        return Shuffle(teachers=None if self.teachers is None else self.teachers[:, indices.cpu()])

    def apply(self, weights: Tensor) -> Tensor:
        if self.teachers is not None:
            weights = weights.gather(0, self.teachers.to(weights.device))
        if self.samples is not None:
            weights = weights[:, self.samples.to(weights.device)]
        return weights


def is_default(method: Method) -> bool:
    """Whether the weights are those that stage one precomputes."""
    default = METHODS["de-mkd"]
    return replace(method, **{name: getattr(default, name) for name in NOT_ABOUT_WEIGHTS}) == default


def uses_cached_entropy(method: Method) -> bool:
    """Whether the weights follow from the entropies that a cache holds, without its logits."""
    plain = method.entropy_temperature == 1.0 and method.entropy_logits == "raw"
    return plain and method.weight_source == "entropy"


def needs_all_samples(method: Method) -> bool:
    """Whether a sample's weights depend on other samples, so that live teachers cannot give them batch by batch."""
    return method.weight_level == "dataset" or method.shuffle == "samples"


def measure_uncertainty(logits: Sequence[Tensor], labels: Tensor, method: Method) -> Tensor:
    """The uncertainty (K, B) of K teachers from their logits, (B, C) each, and the labels (B,)."""
    if method.entropy_logits == "standardised":
        logits = [standardised(z) for z in logits]
    measure = UNCERTAINTIES.get(method.weight_source, UNCERTAINTIES["entropy"])  # uniform and fixed read none
    return measure(logits, labels, method.entropy_temperature)


def weigh(
    uncertainty: Tensor, predictions: Tensor, labels: Tensor, method: Method, *, shuffle: Shuffle | None = None
) -> TeacherWeights:
    """Weights from an uncertainty (K, B); predictions (K, B) and labels (B,) are for the wrong-teacher rule."""
    if method.weight_level == "dataset":
        uncertainty = uncertainty.mean(1, keepdim=True).expand_as(uncertainty)
    if method.weight_source == "uniform":
        weights = uniform_weights(uncertainty)
    elif method.weight_source == "fixed":
        weights = torch.tensor(method.fixed_weights, device=uncertainty.device)[:, None].expand_as(uncertainty)
    else:
        weights = entropy_weights(uncertainty, form=method.weight_form, tau=method.weight_tau)
    if method.wrong_teacher == "mask":
        weights = mask_wrong_teachers(weights, predictions, labels)
    return for_both_losses(weights if shuffle is None else shuffle.apply(weights), method)


def for_both_losses(weights: Tensor, method: Method) -> TeacherWeights:
    """Weights (K, B) of the logit loss, and those of the hint loss by `feature_weighting`."""
    uniform = method.feature_weighting == "uniform"
    return TeacherWeights(logits=weights, hint=uniform_weights(weights) if uniform else weights)


def measure_teachers(entropy: Tensor, predictions: Tensor, labels: Tensor, weights: TeacherWeights) -> Tensor:
    """Means over B samples for K teachers: top-1, entropy, weight, wrong-and-trusted, effective number: (5, K)."""
    weight = weights.logits
    rows = [
        (predictions == labels).float().mean(1),
        entropy.mean(1),
        weight.mean(1),
        wrong_and_trusted(weight, predictions, labels).float().mean(1),
        effective_teachers(weight).mean().expand(len(weight)),
    ]
    return torch.stack(rows)


def teacher_statistics(names: tuple[str, ...], measures: Tensor) -> TeacherStatistics:
    """`measure_teachers`'s table (5, K) as a report."""
    top1, mean_entropy, mean_weight, trusted, effective = (tuple(row) for row in measures.tolist())
    return TeacherStatistics(
        names=names,
        top1=top1,
        mean_entropy=mean_entropy,
        mean_weight=mean_weight,
        wrong_and_trusted=trusted,
        effective_teachers=effective[0],
    )
