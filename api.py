"""The stages as functions of Python objects; the command line calls these too.

Data are anything that `dataset.as_source` takes; teachers are modules or `NETWORK@CHECKPOINT`, by name; a cache is its
folder. Whatever a user can repair is a `UserError`, whose text puts the names of arguments in backticks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from demkd.cache import open_cache
from demkd.errors import UserError
from demkd.pipeline import defaults
from demkd.pipeline.arguments import (
    ArgumentError,
    ByTeacher,
    CachingOptions,
    DistillKeywords,
    NormaliseLike,
    TrainingKeywords,
    contradiction,
    normalisations_by_teacher,
    require_crop_ratio,
    sizes_by_teacher,
)
from demkd.pipeline.methods import Method
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import TrainingOptions

if TYPE_CHECKING:
    from torch import nn

    from demkd.dataset import Data, ImageSource, PolicyLike, Reading
    from demkd.pipeline.callbacks import Callback
    from demkd.pipeline.compute import Compute
    from demkd.pipeline.loading import Teachers
    from demkd.pipeline.results import (
        CachingPlan,
        CachingReport,
        EvaluationReport,
        ExportReport,
        MergeReport,
        PackReport,
        RunReport,
        VerificationReport,
    )
    from demkd.pipeline.understanding import OptimizerLike, SchedulerLike
    from demkd.report.rows import Inspection

Folder = str | os.PathLike[str]


def cache_teachers(
    teachers: "Teachers", data: "Data", *, out: Folder, **options: Unpack[CachingOptions]
) -> "CachingReport":
    """Stage one: run each teacher once over every view, and keep its answers in a cache.

    Args:
        teachers: by name, modules that give logits (B, C) for normalised pictures (B, 3, H, W), or
            "NETWORK@CHECKPOINT"; or a list of "[NAME=]NETWORK@CHECKPOINT".
        data: the training pictures.
        out: the cache's folder; what is there already is kept.
        options: see `CachingOptions`.

    Returns:
        What was done; it stands for the cache where one is wanted.

    Raises:
        UserError: what was written stays, and the same call goes on.
    """
    from demkd.pipeline.stage_one import cache_teachers as run

    return run(*_caching(teachers, data, out, options))


def plan_caching(
    teachers: "Teachers", data: "Data", *, out: Folder, **options: Unpack[CachingOptions]
) -> "CachingPlan":
    """What `cache_teachers` would cost in bytes and time, after the same checks; nothing is written."""
    from demkd.pipeline.dry_run import plan_caching as run

    return run(*_caching(teachers, data, out, options))


def _caching(teachers: "Teachers", data: "Data", out: Folder, options: CachingOptions) -> Any:
    """The request, where to compute, and where to tell of it."""
    from demkd.pipeline.understanding import caching_request

    chosen: dict[str, Any] = dict(options)
    told = _progress_of_rank(chosen.pop("progress", True))
    compute = _compute(chosen.pop("device", "auto"), chosen.pop("precision", "auto"))
    return caching_request(teachers, data, out, told, chosen), compute, told


def train(
    network: "str | nn.Module",
    *,
    train: "Data",
    out: Folder,
    test: "Data | None" = None,
    optimizer: "OptimizerLike" = TrainingOptions.optimizer,
    scheduler: "SchedulerLike | None" = None,
    normalise: ByTeacher[NormaliseLike] = None,
    policy: "PolicyLike" = None,
    reading: "Reading | None" = None,
    device: str = "auto",
    precision: str = "auto",
    callbacks: Sequence["Callback"] = (),
    progress: bool | Progress = True,
    **training: Unpack[TrainingKeywords],
) -> "RunReport":
    """Train a network on labels: a teacher, or a student's baseline. Arguments as `distill`'s."""
    from demkd.dataset import as_policy
    from demkd.pipeline.loading import require_teachers
    from demkd.pipeline.requests import StudentRequest
    from demkd.pipeline.stage_two import train as run
    from demkd.pipeline.understanding import settings_of, splits, training_options

    options, own = training_options(network, train, optimizer, scheduler, training)
    normalisations = normalisations_by_teacher(normalise)
    require_teachers(normalisations, (), option="normalise")
    with _joined(device, precision, progress) as (compute, told):
        training_source, test_source = splits(train, test, told, reading)
        request = StudentRequest(
            options=options,
            train=training_source,
            test=test_source,
            folder=Path(out),
            student=None if isinstance(network, str) else network,
            own=own,
            normalise=normalisations,
            policy=as_policy(policy, training_source.default_policy),
            callbacks=tuple(callbacks),
        )
        told.settings(settings_of(options, compute))
        return run(request, compute, told)


def distill(
    student: "str | nn.Module",
    *,
    train: "Data",
    out: Folder,
    test: "Data | None" = None,
    cache: Folder | None = None,
    teachers: Sequence[str] = (),
    live_teachers: "Teachers" = (),
    method: str | Method = defaults.METHOD,
    views: int | str | None = None,
    view_seed: int | None = None,
    hint_layer: ByTeacher[str] = None,
    student_layer: str = "",
    optimizer: "OptimizerLike" = TrainingOptions.optimizer,
    scheduler: "SchedulerLike | None" = None,
    normalise: ByTeacher[NormaliseLike] = None,
    input_size: ByTeacher[int] = None,
    policy: "PolicyLike" = None,
    reading: "Reading | None" = None,
    device: str = "auto",
    precision: str = "auto",
    callbacks: Sequence["Callback"] = (),
    progress: bool | Progress = True,
    **options: Unpack[DistillKeywords],
) -> "RunReport":
    """Stage two: train a student from a cache; no teacher is loaded.

    Args:
        student: a network's name, or a module of your own, which is trained in place.
        train: the pictures that the teachers were cached with.
        out: the run folder; an unfinished run there goes on.
        test: what the student is measured on after every epoch; the test split of the same data if `train` is a name.
        cache: what `cache_teachers` wrote.
        teachers: some of the cache's, by name; all by default.
        live_teachers: run these in every step instead of reading a cache.
        method: a preset by name; its options are further arguments.
        views: train on the first so many slots; "random" for independent views of live teachers.
        view_seed: with live teachers, which views come first.
        hint_layer: whose features a student matches, of all teachers or by name; their last maps by default.
        student_layer: whose features are adapted to them; the last map by default.
        optimizer: "sgd", "adamw", or a function of the parameters; with your own, the learning rate is its own.
        scheduler: a function of the optimizer, instead of `schedule`; it is stepped once an epoch.
        normalise: of the student's input (and live teachers', by name); the data's by default.
        policy: the views, or a name of them; the cache's, or as is usual for the data.
        reading: how pictures are decoded.
        callbacks: objects with the methods of `Callback`.
        options: see `TrainingKeywords` and `MethodOptions`.

    Raises:
        UserError: the run goes on when called again.
    """
    given = dict(locals())  # all arguments by name, as `distill_together` has them
    from demkd.pipeline.stage_two import distill as run
    from demkd.pipeline.understanding import distillation, settings_of, splits

    request_of = distillation(given)
    with _joined(device, precision, progress) as (compute, told):
        request = request_of(*splits(train, test, told, reading))
        told.settings(settings_of(request.options, compute, request.method))
        return run(request, compute, told)


def distill_together(
    students: Sequence[Mapping[str, Any]], *, progress: bool | Progress = True
) -> "list[RunReport | UserError]":
    """Several students in one process, a step of each in turn; each is as if trained alone.

    A photo is read and decoded once for all students who show it in the same view in the same step: whose data,
    `reading`, batch size, number of views and seed (or `order_seed`) agree. Others take turns, epoch by epoch.

    Args:
        students: the arguments of `distill` for each, with data by name; all with the same device and precision.
        progress: where warnings go.

    Returns:
        A report for each, or what stopped it.
    """
    from demkd.pipeline.process_state import restored_process_state
    from demkd.pipeline.progress import OnlyWarnings
    from demkd.pipeline.stage_two import distill_in_steps
    from demkd.pipeline.turns import Steps, in_turn
    from demkd.pipeline.understanding import distillation, shared, splits

    bound = [_arguments_of_distill(one) for one in students]
    machines = {(one["device"], one["precision"]) for one in bound}
    if len(machines) != 1:
        raise ArgumentError("students that are trained together need one `device` and one `precision` for all")
    compute, told = _compute(*machines.pop()), OnlyWarnings(_progress(progress))
    sources: dict[Any, tuple[ImageSource, ImageSource]] = {}

    def steps(given: Mapping[str, Any]) -> "Steps[RunReport | UserError]":
        try:
            request_of = distillation(given)
            data = (given["train"], given["test"], given["reading"])
            if data not in sources:
                training, tested = splits(*data[:2], told, data[2])
                sources[data] = (shared(training), shared(tested))
            return (yield from distill_in_steps(request_of(*sources[data]), compute, told))
        except UserError as error:
            return error

    try:
        with restored_process_state():
            found = dict(in_turn([steps(one) for one in bound], compute.device))
    finally:
        for source in chain.from_iterable(sources.values()):
            source.rest()
    return [found[number] for number in range(len(bound))]


def _arguments_of_distill(given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of `distill`, as it sees them."""
    bound = signature(distill).bind(**given)
    bound.apply_defaults()
    return {"options": {}, **bound.arguments}


