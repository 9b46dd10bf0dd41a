"""Data that the user holds in Python, as a data set: tensors, arrays, map-style data sets, Hugging Face data sets.

Items must be the images themselves: views are made here, so a transform that draws random numbers is refused, and so is
one that leaves no 8-bit pixels.
"""

import hashlib
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.config import ImageConfig
from demkd.dataset.base import SMALL, ArrayDataset, ImageDataset, StreamedDataset
from demkd.dataset.builtin import load_images
from demkd.dataset.folder import processes
from demkd.dataset.workers import Workers
from demkd.errors import DataError
from demkd.pipeline.progress import SILENT, Progress

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "picture"), ("label", "labels", "fine_label")
_READ_TWICE = 4  # items that are compared with a second reading
_MOST_CLASSES = 1 << 20
_RANDOM = "leave random transforms out, views are made here and must be the same for teachers and students"


class MapDataset(Protocol):
    """A map-style data set, such as `torch.utils.data.Dataset`, whose items are (image, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = str | os.PathLike[str] | ImageDataset | MapDataset | tuple[Any, Any]


def as_dataset(
    data: Data, *, split: str, called: str = "data", images: ImageConfig | None = None, progress: Progress = SILENT
) -> ImageDataset:
    """Whatever the user has, as a data set; `called` is the argument's name, for messages.

    That is a data set; a name or folder as `load_images` takes it; a pair (images, labels) of tensors or arrays, images
    (N, H, W), (N, H, W, C) or (N, C, H, W) in uint8, C 1 or 3; a map-style data set of (image, label); or a Hugging
    Face data set with an image and a label column.
    """
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, str | os.PathLike):
        progress.note(f"reading the {split} images of {os.fspath(data)}")
        return load_images(os.fspath(data), split=split, images=images, progress=progress)
    kind = f"a {type(data).__name__}"
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(x, Tensor | np.ndarray) for x in data):
        kind = f"a pair of {type(data[0]).__name__}s"
        return replace(_from_arrays(*data, split=split, name=f"`{called}`, {kind}"), name=kind)
    if hasattr(data, "features") and hasattr(data, "column_names"):
        kind = "a Hugging Face data set"
        name = f"`{called}`, {kind}"
        image = _column(data.features, "Image", _IMAGE_COLUMNS, name)
        label = _column(data.features, "ClassLabel", _LABEL_COLUMNS, name)
        class_names, items = getattr(data.features[label], "names", None), _Items(data, name, (image, label))
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        class_names = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)
        items = _Items(data, f"`{called}`, {kind}")
    else:
        raise DataError(
            f"`{called}` is {kind}, which has no images by number: give a folder, a pair of tensors (images, "
            "labels), or a map-style data set of (image, label)"
        )
    workers = processes(images or ImageConfig())
    return replace(_from_items(items, class_names, split=split, workers=workers, progress=progress), name=kind)


def with_classes_of(train: ImageDataset, test: ImageDataset) -> ImageDataset:
    """A test split with the class names of the training split; DataError if it has others."""
    if test.class_names == train.class_names:
        return test
    numbers = tuple(map(str, range(test.classes)))
    if test.origin is None and test.class_names == numbers and test.classes <= train.classes:
        return replace(test, class_names=train.class_names)  # numbers alone, of which the last may be absent
    raise DataError(
        f"the {test.split} split of {test.name} has the classes {_first(test.class_names)}, and the {train.split} "
        f"split of {train.name} has {_first(train.class_names)}: give a {test.split} split of the same data"
    )


def _first(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:5])) + (f", ... ({len(names)})" if len(names) > 5 else "")


def _from_arrays(images: Any, labels: Any, *, split: str, name: str) -> ArrayDataset:
    for array, what in ((images, "images"), (labels, "labels")):
        if isinstance(array, np.ma.MaskedArray):
            raise DataError(f"{name} has masked {what}: give an array without a mask")
    shape, dtype = tuple(images.shape), images.dtype
    if dtype not in (torch.uint8, np.uint8) or len(shape) not in (3, 4):
        raise DataError(
            f"{name} has images of shape {shape} and type {dtype}: give 8-bit pixels (uint8), (N, H, W), "
            "(N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
        )
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if pixels.dim() == 3:
        pixels = pixels[..., None]
    if pixels.shape[3] not in (1, 3) or (pixels.shape[1] == 3 != pixels.shape[3]):
        pixels = pixels.movedim(1, 3)
    if pixels.shape[3] not in (1, 3):
        raise DataError(f"{name} has images of shape {shape}: give 1 or 3 channels")
    if len(labels.shape) != 1 or len(labels) != len(pixels):
        raise DataError(f"{name} has labels of shape {tuple(labels.shape)} for {len(pixels)} images: give one an image")
    numbers, class_names = _check_labels(labels, None, split, name)
    # A copy: a later change of the user's array must not reach the cache.
    pixels = pixels.expand(*pixels.shape[:3], 3).contiguous().clone()
    return ArrayDataset(name=name, split=split, pixels=pixels, labels=numbers, class_names=class_names)


def _check_labels(labels: Any, class_names: Any, split: str, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) as int64, and the names of their classes: numbers, if None are given."""
    if not len(labels):
        raise DataError(f"{name} has no images: add some")
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if array.dtype.kind not in "iu":
        what = "text" if array.dtype.kind in "USO" else str(array.dtype)
        raise DataError(f"{name} has labels of type {what}, such as {array[0]!r}: give integers, the classes' numbers")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= (_MOST_CLASSES if class_names is None else len(class_names)):
        of = "" if class_names is None else f" for {len(class_names)} classes"
        raise DataError(f"{name} has labels from {lowest} to {highest}{of}: number the classes from 0")
    numbers = array.astype(np.int64)
    if class_names is None:
        absent = np.flatnonzero(np.bincount(numbers) == 0).tolist()
        if absent and split == "train":
            raise DataError(
                f"{name} has labels from {lowest} to {highest}, but none is {_first(absent)}: number the classes from "
                "0 without gaps, or name them all (`demkd.ArrayDataset(..., class_names=...)`)"
            )
        class_names = range(highest + 1)
    return torch.from_numpy(numbers), tuple(map(str, class_names))


