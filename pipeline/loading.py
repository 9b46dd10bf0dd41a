"""From what the command line names to data and networks in hand."""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demkd.cache.weights import WEIGHTS_NAME
from demkd.dataset import DataError, Normalisation, Pictures, load_pictures
from demkd.dataset.sources import NORMALISATIONS
from demkd.errors import UserError
from demkd.networks import build_network
from demkd.networks.classifier import Classifier
from demkd.pipeline.compute import Compute
from demkd.teachers import Checkpoint, CheckpointError, Teacher, load_weights, read_checkpoint

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class TeacherSpecError(UserError, ValueError):
    """A `--teacher` that cannot be understood."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """`--teacher [NAME=]NETWORK@CHECKPOINT`, or `[NAME=]RUN` for a run folder, which knows its network."""

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
        network, at, checkpoint = rest.rpartition("@")
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
        mean, deviation = ([float(number) for number in part.split(",")] for part in text.split("/"))
        (m0, m1, m2), (d0, d1, d2) = mean, deviation
    except ValueError:
        names = ", ".join(NORMALISATIONS)
        raise DataError(f"--normalise {text} is not understood: give one of {names}, or m,m,m/d,d,d") from None
    if min(deviation) <= 0:
        raise DataError(f"--normalise {text} has a deviation that is not above 0")
    return Normalisation(mean=(m0, m1, m2), deviation=(d0, d1, d2))


def parse_normalisations(texts: Sequence[str]) -> dict[str, Normalisation]:
    """`[TEACHER=]FIGURES`, by teacher; "" is for all others, and for the student."""
    pairs = (text.rpartition("=") for text in texts)
    return {name: parse_normalisation(figures) for name, _, figures in pairs}


@functools.lru_cache(maxsize=4)
def load_split(data: str, split: str) -> Pictures:
    """Load a split once per process; the demo and sweeps use it many times."""
    return load_pictures(data, split=split)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """A trained network, and what it expects as input."""

    network: Classifier
    name: str
    normalisation: Normalisation


def load_network(
    path: Path, *, name: str | None, pictures: Pictures, normalisation: Normalisation | None = None
) -> LoadedNetwork:
    """Build a network and read its weights.

    Args:
        path: a checkpoint file or a finished run folder.
        name: the network's; a run folder knows its own.
        pictures: what it shall classify.
        normalisation: what it was trained with; by default what its run folder says, else the data's.

    Raises:
        CheckpointError, UnknownNetworkError: if there is no such network, or its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    name = name or checkpoint.facts.get("network")
    if not name:
        raise CheckpointError(f"{checkpoint.path} does not say its network: name it (NETWORK@{path})")
    network = build_network(name, classes=pictures.classes)
    _require_classes(checkpoint, network, pictures)
    load_weights(network, checkpoint)
    normalisation = normalisation or _own_normalisation(checkpoint) or _usual_normalisation(pictures)
    return LoadedNetwork(network=network, name=name, normalisation=normalisation)


def load_teacher(
    spec: TeacherSpec, *, pictures: Pictures, compute: Compute, normalisation: Normalisation | None = None
) -> tuple[Teacher, LoadedNetwork]:
    """Load a network as `load_network` does, and freeze it."""
    loaded = load_network(spec.checkpoint, name=spec.network, pictures=pictures, normalisation=normalisation)
    prepare = loaded.normalisation.apply
    teacher = Teacher(spec.name, compute.place(loaded.network), prepare=prepare, autocast=compute.autocast)
    return teacher, loaded


def chosen_for(normalisations: Mapping[str, Normalisation], spec: TeacherSpec) -> Normalisation | None:
    """What the user gave for a teacher: under its name, or under "" for all."""
    return normalisations.get(spec.name) or normalisations.get("")


def _usual_normalisation(pictures: Pictures) -> Normalisation:
    """The data's; measured on its training pictures, also for a network that shall classify the others."""
    if pictures.normalisation is None and pictures.split != "train":
        return load_split(pictures.source, "train").usual_normalisation()
    return pictures.usual_normalisation()


def _own_normalisation(checkpoint: Checkpoint) -> Normalisation | None:
    if "mean" not in checkpoint.facts:
        return None
    mean, deviation = checkpoint.facts["mean"], checkpoint.facts["deviation"]
    return Normalisation(mean=tuple(mean), deviation=tuple(deviation))


def _require_classes(checkpoint: Checkpoint, network: Classifier, pictures: Pictures) -> None:
    """Compare the classes before the tensors: it is the commonest mismatch, and deserves its own words."""
    name, expected = list(network.state_dict().items())[-1]  # the bias of the last layer
    found = checkpoint.state.get(name, expected)
    if expected.dim() == found.dim() == 1 and len(expected) != len(found) and len(expected) == pictures.classes:
        raise CheckpointError(
            f"{checkpoint.path} was trained for {len(found)} classes, and {pictures.name} has {pictures.classes}: "
            "use the data set that it was trained with"
        )
    names = checkpoint.facts.get("class_names")
    if names is not None and tuple(names) != pictures.class_names:
        pairs = enumerate(itertools.zip_longest(names, pictures.class_names))
        position, (own, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise CheckpointError(
            f"{checkpoint.path} was trained with other classes: number {position} is {own!r} there and {new!r} in "
            f"{pictures.name}"
        )
