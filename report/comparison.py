"""Runs side by side: means and stds over seeds, and paired differences to a baseline.

Runs whose recipes differ in nothing but the seed are one group. n runs a group; shares in 0..1.
"""

import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from demkd.report.pairs import ComparisonError, Difference, corrected, paired
from demkd.untrusted import read_regular, real_path

__all__ = [
    "DIGEST",
    "Comparison",
    "ComparisonError",
    "Difference",
    "FinishedRun",
    "Group",
    "compare_runs",
    "first_of_equal_runs",
    "group_runs",
    "read_run",
]

_NOT_CHOICES = frozenset({"seed", "sources"})
_SELF_EXPLAINING = ("student", "method")
_LABELS_ONLY = "labels only"  # the method of train, whose recipes name none
DIGEST = "digest of "


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """One run: what it chose, and what from (digests of pixels, labels and teachers), and its test top-1 by epoch.

    Attributes:
        choices: to be shown; digests are shortened.
        identity: all of the choices and sources in full: runs of one group share it.
    """

    folder: Path
    choices: Mapping[str, Any]
    identity: str
    seed: int
    top1: tuple[float, ...]

    @property
    def last(self) -> float:
        return self.top1[-1]

    @property
    def best(self) -> float:
        return max(self.top1)


@dataclass(frozen=True, kw_only=True, slots=True)
class OverSeeds:
    """The top-1 of runs that differ in the seed alone.

    Attributes:
        last, best: means of the last epoch's, and of each run's best.
        last_std, best_std: sample standard deviations; None for a single run.
        last_by_seed, best_by_seed: every run's, in the order of `seeds`.
    """

    seeds: tuple[int, ...]
    last: float
    last_std: float | None
    best: float
    best_std: float | None
    last_by_seed: tuple[float, ...]
    best_by_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group(OverSeeds):
    """Such runs, compared.

    Attributes:
        name: the options in which the group differs from the others.
        difference, best_difference: of the two to the baseline's; None for the baseline, and without a common seed.
    """

    name: str
    difference: Difference | None = None
    best_difference: Difference | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All groups, in the order in which their first runs were given; `baseline` is a group's name."""

    groups: tuple[Group, ...]
    baseline: str | None


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run folder.

    Raises:
        ComparisonError: if there is none, it is not finished, or a file of it is broken; naming the file.
    """
    recipe, top1 = _read_recipe(folder / "recipe.toml"), _read_top1(folder / "metrics.jsonl")
    if len(top1) < recipe["epochs"] or not top1:
        raise ComparisonError(f"the run in {folder} has {len(top1)} of {recipe['epochs']} epochs: finish it first")
    # What distill calls the student, train calls the network: runs of both are compared by it.
    choices = {
        "student" if key == "network" else key: value for key, value in recipe.items() if key not in _NOT_CHOICES
    }
    # Other teachers, pixels or labels make another group, even where every option is the same.
    sources = {f"{DIGEST}{name}": str(source) for name, source in recipe["sources"].items()}
    return FinishedRun(
        folder=folder,
        choices=choices | {name: _shortened(source) for name, source in sources.items()},
        identity=json.dumps(choices | sources, sort_keys=True),
        seed=recipe["seed"],
        top1=top1,
    )


def _read_recipe(file: Path) -> dict[str, Any]:
    try:
        recipe = {"sources": {}} | tomllib.loads(read_regular(file).decode())
        json.dumps(recipe)  # no dates, which are no choices, and which nothing here could write
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _broken(file, error) from error
    for name, kind, words in (("seed", int, "a number"), ("epochs", int, "a number"), ("sources", dict, "a table")):
        if type(recipe.get(name)) is not kind:
            raise _broken(file, f"{name} is {recipe.get(name)!r}, not {words}")
    return recipe


def _read_top1(file: Path) -> tuple[float, ...]:
    try:
        lines = [json.loads(line) for line in read_regular(file).splitlines()]
        top1 = tuple(float(line["test_top1"]) for line in lines)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(file, error) from error
    for value in top1:
        if not 0 <= value <= 1:  # nor NaN
            raise _broken(file, f"a test_top1 of {value} is no share of 0 to 1")
    return top1


def _broken(file: Path, why: object) -> ComparisonError:
    return ComparisonError(f"{file.parent} is no run folder ({file.name}: {why}): give what train or distill wrote")


def _shortened(source: str) -> str:
    """Eight digits of a digest are enough to show; other sources are text, such as what a teacher was shown."""
    return source[:8] if re.fullmatch("[0-9a-f]+", source) else source


def group_runs(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs that made the same choices, by seed; the groups are in the order in which their first runs were given."""
    grouped: dict[str, list[FinishedRun]] = {}
    for run in runs:
        grouped.setdefault(run.identity, []).append(run)
    return [sorted(members, key=lambda run: run.seed) for members in grouped.values()]


