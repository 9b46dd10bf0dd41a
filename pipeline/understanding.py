"""What the arguments of `api.py` stand for: pictures, teachers, options, and with them what a stage is asked for."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from demkd.dataset import Data, ImageSource, Reading, SharedImages, StreamedImages, as_policy, as_source
from demkd.dataset.objects import with_classes_of
from demkd.pipeline import defaults
from demkd.pipeline.arguments import (
    ArgumentError,
    ByTeacher,
    NormaliseLike,
    TrainingKeywords,
    by_teacher,
    normalisations_by_teacher,
    require_crop_ratio,
    resolve_method,
    sizes_by_teacher,
)
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import Teachers, class_name, require_teachers, teacher_specs
from demkd.pipeline.methods import Method
from demkd.pipeline.optimizers import OPTIMIZERS, SCHEDULES, OwnTraining
from demkd.pipeline.preparation import CachingRequest
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.requests import DistillRequest, require_possible
from demkd.pipeline.verify import Asked

Folder = str | os.PathLike[str]
OptimizerLike = str | Callable[[Any], Optimizer]
SchedulerLike = Callable[[Optimizer], LRScheduler]


def caching_request(
    teachers: Teachers, data: Data, out: Folder, told: Progress, options: Mapping[str, Any]
) -> CachingRequest:
    """What stage one is asked for, with the options of `CachingOptions` but for device, precision and progress."""
    chosen = dict(options)
    specs = teacher_specs(teachers)
    if not specs:
        raise ArgumentError("`teachers` has none: give at least one")
    features = chosen.pop("features", defaults.LAYERS)
    source = source_of(data, "train", told, chosen.pop("reading", None), called="data")
    return CachingRequest(
        teachers=specs,
        folder=Path(out),
        normalise=normalisations_by_teacher(chosen.pop("normalise", None)),
        input_size=sizes_by_teacher(chosen.pop("input_size", None)),
        features=(features,) if isinstance(features, str) else tuple(features),
        source=source,
        policy=as_policy(chosen.pop("policy", None), source.default_policy),
        only_shards=tuple(chosen.pop("only_shards", ())),
        **chosen,
    )


def distillation(given: Mapping[str, Any]) -> Callable[[ImageSource, ImageSource], DistillRequest]:
    """What `distill` is asked for with these arguments, of training and test pictures.

    Raises:
        UserError: if it cannot be, whatever the pictures.
    """
    student, cache, options = given["student"], given["cache"], given["options"]
    if cache is not None and given["live_teachers"]:
        raise ArgumentError("`cache` and `live_teachers` exclude each other: leave one out")
    training = {name: value for name, value in options.items() if name in TrainingKeywords.__annotations__}
    chosen = resolve_method(given["method"], {name: value for name, value in options.items() if name not in training})
    live, named = teacher_specs(given["live_teachers"]), given["teachers"]
    teachers = (named,) if isinstance(named, str) else tuple(named)
    settings, own = training_options(student, given["train"], given["optimizer"], given["scheduler"], training)
    by_name: dict[str, Any] = {
        "normalise": normalisations_by_teacher(given["normalise"]),
        "input_size": sizes_by_teacher(given["input_size"]),
        "hint_layer": by_teacher(given["hint_layer"]),
    }
    require_possible(
        chosen,
        cached=cache is not None,
        live=[spec.name for spec in live],
        teachers=teachers,
        views=given["views"],
        by_teacher=by_name,
    )

    def of(train: ImageSource, test: ImageSource) -> DistillRequest:
        return DistillRequest(
            options=settings,
            train=train,
            test=test,
            folder=Path(given["out"]),
            student=None if isinstance(student, str) else student,
            own=own,
            policy=as_policy(given["policy"], train.default_policy),
            callbacks=tuple(given["callbacks"]),
            method=chosen,
            cache=None if cache is None else Path(cache),
            teachers=teachers,
            live_teachers=live,
            **by_name,
            **{name: given[name] for name in ("views", "view_seed", "student_layer")},
        )

    return of


def training_options(
    network: str | nn.Module,
    data: Data,
    optimizer: OptimizerLike,
    scheduler: SchedulerLike | None,
    training: Mapping[str, Any],
) -> tuple[TrainingOptions, OwnTraining]:
    require_crop_ratio(training.get("crop_ratio"))
    options = TrainingOptions(
        data=os.fspath(data) if isinstance(data, str | os.PathLike) else f"a {type(data).__name__}",
        network=network if isinstance(network, str) else class_name(network),
        optimizer=optimizer if isinstance(optimizer, str) else "own",
        **training,
    )
    for name, known in (("optimizer", {**OPTIMIZERS, "own": None}), ("schedule", SCHEDULES)):
        if getattr(options, name) not in known:
            raise ArgumentError(f"`{name}` cannot be {getattr(options, name)!r}: choose one of {', '.join(known)}")
    return options, OwnTraining(optimizer=None if isinstance(optimizer, str) else optimizer, scheduler=scheduler)


def asked_teachers(
    teachers: Teachers,
    data: Data,
    progress: Progress,
    reading: Reading | None,
    normalise: ByTeacher[NormaliseLike],
    input_size: ByTeacher[int],
    device: str,
    precision: str,
) -> Asked:
    specs = teacher_specs(teachers)
    normalisations, sizes = normalisations_by_teacher(normalise), sizes_by_teacher(input_size)
    names = [spec.name for spec in specs]
    require_teachers(normalisations, names, option="normalise")
    require_teachers(sizes, names, option="input_size")
    return Asked(
        source=source_of(data, "train", progress, reading, called="data"),
        teachers=specs,
        normalise=normalisations,
        input_size=sizes,
        device=device,
        precision=precision,
    )


def source_of(
    data: Data, split: str, progress: Progress, reading: Reading | None, *, called: str, note: bool = True
) -> ImageSource:
    if note and isinstance(data, str | os.PathLike):
        progress.note(f"reading the pictures of {os.fspath(data)}")
    return as_source(data, split=split, called=called, reading=reading, told=progress)


def splits(
    train: Data, test: Data | None, progress: Progress, reading: Reading | None
) -> tuple[ImageSource, ImageSource]:
    if test is None and not isinstance(train, str | os.PathLike):
        raise ArgumentError("`test` is missing: give the pictures that the student is measured on")
    training = source_of(train, "train", progress, reading, called="train")
    given = train if test is None else test
    tested = source_of(given, "test", progress, reading, called="test", note=test is not None)
    return training, with_classes_of(training, tested)


def shared(source: ImageSource) -> ImageSource:
    """A source whose pictures are read once for all who ask for the same."""
    return SharedImages.of(source) if isinstance(source, StreamedImages) else source


def settings_of(options: TrainingOptions, compute: Compute, method: Method | None = None) -> dict[str, object]:
    """A run's choices by option, without those that have no value."""
    chosen = asdict(options)
    if method is not None:
        ways = asdict(method)
        chosen = {"student": chosen.pop("network"), **chosen, "method": ways.pop("name"), **ways}
    chosen |= {"device": compute.device, "precision": compute.precision}
    return {name: value for name, value in chosen.items() if value not in (None, "", ())}
