"""A cache file, format 4: ordinary HDF5 with contiguous data sets, behind a header that our own reader trusts.

    header      magic line with the format version, SHA-256, length, contents (JSON: offset, shape, type of data sets)
    HDF5        metadata and constant data sets (`label`, `provenance`; `weights` of weights.h5);
                data sets that are filled block by block, and `block_crc/<name>` of each

The SHA-256 covers the contents and every byte behind the header that is in no filled data set. It is checked first, and
offsets come from the header, so HDF5's parser never reads unchecked bytes. Data sets never move and are memory-mapped.

V views, N samples, C classes, R parameters of a view, k top logits, T temperatures; a block is `block_rows` consecutive
samples of one view.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from demkd.cache.disk import disk_errors_in_words, reserve, write_fully
from demkd.cache.errors import CacheDamagedError, CacheFormatError, CacheMissingError, unrepairable
from demkd.cache.provenance import Provenance
from demkd.cache.shards import Shard
from demkd.errors import open_regular

FORMAT_VERSION = 4
BLOCK_ROWS = 1024
# An entry of block_crc is 0 for a block that was not written, else this bit and the checksum, in one 8-byte write. Of a
# block of which some rows are written, in an unfinished file, it is their number, this bit as 0, and their checksum.
WRITTEN, BEGUN_ROW = 1 << 32, 1 << 33

_MAGIC = b"demkd cache, format "
_PAGE = 4096  # data sets begin on pages, so that constant and filled ones never share a page
_LARGEST_HEADER, _LARGEST_METADATA, _LARGEST_NUMBER, _MOST_DIMENSIONS = 1 << 20, 1 << 24, 1 << 62, 8
_TYPES = frozenset({"<f2", "<f4", "<u2", "<u4", "<u8", "<i8", "|u1"})

Array = NDArray[Any]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # data set -> shape, type


class Extent(NamedTuple):
    """A contiguous data set: where its bytes begin, and what they are."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def view_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return (self.end - self.offset) // self.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """The data sets of one teacher, in all its files or in one of them."""

    num_views: int  # V
    samples: int  # N, of all files or of one
    classes: int  # C
    num_params: int = 1  # R, the integers that describe a view
    top_k: int | None = None  # k, the largest logits that are kept of every row; None for all C
    tail_temperatures: tuple[float, ...] = ()  # of the logsumexp of the other logits, with `top_k`
    encoding: str = "float16"  # of dense logits; or "uint8" (`encode_logits`)
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # layer -> (channels,) or (channels, h, w)
    block_rows: int = BLOCK_ROWS
    first_sample: int = 0  # of the file

    @property
    def blocks(self) -> int:
        """Number of blocks in a view."""
        return -(-self.samples // self.block_rows)

    @property
    def first_block(self) -> int:
        """Number of the file's first block among those of all files."""
        return self.first_sample // self.block_rows

    def rows(self, block: int) -> slice:
        """The rows of a block, in the file."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.samples))

    def samples_of(self, block: int) -> range:
        """The samples of a block, counted over all files."""
        rows = self.rows(block)
        return range(self.first_sample + rows.start, self.first_sample + rows.stop)

    def part(self, shard: Shard) -> "CacheShape":
        """The shape of one shard."""
        samples = shard.samples(self.samples, self.block_rows)
        return replace(self, samples=len(samples), first_sample=samples.start)

    def logit_sets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The data sets that logits are read from."""
        plane = (self.num_views, self.samples)
        if self.top_k is not None:
            return {
                "logits": ((*plane, self.top_k), "<f2"),
                "classes": ((*plane, self.top_k), self._class_type),
                "label_logit": (plane, "<f2"),
                "tail": ((*plane, len(self.tail_temperatures)), "<f4"),
            }
        if self.encoding == "uint8":
            beside = {"logit_max": (plane, "<f4"), "logit_scale": (plane, "<f4")}
            return {"logits": ((*plane, self.classes), "|u1"), **beside}
        return {"logits": ((*plane, self.classes), "<f2")}

    def data_sets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The data sets that stage one fills, each (V, N, ...): name -> shape, type."""
        plane = (self.num_views, self.samples)
        return {
            **self.logit_sets(),
            "entropy": (plane, "<f4"),
            "prediction": (plane, self._class_type),
            "params": ((*plane, self.num_params), "<u2"),
            **{f"features/{layer}": ((*plane, *shape), "<f2") for layer, shape in self.features.items()},
        }

    def filled_sets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The same, and the checksums (V, blocks) of each."""
        sets = self.data_sets()
        return sets | {f"block_crc/{name}": ((self.num_views, self.blocks), "<u8") for name in sets}

    def all_sets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every data set of a file but the provenance."""
        return {**self.filled_sets(), "label": ((self.samples,), "<i8")}

    def payload_bytes(self) -> int:
        """Bytes of the filled data sets."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.data_sets().values())

    def row_bytes(self) -> int:
        """Bytes of one sample in one view."""
        return self.payload_bytes() // (self.num_views * self.samples)

    def union(self, other: "CacheShape") -> "CacheShape":
        """The smallest shape that covers both; all but views and features must be the same."""
        views, features = max(self.num_views, other.num_views), {**self.features, **other.features}
        covering = replace(self, num_views=views, features=features)
        assert covering == replace(other, num_views=views, features=features)
        return covering

    def covers(self, wanted: "CacheShape") -> bool:
        """Whether a file of this shape has all of another."""
        return wanted.union(self) == self

    @property
    def _class_type(self) -> str:
        return "<u2" if self.classes <= 1 << 16 else "<u4"


