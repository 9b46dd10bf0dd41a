"""From what a user names, or holds in Python, to networks that are ready to be asked."""

import copy
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from demkd.cache.shards import WEIGHTS_NAME, WHOLE, split_name
from demkd.dataset import (
    AsTheyAre,
    CentreCrop,
    CropFlip,
    ImageSource,
    MemoryImages,
    Normalisation,
    ViewPolicy,
    load_images,
)
from demkd.dataset.resized_crop import INTERPOLATIONS
from demkd.errors import UserError
from demkd.networks import (
    Classifier,
    Network,
    PictureSizeError,
    WrappedNetwork,
    build_network,
    fetch_published,
    is_own_code,
)
from demkd.pipeline import defaults
from demkd.pipeline.compute import Compute
from demkd.pipeline.recipe import RecipeError
from demkd.teachers import Checkpoint, CheckpointError, Teacher, load_weights, read_checkpoint, trained_classes
from demkd.untrusted import real_path

Choice = TypeVar("Choice")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class TeacherSpecError(UserError, ValueError):
    """A teacher that cannot be understood."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """A teacher as the user gives it: `NETWORK@CHECKPOINT`, a run folder, which knows its network, or a module.

    Attributes:
        checkpoint: a file, a run folder, or the name of published weights (`torchvision:resnet50@IMAGENET1K_V2`).
        module: what gives logits (B, C) for normalised pictures; then there is no checkpoint.
    """

    name: str
    network: str | None = None
    checkpoint: Path = Path()
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        usable = isinstance(self.name, str) and _NAME.fullmatch(self.name) and self.name != WEIGHTS_NAME
        if not usable or split_name(self.name)[1] != WHOLE:
            raise TeacherSpecError(
                f"a teacher cannot be called {self.name!r}: give it a name of letters, digits, . _ and -, other than "
                f"{WEIGHTS_NAME!r} and names of shards (`teachers=NAME=NETWORK@CHECKPOINT`)"
            )

    @classmethod
    def parse(cls, text: str, *, name: str | None = None) -> "TeacherSpec":
        """Understand `[NAME=]NETWORK@CHECKPOINT` or `[NAME=]RUN`; with a name, all of the text is the rest.

        Raises:
            TeacherSpecError: saying what is missing.
        """
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


TeacherLike = str | os.PathLike[str] | nn.Module
Teachers = Mapping[str, TeacherLike] | Sequence[str]


def teacher_specs(teachers: Teachers) -> tuple[TeacherSpec, ...]:
    """Teachers by name, or the texts `[NAME=]NETWORK@CHECKPOINT`; their names must differ.

    Raises:
        TeacherSpecError: if one cannot be understood, or two have one name.
    """
    if isinstance(teachers, str):
        teachers = [teachers]
    if isinstance(teachers, Mapping):
        return tuple(_named_spec(name, teacher) for name, teacher in teachers.items())
    specs = [TeacherSpec.parse(text) for text in teachers]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise TeacherSpecError(f"two teachers are called {name}: write NAME=NETWORK@CHECKPOINT")
    return tuple(specs)


def _named_spec(name: str, teacher: TeacherLike) -> TeacherSpec:
    if isinstance(teacher, nn.Module):
        return TeacherSpec(name=name, network=class_name(teacher), module=teacher)
    return TeacherSpec.parse(os.fspath(teacher), name=name)


def class_name(module: nn.Module) -> str:
    """What a module of the user's is called in recipes and provenances: where its class comes from."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkInput:
    """What a network expects as input.

    Attributes:
        size: height and width in pixels; None for the pictures' own.
        crop_ratio: for evaluation, `size` as a share of the shorter side that a picture is resized to before its middle
            is cut out; None to show the whole picture.
    """

    normalisation: Normalisation
    size: int | None = None
    crop_ratio: float | None = None
    interpolation: str = "bilinear"

    def prepare(self, views: Tensor) -> Tensor:
        """Views (B, 3, H, W), uint8, as the network's input: normalised, then resized if they are of another size.

        Bilinear, in float32, without antialiasing: this enlarges small pictures, where it would change nothing.
        """
        normalised = self.normalisation.apply(views)
        if self.size is None or views.shape[2:] == (self.size, self.size):
            return normalised
        return F.interpolate(normalised, (self.size,) * 2, mode="bilinear", align_corners=False, antialias=False)

    def evaluation_views(self) -> ViewPolicy:
        """What it is shown to be evaluated."""
        if self.crop_ratio is None:
            return AsTheyAre()
        assert self.size is not None
        return CentreCrop(size=self.size, crop_ratio=self.crop_ratio, interpolation=self.interpolation)

    def side(self, source: ImageSource) -> tuple[int, int]:
        """Height and width of what it gets.

        Raises:
            PictureSizeError: if nothing says so, and the pictures are of different sizes.
        """
        size = source.picture_size if self.size is None else (self.size, self.size)
        if size is None:
            raise PictureSizeError(
                f"the pictures of {source.name} are of different sizes, and nothing says which size the network takes: "
                "give `input_size`"
            )
        return size


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """A trained network, and what it expects as input."""

    network: Network
    name: str
    input: NetworkInput


