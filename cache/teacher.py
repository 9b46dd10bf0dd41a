"""A teacher's answers, for reading, in however many files: one, memory-mapped; or shards, whose rows are gathered.

V slots, N samples, C classes, B in a batch. Pickled and forked like its files.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheMissingError
from demkd.cache.layout import CacheShape
from demkd.cache.lock import owner
from demkd.cache.shards import Shard, all_shards, cache_file, numbers_in_words, partial_file, shard_count
from demkd.cache.teacher_file import TeacherFile, open_if_there, require_labels

Array = NDArray[Any]


class Rows:
    """A data set's answers in one slot, (N, ...), as the files have them: `parts` are mapped, rows are taken of all."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Array:
        """Some rows, (B, ...)."""
        if len(self.parts) == 1:
            found: Array = self.parts[0][rows]
            return found
        wanted = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
        of = np.searchsorted(self._starts, wanted, side="right") - 1
        taken = np.empty((len(wanted), *self.shape[1:]), self.parts[0].dtype)
        for number in np.unique(of):
            mine = of == number
            taken[mine] = self.parts[number][wanted[mine] - self._starts[number]]
        return taken

    def whole(self) -> Array:
        """All of it: mapped where it is in one file, else in memory."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)


class TeacherCache:
    """One teacher's answers by slot, checked whenever they are taken.

    Attributes:
        files: in the order of the samples.
        shape: of all answers; as many views and those features that every file has.
        provenance: the identity is that of all files, the notes are the first one's.
    """

    def __init__(self, files: Sequence[TeacherFile]) -> None:
        """Put the files of one teacher together.

        Raises:
            CacheMismatchError: if one was made from something else than the first.
            CacheDamagedError: if together they are not what the provenance says.
        """
        first = files[0]
        self.files, self.name, self.path = tuple(files), first.name, first.path
        for other in files[1:]:
            first.provenance.require(
                other.provenance,
                cached=f"{first.path} does not fit {other.path}: it",
                cure="Remove the one that is wrong, and run the same `cache_teachers` again",
            )
        self.provenance = replace(first.provenance, rows=None)
        self.shape = _common_shape(files)
        if len(files) > 1:
            require_labels(self.path, self.labels, self.provenance)

    @classmethod
    def open(cls, folder: Path, name: str) -> "TeacherCache":
        """Open a teacher that is whole.

        Raises:
            CacheMissingError: if it, or one of its shards, is not there.
            CacheMismatchError, CacheDamagedError: as the constructor.
        """
        count = shard_count(folder, name)
        if count is None:
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}")
        paths = [cache_file(folder, name, shard) for shard in all_shards(count)]
        if missing := [path for path in paths if not path.exists()]:
            raise CacheMissingError(f"{state_in_words(folder, name)} ({missing[0].name} is not there)")
        return cls([TeacherFile(path) for path in paths])

    def __reduce__(self) -> tuple[type["TeacherCache"], tuple[tuple[TeacherFile, ...]]]:
        return TeacherCache, (self.files,)

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,), as the data set said when the teacher was asked."""
        return np.concatenate([file.labels for file in self.files]) if len(self.files) > 1 else self.files[0].labels

    @property
    def file_bytes(self) -> int:
        return sum(file.header.size for file in self.files)

    def check(self, name: str, slot: int) -> None:
        """Check a data set's answers in one slot; raises as `TeacherFile.check`."""
        for file in self.files:
            file.check(name, slot)

    def rows(self, name: str, slot: int) -> Rows:
        """A data set's answers in one slot, unchecked."""
        return Rows([file.slot(name, slot) for file in self.files])

    def read(self, name: str, slot: int) -> Array:
        """A data set's answers for every sample in one slot, (N, ...), checked; mapped where they are in one file.

        Raises:
            CacheDamagedError, CacheIncompleteError, CacheMissingError: as `check`.
        """
        self.check(name, slot)
        return self.rows(name, slot).whole()

    def answer(self, name: str, slot: int, index: int) -> Array:
        """One sample's answer in one slot, from a checked block."""
        file = next(file for file in self.files if index < file.shape.first_sample + file.shape.samples)
        block, row = divmod(index - file.shape.first_sample, file.shape.block_rows)
        file.check_block(name, slot, block)
        answer: Array = file.block(name, slot, block)[row]
        return answer

    def block(self, name: str, slot: int, block: int) -> Array:
        """A data set's answers for the samples of one block of the whole, checked; raises as `check`."""
        file = next(file for file in self.files if block < file.shape.first_block + file.shape.blocks)
        file.check_block(name, slot, block - file.shape.first_block)
        return file.block(name, slot, block - file.shape.first_block)

    def logits(self, slot: int, rows: slice | NDArray[np.int64], *, temperature: float) -> Array:
        """Logits (B, C) of some samples in a slot, unchecked, for a softmax at a temperature.

        All of them as they were answered; or, where the k largest and the label's are kept, these, and for the others
        one number that gives them together the share that they had, spread evenly.

        Raises:
            CacheMissingError: if the share of the others was not kept at this temperature.
        """
        kept = self.rows("logits", slot)[rows]
        if self.shape.keep is None:
            return kept
        columns = self.require_temperature(temperature)
        classes, labels = self.rows("classes", slot)[rows], self.labels[rows]
        label_logits = self.rows("label_logit", slot)[rows]
        outside = ~(classes == labels[:, None]).any(1)  # whether the label is kept beside the k largest
        others = self.shape.classes - self.shape.keep - outside.astype(np.int64)  # (B,), how many
        mean = temperature * (self.rows("rest", slot)[rows][:, columns] - np.log(np.maximum(others, 1)))
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

    def require_softmax(self) -> None:
        """Check that the logits give a softmax at temperature 1: the others' share is not the same at another one.

        Raises:
            CacheMissingError: if they do not.
        """
        if self.shape.keep is not None and 1.0 not in self.shape.rest_temperatures:
            known = ", ".join(f"{one:g}" for one in self.shape.rest_temperatures)
            raise CacheMissingError(
                f"teacher {self.name} was cached with its {self.shape.keep} largest logits, and the sum of the others "
                f"at the temperatures {known}, so that its probabilities are not known: cache it anew with 1 among "
                "them (`rest_temperatures`) in another folder"
            )

    def content_sha256(self, slots: int) -> str:
        """Digest of what was answered in the first slots: of the ledger of the entropies, and so of every entropy.

        Whether in one file or in shards, it is the same; a teacher that grew keeps it.
        """
        ledgers = [file.ledger("entropy")[:slots] for file in self.files]
        return hashlib.sha256(np.concatenate(ledgers, axis=1).tobytes()).hexdigest()