def block_crc(name: str, view: int, block: int, data: Array, *, begun: int = 0) -> int:
    """The entry of a written block: the CRC-32 of its place and its bytes, so that a block in another place fails too.

    `block` is its number among those of all files, `begun` the entry of its rows before these.
    """
    place = f"{name}/{view}/{block}".encode()
    return WRITTEN | crc32(np.ascontiguousarray(data).data.cast("B"), begun % WRITTEN if begun else crc32(place))


def is_written(entries: Array) -> NDArray[np.bool_]:
    """Which entries are of written blocks."""
    return entries & np.uint64(WRITTEN) != 0  # type: ignore[no-any-return]


def encode_logits(logits: NDArray[np.float32]) -> dict[str, Array]:
    """Logits (B, C) in 8 bits: u = round(255 sqrt((max - z) / scale)), scale = max - min of a row.

    Half of float16's bytes. The square root makes steps finest at the largest logits, which decide a softmax.
    """
    largest = logits.max(axis=1)
    scale = largest - logits.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num((largest[:, None] - logits) / scale[:, None], nan=0.0)  # of equal logits 0 / 0
    return {
        "logits": np.rint(255 * np.sqrt(share)).astype(np.uint8),
        "logit_max": largest.astype(np.float32),
        "logit_scale": scale.astype(np.float32),
    }


