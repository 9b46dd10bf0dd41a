"""Stage two: a student learns from cached teachers. Also its two relatives, live teachers and no teachers at all.

    cache     slot              -> K by_slot of logits (N, C), memory-mapped; weights (K, N)
    losses    by_slot, weights    -> fused targets of the epoch
    pipeline  a batch of indices -> views, labels, targets; the student's step; an epoch report

N samples, C classes, K teachers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from demkd.cache import Cache, Provenance, TeacherCache, open_cache
from demkd.dataset import Normalisation, Pictures, ViewsError, seeded
from demkd.pipeline import defaults
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute
from demkd.pipeline.description import describe_data, describe_views
from demkd.pipeline.live_teachers import LiveTeachers, require_live_weights
from demkd.pipeline.loading import (
    LoadedNetwork,
    TeacherSpec,
    TeacherSpecError,
    chosen_for,
    load_split,
    load_teacher,
    require_teachers,
)
from demkd.pipeline.methods import Method, MethodError, require_teacher_count
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import Recipe, Teaching, Training, TrainingOptions
from demkd.pipeline.results import RunReport
from demkd.pipeline.runs import open_run
from demkd.pipeline.target_source import LabelsOnly, TargetSource, ViewPlan, independent_views, scheduled_views
from demkd.pipeline.training import Trainer, fit
from demkd.teachers import Teacher

_OTHER_DATA = "Give the --data that the teachers were cached with, or cache them again"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRequest:
    """What `distill` is asked for.

    Attributes:
        cache: the cache's folder, or None with live teachers or none.
        teachers: which cached ones; all if empty. With live ones, none, or their names.
        live: teachers to run in every step.
        normalisations: of live teachers, by name; "" stands for all others and the student. Cached teachers have
            their own.
        input_sizes: of live teachers, likewise.
        views: how many slots, "random" for independent views, or None for all that the cache has.
        view_seed: which views come first; None for the cache's, or the usual one with live teachers.
    """

    options: TrainingOptions
    method: Method
    folder: Path
    cache: Path | None = None
    teachers: tuple[str, ...] = ()
    live: tuple[TeacherSpec, ...] = ()
    normalisations: Mapping[str, Normalisation] = field(default_factory=dict)
    views: int | str | None = None
    view_seed: int | None = None
    input_sizes: Mapping[str, int] = field(default_factory=dict)


def train(
    options: TrainingOptions,
    folder: Path,
    compute: Compute,
    progress: Progress,
    *,
    normalisation: Normalisation | None = None,
) -> RunReport:
    """Supervised training on labels, every epoch with independent views.

    Args:
        normalisation: of the network's input; the data's usual one if left out.

    Raises:
        UserError: of any room; the run goes on when called again.
    """
    pictures, test = _load(options.data, progress)
    plan = independent_views(
        run_seed=options.seed, samples=len(pictures), num_distinct_views=pictures.policy.num_distinct_views
    )
    recipe = Recipe(
        training=_settings(options, normalisation, pictures, compute), teaching=None, sources=_sources(pictures)
    )
    labels = _training_labels(options, pictures)
    return _run(recipe, folder, pictures, labels, test, LabelsOnly(plan), compute, progress)


def distill(request: DistillRequest, compute: Compute, progress: Progress) -> RunReport:
    """Train a student as the method says.

    Raises:
        UserError: of any room; the run goes on when called again.
    """
    (_require_live if request.cache is None else _require_cached)(request)
    pictures, test = _load(request.options.data, progress)
    if request.method.decouple == "dkd" and pictures.classes == 2:
        progress.warn("with two classes there is one other class, so the non-target part of the loss is always 0")
    if request.cache is not None:
        return _distill_cached(request, request.cache, pictures, test, compute, progress)
    return _distill_live(request, pictures, test, compute, progress)


def _require_live(request: DistillRequest) -> None:
    """Refuse, before anything is loaded, what live teachers cannot do."""
    if request.method.needs_teachers and not request.live:
        raise MethodError(f"--method {request.method.name} has no teachers: give --cache, or --online with --teacher")
    names = [spec.name for spec in request.live]
    # A cached run's recipe names its teachers, and may be repeated with the same ones live.
    if request.teachers and set(request.teachers) != set(names):
        raise TeacherSpecError(
            f"--teachers {','.join(request.teachers)} chooses among a cache's teachers, and the live ones are "
            f"{', '.join(names) or 'none'}: leave it out, and give --teacher for each"
        )
    require_teachers(request.normalisations, request.live, option="--normalise")
    require_teachers(request.input_sizes, request.live, option="--input-size")
    require_live_weights(request.method, request.views)
    if request.method.needs_teachers:
        require_teacher_count(request.method, names)


def _require_cached(request: DistillRequest) -> None:
    """Refuse, before anything is loaded, what no cache can do."""
    if isinstance(request.views, str):
        raise ViewsError("--views random needs --online: a cache has answers for its own views only")
    named = next(filter(None, request.normalisations), None)
    if named:
        raise TeacherSpecError(
            f"--normalise {named}=... is for live teachers: cached answers were made with figures of their own. "
            "Give --normalise FIGURES, which are the student's"
        )


def _distill_cached(
    request: DistillRequest, folder: Path, pictures: Pictures, test: Pictures, compute: Compute, progress: Progress
) -> RunReport:
    with open_cache(folder, request.teachers or None) as cache:
        require_same_data(cache.teachers[0], pictures)
        views, view_seed = _cached_views(request, cache, folder)
        if request.method.needs_teachers:
            require_teacher_count(request.method, cache.names)
        recipe = _recipe(
            request,
            pictures,
            compute,
            names=cache.names,
            views=views,
            view_seed=view_seed,
            sources=_cache_sources(cache),
        )
        seed = request.options.seed
        labels = _training_labels(request.options, pictures)
        target_source: TargetSource
        if request.method.needs_teachers:
            target_source = CachedTeachers(
                cache, labels.to(compute.device), request.method, views=views, run_seed=seed, device=compute.device
            )
        else:
            target_source = LabelsOnly(scheduled_views(cache.view, slots=views, run_seed=seed))
        return _run(recipe, request.folder, pictures, labels, test, target_source, compute, progress)


def _distill_live(
    request: DistillRequest, pictures: Pictures, test: Pictures, compute: Compute, progress: Progress
) -> RunReport:
    views = _view_count(request, pictures)
    view_seed = defaults.VIEW_SEED if request.view_seed is None else request.view_seed
    plan = _live_plan(request.options.seed, pictures, views, view_seed)
    loaded = [
        load_teacher(
            spec,
            pictures=pictures,
            compute=compute,
            normalisation=chosen_for(request.normalisations, spec),
            input_size=chosen_for(request.input_sizes, spec),
        )
        for spec in request.live
    ]
    sources = _live_sources(request, loaded)
    names = tuple(spec.name for spec in request.live)
    recipe = _recipe(request, pictures, compute, names=names, views=views, view_seed=view_seed, sources=sources)
    labels = _training_labels(request.options, pictures)
    target_source: TargetSource = LabelsOnly(plan)
    if request.method.needs_teachers:
        teachers = [teacher for teacher, _ in loaded]
        target_source = LiveTeachers(
            teachers, labels.to(compute.device), request.method, plan, run_seed=request.options.seed
        )
    return _run(recipe, request.folder, pictures, labels, test, target_source, compute, progress)


def require_same_data(cached: TeacherCache, pictures: Pictures) -> None:
    """Refuse pictures, labels or views other than those that the teachers saw.

    Raises:
        CacheMismatchError: naming every field that differs, with both values.
    """
    seed = _view_seed(cached)
    now = Provenance(identity={"data": describe_data(pictures), "views": describe_views(pictures.policy, seed)})
    cached.provenance.require(now, cached=str(cached.path), cure=_OTHER_DATA, tables=("data", "views"))


def _view_seed(cached: TeacherCache) -> int:
    return int(cached.provenance.identity["views"]["seed"])


def _load(data: str, progress: Progress) -> tuple[Pictures, Pictures]:
    progress.note(f"reading the pictures of {data}")
    return load_split(data, "train"), load_split(data, "test")


def _cached_views(request: DistillRequest, cache: Cache, folder: Path) -> tuple[int, int]:
    """How many of the cache's slots to train on, and the seed that they were drawn with."""
    views = cache.views if request.views is None else int(request.views)
    if not 1 <= views <= cache.views:
        raise ViewsError(
            f"--views is {views}, but the cache in {folder} has {cache.views}: choose 1 to {cache.views}, "
            "or run cache-teachers with more --views, which keeps what is there"
        )
    seed = _view_seed(cache.teachers[0])
    if request.view_seed not in (None, seed):
        raise ViewsError(
            f"--view-seed is {request.view_seed}, but the views of the cache in {folder} were drawn with {seed}: "
            "leave it out, or cache the teachers with another --view-seed in another folder"
        )
    return views, seed


