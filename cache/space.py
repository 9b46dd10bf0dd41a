"""What a run of stage one would add to a cache: bytes and answers, without writing anything."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from demkd.cache.errors import CacheSpaceError
from demkd.cache.file import file_bytes
from demkd.cache.layout import CacheShape
from demkd.cache.provenance import Provenance
from demkd.cache.shards import WHOLE, Shard, cache_file, files_by_teacher, partial_file
from demkd.cache.teacher_file import TeacherFile, open_if_there
from demkd.cache.writer import require_continuable
from demkd.untrusted import real_path

_ROWS_BYTES = 100  # of a shard's provenance beside that of the whole


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePlan:
    """What remains to be done for one teacher's file, or for all its files.

    Attributes:
        shape: of what will be there, which also covers what is there.
        file_bytes: of the finished files, at most.
        new_bytes: that the disk must have free; 0 where a file is whole, or started and its space reserved.
        freed_bytes: of the files that will be replaced.
        pending: (sample, slot) pairs that lack an answer.
    """

    shape: CacheShape
    file_bytes: int
    new_bytes: int
    freed_bytes: int
    pending: int


def plan_teacher(
    folder: Path, teacher: str, *, shape: CacheShape, provenance: Provenance, shards: Sequence[Shard]
) -> FilePlan:
    """Compare what is wanted of a teacher, in these shards, with what is there; ledgers are believed, the writer
    checks them.

    Raises:
        CacheMismatchError: if a file there was made from something else.
        CacheDamagedError: if a file there is damaged.
    """
    plans = [_plan_file(folder, teacher, shard, shape=shape.part(shard), provenance=provenance) for shard in shards]
    return FilePlan(
        shape=replace(
            plans[0].shape,
            num_views=max(plan.shape.num_views for plan in plans),
            samples=shape.samples,
            first_sample=0,
        ),
        file_bytes=sum(plan.file_bytes for plan in plans),
        new_bytes=sum(plan.new_bytes for plan in plans),
        freed_bytes=sum(plan.freed_bytes for plan in plans),
        pending=sum(plan.pending for plan in plans),
    )


def _plan_file(folder: Path, teacher: str, shard: Shard, *, shape: CacheShape, provenance: Provenance) -> FilePlan:
    # In this order, because a started file may get its final name meanwhile.
    started = open_if_there(partial_file(folder, teacher, shard))
    final = open_if_there(cache_file(folder, teacher, shard))
    found = [cached for cached in (final, started) if cached]
    for cached in found:
        require_continuable(cached, provenance, shape)
    if final and final.shape.covers(shape):
        size = final.header.size
        return FilePlan(shape=final.shape, file_bytes=size, new_bytes=0, freed_bytes=0, pending=0)
    for cached in found:
        shape = shape.union(cached.shape)
    reserved = started is not None and started.shape == shape
    size = file_bytes(
        {**shape.answers(), **shape.ledgers(), "label": ((shape.samples,), "<i8")},
        len(provenance.to_json().encode()) + (0 if shard == WHOLE else _ROWS_BYTES),
    )
    return FilePlan(
        shape=shape,
        file_bytes=size,
        new_bytes=0 if reserved else size,
        freed_bytes=sum(cached.header.size for cached in found if not (reserved and cached is started)),
        pending=_pending(shape, found),
    )


def require_space(folder: Path, plans: Sequence[FilePlan]) -> int:
    """Check that the disk can hold every planned file and the weights; the free bytes.

    Files of all teachers are filled side by side, and an old one goes only when its successor is whole.

    Raises:
        CacheSpaceError: with what is needed and what is free.
    """
    free = shutil.disk_usage(_existing_parent(folder)).free
    peak = sum(plan.new_bytes for plan in plans)
    if peak:
        freed = sum(plan.freed_bytes for plan in plans)
        peak = max(peak, peak - freed + _weights_bytes(folder, plans))
    if peak > free:
        raise CacheSpaceError(
            f"the cache needs {peak:,} more bytes, and {free:,} are free at {folder}: free some space, choose another "
            "folder (`out`), or ask for fewer `views` or no `features`"
        )
    return free


def _weights_bytes(folder: Path, plans: Sequence[FilePlan]) -> int:
    """Of weights.h5, (K, V, N), for the planned teachers and as many as are there."""
    teachers = len(plans) + len(files_by_teacher(folder))
    shape = (teachers, max(plan.shape.num_views for plan in plans), plans[0].shape.samples)
    return file_bytes({"weights": (shape, "<f4")}, 0)


def _pending(shape: CacheShape, found: Sequence[TeacherFile]) -> int:
    done = {name: np.zeros((shape.num_views, shape.blocks), bool) for name in shape.answers()}
    for cached in found:
        for name in cached.shape.answers():
            done[name][: cached.shape.num_views] |= cached.ledger(name) != 0
    lacking = ~np.all(list(done.values()), axis=0)
    rows = np.array([shape.rows(block).stop - shape.rows(block).start for block in range(shape.blocks)])
    return int((lacking * rows).sum())


def _existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = real_path(folder)
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())