def decode_logits(codes: Array, largest: Array, scale: Array) -> NDArray[np.float32]:
    """Logits (B, C) of their codes (B, C), maxima (B,) and scales (B,)."""
    squares = np.square(np.arange(256, dtype=np.float32) / np.float32(255))
    logits: NDArray[np.float32] = squares[codes]
    logits *= -scale[:, None]
    logits += largest[:, None]
    return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The header of a file; `text` is the part that the digest covers."""

    size: int
    block_rows: int
    contents: Mapping[str, Extent]
    sha256: str
    text: bytes

    def front(self) -> bytes:
        """The bytes before HDF5's."""
        front = b"%s%d\n%s\n%d\n%s\n" % (_MAGIC, FORMAT_VERSION, self.sha256.encode(), len(self.text), self.text)
        return front.ljust(header_bytes(len(self.contents)), b"\0")

    def compute_digest(self, descriptor: int) -> str:
        """SHA-256 of the contents' text and of every byte behind the header that is in no filled data set."""
        digest, position = hashlib.sha256(self.text), header_bytes(len(self.contents))
        filled = {name.removeprefix("block_crc/") for name in self.contents if name.startswith("block_crc/")}
        extents = [e for name, e in self.contents.items() if name in filled or name.startswith("block_crc/")]
        for extent in [*sorted(extents), Extent(self.size, (), "|u1")]:
            for offset in range(position, extent.offset, 1 << 20):
                digest.update(os.pread(descriptor, min(1 << 20, extent.offset - offset), offset))
            position = extent.end
        return digest.hexdigest()

    def shape(self, provenance: Provenance, first_sample: int) -> CacheShape:
        """The shape of a teacher's file."""
        logits, params = (self.contents[name].shape if name in self.contents else () for name in ("logits", "params"))
        if len(logits) == len(params) == 3:
            shape = CacheShape(
                num_views=logits[0],
                samples=logits[1],
                classes=provenance.classes,
                num_params=params[2],
                top_k=logits[2] if "classes" in self.contents else None,
                tail_temperatures=provenance.tail_temperatures,
                encoding="uint8" if self.contents["logits"].dtype == "|u1" else "float16",
                features={
                    name.removeprefix("features/"): extent.shape[2:]
                    for name, extent in self.contents.items()
                    if name.startswith("features/")
                },
                block_rows=self.block_rows,
                first_sample=first_sample,
            )
            found = {name: (e.shape, e.dtype) for name, e in self.contents.items() if name != "provenance"}
            if found == shape.all_sets():
                return shape
        raise unrepairable("the file does not have the data sets of a teacher")


def header_bytes(data_sets: int) -> int:
    """A power of two, as HDF5 requires, with room for the contents: a data set's entry is under 256 bytes."""
    return max(4096, 1 << (256 * (data_sets + 1) - 1).bit_length())


def file_bytes(shapes: Shapes, provenance_bytes: int) -> int:
    """How large a file gets at most: a page is lost at each data set, and HDF5's own metadata are a few pages."""
    payload = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    return header_bytes(len(shapes) + 1) + payload + provenance_bytes + (2 * len(shapes) + 8) * _PAGE


def create_file(
    path: Path, *, constant: Mapping[str, Array], filled: Shapes, provenance: Provenance, block_rows: int = BLOCK_ROWS
) -> None:
    """Create a file whose constant data sets are written and whose others are reserved, all zero.

    HDF5 only lays the file out, in its 1.10 format with checksummed metadata. The space is reserved before: on a full
    disk HDF5 reports an error late, and then ends the process.
    """
    import h5py

    origin = np.bytes_(provenance.to_json().encode())
    shapes = {name: (array.shape, array.dtype.str) for name, array in constant.items()} | dict(filled)
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # a new file is zeros already
    layout = {
        "libver": ("v110", "v110"),
        "userblock_size": header_bytes(len(shapes) + 1),
        "alignment_threshold": 64,
        "alignment_interval": _PAGE,
    }
    with disk_errors_in_words(path, remove=True):
        path.unlink(missing_ok=True)  # opening a FIFO of that name would wait
        with path.open("wb") as file:
            reserve(file.fileno(), file_bytes(shapes, origin.nbytes))
        with h5py.File(path, "w", locking=False, **layout) as hdf5:
            hdf5.attrs["format"] = f"demkd cache, format {FORMAT_VERSION}"
            contents = {"provenance": Extent(0, (origin.nbytes,), "|u1")}
            hdf5.create_dataset("provenance", data=origin)
            for name, (shape, dtype) in shapes.items():
                contents[name] = Extent(0, shape, dtype)
                hdf5.create_dataset(name, shape=shape, dtype=dtype, dcpl=early.copy())
            contents = {name: e._replace(offset=hdf5[name].id.get_offset()) for name, e in contents.items()}
        with path.open("r+b") as file:
            descriptor = file.fileno()
            size = max(os.fstat(descriptor).st_size, *(extent.end for extent in contents.values()))
            reserve(descriptor, size)
            for name, array in constant.items():
                write_fully(descriptor, np.ascontiguousarray(array), contents[name].offset)
            tables = {"size": size, "block_rows": block_rows, "contents": {n: tuple(e) for n, e in contents.items()}}
            text = json.dumps(tables, separators=(",", ":")).encode()
            header = Header(size=size, block_rows=block_rows, contents=contents, sha256="", text=text)
            front = replace(header, sha256=header.compute_digest(descriptor)).front()
            assert len(front) == header_bytes(len(contents))
            write_fully(descriptor, front, 0)
            os.fsync(descriptor)


