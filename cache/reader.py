"""Reading a cache: K teachers side by side, each in one or more shard files, memory-mapped and checked when read.

K teachers, V views, N samples, C classes, R parameters of a view, B in a batch. No HDF5 handle is held: everything here
can be pickled, forked, and used by any number of processes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from demkd.cache import shards
from demkd.cache.disk import lock_owner
from demkd.cache.errors import (
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
    unrepairable,
)
from demkd.cache.format import CacheShape, block_crc, decode_logits, is_written, open_file
from demkd.cache.provenance import Provenance
from demkd.cache.remote import local_folder
from demkd.cache.shards import WEIGHTS, Shard
from demkd.errors import read_regular

Array = NDArray[Any]

UNWRITTEN = "were not written yet"
_LARGEST_WEIGHT = 1 + 1e-4  # rounding may add to 1


class ShardFile:
    """One file of a teacher. Rows and blocks are counted in the file."""

    def __init__(self, path: Path) -> None:
        """Open and check the header; blocks are checked when they are read."""
        named = shards.parse_name(path.name)
        if named is None:
            raise CacheDamagedError(f"{path} is not named TEACHER.00001-of-00001.h5: rename it")
        self.path = path
        self.name, self.shard = named
        self.is_partial = path.name.endswith(shards.PARTIAL)
        self.header, self._arrays = open_file(path)
        self.provenance = Provenance.from_json(self._arrays["provenance"].tobytes())
        self.provenance.check_teacher()
        if self.provenance.shard != (self.shard.number, self.shard.count):
            raise CacheDamagedError(
                f"{path} has the name of {self.shard}, and holds {Shard(*self.provenance.shard)}: give it its own "
                "name back, or remove it and make it again"
            )
        samples = self.shard.samples(self.provenance.samples, self.header.block_rows)
        self.shape: CacheShape = self.header.shape(self.provenance, samples.start)
        if self.shape.samples != samples.stop - samples.start:
            raise unrepairable(f"{path} does not have the samples of its provenance")
        self.labels: NDArray[np.int64] = self._arrays["label"]  # (N,), of its samples
        if self.labels.min() < 0 or self.labels.max() >= self.shape.classes:
            raise unrepairable(f"{path} has labels beyond its classes")

    def __reduce__(self) -> tuple[type["ShardFile"], tuple[Path]]:
        return ShardFile, (self.path,)  # pickling the memory maps would copy their bytes

    @classmethod
    def open_if_there(cls, path: Path) -> "ShardFile | None":
        """Open a file, or return None: another process may rename or replace it at any moment."""
        try:
            return cls(path)
        except CacheMissingError:
            return None

    def view(self, name: str, view: int) -> Array:
        """A data set in one view (N, ...), mapped read-only and unchecked."""
        return self._arrays[name][view]  # type: ignore[no-any-return]

    def block(self, name: str, view: int, block: int) -> Array:
        """A data set in one block of a view, unchecked."""
        return self._arrays[name][view, self.shape.rows(block)]

    def block_crc(self, name: str) -> Array:
        """A data set's checksums (V, blocks), as format.py defines them."""
        return self._arrays[f"block_crc/{name}"]

    def block_fault(self, name: str, view: int, block: int) -> str:
        """What is wrong with a block, as the end of a sentence; "" if it was written and matches its checksum."""
        entry = self.block_crc(name)[view, block]
        if not is_written(entry):
            return UNWRITTEN if self.is_partial else "were lost"
        found = block_crc(name, view, self.shape.first_block + block, self.block(name, view, block))
        return "" if entry == found else "do not match their checksum"

    def sound(self) -> Mapping[str, NDArray[np.bool_]]:
        """By data set, which blocks (V, blocks) match their checksums; reads the whole file."""
        shape = (self.shape.num_views, self.shape.blocks)
        return {
            name: np.array([not self.block_fault(name, *place) for place in np.ndindex(shape)]).reshape(shape)
            for name in self.shape.data_sets()
        }

    def written(self) -> Mapping[str, NDArray[np.bool_]]:
        """By data set, which blocks (V, blocks) are written, sound or not."""
        return {name: is_written(self.block_crc(name)) for name in self.shape.data_sets()}

    def progress(self) -> float:
        """The share of blocks that are written, in 0..1."""
        return float(np.all(list(self.written().values()), axis=0).mean())

    def check(self, name: str, view: int, blocks: Iterable[int] | None = None) -> None:
        """Check a data set in one view, or in some blocks of it; all readers raise the same errors."""
        with contextlib.suppress(FileNotFoundError):  # replaced by a larger one; the map keeps the old one
            if self.path.stat().st_size < self.header.size:  # to read the map beyond the end would be a SIGBUS
                raise CacheDamagedError(
                    f"{self.path} was truncated: remove it, and run the same `cache_teachers` again"
                )
        if name not in self.shape.data_sets():
            raise CacheMissingError(f"{self.path} has no {name}; it has {', '.join(self.shape.data_sets())}")
        for block in range(self.shape.blocks) if blocks is None else blocks:
            if not (fault := self.block_fault(name, view, block)):
                continue
            samples = self.shape.samples_of(block)
            place = f"{name} of teacher {self.name}, view {view}, rows {samples.start} to {samples.stop - 1}"
            if fault == UNWRITTEN:
                raise CacheIncompleteError(f"{self.path} lacks {place}: run the same `cache_teachers` again to resume")
            raise CacheDamagedError(
                f"{self.path} is damaged: {place} {fault}; run the same `cache_teachers` again, which recomputes them"
            )


