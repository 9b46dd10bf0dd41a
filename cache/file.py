"""A cache file made, opened and mapped: ordinary HDF5 for every tool, whose data sets never move.

HDF5 lays a file out once. Our own reader takes offsets from the user block, so HDF5's parser never sees a header that
the digest has not vouched for, and opening costs no library call.
"""

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from demkd.cache import user_block
from demkd.cache.disk import disk_errors_in_words, reserve, write_fully
from demkd.cache.errors import CacheDamagedError, CacheMissingError
from demkd.cache.hdf5_view import hdf5_extent
from demkd.cache.layout import BLOCK_ROWS, FORMAT_VERSION, Extent, Header, Shapes
from demkd.cache.provenance import Provenance

_PAGE = 4096  # data sets begin on pages, so that what is sealed and what is written never share one

Array = NDArray[Any]


def create_file(
    path: Path,
    *,
    sealed: Mapping[str, Array],
    opened: Shapes,
    provenance: Provenance,
    block_rows: int = BLOCK_ROWS,
) -> None:
    """Create a file whose sealed data sets are written and whose open ones are reserved, all zero.

    HDF5 lays the file out, in its 1.10 format with checksummed metadata, and is done with it; the space is reserved
    before anything is computed. HDF5 itself writes no more than those metadata, and only where there is room: on a full
    disk it reports an error late, and then ends the process.

    Raises:
        CacheSpaceError: if the disk cannot hold it; nothing is left behind.
    """
    front = user_block.size_for(len(sealed) + len(opened) + 1)
    origin = np.bytes_(provenance.to_json().encode())
    shapes = {name: (array.shape, array.dtype.str) for name, array in sealed.items()} | dict(opened)
    with disk_errors_in_words(path, remove=True):
        path.unlink(missing_ok=True)  # a pipe of that name would keep us waiting
        with path.open("wb") as file:
            reserve(file.fileno(), file_bytes(shapes, origin.nbytes))
        contents = _lay_out(path, shapes, origin, front=front)
        with path.open("r+b") as file:
            size = max(os.fstat(file.fileno()).st_size, *(extent.end for extent in contents.values()))
            reserve(file.fileno(), size)
            for name, array in sealed.items():
                write_fully(file.fileno(), np.ascontiguousarray(array), contents[name].offset)
            header = Header(size=size, block_rows=block_rows, contents=contents, sha256="")
            text = user_block.contents_json(header)
            digest = user_block.digest(file.fileno(), header, text, front)
            filled = user_block.compose(text, digest)
            assert len(filled) <= front
            write_fully(file.fileno(), filled, 0)
            os.fsync(file.fileno())


def file_bytes(shapes: Shapes, provenance_bytes: int) -> int:
    """How large a file gets at most: a page is lost at each data set, and HDF5's own notes are a few pages."""
    front = user_block.size_for(len(shapes) + 1)
    payload = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    return front + payload + provenance_bytes + (2 * len(shapes) + 8) * _PAGE


def read_header(path: Path) -> Header:
    """Read and check a file's header and every byte that its digest covers.

    Raises:
        CacheMissingError: if there is no such file.
        CacheDamagedError: if it is not a cache file, truncated, of another format, or changed.
    """
    with _opened(path) as file:
        return _read_header(path, file)


def open_file(path: Path) -> tuple[Header, dict[str, Array]]:
    """The same, and every data set memory-mapped, read-only; nothing of them is read yet.

    Both are of one file, opened once: at any moment another process may put a longer one in its place.

    Raises:
        CacheMissingError, CacheDamagedError: as `read_header`.
    """
    with _opened(path) as file:
        header = _read_header(path, file)
        memory = np.memmap(file, mode="r", dtype=np.uint8)
    # Beyond the end of a file that shrank, a map ends the process (SIGBUS) instead of raising.
    _require_size(path, len(memory), header)
    return header, {
        name: memory[extent.offset : extent.end].view(extent.dtype).reshape(extent.shape)
        for name, extent in header.contents.items()
    }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise CacheDamagedError(f"{path} is no file: remove it, or choose another folder")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise CacheMissingError(f"there is no file {path}") from None
    except CacheDamagedError:
        raise
    except OSError as error:
        raise CacheDamagedError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path, file: BinaryIO) -> Header:
    descriptor = file.fileno()
    header, text = user_block.parse(path, file.read(user_block.LARGEST))
    _require_size(path, os.fstat(descriptor).st_size, header)
    size = user_block.size_for(len(header.contents))
    user_block.check_extents(path, header, size)
    if user_block.digest(descriptor, header, text, size) != header.sha256:
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


def _lay_out(path: Path, shapes: Shapes, provenance: np.bytes_, *, front: int) -> dict[str, Extent]:
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
        userblock_size=front,
        alignment_threshold=64,
        alignment_interval=_PAGE,
        locking=False,
    ) as file:
        file.attrs["format"] = f"demkd cache, format {FORMAT_VERSION}"
        file.create_dataset("provenance", data=provenance)
        for name, (shape, dtype) in shapes.items():
            file.create_dataset(name, shape=shape, dtype=dtype, dcpl=early.copy())
        return {name: Extent(*hdf5_extent(file[name])) for name in ("provenance", *shapes)}
