"""Small pictures of one size, decoded once: kept in one file under the user's cache directory, and read from there.

A kept picture stands for its file as long as the file's name, size, inode and both its times agree; the time of the
last change of the inode (ctime) cannot be put back, so that a change whose other time was put back is noticed. The
digest of all pixels, which identifies the source, must be the one that was kept. Whatever disagrees is decoded anew.
N pictures, H and W pixels.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.dataset.decoding import BrokenPictureError, Pixels, Stamp, decode, decoder_version, read_file
from demkd.dataset.manifest import PackedTexts
from demkd.dataset.source import SMALL, MemoryImages
from demkd.dataset.user_cache import cache_file, draft_of

_VERSION = 1
_CHANGED = Stamp._fields.index("changed")
_UNSETTLED_NS = 2_000_000_000  # of two changes so close together, a file system's clock may not tell the second


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Kept:
    """N decoded pictures (N, H, W, 3), the stamps (N, 4) of their files, and the digest of the pixels."""

    pixels: Pixels
    stamps: NDArray[np.int64]
    sha256: str


def small_pictures(
    root: Path, paths: Sequence[str], *, exif: bool, source_of: Callable[[Tensor], MemoryImages]
) -> MemoryImages | None:
    """All pictures below a folder if they are small and of one size; threads were tried, and are slower for these.

    Args:
        paths: below the root, in order.
        source_of: makes the source of pixels (N, H, W, 3).

    Raises:
        BrokenPictureError: naming the first file that is no picture.
    """
    file = cache_file("pictures", f"{_VERSION} {root.resolve()} {exif} {decoder_version()}", ".npy")
    packed = PackedTexts.pack(paths)
    started = time.time_ns()
    kept = _read_kept(file, packed)
    if kept is not None:
        source = source_of(torch.from_numpy(kept.pixels))
        if source.pixels_sha256 != kept.sha256:
            kept = None
        elif np.array_equal(kept.stamps, _stamps_now(root, paths)):
            return source
    decoded = _decode_missing(root, paths, kept, exif=exif)
    if decoded is None:
        return None
    pixels, stamps = decoded
    stamps[stamps[:, _CHANGED] > started - _UNSETTLED_NS] = 0  # agrees with no file
    source = source_of(torch.from_numpy(pixels))
    with contextlib.suppress(OSError), draft_of(file) as draft:  # where nothing can be kept, the next time decodes
        for array in (packed.joined, packed.ends, stamps, np.array(source.pixels_sha256), pixels):
            np.save(draft, array, allow_pickle=False)
    return source


def _decode_missing(
    root: Path, paths: Sequence[str], kept: _Kept | None, *, exif: bool
) -> tuple[Pixels, NDArray[np.int64]] | None:
    """Pixels (N, H, W, 3) and stamps (N, 4) of all files, of which those that are as they were are not read again."""
    first, _ = _decoded(root / paths[0], exif=exif)
    if max(first.shape[:2]) > SMALL:
        return None
    if kept is not None and first.shape == kept.pixels.shape[1:]:
        pixels, stamps = kept.pixels, kept.stamps
        missing = np.flatnonzero((stamps != _stamps_now(root, paths)).any(axis=1))
    else:
        pixels, stamps = (
            np.empty((len(paths), *first.shape), np.uint8),
            np.zeros((len(paths), len(Stamp._fields)), np.int64),
        )
        missing = np.arange(len(paths))
    for place in missing.tolist():
        picture, stamps[place] = _decoded(root / paths[place], exif=exif)
        if picture.shape != first.shape:
            return None
        pixels[place] = picture
    return pixels, stamps


def _decoded(path: Path, *, exif: bool) -> tuple[Pixels, Stamp]:
    try:
        file = read_file(path)
        return decode(file.data, path, exif=exif), file.stamp
    except BrokenPictureError as error:
        raise BrokenPictureError(f"{error}, or leave such files out (`skip_broken`)") from error


def _stamps_now(root: Path, paths: Sequence[str]) -> NDArray[np.int64]:
    """The stamps (N, 4) of files; -1 for one that is not there."""
    stamps = np.full((len(paths), len(Stamp._fields)), -1, np.int64)
    before = f"{root}{os.sep}"
    for place, path in enumerate(paths):
        try:
            stamps[place] = Stamp.of(os.stat(before + path))  # noqa: PTH116 - a Path for each takes twice the time
        except OSError:
            continue
    return stamps


def _read_kept(file: Path, packed: PackedTexts) -> _Kept | None:
    """What was kept of these very paths, if it can be read: whatever is wrong with it, the pictures are decoded."""
    try:
        with file.open("rb") as stream:
            joined, ends, stamps, sha256, pixels = (np.load(stream, allow_pickle=False) for _ in range(5))
    except Exception:  # a cut or altered file raises nearly anything
        return None
    same = np.array_equal(joined, packed.joined) and np.array_equal(ends, packed.ends)
    fits = (
        stamps.shape == (len(packed), len(Stamp._fields)) and pixels.ndim == 4 and pixels.shape[::3] == (len(packed), 3)
    )
    if not same or not fits or stamps.dtype != np.int64 or pixels.dtype != np.uint8:
        return None
    return _Kept(pixels=pixels, stamps=stamps, sha256=str(sha256))
