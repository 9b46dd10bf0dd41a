"""Files that spare work the next time, under the user's cache directory; safe to delete at any time."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def cache_file(kind: str, what: str, suffix: str) -> Path:
    """Where that which is known by `what` is kept: in XDG_CACHE_HOME, or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "demkd" / kind / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}{suffix}"


@contextlib.contextmanager
def draft_of(file: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the place of `file` once it is whole.

    Raises:
        OSError: where nothing can be written; what was there stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=file.suffix, delete=False) as draft:
        try:
            yield draft
            draft.flush()
            Path(draft.name).replace(file)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise
