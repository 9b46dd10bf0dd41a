"""A source of pictures: sample i is the same picture with the same label for ever, and a digest says which.

N samples, C classes, B in a batch, S slots, H and W pixels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import DataError
from demkd.dataset.normalisation import NORMALISATIONS, Normalisation
from demkd.dataset.resized_crop import ResizedCrop
from demkd.dataset.views import Renderer, Sizes, ViewPolicy
from demkd.dataset.workers import Workers

SMALL = 64  # pixels a side, up to which equal pictures are kept in memory, and cropped as small ones are

Views = Mapping[int | None, Sequence[Tensor]]  # by size: S times (B, 3, H, W), uint8, channels last in memory
ReadPicture = Callable[[int], Tensor]  # number of a sample -> (H, W, 3), uint8


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTask:
    """Some samples (B,) in the views of records (S, B, R), at some sizes; None is the pictures' own."""

    indices: Tensor
    records: Tensor
    sizes: tuple[int | None, ...] = (None,)


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """One split of a data set.

    Attributes:
        name: what messages call it; no part of any digest.
        split: "train" or "test".
        labels: (N,), int64, in 0..C-1.
        class_names: C names; the position is the label.
        origin: what `load_images` loads it by; None for a Python object.
        normalisation: what was published with the data set, or None.
        policy: its default views, or None for what is usual for its pictures.
    """

    name: str
    split: str
    labels: Tensor
    class_names: tuple[str, ...]
    origin: str | None = None
    normalisation: Normalisation | None = None
    policy: ViewPolicy | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """Height and width of every picture: (N, 2), int32."""

    @cached_property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width, if all pictures have the same."""
        height, width = self.sizes[0]
        return None if (self.sizes != self.sizes[0]).any() else (int(height), int(width))

    @property
    def default_policy(self) -> ViewPolicy:
        """The default views for training."""
        size = self.picture_size
        if self.policy is None and size is not None and max(size) <= SMALL:
            return CropFlip(padding=max(size[0] // 8, 1), flip=True)
        return self.policy or ResizedCrop()

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """The picture (H, W, 3), uint8, of one sample."""

    def fetch(self, indices: Iterable[int]) -> list[Tensor]:
        """The pictures of some samples."""
        return [self.read(int(index)) for index in indices]

    @abstractmethod
    def is_resident(self, policy: ViewPolicy) -> bool:
        """Whether views are made from pictures in the device's memory; then tasks are best given there."""

    @abstractmethod
    def views(self, policy: ViewPolicy, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        """The views of some tasks on a device, in their order; tasks are taken some ahead.

        Raises:
            DataError: if a picture is not what it was.
        """

    @abstractmethod
    def rest(self) -> None:
        """Let worker processes end; they start again with the next views. Views on their way are lost."""

    @abstractmethod
    def usual_normalisation(self) -> Normalisation:
        """What a network trained on this split expects: the published values, or those that are usual."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What identifies the pictures, whatever they are called and wherever they lie."""

    def notes(self) -> dict[str, Any]:
        """What provenances keep of it for people."""
        return {"data": self.name}

    def labels_sha256(self) -> str:
        """Digest of the labels in sample order, as little-endian 64-bit integers."""
        return hashlib.sha256(self.labels.numpy().astype("<i8").tobytes()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What identifies the split, as provenances keep it: digests and words that are the same everywhere."""
        return {
            "split": self.split,
            "samples": len(self),
            "class_names": list(self.class_names),
            "labels_sha256": self.labels_sha256(),
            **self.identity(),
        }


@dataclass(frozen=True, kw_only=True)
class MemoryImages(ImageSource):
    """Pictures of one size, decoded, all in memory.

    Attributes:
        pixels: (N, H, W, 3), uint8.
    """

    pixels: Tensor
    # Not an argument, so that `dataclasses.replace` does not share it: a copy may have other pixels.
    _renderers: dict[tuple[ViewPolicy, torch.device], Renderer] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise DataError(f"the {self.split} split of {self.name} has no pictures: nothing to do with it")
        assert self.pixels.dtype == torch.uint8
        assert self.pixels.shape[0] == len(self.labels)

    @property
    def sizes(self) -> Sizes:
        return np.broadcast_to(np.array(self.pixels.shape[1:3], np.int32), (len(self), 2))

    def read(self, index: int) -> Tensor:
        return self.pixels[index]

    def is_resident(self, policy: ViewPolicy) -> bool:
        return policy.renderer(self.pixels[:1]) is not None

    def renderer(self, policy: ViewPolicy, device: torch.device) -> Renderer:
        """How views of all pictures are made; once for a policy, because one may keep a copy of all pictures."""
        key = (policy, device)
        if key not in self._renderers:
            self._renderers.clear()
            made = policy.renderer(self.pixels.to(device))
            assert made is not None
            self._renderers[key] = made
        return self._renderers[key]

    def views(self, policy: ViewPolicy, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        if not self.is_resident(policy):
            render = partial(render_task, self.read, policy)
            yield from ({size: some.to(device).unbind() for size, some in render(task).items()} for task in tasks)
            return
        make = self.renderer(policy, device)
        for task in tasks:
            indices, records = task.indices.to(device), task.records.to(device)
            yield {None: [make(indices, of_slot) for of_slot in records]}

    def rest(self) -> None:
        """No worker processes."""

    def usual_normalisation(self) -> Normalisation:
        """The published values, else those of these pictures."""
        return self.normalisation or Normalisation.of(self.pixels)

    @cached_property
    def pixels_sha256(self) -> str:
        """Digest of the shape and every pixel in sample order; taken once, because pixels do not change."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """The size and the digest."""
        return {"picture_size": list(self.pixels.shape[1:3]), "pixels_sha256": self.pixels_sha256}


@dataclass(frozen=True, kw_only=True)
class StreamedImages(ImageSource):
    """Pictures of any sizes that are read when they are needed, by worker processes, and checked against a digest.

    Attributes:
        reader: gives a picture by its number, or says that it is not what it was.
        picture_sizes: (N, 2), int32.
        digests: (N, 32), uint8: SHA-256 of each picture, as the reader compares it.
        identity_facts, extra_notes: how pictures are decoded: what changes pixels, and what hardly does.
        workers: processes that read; 0 for none.
    """

    reader: ReadPicture
    picture_sizes: Sizes
    digests: np.ndarray[Any, np.dtype[np.uint8]]
    identity_facts: Mapping[str, Any] = field(default_factory=dict)
    extra_notes: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0

    @property
    def sizes(self) -> Sizes:
        return self.picture_sizes

    def read(self, index: int) -> Tensor:
        return self.reader(index)

    def is_resident(self, policy: ViewPolicy) -> bool:  # noqa: ARG002 - never
        return False

    @cached_property
    def _pool(self) -> Workers[tuple[ViewPolicy, ViewTask], dict[int | None, Tensor]]:
        return Workers(partial(_render_of_policy, self.reader), self.workers)

    def views(self, policy: ViewPolicy, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        on_gpu = device.type == "cuda"
        for found in self._pool.map(((policy, task) for task in tasks), pin=on_gpu):
            yield {size: some.to(device, non_blocking=on_gpu).unbind() for size, some in found.items()}

    def rest(self) -> None:
        if "_pool" in self.__dict__:
            self._pool.close()

    def usual_normalisation(self) -> Normalisation:
        """The published values, else ImageNet's, with which networks for photos are trained."""
        return self.normalisation or NORMALISATIONS["imagenet"]

    def identity(self) -> dict[str, Any]:
        """A digest of the pictures' digests in sample order."""
        return {"files_sha256": hashlib.sha256(self.digests.tobytes()).hexdigest(), **self.identity_facts}

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), **self.extra_notes}


