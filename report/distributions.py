"""How entropies and weights are distributed, and whether a low entropy means right: the numbers behind the figures.

K teachers, V slots, N samples, C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.report.errors import InspectionError
from demkd.report.statistics import CacheStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """One teacher's values over all V x N views, in equal bins; the last bin includes its upper edge.

    Attributes:
        edges: bins + 1 of them, in nats or shares.
        counts: views by bin.
        right: of those, the views in which the teacher is right.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    right: tuple[int, ...]


def entropy_distributions(statistics: CacheStatistics, *, bins: int = 50) -> tuple[Distribution, ...]:
    """Every teacher's entropies from 0 to ln C; `right` / `counts` against the bins is the reliability diagram."""
    highest = float(np.log(statistics.cache.classes))
    return tuple(
        _distribution(statistics, position, by_slot, bins, highest)
        for position, by_slot in enumerate(statistics.entropy)
    )


def weight_distributions(statistics: CacheStatistics, *, bins: int = 50) -> tuple[Distribution, ...]:
    """Every teacher's weights from 0 to 1.

    Raises:
        InspectionError: if there are no weights of these teachers.
    """
    if statistics.weights is None:
        raise InspectionError(f"{statistics.cache.folder} has no weights of {', '.join(statistics.cache.names)}")
    return tuple(
        _distribution(statistics, position, by_slot, bins, 1.0) for position, by_slot in enumerate(statistics.weights)
    )


def _distribution(
    statistics: CacheStatistics, position: int, by_slot: Iterable[NDArray[Any]], bins: int, highest: float
) -> Distribution:
    """Of one teacher's V by_slot (N,) of values from 0 to `highest`."""
    counts, right = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for answers, said in zip(by_slot, statistics.prediction[position], strict=True):
        inside = np.clip(answers.astype(np.float64), 0.0, highest)  # float32's ln C may be above ln C
        counts += np.histogram(inside, bins, (0.0, highest))[0]
        right += np.histogram(inside[said == statistics.cache.labels], bins, (0.0, highest))[0]
    return Distribution(
        name=statistics.cache.names[position],
        edges=tuple(float(edge) for edge in np.linspace(0.0, highest, bins + 1)),
        counts=tuple(map(int, counts)),
        right=tuple(map(int, right)),
    )
