"""Ways to spoil a file: by accident, by another program, and on purpose with every digest computed again."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from demkd.cache import CacheDamagedError
from demkd.cache.format import parse_header

Mutation = Callable[[Path, random.Random], None]

_NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 49, 50, 51, 65536, 4095, 4096, 2**31, 2**32 + 1, 2**62, 2**63, 2**64, 10**30, 10**400),
    *(1.0, 1e308, -0.5, True, False, None, "50", "", [], {}, [3, 50, 7], "<f2"),
]
_DTYPES: list[Any] = [
    *("<f2", ">f2", "<f4", "<f8", "|u1", "<u2", "<u8", "<i8", "|S9", "O", "|V8", "M8[s]", "", "nonsense", 3)
]
_DEEP = b"[" * 100_000


def user_block(data: bytes) -> tuple[bytes, dict[str, Any], int]:
    """The magic line, the tables and the position behind them."""
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
    """Compute the digest of what the header describes; false if that is impossible."""
    with path.open("r+b") as file:
        try:
            header = parse_header(path, file.read(1 << 20))
        except CacheDamagedError:
            return False
        digest = header.compute_digest(file.fileno())
        os.pwrite(file.fileno(), digest.encode(), len(b"demkd cache, format 4\n"))
    return True


def flip_bits(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def flip_a_bit_of_the_header(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(user_block(bytes(data))[2])] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def overwrite_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start, length = chance.randrange(len(data)), chance.choice([1, 4, 64, 512, 4096])
    patch = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])
    data[start : start + length] = patch[: len(data) - start]
    path.write_bytes(data)


def move_bytes(path: Path, chance: random.Random) -> None:
    """As a broken disk or copy does: a run of bytes in another place."""
    data = bytearray(path.read_bytes())
    length = chance.choice([8, 512, 4096])
    source, target = (chance.randrange(len(data) - length) for _ in range(2))
    data[target : target + length] = data[source : source + length]
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    keep = chance.choice([0, 1, 19, 22, 4095, 4096, len(data) - 1, chance.randrange(len(data))])
    path.write_bytes(data[:keep])


def extend(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.choice([1, 8, 4096])))


def randomize(path: Path, chance: random.Random) -> None:
    start = chance.choice([b"", b"demkd cache, format 4\n", b"\x89HDF\r\n\x1a\n", user_block(path.read_bytes())[0]])
    path.write_bytes(start + chance.randbytes(chance.choice([0, 10, 5000, 50_000])))


def make_foreign(path: Path, chance: random.Random) -> None:
    """HDF5 of another program, under the name of a cache's file."""
    path.unlink()
    with h5py.File(path, "w", userblock_size=chance.choice([0, 4096])) as file:
        for name in chance.sample(["logits", "entropy", "label", "provenance", "block_crc/logits", "weights"], 4):
            _foreign_item(file, name, chance)
    if chance.random() < 0.5:  # with a user block that begins as ours does
        data = path.read_bytes()
        path.write_bytes(b"demkd cache, format 4\n" + data[22:])


def _foreign_item(file: Any, name: str, chance: random.Random) -> None:
    kind = chance.randrange(7)
    if kind == 0:
        file[name] = h5py.ExternalLink("/etc/passwd", "/")
    elif kind == 1:
        file[name] = h5py.SoftLink("/nowhere")
    elif kind == 2:
        file.create_dataset(name, (chance.choice([0, 2**40]), 50, 7), "<f2", chunks=(1, 50, 7), maxshape=(None, 50, 7))
    elif kind == 3:
        file.create_dataset(name, data=np.array([file.ref, file.ref], h5py.ref_dtype))
    elif kind == 4:
        file.create_group(name)
    elif kind == 5:
        file.create_dataset(name, data=np.zeros((3, 50, 7), chance.choice(["<f8", ">f2", "<i1", "S5"])))
    else:
        file.create_dataset(name, data="text" * 10)


def spoil_contents(path: Path, chance: random.Random) -> None:
    """Impossible, absurd or sly values in the header, whose digest agrees."""
    data = path.read_bytes()
    _, tables, _ = user_block(data)
    for _ in range(chance.choice([1, 1, 2])):
        _spoil_tables(tables, chance)
    path.write_bytes(with_contents(data, tables))
    reseal(path)


