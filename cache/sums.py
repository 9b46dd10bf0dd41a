"""SHA256SUMS, the digests of a packed cache's files: what was sent is what arrived. `sha256sum -c` reads it too.

Files vouch for themselves one by one; this says which ones there are together. Whoever changes a file of the folder
takes the list away first, because it is no longer true.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from demkd.cache.errors import CacheDamagedError
from demkd.cache.shards import WEIGHTS_NAME, cache_file, files_by_teacher
from demkd.untrusted import open_regular, read_regular

SUMS_NAME = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>[^/\\]+\.h5)")
_LARGEST = 1 << 24  # of the list; a hostile one has no end
_PIECE = 1 << 20


def sums_of(folder: Path, *, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    """The SHA-256 of every finished file of a cache, by name; nothing of one that cannot be read.

    Args:
        advance: called with the number of bytes read.
    """
    files = [path for paths in files_by_teacher(folder).values() for path in paths if path.suffix == ".h5"]
    weights = cache_file(folder, WEIGHTS_NAME)
    return {path.name: _digest(path, advance) for path in [*files, *([weights] if weights.exists() else [])]}


def sums_text(sums: Mapping[str, str]) -> str:
    """The list as `sha256sum` writes it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def read_sums(folder: Path) -> dict[str, str] | None:
    """The digests that a folder came with, by name; None if it came without.

    Raises:
        CacheDamagedError: if the list is something else.
    """
    path = folder / SUMS_NAME
    if not path.exists():
        return None
    found = None
    if path.is_file() and path.stat().st_size <= _LARGEST:
        lines = read_regular(path).decode(errors="replace").splitlines()
        found = [_LINE.fullmatch(line) for line in lines]
    if not found or not all(line and line["name"].isprintable() for line in found):
        raise CacheDamagedError(f"{path} is no list of digests: get the folder again, or remove this file")
    return {line["name"]: line["digest"] for line in found if line}


def forget_sums(folder: Path) -> None:
    """Take the list away, before a file changes."""
    (folder / SUMS_NAME).unlink(missing_ok=True)


def _digest(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                advance(len(piece))
    except OSError:
        return ""
    return digest.hexdigest()