class Rows:
    """A data set in one view, (N, ...): the mapped parts of all files, of which rows are taken."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Array:
        """Some rows, (B, ...)."""
        if len(self.parts) == 1:
            return self.parts[0][rows]
        wanted = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
        part_of = np.searchsorted(self._starts, wanted, side="right") - 1
        taken = np.empty((len(wanted), *self.shape[1:]), self.parts[0].dtype)
        for number in np.unique(part_of):
            inside = part_of == number
            taken[inside] = self.parts[number][wanted[inside] - self._starts[number]]
        return taken

    def whole(self) -> Array:
        """All rows; mapped if they are in one file."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)


class TeacherCache:
    """One teacher, in all its shards; `labels` (N,) are those of the data set when the cache was made.

    `shape` is of all samples, with as many views and those features that every file has; in `provenance`, the identity
    is that of all files, and the notes are the first one's.
    """

    def __init__(self, files: Sequence[ShardFile]) -> None:
        first = files[0]
        self.files, self.name, self.path, self.provenance = tuple(files), first.name, first.path, first.provenance
        for other in files[1:]:
            first.provenance.check_same(
                other.provenance,
                cached=f"{first.path} does not fit {other.path}: it",
                cure="Remove the wrong one, and run the same `cache_teachers` again",
            )
        features = {
            layer: shape
            for layer, shape in first.shape.features.items()
            if all(file.shape.features.get(layer) == shape for file in files)
        }
        views = min(file.shape.num_views for file in files)
        self.shape: CacheShape = replace(
            first.shape, num_views=views, samples=first.provenance.samples, features=features
        )
        for file in files:
            if replace(file.shape, num_views=views, features=features) != self.shape.part(file.shard):
                raise CacheDamagedError(
                    f"{file.path} does not hold the same as {first.path}: remove the wrong one, and run the same "
                    "`cache_teachers` again"
                )
        self.labels = first.labels if len(files) == 1 else np.concatenate([file.labels for file in files])
        self.file_bytes = sum(file.header.size for file in files)
        expected = self.provenance.identity["data"]["labels_sha256"]
        if hashlib.sha256(self.labels.tobytes()).hexdigest() != expected:
            raise unrepairable(f"the labels in {first.path} are not those of its provenance")

    @classmethod
    def open(cls, folder: Path, name: str) -> "TeacherCache":
        """Open all files of a teacher; raises CacheMissingError if one is not there."""
        count = shards.shard_count(folder, name)
        if count is None:
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}")
        return cls([ShardFile(shards.shard_file(folder, name, shard)) for shard in shards.all_shards(count)])

    def __reduce__(self) -> tuple[type["TeacherCache"], tuple[tuple[ShardFile, ...]]]:
        return TeacherCache, (self.files,)

    def check(self, name: str, view: int) -> None:
        """Check a data set in one view."""
        for file in self.files:
            file.check(name, view)

    def rows(self, name: str, view: int) -> Rows:
        """A data set in one view, unchecked."""
        return Rows([file.view(name, view) for file in self.files])

    def read(self, name: str, view: int) -> Array:
        """A data set in one view, (N, ...), checked; mapped if it is in one file."""
        self.check(name, view)
        return self.rows(name, view).whole()

    def block(self, name: str, view: int, block: int) -> Array:
        """A data set in one block of all files, checked."""
        file = next(file for file in self.files if block < file.shape.first_block + file.shape.blocks)
        file.check(name, view, [block - file.shape.first_block])
        return file.block(name, view, block - file.shape.first_block)

    def read_one(self, name: str, view: int, index: int) -> Array:
        """One sample in one view, from a checked block."""
        block, row = divmod(index, self.shape.block_rows)
        return self.block(name, view, block)[row]  # type: ignore[no-any-return]

    def check_logits(self, view: int) -> None:
        """Check the data sets that `logits` reads."""
        for name in self.shape.logit_sets():
            self.check(name, view)

    def logits(self, view: int, rows: slice | NDArray[np.int64], *, temperature: float) -> Array:
        """Logits (B, C) of some samples in a view, unchecked, for a softmax at a temperature.

        All of them, float16 or decoded to float32. With `top_k`, the k largest and the label's, and for the others one
        number that gives them together the share that they had, spread evenly; CacheMissingError where that was not
        kept at this temperature.
        """
        kept = self.rows("logits", view)[rows]
        if self.shape.encoding == "uint8":
            largest, scale = (self.rows(name, view)[rows] for name in ("logit_max", "logit_scale"))
            return decode_logits(kept, largest, scale)
        if self.shape.top_k is None:
            return kept
        column = self.tail_column(temperature)
        classes, labels = self.rows("classes", view)[rows], self.labels[rows]
        label_logits = self.rows("label_logit", view)[rows]
        outside = ~(classes == labels[:, None]).any(1)  # whether the label is kept beside the k largest
        others = self.shape.classes - self.shape.top_k - outside.astype(np.int64)  # (B,), how many
        mean = temperature * (self.rows("tail", view)[rows][:, column] - np.log(np.maximum(others, 1)))
        logits = np.repeat(mean.astype(np.float32)[:, None], self.shape.classes, axis=1)
        np.put_along_axis(logits, labels[:, None], label_logits[:, None], axis=1)
        np.put_along_axis(logits, classes.astype(np.int64), kept, axis=1)
        return logits

    def tail_column(self, temperature: float) -> int:
        """The column of `tail` at a temperature."""
        known = self.shape.tail_temperatures
        if temperature not in known:
            raise CacheMissingError(
                f"teacher {self.name} was cached with its {self.shape.top_k} largest logits, and the tail of the "
                f"others at the temperatures {', '.join(f'{t:g}' for t in known)}, but {temperature:g} is needed: "
                "choose one of these (`temperature`), or cache it again with it (`tail_temperatures`) in another folder"
            )
        return known.index(temperature)

    def content_sha256(self, views: int) -> str:
        """Digest of the entropies' checksums in the first views; it does not depend on the number of files."""
        entries = [file.block_crc("entropy")[:views] for file in self.files]
        return hashlib.sha256(np.concatenate(entries, axis=1).tobytes()).hexdigest()