def evaluate(
    what: "Folder | nn.Module",
    test: "Data",
    *,
    network: str | None = None,
    normalise: ByTeacher[NormaliseLike] = None,
    input_size: ByTeacher[int] = None,
    crop_ratio: float | None = None,
    split: str = "test",
    reading: "Reading | None" = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool | Progress = True,
) -> "EvaluationReport":
    """Top-1 and top-5 of a finished run, a checkpoint or a module on test pictures.

    Args:
        network: the network's name, for a checkpoint that does not know it.
        normalise, input_size: as `cache_teachers` takes them, for one network.
        crop_ratio: what is shown of a photo's shorter side: 0.875 is 224 of 256; what the network's run or publisher
            says by default.
        split: which of a data set's pictures: "test" or "train".
        reading: how pictures are decoded.
    """
    from torch import nn

    from demkd.pipeline.evaluation import evaluate_network
    from demkd.pipeline.loading import InputChoice, require_teachers
    from demkd.pipeline.understanding import source_of

    compute, told = _compute(device, precision), _progress(progress)
    normalisations, sizes = normalisations_by_teacher(normalise), sizes_by_teacher(input_size)
    require_teachers(normalisations, (), option="normalise")
    require_teachers(sizes, (), option="input_size")
    require_crop_ratio(crop_ratio)
    if split not in ("test", "train"):
        raise ArgumentError(f"`split` cannot be {split!r}: choose test or train")
    return evaluate_network(
        what if isinstance(what, nn.Module) else Path(what),
        test=source_of(test, split, told, reading, called="test"),
        network=network,
        choice=InputChoice(normalisation=normalisations.get(""), size=sizes.get(""), crop_ratio=crop_ratio),
        compute=compute,
        progress=told,
    )


