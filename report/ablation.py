"""What each teacher of a cache adds: students of sets of teachers, compared by what a set gains with one more.

v(S) is the top-1 of a student of the set S, in the last epoch, by seed; K teachers. Shares in 0..1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean

from demkd.report.comparison import FinishedRun, OverSeeds, over_seeds
from demkd.report.pairs import Difference, corrected, of_differences

Set = frozenset[str]
Values = Mapping[Set, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SetOfTeachers(OverSeeds):
    """Students of one set of teachers."""

    teachers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherValue:
    """What one teacher adds; intervals are paired by seed, and corrected for K teachers (Holm).

    Attributes:
        alone: the mean of v({k}).
        last_in: v(all) - v(all but k): what it adds to all the others.
        average: its mean over the sizes 1 to K - 1 of the mean over the sets S of that size without k of
            v(S and k) - v(S): its Shapley value without the empty set, which no student has learnt from.
    """

    name: str
    alone: float | None
    last_in: Difference | None
    average: Difference | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """Teachers in the order asked for; the sets from small to large."""

    teachers: tuple[TeacherValue, ...]
    sets: tuple[SetOfTeachers, ...]


def subsets(teachers: Sequence[str], *, leave_one_out: bool) -> list[tuple[str, ...]]:
    """All sets of teachers but the empty one, small ones first; or all of them, and all but one."""
    sizes = range(len(teachers) - 1 if leave_one_out else 1, len(teachers) + 1)
    return [some for size in sizes for some in combinations(teachers, size)]


def measure_ablation(runs: Mapping[Set, Sequence[FinishedRun]], teachers: Sequence[str]) -> Ablation:
    """What each teacher adds, of the students of each set."""
    full = frozenset(teachers)
    values = {some: {run.seed: run.last for run in members} for some, members in runs.items()}
    return Ablation(
        teachers=_corrected(
            [
                TeacherValue(
                    name=name,
                    alone=mean(values[alone].values()) if (alone := frozenset({name})) in values else None,
                    last_in=_gain(values, [[full - {name}]], name),
                    average=_gain(values, _without(teachers, name), name),
                )
                for name in teachers
            ]
        ),
        sets=tuple(
            SetOfTeachers(teachers=tuple(one for one in teachers if one in some), **over_seeds(members))
            for some, members in runs.items()
        ),
    )


def _without(teachers: Sequence[str], name: str) -> list[list[Set]]:
    """The sets without a teacher, by size."""
    others = [one for one in teachers if one != name]
    return [[frozenset(some) for some in combinations(others, size)] for size in range(1, len(teachers))]


def _gain(values: Values, by_size: Sequence[Sequence[Set]], name: str) -> Difference | None:
    """By seed the mean over sizes of the mean over sets of what a teacher adds; None where a set was not tried."""
    needed = [one for sets in by_size for some in sets for one in (some, some | {name})]
    if not needed or any(one not in values for one in needed):
        return None
    seeds = [seed for seed in values[needed[0]] if all(seed in values[one] for one in needed)]
    return of_differences(
        [
            mean(mean(values[some | {name}][seed] - values[some][seed] for some in sets) for sets in by_size)
            for seed in seeds
        ]
    )


def _corrected(values: Sequence[TeacherValue]) -> tuple[TeacherValue, ...]:
    def column(of: Callable[[TeacherValue], Difference | None]) -> list[Difference | None]:
        return corrected([of(value) for value in values])

    pairs = zip(column(lambda value: value.last_in), column(lambda value: value.average), strict=True)
    return tuple(
        replace(value, last_in=last_in, average=average)
        for value, (last_in, average) in zip(values, pairs, strict=True)
    )
