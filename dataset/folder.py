"""A folder of pictures, a folder a class, decoded into memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.dataset.errors import DataError
from demkd.dataset.source import MemoryImages

_PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def load_folder(folder: Path, split: str) -> MemoryImages:
    """`<split>/<class>/*`, classes and files in the order of their names, which is the same on every file system.

    Raises:
        DataError: naming the folder or picture that cannot be used.
    """
    classes = _class_folders(folder, "train")
    if split != "train" and _class_folders(folder, split) != classes:
        odd = sorted(set(_class_folders(folder, split)) ^ set(classes))
        raise DataError(f"{folder / split} and {folder / 'train'} have different classes: {', '.join(odd[:5])}")
    files = [sorted(_picture_files(folder / split / name)) for name in classes]
    for name, found in zip(classes, files, strict=True):
        if not found:
            raise DataError(f"the class folder {folder / split / name} has no pictures: add some or remove it")
    pixels = torch.from_numpy(_decode_all([file for found in files for file in found]))
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(found) for found in files]))
    return MemoryImages(
        origin=str(folder),
        name=folder.name or str(folder),
        split=split,
        pixels=pixels,
        labels=labels,
        class_names=tuple(classes),
    )


def _class_folders(folder: Path, split: str) -> list[str]:
    if not (folder / split).is_dir():
        raise DataError(
            f"{folder} has no folder {split!r}: pictures are expected in {folder / split / '<class>' / '*'}"
        )
    names = sorted(entry.name for entry in (folder / split).iterdir() if entry.is_dir() and entry.name[0] != ".")
    if len(names) < 2:
        raise DataError(f"{folder / split} has {len(names)} class folders, and two are the least there is to classify")
    return names


def _picture_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES and file.name[0] != "."]


def _decode_all(files: Sequence[Path]) -> NDArray[np.uint8]:
    """Decode equally sized pictures into (N, H, W, 3); threads were tried, and are slower for pictures this small."""
    first = _decode(files[0])
    pixels = np.empty((len(files), *first.shape), np.uint8)
    for position, file in enumerate(files):
        picture = _decode(file)
        if picture.shape != first.shape:
            size, expected = _size_text(picture), _size_text(first)
            raise DataError(f"{file} is {size}, but {files[0]} is {expected}: resize all to one size")
        pixels[position] = picture
    return pixels


def _decode(file: Path) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as a picture ({error}): repair or remove it") from error


def _size_text(picture: NDArray[np.uint8]) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]} pixels"