def export(
    run: Folder,
    *,
    file_format: str,
    out: Folder,
    data: str | None = None,
    network: str | None = None,
    reading: "Reading | None" = None,
    progress: bool | Progress = True,
) -> "ExportReport":
    """Write the network of a finished run for use elsewhere, and check the file by loading it in a fresh process.

    Args:
        run: a run folder, or a checkpoint.
        file_format: "safetensors", "onnx" or "torch-export".
        data: whose test pictures it is checked on, by name or folder; by default the data of the run's recipe.
        network: the network's name, for a checkpoint that does not know it.
        reading: how those pictures are decoded.
    """
    from demkd.pipeline.exporting import ExportRequest
    from demkd.pipeline.exporting import export as run_export

    request = ExportRequest(
        run=Path(run), network=network, data=data, reading=reading, format=file_format, out=Path(out)
    )
    return run_export(request, _progress(progress))


def inspect(
    cache: Folder,
    *,
    teachers: Sequence[str] | None = None,
    by_class: bool = False,
    sort: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    slot: int | None = None,
    views: bool = False,
    uncertain: int | None = None,
    disagree: int | None = None,
    wrong_and_trusted: int | None = None,
    suspect: int | None = None,
    score: str | None = None,
) -> "Inspection":
    """How sure, how right and how trusted each teacher of a cache is: a summary, or one thing from close by.

    Args:
        by_class: the classes, by `sort`, the first `limit`.
        sample: what the teachers answer about this sample, in a `slot` or in all `views`.
        uncertain, disagree, wrong_and_trusted: so many samples of highest entropy, about which teachers disagree most,
            where a wrong teacher is trusted most.
        suspect: so many samples whose label may be wrong, by `score`: "cross-entropy", "margin", "certainty",
            "disagreement" or "entropy" (report/suspects.py).

    Raises:
        ArgumentError: if two arguments exclude each other, or one needs another.
    """
    from demkd.report import samples
    from demkd.report.classes import list_classes
    from demkd.report.single_sample import summarise_sample, views_of_sample
    from demkd.report.statistics import read_statistics
    from demkd.report.summary import summarise
    from demkd.report.suspects import USUAL_SCORE, suspects

    given = {"by_class": by_class, "sort": sort, "limit": limit, "sample": sample, "slot": slot, "views": views}
    given |= {"uncertain": uncertain, "disagree": disagree, "wrong_and_trusted": wrong_and_trusted}
    wrong = contradiction({**given, "suspect": suspect, "score": score}, named=lambda name: f"`{name}`")
    if wrong:
        raise ArgumentError(wrong)
    with open_cache(cache, teachers) as opened:
        if sample is not None:
            return views_of_sample(opened, sample) if views else summarise_sample(opened, sample, slot=slot or 0)
        statistics = read_statistics(opened)
        if by_class:
            return list_classes(statistics, sort=sort or "entropy", limit=limit)
        if uncertain is not None:
            return samples.uncertain(statistics, uncertain)
        if disagree is not None:
            return samples.disputed(statistics, disagree)
        if wrong_and_trusted is not None:
            return samples.wrong_and_trusted(statistics, wrong_and_trusted)
        if suspect is not None:
            return suspects(statistics, suspect, score=score or USUAL_SCORE)
        return summarise(statistics)


