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
    non_target_class_entropy,
    standardised,
    target_class_entropy,
    uniform_weights,
    wrong_and_trusted,
)
from demkd.pipeline.methods import METHODS, Method
from demkd.pipeline.results import TeacherStatistics

DEFAULT_WEIGHTING = "entropy at temperature 1, one_minus_softmax, tau 1"
# Fields of a method that do not change the weights, or that `share_out` applies to precomputed ones too. A change in
# any other field makes the weights be computed: to forget a new field here costs time, and never gives wrong weights.
NOT_ABOUT_WEIGHTS = (
    *(
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
        "reduction",
    ),
    *("weight_on", "feature_weighting"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Uncertainty:
    """The teachers' uncertainty, (K, B) each: for TCKD and for NCKD; one tensor for both unless decoupled."""

    tckd: Tensor
    nckd: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWeights:
    """Weights (K, B) of the parts of the loss; each sums to 1 over the teachers."""

    tckd: Tensor
    nckd: Tensor
    hint: Tensor

    def of_samples(self, rows: slice | Tensor) -> "TeacherWeights":
        return TeacherWeights(tckd=self.tckd[:, rows], nckd=self.nckd[:, rows], hint=self.hint[:, rows])


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
    plain = method.entropy_temperature == 1.0 and method.entropy_logits == "raw" and method.entropy_scope == "full"
    return plain and method.weight_source == "entropy"


def needs_all_samples(method: Method) -> bool:
    """Whether a sample's weights depend on other samples, so that live teachers cannot give them batch by batch."""
    return method.weight_level == "dataset" or method.shuffle == "samples"


def measure_uncertainty(logits: Sequence[Tensor], labels: Tensor, method: Method) -> Uncertainty:
    """The uncertainty of K teachers from their logits, (B, C) each, and the labels (B,)."""
    temperature = method.entropy_temperature
    if method.entropy_logits == "standardised":
        logits = [standardised(z) for z in logits]
    if method.entropy_scope == "decoupled":
        return Uncertainty(
            tckd=torch.stack([target_class_entropy(z, labels, temperature=temperature) for z in logits]),
            nckd=torch.stack([non_target_class_entropy(z, labels, temperature=temperature) for z in logits]),
        )
    measure = UNCERTAINTIES.get(method.weight_source, UNCERTAINTIES["entropy"])  # uniform and fixed read none
    values = measure(logits, labels, temperature)
    return Uncertainty(tckd=values, nckd=values)


def weigh(
    uncertainty: Uncertainty, predictions: Tensor, labels: Tensor, method: Method, *, shuffle: Shuffle | None = None
) -> TeacherWeights:
    """Turn uncertainty into weights, with the predictions (K, B) and labels (B,) for the wrong-teacher rule."""
    tckd = _weights(uncertainty.tckd, predictions, labels, method, shuffle)
    same = uncertainty.nckd is uncertainty.tckd
    nckd = tckd if same else _weights(uncertainty.nckd, predictions, labels, method, shuffle)
    return share_out(tckd, nckd, method)


def share_out(tckd: Tensor, nckd: Tensor, method: Method) -> TeacherWeights:
    """Apply `weight_on` and `feature_weighting` to weights (K, B)."""
    uniform = uniform_weights(tckd)
    return TeacherWeights(
        tckd=uniform if method.weight_on == "nckd" else tckd,
        nckd=uniform if method.weight_on == "tckd" else nckd,
        hint=uniform if method.feature_weighting == "uniform" else nckd,
    )


def _weights(
    uncertainty: Tensor, predictions: Tensor, labels: Tensor, method: Method, shuffle: Shuffle | None
) -> Tensor:
    """Weights (K, B) of one uncertainty (K, B)."""
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
    return weights if shuffle is None else shuffle.apply(weights)


def measure_teachers(entropy: Tensor, predictions: Tensor, labels: Tensor, weights: TeacherWeights) -> Tensor:
    """Means over B samples for K teachers: top-1, entropy, weight, wrong-and-trusted, effective number: (5, K).

    The weights are those of NCKD, which differ from TCKD's with `weight_on` or `entropy_scope`.
    """
    weight = weights.nckd
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
