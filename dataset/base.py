"""What a data set of images is: sample i always has the same image and label, and a digest identifies all of them.

`ArrayDataset` holds decoded images of one size in memory, `StreamedDataset` reads images when they are needed, in
worker processes. N samples, C classes, B samples of a batch, V views, P params of a view, H and W pixels.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demkd.dataset.augment import Augmentation, BatchApply, Sizes
from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.normalize import NORMALIZATIONS, Normalization
from demkd.dataset.resized_crop import ResizedCrop
from demkd.dataset.workers import Workers
from demkd.errors import DataError

SMALL = 64  # pixels a side, up to which images of one size are kept in memory, and augmented by crop-flip

Views = Mapping[int | None, Sequence[Tensor]]  # by size: V times (B, 3, H, W), uint8, channels last in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTask:
    """The views with params (V, B, P) of samples (B,), at some sizes; None is the augmentation's own size."""

    indices: Tensor
    params: Tensor
    sizes: tuple[int | None, ...] = (None,)


@dataclass(frozen=True, kw_only=True)
class ImageDataset(ABC):
    """One split of a data set.

    Attributes:
        name: for messages; no part of any digest.
        split: "train" or "test".
        labels: (N,), int64, in 0..C-1.
        class_names: C names; the position is the label.
        origin: the name or folder for `load_images`; None for a Python object.
        normalization: the values published with the data set, or None.
        augmentation: its own augmentation, or None for the usual one of its images.
        files: (N,), paths below the split's folder as bytes, if the images were read from a folder.
    """

    name: str
    split: str
    labels: Tensor
    class_names: tuple[str, ...]
    origin: str | None = None
    normalization: Normalization | None = None
    augmentation: Augmentation | None = None
    files: np.ndarray[Any, np.dtype[np.bytes_]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """Height and width of every image: (N, 2), int32."""

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, if all images have the same."""
        height, width = self.sizes[0]
        return None if (self.sizes != self.sizes[0]).any() else (int(height), int(width))

    @property
    def default_augmentation(self) -> Augmentation:
        """Its own augmentation; else crop-flip for small images of one size, and resized-crop for others."""
        size = self.image_size
        if self.augmentation is None and size is not None and max(size) <= SMALL:
            return CropFlip(padding=max(size[0] // 8, 1), flip=True)
        return self.augmentation or ResizedCrop()

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """The image (H, W, 3), uint8, of one sample."""

    def file_of(self, index: int) -> str | None:
        """The path below the split's folder of a sample's image, if it was read from a folder."""
        return None if self.files is None else os.fsdecode(self.files[index])

    def is_resident(self, augmentation: Augmentation) -> bool:  # noqa: ARG002
        """Whether views are made from images in the device's memory; then tensors of tasks are best given there."""
        return False

    @abstractmethod
    def views(self, augmentation: Augmentation, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        """The views of some tasks on a device, in their order; tasks are taken some ahead."""

    def close_workers(self) -> None:  # noqa: B027 - images in memory need none
        """End worker processes; the next call of `views` starts others."""

    def default_normalization(self) -> Normalization:
        """The published values, else ImageNet's."""
        return self.normalization or NORMALIZATIONS["imagenet"]

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What identifies the images."""

    def notes(self) -> dict[str, Any]:
        """What a provenance stores for people."""
        return {"data": self.name}

    def labels_sha256(self) -> str:
        """Digest of the labels in sample order, as little-endian 64-bit integers."""
        return hashlib.sha256(self.labels.numpy().astype("<i8").tobytes()).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """What identifies the split, the same on every machine, whatever its name and place."""
        return {
            "split": self.split,
            "samples": len(self),
            "class_names": list(self.class_names),
            "labels_sha256": self.labels_sha256(),
            **self.identity(),
        }


@dataclass(frozen=True, kw_only=True)
class ArrayDataset(ImageDataset):
    """Decoded images of one size, all in memory: `pixels` (N, H, W, 3), uint8."""

    pixels: Tensor
    # Not an argument, so that `dataclasses.replace` does not share it: a copy may have other pixels.
    _batch_apply: dict[tuple[Augmentation, torch.device], BatchApply] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise DataError(f"the {self.split} split of {self.name} has no images: add some")
        assert self.pixels.dtype == torch.uint8
        assert self.pixels.shape[0] == len(self.labels)

    @property
    def sizes(self) -> Sizes:
        return np.broadcast_to(np.array(self.pixels.shape[1:3], np.int32), (len(self), 2))

    def read(self, index: int) -> Tensor:
        return self.pixels[index]

    def is_resident(self, augmentation: Augmentation) -> bool:
        return augmentation.batch_apply(self.pixels[:1]) is not None

    def batch_apply(self, augmentation: Augmentation, device: torch.device) -> BatchApply:
        """`Augmentation.batch_apply` of all images on a device; kept, because it may hold a padded copy of them."""
        key = (augmentation, device)
        if key not in self._batch_apply:
            self._batch_apply.clear()
            function = augmentation.batch_apply(self.pixels.to(device))
            assert function is not None
            self._batch_apply[key] = function
        return self._batch_apply[key]

    def views(self, augmentation: Augmentation, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        if not self.is_resident(augmentation):
            for task in tasks:
                views = make_views(self.read, (augmentation, task))
                yield {size: batch.to(device).unbind() for size, batch in views.items()}
            return
        apply = self.batch_apply(augmentation, device)
        for task in tasks:
            indices, params = task.indices.to(device), task.params.to(device)
            yield {None: [apply(indices, of_view) for of_view in params]}

    def default_normalization(self) -> Normalization:
        """The published values, else those of these images."""
        return self.normalization or Normalization.of(self.pixels)

    @cached_property
    def pixels_sha256(self) -> str:
        """Digest of the shape and every pixel in sample order."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        return {"image_size": list(self.pixels.shape[1:3]), "pixels_sha256": self.pixels_sha256}


@dataclass(frozen=True, kw_only=True)
class StreamedDataset(ImageDataset):
    """Images of any sizes that worker processes read when they are needed, and compare with a digest."""

    reader: Callable[[int], Tensor]  # the image (H, W, 3), uint8, of a sample; DataError if it was changed
    image_sizes: Sizes
    digests: np.ndarray[Any, np.dtype[np.uint8]]  # (N, 32): SHA-256 of each image, as the reader compares it
    decoding: Mapping[str, Any] = field(default_factory=dict)  # options that change pixels; part of the identity
    extra_notes: Mapping[str, Any] = field(default_factory=dict)  # for people
    workers: int = 0  # processes that read; 0 for none

    @property
    def sizes(self) -> Sizes:
        return self.image_sizes

    def read(self, index: int) -> Tensor:
        return self.reader(index)

    @cached_property
    def _pool(self) -> Workers[tuple[Augmentation, ViewTask], dict[int | None, Tensor]]:
        return Workers(partial(make_views, self.reader), self.workers)

    def views(self, augmentation: Augmentation, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        on_gpu = device.type == "cuda"
        for views in self._pool.map(((augmentation, task) for task in tasks), pin=on_gpu):
            yield {size: batch.to(device, non_blocking=on_gpu).unbind() for size, batch in views.items()}

    def close_workers(self) -> None:
        if "_pool" in self.__dict__:
            self._pool.close()

    def identity(self) -> dict[str, Any]:
        """A digest of the images' digests in sample order."""
        return {"files_sha256": hashlib.sha256(self.digests.tobytes()).hexdigest(), **self.decoding}

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), **self.extra_notes}


@contextmanager
def closing_workers(*datasets: ImageDataset) -> Iterator[None]:
    """End the worker processes of data sets when the block ends."""
    try:
        yield
    finally:
        for dataset in datasets:
            dataset.close_workers()


def make_views(read: Callable[[int], Tensor], work: tuple[Augmentation, ViewTask]) -> dict[int | None, Tensor]:
    """Every view of a task, by size: (V, B, 3, H, W), channels last. A sample's image is read once."""
    augmentation, task = work
    params = task.params.tolist()
    views: dict[int | None, Tensor] = {}
    for place, index in enumerate(task.indices.tolist()):
        own = read(index)
        for number, of_view in enumerate(params):
            images = [own, *(read(partner) for partner in augmentation.partners(of_view[place]))]
            for size in task.sizes:
                view = augmentation.apply(images, of_view[place], size)
                if size not in views:
                    shape = (len(params), len(task.indices), *view.shape[1:], 3)
                    views[size] = torch.empty(shape, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
                views[size][number, place] = view
    return views


def tasks_of(batches: Sequence[Tensor], params: Tensor, sizes: tuple[int | None, ...]) -> Iterator[ViewTask]:
    """A task for every batch of samples, whose params are rows of (N, P), or of (V, N, P) for several views."""
    by_view = params if params.dim() == 3 else params[None]
    return (ViewTask(indices=batch, params=by_view[:, batch], sizes=sizes) for batch in batches)
