"""Filling a teacher's file: block by block at known offsets, safe against every kind of death.

A file is called `<teacher>.h5.partial` until all of it is written, checked and synced; then it is renamed. HDF5 only
creates it. Afterwards rows go to their places by `pwrite`, then the block's ledger entries; a killed process leaves a
file whose ledger says what it has, and an entry whose data did not reach the disk fails its checksum and is redone.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from demkd.cache.disk import disk_errors_in_words, replace_durably, write_fully
from demkd.cache.errors import CacheValueError
from demkd.cache.file import create_file, map_file, read_header
from demkd.cache.layout import CacheShape, Header, ledger_entry
from demkd.cache.lock import exclusive
from demkd.cache.provenance import Provenance
from demkd.cache.teacher_file import TeacherCache, cache_file, partial_file

Array = NDArray[Any]

_ANOTHER = "Choose another --out folder, or another name for the teacher (--teacher NAME=...), or remove the old file"


def require_same_origin(cached: TeacherCache, provenance: Provenance) -> None:
    """Refuse to add to a file that was made from something else.

    Raises:
        CacheMismatchError: naming every field that differs, with both values.
    """
    cached.provenance.require(provenance, cached=str(cached.path), cure=_ANOTHER)


class CacheWriter:
    """Writes the file of one teacher; a context manager that holds the file's lock.

        with CacheWriter(folder, "resnet20", shape=shape, provenance=provenance, labels=labels) as writer:
            for slot, block in writer.pending():
                writer.write(slot, block, {"logits": ..., "entropy": ..., ...})
            writer.finish()

    It goes on with what is there: a whole file that covers `shape` has nothing pending, a started one has the rest.
    A smaller one, or one with damaged blocks, is copied into a new one as far as it is sound; the new one replaces it
    when it is whole.
    """

    def __init__(
        self, folder: Path, teacher: str, *, shape: CacheShape, provenance: Provenance, labels: NDArray[np.int64]
    ) -> None:
        """Prepare to write; nothing is touched before the `with` statement."""
        self.teacher = teacher
        self.shape = shape  # on entry: grown to cover what the file already has
        self.whole = False  # on entry: whether the final file has all that is wanted
        self._final = cache_file(folder, teacher)
        self._partial = partial_file(folder, teacher)
        self._provenance = provenance
        self._labels = labels
        self._lock = exclusive(self._final)
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock, refuse a stale file, and create, grow or go on with the file.

        Raises:
            CacheBusyError: if another process writes this file.
            CacheMismatchError: if the file there was made from something else.
            CacheDamagedError: if the file there is damaged.
            CacheSpaceError: if the disk cannot hold the new file.
        """
        with disk_errors_in_words(self._final):
            self._final.parent.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        try:
            self._open()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._lock.__exit__(kind, error, traceback)

    def pending(self) -> list[tuple[int, int]]:
        """The (slot, block) pairs that lack some data set, in the order of the file."""
        if self.whole:
            return []
        done = np.all([self._ledgers[name] != 0 for name in self.shape.answers()], axis=0)
        return [(int(slot), int(block)) for slot, block in np.argwhere(~done)]

    def missing(self, slot: int, block: int) -> list[str]:
        """The data sets that a pending block lacks: all of them, or the features that were asked for later."""
        return [name for name in self.shape.answers() if not self._ledgers[name][slot, block]]

    def written(self, slot: int, block: int) -> dict[str, Array]:
        """What a block already has, by data set."""
        rows = self.shape.rows(block)
        return {
            name: self._arrays[name][slot, rows] for name in self.shape.answers() if self._ledgers[name][slot, block]
        }

    def first_written(self) -> tuple[int, int] | None:
        """A block that is there already, to compare a resumed teacher's answers with."""
        done = np.argwhere(self._ledgers["logits"] != 0)
        return (int(done[0][0]), int(done[0][1])) if len(done) else None

    def write(self, slot: int, block: int, answers: Mapping[str, Array]) -> None:
        """Write a block's answers, one array per data set it lacks, rows first; float16 is made here.

        Raises:
            CacheValueError: if a value is not finite, or too large for float16; nothing of the block is written.
            CacheSpaceError: if the disk is full after all.
        """
        rows = self.shape.rows(block)
        stored = {name: self._stored(name, slot, rows, answers[name]) for name in self.missing(slot, block)}
        self._put(slot, block, stored)

    def sync(self) -> None:
        """Bring what was written to the disk; once a slot is often enough."""
        if not self.whole:
            with disk_errors_in_words(self._partial):
                os.fdatasync(self._descriptor)

    def finish(self) -> None:
        """Check every block, sync, and give the file its final name.

        Raises:
            CacheIncompleteError: if a block is still pending.
            CacheDamagedError: if a block is not what was written.
        """
        if self.whole:
            return
        with disk_errors_in_words(self._partial):
            os.fsync(self._descriptor)
            TeacherCache(self._partial).check_all()
            replace_durably(self._partial, self._final)
        self.whole = True

    def _open(self) -> None:
        final = self._existing(self._final)
        started = self._existing(self._partial)
        if final and final.shape.covers(self.shape) and final.is_whole():
            self.whole, self.shape = True, final.shape
            self._use(self._final, final.header)
            return
        for found in (final, started):
            if found:
                self.shape = self.shape.union(found.shape)
        if not (started and started.shape == self.shape):
            self._create([found for found in (started, final) if found])
        self._use(self._partial, read_header(self._partial))
        self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CLOEXEC)
        self._forget_torn_blocks()

    def _existing(self, path: Path) -> TeacherCache | None:
        """An own earlier file, refused if it was made from something else."""
        if not path.exists():
            return None
        cached = TeacherCache(path)
        require_same_origin(cached, self._provenance)
        return cached

    def _create(self, sources: list[TeacherCache]) -> None:
        """Create the partial file, with every block that an earlier file already has."""
        growing = self._partial.with_name(self._final.name + ".creating")
        header = create_file(
            growing,
            sealed={"label": self._labels.astype("<i8")},
            opened={**self.shape.answers(), **self.shape.ledgers()},
            provenance=self._provenance,
            block_rows=self.shape.block_rows,
        )
        self._use(growing, header)
        self._descriptor = os.open(growing, os.O_RDWR | os.O_CLOEXEC)
        try:
            for source in sources:
                self._inherit(source)
            with disk_errors_in_words(growing):
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
        replace_durably(growing, self._partial)

    def _inherit(self, earlier: TeacherCache) -> None:
        """Copy the sound blocks of an earlier file."""
        for slot in range(earlier.shape.views):
            for block in range(earlier.shape.blocks):
                lacking = [name for name in self.missing(slot, block) if name in earlier.shape.answers()]
                found = {
                    name: earlier.block(name, slot, block) for name in lacking if earlier.is_sound(name, slot, block)
                }
                self._put(slot, block, found)

    def _use(self, path: Path, header: Header) -> None:
        """Map the file; the ledgers are also kept in memory, where they are changed together with the file's."""
        self._header = header
        self._arrays = map_file(path, header)
        self._ledgers = {name: np.array(self._arrays[f"ledger/{name}"]) for name in self.shape.answers()}

    def _forget_torn_blocks(self) -> None:
        """Redo the blocks whose bytes are not what their ledger entry says: written, but not on the disk in time."""
        for name, ledger in self._ledgers.items():
            for slot, block in np.argwhere(ledger):
                data = self._arrays[name][slot, self.shape.rows(block)]
                if ledger[slot, block] != ledger_entry(name, slot, block, data):
                    ledger[slot, block] = 0

    def _stored(self, name: str, slot: int, rows: slice, answer: Array) -> Array:
        """An answer in the file's type, checked: float16 has nothing above 65,504, and NaN is nobody's answer."""
        shape, dtype = self.shape.answers()[name]
        expected = (rows.stop - rows.start, *shape[2:])
        assert answer.shape == expected, f"{name} is {answer.shape}, expected {expected}"
        with np.errstate(over="ignore"):
            stored = answer.astype(dtype, copy=False)
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            bad = tuple(np.argwhere(~np.isfinite(stored))[0])
            raise CacheValueError(
                f"teacher {self.teacher} answers {answer[bad]} in {name} for sample {rows.start + bad[0]} "
                f"in slot {slot}, which float16 cannot hold: repair the teacher's weights or its normalisation"
            )
        return stored

    def _put(self, slot: int, block: int, stored: Mapping[str, Array]) -> None:
        """The data of a block, then its ledger entries."""
        first = self.shape.rows(block).start
        with disk_errors_in_words(self._partial):
            for name, data in stored.items():
                extent = self._header.contents[name]
                row_bytes = extent.slot_bytes // self.shape.samples
                write_fully(
                    self._descriptor,
                    np.ascontiguousarray(data),
                    extent.offset + slot * extent.slot_bytes + first * row_bytes,
                )
            for name, data in stored.items():
                entry = np.array([ledger_entry(name, slot, block, data)], "<u8")
                place = self._header.contents[f"ledger/{name}"].offset + 8 * (slot * self.shape.blocks + block)
                write_fully(self._descriptor, entry, place)
                self._ledgers[name][slot, block] = entry[0]