class CachedWeights(NamedTuple):
    """Precomputed weights (K, V, N), which sum to 1 over K, and the name of the weighting."""

    values: NDArray[np.float32]
    weighting: str


def read_weights(folder: Path, teachers: Sequence[TeacherCache]) -> CachedWeights | None:
    """The weights of exactly these teachers.

    None if weights.h5 is absent, of another set of teachers, or of fewer views than the teachers have.
    """
    path = folder / WEIGHTS
    if not path.exists():
        return None
    header, arrays = open_file(path)
    identity = Provenance.from_json(arrays["provenance"].tobytes()).identity
    digests, weighting, values = identity.get("teachers"), identity.get("weighting"), arrays.get("weights")
    if not (
        arrays.keys() == {"provenance", "weights"}
        and isinstance(digests, dict)
        and isinstance(weighting, str)
        and values is not None
        and header.contents["weights"].dtype == "<f4"
        and values.ndim == 3
        and values.shape[::2] == (len(digests), teachers[0].shape.samples)
        and values.size
        and values.min() >= 0  # which NaN is not
        and values.max() <= _LARGEST_WEIGHT
    ):
        raise CacheDamagedError(f"{path} does not hold weights: run `cache_teachers` again, which computes them")
    names, views = list(digests), values.shape[1]
    if names != sorted(teacher.name for teacher in teachers):
        return None
    for teacher in teachers:
        if digests[teacher.name] != teacher.content_sha256(views):
            raise CacheMismatchError(
                f"{path} was computed from other entropies of teacher {teacher.name}: "
                "run `cache_teachers` again, which computes the weights again"
            )
    if views < min(teacher.shape.num_views for teacher in teachers):
        return None
    order = [names.index(teacher.name) for teacher in teachers]
    return CachedWeights(values if order == sorted(order) else values[order], weighting)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPredictions:
    """The predictions of K teachers in one view."""

    view_index: int
    entropy: NDArray[np.float32]  # (K, N), nats
    prediction: NDArray[np.uint16]  # (K, N); uint32 beyond 65,536 classes
    params: NDArray[np.uint16]  # (N, R): the parameters of the view of every sample
    teacher_weights: NDArray[np.float32] | None  # (K, N), or None where none were precomputed for these teachers


