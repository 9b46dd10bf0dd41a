"""Stage two: a student learns from cached teachers. Also its two relatives, live teachers and no teachers at all.

    cache     slot              -> K teachers' logits (N, C), memory-mapped; weights (K, N); records (N, R) of the views
    losses    logits, weights   -> fused targets of the epoch
    pipeline  a batch of indices -> views, labels, targets; the student's step; an epoch report

N samples, C classes, K teachers, R integers of a view's record.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from demkd.cache import Cache, Provenance, TeacherCache, TeacherFile, open_cache
from demkd.dataset import ImageSource, ViewPolicy, ViewsError, policy_of, resting_after, seeded
from demkd.pipeline import defaults
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute
from demkd.pipeline.live_teachers import LiveTeachers
from demkd.pipeline.loading import (
    InputChoice,
    LoadedNetwork,
    chosen_for,
    load_teacher,
    require_teachers,
)
from demkd.pipeline.methods import require_mixable, require_teacher_count, require_view_count
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import Recipe, Teaching, Training, TrainingOptions
from demkd.pipeline.requests import DistillRequest, StudentRequest
from demkd.pipeline.results import RunReport
from demkd.pipeline.running import fit
from demkd.pipeline.runs import open_run
from demkd.pipeline.several_views import in_every_view, views_together
from demkd.pipeline.target_source import (
    LabelsOnly,
    TargetSource,
    ViewPlan,
    cached_hint_layers,
    independent_views,
    scheduled_views,
)
from demkd.pipeline.training import Trainer
from demkd.pipeline.turns import Steps, to_the_end
from demkd.teachers import Teacher


def train(request: StudentRequest, compute: Compute, progress: Progress) -> RunReport:
    """Supervised training on labels; see `train_in_steps`."""
    with resting_after(request.train, request.test):
        return to_the_end(train_in_steps(request, compute, progress))


def distill(request: DistillRequest, compute: Compute, progress: Progress) -> RunReport:
    """Train a student as the method says; see `distill_in_steps`."""
    with resting_after(request.train, request.test):
        return to_the_end(distill_in_steps(request, compute, progress))


def train_in_steps(request: StudentRequest, compute: Compute, progress: Progress) -> Steps[RunReport]:
    """Supervised training on labels, every epoch with independent views.

    Raises:
        UserError: of any room; the run goes on when called again.
    """
    policy = request.policy or request.train.default_policy
    policy.require_pictures(request.train.sizes)
    together = views_together(request.options)
    plans = [_independent(request, policy, place, together) for place in range(together)]
    recipe = Recipe(training=_training(request, policy, compute), teaching=None, sources=_digests(request.train))
    source = in_every_view(lambda place: LabelsOnly(plans[place]), together)
    return (yield from _run(request, recipe, _training_labels(request), source, compute, progress))


def distill_in_steps(request: DistillRequest, compute: Compute, progress: Progress) -> Steps[RunReport]:
    """Train a student as the method says.

    Raises:
        UserError: of any room; the run goes on when called again.
    """
    if request.method.loss == "dkd" and request.train.classes == 2:
        progress.warn("with two classes there is one other class, so the non-target part of the loss is always 0")
    if request.method.standardise and request.train.classes == 2:
        progress.warn(
            "with two classes standardised logits say which is larger, and nothing else: the loss has no slope"
        )
    if request.cache is None:
        return (yield from _distill(request, _live(request, compute), compute, progress))
    with open_cache(request.cache, request.teachers or None) as cache:
        return (yield from _distill(request, _cached(request, cache, compute), compute, progress))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Teachers:
    """The teachers of a run, cached or live, and the views that they answer about.

    Attributes:
        views, view_seed: how many slots, or "random", and what they are drawn with.
        hint_layers: by name, where the method matches features.
        digests: of what they are.
        together: in how many views a step shows each sample.
        plan: of the views at one of these places, without an answer.
        answers: the same with answers, for the labels (N,) that the student is told.
    """

    names: tuple[str, ...]
    policy: ViewPolicy
    views: int | str
    view_seed: int
    hint_layers: Mapping[str, str]
    digests: Mapping[str, str]
    together: int
    plan: Callable[[int], ViewPlan]
    answers: Callable[[Tensor, int], TargetSource]


def _distill(request: DistillRequest, taught: _Teachers, compute: Compute, progress: Progress) -> Steps[RunReport]:
    """What cached and live teachers have in common."""
    labels = _training_labels(request)
    on_device = labels.to(compute.device)

    def source_of(place: int) -> TargetSource:
        if request.method.needs_teachers:
            return taught.answers(on_device, place)
        return LabelsOnly(taught.plan(place))

    source = in_every_view(source_of, taught.together)
    return (yield from _run(request, _recipe(request, taught, compute), labels, source, compute, progress))


def _cached(request: DistillRequest, cache: Cache, compute: Compute) -> _Teachers:
    require_same_data(cache.teachers[0], request.train)
    policy, views, view_seed = _cached_views(request, cache)
    require_teachers(request.hint_layer, cache.names, option="hint_layer")
    method, run_seed, together = request.method, request.options.ordered_by, _together(request, policy, views)
    if method.needs_teachers:
        require_teacher_count(method, cache.names)
    hint_layers = cached_hint_layers(cache.teachers, request.hint_layer) if method.needs_features else {}
    return _Teachers(
        names=cache.names,
        policy=policy,
        views=views,
        view_seed=view_seed,
        hint_layers=hint_layers,
        digests={f"teacher_{teacher.name}": teacher.provenance.fingerprint() for teacher in cache.teachers},
        together=together,
        plan=lambda place: scheduled_views(cache.view, slots=views, run_seed=run_seed, place=place, together=together),
        answers=lambda labels, place: CachedTeachers(
            cache,
            labels,
            method,
            views=views,
            run_seed=run_seed,
            device=compute.device,
            hint_layer=hint_layers,
            place=place,
            together=together,
        ),
    )


def _live(request: DistillRequest, compute: Compute) -> _Teachers:
    policy = request.policy or request.train.default_policy
    views = _live_view_count(request, policy)
    policy.require_pictures(request.train.sizes)
    view_seed = defaults.VIEW_SEED if request.view_seed is None else request.view_seed
    together = _together(request, policy, views)
    loaded = [
        load_teacher(
            spec,
            source=request.train,
            compute=compute,
            choice=InputChoice(
                normalisation=chosen_for(request.normalise, spec.name),
                size=chosen_for(request.input_size, spec.name),
                view_size=policy.view_size,
            ),
        )
        for spec in request.live_teachers
    ]
    teachers = [teacher for teacher, _ in loaded]
    hint_layers = {one.name: chosen_for(request.hint_layer, one.name) or one.hint_layer for one in teachers}

    def plan(place: int) -> ViewPlan:
        return _live_plan(request, policy, views, view_seed, place, together)

    return _Teachers(
        names=tuple(one.name for one in teachers),
        policy=policy,
        views=views,
        view_seed=view_seed,
        hint_layers=hint_layers if request.method.needs_features else {},
        digests=_live_digests(request, loaded),
        together=together,
        plan=plan,
        answers=lambda labels, place: LiveTeachers(
            teachers,
            labels,
            request.method,
            plan(place),
            run_seed=request.options.ordered_by,
            hint_layer=hint_layers,
            view_sizes=[policy.side_for(network.input.size) for _, network in loaded],
            world=compute.world,
        ),
    )


def require_same_data(cached: TeacherCache, source: ImageSource) -> None:
    """Refuse pictures or labels other than those that the teachers saw.

    Raises:
        CacheMismatchError: naming every field that differs, with both values.
    """
    cached.provenance.require(
        Provenance(identity={"data": source.facts()}),
        cached=str(cached.path),
        cure=f"{source.name} is not what the teachers saw: give the data that they were cached with (`train`), or "
        "cache them again",
        tables=("data",),
    )


def cached_policy(cached: TeacherCache | TeacherFile) -> tuple[ViewPolicy, int]:
    """The views that a cache's records are of, and the seed that they were drawn with."""
    facts = cached.provenance.identity["views"]
    return policy_of(facts), int(facts["seed"])