def _column(features: Any, kind: str, usual: Sequence[str], name: str) -> str:
    """The column of a type, or else of a usual name."""
    typed = [column for column, feature in features.items() if type(feature).__name__ == kind]
    named = [column for column in usual if column in features]
    if not typed and not named:
        raise DataError(f"{name} has no {kind} column among {', '.join(features)}: call it {usual[0]!r}")
    return (named if named and (not typed or named[0] in typed) else typed)[0]


@dataclass(frozen=True, slots=True)
class _Items:
    """Items (image, label) of a data set of the user's, or rows with an image and a label column."""

    data: Any
    name: str
    columns: tuple[str, str] | None = None

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """One item's image (H, W, 3) and label."""
        name = self.name
        try:
            item = self.data[index]
        except Exception as error:  # the user's own code may raise anything
            raise DataError(f"{name} cannot give item {index} ({type(error).__name__}: {error}): repair it") from error
        if self.columns is not None:
            item = [item[column] for column in self.columns]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{name} gives a {type(item).__name__} as item {index}: let it give (image, label)")
        image, label = item
        try:
            number = int(np.int64(operator.index(label)))
        except (TypeError, OverflowError):
            raise DataError(f"item {index} of {name} has the label {label!r}: give the number of one class") from None
        return _pixels(image, f"item {index} of {name}"), number

    def examine(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, tuple[int, int], int]:
        """The digest of an image, its pixels if it is small, its height and width, and its label."""
        pixels, label = self.read(index)
        height, width, _ = pixels.shape
        return _digest(pixels), pixels if max(height, width) <= SMALL else None, (height, width), label

    def read_unchanged(self, digests: NDArray[np.uint8], index: int) -> Tensor:
        """An image, if its digest is still that of the first reading."""
        pixels, _ = self.read(index)
        if not np.array_equal(_digest(pixels), digests[index]):
            raise DataError(f"{self.name} gives another image than before for item {index}: {_RANDOM}")
        return torch.from_numpy(pixels)


def _from_items(
    items: _Items, class_names: Any, *, split: str, workers: int, progress: Progress
) -> ArrayDataset | StreamedDataset:
    """Small images of one size into memory; others are read once, and again when they are needed."""
    name, count = items.name, len(items.data)
    if not count:
        raise DataError(f"{name} has no images: add some")
    tried = [items.read(index)[0] for index in range(min(_READ_TWICE, count))]
    for index, image in enumerate(tried):
        if not np.array_equal(image, items.read(index)[0]):
            raise DataError(f"{name} gives another image each time for item {index}: {_RANDOM}")
    pixels = None
    if max(tried[0].shape) <= SMALL and all(image.shape == tried[0].shape for image in tried):
        pixels = np.empty((count, *tried[0].shape), np.uint8)
    digests, sizes = np.empty((count, 32), np.uint8), np.empty((count, 2), np.int32)
    labels: list[int] = []
    with (
        Workers(items.examine, workers if pixels is None else 0) as pool,
        (progress if pixels is None else SILENT).task(
            f"reading the images of {name}", total=count, unit="images"
        ) as task,
    ):
        for index, (digest, small, size, label) in enumerate(pool.map(range(count))):
            digests[index], sizes[index] = digest, size
            labels.append(label)
            task.advance(1)
            if pixels is not None and small is not None and small.shape == pixels.shape[1:]:
                pixels[index] = small
            else:
                pixels = None
    numbers, names = _check_labels(np.array(labels), class_names, split, name)
    common: dict[str, Any] = {"name": name, "split": split, "labels": numbers, "class_names": names}
    if pixels is not None:
        return ArrayDataset(pixels=torch.from_numpy(pixels), **common)
    return StreamedDataset(
        reader=partial(items.read_unchanged, digests), image_sizes=sizes, digests=digests, workers=workers, **common
    )


def _digest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest(), np.uint8)


def _pixels(image: Any, what: str) -> NDArray[np.uint8]:
    """An image (H, W, 3), uint8: from PIL, an array, or a tensor as torchvision's transforms make it."""
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in (1, 3) else array
    elif hasattr(image, "convert"):
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    else:
        array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.kind == "f":  # torchvision's ToTensor divides bytes by 255, which can be undone
        levels = np.rint(array * 255)
        if not (np.abs(array * 255 - levels) < 1e-3).all() or levels.min() < 0 or levels.max() > 255:
            raise DataError(
                f"{what} has an image of numbers that are no 8-bit pixels: leave Normalize out of its transform (give "
                "`normalize` instead), and give images as they are"
            )
        array = levels.astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise DataError(
            f"{what} has an image of shape {array.shape} and type {array.dtype}: give a PIL image, or 8-bit pixels "
            "(H, W, 3) or (3, H, W)"
        )
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))  # its own memory, which may be written to
