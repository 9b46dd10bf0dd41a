"""A folder of pictures, a folder a class: small equal ones are decoded into memory, others are read when needed.

DATA/train/<class>/**    DATA/test/<class>/**, or validation/, or val/    DATA/classes.txt, where it names all classes
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from demkd.dataset.decoded import small_pictures
from demkd.dataset.decoding import decode, decoder_version, read_file
from demkd.dataset.errors import DataError
from demkd.dataset.manifest import Manifest, Told, make_manifest
from demkd.dataset.source import ImageSource, MemoryImages, StreamedImages
from demkd.dataset.workers import default_workers

_PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TEST_FOLDERS = ("test", "validation", "val")  # of these, "test" is read from the first that there is
_CLASSES_FILE = "classes.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a folder's pictures are read.

    Attributes:
        workers: processes that decode; one for each core but one if None, 0 for none.
        exif: turn pictures as their camera was held.
        skip_broken: leave broken files out, and say which, instead of refusing them.
    """

    workers: int | None = None
    exif: bool = True
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and (type(self.workers) is not int or not 0 <= self.workers <= 256):
            raise DataError(f"`workers` is {self.workers}: choose 0 to 256")

    @property
    def processes(self) -> int:
        return default_workers() if self.workers is None else self.workers


def load_folder(folder: Path, split: str, reading: Reading, told: Told) -> ImageSource:
    """Classes and files in the order of their names, which is the same on every file system.

    Raises:
        DataError: naming the folder or picture that cannot be used.
    """
    where = _split_folder(folder, split)
    classes = _classes(folder, where)
    paths, labels = _listed(where, classes)
    if not paths:
        raise DataError(f"{where} has no pictures: put them into {where / '<class>' / '*'}")
    name = folder.name or str(folder)
    common = {"origin": str(folder), "name": name, "split": split, "class_names": tuple(classes)}
    if not reading.skip_broken:  # what was left out is the manifest's to say
        in_memory = partial(MemoryImages, labels=torch.tensor(labels), **common)  # type: ignore[arg-type]
        small = small_pictures(where, paths, exif=reading.exif, source_of=lambda pixels: in_memory(pixels=pixels))
        if small is not None:
            return small
    manifest = make_manifest(
        where,
        paths,
        exif=reading.exif,
        skip_broken=reading.skip_broken,
        workers=reading.processes,
        told=told,
        title=f"looking at the {where.name} pictures of {name}",
    )
    if manifest.broken:
        told.warn(f"{len(manifest.broken):,} of {len(paths):,} files were left out: {'; '.join(manifest.broken[:3])}")
    kept = _labels_of(manifest, paths, labels)
    if not len(kept):
        raise DataError(f"{where} has no picture that can be read")
    return StreamedImages(
        labels=kept,
        reader=partial(read_listed, manifest, reading.exif),
        picture_sizes=manifest.sizes,
        digests=manifest.sha256,
        identity_facts={"exif": reading.exif},
        extra_notes={"decoder": decoder_version(), **({"left_out": list(manifest.broken)} if manifest.broken else {})},
        workers=reading.processes,
        **common,  # type: ignore[arg-type]
    )


def read_listed(manifest: Manifest, exif: bool, index: int) -> Tensor:
    """The picture (H, W, 3) of a row of a manifest.

    Raises:
        DataError: if the file is not what it was.
    """
    path = manifest.path(index)
    file = read_file(path)
    if file.sha256 != manifest.sha256[index].tobytes():
        raise DataError(
            f"{path} was changed since the pictures were looked at: put the old file back, or run the command again "
            "from the start, which looks at it anew"
        )
    return torch.from_numpy(decode(file.data, path, exif=exif))


def _split_folder(folder: Path, split: str) -> Path:
    for name in TEST_FOLDERS if split == "test" else (split,):
        if (folder / name).is_dir():
            return folder / name
    also = f" (or {', '.join(TEST_FOLDERS[1:])})" if split == "test" else ""
    raise DataError(
        f"{folder} has no folder {split!r}{also}: pictures are expected in {folder / split / '<class>' / '*'}"
    )


def _classes(folder: Path, where: Path) -> list[str]:
    """The classes in order: those that classes.txt names, or else the folders of the training split.

    Raises:
        DataError: if the split has others.
    """
    found = _class_folders(where)
    if (folder / _CLASSES_FILE).is_file():
        text = (folder / _CLASSES_FILE).read_text(encoding="utf-8", errors="replace")
        known = [line.strip() for line in text.splitlines() if line.strip()]
        odd = sorted(set(found) - set(known))
        if odd or len(set(known)) != len(known):
            what = f"does not name {', '.join(odd[:5])} of {where}" if odd else "names a class twice"
            raise DataError(f"{folder / _CLASSES_FILE} {what}: give a line to every class, its number is its line's")
        return known
    known = found if where.name == "train" else _class_folders(folder / "train")
    if found != known:
        odd = sorted(set(found) ^ set(known))
        raise DataError(
            f"{where} and {folder / 'train'} have different classes: {', '.join(odd[:5])}; where a split lacks some, "
            f"name all of them in {folder / _CLASSES_FILE}, a line each"
        )
    return known


def _class_folders(where: Path) -> list[str]:
    if not where.is_dir():
        raise DataError(f"there is no folder {where}: pictures are expected in {where / '<class>' / '*'}")
    with os.scandir(where) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if len(names) < 2:
        raise DataError(f"{where} has {len(names)} class folders, and two are the least there is to classify")
    return names


def _listed(where: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """The pictures below a split's folder by class and name, and the label of each."""
    paths: list[str] = []
    labels: list[int] = []
    present = set(_class_folders(where))
    for label, name in enumerate(classes):
        found = sorted(_picture_files(where / name, name)) if name in present else []
        if not found and name in present:
            raise DataError(f"the class folder {where / name} has no pictures: add some or remove it")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _picture_files(folder: Path, prefix: str) -> Iterator[str]:
    """Asked of the folder's own entries, which say what they are: to ask the system about each file takes long."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.is_dir():
                yield from _picture_files(folder / entry.name, f"{prefix}/{entry.name}")
            elif entry.name[entry.name.rfind(".") :].lower() in _PICTURE_SUFFIXES:
                yield f"{prefix}/{entry.name}"


def _labels_of(manifest: Manifest, paths: Sequence[str], labels: Sequence[int]) -> Tensor:
    """The labels (N,) of the pictures that a manifest kept."""
    if len(manifest) == len(paths):
        return torch.tensor(labels, dtype=torch.int64)
    by_path = dict(zip(paths, labels, strict=True))
    return torch.tensor([by_path[manifest.paths[index]] for index in range(len(manifest))], dtype=torch.int64)
