"""How entropies and weights are distributed, and whether a low entropy means right: the numbers behind the figures.

K teachers, V slots, N samples, C classes.
"""

from dataclasses import dataclass

import numpy as np

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
    return tuple(_distribution(survey, position, bins, highest) for position in range(len(survey.cache.teachers)))


def weight_distributions(survey: Survey, *, bins: int = 50) -> tuple[Distribution, ...]:
    """Every teacher's weights from 0 to 1.

    Raises:
        InspectionError: if there are no weights of these teachers.
    """
    if survey.weights is None:
        raise InspectionError(f"{survey.cache.folder} has no weights of {', '.join(survey.cache.names)}")
    return tuple(_distribution(survey, position, bins, 1.0, weights=True) for position in range(len(survey.weights)))


def _distribution(survey: Survey, position: int, bins: int, highest: float, *, weights: bool = False) -> Distribution:
    slabs = survey.weights[position] if weights and survey.weights is not None else survey.entropy[position]
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
