"""Data that the user holds in Python, as a source: tensors, arrays, map-style data sets, Hugging Face data sets.

What a `torch.utils.data.Dataset` gives must be the picture itself: views are drawn here, so a transform that draws
random numbers is refused, and so is one that leaves no 8-bit pixels.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.dataset.errors import DataError
from demkd.dataset.folder import Reading
from demkd.dataset.library import UNTOLD, load_images
from demkd.dataset.manifest import Told
from demkd.dataset.source import SMALL, ImageSource, MemoryImages, StreamedImages
from demkd.dataset.workers import Workers

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "picture"), ("label", "labels", "fine_label")
_TRIED = 4  # pictures that are asked for twice


class MapDataset(Protocol):
    """A map-style data set, such as `torch.utils.data.Dataset`, whose items are (picture, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Item = Callable[[int], tuple[Any, Any]]  # number -> picture, label
Watch = tuple[Reading, Told]
Data = str | os.PathLike[str] | ImageSource | MapDataset | tuple[Any, Any]


def as_source(
    data: Data,
    *,
    split: str,
    called: str = "data",
    reading: Reading | None = None,
    told: Told = UNTOLD,
) -> ImageSource:
    """Whatever the user has as a source of pictures.

    Args:
        data: a source; a name or folder as `load_images` takes it; a pair (pictures, labels) of tensors or arrays,
            pictures (N, H, W), (N, H, W, C) or (N, C, H, W) in uint8, C 1 or 3; a map-style data set of (picture,
            label); a Hugging Face data set with an image and a label column.
        split: "train" or "test".
        called: the argument's name, for messages.
        reading, told: as `load_images` takes them.

    Raises:
        DataError: naming the argument or the sample that cannot be used.
    """
    if isinstance(data, ImageSource):
        return data
    if isinstance(data, str | Path | os.PathLike):
        return load_images(os.fspath(data), split=split, reading=reading, told=told)
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_array, data)):
        return _from_arrays(*data, split=split, called=called)
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return _from_columns(data, split=split, called=called, watch=(reading or Reading(), told))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _from_items(data, split=split, called=called, watch=(reading or Reading(), told))
    raise DataError(
        f"`{called}` is a {type(data).__name__}, which has no pictures by number: give a folder, a pair of tensors "
        "(pictures, labels), or a map-style data set of (picture, label)"
    )


def with_classes_of(train: ImageSource, test: ImageSource) -> ImageSource:
    """A test split with the class names of the training split.

    Raises:
        DataError: if it has others.
    """
    if test.class_names == train.class_names:
        return test
    if (
        test.origin is None
        and test.class_names == tuple(map(str, range(test.classes)))
        and test.classes <= train.classes
    ):
        return replace(test, class_names=train.class_names)  # numbers alone, of which the last may be absent
    raise DataError(
        f"{test.name} has the classes {_some(test.class_names)}, and {train.name} has {_some(train.class_names)}: "
        "give a test split of the same data"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def _from_arrays(pictures: Any, labels: Any, *, split: str, called: str) -> MemoryImages:
    name = f"`{called}`, a pair of {type(pictures).__name__}s"
    pixels, numbers = torch.as_tensor(pictures), torch.as_tensor(labels)
    if numbers.dim() != 1 or len(numbers) != len(pixels) or numbers.is_floating_point():
        raise DataError(
            f"{name} has labels of shape {tuple(numbers.shape)} and type {numbers.dtype}: give one integer a picture"
        )
    if pixels.dtype != torch.uint8 or pixels.dim() not in (3, 4):
        raise DataError(
            f"{name} has pictures of shape {tuple(pixels.shape)} and type {pixels.dtype}: give 8-bit pixels (uint8), "
            "(N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
        )
    if pixels.dim() == 3:
        pixels = pixels[..., None].expand(*pixels.shape, 3)
    if pixels.shape[3] not in (1, 3) or (pixels.shape[1] == 3 != pixels.shape[3]):
        pixels = pixels.movedim(1, 3)
    if pixels.shape[3] == 1:
        pixels = pixels.expand(*pixels.shape[:3], 3)
    if pixels.shape[3] != 3:
        raise DataError(f"{name} has pictures of shape {tuple(torch.as_tensor(pictures).shape)}: give 1 or 3 channels")
    return MemoryImages(
        name=name,
        split=split,
        pixels=pixels.contiguous().clone(),  # a later change of the user's array must not reach the cache
        labels=numbers.to(torch.int64).clone(),
        class_names=_class_names(numbers, None, name),
    )


def _from_items(data: MapDataset, *, split: str, called: str, watch: Watch) -> ImageSource:
    name = f"`{called}`, a {type(data).__name__}"
    known = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)

    def item(index: int) -> tuple[Any, Any]:
        found = data[index]
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise DataError(f"{name} gives a {type(found).__name__} as item {index}: let it give (picture, label)")
        return found[0], found[1]

    return _from_calls(len(data), item, known, name=name, split=split, watch=watch)


def _from_columns(data: Any, *, split: str, called: str, watch: Watch) -> ImageSource:
    """A Hugging Face data set: the image and label columns by their types, or else by their usual names."""
    name = f"`{called}`, a Hugging Face data set"
    features = data.features
    image = _column(features, "Image", _IMAGE_COLUMNS, name)
    label = _column(features, "ClassLabel", _LABEL_COLUMNS, name)
    known = getattr(features[label], "names", None)

    def item(index: int) -> tuple[Any, Any]:
        row = data[index]
        return row[image], row[label]

    return _from_calls(len(data), item, known, name=name, split=split, watch=watch)


