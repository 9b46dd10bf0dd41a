"""Files on disk: complete writes, a full disk as one sentence, and one writer per file."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from demkd.cache.errors import CacheBusyError, CacheDamagedError, CacheSpaceError

_LOCK_TRIES, _SECONDS_BETWEEN = 3, 0.01  # `lock_owner` holds a lock for a moment


@contextmanager
def disk_errors_in_words(path: Path, *, remove: bool = False) -> Iterator[None]:
    """Turn a full disk into one sentence, a CacheSpaceError; other errors pass. `remove` removes the file after any."""
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
    """Reserve a file's space, so that a full disk is an error in the first second."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    # macOS has no such call: free space is all that can be checked.
    statistics = os.fstatvfs(descriptor)
    if statistics.f_bavail * statistics.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size)


def sync_data(descriptor: int) -> None:
    """Flush a file's bytes to the disk; macOS has no `fdatasync`."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def write_fully(descriptor: int, data: NDArray[Any] | bytes | memoryview, offset: int) -> int:
    """`pwrite` until everything is written: one call may write less than it is given. Returns the offset behind it."""
    rest = memoryview(data).cast("B")  # type: ignore[arg-type]
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
    return offset


def write_durably(target: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write beside a file, sync, then rename over it; if that fails, or the chunks do, the old file stays."""
    creating = target.with_name(target.name + ".creating")
    with disk_errors_in_words(creating, remove=True):
        creating.unlink(missing_ok=True)  # a link would be followed, and a pipe would block
        with creating.open("wb", buffering=0) as file:
            offset = 0
            for chunk in chunks:
                offset = write_fully(file.fileno(), chunk, offset)
            os.fsync(file.fileno())
        replace_durably(creating, target)


def replace_durably(source: Path, target: Path) -> None:
    """Rename a synced file over another, and flush the rename itself."""
    source.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, *, called: Path | None = None) -> Iterator[None]:
    """Hold `<path>.lock` while the block runs; the kernel frees it when its owner dies.

    The lock file is never deleted, or two processes could each hold a lock on a file of that name. Its content is
    only for the error message of the process that comes second, which names `called`, or the path.
    """
    with disk_errors_in_words(path):
        descriptor = _open_lock(path, os.O_RDWR | os.O_CREAT)
    try:
        for attempt in range(_LOCK_TRIES):
            if _try_lock(descriptor, fcntl.LOCK_EX):
                break
            if attempt == _LOCK_TRIES - 1:
                raise CacheBusyError(
                    f"{called or path} is being written by {_named(descriptor)}: wait for it, or stop it"
                )
            time.sleep(_SECONDS_BETWEEN)
        with contextlib.suppress(OSError):  # a full disk holds a lock, if not its owner's name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        # Closing is not enough: processes that were forked meanwhile, to decode images, have the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def lock_owner(path: Path) -> str | None:
    """Which process holds the lock of a file, such as `process 7 on host`; None if none does."""
    try:
        descriptor = _open_lock(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _try_lock(descriptor, fcntl.LOCK_SH) else _named(descriptor)
    finally:
        os.close(descriptor)


def _open_lock(path: Path, flags: int) -> int:
    """Open `<path>.lock`: never through a symlink, which would change another file, and never a FIFO, which waits."""
    lock = path.with_name(path.name + ".lock")
    if os.path.lexists(lock) and not stat.S_ISREG(lock.lstat().st_mode):
        raise CacheDamagedError(f"{lock} is no regular file: remove it")
    return os.open(lock, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def _try_lock(descriptor: int, kind: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    return False


def _named(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
