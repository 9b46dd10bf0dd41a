"""Listings as flat rows for CSV: what is nested in the JSON becomes a column `outer.inner`.

A row's teachers are named: `resnet20.entropy`; other tuples are numbered: `quartiles.0`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from demkd.report.classes import ClassListing
from demkd.report.opinions import SampleSummary, SampleViews
from demkd.report.samples import SampleListing
from demkd.report.summary import CacheSummary

Inspection = CacheSummary | ClassListing | SampleListing | SampleSummary | SampleViews
Value = str | int | float | bool | None


def flat_rows(inspection: Inspection) -> list[dict[str, Value]]:
    """A listing's rows; of a whole cache and of a sample, a row a teacher. Columns may differ from row to row."""
    if isinstance(inspection, CacheSummary):
        rows: tuple[Any, ...] = inspection.teachers
    elif isinstance(inspection, SampleSummary):
        rows = inspection.opinions
    else:
        rows = inspection.rows
    return [dict(_flatten(asdict(row))) for row in rows]


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
