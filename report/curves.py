"""Runs by epoch: what metrics.jsonl says, as a mean and a band over the seeds of a group.

E epochs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demkd.report.comparison import Comparison, ComparisonError, FinishedRun, group_runs
from demkd.untrusted import read_regular

BAND = (
    "The band is one standard deviation (of the sample) around the mean of three or more seeds, "
    "lowest to highest of two; a single seed has none."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A measure by epoch.

    Attributes:
        mean: over the seeds, E values; those of an epoch in which a run has no number are NaN.
        low, high: the band, as `BAND` says; None for a single seed.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCurves:
    """Everything of a group that is measured by epoch.

    Attributes:
        name: as in the comparison.
        losses: by term; "loss" is their weighted sum.
        weights: mean weights by teacher; empty without teachers.
        effective_teachers: exp of the weights' entropy, from 1 to K; None without teachers.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    test_top1: Curve
    train_top1: Curve | None
    losses: Mapping[str, Curve]
    weights: Mapping[str, Curve]
    effective_teachers: Curve | None


def group_curves(runs: Sequence[FinishedRun], comparison: Comparison) -> tuple[GroupCurves, ...]:
    """Curves of every group of a comparison of these runs, in its order.

    Raises:
        ComparisonError: if the metrics of a run cannot be read.
    """
    pairs = zip(comparison.groups, group_runs(runs), strict=True)
    return tuple(_curves(group.name, members) for group, members in pairs)


def _curves(name: str, runs: Sequence[FinishedRun]) -> GroupCurves:
    histories = [[_numbers(run, line) for line in _lines(run)] for run in runs]
    keys = [key for key in histories[0][0] if all(key in line for history in histories for line in history)]
    curves = {key: _over_seeds([[line[key] for line in history] for history in histories]) for key in keys}

    def of_kind(wanted: str) -> dict[str, Curve]:
        return {what: curve for (kind, what), curve in curves.items() if kind == wanted}

    return GroupCurves(
        name=name,
        runs=tuple(runs),
        test_top1=_over_seeds([run.top1 for run in runs]),
        train_top1=of_kind("accuracy").get("train_top1"),
        losses=of_kind("losses"),
        weights=of_kind("weights"),
        effective_teachers=of_kind("teachers").get("effective_teachers"),
    )


def _lines(run: FinishedRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_regular(run.folder / "metrics.jsonl").splitlines()]


def _numbers(run: FinishedRun, line: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """What pages show of an epoch, by kind and name."""
    teachers = line.get("teachers") or {}
    try:
        weights = zip(teachers.get("names", ()), teachers.get("mean_weight", ()), strict=True)
        found = {
            ("accuracy", "train_top1"): line.get("train_top1"),
            **{("losses", term): value for term, value in line.get("losses", {}).items()},
            **{("weights", teacher): weight for teacher, weight in weights},
            ("teachers", "effective_teachers"): teachers.get("effective_teachers"),
        }
        return {key: float(value) for key, value in found.items() if value is not None}
    except (AttributeError, TypeError, ValueError) as error:
        raise ComparisonError(
            f"{run.folder / 'metrics.jsonl'} is not what train or distill writes ({error}): run it again"
        ) from error


def _over_seeds(values: Sequence[Sequence[float]]) -> Curve:
    """Mean and band of (seeds, E)."""
    by_epoch = list(zip(*values, strict=True))
    average = tuple(float(np.mean(epoch)) for epoch in by_epoch)
    if len(values) == 1:
        return Curve(mean=average, low=None, high=None)
    if len(values) == 2:
        return Curve(mean=average, low=tuple(map(min, by_epoch)), high=tuple(map(max, by_epoch)))
    stds = [float(np.std(epoch, ddof=1)) for epoch in by_epoch]
    return Curve(
        mean=average,
        low=tuple(middle - std for middle, std in zip(average, stds, strict=True)),
        high=tuple(middle + std for middle, std in zip(average, stds, strict=True)),
    )