def _common_shape(files: Sequence[TeacherFile]) -> CacheShape:
    """What all files of a teacher have, of all samples.

    Raises:
        CacheDamagedError: if they differ in more than views and features, or are no sequence of shards.
    """
    first = files[0]
    features = {
        layer: shape
        for layer, shape in first.shape.features.items()
        if all(file.shape.features.get(layer) == shape for file in files)
    }
    common = replace(
        first.shape,
        num_views=min(file.shape.num_views for file in files),
        samples=first.provenance.samples,
        features=features,
    )
    for number, file in enumerate(files):
        same = replace(common, samples=file.shape.samples, first_sample=file.shape.first_sample)
        own = replace(file.shape, num_views=common.num_views, features=features)
        if own != same or file.shard != Shard(count=len(files), number=number):
            raise CacheDamagedError(
                f"{file.path} holds other answers than {first.path}: remove the one that is wrong, and run the same "
                "`cache_teachers` again"
            )
    return common


def is_whole(folder: Path, name: str) -> bool:
    """Whether every file of a teacher has its final name."""
    count = shard_count(folder, name)
    return count is not None and all(cache_file(folder, name, shard).exists() for shard in all_shards(count))


def state_in_words(folder: Path, name: str) -> str:
    """How far a teacher is that is not whole: which of its shards are, and who writes the others."""
    count = shard_count(folder, name) or 1
    if count == 1:
        started = open_if_there(partial_file(folder, name))
        return f"teacher {name} in {folder} is {started.progress() if started else 0.0:.0%} done"
    lacking = [shard for shard in all_shards(count) if not cache_file(folder, name, shard).exists()]
    whole = f"{count - len(lacking)} of {count} shards are whole"
    return f"teacher {name} in {folder} is not whole: {'; '.join([whole, *shards_in_words(folder, name, lacking)])}"


def shards_in_words(folder: Path, name: str, shards: Iterable[Shard]) -> list[str]:
    """What becomes of some shards that are not whole: those of the same fate in one phrase."""
    fates: dict[str, list[int]] = {}
    for shard in shards:
        fates.setdefault(_fate(folder, name, shard), []).append(shard.number)
    return [
        f"{numbers_in_words(numbers)} {'is' if len(numbers) == 1 else 'are'} {fate}" for fate, numbers in fates.items()
    ]


def _fate(folder: Path, name: str, shard: Shard) -> str:
    if holder := owner(cache_file(folder, name, shard)):
        return f"being written by {holder}"
    started = open_if_there(partial_file(folder, name, shard))
    return f"{started.progress():.0%} done" if started else "missing"