def _cached_views(request: DistillRequest, cache: Cache) -> tuple[ViewPolicy, int, int]:
    """The cache's policy, how many of its slots to train on, and the seed that they were drawn with."""
    policy, seed = cached_policy(cache.teachers[0])
    folder = cache.folder
    views = cache.num_views if request.views is None else int(request.views)
    if not 1 <= views <= cache.num_views:
        raise ViewsError(
            f"`views` is {views}, but the cache in {folder} has {cache.num_views}: choose 1 to {cache.num_views}, "
            "or call `cache_teachers` with more `views`, which keeps what is there"
        )
    if request.view_seed not in (None, seed):
        raise ViewsError(
            f"`view_seed` is {request.view_seed}, but the views of the cache in {folder} were drawn with {seed}: leave "
            "it out, or cache the teachers with another `view_seed` in another folder"
        )
    if request.policy is not None and not _same_views(request.policy, policy):
        raise ViewsError(
            f"`policy` is {request.policy}, but the views of the cache in {folder} are {policy}: leave it out, "
            "or cache the teachers with it in another folder"
        )
    return policy, views, seed


def _live_view_count(request: DistillRequest, policy: ViewPolicy) -> int | str:
    most = policy.num_distinct_views
    if request.views is None:
        return "random" if most is None else most
    if isinstance(request.views, int):
        policy.require(request.views)
    return request.views


def _together(request: DistillRequest, policy: ViewPolicy, views: int | str) -> int:
    """In how many views a step shows each of its samples, which its slots can share out, and its method can mix."""
    together = views_together(request.options, request.method.views_per_step)
    if isinstance(views, int):
        option = "views_per_step" if request.options.views_per_decode == 1 else "views_per_decode"
        require_view_count(views, together, option)
    if policy.mixes:
        require_mixable(request.method)
    return together


