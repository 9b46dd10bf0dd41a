"""Which byte is where: a cache file's header, its data sets, and the check that nothing but answers ever changes.

    user block    magic line, SHA-256, contents (JSON: every data set's offset, shape and type)
    HDF5          metadata and sealed data sets, which never change after creation and are covered by the SHA-256,
                  open data sets, which are filled block by block and covered by their ledgers' checksums

The file is ordinary HDF5 for every tool. Our own reader takes offsets from the user block, so HDF5's parser never sees
a header that the digest has not vouched for, and opening costs no library call.
V slots, N samples, C classes; a block is `block_rows` consecutive samples of one slot.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheMissingError, CacheSpaceError
from demkd.cache.hdf5_view import hdf5_extent
from demkd.cache.provenance import Provenance

FORMAT_VERSION = 1
BLOCK_ROWS = 1024
_MAGIC = b"demkd cache, format "
_USER_BLOCK = 4096
_LARGEST_USER_BLOCK = 1 << 20
_LARGEST_METADATA = 1 << 24
_LARGEST_NUMBER = 1 << 62
_MOST_DIMENSIONS = 8
_PAGE = 4096  # data sets begin on pages, so that what is sealed and what is written never share one
_TYPES = frozenset({"<f2", "<f4", "<u2", "<u8", "<i8", "|u1"})

Array = NDArray[Any]


class Extent(NamedTuple):
    """A contiguous data set: where its bytes begin, and what they are."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def slab_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return (self.end - self.offset) // self.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """How much one teacher's file holds.

    Attributes:
        features: layer -> shape of one sample's features, (channels,) or (channels, height, width).
    """

    views: int
    samples: int
    classes: int
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    block_rows: int = BLOCK_ROWS

    @property
    def blocks(self) -> int:
        """Blocks per slot."""
        return -(-self.samples // self.block_rows)

    def rows(self, block: int) -> slice:
        """The samples of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.samples))

    def answers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The data sets that teachers fill, each (V, N, ...): name -> shape, type."""
        plane = (self.views, self.samples)
        return {
            "logits": ((*plane, self.classes), "<f2"),
            "entropy": (plane, "<f4"),
            "prediction": (plane, "<u2"),
            "view": (plane, "<u2"),
            **{f"features/{layer}": ((*plane, *shape), "<f2") for layer, shape in self.features.items()},
        }

    def ledgers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """One ledger (V, blocks) per data set of answers."""
        return {f"ledger/{name}": ((self.views, self.blocks), "<u8") for name in self.answers()}

    def payload_bytes(self) -> int:
        """Bytes of the answers alone."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.answers().values())

    def union(self, other: "CacheShape") -> "CacheShape":
        """The smallest shape that covers both, in the other's blocks; samples and classes must be the same."""
        assert (self.samples, self.classes) == (other.samples, other.classes)
        return CacheShape(
            views=max(self.views, other.views),
            samples=self.samples,
            classes=self.classes,
            features={**self.features, **other.features},
            block_rows=other.block_rows,
        )

    def covers(self, wanted: "CacheShape") -> bool:
        """Whether a file of this shape has everything that is wanted."""
        return wanted.union(self) == self


# A ledger entry is 0 for a block that nobody wrote, else this bit and the block's checksum: one 8-byte write says both.
WRITTEN = 1 << 32


def ledger_entry(name: str, slot: int, block: int, data: Array) -> int:
    """What the ledger says of a written block: CRC-32 of its place and its bytes, so that a block in another's place
    fails as surely as a flipped bit."""
    place = f"{name}/{slot}/{block}".encode()
    return WRITTEN | crc32(np.ascontiguousarray(data).data.cast("B"), crc32(place))


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A file's contents, as its user block says."""

    size: int
    block_rows: int
    contents: Mapping[str, Extent]
    sha256: str

    def open_extents(self) -> list[Extent]:
        """The extents whose bytes may change after creation, in file order."""
        answers = [name.removeprefix("ledger/") for name in self.contents if name.startswith("ledger/")]
        return sorted(extent for name, extent in self.contents.items() if name in answers or name.startswith("ledger/"))

    def shape(self) -> CacheShape:
        """The shape of a teacher's file.

        Raises:
            CacheDamagedError: if the contents are not those of a teacher's file.
        """
        features = {
            name.removeprefix("features/"): extent.shape[2:]
            for name, extent in self.contents.items()
            if name.startswith("features/")
        }
        dimensions = self.contents["logits"].shape if "logits" in self.contents else ()
        if len(dimensions) == 3:
            views, samples, classes = dimensions
            shape = CacheShape(
                views=views, samples=samples, classes=classes, features=features, block_rows=self.block_rows
            )
            expected = {**shape.answers(), **shape.ledgers(), "label": ((samples,), "<i8")}
            found = {name: (extent.shape, extent.dtype) for name, extent in self.contents.items()}
            if found.items() - {("provenance", found["provenance"])} == expected.items():
                return shape
        raise CacheDamagedError("the file does not hold what a teacher's cache holds: remove it and make it again")


