"""A teacher's file, or a shard of it, made, grown and finished; `blocks.py` fills it.

A file is called `<its name>.partial` until all of it is written, checked and synced; then it is renamed. HDF5 only
creates it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from demkd.cache.blocks import BlockWriter
from demkd.cache.disk import disk_errors_in_words, replace_durably
from demkd.cache.errors import CacheDamagedError, CacheMismatchError
from demkd.cache.file import create_file
from demkd.cache.layout import CacheShape
from demkd.cache.lock import exclusive
from demkd.cache.provenance import Provenance
from demkd.cache.shards import WHOLE, Shard, cache_file, files_by_teacher, partial_file, shard_count, split_name
from demkd.cache.sums import forget_sums
from demkd.cache.teacher_file import TeacherFile, open_if_there

_ANOTHER = "Choose another folder (`out`), or another name for the teacher (`teachers`), or remove the old file"


def require_same_origin(cached: TeacherFile, provenance: Provenance) -> None:
    """Refuse to add to a file that was made from something else.

    Raises:
        CacheMismatchError: naming every field that differs, with both values.
    """
    cached.provenance.require(provenance, cached=str(cached.path), cure=_ANOTHER)


def require_continuable(cached: TeacherFile, provenance: Provenance, shape: CacheShape) -> None:
    """The same, of a file that will go on: it must also be of the same samples, which depend on its blocks.

    Raises:
        CacheMismatchError, CacheDamagedError: if it is not.
    """
    require_same_origin(cached, provenance)
    if (cached.shape.first_sample, cached.shape.samples) != (shape.first_sample, shape.samples):
        raise CacheDamagedError(f"{cached.path} has blocks of {cached.shape.block_rows} rows: remove it")


class CacheWriter:
    """Makes the file of one teacher, or one of its shards; a context manager that holds the file's lock.

        with CacheWriter(folder, "resnet20", shape=shape, provenance=provenance, labels=labels) as writer:
            for slot, block in writer.pending():
                writer.blocks.write(slot, block, {"logits": ..., "entropy": ..., ...})
            writer.finish()

    It goes on with what is there: a whole file that covers `shape` has nothing pending, a started one has the rest.
    A smaller one, or one with damaged blocks, is copied into a new one as far as it is sound; the new one replaces it
    when it is whole.

    Attributes:
        shape: of this file; on entry grown to cover what it already has.
        whole: on entry whether the final file has all that is wanted; there are no `blocks` then.
    """

    blocks: BlockWriter

    def __init__(
        self,
        folder: Path,
        teacher: str,
        *,
        shape: CacheShape,
        provenance: Provenance,
        labels: NDArray[np.int64],
        shard: Shard = WHOLE,
    ) -> None:
        """Prepare to write; nothing is touched before the `with` statement.

        Args:
            shape, provenance, labels: of the whole.
            shard: which part of it to write.
        """
        samples = shard.samples(shape.samples, shape.block_rows)
        self.teacher = teacher
        self.shape = shape.part(shard)
        self.whole = False
        self._folder, self._shard = folder, shard
        self._final = cache_file(folder, teacher, shard)
        self._partial = partial_file(folder, teacher, shard)
        self._provenance = replace(provenance, rows=shard.rows_table(shape.samples, shape.block_rows))
        self._labels = labels[samples.start : samples.stop]
        self._lock = exclusive(self._final)
        self._has_lock = False

    def lock(self) -> None:
        """Take the lock now, and do the rest on entry; `release` gives it back.

        Raises:
            CacheBusyError: if another process writes this file.
        """
        with disk_errors_in_words(self._final):
            self._final.parent.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        self._has_lock = True

    def release(self) -> None:
        if self._has_lock:
            self._has_lock = False
            self._lock.__exit__(None, None, None)

    def __enter__(self) -> Self:
        """Take the lock, refuse a stale file, and create, grow or go on with the file.

        Raises:
            CacheBusyError: if another process writes this file.
            CacheMismatchError: if the file there was made from something else.
            CacheDamagedError: if the file there is damaged.
            CacheSpaceError: if the disk cannot hold the new file.
        """
        if not self._has_lock:
            self.lock()
        try:
            self._open()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if hasattr(self, "blocks"):
            self.blocks.close()
        self.release()

    def pending(self) -> list[tuple[int, int]]:
        """The (slot, block) pairs that lack some data set, block after block."""
        return [] if self.whole else self.blocks.pending()

    def finish(self) -> None:
        """Check every block, sync, and give the file its final name.

        Raises:
            CacheIncompleteError: if a block is still pending.
            CacheDamagedError: if a block is not what was written.
            CacheMismatchError: if another process wrote a shard from something else meanwhile.
        """
        if self.whole:
            return
        self._require_fitting_shards()
        self.blocks.sync()
        TeacherFile(self._partial).check_all()
        forget_sums(self._folder)
        with disk_errors_in_words(self._partial):
            replace_durably(self._partial, self._final)
        self.whole = True

    def earlier(self) -> Iterator[TeacherFile]:
        """The files that have answers of this teacher already: this one, and other shards."""
        paths = [self._partial, *files_by_teacher(self._folder).get(self.teacher, ())]
        yield from filter(None, map(open_if_there, paths))

    def _open(self) -> None:
        self._require_fitting_shards()
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
        self.blocks = BlockWriter(self._partial, teacher=self.teacher, shape=self.shape)
        self.blocks.forget_torn_blocks()

    def _existing(self, path: Path) -> TeacherFile | None:
        """An own earlier file, refused if it was made from something else."""
        cached = open_if_there(path)
        if cached is not None:
            require_continuable(cached, self._provenance, self.shape)
        return cached

    def _require_fitting_shards(self) -> None:
        """Look at one other shard, which another process made meanwhile: of something else, it must not stand beside.

        Raises:
            CacheMismatchError: if it does not fit, or the teacher is in another number of files by now.
        """
        count = shard_count(self._folder, self.teacher)
        if count not in (None, self._shard.count):
            raise CacheMismatchError(
                f"teacher {self.teacher} in {self._folder} is in {count} files by now, and not in {self._shard.count}: "
                "run the same `cache_teachers` again"
            )
        own = (self._final.name, self._partial.name)
        for path in files_by_teacher(self._folder).get(self.teacher, ()) if self._shard != WHOLE else ():
            other = open_if_there(path) if path.name not in own and split_name(path.name)[1] != WHOLE else None
            if other is not None:
                require_same_origin(other, self._provenance)
                return

    def _create(self, sources: list[TeacherFile]) -> None:
        """Create the partial file, with every sound block that an earlier file already has."""
        creating = self._partial.with_name(self._final.name + ".creating")
        provenance = self._provenance.remembering([source.provenance for source in sources])
        make_file(creating, shape=self.shape, provenance=provenance, labels=self._labels, sources=sources)
        with disk_errors_in_words(creating):
            replace_durably(creating, self._partial)


def make_file(
    path: Path,
    *,
    shape: CacheShape,
    provenance: Provenance,
    labels: NDArray[np.int64],
    sources: Sequence[TeacherFile],
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Create a teacher's file, with every sound block of some samples' that other files have, and sync it.

    Args:
        shape, provenance, labels: of the file.
        sources: with the same blocks of the whole.
        advance: called with the number of bytes copied.

    Raises:
        CacheSpaceError: if the disk cannot hold it.
    """
    create_file(
        path,
        sealed={"label": labels.astype("<i8")},
        opened={**shape.answers(), **shape.ledgers()},
        provenance=provenance,
        block_rows=shape.block_rows,
    )
    blocks = BlockWriter(path, teacher=split_name(path.name)[0], shape=shape)
    try:
        for source in sources:
            _copy_sound_blocks(source, blocks, advance)
        blocks.sync()
    finally:
        blocks.close()


def _copy_sound_blocks(earlier: TeacherFile, blocks: BlockWriter, advance: Callable[[int], None]) -> None:
    ahead = earlier.shape.first_block - blocks.shape.first_block
    for slot in range(earlier.shape.num_views):
        for block in range(earlier.shape.blocks):
            lacking = [name for name in blocks.missing(slot, ahead + block) if name in earlier.shape.answers()]
            sound = {name: earlier.block(name, slot, block) for name in lacking if earlier.is_sound(name, slot, block)}
            blocks.put(slot, ahead + block, sound)
            advance(sum(data.nbytes for data in sound.values()))
