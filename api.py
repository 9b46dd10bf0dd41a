"""Stages as functions of Python objects; `__init__.py` has the modules of the others.

Data are anything that `dataset.as_dataset` takes; teachers are modules or `NETWORK@CHECKPOINT`, by name; a cache is its
folder, or a URL. What a user can correct is a `UserError`, whose text has the names of arguments in backticks.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demkd.config import (
    CacheConfig,
    ConfigError,
    Folder,
    ImageConfig,
    check_counts,
    check_names,
    check_output,
    run_data,
)

if TYPE_CHECKING:
    from torch import nn

    from demkd.dataset import AugmentationLike, Data
    from demkd.pipeline.preparation import CachingJob
    from demkd.pipeline.progress import Progress
    from demkd.pipeline.results import CachingPlan, CachingReport, EvaluationReport, PackReport
    from demkd.report.table import Table
    from demkd.teachers.load import ByTeacher, NormalizeLike, Teachers


# What `inspect` lists, of which it takes one; and what is of no use without another argument.
LISTINGS = ("by_class", "sample", "uncertain", "disagree", "wrong_above_uniform", "label_issues")
NEEDS: Mapping[str, Sequence[str]] = {
    "sort": ("by_class",),
    "limit": ("by_class",),
    "view_index": ("sample",),
    "views": ("sample",),
    "score": ("label_issues",),
}
EXCLUDE = (*itertools.combinations(LISTINGS, 2), ("view_index", "views"))


def contradiction(
    arguments: Mapping[str, object],
    *,
    named: Callable[[str], str],
    needs: Mapping[str, Sequence[str]] = NEEDS,
    exclude: Iterable[tuple[str, str]] = EXCLUDE,
) -> str | None:
    """A sentence about the first arguments that need or exclude each other; None and False are left out.

    `named` is what an argument is called there; of those in `needs`, it needs one.
    """
    given = {name for name, value in arguments.items() if value is not None and value is not False}
    for name, needed in needs.items():
        if name in given and not given.intersection(needed):
            wanted = " or ".join(map(named, needed))
            return f"{named(name)} needs {wanted}: give it too, or leave {named(name)} out"
    for one, other in exclude:
        if {one, other} <= given:
            return f"{named(one)} and {named(other)} exclude each other: leave one out"
    return None


def cache_teachers(teachers: "Teachers", data: "Data", *, out: Folder, **options: Any) -> "CachingReport":
    """Stage one: run each teacher once over every view, and cache its logits, entropies and features.

    Args:
        teachers: by name, modules that give logits (B, C) for normalized images (B, 3, H, W), or
            "NETWORK@CHECKPOINT"; or a list of "[NAME=]NETWORK@CHECKPOINT".
        data: the training images.
        out: the cache's folder; what is there already is kept.
        options: fields of `CacheConfig`; `augment`, `normalize`, `input_size`, `images`, `device`, `precision` and
            `progress` as for `distill`.

    Returns:
        A report, which is accepted where a cache is wanted.

    Raises:
        UserError: the same call resumes.
    """
    from demkd.pipeline.stage_one import cache_teachers as run

    with _prepared(teachers, data, out, **options) as (job, shown):
        return run(job, shown)


def plan_caching(teachers: "Teachers", data: "Data", *, out: Folder, **options: Any) -> "CachingPlan":
    """The bytes and time that `cache_teachers` would take, after the same checks; nothing is written."""
    from demkd.pipeline.stage_one import plan_caching as run

    with _prepared(teachers, data, out, **options) as (job, shown):
        return run(job, shown)


@contextmanager
def _prepared(
    teachers: "Teachers",
    data: "Data",
    out: Folder,
    *,
    augment: "AugmentationLike" = None,
    normalize: "ByTeacher[NormalizeLike]" = None,
    input_size: "ByTeacher[int]" = None,
    images: "ImageConfig | None" = None,
    device: str = "auto",
    precision: str = "auto",
    progress: "bool | Progress" = True,
    **options: Any,
) -> "Iterator[tuple[CachingJob, Progress]]":
    """Stage one, ready to start, and its progress; worker processes end with the context."""
    from demkd.dataset import as_augmentation, as_dataset, closing_workers
    from demkd.pipeline.distributed import choose_compute, is_rank_zero
    from demkd.pipeline.preparation import prepare
    from demkd.pipeline.progress import SILENT, as_progress
    from demkd.teachers.load import check_teachers, normalizations_by_teacher, sizes_by_teacher, teacher_specs

    check_names(options, CacheConfig)
    config, specs = CacheConfig(**options), teacher_specs(teachers)
    if not specs:
        raise ConfigError("`teachers` has none: give at least one")
    check_output(Path(out))
    check_teachers(specs)
    compute = choose_compute(device=device, precision=precision)
    shown = as_progress(progress) if is_rank_zero() else SILENT
    source = as_dataset(data, split="train", called="data", images=images, progress=shown)
    with closing_workers(source):
        job = prepare(
            specs,
            source,
            Path(out),
            config=config,
            policy=as_augmentation(augment, source.default_augmentation),
            normalize=normalizations_by_teacher(normalize),
            input_size=sizes_by_teacher(input_size),
            compute=compute,
        )
        yield job, shown


def evaluate(
    what: "Folder | nn.Module",
    test: "Data | None" = None,
    *,
    network: "str | nn.Module | None" = None,
    normalize: "ByTeacher[NormalizeLike]" = None,
    input_size: "ByTeacher[int]" = None,
    crop_pct: float | None = None,
    split: str = "test",
    images: "ImageConfig | None" = None,
    device: str = "auto",
    precision: str = "auto",
    progress: "bool | Progress" = True,
) -> "EvaluationReport":
    """Top-1 and top-5 of a finished run, a checkpoint or a module on test images.

    Args:
        test: the images; by default those of the data in the run's recipe.
        network: the network's name, for a checkpoint that does not have it; or the module of a run that trained one.
        normalize, input_size: as `cache_teachers` takes them, for one network.
        crop_pct: fraction of a photo's shorter side that is shown: 0.875 is 224 of 256. By default that of the
            network's run or publisher.
        split: of the data set, "test" or "train".
        images: how files are decoded.

    Raises:
        UserError: if there is nothing to evaluate, or it was trained on other classes.
    """
    from torch import nn

    from demkd.dataset import as_dataset, closing_workers
    from demkd.networks.features import in_eval_mode
    from demkd.pipeline.distributed import choose_compute
    from demkd.pipeline.evaluate import evaluate as run
    from demkd.pipeline.progress import as_progress
    from demkd.pipeline.results import EvaluationReport
    from demkd.teachers import load

    compute, shown = choose_compute(device=device, precision=precision), as_progress(progress)
    normalizations, sizes = load.normalizations_by_teacher(normalize), load.sizes_by_teacher(input_size)
    load.check_teacher_names(normalizations, (), option="normalize")
    load.check_teacher_names(sizes, (), option="input_size")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ConfigError(f"`crop_pct` is {crop_pct}: give a number above 0 and at most 1")
    if split not in ("test", "train"):
        raise ConfigError(f"`split` cannot be {split!r}: choose test or train")
    if test is None:
        if isinstance(what, nn.Module):
            raise ConfigError("`test` is missing: a module does not name its data")
        test = run_data(Path(what), option="test")
    dataset = as_dataset(test, split=split, called="test", images=images, progress=shown)
    choice = load.InputChoice(normalization=normalizations.get(""), size=sizes.get(""), crop_pct=crop_pct)
    if isinstance(what, nn.Module):
        loaded = load.load_module(what, load.class_name(what), called="the network", dataset=dataset, choice=choice)
    else:
        loaded = load.load_network(Path(what), name=network, dataset=dataset, choice=choice)
    evaluating = shown.task(f"evaluating {loaded.name}", total=len(dataset), unit="images")
    with closing_workers(dataset), in_eval_mode(loaded.network), evaluating as task:
        accuracy = run(compute.place(loaded.network), dataset, loaded.input, compute, task=task)
    return EvaluationReport(
        folder=Path() if isinstance(what, nn.Module) else Path(what),
        network=loaded.name,
        split=split,
        samples=len(dataset),
        top1=accuracy.top1,
        top5=accuracy.top5,
    )


def inspect(
    cache: Folder,
    *,
    teachers: Sequence[str] | None = None,
    by_class: bool = False,
    sort: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    view_index: int | None = None,
    views: bool = False,
    uncertain: int | None = None,
    disagree: int | None = None,
    wrong_above_uniform: int | None = None,
    label_issues: int | None = None,
    score: str | None = None,
) -> "dict[str, Any] | Table":
    """Entropy, accuracy and weight of each teacher of a cache; or its classes, a list of samples, or one sample.

    Args:
        by_class: the classes, by `sort`, the first `limit`.
        sample: this sample, in the view `view_index` (default 0) or in all `views`.
        uncertain, disagree, wrong_above_uniform: this number of samples of highest entropy, about which teachers
            disagree most, where a wrong teacher weighs most above 1/K.
        label_issues: this number of samples whose label may be wrong, by `score`: "cross-entropy", "margin",
            "certainty", "disagreement" or "entropy" (report/statistics.py).

    Returns:
        A table, which is a sequence of rows as dicts; of the whole cache and of one sample a dict of facts and tables.

    Raises:
        ConfigError: if two arguments exclude each other, or one needs another.
    """
    from demkd.cache import open_cache
    from demkd.report import inspect
    from demkd.report.statistics import read_statistics

    lists = {"uncertain": uncertain, "disagree": disagree, "wrong_above_uniform": wrong_above_uniform}
    lists["label_issues"] = label_issues
    given = {"by_class": by_class, "sort": sort, "limit": limit, "sample": sample, "view_index": view_index}
    given |= {"views": views, **lists, "score": score}
    wrong = contradiction(given, named=lambda name: f"`{name}`")
    if wrong:
        raise ConfigError(wrong)
    check_counts(limit=limit, **lists)
    with open_cache(cache, teachers) as opened:
        if sample is not None:
            if views:
                return inspect.sample_views(opened, sample)
            found = inspect.sample(opened, sample, view_index=view_index or 0)
            return inspect.with_files(found, opened.file_of) if opened.files else found
        statistics = read_statistics(opened)
        if by_class:
            return inspect.classes(statistics, sort=sort or "entropy", limit=limit)
        for name, count in lists.items():
            if count is not None:
                listed = inspect.samples(statistics, name, count, score=score or "cross-entropy")
                return inspect.with_files(listed, opened.file_of) if opened.files else listed
        return inspect.overview(statistics)


def pack(
    cache: Folder,
    *,
    out: Folder,
    teachers: Sequence[str] | None = None,
    views: int | None = None,
    top_k: int | None = None,
    tail_temperatures: Sequence[float] | None = None,
    logits: str | None = None,
    features: Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002 - the option's name
    progress: "bool | Progress" = True,
) -> "PackReport":
    """Copy a cache, or a part of it, with a README into a folder that can be uploaded; no teacher runs.

    Args:
        out: the copy's folder; an unfinished copy there is resumed.
        teachers: some of them, by name.
        views: only the first N views.
        top_k: keep only the K largest logits, and the logsumexp of the others.
        tail_temperatures: of that logsumexp.
        logits: "uint8" encodes all logits in 8 bits.
        features: the layers whose features are copied; all by default, () for none.
        license: of the copy, for a README that is new.

    Raises:
        UserError: the same call resumes.
    """
    from demkd.pipeline.packing import pack as run
    from demkd.pipeline.progress import as_progress

    shown = as_progress(progress)
    report = run(
        cache,
        Path(out),
        teachers=teachers,
        views=views,
        top_k=top_k,
        tail_temperatures=tail_temperatures,
        logits=logits,
        features=features,
        progress=shown,
    )
    readme = report.folder / "README.md"
    if not readme.exists():
        from demkd.cache import open_cache
        from demkd.report.page import write_whole
        from demkd.report.readme import readme as text_of

        with open_cache(report.folder) as copied:
            write_whole(readme, text_of(copied, license).encode("utf-8", "replace"))
    return report
