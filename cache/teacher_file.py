"""One teacher's file, for reading: its answers by slot, memory-mapped and checked against their checksums.

V slots, N samples. No HDF5 handle is held: a `TeacherCache` can be pickled and forked, and used by any number of
processes.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheIncompleteError, CacheMissingError
from demkd.cache.layout import CacheShape, ledger_entry, map_file, read_header
from demkd.cache.provenance import Provenance

Array = NDArray[Any]


def cache_file(folder: Path, teacher: str) -> Path:
    """The file of a teacher's answers."""
    return folder / f"{teacher}.h5"


def partial_file(folder: Path, teacher: str) -> Path:
    """The same file before it is whole."""
    return folder / f"{teacher}.h5.partial"


class TeacherCache:
    """One teacher's file: its answers by slot, checked whenever they are taken."""

    def __init__(self, path: Path) -> None:
        """Open and check the header; the answers are checked slab by slab.

        Raises:
            CacheMissingError: if there is no such file.
            CacheDamagedError: if it is not a sound cache file.
        """
        self.path = path
        header = read_header(path)
        self.shape: CacheShape = header.shape()
        self._arrays = map_file(path, header)
        self.provenance = Provenance.from_json(self._arrays["provenance"].tobytes())

    def __reduce__(self) -> tuple[type["TeacherCache"], tuple[Path]]:
        return TeacherCache, (self.path,)  # pickling the memory maps would copy their bytes

    @property
    def name(self) -> str:
        """The teacher's name: that of the file."""
        return self.path.name.removesuffix(".partial").removesuffix(".h5")

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), as the data set said when the teacher was asked."""
        return self._arrays["label"]

    def slab(self, name: str, slot: int) -> Array:
        """A data set's answers for every sample in one slot, (N, ...), mapped read-only.

        Raises:
            CacheIncompleteError: if a block was never written.
            CacheDamagedError: if a block is not what its checksum says.
        """
        if name not in self.shape.answers():
            have = ", ".join(self.shape.answers())
            raise CacheMissingError(f"{self.path} has no {name}; it has {have}")
        for block in range(self.shape.blocks):
            self._check(name, slot, block)
        slab: Array = self._arrays[name][slot]
        return slab

    def block(self, name: str, slot: int, block: int) -> Array:
        """A data set's answers for the samples of one block, unchecked."""
        data: Array = self._arrays[name][slot, self.shape.rows(block)]
        return data

    def is_sound(self, name: str, slot: int, block: int) -> bool:
        """Whether a block was written and is what its ledger entry says."""
        entry = int(self._arrays[f"ledger/{name}"][slot, block])
        return entry == ledger_entry(name, slot, block, self.block(name, slot, block))

    def check_all(self) -> None:
        """Check every block of every data set; raises as `slab` does."""
        for name in self.shape.answers():
            for slot in range(self.shape.views):
                self.slab(name, slot)

    def blocks_written(self) -> int:
        """How many of the V x blocks pairs are in the ledger, in all data sets."""
        done = [self._arrays[f"ledger/{name}"] != 0 for name in self.shape.answers()]
        return int(np.all(done, axis=0).sum())

    def content_sha256(self) -> str:
        """Digest of what was answered: of the ledger of the entropies, and so of every entropy."""
        return hashlib.sha256(self._arrays["ledger/entropy"].tobytes()).hexdigest()

    def _check(self, name: str, slot: int, block: int) -> None:
        if self.is_sound(name, slot, block):
            return
        rows = self.shape.rows(block)
        place = f"{name} of teacher {self.name}, slot {slot}, rows {rows.start} to {rows.stop - 1}"
        if self._arrays[f"ledger/{name}"][slot, block] == 0:
            raise CacheIncompleteError(f"{self.path} lacks {place}: run the same cache-teachers again to go on")
        raise CacheDamagedError(f"{self.path} is damaged: {place} do not match their checksum")
