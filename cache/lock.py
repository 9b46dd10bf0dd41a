"""One writer at a time: a lock that the kernel frees when its owner dies."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demkd.cache.disk import disk_errors_in_words
from demkd.cache.errors import CacheBusyError


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise CacheBusyError(f"{path} is being written by {owner}: wait for it, or stop it") from None
        with contextlib.suppress(OSError):  # a full disk holds a lock, if not its owner's name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
