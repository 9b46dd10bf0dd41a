"""Trained networks, ready to run: from a name, a checkpoint, a run folder or the user's module.

A network is loaded for a data set, and with its input: normalization, size, and what an evaluation shows.
"""

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union

import torch.nn.functional as F
from torch import Tensor, nn

from demkd.config import CROP_PCT, LARGEST_INPUT, SIZE, ConfigError, plain
from demkd.dataset import ArrayDataset, Augmentation, CenterCrop, CropFlip, ImageDataset, Normalization, load_images
from demkd.dataset.normalize import as_normalization
from demkd.dataset.resized_crop import INTERPOLATIONS
from demkd.errors import UserError, real_path
from demkd.networks import Classifier, ImageSizeError, Network, WrappedNetwork
from demkd.networks.registry import build_network, check_network, fetch_published, is_own_code
from demkd.teachers.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_weights,
    read_checkpoint,
    trained_classes,
    weights_file,
)
from demkd.teachers.teacher import Teacher

Choice = TypeVar("Choice")
TeacherLike = str | os.PathLike[str] | nn.Module
Teachers = Mapping[str, TeacherLike] | Sequence[str]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED_NAME = re.compile(r"weights|.*\.\d+-of-\d+")  # files of a cache

Value = TypeVar("Value")
# One value for all teachers, or values by their names.
ByTeacher = Union[Value, Mapping[str, Value], None]  # noqa: UP007 - a generic alias
NormalizeLike = str | Normalization | Sequence[Sequence[float]]


class TeacherSpecError(UserError, ValueError):
    """A teacher that is not given as it must be."""


class Compute(Protocol):
    """The device and precision of a network; the pipeline's `Compute` is one."""

    def place(self, network: nn.Module) -> nn.Module: ...

    def autocast(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """A teacher as the user gives it: `NETWORK@CHECKPOINT`, a run folder, or a module."""

    name: str
    network: str | None = None
    checkpoint: Path = Path()  # a file, a run folder, or the name of published weights, such as IMAGENET1K_V2
    module: nn.Module | None = None  # returns logits (B, C) for normalized images; then there is no checkpoint

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or _RESERVED_NAME.fullmatch(self.name):
            shown = self.name if len(str(self.name)) <= 100 else f"{self.name[:100]}..."
            raise TeacherSpecError(
                f"a teacher cannot be called {shown!r}: give it a name of at most 100 letters, digits, . _ and -, "
                "other than 'weights' and names of shards (`teachers=NAME=NETWORK@CHECKPOINT`)"
            )

    @classmethod
    def parse(cls, text: str, *, name: str | None = None) -> "TeacherSpec":
        """Parse `[NAME=]NETWORK@CHECKPOINT` or `[NAME=]RUN`; with a name, the text is the rest."""
        head, equals, tail = text.partition("=")
        named = name is None and bool(equals) and bool(_NAME.fullmatch(head))
        given, rest = (head, tail) if named else (name or "", text)
        network, at, checkpoint = rest.partition("@") if not Path(rest).is_dir() else ("", "", rest)
        if not at:
            network, checkpoint = "", rest
        if not checkpoint or (at and not network):
            raise TeacherSpecError(f"the teacher {text} lacks a part: write [NAME=]NETWORK@CHECKPOINT, or a run folder")
        if not at and not Path(checkpoint).is_dir():
            raise TeacherSpecError(f"the teacher {text} is no run folder: write [NAME=]NETWORK@CHECKPOINT")
        given = given or network.rpartition(":")[2] or real_path(checkpoint).name
        return cls(name=given, network=network or None, checkpoint=Path(checkpoint))


def teacher_specs(teachers: Teachers) -> tuple[TeacherSpec, ...]:
    """Teachers by name, or the texts `[NAME=]NETWORK@CHECKPOINT`; their names must differ."""
    if isinstance(teachers, Mapping):
        specs = []
        for name, teacher in teachers.items():
            if isinstance(teacher, nn.Module):
                specs.append(TeacherSpec(name=name, network=class_name(teacher), module=teacher))
            elif isinstance(teacher, str | os.PathLike):
                specs.append(TeacherSpec.parse(os.fspath(teacher), name=name))
            else:
                raise TeacherSpecError(
                    f"the teacher {name} is a {type(teacher).__name__}: give a torch.nn.Module, a run folder or "
                    "NETWORK@CHECKPOINT"
                )
        return tuple(specs)
    specs = [TeacherSpec.parse(text) for text in ([teachers] if isinstance(teachers, str) else teachers)]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise TeacherSpecError(f"two teachers are called {name}: write NAME=NETWORK@CHECKPOINT")
    return tuple(specs)


def check_teachers(specs: Iterable[TeacherSpec]) -> None:
    """Refuse a network or a checkpoint that is not there, before the images are read, which may take minutes."""
    for spec in specs:
        own = ":" not in (spec.network or "")
        if spec.network and own and not spec.module:
            check_network(spec.network)
        if not spec.module and (own or spec.checkpoint.exists()):
            weights_file(spec.checkpoint)


def class_name(module: nn.Module) -> str:
    """The name of a user's module in recipes and provenances: its class, with its Python module."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkInput:
    """The input that a network expects."""

    normalization: Normalization
    size: int | None = None  # height and width in pixels; None for the images' own
    # For evaluation, `size` as a share of the shorter side that an image is resized to before its center is cropped;
    # None to show the whole image.
    crop_pct: float | None = None
    interpolation: str = "bilinear"

    def prepare(self, views: Tensor) -> Tensor:
        """Views (B, 3, H, W), uint8, as the network's input: normalized, then resized if they have another size.

        Bilinear, in float32, without antialiasing: this enlarges small images, where it would change nothing.
        """
        normalized = self.normalization.apply(views)
        if self.size is None or views.shape[2:] == (self.size, self.size):
            return normalized
        return F.interpolate(normalized, (self.size,) * 2, mode="bilinear", align_corners=False, antialias=False)

    def evaluation_views(self) -> Augmentation:
        if self.crop_pct is None:
            return CropFlip(padding=0, flip=False)  # the whole image
        assert self.size is not None
        return CenterCrop(size=self.size, crop_pct=self.crop_pct, interpolation=self.interpolation)

    def side(self, dataset: ImageDataset) -> tuple[int, int]:
        """Height and width of the input."""
        size = dataset.image_size if self.size is None else (self.size, self.size)
        if size is None:
            raise ImageSizeError(
                f"the images of {dataset.name} are of different sizes, and the network has no input size: give "
                "`input_size`"
            )
        return size


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """A trained network, and the input that it expects."""

    network: Network
    name: str
    input: NetworkInput


@dataclass(frozen=True, kw_only=True, slots=True)
class InputChoice:
    """The user's choice of a network's input; None is the checkpoint's value, the publisher's, or the data's."""

    normalization: Normalization | None = None
    size: int | None = None
    crop_pct: float | None = None
    view_size: int | None = None  # of its views, if nothing else gives a size; None for the images' own

    def resolve(self, metadata: Mapping[str, Any], dataset: ImageDataset) -> NetworkInput:
        """The input of a network whose checkpoint has some metadata."""
        normalization = self.normalization
        if normalization is None and "mean" in metadata:
            normalization = Normalization(mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))
        size = self.size or metadata.get("input_size") or self.view_size
        crop_pct = self.crop_pct or metadata.get("crop_pct")
        if crop_pct is None and "crop_pct" not in metadata and not isinstance(dataset.default_augmentation, CropFlip):
            crop_pct = CROP_PCT
        if crop_pct is not None and size is None:
            size = dataset.default_augmentation.size_for(None) or SIZE
        interpolation = metadata.get("interpolation")
        return NetworkInput(
            normalization=normalization or _usual_normalization(dataset),
            size=size,
            crop_pct=crop_pct,
            interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
        )


def load_network(
    path: Path, *, name: str | nn.Module | None, dataset: ImageDataset, choice: InputChoice | None = None
) -> LoadedNetwork:
    """Build a network and read its weights from a checkpoint file, a finished run folder or a name of published ones.

    A run folder stores the network's name. A module is copied, and the copy gets the weights. The input is by default
    that of the run folder or publisher, else that of the data.
    """
    module, name = (name, class_name(name)) if isinstance(name, nn.Module) else (None, name)
    if module or path.exists() or not name or ":" not in name or path.name != str(path):
        checkpoint = read_checkpoint(path)
    else:
        state, metadata = fetch_published(name, str(path), classes=dataset.classes)
        if isinstance(dataset.default_augmentation, CropFlip):
            metadata["crop_pct"] = None  # of images smaller than its input nothing is cut off
        checkpoint = Checkpoint(path=Path(f"{name}@{path}"), state=state, metadata=metadata)
    if not name:
        name = str(checkpoint.metadata.get("network") or "")
        if not name:
            raise CheckpointError(f"{checkpoint.path} names no network: name it (NETWORK@{path})")
        if is_own_code(name):  # a checkpoint may not choose code of the user's to run
            raise CheckpointError(
                f"{checkpoint.path} is of {name}, code of your own, which is only imported when you name it: "
                f"write {name}@{path} for a teacher, or `network={name}`"
            )
        if "." in name and ":" not in name:  # the class of a module that was given in Python
            raise CheckpointError(
                f"{checkpoint.path} is of a module of your own, {name}: give the module (`network`), or a function "
                "that builds it (`network=my_module:build_network`)"
            )
    expected = (choice or InputChoice()).resolve(checkpoint.metadata, dataset)
    network = (
        wrap(copy.deepcopy(module), classes=dataset.classes, size=expected.side(dataset), name="the network")
        if module
        else build_network(name, classes=dataset.classes, size=expected.side(dataset))
    )
    # Compare the classes before the tensors: the commonest mismatch has its own message.
    names = checkpoint.metadata.get("class_names")
    classes = trained_classes(network, checkpoint, classes=dataset.classes) if names is None else len(names)
    if classes != dataset.classes:
        raise CheckpointError(
            f"{checkpoint.path} was trained for {classes} classes, and {dataset.name} has {dataset.classes}: "
            "use the data set that it was trained with"
        )
    for position, (own, new) in enumerate(zip(names or (), dataset.class_names, strict=False)):
        if own != new:
            raise CheckpointError(
                f"{checkpoint.path} was trained with other classes: number {position} is {own!r} there and {new!r} in "
                f"{dataset.name}: name and order the classes as they were"
            )
    load_weights(network, checkpoint)
    return LoadedNetwork(network=network, name=name, input=expected)