def verify(
    cache: Folder, *, teachers: Sequence[str] | None = None, progress: bool | Progress = True
) -> "VerificationReport":
    """Check every byte of a cache; `sound` if nothing is damaged or unfinished.

    Args:
        teachers: some of them, by name.
    """
    from demkd.pipeline.verify import verify as run

    return run(Path(cache), teachers, _progress(progress))


def merge(cache: Folder, *, teachers: Sequence[str] | None = None, progress: bool | Progress = True) -> "MergeReport":
    """Make one file of each teacher's shards: the bytes that one process would have written.

    Args:
        teachers: some of them, by name.

    Raises:
        UserError: if a teacher is not whole, or damaged; the shards stay until its file is whole.
    """
    from demkd.pipeline.merging import merge as run

    return run(Path(cache), teachers, _progress(progress))


def pack(
    cache: Folder,
    *,
    out: Folder,
    teachers: Sequence[str] | None = None,
    views: int | None = None,
    keep: int | None = None,
    rest_temperatures: Sequence[float] | None = None,
    features: Sequence[str] | None = None,
    progress: bool | Progress = True,
) -> "PackReport":
    """Copy a cache, or a part of it, with a README into a folder that can be uploaded; no teacher runs.

    Args:
        out: the copy's folder; an unfinished copy there goes on.
        teachers: some of them, by name.
        views: only the first so many.
        keep: only so many of the largest logits of each answer, and the sum of the others.
        rest_temperatures: at which that sum is kept.
        features: the layers whose features are copied; all by default, () for none.

    Raises:
        UserError: what was written stays, and the same call goes on.
    """
    from demkd.pipeline.packing import PackRequest
    from demkd.pipeline.packing import pack as run

    request = PackRequest(
        cache=Path(cache),
        out=Path(out),
        teachers=None if teachers is None else tuple(teachers),
        views=views,
        keep=keep,
        rest_temperatures=None if rest_temperatures is None else tuple(rest_temperatures),
        features=None if features is None else tuple(features),
    )
    report = run(request, _progress(progress))
    readme = report.folder / "README.md"
    if not readme.exists():
        from demkd.report.card import card
        from demkd.report.statistics import read_statistics
        from demkd.report.summary import summarise
        from demkd.report.writing import write_whole

        with open_cache(report.folder) as copied:
            write_whole(readme, card(copied, summarise(read_statistics(copied))).encode("utf-8", "replace"))
    return report


