"""Runs side by side: means over seeds, paired differences to a baseline, and measures by epoch.

Runs whose recipes differ in nothing but the seed are one group. Accuracies are fractions; E epochs.
"""

import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.errors import read_regular, real_path
from demkd.pipeline.results import best_split, read_lines
from demkd.report.statistics import holm, paired_difference
from demkd.report.table import Column, ReportError, Table

_NOT_CHOICES = frozenset({"seed", "sources"})
_SELF_EXPLAINING = ("student", "method")
_LABELS_ONLY = "labels only"  # the method of train, whose recipes name none
DIGEST = "digest of "


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """One run: its options, its sources (digests of pixels, labels and teachers), and its top-1."""

    folder: Path
    choices: Mapping[str, Any]  # to be shown; digests are shortened
    identity: str  # all choices and sources in full: runs of one group share it
    seed: int
    last: float  # test top-1 after the last epoch
    best_split: str  # "validation", or "test" in a run without validation images
    top1: tuple[float, ...]  # by epoch, of the images of `best_split`


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run folder."""
    file = folder / "recipe.toml"
    try:
        recipe = {"sources": {}} | tomllib.loads(read_regular(file).decode())
        json.dumps(recipe)  # refuses dates, which are no options
        for name, kind, words in (("seed", int, "a number"), ("epochs", int, "a number"), ("sources", dict, "a table")):
            if type(recipe.get(name)) is not kind:
                raise ValueError(f"{name} is {recipe.get(name)!r}, not {words}")
        file = folder / "metrics.jsonl"
        lines = read_lines(folder)
        split = best_split(lines[0]) if lines else "test"
        top1 = tuple(float(line[f"{split}_top1"]) for line in lines)
        last = float(lines[-1]["test_top1"]) if len(lines) >= recipe["epochs"] > 0 else 0.0
        for value in (*top1, last):
            if not 0 <= value <= 1:  # nor NaN
                raise ValueError(f"a {split}_top1 of {value} is no fraction of 0 to 1")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ReportError(
            f"{folder} is no run folder ({file.name}: {reason}): give what train or distill wrote"
        ) from error
    if len(top1) < recipe["epochs"] or not top1:
        raise ReportError(f"the run in {folder} has {len(top1)} of {recipe['epochs']} epochs: finish it first")
    # What distill calls the student, train calls the network: runs of both are compared by it.
    choices = {
        "student" if key == "network" else key: value for key, value in recipe.items() if key not in _NOT_CHOICES
    }
    # Other teachers, pixels or labels make another group, even where every option is the same.
    sources = {f"{DIGEST}{name}": str(source) for name, source in recipe["sources"].items()}
    short = {name: text[:8] if re.fullmatch("[0-9a-f]+", text) else text for name, text in sources.items()}
    return FinishedRun(
        folder=folder,
        choices=choices | short,
        identity=json.dumps(choices | sources, sort_keys=True),
        seed=recipe["seed"],
        last=last,
        best_split=split,
        top1=top1,
    )


def first_of_equal_runs(runs: Sequence[FinishedRun]) -> dict[Path, FinishedRun]:
    """For every run's folder, the first run with the same choices and seed: mostly that run itself."""
    first: dict[tuple[str, int], FinishedRun] = {}
    return {run.folder: first.setdefault((run.identity, run.seed), run) for run in runs}


