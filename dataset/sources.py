"""Where pictures come from: the embedded digits, torchvision's CIFAR, or a folder of the user's own.

A new data set is one function and one line of `DATA_SETS`. Nothing is augmented here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.dataset.errors import DataError
from demkd.dataset.pictures import Normalisation, Pictures
from demkd.dataset.views import CropFlip

_PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# The figures that published CIFAR checkpoints were trained with (method.md; RepDistiller's and mdistiller's READMEs).
_CIFAR10 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100_NORMALISATION = Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
IMAGENET_NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NORMALISATIONS = {"cifar10": _CIFAR10, "cifar100": CIFAR100_NORMALISATION, "imagenet": IMAGENET_NORMALISATION}


def load_pictures(data: str, *, split: str, downloads: Path = Path("data")) -> Pictures:
    """Load one split.

    Args:
        data: a name in `DATA_SETS`, or a folder with `train/<class>/*` and `test/<class>/*`.
        split: "train" or "test".
        downloads: where CIFAR is kept, and downloaded to where the network allows it.

    Raises:
        DataError: if there is no such data set, or its pictures cannot be used; the message names the picture.
    """
    assert split in ("train", "test")
    if data in DATA_SETS:
        return DATA_SETS[data](split, downloads)
    if Path(data).is_dir():
        return _load_folder(Path(data), split)
    names = ", ".join(DATA_SETS)
    raise DataError(f"there is no data set or folder {data!r}: name one of {names}, or a folder with train/<class>/*")


def _load_digits(split: str, _downloads: Path) -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8 x 8; every fifth of each class, 360 in all, is the test split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the digits come with scikit-learn: pip install 'demkd[demo]' installs it") from None
    digits = load_digits()
    by_class = np.argsort(digits.target, kind="stable")
    test = np.zeros(len(by_class), bool)
    test[by_class[::5]] = True
    chosen = np.flatnonzero(test if split == "test" else ~test)
    grey = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return Pictures(
        source="digits",
        name="digits",
        split=split,
        pixels=torch.from_numpy(np.repeat(grey[..., None], 3, axis=3)),
        labels=torch.from_numpy(digits.target[chosen].astype(np.int64)),
        class_names=tuple(str(digit) for digit in range(10)),
        normalisation=Normalisation(mean=(0.3058,) * 3, std=(0.3761,) * 3),
        # A flipped digit is no digit, and of 8 pixels a shift by one is as much as the ink allows.
        policy=CropFlip(padding=1, flip=False),
    )


def _load_cifar(name: str, split: str, downloads: Path) -> Pictures:
    """CIFAR-10 or CIFAR-100 by torchvision, downloaded on first use."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        cifar = source(str(downloads), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not under {downloads} and could not be downloaded ({error}): "
            f"put torchvision's files there, or give a folder with train/<class>/*"
        ) from error
    return Pictures(
        source=name,
        name=name,
        split=split,
        pixels=torch.from_numpy(np.ascontiguousarray(cifar.data)),
        labels=torch.tensor(cifar.targets, dtype=torch.int64),
        class_names=tuple(cifar.classes),
        normalisation=NORMALISATIONS[name],
        policy=CropFlip(padding=4, flip=True),
    )


def _load_folder(folder: Path, split: str) -> Pictures:
    """`<split>/<class>/*`, classes and files in the order of their names, which is the same on every file system."""
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
    height = pixels.shape[1]
    return Pictures(
        source=str(folder),
        name=folder.name or str(folder),
        split=split,
        pixels=pixels,
        labels=labels,
        class_names=tuple(classes),
        normalisation=None,
        policy=CropFlip(padding=max(height // 8, 1), flip=True),
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


DATA_SETS: dict[str, Callable[[str, Path], Pictures]] = {
    "digits": _load_digits,
    "cifar10": lambda split, downloads: _load_cifar("cifar10", split, downloads),
    "cifar100": lambda split, downloads: _load_cifar("cifar100", split, downloads),
}
