"""What a teacher adds is the mean of paired gains by seed, written out here."""

from itertools import combinations
from pathlib import Path

import pytest
from scipy import stats

from demkd.report.ablation import measure_ablation, subsets
from demkd.report.comparison import FinishedRun

NAMES = ("a", "b", "c")
SEEDS = (0, 1, 2, 3)


def value(some: frozenset[str], seed: int) -> float:
    """Of two teachers together more than their sum, and something of the seed's."""
    worth = {"a": 0.10, "b": 0.05, "c": 0.0}
    bonus = 0.03 * ({"a", "b"} <= some) - 0.02 * ("c" in some) * (seed % 2)
    return 0.3 + sum(worth[one] for one in some) + bonus + 0.01 * seed * len(some)


def finished(some: frozenset[str], seed: int) -> FinishedRun:
    return FinishedRun(folder=Path(), choices={}, identity="", seed=seed, top1=(value(some, seed),))


def runs(*, leave_one_out: bool) -> dict[frozenset[str], list[FinishedRun]]:
    tried = map(frozenset, subsets(NAMES, leave_one_out=leave_one_out))
    return {some: [finished(some, seed) for seed in SEEDS] for some in tried}


def test_sets_come_from_small_to_large_without_the_empty_one() -> None:
    assert subsets(NAMES, leave_one_out=False) == [
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    ]  # fmt: skip
    assert subsets(NAMES, leave_one_out=True) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


def test_what_a_teacher_adds_is_the_mean_of_its_gains_by_seed() -> None:
    found = measure_ablation(runs(leave_one_out=False), NAMES)
    for teacher in found.teachers:
        name = teacher.name
        others = [one for one in NAMES if one != name]
        last_in, average = [], []
        for seed in SEEDS:
            gains = {
                some: value(frozenset({*some, name}), seed) - value(frozenset(some), seed)
                for size in (1, 2)
                for some in combinations(others, size)
            }
            alone = [gains[(one,)] for one in others]
            last_in.append(gains[tuple(others)])
            average.append((sum(alone) / 2 + gains[tuple(others)]) / 2)
        for difference, expected in ((teacher.last_in, last_in), (teacher.average, average)):
            assert difference is not None
            assert difference.mean == pytest.approx(sum(expected) / 4)
            interval = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
            assert (difference.low, difference.high) == pytest.approx(tuple(interval))
            assert difference.holm_low is not None
            assert difference.low is not None
            assert difference.holm_low <= difference.low + 1e-12
        assert teacher.alone == pytest.approx(sum(value(frozenset({name}), seed) for seed in SEEDS) / 4)


def test_leaving_one_out_tells_what_is_added_to_all_others_and_no_more() -> None:
    found = measure_ablation(runs(leave_one_out=True), NAMES)
    whole = measure_ablation(runs(leave_one_out=False), NAMES)
    for one, other in zip(found.teachers, whole.teachers, strict=True):
        assert one.last_in == other.last_in
        assert one.average is None
        assert one.alone is None
    assert [some.teachers for some in found.sets] == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


def test_only_seeds_that_all_sets_have_are_paired() -> None:
    values = runs(leave_one_out=True)
    del values[frozenset(NAMES)][2]
    gains = [value(frozenset(NAMES), seed) - value(frozenset({"b", "c"}), seed) for seed in (0, 1, 3)]
    last_in = measure_ablation(values, NAMES).teachers[0].last_in
    assert last_in is not None
    assert (last_in.seeds, last_in.mean) == (3, pytest.approx(sum(gains) / 3))