class Cache:
    """Some teachers that saw the same views of the same samples; a context manager.

    Attributes:
        teachers: the K teachers, in the order given to `open_cache`.
        num_views, samples, classes: V, which all of them have; N; C.
        labels: (N,).
        teacher_weights: of weights.h5, if it is of exactly these teachers.
    """

    def __init__(self, folder: Path, teachers: Sequence[TeacherCache], weights: CachedWeights | None) -> None:
        self.folder = folder
        self.teachers = tuple(teachers)
        self.names = tuple(teacher.name for teacher in teachers)
        self.num_views = min(teacher.shape.num_views for teacher in teachers)
        self.samples, self.classes = teachers[0].shape.samples, teachers[0].shape.classes
        self.labels = teachers[0].labels
        self.class_names = tuple(map(str, teachers[0].provenance.identity["data"]["class_names"]))
        self.teacher_weights = weights

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.teachers = ()

    @property
    def views_note(self) -> str:
        """A sentence about teachers that have fewer views than others; empty if all have the same number."""
        most = max(teacher.shape.num_views for teacher in self.teachers)
        if most == self.num_views:
            return ""
        few = [teacher.name for teacher in self.teachers if teacher.shape.num_views == self.num_views]
        have, them = ("has", "it") if len(few) == 1 else ("have", "them")
        return (
            f"{' and '.join(few)} {have} only {self.num_views} view{'s' if self.num_views > 1 else ''}, so students "
            f"train on {self.num_views}: cache {them} with --views {most}, or leave {them} out"
        )

    @cached_property
    def files(self) -> Sequence[str]:
        """The paths of the images below their folder, as files.json has them; empty where there is none.

        Raises:
            CacheDamagedError: if it is of other images, or was changed.
        """
        path, provenance = self.folder / shards.FILES, self.teachers[0].provenance
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if not path.exists():
                return ()
            content = json.loads(read_regular(path))
            files: list[str] = content["files"]
            fit = len(files) == self.samples and all(isinstance(file, str) for file in files)
            if fit and content["sha256"] == provenance.files_sha256(files):
                return files
        raise CacheDamagedError(f"{path} is damaged, or of other images: remove it, and run `cache_teachers` again")

    def file_of(self, index: int) -> str | None:
        """The path of a sample's image."""
        return self.files[index] if self.files else None

    def params(self, view: int) -> NDArray[np.uint16]:
        """The parameters (N, R) of a view of every sample, checked; they must be the same for all teachers."""
        params: NDArray[np.uint16] = self.teachers[0].read("params", view)
        for other in self.teachers[1:]:
            if not np.array_equal(params, other.read("params", view)):
                # Provenances agree, so this is no stale file but an error of ours.
                raise CacheDamagedError(f"{self.teachers[0].path} and {other.path} saw different images in view {view}")
        return params

    def read_view(self, view: int) -> ViewPredictions:
        """Everything but the logits and the features of one view, checked."""
        if not 0 <= view < self.num_views:
            raise CacheIncompleteError(f"there is no view {view} in {self.folder}; it has 0 to {self.num_views - 1}")
        return ViewPredictions(
            view_index=view,
            entropy=np.stack([teacher.read("entropy", view) for teacher in self.teachers]),
            prediction=np.stack([teacher.read("prediction", view) for teacher in self.teachers]),
            params=self.params(view),
            teacher_weights=None if self.teacher_weights is None else self.teacher_weights.values[:, view],
        )

    def check_logits(self, view: int, *, temperatures: Iterable[float]) -> None:
        """Check the data sets that `logits` reads.

        Raises:
            CacheMissingError: if a teacher has `top_k` logits without their tail at one of the temperatures.
        """
        for teacher in self.teachers:
            teacher.check_logits(view)
            for temperature in temperatures if teacher.shape.top_k else ():
                teacher.tail_column(temperature)

    def logits(self, view: int, rows: slice | NDArray[np.int64], *, temperature: float) -> list[Array]:
        """The K teachers' logits (B, C) of some samples, as `TeacherCache.logits`; `check_logits` checks them."""
        return [teacher.logits(view, rows, temperature=temperature) for teacher in self.teachers]

    def features(self, view: int, layers: Mapping[str, str]) -> list[Rows]:
        """The features of every teacher at `layers[name]`, checked: K x (N, ...), float16."""
        keys = [(teacher, f"features/{layers[teacher.name]}") for teacher in self.teachers]
        for teacher, key in keys:
            teacher.check(key, view)
        return [teacher.rows(key, view) for teacher, key in keys]


