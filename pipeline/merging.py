"""Making one file of each teacher's shards."""

from collections.abc import Sequence
from pathlib import Path

from demkd.cache.errors import CacheMissingError
from demkd.cache.merging import merge_teacher
from demkd.cache.shards import cache_file, files_by_teacher
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import MergedTeacher, MergeReport


def merge(folder: Path, teachers: Sequence[str] | None, progress: Progress) -> MergeReport:
    """Make one file of the shards of some teachers, or of all.

    Raises:
        CacheMissingError: if there is no such teacher.
        CacheError: as `merge_teacher`; teachers before that are merged, and the same call goes on.
    """
    known = files_by_teacher(folder)
    chosen = list(known) if teachers is None else list(teachers)
    for name in chosen:
        if name not in known:
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}; it has {', '.join(known) or 'none'}")
    if not chosen:
        raise CacheMissingError(f"there is no cache in {folder}: make one with `cache_teachers`")
    return MergeReport(folder=folder, teachers=tuple(_merge(folder, name, progress) for name in chosen))


def _merge(folder: Path, name: str, progress: Progress) -> MergedTeacher:
    total = sum(path.stat().st_size for path in files_by_teacher(folder)[name])
    with progress.task(f"merging {name}", total=total, unit="bytes") as task:
        shards = merge_teacher(folder, name, advance=task.advance)
    return MergedTeacher(name=name, shards=shards, file_bytes=cache_file(folder, name).stat().st_size)
