"""One file made of a teacher's shards: the bytes that one process would have written.

The shards stay until the file is whole, checked and has its name; from then on it is the teacher. A merge that was
killed copies again, or only removes what was left over.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from demkd.cache.disk import disk_errors_in_words, replace_durably
from demkd.cache.errors import CacheIncompleteError
from demkd.cache.lock import exclusive
from demkd.cache.shards import Shard, all_shards, cache_file, left_over, partial_file, shard_count, split_name
from demkd.cache.sums import forget_sums
from demkd.cache.teacher import TeacherCache, is_whole, state_in_words
from demkd.cache.teacher_file import TeacherFile
from demkd.cache.writer import make_file

_FIRST = "run the same `cache_teachers` again to finish it, then merge"


def merge_teacher(folder: Path, name: str, *, advance: Callable[[int], None] = lambda _: None) -> int:
    """Make one file of a teacher's shards, and remove them; how many there were, 0 if it is in one file already.

    Args:
        advance: called with the number of bytes copied.

    Raises:
        CacheBusyError: if another process writes the teacher.
        CacheIncompleteError: if a shard is not whole, or growing.
        CacheDamagedError, CacheMismatchError: if a shard is not what it should be.
        CacheSpaceError: if the disk cannot hold the file beside the shards.
    """
    final = cache_file(folder, name)
    if not is_whole(folder, name):  # before the locks are ours, which the sentence tells of
        raise CacheIncompleteError(f"{state_in_words(folder, name)}: {_FIRST}")
    with contextlib.ExitStack() as locks:
        locks.enter_context(exclusive(final))
        remains = left_over(folder, name)
        if not final.exists():
            shards = all_shards(shard_count(folder, name) or 1)
            for shard in shards:
                locks.enter_context(exclusive(cache_file(folder, name, shard)))
            remains = _merge(folder, name, shards, advance)
        if remains:
            forget_sums(folder)
        for path in remains:
            path.unlink(missing_ok=True)
    return len({split_name(path.name)[1] for path in remains})


def _merge(folder: Path, name: str, shards: list[Shard], advance: Callable[[int], None]) -> list[Path]:
    """Write the whole file; the shards that it replaces."""
    if growing := [path for shard in shards if (path := partial_file(folder, name, shard)).exists()]:
        raise CacheIncompleteError(f"{growing[0]} is growing: {_FIRST}, or remove it")
    teacher = TeacherCache.open(folder, name)
    for file in teacher.files:
        if (file.shape.num_views, file.shape.features) != (teacher.shape.num_views, teacher.shape.features):
            raise CacheIncompleteError(f"{file.path} has more views or features than other shards: {_FIRST}")
    final = cache_file(folder, name)
    creating = final.with_name(final.name + ".creating")
    make_file(
        creating,
        shape=teacher.shape,
        provenance=teacher.provenance,
        labels=teacher.labels,
        sources=teacher.files,
        advance=advance,
    )
    for file in teacher.files:
        file.check_all()  # a damaged block was not copied: say which
    TeacherFile(creating).check_all()
    with disk_errors_in_words(creating):
        replace_durably(creating, final)
    return [file.path for file in teacher.files]