def open_cache(
    cache: str | os.PathLike[str],
    teachers: Sequence[str] | None = None,
    *,
    weights: bool = True,
    task: Callable[..., AbstractContextManager[Any]] | None = None,
) -> Cache:
    """Open a cache for reading.

    Args:
        cache: the folder where `cache_teachers` wrote it, or the URL of a folder of `pack`.
        teachers: which teachers, in which order; all of them by name if left out.
        weights: read weights.h5 too, if it is of exactly these teachers.
        task: `Progress.task`, which shows a download.

    Raises:
        CacheMissingError: if the folder or a teacher is not there.
        CacheIncompleteError: if a teacher's files are still being written, or some of them are lost.
        CacheDamagedError: if a file is not what it should be.
        CacheMismatchError: if the teachers did not see the same views of the same samples.
        CacheValueError: if a teacher comes twice.
    """
    teachers = None if teachers is None else shards.teacher_names(teachers)
    folder = local_folder(cache, teachers, task=task)
    known = shards.files_by_teacher(folder)
    if teachers is None:
        # A teacher without one finished file does not block the others. One that has some is not left out: a shard
        # may be lost, and a student would learn without this teacher.
        teachers = [name for name, files in known.items() if any(file.suffix == ".h5" for file in files)] or list(known)
    for name in teachers:
        if name not in known:
            have = ", ".join(name for name in known if shards.is_whole(folder, name)) or "none"
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}; it has {have}")
    if states := [_describe_unfinished(folder, name) for name in teachers if not shards.is_whole(folder, name)]:
        raise CacheIncompleteError(
            f"{'; '.join(states)}: run the same `cache_teachers` again to resume, or choose other `teachers`"
        )
    if not teachers:
        raise shards.no_cache(folder)
    opened = [TeacherCache.open(folder, name) for name in teachers]
    for other in opened[1:]:
        opened[0].provenance.check_same(
            other.provenance,
            cached=f"{opened[0].path} does not fit {other.path}: it",
            cure="Cache both teachers with the same data and views, or choose among them (`teachers`)",
            tables=("data", "views"),
        )
    return Cache(folder, opened, read_weights(folder, opened) if weights else None)


def _describe_unfinished(folder: Path, name: str) -> str:
    expected = shards.all_shards(shards.shard_count(folder, name) or 1)
    states = describe_shards(folder, name, expected)
    if len(expected) > 1:
        finished = sum(shards.shard_file(folder, name, shard).exists() for shard in expected)
        states = [f"has {finished} of {len(expected)} shards", *states]
    return f"teacher {name} in {folder} {'; '.join(states).removeprefix('shard 1 of 1 ')}"


def describe_shards(folder: Path, name: str, expected: Iterable[Shard]) -> list[str]:
    """Which shards are missing, which are partial, and who writes them; those of the same state in one phrase."""
    numbers: dict[str, list[int]] = {}
    count = 1
    for shard in expected:
        path, count = shards.shard_file(folder, name, shard), shard.count
        if path.exists():
            continue
        started, owner = ShardFile.open_if_there(shards.partial_file(path)), lock_owner(path)
        state = [f"{started.progress():.0%} done"] if started else []
        state += [f"being written by {owner}"] if owner else []
        numbers.setdefault(", ".join(state) or "missing", []).append(shard.number)
    return [
        f"{shards.list_shards(some, count)} {'is' if len(some) == 1 else 'are'} {state}"
        for state, some in numbers.items()
    ]
