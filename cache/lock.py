"""One writer at a time: a lock that the kernel frees when its owner dies."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demkd.cache.disk import disk_errors_in_words
from demkd.cache.errors import CacheBusyError

_TRIES, _SECONDS_BETWEEN = 3, 0.01  # whoever only asks who holds a lock has it for a moment


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold `<path>.lock` while the block runs.

    The lock file is never deleted, or two processes could each hold a lock on a file of that name. What it contains
    is only for the message of the one that comes second.

    Raises:
        CacheBusyError: if another process holds it, with its host and process number.
        CacheSpaceError: if the disk has no room for another file's name.
    """
    lock = path.with_name(path.name + ".lock")
    with disk_errors_in_words(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not any(_take(descriptor, fcntl.LOCK_EX, wait=attempt > 0) for attempt in range(_TRIES)):
            raise CacheBusyError(f"{path} is being written by {_named(descriptor)}: wait for it, or stop it")
        with contextlib.suppress(OSError):  # a full disk holds a lock, if not its owner's name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        # Not left to the last close: processes that were forked meanwhile, to decode pictures, have the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def owner(path: Path) -> str | None:
    """Who holds the lock of a file, in words; None if nobody does."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _take(descriptor, fcntl.LOCK_SH, wait=False) else _named(descriptor)
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, *, wait: bool) -> bool:
    if wait:
        time.sleep(_SECONDS_BETWEEN)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(descriptor: int) -> str:
    """Its owner, as the lock file says."""
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
