"""Writing a cache: one shard of a teacher at a time, block by block; then weights.h5.

A file is called `<its name>.partial` until all of it is written, checked and synced; then it is renamed. Rows go to
their places by `pwrite`, then the block's checksums: after a kill, these list the blocks that are there, and a block
whose bytes did not reach the disk fails its checksum and is computed again. HDF5 only creates the file.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from demkd.cache.disk import disk_errors_in_words, exclusive, replace_durably, sync_data, write_durably, write_fully
from demkd.cache.errors import CacheBusyError, CacheMismatchError, CacheSpaceError, CacheValueError, unrepairable
from demkd.cache.format import (
    BEGUN_ROW,
    WRITTEN,
    CacheShape,
    block_crc,
    create_file,
    encode_logits,
    file_bytes,
    is_written,
    open_file,
)
from demkd.cache.provenance import Provenance
from demkd.cache.reader import ShardFile, TeacherCache
from demkd.cache.shards import (
    FILES,
    WEIGHTS,
    Shard,
    files_by_teacher,
    forget_sums,
    partial_file,
    shard_count,
    shard_file,
)
from demkd.errors import real_path

Array = NDArray[Any]


class _Present(NamedTuple):
    """The files of a shard, and which blocks (V, blocks) of each data set they have."""

    shape: CacheShape  # that covers the files and what is wanted
    finished: bool
    started: ShardFile | None
    done: Mapping[ShardFile, Mapping[str, NDArray[np.bool_]]]


def _find_present(
    folder: Path, teacher: str, wanted: CacheShape, provenance: Provenance, shard: Shard, *, checked: bool = True
) -> _Present:
    """Open a shard's files, and compare them with what is wanted; unless `checked`, written blocks count as sound."""
    path = shard_file(folder, teacher, shard)
    # In this order, because a partial file may get its final name meanwhile.
    started, final = ShardFile.open_if_there(partial_file(path)), ShardFile.open_if_there(path)
    shape, done = wanted, {}
    for file in (started, final):
        if file is None:
            continue
        _check_same_origin(file, provenance)
        if replace(file.shape, num_views=wanted.num_views, features=wanted.features) != wanted:
            raise unrepairable(f"{file.path} does not have the same rows")
        shape = shape.union(file.shape)
        done[file] = file.sound() if checked else file.written()
    if final and final.shape.covers(wanted) and all(blocks.all() for blocks in done[final].values()):
        return _Present(final.shape, True, None, {final: done[final]})
    return _Present(shape, False, started, done)


def _check_same_origin(cached: ShardFile, provenance: Provenance) -> None:
    cure = "Choose another folder (`out`), or another name for the teacher (`teachers`), or remove the old file"
    cached.provenance.check_same(provenance, cached=str(cached.path), cure=cure)