def _independent(request: StudentRequest, policy: ViewPolicy, place: int, together: int) -> ViewPlan:
    run_seed = request.options.ordered_by
    return independent_views(policy, request.train, run_seed=run_seed, place=place, together=together)


def _live_plan(
    request: DistillRequest, policy: ViewPolicy, views: int | str, view_seed: int, place: int, together: int
) -> ViewPlan:
    """The view plan of a run without a cache: the slots a cache would have, or independent views."""
    if isinstance(views, str):
        return _independent(request, policy, place, together)
    everyone, sizes = torch.arange(len(request.train)).numpy(), request.train.sizes
    return scheduled_views(
        lambda slot: policy.draw(view_seed=view_seed, slots=[slot], indices=everyone, sizes=sizes)[0],
        slots=views,
        run_seed=request.options.ordered_by,
        place=place,
        together=together,
    )


def _recipe(request: DistillRequest, taught: _Teachers, compute: Compute) -> Recipe:
    return Recipe(
        training=_training(request, taught.policy, compute),
        teaching=Teaching(
            method=request.method,
            teachers=taught.names if request.method.needs_teachers else (),
            online=bool(request.live_teachers),
            views=taught.views,
            view_seed=taught.view_seed,
            hint_layer=tuple(f"{name}={layer}" for name, layer in taught.hint_layers.items()),
            student_layer=request.student_layer,
        ),
        sources={**_digests(request.train), **taught.digests},
    )


def _training(request: StudentRequest, policy: ViewPolicy, compute: Compute) -> Training:
    """The options with everything resolved that depends on the data and the machine."""
    normalisation = request.normalise.get("") or request.train.usual_normalisation()
    size, crop_ratio = _input_of(request.options, policy)
    return Training(
        **{**asdict(request.options), "size": size, "crop_ratio": crop_ratio},
        precision=compute.precision,
        mean=normalisation.mean,
        std=normalisation.std,
        view_policy=policy.facts(),
    )


def _input_of(options: TrainingOptions, policy: ViewPolicy) -> tuple[int | None, float | None]:
    """The side of the student's input and its evaluation's crop; none where views keep the pictures' size."""
    size = policy.side_for(options.size)
    if size is None and (options.size or options.crop_ratio):
        option = "size" if options.size else "crop_ratio"
        raise ViewsError(
            f"`{option}` is of `view=resized-crop`, and these views keep the pictures' own size: leave it out"
        )
    return size, None if size is None else options.crop_ratio or defaults.CROP_RATIO


def _same_views(one: ViewPolicy, other: ViewPolicy) -> bool:
    """Whether the same parts of pictures are shown, at whatever size."""

    def without_size(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: without_size(value) if isinstance(value, Mapping) else value
            for name, value in facts.items()
            if name != "size"
        }

    return without_size(one.facts()) == without_size(other.facts())


def _training_labels(request: StudentRequest) -> Tensor:
    """What the student, and whatever looks at labels, is told: (N,). The cached answers never saw a label."""
    noisy = seeded.noisy_labels(
        request.train.labels.numpy(),
        share=request.options.label_noise,
        classes=request.train.classes,
        seed=request.options.seed,
    )
    return torch.from_numpy(noisy)


def _digests(source: ImageSource) -> dict[str, str]:
    return {name: str(value) for name, value in source.facts().items() if name.endswith("_sha256")}


def _live_digests(request: DistillRequest, loaded: Sequence[tuple[Teacher, LoadedNetwork]]) -> dict[str, str]:
    """Digests of the teachers' weights, and their input where it was chosen."""
    digests = {f"teacher_{teacher.name}": teacher.state_sha256() for teacher, _ in loaded}
    for teacher, network in loaded:
        if chosen_for(request.normalise, teacher.name) or network.input.size:
            values = [*network.input.normalisation.mean, *network.input.normalisation.std]
            size = f" at {network.input.size} pixels" if network.input.size else ""
            digests[f"teacher_{teacher.name}_input"] = f"{', '.join(map(str, values))}{size}"
    return digests


def _run(
    request: StudentRequest,
    recipe: Recipe,
    labels: Tensor,
    target_source: TargetSource,
    compute: Compute,
    progress: Progress,
) -> Steps[RunReport]:
    trainer = Trainer(
        recipe,
        request.train,
        labels,
        target_source,
        compute,
        student=request.student,
        own=request.own,
    )
    test = request.test
    choices = {name: str(value) for name, value in trainer.recipe.choices().items()}
    compute.world.require_same({**choices, **{f"test_{name}": value for name, value in _digests(test).items()}})
    with open_run(request.folder, trainer.recipe) if compute.world.is_first else nullcontext() as run:
        return (yield from fit(trainer, run, test, compute, progress, request.callbacks if run else ()))
