"""The data sets that have a name here: the embedded digits, torchvision's CIFAR, or a folder of the user's own.

A new data set is one function and one line of `DATA_SETS`. Nothing is augmented here.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import DataError
from demkd.dataset.folder import Reading, load_folder
from demkd.dataset.manifest import Told
from demkd.dataset.normalisation import NORMALISATIONS, Normalisation
from demkd.dataset.source import ImageSource, MemoryImages


class _Untold:
    """No progress output."""

    @contextlib.contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator["_Untold"]:  # noqa: ARG002
        yield self

    def advance(self, count: int) -> None:
        """Nothing to show."""

    def warn(self, text: str) -> None:
        """Nothing to show."""


UNTOLD = _Untold()


def load_images(
    data: str,
    *,
    split: str,
    downloads: Path = Path("data"),
    reading: Reading | None = None,
    told: Told = UNTOLD,
) -> ImageSource:
    """Load one split.

    Args:
        data: a name in `DATA_SETS`, or a folder with `train/<class>/*` and `test/<class>/*`.
        split: "train" or "test".
        downloads: where CIFAR is kept, and downloaded to where the network allows it.
        reading: how a folder's pictures are decoded.
        told: where the first look at a folder's pictures is shown.

    Raises:
        DataError: if there is no such data set, or its pictures cannot be used; the message names the picture.
    """
    assert split in ("train", "test")
    if data in DATA_SETS:
        return DATA_SETS[data](split, downloads)
    if Path(data).is_dir():
        return load_folder(Path(data), split, reading or Reading(), told)
    names = ", ".join(DATA_SETS)
    raise DataError(f"there is no data set or folder {data!r}: name one of {names}, or a folder with train/<class>/*")


def _load_digits(split: str, _downloads: Path) -> MemoryImages:
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
    return MemoryImages(
        origin="digits",
        name="digits",
        split=split,
        pixels=torch.from_numpy(np.repeat(grey[..., None], 3, axis=3)),
        labels=torch.from_numpy(digits.target[chosen].astype(np.int64)),
        class_names=tuple(str(digit) for digit in range(10)),
        normalisation=Normalisation(mean=(0.3058,) * 3, std=(0.3761,) * 3),
        # A flipped digit is no digit, and of 8 pixels a shift by one is as much as the ink allows.
        policy=CropFlip(padding=1, flip=False),
    )


def _load_cifar(name: str, split: str, downloads: Path) -> MemoryImages:
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
    return MemoryImages(
        origin=name,
        name=name,
        split=split,
        pixels=torch.from_numpy(np.ascontiguousarray(cifar.data)),
        labels=torch.tensor(cifar.targets, dtype=torch.int64),
        class_names=tuple(cifar.classes),
        normalisation=NORMALISATIONS[name],
        policy=CropFlip(padding=4, flip=True),
    )


DATA_SETS: dict[str, Callable[[str, Path], MemoryImages]] = {
    "digits": _load_digits,
    "cifar10": lambda split, downloads: _load_cifar("cifar10", split, downloads),
    "cifar100": lambda split, downloads: _load_cifar("cifar100", split, downloads),
}
