"""From what the command line names to data and networks in hand."""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from demkd.cache.weights import WEIGHTS_NAME
from demkd.dataset import DataError, Normalisation, Pictures, load_pictures
from demkd.dataset.sources import NORMALISATIONS
from demkd.errors import UserError
from demkd.networks import Network, build_network, fetch_published, is_own_code
from demkd.pipeline.compute import Compute
from demkd.pipeline.recipe import RecipeError
from demkd.teachers import Checkpoint, CheckpointError, Teacher, load_weights, read_checkpoint, trained_classes

Choice = TypeVar("Choice")

_LARGEST_INPUT = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class TeacherSpecError(UserError, ValueError):
    """A `--teacher` that cannot be understood."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """`--teacher [NAME=]NETWORK@CHECKPOINT`, or `[NAME=]RUN` for a run folder, which knows its network.

    Attributes:
        checkpoint: a file, a run folder, or the name of published weights (`torchvision:resnet50@IMAGENET1K_V2`).
    """

    name: str
    network: str | None
    checkpoint: Path

    @classmethod
    def parse(cls, text: str) -> "TeacherSpec":
        """Understand one `--teacher`.

        Raises:
            TeacherSpecError: saying what is missing.
        """
        head, equals, tail = text.partition("=")
        name, rest = (head, tail) if equals and _NAME.fullmatch(head) else ("", text)
        network, at, checkpoint = rest.partition("@") if not Path(rest).is_dir() else ("", "", rest)
        if not at:
            network, checkpoint = "", rest
        if not checkpoint or (at and not network):
            raise TeacherSpecError(f"--teacher {text} lacks a part: write [NAME=]NETWORK@CHECKPOINT, or a run folder")
        if not at and not Path(checkpoint).is_dir():
            raise TeacherSpecError(f"--teacher {text} names no run folder: write [NAME=]NETWORK@CHECKPOINT")
        name = name or network.rpartition(":")[2] or Path(checkpoint).resolve().name
        if not _NAME.fullmatch(name) or name == WEIGHTS_NAME:
            raise TeacherSpecError(
                f"a teacher cannot be called {name!r}: write --teacher NAME={rest} with a NAME of letters, digits, "
                f". _ and - other than {WEIGHTS_NAME!r}"
            )
        return cls(name=name, network=network or None, checkpoint=Path(checkpoint))


def parse_teachers(texts: Sequence[str]) -> list[TeacherSpec]:
    """Understand all `--teacher`s; their names must differ.

    Raises:
        TeacherSpecError: if one cannot be understood, or two have one name.
    """
    specs = [TeacherSpec.parse(text) for text in texts]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise TeacherSpecError(f"two teachers are called {name}: name them with --teacher NAME=NETWORK@CHECKPOINT")
    return specs


def parse_normalisation(text: str) -> Normalisation:
    """`cifar100`, `imagenet`, ..., or six numbers `m,m,m/d,d,d` for pixels in [0, 1].

    Raises:
        DataError: saying what is understood.
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
        (m0, m1, m2), (d0, d1, d2) = mean, std
    except ValueError:
        names = ", ".join(NORMALISATIONS)
        raise DataError(f"--normalise {text} is not understood: give one of {names}, or m,m,m/d,d,d") from None
    if min(std) <= 0:
        raise DataError(f"--normalise {text} has a std that is not above 0")
    return Normalisation(mean=(m0, m1, m2), std=(d0, d1, d2))


def parse_normalisations(texts: Sequence[str]) -> dict[str, Normalisation]:
    """`[TEACHER=]FIGURES`, by teacher; "" is for all others, and for the student."""
    pairs = (text.rpartition("=") for text in texts)
    return {name: parse_normalisation(figures) for name, _, figures in pairs}


def parse_input_sizes(texts: Sequence[str]) -> dict[str, int]:
    """`[TEACHER=]PIXELS`, by teacher; "" is for all others.

    Raises:
        TeacherSpecError: if one is no number of pixels.
    """
    sizes = {}
    for text in texts:
        name, _, pixels = text.rpartition("=")
        if not pixels.isdecimal() or not 1 <= int(pixels) <= _LARGEST_INPUT:
            raise TeacherSpecError(f"--input-size {text} is not understood: give [TEACHER=]PIXELS, such as 224")
        sizes[name] = int(pixels)
    return sizes


@functools.lru_cache(maxsize=4)
def load_split(data: str, split: str) -> Pictures:
    """Load a split once per process; the demo and sweeps use it many times."""
    return load_pictures(data, split=split)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """A trained network, and what it expects as input.

    Attributes:
        input_size: height and width in pixels to which views are resized for it; None to leave them as they are.
    """

    network: Network
    name: str
    normalisation: Normalisation
    input_size: int | None = None

    def prepare(self, views: Tensor) -> Tensor:
        """Views (B, 3, H, W), uint8, as the network's input: normalised, then resized bilinearly, in float32.

        Without antialiasing: teachers' inputs are usually larger than the views, where it would change nothing.
        """
        normalised = self.normalisation.apply(views)
        if self.input_size is None:
            return normalised
        return F.interpolate(normalised, (self.input_size,) * 2, mode="bilinear", align_corners=False, antialias=False)


