"""How much each of K teachers counts on each sample: an uncertainty, and the weight that follows from it.

To add a weighting, write one function and add one line to `UNCERTAINTIES` (from logits to uncertainty) or to
`WEIGHT_FORMS` (from uncertainty to weight). Weights sum to 1 over the teachers and have no gradient. Uncertainties are
in nats. B samples (a batch, or all of a view), C classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.config import METHODS, MethodConfig
from demkd.losses.base import entropy_of, standardized, working_precision

DEFAULT_WEIGHTING = "entropy at temperature 1, softmax, tau 1"  # as weights.h5 names it
# Fields of a method that do not change the weights, or that apply to precomputed weights too. If any other field
# changes, the weights are computed: a new field that is missing here costs time, and never gives wrong weights.
NOT_ABOUT_WEIGHTS = (
    *("name", "loss", "standardize", "batch_weight", "target_power", "views_per_step", "kd_weight"),
    *("full_weight_classes", "temperature", "tckd_weight", "nckd_weight", "warmup", "hint_weight", "feature_weighting"),
)
_NO_AGREEMENT = 1e6  # nats


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWeights:
    """Weights (K, B) of the logit loss and of the hint loss; each sums to 1 over the teachers."""

    logits: Tensor
    hint: Tensor

    def of_samples(self, rows: slice | Tensor) -> "TeacherWeights":
        return TeacherWeights(logits=self.logits[:, rows], hint=self.hint[:, rows])


def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The entropy of softmax(logits / temperature) in nats, of logits (..., C): (...), from 0 (certain) to ln C.

    Temperature 1 by default: at the 4 of distillation all entropies crowd near ln C (docs/methods.md).
    """
    return entropy_of(torch.log_softmax(working_precision(logits) / temperature, dim=-1))


def _entropies(logits: Sequence[Tensor], _labels: Tensor, temperature: float) -> Tensor:
    """Uncertainty of DE-MKD and EBKD, without labels."""
    return torch.stack([entropy(z, temperature=temperature) for z in logits])