def _view_count(request: DistillRequest, pictures: Pictures) -> int | str:
    num_distinct_views = pictures.policy.num_distinct_views
    if request.views is None:
        return num_distinct_views
    if isinstance(request.views, int):
        seeded.require_slots(request.views, num_distinct_views)
    return request.views


def _live_plan(seed: int, pictures: Pictures, views: int | str, view_seed: int) -> ViewPlan:
    """The view plan of a run without a cache: the slots a cache would have, or independent views."""
    samples, num_distinct_views = len(pictures), pictures.policy.num_distinct_views
    if isinstance(views, str):
        return independent_views(run_seed=seed, samples=samples, num_distinct_views=num_distinct_views)
    table = seeded.view_table(view_seed=view_seed, samples=samples, num_distinct_views=num_distinct_views, slots=views)
    return scheduled_views(lambda slot: table[slot], slots=views, run_seed=seed)


def _recipe(
    request: DistillRequest,
    pictures: Pictures,
    compute: Compute,
    *,
    names: tuple[str, ...],
    views: int | str,
    view_seed: int,
    sources: dict[str, str],
) -> Recipe:
    return Recipe(
        training=_settings(request.options, request.normalisations.get(""), pictures, compute),
        teaching=Teaching(
            method=request.method,
            teachers=names if request.method.needs_teachers else (),
            online=bool(request.live),
            views=views,
            view_seed=view_seed,
        ),
        sources={**_sources(pictures), **sources},
    )


