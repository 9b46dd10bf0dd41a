"""Students of sets of teachers from one cache: the runs that tell what each teacher adds.

The file is a sweep's without tables `[runs.NAME]`: options of `distill`, one value each, and as many seeds as wanted.
`teachers` are those to be told apart, all of the cache's by default. Runs are made, kept and resumed as a sweep's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demkd.cache import open_cache
from demkd.pipeline.recipe import read_recipe
from demkd.pipeline.sweeping import SweepError, SweepOption, SweepRun, plan_runs

_LINE = "student"
_MOST_SETS = 1023


def plan_ablation(
    path: Path, out: Path, known: Mapping[str, SweepOption], sets_of: Any
) -> tuple[tuple[str, ...], list[SweepRun]]:
    """The teachers, and every run of an ablation.

    Args:
        known: the options of `distill`, by name.
        sets_of: the sets to try, of the teachers' names.

    Raises:
        RecipeError, SweepError: if the file cannot be read, or has what cannot be run; naming it.
        CacheError: if the cache cannot be opened.
    """
    tables = read_recipe(path)
    if "runs" in tables:
        raise SweepError(f"{path} has tables [runs.NAME], and an ablation has one setting: give its options alone")
    for name, value in tables.items():
        if name not in ("seed", "teachers") and name in known and known[name].alternatives(value):
            raise SweepError(f"{path} gives {name} several values, and an ablation has one setting: choose one")
    teachers = _teachers(path, tables)
    sets = sets_of(teachers)
    if len(sets) > _MOST_SETS:
        raise SweepError(f"{len(teachers)} teachers have {len(sets):,} sets: choose --subsets leave-one-out")
    options = {**tables, "teachers": [list(some) for some in sets]}
    return teachers, plan_runs({_LINE: options}, out, known)


def set_of(run: SweepRun) -> frozenset[str]:
    """Whose student a run is."""
    return frozenset(run.options["teachers"])


def _teachers(path: Path, tables: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(tables.get("cache"), str):
        raise SweepError(f"{path} names no cache: an ablation is of a cache's teachers")
    named = tables.get("teachers", ())
    asked: Sequence[Any] = [one.strip() for one in named.split(",")] if isinstance(named, str) else named
    if not isinstance(asked, list | tuple) or not all(isinstance(one, str) for one in asked):
        raise SweepError(f"{path} has teachers = {named!r}: give the names of those to tell apart")
    with open_cache(tables["cache"], tuple(asked) or None, weights=False) as cache:
        names = cache.names
    if len(set(names)) < 2:
        raise SweepError(f"the cache in {tables['cache']} has one teacher ({names[0]}): nothing can be left out")
    return names