def _column(features: Any, kind: str, usual: Sequence[str], name: str) -> str:
    typed = [column for column, feature in features.items() if type(feature).__name__ == kind]
    named = [column for column in usual if column in features]
    if not typed and not named:
        raise DataError(f"{name} has no {kind} column among {', '.join(features)}: call it {usual[0]!r}")
    return (named if named and (not typed or named[0] in typed) else typed)[0]


def _from_calls(count: int, item: Item, known: Any, *, name: str, split: str, watch: Watch) -> ImageSource:
    """Small equal pictures into memory; of others every one is looked at once, and read again when it is needed."""
    if not count:
        raise DataError(f"{name} has no pictures: nothing to do with it")
    for index in range(min(_TRIED, count)):
        if not np.array_equal(_read_item(item, name, index)[0], _read_item(item, name, index)[0]):
            raise DataError(
                f"{name} gives another image each time for item {index}: leave random transforms out, "
                "views are drawn here and must be the same for teachers and students"
            )
    if max(_read_item(item, name, 0)[0].shape[:2]) <= SMALL:
        kept = _small_items(count, item, name)
        if kept is not None:
            labels = torch.tensor(kept[1], dtype=torch.int64)
            names = _class_names(labels, known, name)
            return MemoryImages(name=name, split=split, pixels=kept[0], labels=labels, class_names=names)
    return _streamed_items(count, item, known, name=name, split=split, watch=watch)


def _small_items(count: int, item: Item, name: str) -> tuple[Tensor, list[int]] | None:
    pictures: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for index in range(count):
        pixels, label = _read_item(item, name, index)
        if pictures and pixels.shape != pictures[0].shape:
            return None
        pictures.append(pixels)
        labels.append(label)
    return torch.from_numpy(np.stack(pictures)), labels


def _streamed_items(count: int, item: Item, known: Any, *, name: str, split: str, watch: Watch) -> StreamedImages:
    reading, told = watch
    digests, sizes = np.empty((count, 32), np.uint8), np.empty((count, 2), np.int32)
    labels = torch.empty(count, dtype=torch.int64)
    with (
        Workers(partial(_examine_item, item, name), reading.processes) as pool,
        told.task(f"looking at the pictures of {name}", total=count, unit="pictures") as task,
    ):
        for index, (digest, size, label) in enumerate(pool.map(range(count))):
            digests[index], sizes[index], labels[index] = np.frombuffer(digest, np.uint8), size, label
            task.advance(1)
    return StreamedImages(
        name=name,
        split=split,
        labels=labels,
        class_names=_class_names(labels, known, name),
        reader=partial(_read_same, item, name, digests),
        picture_sizes=sizes,
        digests=digests,
        workers=reading.processes,
    )


def _examine_item(item: Item, name: str, index: int) -> tuple[bytes, tuple[int, int], int]:
    pixels, label = _read_item(item, name, index)
    return _digest(pixels), (pixels.shape[0], pixels.shape[1]), label


def _read_same(item: Item, name: str, digests: NDArray[np.uint8], index: int) -> Tensor:
    pixels, _ = _read_item(item, name, index)
    if _digest(pixels) != digests[index].tobytes():
        raise DataError(
            f"{name} gives another image than before for item {index}: leave random transforms out, views are drawn "
            "here and must be the same for teachers and students"
        )
    return torch.from_numpy(pixels)


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def _read_item(item: Item, name: str, index: int) -> tuple[NDArray[np.uint8], int]:
    """One item's picture (H, W, 3) and label."""
    try:
        picture, label = item(index)
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:  # the user's own code may raise anything
        raise DataError(f"{name} cannot give item {index} ({type(error).__name__}: {error}): repair it") from error
    return _pixels(picture, index, name), _label(label, index, name)


def _pixels(picture: Any, index: int, name: str) -> NDArray[np.uint8]:
    """A picture (H, W, 3), uint8: from PIL, an array, or a tensor as torchvision's transforms make it."""
    if isinstance(picture, Tensor):
        array = picture.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in (1, 3) else array
    elif hasattr(picture, "convert"):
        array = np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
    else:
        array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.kind == "f":
        array = _as_bytes(array, index, name)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise DataError(
            f"item {index} of {name} has a picture of shape {array.shape} and type {array.dtype}: give a PIL image, or "
            "8-bit pixels (H, W, 3) or (3, H, W)"
        )
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))  # of its own, which may be written to


def _as_bytes(array: NDArray[Any], index: int, name: str) -> NDArray[np.uint8]:
    """What torchvision's ToTensor made of bytes, made bytes again; anything else has lost its pixels."""
    scaled = array * 255
    rounded = np.rint(scaled)
    if (
        np.isfinite(scaled).all()
        and scaled.min() >= 0
        and scaled.max() <= 255
        and np.abs(scaled - rounded).max() < 1e-3
    ):
        pixels: NDArray[np.uint8] = rounded.astype(np.uint8)
        return pixels
    raise DataError(
        f"item {index} of {name} has a picture of numbers that are no 8-bit pixels: leave Normalize out of its "
        "transform (give `normalise` instead), and give pictures as they are"
    )


def _label(label: Any, index: int, name: str) -> int:
    try:
        number = int(label)
        if number == label:
            return number
    except (TypeError, ValueError):
        pass
    raise DataError(f"item {index} of {name} has the label {label!r}: give the number of one class")


def _class_names(labels: Tensor, known: Any, name: str) -> tuple[str, ...]:
    if not len(labels):
        raise DataError(f"{name} has no pictures: nothing to do with it")
    names = tuple(map(str, known)) if known is not None else tuple(map(str, range(int(labels.max()) + 1)))
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= len(names):
        raise DataError(f"{name} has labels from {lowest} to {highest} for {len(names)} classes: number them from 0")
    return names


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)
