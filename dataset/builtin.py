"""The data sets that have a name: the embedded digits, and torchvision's CIFAR; or a folder of the user's own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from demkd.config import ImageConfig
from demkd.dataset.base import ArrayDataset, ImageDataset
from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.folder import FOLDERS, load_folder
from demkd.dataset.normalize import NORMALIZATIONS, Normalization
from demkd.errors import DataError
from demkd.pipeline.progress import SILENT, Progress


def load_images(
    data: str,
    *,
    split: str,
    downloads: Path = Path("data"),
    images: ImageConfig | None = None,
    progress: Progress = SILENT,
) -> ImageDataset:
    """Load one split.

    Args:
        data: a name in `DATA_SETS`, or a folder with `train/<class>/*` and `test/<class>/*`.
        split: "train", "test", or of a folder "validation".
        downloads: the folder for CIFAR, which is downloaded if it is not there.
        images: how a folder's images are decoded.
        progress: shows the first reading of a folder, and warnings.

    Raises:
        DataError: if there is no such data set, or its images cannot be used; the message names the image.
    """
    if data in DATA_SETS:
        if split not in ("train", "test"):
            raise DataError(f"{data} has no {split} images: hold out a part of the training images, or give others")
        return DATA_SETS[data](split, downloads)
    if Path(data).is_dir():
        return load_folder(Path(data), split, images or ImageConfig(), progress)
    names = ", ".join(DATA_SETS)
    raise DataError(f"there is no data set or folder {data!r}: name one of {names}, or a folder with train/<class>/*")


def has_validation(data: str) -> bool:
    """Whether data that `load_images` takes have validation images beside their test images."""
    if data in DATA_SETS:
        return False
    return (Path(data) / "test").is_dir() and any((Path(data) / name).is_dir() for name in FOLDERS["validation"])


def _load_digits(split: str, _downloads: Path) -> ArrayDataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8; every fifth of each class, 360 in all, is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    by_class = np.argsort(digits.target, kind="stable")
    test = np.zeros(len(by_class), bool)
    test[by_class[::5]] = True
    chosen = np.flatnonzero(test if split == "test" else ~test)
    gray = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ArrayDataset(
        origin="digits",
        name="digits",
        split=split,
        pixels=torch.from_numpy(np.repeat(gray[..., None], 3, axis=3)),
        labels=torch.from_numpy(digits.target[chosen].astype(np.int64)),
        class_names=tuple(map(str, range(10))),
        normalization=Normalization(mean=(0.3058,) * 3, std=(0.3761,) * 3),
        # A flipped digit is no digit, and of 8 pixels a shift by one is as much as the ink allows.
        augmentation=CropFlip(padding=1, flip=False),
    )


def _load_cifar(name: str, split: str, downloads: Path) -> ArrayDataset:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        cifar = dataset(str(downloads), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not under {downloads} and could not be downloaded ({error}): "
            f"put torchvision's files there, or give a folder with train/<class>/*"
        ) from error
    return ArrayDataset(
        origin=name,
        name=name,
        split=split,
        pixels=torch.from_numpy(np.ascontiguousarray(cifar.data)),
        labels=torch.tensor(cifar.targets, dtype=torch.int64),
        class_names=tuple(cifar.classes),
        normalization=NORMALIZATIONS[name],
        augmentation=CropFlip(padding=4, flip=True),
    )


DATA_SETS: dict[str, Callable[[str, Path], ArrayDataset]] = {
    "digits": _load_digits,
    "cifar10": partial(_load_cifar, "cifar10"),
    "cifar100": partial(_load_cifar, "cifar100"),
}
