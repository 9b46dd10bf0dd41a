"""Samples whose label may be wrong: those that the teachers contradict, scored answer by answer.

A score looks at one teacher's answer to one view; a sample's is the mean over all teachers and views, so that one
teacher's slip, or one odd crop, weighs little. docs/results.md measures them on labels that were made wrong.
C classes, N samples, B of them at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache
from demkd.report.errors import InspectionError
from demkd.report.samples import SampleListing, listing_by
from demkd.report.statistics import CacheStatistics

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]
Score = Callable[[Numbers, Labels], Numbers]

_AT_ONCE = 4096


def cross_entropy(log_shares: Numbers, labels: Labels) -> Numbers:
    """How surprising the label is, -ln p_y, in nats."""
    return -_of_labels(log_shares, labels)


def margin(log_shares: Numbers, labels: Labels) -> Numbers:
    """By how much the likeliest other class beats the label: p_c - p_y, in -1..1 (confident learning's margin)."""
    others = log_shares.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    beaten_by: Numbers = np.exp(others.max(1)) - np.exp(_of_labels(log_shares, labels))
    return beaten_by


def certainty(log_shares: Numbers, labels: Labels) -> Numbers:
    """The largest probability of another class, or 0 where that is the label's."""
    return np.where(log_shares.argmax(1) != labels, np.exp(log_shares.max(1)), 0.0)


def disagreement(log_shares: Numbers, labels: Labels) -> Numbers:
    """Whether the teacher answers another class."""
    return np.where(log_shares.argmax(1) != labels, 1.0, 0.0)


def entropy(log_shares: Numbers, labels: Labels) -> Numbers:  # noqa: ARG001 - it is what knows no label
    """How unsure the teacher is, in nats; for comparison, because it never looks at the label."""
    unsure: Numbers = -(np.exp(log_shares) * log_shares).sum(1)
    return unsure


SCORES: dict[str, Score] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "certainty": certainty,
    "disagreement": disagreement,
    "entropy": entropy,
}
USUAL_SCORE = "cross-entropy"


def suspects(statistics: CacheStatistics, count: int, *, score: str = USUAL_SCORE) -> SampleListing:
    """The samples whose label the teachers contradict most.

    Raises:
        InspectionError: if there is no such score.
    """
    return listing_by(statistics, "suspect", suspicion(statistics.cache, score), count)


def suspicion(cache: Cache, score: str, *, labels: Labels | None = None) -> Numbers:
    """A score (N,) of every label, averaged over teachers and views.

    Args:
        labels: (N,), to be judged instead of the cache's own.

    Raises:
        InspectionError: if there is no such score.
        CacheMissingError: if the cache does not give probabilities at temperature 1.
    """
    if score not in SCORES:
        raise InspectionError(f"there is no `score={score}`: choose {', '.join(SCORES)}")
    for teacher in cache.teachers:
        teacher.require_softmax()
    judged = cache.labels if labels is None else labels
    total = np.zeros(cache.samples)
    for slot in range(cache.num_views):
        cache.require_logits(slot, temperatures=())
        for start in range(0, cache.samples, _AT_ONCE):
            rows = slice(start, min(start + _AT_ONCE, cache.samples))
            for teacher in cache.teachers:
                logits = teacher.logits(slot, rows, temperature=1.0)
                total[rows] += SCORES[score](_log_shares(logits), judged[rows])
    return total / (cache.num_views * len(cache.teachers))


def _log_shares(logits: NDArray[Any]) -> Numbers:
    """(B, C): the logarithm of the softmax, in float64."""
    exact: Numbers = logits.astype(np.float64)
    exact -= exact.max(1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    return exact


def _of_labels(log_shares: Numbers, labels: Labels) -> Numbers:
    found: Numbers = np.take_along_axis(log_shares, labels[:, None], axis=1)[:, 0]
    return found
