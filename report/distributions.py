"""How entropies and weights are distributed, and whether a low entropy means right: the numbers behind the figures.

K teachers, V slots, N samples, C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.report.errors import InspectionError
from demkd.report.survey import Survey


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


def entropy_distributions(survey: Survey, *, bins: int = 50) -> tuple[Distribution, ...]:
    """Every teacher's entropies from 0 to ln C; `right` / `counts` against the bins is the reliability diagram."""
    highest = float(np.log(survey.cache.classes))
    return tuple(_distribution(survey, position, slabs, bins, highest) for position, slabs in enumerate(survey.entropy))


def weight_distributions(survey: Survey, *, bins: int = 50) -> tuple[Distribution, ...]:
    """Every teacher's weights from 0 to 1.

    Raises:
        InspectionError: if there are no weights of these teachers.
    """
    if survey.weights is None:
        raise InspectionError(f"{survey.cache.folder} has no weights of {', '.join(survey.cache.names)}")
    return tuple(_distribution(survey, position, slabs, bins, 1.0) for position, slabs in enumerate(survey.weights))


def _distribution(
    survey: Survey, position: int, slabs: Iterable[NDArray[Any]], bins: int, highest: float
) -> Distribution:
    """Of one teacher's V slabs (N,) of values from 0 to `highest`."""
    counts, right = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for slab, said in zip(slabs, survey.prediction[position], strict=True):
        inside = np.clip(slab.astype(np.float64), 0.0, highest)  # float32's ln C may be above ln C
        counts += np.histogram(inside, bins, (0.0, highest))[0]
        right += np.histogram(inside[said == survey.cache.labels], bins, (0.0, highest))[0]
    return Distribution(
        name=survey.cache.names[position],
        edges=tuple(float(edge) for edge in np.linspace(0.0, highest, bins + 1)),
        counts=tuple(map(int, counts)),
        right=tuple(map(int, right)),
    )