def create_file(
    path: Path,
    *,
    sealed: Mapping[str, Array],
    opened: Mapping[str, tuple[tuple[int, ...], str]],
    provenance: Provenance,
    block_rows: int = BLOCK_ROWS,
) -> Header:
    """Create a file whose sealed data sets are written and whose open ones are reserved, all zero.

    HDF5 lays the file out, in its 1.10 format with checksummed metadata, and is done with it; the space is reserved
    before anything is computed. HDF5 itself writes no more than those metadata, and only where there is room: on a full
    disk it reports an error late, and then ends the process.

    Raises:
        CacheSpaceError: if the disk cannot hold it; nothing is left behind.
    """
    user_block = _user_block_size(len(sealed) + len(opened) + 1)
    origin = np.bytes_(provenance.to_json().encode())
    shapes = {name: (array.shape, array.dtype.str) for name, array in sealed.items()} | dict(opened)
    with disk_errors_in_words(path, remove=True):
        with path.open("wb") as file:
            _reserve(file.fileno(), file_bytes(shapes, origin.nbytes))
        contents = _lay_out(path, shapes, origin, user_block=user_block)
        with path.open("r+b") as file:
            size = max(os.fstat(file.fileno()).st_size, *(extent.end for extent in contents.values()))
            _reserve(file.fileno(), size)
            for name, array in sealed.items():
                write_fully(file.fileno(), np.ascontiguousarray(array), contents[name].offset)
            header = Header(size=size, block_rows=block_rows, contents=contents, sha256="")
            text = _contents_json(header)
            digest = _digest(file.fileno(), header, text, user_block)
            filled = _user_block(text, digest)
            assert len(filled) <= user_block
            write_fully(file.fileno(), filled, 0)
            os.fsync(file.fileno())
    return Header(size=size, block_rows=block_rows, contents=contents, sha256=digest)


def file_bytes(shapes: Mapping[str, tuple[tuple[int, ...], str]], provenance_bytes: int) -> int:
    """How large a file gets at most: a page is lost at each data set, and HDF5's own notes are a few pages."""
    user_block = _user_block_size(len(shapes) + 1)
    payload = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    return user_block + payload + provenance_bytes + (2 * len(shapes) + 8) * _PAGE


def read_header(path: Path) -> Header:
    """Read and check a file's header and every byte that its digest covers.

    Raises:
        CacheMissingError: if there is no such file.
        CacheDamagedError: if it is not a cache file, truncated, of another format, or changed.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise CacheDamagedError(f"{path} is no file: remove it, or choose another folder")
        with path.open("rb") as file:
            return _read_header(path, file.fileno(), file.read(_LARGEST_USER_BLOCK))
    except FileNotFoundError:
        raise CacheMissingError(f"there is no file {path}") from None
    except CacheDamagedError:
        raise
    except OSError as error:
        raise CacheDamagedError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path, descriptor: int, user_block: bytes) -> Header:
    header, text = _parse_user_block(path, user_block)
    _require_size(path, os.fstat(descriptor).st_size, header)
    size = _user_block_size(len(header.contents))
    _check_extents(path, header, size)
    if _digest(descriptor, header, text, size) != header.sha256:
        raise CacheDamagedError(
            f"the metadata of {path} do not match their digest: the file was altered; remove it and make it again"
        )
    return header


def _require_size(path: Path, actual: int, header: Header) -> None:
    if actual != header.size:
        raise CacheDamagedError(
            f"{path} has {actual:,} bytes instead of {header.size:,}: it was cut or altered; "
            "remove it and make it again"
        )


def map_file(path: Path, header: Header) -> dict[str, Array]:
    """Memory-map every data set, read-only; nothing is read yet."""
    memory = np.memmap(path, mode="r", dtype=np.uint8)
    # Beyond the end of a file that shrank, a map ends the process (SIGBUS) instead of raising.
    _require_size(path, len(memory), header)
    return {
        name: memory[extent.offset : extent.end].view(extent.dtype).reshape(extent.shape)
        for name, extent in header.contents.items()
    }


@contextmanager
def disk_errors_in_words(path: Path, *, remove: bool = False) -> Iterator[None]:
    """Say a full disk in words; other errors pass through.

    Args:
        remove: whatever the error, take away what was written of the file.

    Raises:
        CacheSpaceError: instead of an OSError that means that there is no room.
    """
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


def _lay_out(
    path: Path, shapes: Mapping[str, tuple[tuple[int, ...], str]], provenance: np.bytes_, *, user_block: int
) -> dict[str, Extent]:
    """Let HDF5 create the file with room for every data set, and ask it where they are."""
    import h5py

    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # a new file is zeros already
    with h5py.File(
        path,
        "w",
        libver=("v110", "v110"),
        userblock_size=user_block,
        alignment_threshold=64,
        alignment_interval=_PAGE,
        locking=False,
    ) as file:
        file.attrs["format"] = f"demkd cache, format {FORMAT_VERSION}"
        file.create_dataset("provenance", data=provenance)
        for name, (shape, dtype) in shapes.items():
            file.create_dataset(name, shape=shape, dtype=dtype, dcpl=early.copy())
        return {name: Extent(*hdf5_extent(file[name])) for name in ("provenance", *shapes)}


def _reserve(descriptor: int, size: int) -> None:
    """Take the whole file's space now, so that a full disk is an error in the first second."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    # macOS has no such call: free space is all that can be checked.
    statistics = os.fstatvfs(descriptor)
    if statistics.f_bavail * statistics.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size)


