"""One teacher's file, for reading: its answers by slot, memory-mapped and checked against their checksums.

V slots, N samples. No HDF5 handle is held: a `TeacherCache` can be pickled and forked, and used by any number of
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
from demkd.cache.file import map_file, read_header
from demkd.cache.layout import CacheShape, ledger_entry
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
        """Open and check the header; the answers are checked slot by slot.

        Raises:
            CacheMissingError: if there is no such file.
            CacheDamagedError: if it is not a sound cache file.
        """
        self.path = path
        header = read_header(path)
        self.header = header
        self._arrays = map_file(path, header)
        self.provenance = Provenance.from_json(self._arrays["provenance"].tobytes())
        self.provenance.require_teacher()
        self.shape: CacheShape = header.shape(
            classes=len(self.provenance.identity["data"]["class_names"]),
            rest_temperatures=self.provenance.rest_temperatures,
        )
        self.provenance.require_samples(self.shape.samples)
        self._require_labels()

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

    @property
    def is_partial(self) -> bool:
        """Whether the file is still being filled."""
        return self.path.suffix == ".partial"

    def read(self, name: str, slot: int) -> Array:
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
        answers: Array = self._arrays[name][slot]
        return answers

    def logits(self, slot: int, rows: slice | NDArray[np.int64], *, temperature: float) -> Array:
        """Logits (B, C) of some samples in a slot, unchecked, for a softmax at a temperature.

        All of them as they were answered; or, where the k largest and the label's are kept, these, and for the others
        one number that gives them together the share that they had, spread evenly.

        Raises:
            CacheMissingError: if the share of the others was not kept at this temperature.
        """
        kept: Array = self._arrays["logits"][slot, rows]
        if self.shape.keep is None:
            return kept
        columns = self.require_temperature(temperature)
        classes, labels = self._arrays["classes"][slot, rows], self.labels[rows]
        label_logits = self._arrays["label_logit"][slot, rows]
        outside = ~(classes == labels[:, None]).any(1)  # whether the label is kept beside the k largest
        others = self.shape.classes - self.shape.keep - outside.astype(np.int64)  # (B,), how many
        mean = temperature * (self._arrays["rest"][slot, rows][:, columns] - np.log(np.maximum(others, 1)))
        logits = np.repeat(mean.astype(np.float32)[:, None], self.shape.classes, axis=1)
        np.put_along_axis(logits, labels[:, None], label_logits[:, None], axis=1)
        np.put_along_axis(logits, classes.astype(np.int64), kept, axis=1)
        return logits

    def require_temperature(self, temperature: float) -> int:
        """Where the share of logits that were not kept is found at a temperature.

        Raises:
            CacheMissingError: if it is not there.
        """
        known = self.shape.rest_temperatures
        if temperature not in known:
            raise CacheMissingError(
                f"teacher {self.name} was cached with its {self.shape.keep} largest logits, and the sum of the others "
                f"at the temperatures {', '.join(map(str, known))}, but {temperature:g} is asked for: choose one of "
                "these (`temperature`), or cache it anew with it (`rest_temperatures`) in another folder"
            )
        return known.index(temperature)

    def block(self, name: str, slot: int, block: int) -> Array:
        """A data set's answers for the samples of one block, unchecked."""
        data: Array = self._arrays[name][slot, self.shape.rows(block)]
        return data

    def is_sound(self, name: str, slot: int, block: int) -> bool:
        """Whether a block was written and is what its ledger entry says."""
        entry = int(self._arrays[f"ledger/{name}"][slot, block])
        return entry == ledger_entry(name, slot, block, self.block(name, slot, block))

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
        """Check every block of every data set; raises as `read` does."""
        for place in self.blocks():
            self._check(*place)

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

    def content_sha256(self, slots: int) -> str:
        """Digest of what was answered in the first slots: of the ledger of the entropies, and so of every entropy.

        A file that grew keeps it.
        """
        return hashlib.sha256(self.ledger("entropy")[:slots].tobytes()).hexdigest()

    def place(self, name: str, slot: int, block: int) -> str:
        """A block in words."""
        rows = self.shape.rows(block)
        return f"{name} of teacher {self.name}, slot {slot}, rows {rows.start} to {rows.stop - 1}"

    def _require_labels(self) -> None:
        labels = self.labels
        digest = hashlib.sha256(labels.tobytes()).hexdigest()
        inside = labels.min() >= 0 and labels.max() < self.shape.classes
        if not inside or digest != self.provenance.identity["data"]["labels_sha256"]:
            raise CacheDamagedError(
                f"the labels in {self.path} are not those of its provenance: remove it and make it again"
            )

    def _check(self, name: str, slot: int, block: int) -> None:
        if self.is_sound(name, slot, block):
            return
        place = self.place(name, slot, block)
        if self.is_partial and not self.is_written(name, slot, block):
            raise CacheIncompleteError(f"{self.path} lacks {place}: run the same `cache_teachers` again to go on")
        what = "do not match their checksum" if self.is_written(name, slot, block) else "were lost"
        raise CacheDamagedError(
            f"{self.path} is damaged: {place} {what}; run the same `cache_teachers` again, which redoes them"
        )
