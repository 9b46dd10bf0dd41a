"""A folder of images, one folder for each class: small equal images are kept in memory, others are read when needed.

    DATA/train/<class>/**    DATA/test/<class>/**, or validation/, or val/    DATA/classes.txt, to name all classes

Every file is decoded once. Its stamp, SHA-256 and size, and the pixels of small images, are kept in an index in the
user's cache directory, and reused while the file's name, length, inode and both times agree. N images.
"""

import contextlib
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.config import ImageConfig
from demkd.dataset.base import SMALL, ArrayDataset, ImageDataset, StreamedDataset
from demkd.dataset.decode import BrokenImageError, Pixels, Stamp, decode, decoder_version, is_image, read_file, stamp_of
from demkd.dataset.workers import Workers, default_workers
from demkd.errors import DataError, visible_line
from demkd.pipeline.progress import SILENT, Progress

# By split, the names of its folder; the first one that exists is it.
FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "validation", "val")}
_CLASSES_FILE = "classes.txt"
# Files with other endings are opened to see what they are.
_SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
_VERSION = 3
_AT_ONCE = 32  # files that a worker gets at once
_SECONDS_BETWEEN_SAVES = 60.0
_UNSETTLED_NS = 2_000_000_000  # two changes so close together may have equal times
_CHANGED = 2  # place of the inode's time in a stamp


def processes(images: ImageConfig) -> int:
    """The number of processes that decode images."""
    return default_workers() if images.workers is None else images.workers


def load_folder(folder: Path, split: str, options: ImageConfig, progress: Progress) -> ImageDataset:
    """Classes and files in the order of their names, which is the same on every file system."""
    names = FOLDERS[split]
    root = next((folder / name for name in names if (folder / name).is_dir()), None)
    if root is None:
        also = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise DataError(
            f"{folder} has no folder {split!r}{also}: images are expected in {folder / split / '<class>' / '*'}"
        )
    classes = _classes(folder, root)
    paths, labels = _list_images(root, classes, progress)
    if not paths:
        raise DataError(f"{root} has no images: put them into {root / '<class>' / '*'}")
    name = folder.name or str(folder)
    common: dict[str, Any] = {"origin": str(folder), "name": name, "split": split, "class_names": tuple(classes)}
    # Paths as bytes: a list of texts would take three times as much in every worker.
    files = np.array([os.fsencode(path) for path in paths])
    rows, pixels, broken = _make_index(root, files, options, progress, f"reading the {root.name} images of {name}")
    if pixels is not None:
        return ArrayDataset(labels=torch.tensor(labels), pixels=torch.from_numpy(pixels), files=files, **common)
    used = np.flatnonzero(rows["stamp"].any(axis=1))
    if not len(used):
        raise DataError(f"{root} has no image that can be read")
    if broken:
        progress.warn(f"{len(broken):,} of {len(paths):,} files were left out: {'; '.join(broken[:3])}")
    files, sha256 = files[used], np.ascontiguousarray(rows["sha256"][used])
    return StreamedDataset(
        labels=torch.tensor(labels, dtype=torch.int64)[torch.from_numpy(used)],
        reader=partial(_read_unchanged, root, files, sha256, options.exif),
        image_sizes=np.ascontiguousarray(rows["size"][used]),
        digests=sha256,
        files=files,
        decoding={"exif": options.exif},
        extra_notes={"decoder": decoder_version(), **({"left_out": broken} if broken else {})},
        workers=processes(options),
        **common,
    )


def _classes(folder: Path, root: Path) -> list[str]:
    """The classes in order: the lines of classes.txt, or else the folders of the training split."""
    present = _class_folders(root)
    file = folder / _CLASSES_FILE
    if file.is_file():
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        known = [line.strip() for line in text.splitlines() if line.strip()]
        odd = sorted(set(present) - set(known))
        if odd or len(set(known)) != len(known):
            what = f"does not name {', '.join(odd[:5])} of {root}" if odd else "names a class twice"
            raise DataError(f"{file} {what}: give each class a line, its number is its line's")
        return known
    known = present if root.name == "train" else _class_folders(folder / "train")
    if present != known:
        odd = sorted(set(present) ^ set(known))
        raise DataError(
            f"{root} and {folder / 'train'} have different classes: {', '.join(odd[:5])}; where a split lacks some, "
            f"name all of them in {file}, a line each"
        )
    return known


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: images are expected in {root / '<class>' / '*'}")
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that are not UTF-8
            raise DataError(f"the class folder {root / visible_line(name)} has a name that is not text: rename it")
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folders, and a classifier needs two")
    return names


