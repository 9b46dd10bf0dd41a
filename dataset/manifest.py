"""The manifest of a folder's pictures: what every file held when it was first looked at, so that a change is noticed.

Made once, which decodes every file, and kept under the user's cache directory; reused for the files whose name, size
and time agree. Its digest is compared when the file is read. N files.
"""

import contextlib
import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from demkd.dataset.decoding import BrokenPictureError, decode, read_file
from demkd.dataset.user_cache import cache_file, draft_of
from demkd.dataset.workers import Workers

_VERSION = 1
_AT_ONCE = 32  # files a worker is given
_SECONDS_BETWEEN_SAVES = 60.0


class Told(Protocol):
    """Where long work is shown; the pipeline's `Progress` is one."""

    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> AbstractContextManager[Any]: ...

    def warn(self, text: str) -> None: ...


Row = tuple[int, int, bytes, int, int]  # bytes, time of the last change (ns), SHA-256, height, width


class PackedTexts:
    """N texts in two arrays: a list would take three times as much, and be copied to every worker."""

    def __init__(self, joined: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.joined, self.ends = joined, ends

    @classmethod
    def pack(cls, texts: Iterable[str]) -> "PackedTexts":
        encoded = [os.fsencode(text) for text in texts]
        return cls(
            np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(text) for text in encoded], dtype=np.int64)
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.joined[start : int(self.ends[index])].tobytes())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Manifest:
    """N pictures in their order: a path, and 56 bytes a picture.

    Attributes:
        length: (N,), of the files in bytes.
        modified: (N,), when they were last changed, in nanoseconds; -1 for a file that was not examined.
        sha256: (N, 32), uint8, of the files.
        sizes: (N, 2), int32: height and width, after EXIF orientation.
        broken: sentences about the files that were left out.
    """

    root: Path
    paths: PackedTexts
    length: NDArray[np.int64]
    modified: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    broken: tuple[str, ...] = ()

    @classmethod
    def empty(cls, root: Path, paths: PackedTexts) -> "Manifest":
        """Of files that were not examined."""
        count = len(paths)
        return cls(
            root=root,
            paths=paths,
            length=np.zeros(count, np.int64),
            modified=np.full(count, -1, np.int64),
            sha256=np.zeros((count, 32), np.uint8),
            sizes=np.zeros((count, 2), np.int32),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def put(self, index: int, row: Row) -> None:
        self.length[index], self.modified[index], digest, *self.sizes[index] = row
        self.sha256[index] = np.frombuffer(digest, np.uint8)

    def rows(self, chosen: NDArray[np.bool_], *, broken: Iterable[str] = ()) -> "Manifest":
        """Some of the pictures (N,)."""
        some = np.flatnonzero(chosen)
        return Manifest(
            root=self.root,
            paths=self.paths if len(some) == len(self) else PackedTexts.pack(self.paths[int(index)] for index in some),
            length=self.length[some],
            modified=self.modified[some],
            sha256=self.sha256[some],
            sizes=self.sizes[some],
            broken=tuple(broken),
        )


def make_manifest(
    root: Path, paths: Sequence[str], *, exif: bool, skip_broken: bool, workers: int, told: Told, title: str
) -> Manifest:
    """Look at every file that was not looked at before.

    Args:
        paths: below the root, in order.
        skip_broken: leave broken files out instead of refusing them.

    Raises:
        BrokenPictureError: naming the first file that is none.
    """
    kept = _kept_file(root, exif=exif)
    manifest = Manifest.empty(root, PackedTexts.pack(paths))
    _take_over(manifest, _read_kept(kept, root))
    missing = np.flatnonzero(manifest.modified < 0)
    if not len(missing):
        return manifest
    broken: list[str] = []
    saved = time.monotonic()
    try:
        with (
            told.task(title, total=len(paths), unit="pictures", done=len(paths) - len(missing)) as task,
            contextlib.closing(_examine_all(root, manifest.paths, missing, exif=exif, workers=workers)) as examined,
        ):
            for index, found in examined:
                task.advance(1)
                if isinstance(found, tuple):
                    manifest.put(index, found)
                elif skip_broken:
                    broken.append(found)
                else:
                    raise BrokenPictureError(f"{found}, or leave such files out (`skip_broken`)")
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    _keep(kept, manifest)
                    saved = time.monotonic()
    finally:
        _keep(kept, manifest)
    return manifest.rows(manifest.modified >= 0, broken=broken)


def _examine_all(
    root: Path, paths: PackedTexts, indices: NDArray[np.int64], *, exif: bool, workers: int
) -> Generator[tuple[int, Row | str], None, None]:
    parts = np.array_split(indices, -(-len(indices) // _AT_ONCE))
    texts = ([paths[int(index)] for index in part] for part in parts)
    with Workers(partial(_examine, root, exif), workers) as pool:
        for part, found in zip(parts, pool.map(texts), strict=True):
            yield from zip(part.tolist(), found, strict=True)


def _examine(root: Path, exif: bool, paths: Sequence[str]) -> list[Row | str]:
    """What is in some files: a row each, or a sentence about what is wrong."""
    return [_examine_one(root / path, exif=exif) for path in paths]


def _examine_one(path: Path, *, exif: bool) -> Row | str:
    try:
        file = read_file(path)
        height, width, _ = decode(file.data, path, exif=exif).shape
    except BrokenPictureError as error:
        return str(error)
    return len(file.data), file.stamp.modified, file.sha256, height, width


def _kept_file(root: Path, *, exif: bool) -> Path:
    return cache_file("manifests", f"{_VERSION} {root.resolve()} {exif}", ".npz")


def _read_kept(file: Path, root: Path) -> Manifest | None:
    """What was kept, if it can be read: whatever is wrong with it, the pictures are looked at again."""
    try:
        with (
            file.open("rb") as stream,
            np.load(stream, allow_pickle=False) as kept,
        ):  # a ZIP file, whose checksums are compared
            paths = PackedTexts(kept["joined"], kept["ends"])
            columns = {name: kept[name] for name in ("length", "modified", "sha256", "sizes")}
    except Exception:  # a cut or altered file raises nearly anything
        return None
    manifest = Manifest.empty(root, paths)
    if any(columns[name].shape != getattr(manifest, name).shape for name in columns):
        return None
    return Manifest(root=root, paths=paths, **columns)


def _take_over(manifest: Manifest, kept: Manifest | None) -> None:
    """The rows of files whose name, size and time are what they were."""
    if kept is None:
        return
    same = np.array_equal(kept.paths.joined, manifest.paths.joined) and np.array_equal(
        kept.paths.ends, manifest.paths.ends
    )
    places = None if same else {kept.paths[place]: place for place in range(len(kept))}
    for index in range(len(manifest)):
        place = index if places is None else places.get(manifest.paths[index])
        if place is None or kept.modified[place] < 0:
            continue
        try:
            status = manifest.path(index).stat()
        except OSError:
            continue
        if (status.st_size, status.st_mtime_ns) == (kept.length[place], kept.modified[place]):
            manifest.length[index], manifest.modified[index] = kept.length[place], kept.modified[place]
            manifest.sha256[index], manifest.sizes[index] = kept.sha256[place], kept.sizes[place]


def _keep(file: Path, manifest: Manifest) -> None:
    """For the next time; where nothing can be written, the next time looks again."""
    seen = manifest.rows(manifest.modified >= 0)
    with contextlib.suppress(OSError), draft_of(file) as draft:
        columns = {name: getattr(seen, name) for name in ("length", "modified", "sha256", "sizes")}
        np.savez(draft, joined=seen.paths.joined, ends=seen.paths.ends, **columns)
