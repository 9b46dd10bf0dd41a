"""One pass over a cache: every entropy, prediction and weight is read once, checked, and added up by sample.

Summaries, classes and listings are made from what the pass found. NumPy only; logits are not read here.
K teachers, V slots, N samples, C classes.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache, CacheDamagedError

Array = NDArray[Any]
Numbers = NDArray[np.float64]

_ROUNDING = 1e-6  # equal weights are 1 / K up to this, and nobody is trusted more than another


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStatistics:
    """What all teachers said about all samples; entropies in nats, shares in 0..1.

    Attributes:
        entropy, prediction: for each teacher its V by_slot (N,), mapped and checked.
        weights: (K, V, N), or None where none were precomputed for these teachers; so are the others made from it.
        mean_entropy: (K, N), over the slots.
        top1: (K, N), the share of slots in which the teacher is right.
        mean_weight: (K, N), over the slots.
        wrong_and_trusted: (K, N), the share of slots in which the teacher is wrong and weighs more than 1 / K.
        misplaced_trust: (K, N), how far the teacher weighs above 1 / K where it is wrong (else 0), over the slots.
        same_top1: (K, K), the share of all views in which two teachers predict the same class.
        disagreement: (N,), the share of slots and pairs of teachers with different predictions; None for one teacher.
    """

    cache: Cache
    entropy: Sequence[Sequence[Array]]
    prediction: Sequence[Sequence[Array]]
    weights: NDArray[np.float32] | None
    mean_entropy: Numbers
    top1: Numbers
    mean_weight: Numbers | None
    wrong_and_trusted: Numbers | None
    misplaced_trust: Numbers | None
    same_top1: Numbers
    disagreement: Numbers | None


def read_statistics(cache: Cache) -> CacheStatistics:
    """Read all entropies, predictions and weights of a cache.

    Memory is a few arrays (K, N): by_slot are mapped, and added up one after the other.

    Raises:
        CacheDamagedError: if a block is not what its checksum says, or predicts a class that there is not.
    """
    entropy = _by_slot(cache, "entropy")
    prediction = _by_slot(cache, "prediction")
    for teacher, by_slot in zip(cache.teachers, prediction, strict=True):
        if max(int(answers.max()) for answers in by_slot) >= cache.classes:
            raise CacheDamagedError(
                f"{teacher.path} predicts classes above {cache.classes - 1}: remove it and make it again"
            )
    labels = cache.labels
    weights = None if cache.teacher_weights is None else cache.teacher_weights.values[:, : cache.num_views]
    trusted, misplaced = (None, None) if weights is None else _trust_in_wrong(prediction, labels, weights)
    same_top1, disagreement = _compare(prediction)
    return CacheStatistics(
        cache=cache,
        entropy=entropy,
        prediction=prediction,
        weights=weights,
        mean_entropy=np.stack([_mean(by_slot) for by_slot in entropy]),
        top1=np.stack([_mean(answers == labels for answers in by_slot) for by_slot in prediction]),
        mean_weight=None if weights is None else np.stack([_mean(of_teacher) for of_teacher in weights]),
        wrong_and_trusted=trusted,
        misplaced_trust=misplaced,
        same_top1=same_top1,
        disagreement=disagreement,
    )


def _by_slot(cache: Cache, name: str) -> list[list[Array]]:
    return [[teacher.read(name, slot) for slot in range(cache.num_views)] for teacher in cache.teachers]


def _mean(by_slot: Iterable[Array]) -> Numbers:
    """The mean (N,) of by_slot (N,), added up in float64."""
    total: Any = 0.0
    count = 0
    for answers in by_slot:
        total = np.add(total, answers, dtype=np.float64)
        count += 1
    return np.asarray(total / count)


def _trust_in_wrong(
    prediction: Sequence[Sequence[Array]], labels: NDArray[np.int64], weights: NDArray[np.float32]
) -> tuple[Numbers, Numbers]:
    """How often, and how far, a teacher weighs above 1 / K where it is wrong: (K, N) each."""
    share = 1 / len(weights)
    often, far = [], []
    for by_slot, of_teacher in zip(prediction, weights, strict=True):
        trusted = [
            (said != labels) & (weight > share + _ROUNDING) for said, weight in zip(by_slot, of_teacher, strict=True)
        ]
        often.append(_mean(trusted))
        far.append(_mean(flags * (weight - share) for flags, weight in zip(trusted, of_teacher, strict=True)))
    return np.stack(often), np.stack(far)


def _compare(prediction: Sequence[Sequence[Array]]) -> tuple[Numbers, Numbers | None]:
    """How often teachers predict the same: by pair (K, K), and how often they do not, by sample (N,)."""
    teachers, slots, samples = len(prediction), len(prediction[0]), len(prediction[0][0])
    by_pair = np.eye(teachers)
    by_sample = np.zeros(samples, np.int64)  # counts, so that equals are equal whatever the order of the pairs
    pairs = list(itertools.combinations(range(teachers), 2))
    for one, other in pairs:
        same = np.zeros(samples, np.int64)
        for mine, theirs in zip(prediction[one], prediction[other], strict=True):
            same += mine == theirs
        by_pair[one, other] = by_pair[other, one] = same.sum() / (slots * samples)
        by_sample += same
    return by_pair, 1 - by_sample / (slots * len(pairs)) if pairs else None
