"""From uncertainty to trust: how much each of K teachers is listened to on each sample.

A new weighting is one function and one line of `WEIGHT_FORMS` (what trust an uncertainty earns) or of `UNCERTAINTIES`
(what uncertainty is, seen of all teachers at once); the pipeline knows it then. Weights sum to 1 over the teachers,
and carry no gradient.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.losses.decoupling import working_precision
from demkd.losses.entropy import entropy


def _entropy(logits: Sequence[Tensor], _labels: Tensor, temperature: float) -> Tensor:
    """Uncertainty as DE-MKD and EBKD see it; it knows no label."""
    return torch.stack([entropy(z, temperature=temperature) for z in logits])


def _cross_entropy(logits: Sequence[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """Uncertainty as CA-MKD sees it: how wrong the teacher is about the label (Zhang et al., ICASSP 2022)."""
    return torch.stack([F.cross_entropy(working_precision(z) / temperature, labels, reduction="none") for z in logits])


def disagreement(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """How little each of K teachers agrees with the others, of logits (B, C) each, in nats: (K, B).

    -log of the mean over the other teachers j of sum_c p_k(c) p_j(c), the chance that two answers drawn from them name
    the same class. It knows no label: 0 where all are sure of one class, ln C where nothing is known, and large for a
    teacher who is sure of what the others think impossible. Of two teachers both are as far from each other, and a
    single one is as good as any: 0.
    """
    log_p = [torch.log_softmax(working_precision(z) / temperature, dim=1) for z in logits]
    teachers = range(len(log_p))
    pairs = {(k, j): torch.logsumexp(log_p[k] + log_p[j], dim=1) for k in teachers for j in teachers if k < j}
    if not pairs:
        return torch.zeros_like(torch.stack(log_p)[..., 0])
    others = math.log(len(log_p) - 1)
    agreement = [torch.stack([pairs[min(k, j), max(k, j)] for j in teachers if j != k]) for k in teachers]
    # Impossible answers (logits of -inf) may agree with probability 0: uncertain beyond all others, and no infinity.
    return (others - torch.stack([one.logsumexp(0) for one in agreement])).clamp(0, _NO_AGREEMENT)


def _agreement(logits: Sequence[Tensor], _labels: Tensor, temperature: float) -> Tensor:
    return disagreement(logits, temperature)


_NO_AGREEMENT = 1e6  # nats

# name -> function of the K teachers' logits (B, C), labels (B,) and a temperature: uncertainties (K, B), in nats.
UNCERTAINTIES: dict[str, Callable[[Sequence[Tensor], Tensor, float], Tensor]] = {
    "entropy": _entropy,
    "cross_entropy": _cross_entropy,
    "agreement": _agreement,
}


def _one_minus_softmax(uncertainty: Tensor, tau: float) -> Tensor:
    """(1 - softmax_k(H / tau)) / (K - 1): CA-MKD's form, never below 0 nor above 1 / (K - 1)."""
    trust: Tensor = 1 - torch.softmax(uncertainty / tau, dim=0)
    return trust / (len(uncertainty) - 1)


def _softmax(uncertainty: Tensor, tau: float) -> Tensor:
    """softmax_k(-H / tau): can give everything to one teacher."""
    return torch.softmax(-uncertainty / tau, dim=0)


def _one_minus_share(uncertainty: Tensor, _tau: float) -> Tensor:
    """(1 - H_k / sum H) / (K - 1): EBKD's form (Kwon et al., ICASSP 2020), normalised; 1 / K where all are sure."""
    total = uncertainty.sum(0)
    share = torch.where(total > 0, uncertainty / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / len(uncertainty))
    return (1 - share) / (len(uncertainty) - 1)


def _inverse(uncertainty: Tensor, _tau: float) -> Tensor:
    """1 / (H + 0.01), normalised; the hundredth of a nat keeps a certain teacher from taking everything."""
    inverse = 1 / (uncertainty + 0.01)
    return inverse / inverse.sum(0)


# name -> function of uncertainties (K, B), K > 1, and a temperature tau: weights (K, B).
WEIGHT_FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "one_minus_softmax": _one_minus_softmax,
    "softmax": _softmax,
    "one_minus_share": _one_minus_share,
    "inverse": _inverse,
}


def entropy_weights(uncertainty: Tensor, *, form: str = "one_minus_softmax", tau: float = 1.0) -> Tensor:
    """Weights (K, B) of uncertainties (K, B); a single teacher has weight 1 in every form.

    Raises:
        ValueError: if there is no such form.
    """
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
    """Weights (K, B) with 0 where a teacher's prediction (K, B) is not the label (B,), renormalised.

    Where all teachers are wrong, or the right ones weigh nothing, the weights are uniform.
    """
    right = weights * (predictions == labels)
    total = right.sum(0)
    return torch.where(total > 0, right / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / len(weights))


def effective_teachers(weights: Tensor) -> Tensor:
    """exp of the entropy of weights (K, B): how many teachers are listened to, from 1 to K: (B,)."""
    entropies: Tensor = torch.special.entr(weights)
    return entropies.sum(0).exp()


def wrong_and_trusted(weights: Tensor, predictions: Tensor, labels: Tensor) -> Tensor:
    """Where a teacher is wrong and weighs more than 1 / K, by teacher: (K, B), bool."""
    # A hair above 1/K, so that K equal teachers, whose weights round to either side of it, do not count.
    return (predictions != labels) & (weights > 1 / len(weights) + 1e-6)
