"""Ways to spoil a cache file: by accident, by another program, and on purpose with every digest put right."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.reliability.reseal import reseal, user_block, with_contents

Mutation = Callable[[Path, random.Random], None]

_NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 49, 50, 51, 65536, 4095, 4096, 2**31, 2**32 + 1, 2**62, 2**63, 2**64, 10**30, 10**400),
    *(1.0, 1e308, -0.5, True, False, None, "50", "", [], {}, [3, 50, 7], "<f2"),
]
_DTYPES: list[Any] = [
    "<f2",
    ">f2",
    "<f4",
    "<f8",
    "|u1",
    "<u2",
    "<u8",
    "<i8",
    "|S9",
    "O",
    "|V8",
    "M8[s]",
    "",
    "nonsense",
    3,
]
_DEEP = b"[" * 100_000


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


def randomise(path: Path, chance: random.Random) -> None:
    start = chance.choice([b"", b"demkd cache, format 2\n", b"\x89HDF\r\n\x1a\n", user_block(path.read_bytes())[0]])
    path.write_bytes(start + chance.randbytes(chance.choice([0, 10, 5000, 50_000])))


def make_foreign(path: Path, chance: random.Random) -> None:
    """HDF5 of another program, under the name of a cache's file."""
    path.unlink()
    with h5py.File(path, "w", userblock_size=chance.choice([0, 4096])) as file:
        for name in chance.sample(["logits", "entropy", "label", "provenance", "ledger/logits", "weights"], 4):
            _foreign_item(file, name, chance)
    if chance.random() < 0.5:  # with a user block that begins as ours does
        data = path.read_bytes()
        path.write_bytes(b"demkd cache, format 2\n" + data[22:])


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
    """The user block says something impossible, absurd or sly, and its digest agrees."""
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
    if isinstance(contents[name], list) and len(contents[name]) == 3:  # not spoilt already
        chance.choice(_WAYS)(tables, contents, name, chance)


def _spoil_a_total(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    tables[chance.choice(["size", "block_rows"])] = chance.choice(_NUMBERS)


def _spoil_an_offset(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    offset = contents[name][0]
    near = [offset + 8, offset + 4096] if isinstance(offset, int) else []
    contents[name][0] = chance.choice([*_NUMBERS, *near, tables["size"]])


def _spoil_a_dimension(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    shape = contents[name][1]
    if isinstance(shape, list) and shape:
        shape[chance.randrange(len(shape))] = chance.choice(_NUMBERS)


def _spoil_a_shape(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    contents[name][1] = chance.choice([[], [1] * 9, [1] * 100, 7, None, [2**40, 2**40], [50], [3, 50, 7], [3, 50]])


def _spoil_a_type(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    contents[name][2] = chance.choice(_DTYPES)


def _drop_an_entry(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    del contents[name]


def _add_a_name(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    strange = ["ledger/provenance", "features/x", "a\nb", "\ud800", "x" * 5000, "ledger/label", ""]
    contents[chance.choice(strange)] = contents[name]


def _swap_entries(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    other = chance.choice(sorted(contents))
    contents[name], contents[other] = contents[other], contents[name]


def _write_nonsense(tables: Any, contents: Any, name: str, chance: random.Random) -> None:
    contents[name] = chance.choice([None, 3, [], [1, 2], "text", [1, [2], "<f2", 4]])


_WAYS = (
    _spoil_a_total,
    _spoil_an_offset,
    _spoil_a_dimension,
    _spoil_a_shape,
    _spoil_a_type,
    _drop_an_entry,
    _add_a_name,
    _swap_entries,
    _write_nonsense,
)


def replace_contents(path: Path, chance: random.Random) -> None:
    """A user block that is no table of contents at all, with a length that fits."""
    data = path.read_bytes()
    text = chance.choice(
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"NaN",
            b'{"contents":{}}',
            b'{"size":NaN}',
            b"\xff\xfe",
            _DEEP[:90_000],
            b'{"a":' * 900,
        ]
    )
    spoilt = with_contents(data, text)
    if chance.random() < 0.3:
        spoilt = spoilt.replace(b"\n%d\n" % len(text), chance.choice([b"\n-5\n", b"\n9999999999\n", b"\nx\n"]), 1)
    path.write_bytes(spoilt)
    reseal(path)


def spoil_provenance(path: Path, chance: random.Random) -> None:
    """The provenance lacks something or says nonsense, in as many bytes as before, and every digest agrees."""
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
    """HDF5's own notes are damaged, and our digest agrees with the damage: our reader never looks at them."""
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
