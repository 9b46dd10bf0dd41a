"""Putting a teacher's answers into a file that lies ready: block by block at known offsets, rows first.

Rows go to their places by `pwrite`, then the block's ledger entries; a killed process leaves a file whose ledger says
what it has, and an entry whose data did not reach the disk fails its checksum and is redone. Who makes the file, and
gives it its final name, is `writer.py`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.disk import disk_errors_in_words, sync_data, write_fully
from demkd.cache.errors import CacheValueError
from demkd.cache.file import open_file
from demkd.cache.layout import CacheShape, ledger_entry

Array = NDArray[Any]


class BlockWriter:
    """Writes the blocks of one file; its owner holds the file's lock."""

    def __init__(self, path: Path, *, teacher: str, shape: CacheShape) -> None:
        """Open a file for writing, and keep its ledgers in memory too, where they change together with the file's."""
        self.shape = shape
        self._path, self._teacher = path, teacher
        self._header, self._arrays = open_file(path)
        self._ledgers = {name: np.array(self._arrays[f"ledger/{name}"]) for name in shape.answers()}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptor)

    def pending(self) -> list[tuple[int, int]]:
        """The (slot, block) pairs that lack some data set, block after block, the slots of each in order."""
        done = np.all([ledger != 0 for ledger in self._ledgers.values()], axis=0)  # (V, blocks)
        return [(int(slot), int(block)) for block, slot in np.argwhere(~done.T)]

    def missing(self, slot: int, block: int) -> list[str]:
        """The data sets that a pending block lacks: all of them, or the features that were asked for later."""
        return [name for name, ledger in self._ledgers.items() if not ledger[slot, block]]

    def write(self, slot: int, block: int, answers: Mapping[str, Array]) -> None:
        """Write a block's answers, one array per data set it lacks; float16 is made here.

        Raises:
            CacheValueError: if a value is not finite, or too large for float16; nothing of the block is written.
            CacheSpaceError: if the disk is full after all.
        """
        rows = self.shape.rows(block)
        self.put(
            slot, block, {name: self._stored(name, slot, rows, answers[name]) for name in self.missing(slot, block)}
        )

    def put(self, slot: int, block: int, stored: Mapping[str, Array]) -> None:
        """Write data sets of a block that are in the file's types already, then their ledger entries."""
        first = self.shape.rows(block).start
        with disk_errors_in_words(self._path):
            for name, data in stored.items():
                extent = self._header.contents[name]
                row_bytes = extent.slot_bytes // self.shape.samples
                offset = extent.offset + slot * extent.slot_bytes + first * row_bytes
                write_fully(self._descriptor, np.ascontiguousarray(data), offset)
            for name, data in stored.items():
                entry = np.array([ledger_entry(name, slot, self.shape.first_block + block, data)], "<u8")
                place = self._header.contents[f"ledger/{name}"].offset + 8 * (slot * self.shape.blocks + block)
                write_fully(self._descriptor, entry, place)
                self._ledgers[name][slot, block] = entry[0]

    def sync(self) -> None:
        """Bring what was written to the disk; some seconds' work at a time is often enough."""
        with disk_errors_in_words(self._path):
            sync_data(self._descriptor)

    def forget_torn_blocks(self) -> None:
        """Redo the blocks whose bytes are not what their ledger entry says: written, but not on the disk in time."""
        for name, ledger in self._ledgers.items():
            for slot, block in np.argwhere(ledger):
                data = self._arrays[name][slot, self.shape.rows(block)]
                if ledger[slot, block] != ledger_entry(name, slot, self.shape.first_block + block, data):
                    ledger[slot, block] = 0

    def _stored(self, name: str, slot: int, rows: slice, answer: Array) -> Array:
        """An answer in the file's type; float16 has nothing above 65,504, and NaN cannot be learnt from."""
        shape, dtype = self.shape.answers()[name]
        expected = (rows.stop - rows.start, *shape[2:])
        assert answer.shape == expected, f"{name} is {answer.shape}, expected {expected}"
        with np.errstate(over="ignore"):
            stored = answer.astype(dtype, copy=False)
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            bad = tuple(np.argwhere(~np.isfinite(stored))[0])
            raise CacheValueError(
                f"teacher {self._teacher} answers {answer[bad]} in {name} for sample "
                f"{self.shape.first_sample + rows.start + bad[0]} "
                f"in slot {slot}, which float16 cannot hold: repair the teacher's weights or its normalisation"
            )
        return stored
