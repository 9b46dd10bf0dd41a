"""One file of a teacher's answers, for reading: by slot, memory-mapped and checked against their checksums.

V slots, N samples. No HDF5 handle is held: a `TeacherFile` can be pickled and forked, and used by any number of
processes.
"""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheIncompleteError, CacheMissingError
from demkd.cache.file import open_file
from demkd.cache.layout import CacheShape, ledger_entry
from demkd.cache.provenance import Provenance
from demkd.cache.shards import WHOLE, is_partial, split_name

Array = NDArray[Any]


class TeacherFile:
    """One file of a teacher, its answers by slot, checked whenever they are taken. Rows and blocks are the file's own.

    Attributes:
        name: the teacher's.
        shard: which samples it holds; `WHOLE` for all.
    """

    def __init__(self, path: Path) -> None:
        """Open and check the header; the answers are checked slot by slot.

        Raises:
            CacheMissingError: if there is no such file.
            CacheDamagedError: if it is not a sound cache file, or called as another shard than it is.
        """
        self.path = path
        self.name, self.shard = split_name(path.name)
        self.header, self._arrays = open_file(path)
        self.provenance = Provenance.from_json(self._arrays["provenance"].tobytes())
        self.provenance.require_teacher()
        samples = self._require_place()
        self.shape: CacheShape = self.header.shape(
            classes=len(self.provenance.identity["data"]["class_names"]),
            rest_temperatures=self.provenance.rest_temperatures,
            first_sample=samples.start,
        )
        self.provenance.require_samples(self.shape.samples, samples.stop - samples.start)
        if self.labels.min() < 0 or self.labels.max() >= self.shape.classes:
            raise foreign_labels(path)
        if self.shard == WHOLE:
            require_labels(path, self.labels, self.provenance)

    def __reduce__(self) -> tuple[type["TeacherFile"], tuple[Path]]:
        return TeacherFile, (self.path,)  # pickling the memory maps would copy their bytes

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), as the data set said when the teacher was asked."""
        return self._arrays["label"]

    @property
    def is_partial(self) -> bool:
        """Whether the file is still being filled."""
        return is_partial(self.path)

    def check(self, name: str, slot: int) -> None:
        """Check a data set's answers in one slot.

        Raises:
            CacheMissingError: if there is no such data set.
            CacheIncompleteError: if a block was never written.
            CacheDamagedError: if a block is not what its checksum says.
        """
        if name not in self.shape.answers():
            have = ", ".join(self.shape.answers())
            raise CacheMissingError(f"{self.path} has no {name}; it has {have}")
        for block in range(self.shape.blocks):
            self.check_block(name, slot, block)

    def slot(self, name: str, slot: int) -> Array:
        """A data set's answers for every sample in one slot, (N, ...), mapped read-only and unchecked."""
        answers: Array = self._arrays[name][slot]
        return answers

    def read(self, name: str, slot: int) -> Array:
        """The same, checked; raises as `check`."""
        self.check(name, slot)
        return self.slot(name, slot)

    def block(self, name: str, slot: int, block: int) -> Array:
        """A data set's answers for the samples of one block, unchecked."""
        data: Array = self._arrays[name][slot, self.shape.rows(block)]
        return data

    def is_sound(self, name: str, slot: int, block: int) -> bool:
        """Whether a block was written and is what its ledger entry says."""
        entry = int(self._arrays[f"ledger/{name}"][slot, block])
        return entry == ledger_entry(name, slot, self.shape.first_block + block, self.block(name, slot, block))

    def is_written(self, name: str, slot: int, block: int) -> bool:
        """Whether the ledger says anything of a block."""
        return bool(self._arrays[f"ledger/{name}"][slot, block])

    def blocks(self) -> Iterator[tuple[str, int, int]]:
        """Every data set, slot and block, in the order of the file."""
        return itertools.product(self.shape.answers(), range(self.shape.num_views), range(self.shape.blocks))

    def is_whole(self) -> bool:
        """Whether every block of every data set is sound; reads the whole file."""
        return all(self.is_sound(*place) for place in self.blocks())

    def check_all(self) -> None:
        """Check every block of every data set; raises as `check` does."""
        for place in self.blocks():
            self.check_block(*place)

    def first_sound(self, *names: str) -> tuple[int, int] | None:
        """The first (slot, block) that is there and sound in some data sets."""
        places = np.argwhere(self.ledger(names[0]) != 0).tolist()
        return next(((slot, b) for slot, b in places if all(self.is_sound(name, slot, b) for name in names)), None)

    def blocks_written(self) -> int:
        """How many of the V x blocks pairs are in the ledger, in all data sets."""
        done = [self._arrays[f"ledger/{name}"] != 0 for name in self.shape.answers()]
        return int(np.all(done, axis=0).sum())

    def progress(self) -> float:
        """The share of blocks that are written, in 0..1."""
        return self.blocks_written() / (self.shape.num_views * self.shape.blocks)

    def ledger(self, name: str) -> Array:
        """A data set's ledger (V, blocks)."""
        return self._arrays[f"ledger/{name}"]

    def place(self, name: str, slot: int, block: int) -> str:
        """A block in words."""
        samples = self.shape.samples_of(block)
        return f"{name} of teacher {self.name}, slot {slot}, rows {samples.start} to {samples.stop - 1}"

    def check_block(self, name: str, slot: int, block: int) -> None:
        """Check one block; raises as `check` does."""
        if self.is_sound(name, slot, block):
            return
        place = self.place(name, slot, block)
        if self.is_partial and not self.is_written(name, slot, block):
            raise CacheIncompleteError(f"{self.path} lacks {place}: run the same `cache_teachers` again to go on")
        what = "do not match their checksum" if self.is_written(name, slot, block) else "were lost"
        raise CacheDamagedError(
            f"{self.path} is damaged: {place} {what}; run the same `cache_teachers` again, which redoes them"
        )

    def _require_place(self) -> range:
        """The samples that the file's name stands for, which must be those that were sealed in it."""
        total, rows = self.provenance.samples, self.header.block_rows
        if self.provenance.rows != self.shard.rows_table(total, rows):
            sealed = self.provenance.rows or {}
            numbers = [sealed.get(name) for name in ("shard", "shards")]
            what = f"shard {numbers[0]} of {numbers[1]}" if sealed else "the whole"
            called = "the whole" if self.shard == WHOLE else str(self.shard)
            raise CacheDamagedError(
                f"{self.path} is called as {called} of a teacher's answers, and holds {what}: give it its own name "
                "back, or remove it and make it again"
            )
        return self.shard.samples(total, rows)


def require_labels(path: Path, labels: NDArray[np.int64], provenance: Provenance) -> None:
    """Check that these are all labels of the data that a provenance is of.

    Raises:
        CacheDamagedError: if they are not.
    """
    if hashlib.sha256(labels.tobytes()).hexdigest() != provenance.identity["data"]["labels_sha256"]:
        raise foreign_labels(path)


def foreign_labels(path: Path) -> CacheDamagedError:
    return CacheDamagedError(f"the labels in {path} are not those of its provenance: remove it and make it again")


def open_if_there(path: Path) -> TeacherFile | None:
    """A file, or None if there is none; it may go, or get its final name, at any moment."""
    try:
        return TeacherFile(path)
    except CacheMissingError:
        return None
