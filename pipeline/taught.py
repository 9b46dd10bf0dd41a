"""The teachers that a run learns from, cached or live, and the views that they answer about.

N samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from demkd.cache import Cache, Provenance, TeacherCache, TeacherFile
from demkd.dataset import ImageSource, ViewPolicy, ViewsError, policy_of
from demkd.pipeline import defaults
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute
from demkd.pipeline.live_teachers import LiveTeachers
from demkd.pipeline.loading import InputChoice, LoadedNetwork, chosen_for, load_teacher, require_teachers
from demkd.pipeline.methods import require_mixable, require_teacher_count, require_view_count
from demkd.pipeline.requests import DistillRequest
from demkd.pipeline.several_views import views_together
from demkd.pipeline.target_source import (
    TargetSource,
    ViewPlan,
    cached_hint_layers,
    independent_views,
    scheduled_views,
)
from demkd.teachers import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class TaughtBy:
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


def by_cache(request: DistillRequest, cache: Cache, compute: Compute) -> TaughtBy:
    require_same_data(cache.teachers[0], request.train)
    policy, views, view_seed = _cached_views(request, cache)
    require_teachers(request.hint_layer, cache.names, option="hint_layer")
    method, run_seed, together = request.method, request.options.ordered_by, _together(request, policy, views)
    if method.needs_teachers:
        require_teacher_count(method, cache.names)
    hint_layers = cached_hint_layers(cache.teachers, request.hint_layer) if method.needs_features else {}
    return TaughtBy(
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


def by_live_teachers(request: DistillRequest, compute: Compute) -> TaughtBy:
    policy = request.policy or request.train.default_policy
    views = _live_view_count(request, policy)
    policy.require_pictures(request.train.sizes)
    view_seed = defaults.VIEW_SEED if request.view_seed is None else request.view_seed
    together = _together(request, policy, views)
    loaded = _loaded(request, policy, compute)
    teachers = [teacher for teacher, _ in loaded]
    hint_layers = {one.name: chosen_for(request.hint_layer, one.name) or one.hint_layer for one in teachers}
    plan = partial(_live_plan, request, policy, views, view_seed, together)
    return TaughtBy(
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


def _loaded(request: DistillRequest, policy: ViewPolicy, compute: Compute) -> list[tuple[Teacher, LoadedNetwork]]:
    return [
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


def _live_plan(
    request: DistillRequest, policy: ViewPolicy, views: int | str, view_seed: int, together: int, place: int
) -> ViewPlan:
    """The slots that a cache would have, or independent views."""
    source, run_seed = request.train, request.options.ordered_by
    if isinstance(views, str):
        return independent_views(policy, source, run_seed=run_seed, place=place, together=together)
    everyone = torch.arange(len(source)).numpy()
    return scheduled_views(
        lambda slot: policy.draw(view_seed=view_seed, slots=[slot], indices=everyone, sizes=source.sizes)[0],
        slots=views,
        run_seed=run_seed,
        place=place,
        together=together,
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


def _same_views(one: ViewPolicy, other: ViewPolicy) -> bool:
    """Whether the same parts of pictures are shown, at whatever size."""

    def without_size(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: without_size(value) if isinstance(value, Mapping) else value
            for name, value in facts.items()
            if name != "size"
        }

    return without_size(one.facts()) == without_size(other.facts())


def _live_digests(request: DistillRequest, loaded: Sequence[tuple[Teacher, LoadedNetwork]]) -> dict[str, str]:
    """Digests of the teachers' weights, and their input where it was chosen."""
    digests = {f"teacher_{teacher.name}": teacher.state_sha256() for teacher, _ in loaded}
    for teacher, network in loaded:
        if chosen_for(request.normalise, teacher.name) or network.input.size:
            values = [*network.input.normalisation.mean, *network.input.normalisation.std]
            size = f" at {network.input.size} pixels" if network.input.size else ""
            digests[f"teacher_{teacher.name}_input"] = f"{', '.join(map(str, values))}{size}"
    return digests