def _spoil_tables(tables: dict[str, Any], chance: random.Random) -> None:
    contents = tables["contents"]
    if not contents:
        return
    name = chance.choice(sorted(contents))
    if not (isinstance(contents[name], list) and len(contents[name]) == 3):  # spoilt already
        return
    offset, shape, _ = contents[name]
    kind = chance.randrange(9)
    if kind == 0:
        tables[chance.choice(["size", "block_rows"])] = chance.choice(_NUMBERS)
    elif kind == 1:
        near = [offset + 8, offset + 4096] if isinstance(offset, int) else []
        contents[name][0] = chance.choice([*_NUMBERS, *near, tables["size"]])
    elif kind == 2 and isinstance(shape, list) and shape:
        shape[chance.randrange(len(shape))] = chance.choice(_NUMBERS)
    elif kind == 3:
        contents[name][1] = chance.choice([[], [1] * 9, [1] * 100, 7, None, [2**40, 2**40], [50], [3, 50, 7], [3, 50]])
    elif kind == 4:
        contents[name][2] = chance.choice(_DTYPES)
    elif kind == 5:
        del contents[name]
    elif kind == 6:
        strange = ["block_crc/provenance", "features/x", "a\nb", "\ud800", "x" * 5000, "block_crc/label", ""]
        contents[chance.choice(strange)] = contents[name]
    elif kind == 7:
        other = chance.choice(sorted(contents))
        contents[name], contents[other] = contents[other], contents[name]
    else:
        contents[name] = chance.choice([None, 3, [], [1, 2], "text", [1, [2], "<f2", 4]])


def replace_contents(path: Path, chance: random.Random) -> None:
    """A header that is no table of contents at all, with a length that fits."""
    data = path.read_bytes()
    texts = [b"", b"null", b"[]", b"{}", b"NaN", b'{"contents":{}}', b'{"size":NaN}', b"\xff\xfe", b'{"a":' * 900]
    text = chance.choice([*texts, _DEEP[:90_000]])
    spoilt = with_contents(data, text)
    if chance.random() < 0.3:
        spoilt = spoilt.replace(b"\n%d\n" % len(text), chance.choice([b"\n-5\n", b"\n9999999999\n", b"\nx\n"]), 1)
    path.write_bytes(spoilt)
    reseal(path)


def spoil_provenance(path: Path, chance: random.Random) -> None:
    """A provenance with an entry missing or absurd, in as many bytes as before; every digest agrees."""
    data = path.read_bytes()
    _, tables, _ = user_block(data)
    offset, (length,), _ = tables["contents"]["provenance"]
    origin = json.loads(data[offset : offset + length])
    _spoil_value(origin, chance)
    text = json.dumps(origin, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    if len(text) > length or chance.random() < 0.2:
        text = chance.choice(
            [b"", b"[" * length, b"{}", b'{"identity":{},"notes":{}}', b"\xff" * length, b'{"identity":1}']
        )
    if text:
        tables["contents"]["provenance"] = [offset, [len(text)], "|u1"]
    spoilt = with_contents(data[:offset] + text + data[offset + len(text) :], tables)
    path.write_bytes(spoilt)
    reseal(path)


def _spoil_value(value: Any, chance: random.Random) -> None:
    """Change or remove one entry somewhere in nested tables."""
    table = value
    while True:
        keys = sorted(table) if isinstance(table, dict) else list(range(len(table)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(table[key], dict | list) and chance.random() < 0.8:
            table = table[key]
            continue
        kind = chance.randrange(3)
        if kind == 0:
            del table[key]
        else:
            table[key] = chance.choice(
                [None, 0, -1, 3.5, "", "x", [], {}, True, "\ud800", float("nan"), 10**40, [[[[]]]]]
            )
        return


def spoil_hdf5(path: Path, chance: random.Random) -> None:
    """HDF5's own tables are damaged, and our digest agrees with the damage: our reader never reads them."""
    data = bytearray(path.read_bytes())
    _, tables, end = user_block(bytes(data))
    taken = [range(entry[0], entry[0] + 16) for entry in tables["contents"].values()]
    first = min(entry[0] for entry in tables["contents"].values())
    start = data.index(b"\x89HDF\r\n\x1a\n", end)
    for _ in range(chance.choice([1, 4, 64])):
        position = chance.randrange(start, max(first, start + 2000))
        if not any(position in span for span in taken):
            data[position] = chance.randrange(256)
    path.write_bytes(data)
    reseal(path)
