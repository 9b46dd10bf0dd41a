"""Stage two: a student learns from cached teachers. Also its two relatives, live teachers and no teachers at all.

    cache     slot              -> K teachers' logits (N, C), memory-mapped; weights (K, N); records (N, R) of the views
    losses    logits, weights   -> fused targets of the epoch
    pipeline  a batch of indices -> views, labels, targets; the student's step; an epoch report

N samples, C classes, K teachers, R integers of a view's record.
"""

from contextlib import nullcontext
from dataclasses import asdict

import torch
from torch import Tensor

from demkd.cache import open_cache
from demkd.dataset import ImageSource, ViewPolicy, ViewsError, resting_after, seeded
from demkd.pipeline import defaults
from demkd.pipeline.compute import Compute
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
    independent_views,
)
from demkd.pipeline.taught import TaughtBy, by_cache, by_live_teachers
from demkd.pipeline.training import Trainer
from demkd.pipeline.turns import Steps, to_the_end


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
    run_seed = request.options.ordered_by
    plans = [
        independent_views(policy, request.train, run_seed=run_seed, place=place, together=together)
        for place in range(together)
    ]
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
        return (yield from _distill(request, by_live_teachers(request, compute), compute, progress))
    with open_cache(request.cache, request.teachers or None) as cache:
        return (yield from _distill(request, by_cache(request, cache, compute), compute, progress))


def _distill(request: DistillRequest, taught: TaughtBy, compute: Compute, progress: Progress) -> Steps[RunReport]:
    """What cached and live teachers have in common."""
    labels = _training_labels(request)
    on_device = labels.to(compute.device)

    def source_of(place: int) -> TargetSource:
        if request.method.needs_teachers:
            return taught.answers(on_device, place)
        return LabelsOnly(taught.plan(place))

    source = in_every_view(source_of, taught.together)
    return (yield from _run(request, _recipe(request, taught, compute), labels, source, compute, progress))


def _recipe(request: DistillRequest, taught: TaughtBy, compute: Compute) -> Recipe:
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
