"""The user block in front of HDF5's own bytes: what a file holds, and a digest of all that must never change.

    magic line with the format version, SHA-256, length, contents (JSON: every data set's offset, shape and type)

The digest covers the contents' text and every byte behind the user block that is in no open data set.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demkd.cache.errors import CacheDamagedError
from demkd.cache.layout import FORMAT_VERSION, Extent, Header

_MAGIC = b"demkd cache, format "
_SMALLEST = 4096
_LARGEST_METADATA = 1 << 24
_LARGEST_NUMBER = 1 << 62
_MOST_DIMENSIONS = 8
_TYPES = frozenset({"<f2", "<f4", "<u2", "<u4", "<u8", "<i8", "|u1"})
LARGEST = 1 << 20


def contents_json(header: Header) -> bytes:
    """The contents' text, which the digest covers."""
    contents = {name: [extent.offset, list(extent.shape), extent.dtype] for name, extent in header.contents.items()}
    tables = {"size": header.size, "block_rows": header.block_rows, "contents": contents}
    return json.dumps(tables, separators=(",", ":")).encode()


def compose(text: bytes, sha256: str) -> bytes:
    """The user block as it is written."""
    return b"%s%d\n%s\n%d\n%s\n" % (_MAGIC, FORMAT_VERSION, sha256.encode(), len(text), text)


def size_for(data_sets: int) -> int:
    """A power of two, as HDF5 asks, with room for the contents: a data set's entry is under 256 bytes."""
    return max(_SMALLEST, 1 << (256 * (data_sets + 1) - 1).bit_length())


def parse(path: Path, data: bytes) -> tuple[Header, bytes]:
    """The header as written, not yet believed, and the exact text that its digest covers.

    Raises:
        CacheDamagedError: if this is no user block, or one of another format.
    """
    foreign = CacheDamagedError(f"{path} is not a cache file of demkd, or its first bytes were overwritten")
    magic, _, rest = data.partition(b"\n")
    if not magic.startswith(_MAGIC):
        raise foreign
    version = magic.removeprefix(_MAGIC).decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise CacheDamagedError(
            f"{path} has format {version[:20]}, and this version of demkd reads format {FORMAT_VERSION}: "
            "make the cache again, or use the version that wrote it"
        )
    try:
        sha256, length, rest = rest.split(b"\n", 2)
        text = rest[: int(length)]
        tables = json.loads(text)
        contents = {_printable(name): _parse_extent(*entry) for name, entry in tables["contents"].items()}
        size, block_rows = _natural(tables["size"]), _natural(tables["block_rows"])
        return Header(size=size, block_rows=block_rows, contents=contents, sha256=sha256.decode()), text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise foreign from None


def check_extents(path: Path, header: Header, start: int) -> None:
    """Every data set lies in the file, none over another, none over the user block.

    Raises:
        CacheDamagedError: otherwise.
    """
    extents = sorted(header.contents.values())
    apart = all(before.end <= after.offset for before, after in itertools.pairwise(extents))
    inside = not extents or (extents[0].offset >= start and extents[-1].end <= header.size)
    small = header.size - sum(extent.end - extent.offset for extent in extents) <= _LARGEST_METADATA
    origin = header.contents.get("provenance")
    modest = origin is not None and origin.dtype == "|u1" and origin.end - origin.offset <= _LARGEST_METADATA
    if not (apart and inside and small and modest):
        raise CacheDamagedError(
            f"{path} describes data that it cannot hold: the file was altered; remove it and make it again"
        )


def digest(descriptor: int, header: Header, text: bytes, start: int) -> str:
    """SHA-256 of the contents' text and of every byte from `start` that is in no open data set."""
    found = hashlib.sha256(text)
    for first, end in _sealed_ranges(header, start):
        for offset in range(first, end, 1 << 20):
            found.update(os.pread(descriptor, min(1 << 20, end - offset), offset))
    return found.hexdigest()


def _sealed_ranges(header: Header, begin: int) -> Iterator[tuple[int, int]]:
    position = begin
    for extent in header.open_extents():
        yield position, extent.offset
        position = extent.end
    yield position, header.size


def _parse_extent(offset: Any, shape: Any, dtype: Any) -> Extent:
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or dtype not in _TYPES:
        raise ValueError((shape, dtype))
    return Extent(_natural(offset), tuple(_natural(n) for n in shape), dtype)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 < value < _LARGEST_NUMBER:
        raise ValueError(value)
    return value


def _printable(name: str) -> str:
    """A name that may stand in a message."""
    if not name.isprintable() or len(name) > 200:
        raise ValueError(name)
    return name