def _list_images(root: Path, classes: Sequence[str], progress: Progress) -> tuple[list[str], list[int]]:
    """The images below a split's folder by class and name, and the label of each; others are named in a warning."""
    paths: list[str] = []
    labels: list[int] = []
    skipped: list[str] = []
    present = set(_class_folders(root))
    for label, name in enumerate(classes):
        files = sorted(_files(root / name, name)) if name in present else []
        images = [path for path in files if path.lower().endswith(_SUFFIXES) or is_image(root / path)]
        if not images and name in present:
            raise DataError(f"the class folder {root / name} has no images: add some or remove it")
        if len(images) < len(files):
            skipped += sorted(set(files) - set(images))
        paths += images
        labels += [label] * len(images)
    if skipped:
        progress.warn(
            f"{len(skipped):,} of {len(skipped) + len(paths):,} files of {root} are not images and were left out: "
            f"{', '.join(visible_line(path) for path in skipped[:3])}"
        )
    return paths, labels


def _files(folder: Path, prefix: str) -> Iterator[str]:
    """All files below a folder, but hidden ones; from the folder's entries, because a stat of each takes long."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.is_dir():
                yield from _files(folder / entry.name, f"{prefix}/{entry.name}")
            else:
                yield f"{prefix}/{entry.name}"


def _read_unchanged(root: Path, files: NDArray[np.bytes_], sha256: NDArray[np.uint8], exif: bool, index: int) -> Tensor:
    path = root / os.fsdecode(files[index])
    data, _ = read_file(path)
    if hashlib.sha256(data).digest() != sha256[index].tobytes():
        raise DataError(
            f"{path} was changed since the images were read first: put the old file back, or run the command again "
            "from the start, which reads it anew"
        )
    return torch.from_numpy(decode(data, path, exif=exif))


# What the index has of a file: its stamp, zeros if it was not examined or was left out; its digest; height and width.
_ROW = np.dtype([("stamp", "<i8", 4), ("sha256", "u1", 32), ("size", "<i4", 2)])
Rows = NDArray[np.void]
_Examined = tuple[tuple[Stamp, NDArray[np.uint8], tuple[int, int]], Pixels | None]  # a row, and the pixels if small


def _make_index(
    root: Path, files: NDArray[np.bytes_], options: ImageConfig, progress: Progress, title: str
) -> tuple[Rows, Pixels | None, list[str]]:
    """Examine the files (N,) that changed since the last time; return their rows (N,).

    And pixels (N, H, W, 3), if all images are small and of one size; and sentences about files left out.
    """
    key = hashlib.sha256(f"{_VERSION} {root.resolve()} {options.exif}".encode()).hexdigest()[:32]
    index_file = platformdirs.user_cache_path("demkd") / "images" / f"{key}.npz"
    started = saved = time.time_ns()
    rows, pixels = _load_index(index_file, root, files)
    # Where three files are small and of one size, all are decoded in this process, else in worker processes.
    tried = [_examine_file(root, options.exif, files[place]) for place in sorted({0, len(files) // 2, len(files) - 1})]
    shapes = {None if isinstance(found, str) or found[1] is None else found[1].shape for found in tried}
    (shape,) = shapes if len(shapes) == 1 else (None,)
    known_sizes = rows["size"][rows["stamp"].any(axis=1)]
    if shape is None or options.skip_broken or (known_sizes != shape[:2]).any():  # an array has no gaps
        pixels = None
    elif pixels is None or pixels.shape[1:] != shape:
        rows["stamp"] = 0
        pixels = np.empty((len(files), *shape), np.uint8)
    missing = np.flatnonzero(~rows["stamp"].any(axis=1))
    broken: list[str] = []
    if not len(missing):
        return rows, pixels, broken
    parts = np.array_split(missing, -(-len(missing) // _AT_ONCE))
    is_small = pixels is not None  # then decoding all takes seconds
    shown: Progress = SILENT if is_small else progress
    try:
        with (
            Workers(partial(_examine_files, root, options.exif), 0 if is_small else processes(options)) as pool,
            shown.task(title, total=len(files), unit="images", done=len(files) - len(missing)) as task,
            contextlib.closing(pool.map(files[part] for part in parts)) as results,
        ):
            for place, found in zip(missing.tolist(), itertools.chain.from_iterable(results), strict=True):
                task.advance(1)
                if isinstance(found, str):
                    if not options.skip_broken:
                        raise BrokenImageError(f"{found}, or leave such files out (`skip_broken`)")
                    broken.append(visible_line(found))
                    continue
                rows[place], image = found
                if pixels is not None and image is not None and image.shape == pixels.shape[1:]:
                    pixels[place] = image
                else:
                    pixels = None
                if time.time_ns() - saved > _SECONDS_BETWEEN_SAVES * 1e9:
                    _save_index(index_file, files, rows, pixels, started)
                    saved = time.time_ns()
    finally:
        _save_index(index_file, files, rows, pixels, started)
    return rows, pixels, broken


def _examine_files(root: Path, exif: bool, files: NDArray[np.bytes_]) -> list[_Examined | str]:
    return [_examine_file(root, exif, file) for file in files]


def _examine_file(root: Path, exif: bool, file: bytes) -> _Examined | str:
    """What is in a file, or a sentence about what is wrong."""
    path = root / os.fsdecode(file)
    try:
        data, stamp = read_file(path)
        pixels = decode(data, path, exif=exif)
    except BrokenImageError as error:
        return str(error)
    height, width, _ = pixels.shape
    row = (stamp, np.frombuffer(hashlib.sha256(data).digest(), np.uint8), (height, width))
    return row, pixels if max(height, width) <= SMALL else None


def _load_index(file: Path, root: Path, files: NDArray[np.bytes_]) -> tuple[Rows, Pixels | None]:
    """Rows (N,) of files whose name and stamp are what they were, zeros for others; and pixels, if there are any."""
    rows, pixels = np.zeros(len(files), _ROW), None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:  # ZIP checks its checksums
            kept_files, kept_rows, known = kept["files"], kept["rows"], np.arange(len(files))
            if kept_rows.shape != kept_files.shape or kept_rows.dtype != _ROW:
                return rows, None
            if not np.array_equal(kept_files, files):
                places = {name: place for place, name in enumerate(kept_files.tolist())}
                known = np.array([places.get(name, -1) for name in files.tolist()])
            rows[known >= 0] = kept_rows[known[known >= 0]]
            if "pixels" in kept and str(kept["decoder"]) == decoder_version():
                pixels = kept["pixels"]
                pixels = pixels if np.array_equal(known, np.arange(len(pixels))) else pixels[known]
    except Exception:  # a cut or altered file raises nearly anything: all files are examined again
        return np.zeros(len(files), _ROW), None
    before = os.fsencode(root) + os.fsencode(os.sep)
    for place, (name, stamp) in enumerate(zip(files, rows["stamp"], strict=True)):  # lists would take much memory
        try:
            is_same = tuple(stamp.tolist()) == stamp_of(os.stat(before + name))  # noqa: PTH116 - twice as fast as Path
        except OSError:
            is_same = False
        if not is_same:
            rows["stamp"][place] = 0
    return rows, pixels


def _save_index(file: Path, files: NDArray[np.bytes_], rows: Rows, pixels: Pixels | None, started: int) -> None:
    """Write beside the old index, then replace it; where nothing can be written, the next time examines all again."""
    rows, arrays = rows.copy(), dict[str, Any]()
    if pixels is not None:  # images that are read again are compared with their digests
        rows["stamp"][rows["stamp"][:, _CHANGED] > started - _UNSETTLED_NS] = 0
        arrays["pixels"] = pixels
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as draft:
            try:
                np.savez(draft, files=files, rows=rows, decoder=np.array(decoder_version()), **arrays)
                draft.flush()
                Path(draft.name).replace(file)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
