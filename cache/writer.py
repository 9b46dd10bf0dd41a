"""A teacher's file made, grown and finished; `blocks.py` fills it.

A file is called `<teacher>.h5.partial` until all of it is written, checked and synced; then it is renamed. HDF5 only
creates it.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from demkd.cache.blocks import BlockWriter
from demkd.cache.disk import disk_errors_in_words, replace_durably
from demkd.cache.file import create_file, read_header
from demkd.cache.layout import CacheShape
from demkd.cache.lock import exclusive
from demkd.cache.provenance import Provenance
from demkd.cache.teacher_file import TeacherCache, cache_file, partial_file

_ANOTHER = "Choose another folder (`out`), or another name for the teacher (`teachers`), or remove the old file"


def require_same_origin(cached: TeacherCache, provenance: Provenance) -> None:
    """Refuse to add to a file that was made from something else.

    Raises:
        CacheMismatchError: naming every field that differs, with both values.
    """
    cached.provenance.require(provenance, cached=str(cached.path), cure=_ANOTHER)


class CacheWriter:
    """Makes the file of one teacher; a context manager that holds the file's lock.

        with CacheWriter(folder, "resnet20", shape=shape, provenance=provenance, labels=labels) as writer:
            for slot, block in writer.pending():
                writer.blocks.write(slot, block, {"logits": ..., "entropy": ..., ...})
            writer.finish()

    It goes on with what is there: a whole file that covers `shape` has nothing pending, a started one has the rest.
    A smaller one, or one with damaged blocks, is copied into a new one as far as it is sound; the new one replaces it
    when it is whole.

    Attributes:
        shape: on entry grown to cover what the file already has.
        whole: on entry whether the final file has all that is wanted; there are no `blocks` then.
    """

    blocks: BlockWriter

    def __init__(
        self, folder: Path, teacher: str, *, shape: CacheShape, provenance: Provenance, labels: NDArray[np.int64]
    ) -> None:
        """Prepare to write; nothing is touched before the `with` statement."""
        self.teacher = teacher
        self.shape = shape
        self.whole = False
        self._final = cache_file(folder, teacher)
        self._partial = partial_file(folder, teacher)
        self._provenance = provenance
        self._labels = labels
        self._lock = exclusive(self._final)

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
        if hasattr(self, "blocks"):
            self.blocks.close()
        self._lock.__exit__(kind, error, traceback)

    def pending(self) -> list[tuple[int, int]]:
        """The (slot, block) pairs that lack some data set, block after block."""
        return [] if self.whole else self.blocks.pending()

    def finish(self) -> None:
        """Check every block, sync, and give the file its final name.

        Raises:
            CacheIncompleteError: if a block is still pending.
            CacheDamagedError: if a block is not what was written.
        """
        if self.whole:
            return
        self.blocks.sync()
        TeacherCache(self._partial).check_all()
        with disk_errors_in_words(self._partial):
            replace_durably(self._partial, self._final)
        self.whole = True

    def _open(self) -> None:
        final = self._existing(self._final)
        started = self._existing(self._partial)
        if final and final.shape.covers(self.shape) and final.is_whole():
            self.whole, self.shape = True, final.shape
            return
        for found in (final, started):
            if found:
                self.shape = self.shape.union(found.shape)
        if not (started and started.shape == self.shape):
            self._create([found for found in (started, final) if found])
        header = read_header(self._partial)
        self.blocks = BlockWriter(self._partial, header, teacher=self.teacher, shape=self.shape)
        self.blocks.forget_torn_blocks()

    def _existing(self, path: Path) -> TeacherCache | None:
        """An own earlier file, refused if it was made from something else."""
        if not path.exists():
            return None
        cached = TeacherCache(path)
        require_same_origin(cached, self._provenance)
        return cached

    def _create(self, sources: list[TeacherCache]) -> None:
        """Create the partial file, with every sound block that an earlier file already has."""
        creating = self._partial.with_name(self._final.name + ".creating")
        header = create_file(
            creating,
            sealed={"label": self._labels.astype("<i8")},
            opened={**self.shape.answers(), **self.shape.ledgers()},
            provenance=self._provenance,
            block_rows=self.shape.block_rows,
        )
        blocks = BlockWriter(creating, header, teacher=self.teacher, shape=self.shape)
        try:
            for source in sources:
                _copy_sound_blocks(source, blocks)
            blocks.sync()
        finally:
            blocks.close()
        with disk_errors_in_words(creating):
            replace_durably(creating, self._partial)


def _copy_sound_blocks(earlier: TeacherCache, blocks: BlockWriter) -> None:
    for slot in range(earlier.shape.num_views):
        for block in range(earlier.shape.blocks):
            lacking = [name for name in blocks.missing(slot, block) if name in earlier.shape.answers()]
            sound = {name: earlier.block(name, slot, block) for name in lacking if earlier.is_sound(name, slot, block)}
            blocks.put(slot, block, sound)