def write_fully(descriptor: int, data: Array | bytes | memoryview, offset: int) -> None:
    """`pwrite` until everything is written: one call may write less than it is asked to."""
    rest = memoryview(data).cast("B")  # type: ignore[arg-type]
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def replace_durably(source: Path, target: Path) -> None:
    """Rename a synced file over another, and bring the rename itself to the disk."""
    source.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _contents_json(header: Header) -> bytes:
    contents = {name: [extent.offset, list(extent.shape), extent.dtype] for name, extent in header.contents.items()}
    tables = {"size": header.size, "block_rows": header.block_rows, "contents": contents}
    return json.dumps(tables, separators=(",", ":")).encode()


def _user_block(text: bytes, digest: str) -> bytes:
    return b"%s%d\n%s\n%d\n%s\n" % (_MAGIC, FORMAT_VERSION, digest.encode(), len(text), text)


def _user_block_size(data_sets: int) -> int:
    """A power of two, as HDF5 asks, with room for the contents: a data set's entry is under 256 bytes."""
    return max(_USER_BLOCK, 1 << (256 * (data_sets + 1) - 1).bit_length())


def _parse_user_block(path: Path, user_block: bytes) -> tuple[Header, bytes]:
    """The header as written, not yet believed, and the exact text that its digest covers."""
    foreign = CacheDamagedError(f"{path} is not a cache file of demkd, or its first bytes were overwritten")
    magic, _, rest = user_block.partition(b"\n")
    if not magic.startswith(_MAGIC):
        raise foreign
    version = magic.removeprefix(_MAGIC).decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise CacheDamagedError(
            f"{path} has format {version[:20]}, and this version of demkd reads format {FORMAT_VERSION}: "
            "make the cache again, or use the version that wrote it"
        )
    try:
        digest, length, rest = rest.split(b"\n", 2)
        text = rest[: int(length)]
        tables = json.loads(text)
        contents = {_printable(name): _parse_extent(*entry) for name, entry in tables["contents"].items()}
        size, block_rows = _natural(tables["size"]), _natural(tables["block_rows"])
        return Header(size=size, block_rows=block_rows, contents=contents, sha256=digest.decode()), text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise foreign from None


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


def _check_extents(path: Path, header: Header, user_block: int) -> None:
    """Every data set lies in the file, none over another, none over the user block."""
    extents = sorted(header.contents.values())
    apart = all(before.end <= after.offset for before, after in itertools.pairwise(extents))
    inside = not extents or (extents[0].offset >= user_block and extents[-1].end <= header.size)
    small = header.size - sum(extent.end - extent.offset for extent in extents) <= _LARGEST_METADATA
    origin = header.contents.get("provenance")
    modest = origin is not None and origin.dtype == "|u1" and origin.end - origin.offset <= _LARGEST_METADATA
    if not (apart and inside and small and modest):
        raise CacheDamagedError(
            f"{path} describes data that it cannot hold: the file was altered; remove it and make it again"
        )


def _digest(descriptor: int, header: Header, text: bytes, user_block: int) -> str:
    """SHA-256 of the contents' text and of every byte behind the user block that is in no open data set."""
    digest = hashlib.sha256(text)
    for start, end in _sealed_ranges(header, user_block):
        for offset in range(start, end, 1 << 20):
            digest.update(os.pread(descriptor, min(1 << 20, end - offset), offset))
    return digest.hexdigest()


def _sealed_ranges(header: Header, user_block: int) -> Iterator[tuple[int, int]]:
    position = user_block
    for extent in header.open_extents():
        yield position, extent.offset
        position = extent.end
    yield position, header.size