@dataclass(frozen=True, kw_only=True, slots=True)
class InputChoice:
    """What the user says of a network's input; None leaves it to its checkpoint, its publisher and the data.

    Attributes:
        view_size: of the views that it will see, where nothing else says a size; None for the pictures' own.
    """

    normalisation: Normalisation | None = None
    size: int | None = None
    crop_ratio: float | None = None
    view_size: int | None = None

    def resolve(self, facts: Mapping[str, Any], source: ImageSource) -> NetworkInput:
        """The input of a network of which a checkpoint says some facts."""
        interpolation = facts.get("interpolation")
        size = self.size or facts.get("input_size") or self.view_size
        ratio = self.crop_ratio or facts.get("crop_ratio")
        if ratio is None and "crop_ratio" not in facts and not isinstance(source.default_policy, CropFlip):
            ratio = defaults.CROP_RATIO
        if ratio is not None and size is None:
            size = source.default_policy.side_for(None) or defaults.SIZE
        return NetworkInput(
            normalisation=self.normalisation or _own_normalisation(facts) or usual_normalisation(source),
            size=size,
            crop_ratio=ratio,
            interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
        )


def wrap(module: nn.Module, *, classes: int, size: tuple[int, int], name: str) -> Network:
    """A module of the user's as a network of this project, for pictures of a size (H, W).

    Raises:
        NetworkSourceError: if it cannot take such pictures, or does not answer with a logit for each class.
    """
    if isinstance(module, Classifier | WrappedNetwork):
        return module
    return WrappedNetwork(module, name=name, classes=classes, size=size)


def load_network(
    path: Path,
    *,
    name: str | None,
    source: ImageSource,
    choice: InputChoice | None = None,
) -> LoadedNetwork:
    """Build a network and read its weights.

    Args:
        path: a checkpoint file, a finished run folder, or the name of published weights.
        name: the network's; a run folder knows its own.
        source: what it shall classify.
        choice: its input; by default what its run folder or publisher says, else the data's.

    Raises:
        CheckpointError, UnknownNetworkError, NetworkSourceError: if there is no such network, or its weights do not
            fit.
    """
    checkpoint = _read_or_fetch(path, name, source)
    name = name or _own_name(checkpoint, path)
    expected = (choice or InputChoice()).resolve(checkpoint.facts, source)
    network = build_network(name, classes=source.classes, size=expected.side(source))
    _require_classes(checkpoint, network, source)
    load_weights(network, checkpoint)
    return LoadedNetwork(network=network, name=name, input=expected)


def load_teacher(
    spec: TeacherSpec,
    *,
    source: ImageSource,
    compute: Compute,
    choice: InputChoice,
) -> tuple[Teacher, LoadedNetwork]:
    """A network as `load_network` gives it, or a copy of the user's module, frozen."""
    if spec.module is None:
        loaded = load_network(spec.checkpoint, name=spec.network, source=source, choice=choice)
    else:
        # A copy: to freeze and to move the user's own module would change it under their hands.
        loaded = wrapped(copy.deepcopy(spec.module), str(spec.network), f"teacher {spec.name}", source, choice)
    teacher = Teacher(spec.name, compute.place(loaded.network), prepare=loaded.input.prepare, autocast=compute.autocast)
    return teacher, loaded