def _cross_entropies(logits: Sequence[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """Uncertainty of CA-MKD: how wrong the teacher is about the label (Zhang et al., ICASSP 2022)."""
    return torch.stack([F.cross_entropy(working_precision(z) / temperature, labels, reduction="none") for z in logits])


def _disagreements(logits: Sequence[Tensor], _labels: Tensor, temperature: float) -> Tensor:
    """How little each teacher agrees with the others, without labels.

    -log of the mean over the other teachers j of sum_c p_k(c) p_j(c), the chance that two predictions drawn from them
    are the same class: 0 where all are sure of one class, ln C where nothing is known, and large for a teacher who is
    sure of what the others find impossible. Two teachers get the same value, and a single one gets 0.
    """
    log_p = [torch.log_softmax(working_precision(z) / temperature, dim=1) for z in logits]
    teachers = range(len(log_p))
    pairs = {(k, j): torch.logsumexp(log_p[k] + log_p[j], dim=1) for k in teachers for j in teachers if k < j}
    if not pairs:
        return torch.zeros_like(torch.stack(log_p)[..., 0])
    others = math.log(len(log_p) - 1)
    agreement = [torch.stack([pairs[min(k, j), max(k, j)] for j in teachers if j != k]) for k in teachers]
    # Impossible classes (logits of -inf) may agree with probability 0: uncertain beyond all others, and no infinity.
    return (others - torch.stack([pair.logsumexp(0) for pair in agreement])).clamp(0, _NO_AGREEMENT)


# name -> function of the K teachers' logits (B, C), labels (B,) and a temperature: uncertainties (K, B), in nats.
UNCERTAINTIES: dict[str, Callable[[Sequence[Tensor], Tensor, float], Tensor]] = {
    "entropy": _entropies,
    "cross_entropy": _cross_entropies,
    "agreement": _disagreements,
}


def _one_minus_softmax(uncertainty: Tensor, tau: float) -> Tensor:
    """(1 - softmax_k(H / tau)) / (K - 1): CA-MKD's form, never below 0 nor above 1 / (K - 1)."""
    trust: Tensor = 1 - torch.softmax(uncertainty / tau, dim=0)
    return trust / (len(uncertainty) - 1)


def _softmax(uncertainty: Tensor, tau: float) -> Tensor:
    """softmax_k(-H / tau): can give everything to one teacher."""
    return torch.softmax(-uncertainty / tau, dim=0)


def _one_minus_share(uncertainty: Tensor, _tau: float) -> Tensor:
    """(1 - H_k / sum H) / (K - 1): EBKD's form (Kwon et al., ICASSP 2020), normalized; 1 / K where all are sure."""
    total = uncertainty.sum(0)
    share = torch.where(total > 0, uncertainty / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / len(uncertainty))
    return (1 - share) / (len(uncertainty) - 1)


def _inverse(uncertainty: Tensor, _tau: float) -> Tensor:
    """1 / (H + 0.01), normalized; the hundredth of a nat keeps a certain teacher from taking everything."""
    inverse = 1 / (uncertainty + 0.01)
    return inverse / inverse.sum(0)


# name -> function of uncertainties (K, B), K > 1, and a temperature tau: weights (K, B).
WEIGHT_FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "softmax": _softmax,
    "one_minus_softmax": _one_minus_softmax,
    "one_minus_share": _one_minus_share,
    "inverse": _inverse,
}


def entropy_weights(uncertainty: Tensor, *, form: str = "softmax", tau: float = 1.0) -> Tensor:
    """Weights (K, B) of uncertainties (K, B); a single teacher has weight 1 in every form."""
    if form not in WEIGHT_FORMS:
        raise ValueError(f"there is no weight form {form!r}: choose one of {', '.join(WEIGHT_FORMS)}")
    uncertainty = working_precision(uncertainty)
    if len(uncertainty) == 1:
        return torch.ones_like(uncertainty)
    return WEIGHT_FORMS[form](uncertainty, tau)


def uniform_weights(like: Tensor) -> Tensor:
    """1 / K for every teacher and sample of a tensor (K, B)."""
    return torch.full_like(like, 1 / len(like))


def mask_wrong_teachers(weights: Tensor, predictions: Tensor, labels: Tensor) -> Tensor:
    """Weights (K, B) with 0 where a teacher's prediction (K, B) is not the label (B,), renormalized.

    Where all teachers are wrong, or the right ones weigh nothing, the weights are uniform.
    """
    right = weights * (predictions == labels)
    total = right.sum(0)
    return torch.where(total > 0, right / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / len(weights))


def measure_uncertainty(logits: Sequence[Tensor], labels: Tensor, method: MethodConfig) -> Tensor:
    """The uncertainty (K, B) of K teachers from their logits, (B, C) each, and labels (B,)."""
    if method.entropy_logits != "raw":
        logits = [standardized(z) for z in logits]
    measure = UNCERTAINTIES.get(method.weight_source, UNCERTAINTIES["entropy"])  # uniform and fixed read none
    return measure(logits, labels, method.entropy_temperature)


def weigh(
    uncertainty: Tensor, predictions: Tensor, labels: Tensor, method: MethodConfig, *, shuffle: Tensor | None = None
) -> TeacherWeights:
    """Weights from an uncertainty (K, B), and predictions (K, B) and labels (B,) for the wrong-teacher rule.

    For the controls, `shuffle` is the teacher (K, B) or the sample (B,) whose weight is taken instead.
    """
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
    if shuffle is not None:
        shuffle = shuffle.to(weights.device)
        weights = weights.gather(0, shuffle) if shuffle.dim() == 2 else weights[:, shuffle]
    return for_both_losses(weights, method)


def for_both_losses(weights: Tensor, method: MethodConfig) -> TeacherWeights:
    """Weights (K, B) of the logit loss, and those of the hint loss by `feature_weighting`."""
    uniform = method.feature_weighting == "uniform"
    return TeacherWeights(logits=weights, hint=uniform_weights(weights) if uniform else weights)


def weighting_changes(method: MethodConfig) -> dict[str, object]:
    """The options by which the weights differ from those that stage one precomputes; empty for these."""
    default, names = METHODS["de-mkd"], (entry.name for entry in fields(method) if entry.name not in NOT_ABOUT_WEIGHTS)
    return {name: getattr(method, name) for name in names if getattr(method, name) != getattr(default, name)}


def needs_logits(method: MethodConfig) -> bool:
    """Whether the weights do not follow from the entropies of a cache alone."""
    cached = method.entropy_temperature == 1.0 and method.entropy_logits == "raw" and method.weight_source == "entropy"
    return not cached and method.weight_source not in ("uniform", "fixed")


def measure_teachers(entropy: Tensor, predictions: Tensor, labels: Tensor, weights: TeacherWeights) -> Tensor:
    """Means over B samples by teacher: top-1, entropy, weight, wrong above 1/K, effective number: (5, K).

    The effective number of teachers is exp of the entropy of their weights, from 1 to K.
    """
    weight = weights.logits
    effective: Tensor = torch.special.entr(weight)
    rows = [
        (predictions == labels).float().mean(1),
        entropy.mean(1),
        weight.mean(1),
        wrong_above_uniform(weight, predictions, labels).float().mean(1),
        effective.sum(0).exp().mean().expand(len(weight)),
    ]
    return torch.stack(rows)


def wrong_above_uniform(weights: Tensor, predictions: Tensor, labels: Tensor) -> Tensor:
    """Where a teacher is wrong and weighs more than 1 / K, by teacher: (K, B), bool."""
    # A hair above 1/K, so that K equal teachers, whose weights round to either side of it, do not count.
    return (predictions != labels) & (weights > 1 / len(weights) + 1e-6)
