"""What is listed or compared as flat rows for CSV, numbers in full.

What is nested in a listing's JSON becomes a column `outer.inner`. A row's teachers are named: `resnet20.entropy`;
other tuples are numbered: `quartiles.0`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from demkd.report.classes import ClassListing
from demkd.report.comparison import Comparison, Group
from demkd.report.samples import SampleListing, SampleRow, SampleTeacher
from demkd.report.single_sample import SampleSummary, SampleViews
from demkd.report.summary import CacheSummary

Inspection = CacheSummary | ClassListing | SampleListing | SampleSummary | SampleViews
Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatRows:
    """Rows by column; a row may lack some of the columns."""

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Value]]


def flat_rows(inspection: Inspection) -> FlatRows:
    """A listing's rows; of a whole cache and of a sample, a row a teacher. Columns are all that any row has."""
    if isinstance(inspection, CacheSummary):
        rows: tuple[Any, ...] = inspection.teachers
    elif isinstance(inspection, SampleSummary):
        rows = inspection.answers
    else:
        rows = inspection.rows
    flat = [dict(_flatten(asdict(row))) for row in rows]
    return FlatRows(columns=_columns(inspection, flat), rows=flat)


def comparison_rows(comparison: Comparison) -> FlatRows:
    """A row a group, with the same columns whatever there is; shares in 0..1, and differences of shares."""
    rows = [_group_row(group, comparison.baseline) for group in comparison.groups]
    return FlatRows(columns=list(rows[0]), rows=rows)


def seed_rows(comparison: Comparison) -> FlatRows:
    """A row a run: its group, its seed, its last and best top-1."""
    rows: list[dict[str, Value]] = [
        {"group": group.name, "seed": seed, "last_top1": last, "best_top1": best}
        for group in comparison.groups
        for seed, last, best in zip(group.seeds, group.last_by_seed, group.best_by_seed, strict=True)
    ]
    return FlatRows(columns=list(rows[0]), rows=rows)


def _columns(inspection: Inspection, rows: Sequence[Mapping[str, Value]]) -> list[str]:
    if not isinstance(inspection, SampleListing):
        return list(dict.fromkeys(name for row in rows for name in row))
    # A list of samples may be empty, where no wrong teacher is trusted, and has the same columns then.
    own = [field.name for field in fields(SampleRow) if field.name != "teachers"]
    of_teacher = [field.name for field in fields(SampleTeacher) if field.name != "name"]
    return [*own, *(f"{teacher}.{name}" for teacher in inspection.teachers for name in of_teacher)]


def _group_row(group: Group, baseline: str | None) -> dict[str, Value]:
    without_pairs = {} if baseline in (None, group.name) else {"seeds": 0}
    difference = without_pairs if group.difference is None else asdict(group.difference)
    best = {} if group.best_difference is None else asdict(group.best_difference)
    return {
        "group": group.name,
        "seeds": len(group.seeds),
        "last_top1_mean": group.last,
        "last_top1_standard_deviation": group.last_std,
        "best_top1_mean": group.best,
        "best_top1_standard_deviation": group.best_std,
        "baseline": baseline,
        "pairs": difference.get("seeds"),
        **_difference_columns("", difference),
        **_difference_columns("best_", best),
    }


def _difference_columns(which: str, difference: Mapping[str, Value]) -> dict[str, Value]:
    names = {
        "difference_mean": "mean",
        "interval_low": "low",
        "interval_high": "high",
        "p": "p",
        "holm_interval_low": "holm_low",
        "holm_interval_high": "holm_high",
        "holm_p": "holm_p",
        "detectable_difference": "detectable",
        "seeds_for_a_point": "seeds_for_a_point",
    }
    return {f"{which}{column}": difference.get(name) for column, name in names.items()}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        named = all(isinstance(inner, Mapping) and "name" in inner for inner in value)
        for position, inner in enumerate(value):
            if named:
                rest = {key: kept for key, kept in inner.items() if key != "name"}
                yield from _flatten(rest, inner["name"])
            else:
                yield from _flatten(inner, f"{name}.{position}")
    else:
        yield name, value