def _settings(options: TrainingOptions, chosen: Normalisation | None, pictures: Pictures, compute: Compute) -> Training:
    """The options with everything resolved that depends on the data and the machine."""
    normalisation = chosen or pictures.usual_normalisation()
    return Training(
        **asdict(options),
        precision=compute.precision,
        mean=normalisation.mean,
        std=normalisation.std,
        padding=pictures.policy.padding,
        flip=pictures.policy.flip,
    )


def _training_labels(options: TrainingOptions, pictures: Pictures) -> Tensor:
    """What the student, and whatever looks at labels, is told: (N,). The cached answers never saw a label."""
    noisy = seeded.noisy_labels(
        pictures.labels.numpy(), share=options.label_noise, classes=pictures.classes, seed=options.seed
    )
    return torch.from_numpy(noisy)


def _sources(pictures: Pictures) -> dict[str, str]:
    return {"pixels_sha256": pictures.pixels_sha256(), "labels_sha256": pictures.labels_sha256()}


def _live_sources(request: DistillRequest, loaded: Sequence[tuple[Teacher, LoadedNetwork]]) -> dict[str, str]:
    """Digests of the teachers' weights, and their input where it was chosen."""
    sources = {f"teacher_{teacher.name}": teacher.state_sha256() for teacher, _ in loaded}
    for spec, (_, network) in zip(request.live, loaded, strict=True):
        if chosen_for(request.normalisations, spec) or network.input_size:
            figures = [*network.normalisation.mean, *network.normalisation.std]
            size = f" at {network.input_size} pixels" if network.input_size else ""
            sources[f"teacher_{spec.name}_input"] = f"{', '.join(map(str, figures))}{size}"
    return sources


def _cache_sources(cache: Cache) -> dict[str, str]:
    return {f"teacher_{teacher.name}": teacher.provenance.fingerprint() for teacher in cache.teachers}


def _run(
    recipe: Recipe,
    folder: Path,
    pictures: Pictures,
    labels: Tensor,
    test: Pictures,
    target_source: TargetSource,
    compute: Compute,
    progress: Progress,
) -> RunReport:
    trainer = Trainer(recipe, pictures, labels, target_source, compute)
    with open_run(folder, recipe) as run:
        return fit(trainer, recipe, run, test, compute, progress)