def recompute(
    cache: Folder,
    teachers: "Teachers",
    data: "Data",
    *,
    pairs: int = 200,
    seed: int = 0,
    normalise: ByTeacher[NormaliseLike] = None,
    input_size: ByTeacher[int] = None,
    reading: "Reading | None" = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool | Progress = True,
) -> "VerificationReport":
    """Check a cache, then ask its teachers again about random samples in random slots, `pairs` of them each.

    Args:
        normalise, input_size: what the cache says if left out.
        precision: "auto" is that of the cache.
    """
    from demkd.pipeline import verify as stage
    from demkd.pipeline.understanding import asked_teachers

    told = _progress(progress)
    asked = asked_teachers(teachers, data, told, reading, normalise, input_size, device, precision)
    return stage.recompute(stage.verify(Path(cache), None, told), asked, told, pairs=pairs, seed=seed)


def repair(
    cache: Folder,
    teachers: "Teachers",
    data: "Data",
    *,
    normalise: ByTeacher[NormaliseLike] = None,
    input_size: ByTeacher[int] = None,
    reading: "Reading | None" = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool | Progress = True,
) -> "VerificationReport":
    """Let teachers redo the blocks of a cache that fail their checks, and those alone; arguments as `recompute`'s."""
    from demkd.pipeline import verify as stage
    from demkd.pipeline.understanding import asked_teachers

    told = _progress(progress)
    return stage.repair(
        Path(cache), asked_teachers(teachers, data, told, reading, normalise, input_size, device, precision), told
    )


def _compute(device: str, precision: str) -> "Compute":
    from demkd.pipeline.compute import choose_compute

    return choose_compute(device=device, precision=precision)


@contextmanager
def _joined(device: str, precision: str, progress: bool | Progress) -> "Iterator[tuple[Compute, Progress]]":
    """Where to compute and where to tell of it, together with the other processes that torchrun started."""
    from demkd.pipeline.process_state import restored_process_state
    from demkd.pipeline.processes import joined

    with restored_process_state(), joined(_compute(device, precision)) as compute:
        yield compute, compute.world.voice(_progress(progress))


def _progress(progress: bool | Progress) -> Progress:
    from demkd.console import ConsoleProgress

    return ConsoleProgress(quiet=not progress) if isinstance(progress, bool) else progress


def _progress_of_rank(progress: bool | Progress) -> Progress:
    """The same; under torchrun rank 0 speaks for all."""
    from demkd.pipeline.processes import speaks
    from demkd.pipeline.progress import SilentProgress

    return _progress(progress) if speaks() else SilentProgress()