def first_of_equal_runs(runs: Sequence[FinishedRun]) -> dict[Path, FinishedRun]:
    """For every run's folder, the first run that made the same choices with the same seed: mostly that run itself."""
    first: dict[tuple[str, int], FinishedRun] = {}
    return {run.folder: first.setdefault((run.identity, run.seed), run) for run in runs}


def compare_runs(runs: Sequence[FinishedRun], *, baseline: str | None = None) -> Comparison:
    """Group runs and compare the groups.

    Args:
        baseline: the name of the group that the others are compared with, or one of its run folders.

    Raises:
        ComparisonError: if there is no such group, or a seed comes twice in one.
    """
    grouped = group_runs(runs)
    names = _distinct(_names([members[0].choices for members in grouped]))
    members_of = dict(zip(names, grouped, strict=True))
    for name, members in members_of.items():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            raise ComparisonError(f"{name} has a seed twice ({seeds}): give each run once")
    base = _baseline(members_of, baseline)
    groups = [Group(name=name, **over_seeds(members)) for name, members in members_of.items()]
    if base is not None:
        groups = _against(groups, next(group for group in groups if group.name == base))
    return Comparison(groups=tuple(groups), baseline=base)


def _names(choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each group by no more than tells it from the others: `ce`, `kd kd_weight=1.0`, `kd kd_weight=4.0`.

    What a method brings with it (its loss, its weights) is not repeated: groups are told apart by the method first, and
    by other choices only among those that share it.
    """
    keys = sorted({key for table in choices for key in table}, key=lambda key: (_rank(key), key))
    words: list[list[str]] = [[] for _ in choices]
    _tell_apart(list(zip(choices, words, strict=True)), keys)
    return [
        " ".join(own) or _in_words("method", table.get("method")) for own, table in zip(words, choices, strict=True)
    ]


def _distinct(names: Sequence[str]) -> list[str]:
    """Numbered where words are the same, as of 1 and "1", or of digests that begin alike."""
    distinct: list[str] = []
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        distinct.append(next(one for one in itertools.chain([name], numbered) if one not in distinct))
    return distinct


def _tell_apart(groups: Sequence[tuple[Mapping[str, Any], list[str]]], keys: Sequence[str]) -> None:
    """Name every group by the first choice in which the groups differ, then continue among those that share it."""
    for position, key in enumerate(keys):
        shared: dict[str, list[tuple[Mapping[str, Any], list[str]]]] = {}
        for group in groups:
            shared.setdefault(json.dumps(group[0].get(key)), []).append(group)
        if len(shared) == 1:
            continue
        for same in shared.values():
            for table, words in same:
                words.append(_in_words(key, table.get(key)))
            _tell_apart(same, keys[position + 1 :])
        return


def _in_words(key: str, value: Any) -> str:
    if value is None:
        return _LABELS_ONLY if key == "method" else f"no {key}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if key in _SELF_EXPLAINING else f"{key}={text}"


def _rank(key: str) -> int:
    """Choices of the user's before digests of what the run was made from."""
    return _SELF_EXPLAINING.index(key) if key in _SELF_EXPLAINING else len(_SELF_EXPLAINING) + key.startswith(DIGEST)


def _baseline(members_of: Mapping[str, Sequence[FinishedRun]], wanted: str | None) -> str | None:
    if wanted is None:
        return None
    if wanted in members_of:
        return wanted
    folder = real_path(wanted)
    for name, members in members_of.items():
        if any(folder == real_path(run.folder) for run in members):
            return name
    raise ComparisonError(f"there is no baseline {wanted!r}: choose one of {'; '.join(members_of)}, or a run's folder")


def over_seeds(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The fields of `OverSeeds`."""
    last, best = tuple(run.last for run in runs), tuple(run.best for run in runs)
    return {
        "seeds": tuple(run.seed for run in runs),
        "last": mean(last),
        "last_std": stdev(last) if len(last) > 1 else None,
        "best": mean(best),
        "best_std": stdev(best) if len(best) > 1 else None,
        "last_by_seed": last,
        "best_by_seed": best,
    }


def _against(groups: Sequence[Group], base: Group) -> list[Group]:
    """The groups with their differences to one of them: pairs by seed, whose runs share their order of views."""

    def differences(values: str) -> list[Difference | None]:
        by_seed = [dict(zip(group.seeds, getattr(group, values), strict=True)) for group in groups]
        others = dict(zip(base.seeds, getattr(base, values), strict=True))
        return corrected(
            [None if group is base else paired(mine, others) for group, mine in zip(groups, by_seed, strict=True)]
        )

    return [
        replace(group, difference=last, best_difference=best)
        for group, last, best in zip(groups, differences("last_by_seed"), differences("best_by_seed"), strict=True)
    ]