def read_header(path: Path) -> Header:
    """The header alone; raises as `open_file`."""
    return open_file(path)[0]


def open_file(path: Path) -> tuple[Header, dict[str, Array]]:
    """Check a file's header and every byte that its digest covers, and map every data set, read-only, unread.

    Both are of one file, opened once: at any moment another process may replace it by a larger one.
    """
    try:
        with open_regular(path) as file:
            front = file.read(_LARGEST_HEADER)
            header = parse_header(path, front)
            _check_size(path, os.fstat(file.fileno()).st_size, header.size)
            if not front.startswith(header.front()) or header.compute_digest(file.fileno()) != header.sha256:
                raise unrepairable(f"the metadata of {path} do not match their digest")
            memory = np.memmap(file, mode="r", dtype=np.uint8)
    except FileNotFoundError:
        raise CacheMissingError(f"there is no file {path}") from None
    except CacheDamagedError:
        raise
    except OSError as error:
        raise CacheDamagedError(f"{path} cannot be read: {error.strerror}") from error
    # Beyond the end of a file that shrank, a map ends the process (SIGBUS) instead of raising.
    _check_size(path, len(memory), header.size)
    return header, {
        name: memory[extent.offset : extent.end].view(extent.dtype).reshape(extent.shape)
        for name, extent in header.contents.items()
    }


def _check_size(path: Path, actual: int, expected: int) -> None:
    if actual != expected:
        raise unrepairable(f"{path} has {actual:,} bytes instead of {expected:,}")


def parse_header(path: Path, data: bytes) -> Header:
    """The header as written, its digest not yet checked; every data set lies in the file, and none over another."""
    foreign = CacheDamagedError(f"{path} is not a cache file of demkd, or its first bytes were overwritten")
    magic, _, rest = data.partition(b"\n")
    if not magic.startswith(_MAGIC):
        raise foreign
    version = magic.removeprefix(_MAGIC).decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise CacheFormatError(
            f"{path} has format {version[:20]}, and this version of demkd reads format {FORMAT_VERSION}: run "
            "`cache_teachers` again in another folder (`out`), or use the version that wrote it"
        )
    try:
        sha256, length, rest = rest.split(b"\n", 2)
        text = rest[: int(length)]
        tables = json.loads(text)
        size, block_rows = _natural(tables["size"]), _natural(tables["block_rows"])
        contents = dict(_parse_entry(name, *entry) for name, entry in tables["contents"].items())
        header = Header(size=size, block_rows=block_rows, contents=contents, sha256=sha256.decode(), text=text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise foreign from None
    extents, origin = sorted(contents.values()), contents.get("provenance")
    apart = all(before.end <= after.offset for before, after in itertools.pairwise(extents))
    inside = not extents or (extents[0].offset >= header_bytes(len(extents)) and extents[-1].end <= size)
    small = size - sum(extent.end - extent.offset for extent in extents) <= _LARGEST_METADATA
    modest = origin is not None and origin.dtype == "|u1" and origin.end - origin.offset <= _LARGEST_METADATA
    if not (apart and inside and small and modest):
        raise unrepairable(f"{path} describes data that it cannot hold")
    return header


def _parse_entry(name: str, offset: Any, shape: Any, dtype: Any) -> tuple[str, Extent]:
    """A data set of the header; its name must be fit for a message."""
    if not name.isprintable() or len(name) > 200 or dtype not in _TYPES:
        raise ValueError(name, dtype)
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(shape)
    return name, Extent(_natural(offset), tuple(_natural(n) for n in shape), dtype)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 < value < _LARGEST_NUMBER:
        raise ValueError(value)
    return value