def load_network(
    path: Path,
    *,
    name: str | None,
    pictures: Pictures,
    normalisation: Normalisation | None = None,
    input_size: int | None = None,
) -> LoadedNetwork:
    """Build a network and read its weights.

    Args:
        path: a checkpoint file, a finished run folder, or the name of published weights.
        name: the network's; a run folder knows its own.
        pictures: what it shall classify.
        normalisation: what it was trained with; by default what its run folder or publisher says, else the data's.
        input_size: to which the pictures are resized for it.

    Raises:
        CheckpointError, UnknownNetworkError, NetworkSourceError: if there is no such network, or its weights do not
            fit.
    """
    checkpoint = _read_or_fetch(path, name, pictures)
    name = name or _own_name(checkpoint, path)
    size = pictures.picture_size if input_size is None else (input_size, input_size)
    network = build_network(name, classes=pictures.classes, size=size)
    _require_classes(checkpoint, network, pictures)
    load_weights(network, checkpoint)
    normalisation = normalisation or _own_normalisation(checkpoint) or _usual_normalisation(pictures)
    return LoadedNetwork(network=network, name=name, normalisation=normalisation, input_size=input_size)


def load_teacher(
    spec: TeacherSpec,
    *,
    pictures: Pictures,
    compute: Compute,
    normalisation: Normalisation | None = None,
    input_size: int | None = None,
) -> tuple[Teacher, LoadedNetwork]:
    """Load a network as `load_network` does, and freeze it."""
    loaded = load_network(
        spec.checkpoint, name=spec.network, pictures=pictures, normalisation=normalisation, input_size=input_size
    )
    teacher = Teacher(spec.name, compute.place(loaded.network), prepare=loaded.prepare, autocast=compute.autocast)
    return teacher, loaded


def chosen_for(choices: Mapping[str, Choice], spec: TeacherSpec) -> Choice | None:
    """What the user gave for a teacher: under its name, or under "" for all."""
    return choices.get(spec.name) or choices.get("")


def require_teachers(choices: Mapping[str, object], specs: Sequence[TeacherSpec], *, option: str) -> None:
    """Refuse a choice for a teacher that there is not: a misspelt name would go unnoticed, and its answers be wrong.

    Raises:
        TeacherSpecError: naming it, and the teachers.
    """
    names = [spec.name for spec in specs]
    for name in choices:
        if name and name not in names:
            raise TeacherSpecError(f"{option} {name}=... names no teacher: there are {', '.join(names) or 'none'}")


def chosen_alone(choices: Mapping[str, Choice], *, option: str) -> Choice | None:
    """What the user gave where there is one network and no teacher.

    Raises:
        TeacherSpecError: if it is for a teacher.
    """
    require_teachers(choices, (), option=option)
    return choices.get("")


def refuse_own_code(networks: Sequence[str]) -> None:
    """Refuse a recipe's networks that are code of the user's own, as students or in `--teacher`s.

    Raises:
        RecipeError: naming the network.
    """
    for text in networks:
        name = text.partition("@")[0].rpartition("=")[2]
        if is_own_code(name):
            raise RecipeError(
                f"the recipe names {name}, code of your own, which is only imported when you name it: "
                "give it on the command line"
            )


def _read_or_fetch(path: Path, name: str | None, pictures: Pictures) -> Checkpoint:
    """A file or run folder; or, if there is none of this name, weights that the network's library publishes."""
    if path.exists() or not name or ":" not in name or path.name != str(path):
        return read_checkpoint(path)
    published = fetch_published(name, str(path), classes=pictures.classes)
    facts = {"mean": published.mean, "std": published.std}
    return Checkpoint(path=Path(f"{name}@{path}"), state=published.state, facts=facts)


def _own_name(checkpoint: Checkpoint, path: Path) -> str:
    """The network that a checkpoint says it is of; a checkpoint may not say which code of the user's to run."""
    name = checkpoint.facts.get("network")
    if not name:
        raise CheckpointError(f"{checkpoint.path} does not say its network: name it (NETWORK@{path})")
    if is_own_code(name):
        raise CheckpointError(
            f"{checkpoint.path} is of {name}, code of your own, which is only imported when you name it: "
            f"write {name}@{path} for a teacher, or --network {name}"
        )
    return str(name)


def _usual_normalisation(pictures: Pictures) -> Normalisation:
    """The data's; measured on its training pictures, also for a network that shall classify the others."""
    if pictures.normalisation is None and pictures.split != "train":
        return load_split(pictures.source, "train").usual_normalisation()
    return pictures.usual_normalisation()


def _own_normalisation(checkpoint: Checkpoint) -> Normalisation | None:
    if "mean" not in checkpoint.facts:
        return None
    mean, std = checkpoint.facts["mean"], checkpoint.facts["std"]
    return Normalisation(mean=tuple(mean), std=tuple(std))


def _require_classes(checkpoint: Checkpoint, network: Network, pictures: Pictures) -> None:
    """Compare the classes before the tensors: it is the commonest mismatch, and deserves its own words."""
    names = checkpoint.facts.get("class_names")
    classes = trained_classes(network, checkpoint, classes=pictures.classes) if names is None else len(names)
    if classes != pictures.classes:
        raise CheckpointError(
            f"{checkpoint.path} was trained for {classes} classes, and {pictures.name} has {pictures.classes}: "
            "use the data set that it was trained with"
        )
    if names is not None and tuple(names) != pictures.class_names:
        pairs = enumerate(itertools.zip_longest(names, pictures.class_names))
        position, (own, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise CheckpointError(
            f"{checkpoint.path} was trained with other classes: number {position} is {own!r} there and {new!r} in "
            f"{pictures.name}: name and order the classes as they were"
        )