def load_module(
    module: nn.Module, name: str, *, called: str, dataset: ImageDataset, choice: InputChoice
) -> LoadedNetwork:
    """A trained module of the user's; `name` is for recipes and provenances, `called` for messages."""
    expected = choice.resolve({}, dataset)
    network = wrap(module, classes=dataset.classes, size=expected.side(dataset), name=called)
    return LoadedNetwork(network=network, name=name, input=expected)


def load_teacher(
    spec: TeacherSpec, *, dataset: ImageDataset, compute: Compute, choice: InputChoice
) -> tuple[Teacher, LoadedNetwork]:
    """A network as `load_network` returns it, or a copy of the user's module, frozen."""
    if spec.module is None:
        loaded = load_network(spec.checkpoint, name=spec.network, dataset=dataset, choice=choice)
    else:
        module = copy.deepcopy(spec.module)  # to freeze and to move the user's own would change it in their program
        loaded = load_module(module, str(spec.network), called=f"teacher {spec.name}", dataset=dataset, choice=choice)
    compute.place(loaded.network)
    return Teacher(spec.name, loaded.network, prepare=loaded.input.prepare, autocast=compute.autocast), loaded


def wrap(module: nn.Module, *, classes: int, size: tuple[int, int], name: str) -> Network:
    """A user's module as a network of this project, for images of a size (H, W)."""
    if isinstance(module, Classifier | WrappedNetwork):
        return module
    return WrappedNetwork(module, name=name, classes=classes, size=size)


def chosen_for(choices: Mapping[str, Choice], name: str) -> Choice | None:
    """The user's choice for a teacher: under its name, or under "" for all."""
    return choices[name] if name in choices else choices.get("")


def check_teacher_names(choices: Mapping[str, object], names: Sequence[str], *, option: str) -> None:
    """Refuse a choice for a teacher that does not exist: a misspelt name would silently change nothing."""
    for name in choices:
        if name and name not in names:
            raise TeacherSpecError(f"`{option}={name}=...` names no teacher: there are {', '.join(names) or 'none'}")


def _usual_normalization(dataset: ImageDataset) -> Normalization:
    """The data's; measured on its training images, for a network that classifies test images too."""
    if dataset.normalization is not None or dataset.split == "train" or not isinstance(dataset, ArrayDataset):
        return dataset.default_normalization()
    if dataset.origin is None:
        raise CheckpointError(
            f"the mean and standard deviation that the network was trained with are not known, and {dataset.name} has "
            "no training images to measure: give `normalize`"
        )
    return load_images(dataset.origin, split="train").default_normalization()


def by_teacher(value: ByTeacher[Value]) -> dict[str, Value]:
    """Values by the teachers' names, with "" for all others."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {"": value}


def normalizations_by_teacher(value: ByTeacher[Any]) -> dict[str, Normalization]:
    """The same of whatever `as_normalization` takes."""
    return {name: as_normalization(item) for name, item in by_teacher(value).items()}


def sizes_by_teacher(value: ByTeacher[int]) -> dict[str, int]:
    """The same of sizes in pixels."""
    sizes = {name: plain(size) for name, size in by_teacher(value).items()}
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= LARGEST_INPUT:
            named = f"{name}=" if name else ""
            raise ConfigError(
                f"`input_size={named}{size}` is not understood: give pixels, 1 to {LARGEST_INPUT}, such as 224"
            )
    return sizes
