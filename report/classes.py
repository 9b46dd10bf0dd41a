"""Class by class: which are hard, for which teacher, and where trust goes wrong.

K teachers, N samples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demkd.report.errors import InspectionError
from demkd.report.statistics import CacheStatistics


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassTeacher:
    """One teacher on one class, over all views of its samples; None where the class has no samples.

    Attributes:
        top1: share of right predictions.
        entropy, weight: means; the weight is None where no weights were computed.
        wrong_and_trusted: share of views where the teacher is wrong and weighs more than 1 / K; likewise.
    """

    name: str
    top1: float | None
    entropy: float | None
    weight: float | None
    wrong_and_trusted: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSummary:
    """One class.

    Attributes:
        label: the class's name; `number` is its place among the classes.
        disagreement: share of views and pairs of teachers with different predictions; None for one teacher.
        top1, entropy, wrong_and_trusted: means over the teachers.
    """

    label: str
    number: int
    samples: int
    disagreement: float | None
    top1: float | None
    entropy: float | None
    wrong_and_trusted: float | None
    teachers: tuple[ClassTeacher, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassListing:
    """The classes of a cache, in the order of `sort`: a column's name."""

    folder: Path
    teachers: tuple[str, ...]
    sort: str
    rows: tuple[ClassSummary, ...]


def by_class(statistics: CacheStatistics) -> tuple[ClassSummary, ...]:
    """Every class, in the order of the labels."""
    cache = statistics.cache
    counts = np.bincount(cache.labels, minlength=cache.classes)
    disagreement = _of_classes(statistics, None if statistics.disagreement is None else statistics.disagreement[None])
    # (K, C) each
    top1, entropy = _of_classes(statistics, statistics.top1), _of_classes(statistics, statistics.mean_entropy)
    weight, trusted = (
        _of_classes(statistics, statistics.mean_weight),
        _of_classes(statistics, statistics.wrong_and_trusted),
    )
    return tuple(
        ClassSummary(
            label=label,
            number=number,
            samples=int(counts[number]),
            disagreement=_mean(disagreement, number),
            top1=_mean(top1, number),
            entropy=_mean(entropy, number),
            wrong_and_trusted=_mean(trusted, number),
            teachers=tuple(
                ClassTeacher(
                    name=name,
                    top1=_at(top1, position, number),
                    entropy=_at(entropy, position, number),
                    weight=_at(weight, position, number),
                    wrong_and_trusted=_at(trusted, position, number),
                )
                for position, name in enumerate(cache.names)
            ),
        )
        for number, label in enumerate(cache.class_names)
    )


def list_classes(statistics: CacheStatistics, *, sort: str = "entropy", limit: int | None = None) -> ClassListing:
    """The classes by a column, largest first; `-COLUMN` is smallest first. What has no number comes last.

    Args:
        sort: one of `class_columns`.
        limit: how many of them; all if None.

    Raises:
        InspectionError: if there is no such column.
    """
    column = sort.removeprefix("-")
    known = class_columns(statistics.cache.names)
    if column not in known:
        raise InspectionError(f"there is no column {column!r} to sort by: choose one of {', '.join(known)}")
    rows = sorted(by_class(statistics), key=lambda row: _sort_key(row, column, upwards=sort.startswith("-")))
    return ClassListing(
        folder=statistics.cache.folder, teachers=statistics.cache.names, sort=sort, rows=tuple(rows[:limit])
    )


def class_columns(teachers: Sequence[str]) -> list[str]:
    """The columns by which classes can be sorted: `entropy`, ..., and `TEACHER.entropy`, ..."""
    own = [field.name for field in fields(ClassSummary) if field.name not in ("label", "teachers")]
    of_teacher = [field.name for field in fields(ClassTeacher) if field.name != "name"]
    return [*own, *(f"{teacher}.{name}" for teacher in teachers for name in of_teacher)]


def _sort_key(row: ClassSummary, column: str, *, upwards: bool) -> tuple[bool, float, int]:
    teacher, _, name = column.rpartition(".")
    place = next(found for found in row.teachers if found.name == teacher) if teacher else row
    value = getattr(place, name)
    return value is None, 0.0 if value is None else (value if upwards else -value), row.number


def _of_classes(statistics: CacheStatistics, values: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Means (K, C) over the samples of each class of values (K, N); not a number where there are none."""
    if values is None:
        return None
    labels, classes = statistics.cache.labels, statistics.cache.classes
    sums = np.stack([np.bincount(labels, weights=row, minlength=classes) for row in values])
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _at(values: NDArray[np.float64] | None, position: int, number: int) -> float | None:
    return None if values is None or np.isnan(values[position, number]) else float(values[position, number])


def _mean(values: NDArray[np.float64] | None, number: int) -> float | None:
    return None if values is None or np.isnan(values[0, number]) else float(values[:, number].mean())
