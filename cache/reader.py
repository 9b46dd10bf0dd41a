"""Reading a cache: the answers of K teachers side by side.

K teachers, V slots, N samples, C classes, R integers of a view's record.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheError, CacheIncompleteError, CacheMissingError
from demkd.cache.shards import files_by_teacher
from demkd.cache.teacher import Rows, TeacherCache, is_whole, state_in_words
from demkd.cache.weights import CachedWeights

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotAnswers:
    """What K teachers answered in one slot.

    Attributes:
        entropy: (K, N), float32, nats.
        prediction: (K, N), uint16.
        view: (N, R), uint16: the record of the view that every sample showed.
        teacher_weights: (K, N), float32, or None where none were precomputed for these teachers.
    """

    slot: int
    entropy: NDArray[np.float32]
    prediction: NDArray[np.uint16]
    view: NDArray[np.uint16]
    teacher_weights: NDArray[np.float32] | None


class Cache:
    """Some teachers that saw the same views of the same samples; a context manager.

    Attributes:
        teachers: the K teachers, in the order asked for.
        num_views: V, the slots that all of them have.
    """

    def __init__(self, folder: Path, teachers: Sequence[TeacherCache], weights: CachedWeights | None) -> None:
        self.folder = folder
        self.teachers = tuple(teachers)
        self.num_views = min(teacher.shape.num_views for teacher in teachers)
        self.teacher_weights = weights

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.teachers = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(teacher.name for teacher in self.teachers)

    @property
    def samples(self) -> int:
        """N."""
        return self.teachers[0].shape.samples

    @property
    def classes(self) -> int:
        """C."""
        return self.teachers[0].shape.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,)."""
        return self.teachers[0].labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.teachers[0].provenance.identity["data"]["class_names"])

    def features(self, slot: int, layers: Mapping[str, str]) -> list[Rows]:
        """The features of teacher `name` at `layers[name]`, for every teacher, checked: K x (N, ...), float16.

        Raises:
            CacheDamagedError, CacheIncompleteError: as `TeacherCache.check`.
        """
        keys = [f"features/{layers[teacher.name]}" for teacher in self.teachers]
        for teacher, key in zip(self.teachers, keys, strict=True):
            teacher.check(key, slot)
        return [teacher.rows(key, slot) for teacher, key in zip(self.teachers, keys, strict=True)]

    def require_logits(self, slot: int, *, temperatures: Iterable[float]) -> None:
        """Check what `logits` will read of a slot.

        Raises:
            CacheDamagedError, CacheIncompleteError: as `TeacherCache.check`.
            CacheMissingError: if the logits of a teacher are not all there, and not their sum at a temperature.
        """
        for teacher in self.teachers:
            for name in ("logits", *(("classes", "label_logit", "rest") if teacher.shape.keep else ())):
                teacher.check(name, slot)
            for temperature in temperatures if teacher.shape.keep else ():
                teacher.require_temperature(temperature)

    def logits(self, slot: int, rows: slice | NDArray[np.int64], *, temperature: float) -> list[Array]:
        """The K teachers' logits (B, C) of some samples, as `TeacherCache.logits`; `require_logits` checks them."""
        return [teacher.logits(slot, rows, temperature=temperature) for teacher in self.teachers]

    def read_slot(self, slot: int) -> SlotAnswers:
        """Everything but the logits and the features of one slot, checked.

        Raises:
            CacheDamagedError, CacheIncompleteError: as `TeacherCache.answers`.
            CacheMismatchError: if teachers saw different views in this slot.
        """
        if not 0 <= slot < self.num_views:
            raise CacheIncompleteError(
                f"slot {slot} is asked for, and {self.folder} has slots 0 to {self.num_views - 1}"
            )
        return SlotAnswers(
            slot=slot,
            entropy=np.stack([teacher.read("entropy", slot) for teacher in self.teachers]),
            prediction=np.stack([teacher.read("prediction", slot) for teacher in self.teachers]),
            view=self.view(slot),
            teacher_weights=None if self.teacher_weights is None else self.teacher_weights.of_slot(slot),
        )

    def view(self, slot: int) -> NDArray[np.uint16]:
        """The record (N, R) of the view that every sample showed in a slot, to every teacher."""
        view: NDArray[np.uint16] = self.teachers[0].read("view", slot)
        for other in self.teachers[1:]:
            if not np.array_equal(view, other.read("view", slot)):
                # Provenances agree, so this is no stale file but a broken promise of ours.
                raise CacheDamagedError(f"{self.teachers[0].path} and {other.path} saw different views in slot {slot}")
        return view


def open_cache(folder: str | os.PathLike[str], teachers: Sequence[str] | None = None, *, weights: bool = True) -> Cache:
    """Open a cache for reading.

    Args:
        folder: where `cache_teachers` wrote it.
        teachers: which teachers, in which order; all of them by name if left out.
        weights: read weights.h5 too, if it is of exactly these teachers.

    Raises:
        CacheMissingError: if the folder or a teacher is not there.
        CacheIncompleteError: if a teacher's files are still being written, or some of them are lost.
        CacheDamagedError: if a file is not what it should be.
        CacheMismatchError: if the teachers did not see the same views of the same samples.
    """
    folder = Path(folder)
    known = list(files_by_teacher(folder))
    chosen = _readable(folder, known) if teachers is None else list(teachers)
    if lacking := [name for name in chosen if name not in known or not is_whole(folder, name)]:
        raise _absent(folder, lacking, known)
    if not chosen:
        raise CacheMissingError(f"there is no cache in {folder}: make one with `cache_teachers`")
    opened = [TeacherCache.open(folder, name) for name in chosen]
    for other in opened[1:]:
        opened[0].provenance.require(
            other.provenance,
            cached=f"{opened[0].path} does not fit {other.path}: it",
            cure="Cache both teachers with the same data and views, or choose among them (`teachers`)",
            tables=("data", "views"),
        )
    return Cache(folder, opened, CachedWeights.of(folder, opened) if weights else None)


def _readable(folder: Path, known: Sequence[str]) -> list[str]:
    """The teachers without a single started file, which would else be in everyone's way; all if there are no others.

    One of whose shards some are whole is not left out: another may be lost, and a student would learn without it.
    """
    finished = [name for name, files in files_by_teacher(folder).items() if any(file.suffix == ".h5" for file in files)]
    return finished or list(known)


def _absent(folder: Path, lacking: Sequence[str], known: Sequence[str]) -> CacheError:
    if not (unknown := [name for name in lacking if name not in known]):
        states = "; ".join(state_in_words(folder, name) for name in lacking)
        return CacheIncompleteError(
            f"{states}: run the same `cache_teachers` again to go on, or choose other `teachers`"
        )
    have = ", ".join(name for name in known if is_whole(folder, name)) or "none"
    return CacheMissingError(f"there is no teacher {unknown[0]!r} in {folder}; it has {have}")
