"""Forging a cache file: change what its digest covers, and compute the digest anew, as a hostile writer would."""

import json
import os
from pathlib import Path
from typing import Any

import demkd.cache.user_block as block
from demkd.cache import CacheDamagedError


def user_block(data: bytes) -> tuple[bytes, dict[str, Any], int]:
    """The magic line, the contents and the position behind them."""
    magic, _, length, _ = data.split(b"\n", 3)
    start = len(magic) + 1 + 65 + len(length) + 1
    return magic, json.loads(data[start : start + int(length)]), start + int(length) + 1


def with_contents(data: bytes, tables: object) -> bytes:
    """The file with other contents, its digest not yet computed."""
    text = tables if isinstance(tables, bytes) else json.dumps(tables, separators=(",", ":")).encode()
    magic, _, end = user_block(data)
    front = b"%s\n%s\n%d\n%s\n" % (magic, b"0" * 64, len(text), text)
    return front + data[len(front) :] if len(front) > end else front + bytes(end - len(front)) + data[end:]


def reseal(path: Path) -> bool:
    """Compute the digest of whatever the file says of itself; false if that makes no sense even to a forger."""
    with path.open("r+b") as file:
        try:
            header, text = block.parse(path, file.read(1 << 20))
            size = block.size_for(len(header.contents))
            block.check_extents(path, header, size)
        except CacheDamagedError:
            return False
        digest = block.digest(file.fileno(), header, text, size)
        os.pwrite(file.fileno(), digest.encode(), len(b"demkd cache, format 2\n"))
    return True
