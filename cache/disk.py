"""Bytes that reach the disk, whole or not at all, and a full disk in words."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from demkd.cache.errors import CacheSpaceError

Array = NDArray[Any]


@contextmanager
def disk_errors_in_words(path: Path, *, remove: bool = False) -> Iterator[None]:
    """Say a full disk in words; other errors pass through.

    Args:
        remove: whatever the error, take away what was written of the file.

    Raises:
        CacheSpaceError: instead of an OSError that means that there is no room.
    """
    try:
        yield
    except OSError as error:
        if remove:
            path.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path.parent).free
        raise CacheSpaceError(
            f"the disk cannot hold {path.name} ({os.strerror(error.errno)}; {free:,} bytes are free at {path.parent}): "
            "free some space or choose another folder, then run the same command again"
        ) from error


def reserve(descriptor: int, size: int) -> None:
    """Take the whole file's space now, so that a full disk is an error in the first second."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    # macOS has no such call: free space is all that can be checked.
    statistics = os.fstatvfs(descriptor)
    if statistics.f_bavail * statistics.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size)


def sync_data(descriptor: int) -> None:
    """Bring a file's bytes to the disk; macOS has no `fdatasync`, and syncs the file's times too."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def write_fully(descriptor: int, data: Array | bytes | memoryview, offset: int) -> None:
    """`pwrite` until everything is written: one call may write less than it is asked to."""
    rest = memoryview(data).cast("B")  # type: ignore[arg-type]
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def replace_durably(source: Path, target: Path) -> None:
    """Rename a synced file over another, and bring the rename itself to the disk."""
    source.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