def wrapped(module: nn.Module, name: str, called: str, source: ImageSource, choice: InputChoice) -> LoadedNetwork:
    """A module of the user's that is trained already.

    Args:
        name: for recipes and provenances.
        called: in messages.
    """
    expected = choice.resolve({}, source)
    network = wrap(module, classes=source.classes, size=expected.side(source), name=called)
    return LoadedNetwork(network=network, name=name, input=expected)


def chosen_for(choices: Mapping[str, Choice], name: str) -> Choice | None:
    """What the user gave for a teacher: under its name, or under "" for all."""
    return choices[name] if name in choices else choices.get("")


def require_teachers(choices: Mapping[str, object], names: Sequence[str], *, option: str) -> None:
    """Refuse a choice for a teacher that there is not: a misspelt name would go unnoticed, and its answers be wrong.

    Raises:
        TeacherSpecError: naming it, and the teachers.
    """
    for name in choices:
        if name and name not in names:
            raise TeacherSpecError(f"`{option}={name}=...` names no teacher: there are {', '.join(names) or 'none'}")


def refuse_own_code(networks: Sequence[str]) -> None:
    """Refuse a recipe's networks that are code of the user's own, as students or in teachers.

    Raises:
        RecipeError: naming the network.
    """
    for text in networks:
        name = text.partition("@")[0].rpartition("=")[2]
        if is_own_code(name):
            raise RecipeError(
                f"the recipe names {name}, code of your own, which is only imported when you name it: "
                "give it on the command line, of `distill` if this is a sweep"
            )


def usual_normalisation(source: ImageSource) -> Normalisation:
    """The data's; measured on its training pictures, also for a network that shall classify the others.

    Raises:
        CheckpointError: if only the test pictures are at hand.
    """
    if source.normalisation is not None or source.split == "train" or not isinstance(source, MemoryImages):
        return source.usual_normalisation()
    if source.origin is None:
        raise CheckpointError(
            f"nothing says which mean and standard deviation the network was trained with, and {source.name} has no "
            "training pictures to measure: give `normalise`"
        )
    return load_images(source.origin, split="train").usual_normalisation()


def _read_or_fetch(path: Path, name: str | None, source: ImageSource) -> Checkpoint:
    """A file or run folder; or, if there is none of this name, weights that the network's library publishes."""
    if path.exists() or not name or ":" not in name or path.name != str(path):
        return read_checkpoint(path)
    published = fetch_published(name, str(path), classes=source.classes)
    names = ("mean", "std", "input_size", "crop_ratio", "interpolation")
    facts = {name: getattr(published, name) for name in names}
    if isinstance(source.default_policy, CropFlip):
        facts["crop_ratio"] = None  # of pictures smaller than its input nothing is cut off
    return Checkpoint(path=Path(f"{name}@{path}"), state=published.state, facts=facts)


def _own_name(checkpoint: Checkpoint, path: Path) -> str:
    """The network that a checkpoint says it is of; a checkpoint may not say which code of the user's to run."""
    name = checkpoint.facts.get("network")
    if not name:
        raise CheckpointError(f"{checkpoint.path} does not say its network: name it (NETWORK@{path})")
    if is_own_code(name):
        raise CheckpointError(
            f"{checkpoint.path} is of {name}, code of your own, which is only imported when you name it: "
            f"write {name}@{path} for a teacher, or `network={name}`"
        )
    return str(name)


def _own_normalisation(facts: Mapping[str, Any]) -> Normalisation | None:
    if "mean" not in facts:
        return None
    return Normalisation(mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def _require_classes(checkpoint: Checkpoint, network: Network, source: ImageSource) -> None:
    """Compare the classes before the tensors: it is the commonest mismatch, and deserves its own words."""
    names = checkpoint.facts.get("class_names")
    classes = trained_classes(network, checkpoint, classes=source.classes) if names is None else len(names)
    if classes != source.classes:
        raise CheckpointError(
            f"{checkpoint.path} was trained for {classes} classes, and {source.name} has {source.classes}: "
            "use the data set that it was trained with"
        )
    if names is not None and tuple(names) != source.class_names:
        pairs = enumerate(itertools.zip_longest(names, source.class_names))
        position, (own, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise CheckpointError(
            f"{checkpoint.path} was trained with other classes: number {position} is {own!r} there and {new!r} in "
            f"{source.name}: name and order the classes as they were"
        )
