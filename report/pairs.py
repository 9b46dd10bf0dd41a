"""Paired differences: what pairs by seed say of two groups, of many comparisons at once, and how many pairs it takes.

n pairs, whose differences have the mean d and the sample's standard deviation s. Intervals and p-values are those of
the two-sided paired t-test; scipy has the distributions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import mean, stdev
from typing import Any

from demkd.errors import UserError

CONFIDENCE = 0.95
POWER = 0.8
POINT = 0.01  # of top-1
_LEVEL = 1 - CONFIDENCE
_MOST_PAIRS = 8192


class ComparisonError(UserError, ValueError):
    """Runs that cannot be compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A group against the baseline, over the seeds that both have; all but the first two None with a single pair.

    Attributes:
        mean: d, of top-1.
        low, high: its 95 % confidence interval, d -+ t s / sqrt n.
        p: of the hypothesis that there is no difference.
        holm_p, holm_low, holm_high: the same corrected for all comparisons with the baseline (Holm 1979): the interval
            excludes 0 exactly where Holm's procedure, at 5 %, finds a difference.
        detectable: half of the interval's width: the smallest difference that these seeds could tell from none.
        seeds_for_a_point: how many would find a true difference of one point in four of five cases (power 80 %, level
            5 %), if differences scatter as they did here.
        deviation: s.
    """

    seeds: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm_p: float | None = None
    holm_low: float | None = None
    holm_high: float | None = None
    detectable: float | None = None
    seeds_for_a_point: int | None = None
    deviation: float | None = None


def paired(mine: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """The difference of values by seed; None without a common seed.

    Raises:
        ComparisonError: if scipy is missing.
    """
    return of_differences([value - other[seed] for seed, value in mine.items() if seed in other])


def of_differences(differences: Sequence[float]) -> Difference | None:
    """What n differences say; None of none.

    Raises:
        ComparisonError: if scipy is missing.
    """
    count = len(differences)
    if count < 2:
        return Difference(seeds=count, mean=differences[0]) if differences else None
    average, deviation = mean(differences), stdev(differences)
    half = _half_width(count, deviation, _LEVEL)
    return Difference(
        seeds=count,
        mean=average,
        low=average - half,
        high=average + half,
        p=_p_value(count, average, deviation),
        detectable=half,
        seeds_for_a_point=pairs_needed(deviation),
        deviation=deviation,
    )


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The same with Holm's correction: all that have a p-value are one family."""
    family = sorted(
        (i for i, one in enumerate(differences) if one and one.p is not None), key=lambda i: _p(differences, i)
    )
    found, largest, level, failed = list(differences), 0.0, _LEVEL, False
    for rank, i in enumerate(family):
        one, left = differences[i], len(family) - rank
        assert one is not None
        assert one.p is not None
        assert one.deviation is not None
        largest = max(largest, min(1.0, left * one.p))
        if not failed:  # from the first that is no difference on, the level stays: none of the rest is one
            level = _LEVEL / left
            failed = one.p > level
        half = _half_width(one.seeds, one.deviation, level)
        found[i] = replace(one, holm_p=largest, holm_low=one.mean - half, holm_high=one.mean + half)
    return found


def pairs_needed(deviation: float, *, difference: float = POINT) -> int | None:
    """The least n >= 2 whose paired t-test has power 80 % at 5 %, two-sided; None above 8,192."""
    if deviation == 0:
        return 2
    most = 2
    while _power(most, deviation, difference) < POWER:
        most *= 2
        if most > _MOST_PAIRS:
            return None
    least = max(2, most // 2)
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if _power(middle, deviation, difference) >= POWER else (middle + 1, most)
    return least


def _power(count: int, deviation: float, difference: float) -> float:
    """Power of the two-sided paired t-test with n pairs.

    The mean over the sample deviation, whose distribution is chi, of the normal tails given that deviation. SciPy's
    noncentral t distribution is the same number, and NaN where the deviation is small.
    """
    stats = _scipy()
    freedom, shift = count - 1, difference * sqrt(count) / deviation
    critical = stats.t.ppf(1 - _LEVEL / 2, freedom) / sqrt(freedom)
    tails = stats.chi(freedom).expect(
        lambda chi: stats.norm.cdf(shift - critical * chi) + stats.norm.cdf(-shift - critical * chi)
    )
    return float(tails)


def _p(differences: Sequence[Difference | None], i: int) -> float:
    one = differences[i]
    assert one is not None
    assert one.p is not None
    return one.p


def _half_width(count: int, deviation: float, level: float) -> float:
    return float(_scipy().t.ppf(1 - level / 2, count - 1)) * deviation / sqrt(count)


def _p_value(count: int, average: float, deviation: float) -> float:
    if deviation == 0:  # equal differences: certain, or none at all
        return 1.0 if average == 0 else 0.0
    return float(2 * _scipy().t.sf(abs(average) * sqrt(count) / deviation, count - 1))


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise ComparisonError("intervals need scipy: pip install 'demkd[report]' installs it") from None
    return stats