@contextmanager
def resting_after(*sources: ImageSource) -> Iterator[None]:
    """Let the worker processes of sources end with the block: who works with pictures leaves no process behind."""
    try:
        yield
    finally:
        for source in sources:
            source.rest()


def render_task(read: ReadPicture, policy: ViewPolicy, task: ViewTask) -> dict[int | None, Tensor]:
    """Every view of a task, a sample's picture being read once: by size, (S, B, 3, H, W), channels last."""
    records = task.records.tolist()
    found: dict[int | None, Tensor] = {}
    for place, index in enumerate(task.indices.tolist()):
        own = read(index)
        for slot, of_slot in enumerate(records):
            record = of_slot[place]
            pictures = [own, *(read(other) for other in policy.others(record))]
            for size in task.sizes:
                view = policy.render(pictures, record, size)
                if size not in found:
                    found[size] = _empty(len(records), len(task.indices), view)
                found[size][slot, place] = view
    return found


def _render_of_policy(read: ReadPicture, asked: tuple[ViewPolicy, ViewTask]) -> dict[int | None, Tensor]:
    return render_task(read, *asked)


def _empty(slots: int, samples: int, view: Tensor) -> Tensor:
    _, height, width = view.shape
    return torch.empty(slots, samples, height, width, 3, dtype=torch.uint8).permute(0, 1, 4, 2, 3)


def tasks_of(batches: Sequence[Tensor], records: Tensor, sizes: tuple[int | None, ...]) -> Iterator[ViewTask]:
    """A task for every batch of samples, whose records are rows of (N, R), or of (S, N, R) for several views."""
    by_view = records if records.dim() == 3 else records[None]
    return (ViewTask(indices=batch, records=by_view[:, batch], sizes=sizes) for batch in batches)