class CacheWriter:
    """Writes one shard of a teacher; a context manager that holds the file's lock.

        with CacheWriter(folder, "resnet20", shape=shape, provenance=provenance, labels=labels) as writer:
            for view, block in writer.pending():
                writer.write(view, block, {"logits": ..., "entropy": ..., ...})
            writer.finish()

    It continues with what is there: a finished file that covers `shape` has nothing pending, a partial one has the
    rest. A smaller one, or one with damaged blocks, is copied into a new one as far as it is sound; the new one
    replaces it when it is finished. `shape` is the file's, on entry grown to cover what it already has; `finished` is
    whether the final file has all that is wanted.
    """

    def __init__(
        self,
        folder: Path,
        teacher: str,
        *,
        shape: CacheShape,
        provenance: Provenance,
        labels: NDArray[np.int64],
        shard: Shard = Shard(),  # noqa: B008 - frozen
    ) -> None:
        """`shape`, `provenance` and `labels` are of all shards. Nothing is touched before the lock is taken."""
        samples = shard.samples(shape.samples, shape.block_rows)
        self.teacher, self.shape, self.finished = teacher, shape.part(shard), False
        self._folder, self._shard = folder, shard
        self._final = shard_file(folder, teacher, shard)
        self._partial = self.path = partial_file(self._final)
        self._provenance = replace(provenance, shard=(shard.number, shard.count))
        self._labels = labels[samples.start : samples.stop]
        self._resources = contextlib.ExitStack()
        self._locked = False

    def lock(self) -> None:
        """Take the lock now, and do the rest on entry."""
        if not self._locked:
            with disk_errors_in_words(self._final):
                self._folder.mkdir(parents=True, exist_ok=True)
            self._resources.enter_context(exclusive(self._final))
            self._locked = True

    def release(self) -> None:
        self._resources.close()
        self._locked = False

    def __enter__(self) -> Self:
        """Take the lock, refuse a stale file, and create, grow or continue the file."""
        try:
            self.lock()
            self._check_other_shards()
            present = _find_present(self._folder, self.teacher, self.shape, self._provenance, self._shard)
            self.shape, self.finished = present.shape, present.finished
            if present.started and present.started.shape == self.shape:
                self._attach(self._partial)
                self._forget_lost_rows(present.started, present.done[present.started])
            elif not self.finished:
                self._create(present)
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def pending(self) -> list[tuple[int, int]]:
        """The (view, block) pairs that lack some data set: block after block, the views of each in order."""
        if self.finished:
            return []
        done = np.all([is_written(entries) for entries in self._entries.values()], axis=0)  # (V, blocks)
        return [(int(view), int(block)) for block, view in np.argwhere(~done.T)]

    def missing(self, view: int, block: int) -> list[str]:
        """The data sets that a pending block lacks: all of them, or features that were added later."""
        return [name for name, entries in self._entries.items() if not is_written(entries[view, block])]

    def rows_done(self, view: int, block: int) -> int:
        """How many rows of a block are there, from its first one on."""
        begun = [self._begun(name, view, block) // BEGUN_ROW for name in self.missing(view, block)]
        return min(begun, default=len(self.shape.samples_of(block)))

    def write(self, view: int, block: int, arrays: Mapping[str, Array], *, first: int = 0) -> None:
        """Write a block, one array (B, ...) per data set that it lacks, in any type; logits are encoded here.

        A part of the block begins with its row `first`: parts come in order, and rows that are there already stay. If a
        value is not finite in the file's type, nothing of the block is written.
        """
        given, stored = dict(arrays), {}
        if self.shape.encoding == "uint8" and "logits" in given and given["logits"].dtype != np.uint8:
            logits = given["logits"].astype(np.float32, copy=False)
            self._check_finite("logits", view, block, first, logits, logits)
            given |= encode_logits(logits)
        sets, rows = self.shape.data_sets(), len(self.shape.samples_of(block))
        for name in self.missing(view, block):
            shape, dtype = sets[name]
            there = self._begun(name, view, block) // BEGUN_ROW - first
            assert there >= 0, f"{name} lacks rows before {first}"
            assert first + len(given[name]) <= rows, f"{name} has {len(given[name])} rows from {first} on"
            assert given[name].shape[1:] == shape[2:], f"{name} is {given[name].shape}"
            with np.errstate(over="ignore"):
                data = given[name].astype(dtype, copy=False)
            self._check_finite(name, view, block, first, data, given[name])
            if there < len(data):  # a kill may have come between two data sets
                stored[name] = data[there:]
        self._put(view, block, stored)

    def sync(self) -> None:
        """Flush what was written to the disk; every few seconds is enough."""
        with disk_errors_in_words(self._partial):
            sync_data(self._descriptor)

    def finish(self) -> None:
        """Check every block, sync, and give the file its final name."""
        if self.finished:
            return
        self._check_other_shards()
        self.sync()
        file = ShardFile(self._partial)
        for name in file.shape.data_sets():
            for view in range(file.shape.num_views):
                file.check(name, view)
        forget_sums(self._folder)
        with disk_errors_in_words(self._partial):
            replace_durably(self._partial, self._final)
        self.finished = True

    def _check_other_shards(self) -> None:
        """Check one other shard, which another process may have made meanwhile."""
        count = shard_count(self._folder, self.teacher)
        if count not in (None, self._shard.count):
            raise CacheMismatchError(
                f"teacher {self.teacher} in {self._folder} is in {count} files by now, and not in {self._shard.count}: "
                "run the same `cache_teachers` again"
            )
        for path in files_by_teacher(self._folder).get(self.teacher, ()):
            if path not in (self._final, self._partial) and (other := ShardFile.open_if_there(path)):
                _check_same_origin(other, self._provenance)
                return

    def _create(self, present: _Present) -> None:
        """Create the partial file, with every sound block that earlier files have."""
        creating = self._final.with_name(self._final.name + ".creating")
        create_file(
            creating,
            constant={"label": self._labels.astype("<i8")},
            filled=self.shape.filled_sets(),
            provenance=self._provenance.with_packed_note([file.provenance for file in present.done]),
            block_rows=self.shape.block_rows,
        )
        self._attach(creating)
        for file, sound in present.done.items():
            for view, block in np.ndindex(file.shape.num_views, file.shape.blocks):
                names = [name for name in self.missing(view, block) if name in sound and sound[name][view, block]]
                self._put(view, block, {name: file.block(name, view, block) for name in names})
        self.sync()
        with disk_errors_in_words(creating):
            replace_durably(creating, self._partial)

    def _attach(self, path: Path) -> None:
        """Open a file for writing; its checksums are kept in memory too, and change together with the file's."""
        header, arrays = open_file(path)
        self._contents = header.contents
        self._entries = {name: np.array(arrays[f"block_crc/{name}"]) for name in self.shape.data_sets()}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._resources.callback(os.close, self._descriptor)

    def _begun(self, name: str, view: int, block: int) -> int:
        """The entry of a block that lacks a data set, or some rows of it."""
        return int(self._entries[name][view, block])

    def _forget_lost_rows(self, file: ShardFile, sound: Mapping[str, NDArray[np.bool_]]) -> None:
        """Compute again what was written, but was not on the disk in time."""
        for name, entries in self._entries.items():
            entries[is_written(entries) & ~sound[name]] = 0
            for view, block in np.argwhere((entries != 0) & ~is_written(entries)).tolist():
                rows, entry = file.block(name, view, block), self._begun(name, view, block)
                begun, place = entry // BEGUN_ROW, self.shape.first_block + block
                if not (
                    0 < begun < len(rows) and block_crc(name, view, place, rows[:begun]) % WRITTEN == entry % WRITTEN
                ):
                    entries[view, block] = 0

    def _put(self, view: int, block: int, stored: Mapping[str, Array]) -> None:
        """Write rows of a block, which have the file's types already, behind those that are there; then checksums."""
        start, rows = self.shape.rows(block).start, len(self.shape.samples_of(block))
        begun = {name: self._begun(name, view, block) for name in stored}
        with disk_errors_in_words(self._partial):
            for name, data in stored.items():
                extent, first = self._contents[name], start + begun[name] // BEGUN_ROW
                offset = extent.offset + view * extent.view_bytes + first * (extent.view_bytes // self.shape.samples)
                write_fully(self._descriptor, np.ascontiguousarray(data), offset)
            for name, data in stored.items():
                entry = block_crc(name, view, self.shape.first_block + block, data, begun=begun[name])
                done = begun[name] // BEGUN_ROW + len(data)
                if done < rows:
                    entry = done * BEGUN_ROW + entry % WRITTEN
                offset = self._contents[f"block_crc/{name}"].offset + 8 * (view * self.shape.blocks + block)
                write_fully(self._descriptor, np.array([entry], "<u8"), offset)
                self._entries[name][view, block] = entry

    def _check_finite(self, name: str, view: int, block: int, first: int, stored: Array, given: Array) -> None:
        """float16 has nothing above 65,504, and a student cannot learn from NaN."""
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            bad = tuple(np.argwhere(~np.isfinite(stored))[0])
            sample = self.shape.samples_of(block)[first + int(bad[0])]
            raise CacheValueError(
                f"teacher {self.teacher} has {given[bad]} in {name} for sample {sample} in view {view}, which "
                f"{stored.dtype} cannot hold: repair the teacher's weights or its normalization"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpace:
    """What remains to be done for some shards of a teacher."""

    shape: CacheShape  # of what will be there, which also covers what is there
    file_bytes: int  # of the finished files, at most
    new_bytes: int  # that the disk must have free; 0 where a file is finished, or its space is reserved
    freed_bytes: int  # of the files that will be replaced
    pending: int  # (sample, view) pairs that are missing or damaged


def plan_teacher(
    folder: Path,
    teacher: str,
    *,
    shape: CacheShape,
    provenance: Provenance,
    shards: Sequence[Shard],
    checked: bool = True,
) -> TeacherSpace:
    """Compare what is wanted of a teacher in these shards with what is there, as `_find_present`; write nothing."""
    views = shape.num_views
    total_bytes = new_bytes = freed_bytes = pending = 0
    for shard in shards:
        present = _find_present(folder, teacher, shape.part(shard), provenance, shard, checked=checked)
        whole, views = present.shape, max(views, present.shape.num_views)
        if present.finished:
            total_bytes += sum(file.header.size for file in present.done)
            continue
        done = {name: np.zeros((whole.num_views, whole.blocks), bool) for name in whole.data_sets()}
        for file, by_name in present.done.items():
            for name, blocks in by_name.items():
                done[name][: file.shape.num_views] |= blocks
        rows = np.array([len(whole.samples_of(block)) for block in range(whole.blocks)])
        pending += int((~np.all(list(done.values()), axis=0) * rows).sum())
        origin = replace(provenance, shard=(shard.number, shard.count))
        size = file_bytes(whole.all_sets(), len(origin.to_json().encode()))
        reserved = present.started if present.started and present.started.shape == whole else None
        total_bytes += size
        new_bytes += 0 if reserved else size
        freed_bytes += sum(file.header.size for file in present.done if file is not reserved)
    return TeacherSpace(
        shape=replace(shape, num_views=views),
        file_bytes=total_bytes,
        new_bytes=new_bytes,
        freed_bytes=freed_bytes,
        pending=pending,
    )


def check_space(folder: Path, plans: Sequence[TeacherSpace]) -> int:
    """Check that the disk can hold every planned file and the weights; the free bytes.

    Files of all teachers are filled side by side, and an old one is removed only when its successor is finished.
    """
    real = real_path(folder)
    free = shutil.disk_usage(next(parent for parent in (real, *real.parents) if parent.is_dir())).free
    needed = sum(plan.new_bytes for plan in plans)
    if needed:
        teachers = len(plans) + len(files_by_teacher(folder))
        shape = (teachers, max(plan.shape.num_views for plan in plans), plans[0].shape.samples)
        freed = sum(plan.freed_bytes for plan in plans)
        needed = max(needed, needed - freed + file_bytes({"weights": (shape, "<f4")}, 0))
    if needed > free:
        raise CacheSpaceError(
            f"the cache needs {needed:,} more bytes, and {free:,} are free at {folder}: free some space, choose "
            "another folder (`out`), or use fewer `views` or no `features`"
        )
    return free


def write_files(folder: Path, provenance: Provenance, files: Sequence[str]) -> None:
    """Write files.json: the paths of the images below their folder, which are no part of the cache's identity."""
    text = json.dumps({"sha256": provenance.files_sha256(files), "files": files}).encode()
    with contextlib.suppress(CacheBusyError), exclusive(folder / FILES):  # another process may write the same
        write_durably(folder / FILES, [text])


def write_weights(
    folder: Path, teachers: Sequence[TeacherCache], values: NDArray[np.float32], *, weighting: str
) -> None:
    """Write weights.h5 for teachers in the order of their names: values (K, V, N), which sum to 1 over K."""
    digests = {teacher.name: teacher.content_sha256(values.shape[1]) for teacher in teachers}
    assert list(digests) == sorted(digests)
    assert len(values) == len(digests)
    path = folder / WEIGHTS
    with exclusive(path):
        forget_sums(folder)
        creating = path.with_name(path.name + ".creating")
        origin = Provenance(identity={"teachers": digests, "weighting": weighting})
        create_file(creating, constant={"weights": values}, filled={}, provenance=origin)
        replace_durably(creating, path)