def group_runs(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs with the same choices, by seed; groups are in the order of their first runs.

    A group's name has the options in which it differs from the others: `ce`, `kd kd_weight=1.0`, `kd kd_weight=4.0`.
    What a method sets is not repeated: groups differ by the method first, and by other options only among those that
    share it. Equal names, as of 1 and "1", are numbered.
    """
    grouped: dict[str, list[FinishedRun]] = {}
    for run in runs:
        grouped.setdefault(run.identity, []).append(run)
    choices = [members[0].choices for members in grouped.values()]
    # The student and the method come first, digests of what the run was made from last.
    keys = sorted({key for run in runs for key in run.choices})
    keys.sort(key=lambda key: (*(key != word for word in _SELF_EXPLAINING), key.startswith(DIGEST)))
    named: dict[str, list[FinishedRun]] = {}
    for members, words in zip(grouped.values(), _differing(choices, keys), strict=True):
        name = " ".join(words) or _in_words("method", members[0].choices.get("method"))
        numbered = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        name = next(text for text in numbered if text not in named)
        seeds = sorted(run.seed for run in members)
        if len(set(seeds)) < len(seeds):
            raise ReportError(f"{name} has a seed twice ({seeds}): give each run once")
        named[name] = sorted(members, key=lambda run: run.seed)
    return named


def _differing(groups: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[str]]:
    """For every group its value of the first key in which they differ, then of others among those that share it."""
    words: list[list[str]] = [[] for _ in groups]
    for position, key in enumerate(keys):
        values = [json.dumps(group.get(key)) for group in groups]
        if len(set(values)) > 1:
            for value in set(values):
                same = [i for i, other in enumerate(values) if other == value]
                more = _differing([groups[i] for i in same], keys[position + 1 :])
                for i, rest in zip(same, more, strict=True):
                    words[i] = [_in_words(key, groups[i].get(key)), *rest]
            break
    return words


def _in_words(key: str, value: Any) -> str:
    if value is None:
        return _LABELS_ONLY if key == "method" else f"no {key}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if key in _SELF_EXPLAINING else f"{key}={text}"


_CORRECTED = "corrected: for all comparisons (Holm)"
_DIFFERENCE_COLUMNS = [
    Column("pairs", format="d", rank=4),
    Column("difference", "differ-\nence", "points"),
    Column("low", "95 %\nlow", "points", 1),
    Column("high", "95 %\nhigh", "points", 1),
    Column("p", rank=None),
    Column("holm_low", "corrected\nlow", "points", 3, _CORRECTED),
    Column("holm_high", "corrected\nhigh", "points", 3, _CORRECTED),
    Column("holm_p", "corrected\np", ".2g", 3, _CORRECTED),
    Column(
        "detectable", "detect-\nable", "percent", 7, "detectable: the smallest difference that these pairs can detect"
    ),
    Column(
        "seeds_for_a_point",
        "seeds for\n1 point",
        "d",
        6,
        "seeds for 1 point: to detect a true difference of one point with power 0.8",
    ),
]


def compare(runs: Sequence[FinishedRun], *, baseline: str | None = None) -> dict[str, Any]:
    """Group runs and compare the groups with a baseline, given by its name or one of its run folders.

    The result has the name of the "baseline"; "groups", a table of top-1 in the last and the best epoch, and of the
    differences to the baseline over the seeds that both have; and "runs", a table of every run.
    """
    groups = group_runs(runs)
    base = baseline
    if baseline is not None and baseline not in groups:
        folder = real_path(baseline)
        bases = (name for name, members in groups.items() if folder in {real_path(run.folder) for run in members})
        base = next(bases, None)
        if base is None:
            names = "; ".join(groups)
            raise ReportError(f"there is no baseline {baseline!r}: choose one of {names}, or a run's folder")
    columns: dict[Column, Any] = {
        Column("group", "runs"): groups,
        Column("seeds", format="d", rank=2): [len(members) for members in groups.values()],
    }
    by_measure = []
    splits = sorted({run.best_split for members in groups.values() for run in members})
    best = f"best: top-1 of the best epoch on the {' or '.join(splits)} images"
    for measure, mean_rank, std_rank, meaning in (("last", 0, 1, ""), ("best", 5, 6, best)):
        by_seed = {
            name: {run.seed: run.last if measure == "last" else max(run.top1) for run in members}
            for name, members in groups.items()
        }
        values = [list(seeds.values()) for seeds in by_seed.values()]
        columns |= {
            Column(f"{measure}_top1", f"{measure}\ntop-1", "percent", mean_rank, meaning): list(map(np.mean, values)),
            Column(f"{measure}_std", f"{measure}\nstd", "percent", std_rank, "std over seeds"): [
                np.std(top1, ddof=1) if len(top1) > 1 else None for top1 in values
            ],
        }
        by_measure.append(by_seed)
    note = "test top-1 of the last epoch"
    if base is not None:
        for prefix, by_seed in zip(("", "best_"), by_measure, strict=True):
            found = holm([{} if name == base else paired_difference(by_seed[name], by_seed[base]) for name in groups])
            for column in _DIFFERENCE_COLUMNS:
                shown = Column(f"best_{column.key}", rank=None) if prefix else column
                columns[shown] = [difference.get(column.key) for difference in found]
        note += f"; differences to {base} in percentage points of the last epoch, paired by seed"
    table = Table.from_columns("Test top-1", columns, note)
    means = [row["last_top1"] for row in table]
    return {"baseline": base, "groups": replace(table, best=means.index(max(means))), "runs": _table_of_runs(groups)}


def _table_of_runs(groups: Mapping[str, Sequence[FinishedRun]]) -> Table:
    """Every run, with the options in which the runs differ."""
    named = [(name, run) for name, members in groups.items() for run in members]
    runs = [run for _, run in named]
    shared = shared_choices(runs)
    columns: dict[Column, Any] = {
        Column("group"): [name for name, _ in named],
        Column("folder", "run", rank=2): [str(run.folder) for run in runs],
        Column("seed", format="d"): [run.seed for run in runs],
        Column("last_top1", "last\ntop-1", "percent"): [run.last for run in runs],
        Column("best_top1", "best\ntop-1", "percent", 1): [max(run.top1) for run in runs],
        Column("best_epoch", "best\nepoch", "d", 3): [1 + run.top1.index(max(run.top1)) for run in runs],
    }
    for key in dict.fromkeys(key for run in runs for key in run.choices if key not in shared):
        values = [run.choices.get(key) for run in runs]
        # A digest that only some of the runs have is a teacher's, which `teachers` names.
        if not key.startswith(DIGEST) or len({value for value in values if value is not None}) > 1:
            columns[Column(key, rank=4)] = values
    return Table.from_columns("Runs", columns)


def shared_choices(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The options that all runs have in common."""
    first = runs[0].choices
    return {key: value for key, value in first.items() if all(run.choices.get(key) == value for run in runs)}


def curves(runs: Sequence[FinishedRun]) -> dict[str, NDArray[np.float64]]:
    """Measures by epoch of the runs of a group: name -> (seeds, E).

    Names are "test_top1", "validation_top1", "train_top1", "effective_teachers", "losses.TERM" and "weights.TEACHER";
    those that some epoch lacks are left out.
    """
    histories = []
    for run in runs:
        file = run.folder / "metrics.jsonl"
        try:
            histories.append([_measures(line) for line in read_lines(run.folder)])
        except (AttributeError, TypeError, ValueError) as error:
            raise ReportError(f"{file} is not what train or distill writes ({error}): run it again") from error
    keys = [key for key in histories[0][0] if all(key in line for history in histories for line in history)]
    return {key: np.array([[line[key] for line in history] for history in histories]) for key in keys}


def _measures(line: Mapping[str, Any]) -> dict[str, float]:
    teachers = line.get("teachers") or {}
    weights = zip(teachers.get("names", ()), teachers.get("mean_weight", ()), strict=True)
    found = {
        "test_top1": line.get("test_top1"),
        "validation_top1": line.get("validation_top1"),
        "train_top1": line.get("train_top1"),
        **{f"losses.{term}": value for term, value in line.get("losses", {}).items()},
        **{f"weights.{teacher}": weight for teacher, weight in weights},
        "effective_teachers": teachers.get("effective_teachers"),
    }
    return {key: float(value) for key, value in found.items() if value is not None}
