"""Lists of samples worth a look: the most uncertain, the most disputed, and those where trust goes wrong.

K teachers, V slots, N samples.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demkd.report.errors import InspectionError
from demkd.report.statistics import CacheStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTeacher:
    """One teacher on one sample, over all slots.

    Attributes:
        prediction: the class it predicts most often (of several, the first); `share` is in how many slots.
        top1: share of slots in which it is right.
        entropy, weight: means; the weight is None where no weights were computed.
    """

    name: str
    prediction: str
    share: float
    top1: float
    entropy: float
    weight: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """One sample of a list.

    Attributes:
        score: what it was chosen by.
        trusted: the wrong teacher whose weight that is; None in the other lists.
    """

    index: int
    label: str
    score: float
    trusted: str | None
    teachers: tuple[SampleTeacher, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleListing:
    """Samples with the highest scores, highest first.

    Attributes:
        order: "uncertain", "disputed", "wrong and trusted" or "suspect".
    """

    folder: Path
    order: str
    teachers: tuple[str, ...]
    rows: tuple[SampleRow, ...]


def uncertain(statistics: CacheStatistics, count: int) -> SampleListing:
    """The samples with the highest entropy, averaged over teachers and slots."""
    return listing_by(statistics, "uncertain", statistics.mean_entropy.mean(0), count)


def disputed(statistics: CacheStatistics, count: int) -> SampleListing:
    """The samples about which teachers disagree most: the share of slots and pairs of teachers with different
    predictions; among equals, those whose mean entropies lie farthest apart (largest less smallest).

    Raises:
        InspectionError: if the cache has a single teacher.
    """
    if statistics.disagreement is None:
        only = statistics.cache.names[0]
        raise InspectionError(f"{only} is the only teacher: disagreement needs two or more (`teachers`)")
    return listing_by(
        statistics, "disputed", statistics.disagreement, count, then=np.ptp(statistics.mean_entropy, axis=0)
    )


def wrong_and_trusted(statistics: CacheStatistics, count: int) -> SampleListing:
    """The samples where a wrong teacher weighs most above 1 / K, averaged over the slots; fewer if there are fewer.

    A slot in which the teacher is right, or weighs less, counts as 0. The teacher is the one for which this is most.

    Raises:
        InspectionError: if there are no weights of these teachers.
    """
    if statistics.misplaced_trust is None or statistics.wrong_and_trusted is None:
        raise InspectionError(
            f"{statistics.cache.folder} has no weights of {', '.join(statistics.cache.names)}: leave `teachers` out, "
            "or run `cache_teachers` again, which computes them"
        )
    found = int(statistics.wrong_and_trusted.any(0).sum())
    listing = listing_by(statistics, "wrong and trusted", statistics.misplaced_trust.max(0), min(count, found))
    names, trusted = statistics.cache.names, statistics.misplaced_trust.argmax(0)
    return replace(listing, rows=tuple(replace(row, trusted=names[trusted[row.index]]) for row in listing.rows))


def listing_by(
    statistics: CacheStatistics,
    order: str,
    score: NDArray[np.float64],
    count: int,
    *,
    then: NDArray[np.float64] | None = None,
) -> SampleListing:
    """The samples with the highest scores (N,); equals by the second one, then by index."""
    ranked = np.argsort(-score, kind="stable") if then is None else np.lexsort((-then, -score))
    rows = tuple(_row(statistics, int(index), float(score[index])) for index in ranked[:count])
    return SampleListing(folder=statistics.cache.folder, order=order, teachers=statistics.cache.names, rows=rows)


def _row(statistics: CacheStatistics, index: int, score: float) -> SampleRow:
    cache = statistics.cache
    return SampleRow(
        index=index,
        label=cache.class_names[int(cache.labels[index])],
        score=score,
        trusted=None,
        teachers=tuple(_teacher(statistics, position, index) for position in range(len(cache.teachers))),
    )


def _teacher(statistics: CacheStatistics, position: int, index: int) -> SampleTeacher:
    votes = np.bincount([int(answers[index]) for answers in statistics.prediction[position]])
    winner = int(votes.argmax())
    return SampleTeacher(
        name=statistics.cache.names[position],
        prediction=statistics.cache.class_names[winner],
        share=float(votes[winner] / votes.sum()),
        top1=float(statistics.top1[position, index]),
        entropy=float(statistics.mean_entropy[position, index]),
        weight=None if statistics.mean_weight is None else float(statistics.mean_weight[position, index]),
    )
