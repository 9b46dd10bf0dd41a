"""Paired differences are scipy's t-test, Holm's correction its definition, counts of pairs what simulation finds."""

import numpy as np
import pytest
from scipy import stats

from demkd.report.pairs import POINT, Difference, _power, corrected, of_differences, paired, pairs_needed


def drawn(count: int, *, shift: float, seed: int) -> list[float]:
    return list(np.random.default_rng(seed).normal(shift, 0.01, count))


def test_a_difference_is_scipys_paired_t_test() -> None:
    mine, other = drawn(5, shift=0.52, seed=0), drawn(5, shift=0.50, seed=1)
    found = paired(dict(enumerate(mine)), dict(enumerate(other)))
    assert found is not None
    expected = stats.ttest_rel(mine, other)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.deviation == pytest.approx(np.std(np.subtract(mine, other), ddof=1))


def test_what_few_or_equal_pairs_say() -> None:
    assert of_differences([]) is None
    assert of_differences([0.25]) == Difference(seeds=1, mean=0.25)
    same = of_differences([0.25, 0.25])
    assert same is not None
    assert (same.low, same.high, same.p, same.seeds_for_a_point) == (0.25, 0.25, 0.0, 2)
    nothing = of_differences([0.0, 0.0, 0.0])
    assert nothing is not None
    assert nothing.p == 1.0


def holm(p_values: list[float]) -> list[float]:
    """The definition: the largest of (m - i + 1) p over the hypotheses up to each, in ascending order of p."""
    count, order = len(p_values), np.argsort(p_values)
    adjusted = [0.0] * count
    for place, i in enumerate(order):
        adjusted[i] = min(1.0, max((count - before) * p_values[order[before]] for before in range(place + 1)))
    return adjusted


@pytest.mark.parametrize("seed", range(20))
def test_p_values_are_holms_and_intervals_exclude_0_exactly_where_it_rejects(seed: int) -> None:
    shifts = np.random.default_rng(seed).choice([0.0, 0.01, 0.02, 0.04], 6)
    plain = [of_differences(drawn(4, shift=shift, seed=100 * seed + i)) for i, shift in enumerate(shifts)]
    found = corrected([plain[0], None, of_differences([0.5]), *plain[1:]])
    assert found[1] is None
    assert found[2] is not None
    assert found[2].holm_p is None
    kept = [one for i, one in enumerate(found) if i not in (1, 2) and one is not None]
    p_values = [one.p for one in kept]
    assert [one.holm_p for one in kept] == pytest.approx(holm([p for p in p_values if p is not None]))
    for one in kept:
        assert one.holm_low is not None
        assert one.holm_high is not None
        assert one.holm_p is not None
        assert one.low is not None
        assert (one.holm_low > 0 or one.holm_high < 0) == (one.holm_p < 0.05)
        assert one.holm_low <= one.low


def test_one_comparison_needs_no_correction() -> None:
    (found,) = corrected([of_differences(drawn(4, shift=0.0, seed=3))])
    assert found is not None
    assert (found.holm_p, found.holm_low, found.holm_high) == (found.p, found.low, found.high)


@pytest.mark.parametrize("deviation", [0.002, 0.005, 0.01, 0.02])
def test_so_many_pairs_find_a_difference_of_a_point_in_four_of_five_cases(deviation: float) -> None:
    """By simulation: with the number that is told at least 80 % are found, and with one less fewer."""
    needed = pairs_needed(deviation)
    assert needed is not None
    draws = np.random.default_rng(0).normal(POINT, deviation, (20_000, needed))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() > 0.79
    if needed > 2:
        assert (stats.ttest_1samp(draws[:, :-1], 0, axis=1).pvalue < 0.05).mean() < 0.805


def test_a_point_that_no_number_of_seeds_finds() -> None:
    assert pairs_needed(1.0) is None
    assert pairs_needed(0.0) == 2


@pytest.mark.parametrize(("deviation", "needed"), [(0.00174527, 3), (0.00196222, 3), (0.01, 10)])
def test_small_deviations_need_the_number_that_the_noncentral_t_distribution_gives(
    deviation: float, needed: int
) -> None:
    """Where SciPy's distribution is finite the power is the same; at the first two deviations it is NaN for some n."""
    assert pairs_needed(deviation) == needed
    for count in (2, 3, 5, 10):
        freedom, shift = count - 1, POINT * count**0.5 / deviation
        critical = stats.t.ppf(0.975, freedom)
        expected = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
        if np.isfinite(expected):
            assert _power(count, deviation, POINT) == pytest.approx(expected, abs=1e-6)
