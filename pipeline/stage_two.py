"""Stage two: train a student from a cache; and its relatives, live teachers and labels alone.

SoftTargetLoader   the images of a batch, and what the teachers predict for them     targets.py
Trainer            one epoch, one step                                               trainer.py
fit                epochs, evaluation, checkpoints, the finished student             trainer.py
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demkd.config import (
    CROP_PCT,
    METHOD,
    METHODS,
    ConfigError,
    Folder,
    ImageConfig,
    MethodConfig,
    TrainConfig,
    check_names,
    check_output,
    choose_method,
    method_options,
    of_options,
    recipe_options,
)
from demkd.dataset import AugmentationLike, ImageDataset, closing_workers, has_validation, seeds
from demkd.dataset.adapters import Data, as_dataset, with_classes_of
from demkd.dataset.registry import augment_options
from demkd.errors import DataError
from demkd.networks import check_network
from demkd.pipeline.distributed import Compute, choose_compute, process_group
from demkd.pipeline.optim import OptimizerLike, SchedulerLike
from demkd.pipeline.progress import SILENT, Progress, as_progress
from demkd.pipeline.results import Callback, RunReport
from demkd.pipeline.runs import flat_recipe
from demkd.pipeline.targets import SoftTargetLoader
from demkd.pipeline.trainer import Trainer, fit
from demkd.teachers.load import ByTeacher, NormalizeLike, Teachers


def train(network: str | nn.Module, *, train: Data, out: Folder, **options: Any) -> RunReport:
    """Train a network on labels: a teacher, or a student's baseline. Arguments as `distill`'s, without a method."""
    check_names(options, TrainConfig, also=_OTHERS)
    return distill(network, train=train, out=out, method="ce", **options)


def distill(
    student: str | nn.Module,
    *,
    train: Data,
    out: Folder,
    test: Data | None = None,
    validation: Data | None = None,
    cache: Folder | None = None,
    teachers: Sequence[str] = (),
    live_teachers: Teachers = (),
    method: str | MethodConfig = METHOD,
    views: int | str | None = None,
    view_seed: int | None = None,
    hint_layer: ByTeacher[str] = None,
    student_layer: str = "",
    optimizer: str | OptimizerLike = TrainConfig.optimizer,
    scheduler: SchedulerLike | None = None,
    normalize: ByTeacher[NormalizeLike] = None,
    input_size: ByTeacher[int] = None,
    augment: AugmentationLike = None,
    images: ImageConfig | None = None,
    device: str = "auto",
    precision: str = "auto",
    callbacks: Sequence[Callback] = (),
    progress: bool | Progress = True,
    **options: Any,
) -> RunReport:
    """Train a student from a cache; no teacher is loaded.

    Args:
        student: a network's name, or a module of your own, which is trained in place.
        train: the images that the teachers were cached with.
        out: the run folder; an unfinished run there is resumed.
        test: evaluated after every epoch, or once at the end if there is validation; the test split of the same data
            if `train` is a name.
        validation: evaluated after every epoch; the validation split if `train` is a folder with one. The option
            `validation_fraction` holds out a part of the training images instead.
        cache: what `cache_teachers` wrote, or the URL of a folder that `pack` wrote.
        teachers: some of the cache's, by name; all by default.
        live_teachers: run these in every step instead of reading a cache.
        method: a preset by name, or a configuration.
        views: train on the first N views; "random" for independent views of live teachers.
        view_seed: with live teachers, which views come first.
        hint_layer: whose features a student matches, of all teachers or by name; their last maps by default.
        student_layer: whose features are adapted to them; the last map by default.
        optimizer: "sgd", "adamw", or a function of the parameters, whose learning rate is its own.
        scheduler: a function of the optimizer, in place of `schedule`; it is stepped once an epoch.
        normalize: mean and deviation of the student's input (and, by name, of live teachers); the data's by default.
        input_size: of live teachers, of all or by name.
        augment: the views: a name, an `AugmentConfig`, or an augmentation; the cache's, or the data's default.
        images: how files are decoded.
        callbacks: objects with the methods of `Callback`.
        options: fields of `TrainConfig` and `MethodConfig`.

    Raises:
        UserError: the same call resumes the run.
    """
    check_names(options, TrainConfig, MethodConfig)
    chosen = choose_method(method, **method_options(options))
    named = optimizer if isinstance(optimizer, str) else TrainConfig.optimizer
    config = of_options(TrainConfig, {**options, "optimizer": named})
    if isinstance(student, str) and ":" not in student:
        check_network(student)
    if test is None and not isinstance(train, str | Path):
        raise ConfigError("`test` is missing: give the images that the student is evaluated on")
    with _processes(device, precision, progress) as (compute, progress):
        check_output(Path(out), "train" if cache is None and not live_teachers else "distill")
        held = indices = None
        if test is None and validation is None and isinstance(train, str | Path) and has_validation(str(train)):
            validation = train
        if config.validation_fraction:
            if validation is not None:
                raise ConfigError("`validation_fraction` is given, and there are validation images: leave it out")
            source = as_dataset(train, split="train", called="train", images=images, progress=progress)
            labels = source.labels.numpy()
            held = seeds.validation_samples(labels, fraction=config.validation_fraction, seed=config.seed)
            indices = np.delete(np.arange(len(labels)), held)
        loader = SoftTargetLoader(
            cache,
            train if held is None else source,
            method=chosen,
            batch_size=config.batch_size,
            seed=config.seed,
            teachers=teachers,
            views=views,
            hint_layer=hint_layer,
            normalize=normalize,
            size=config.size,
            label_noise=config.label_noise,
            rank=compute.world.rank,
            world_size=compute.world.size,
            indices=indices,
            images=images,
            live_teachers=live_teachers,
            input_size=input_size,
            augment=augment,
            view_seed=view_seed,
            compute=compute,
            progress=progress,
        )
        called = "train" if test is None else "test"
        tested = as_dataset(
            train if test is None else test, split="test", called=called, images=images, progress=progress
        )
        tested = with_classes_of(loader.dataset, tested)
        validated: tuple[ImageDataset, Tensor] | None = None
        if held is not None:
            if loader.augmentation.mixes:
                raise ConfigError("`validation_fraction` with `mix` would train on held-out images: leave one out")
            validated = loader.dataset, torch.from_numpy(held)
        elif validation is not None:
            other = as_dataset(validation, split="validation", called="validation", images=images, progress=progress)
            other = with_classes_of(loader.dataset, other)
            validated = other, torch.arange(len(other))
        if loader.size is None and config.crop_pct:
            raise DataError("`crop_pct` needs `view=resized-crop`: these views keep the images' own size")
        if loader.size is not None:
            config = of_options(TrainConfig, {**asdict(config), "crop_pct": config.crop_pct or CROP_PCT})
        _warn_of_two_classes(chosen, loader.dataset.classes, progress)
        trainer = Trainer(
            student,
            loader,
            config,
            compute,
            student_layer=student_layer,
            optimizer=None if isinstance(optimizer, str) else optimizer,
            scheduler=scheduler,
        )
        recipe = _recipe(train, loader, config, trainer, compute, student_layer=student_layer)
        if validated and held is None:  # other validation images would choose another best epoch
            recipe["sources"] |= {f"validation_{name}": value for name, value in _digests(validated[0]).items()}
        shown = {**recipe_options(recipe), "device": compute.device}
        usual = {**asdict(TrainConfig()), **asdict(METHODS.get(chosen.name, chosen)), "online": False, "view_seed": 0}
        always = ("seed", "epochs", "batch_size", "learning_rate")
        progress.settings(
            {
                name: value
                for name, value in shown.items()
                if value not in (None, "", (), []) and (name in always or value != usual.get(name))
            }
        )
        choices = {name: str(value) for name, value in flat_recipe(recipe).items()}
        compute.world.check_same({**choices, **{f"test_{name}": value for name, value in _digests(tested).items()}})
        with closing_workers(loader.dataset, tested, *(validated or ())[:1]):
            return fit(trainer, tested, validated, Path(out), recipe, compute, progress, callbacks)


_OTHERS = (
    "test", "validation", "optimizer", "scheduler", "normalize", "augment", "images", "device", "precision",
    "callbacks", "progress",
)  # fmt: skip


def _recipe(
    train: Data,
    loader: SoftTargetLoader,
    config: TrainConfig,
    trainer: Trainer,
    compute: Compute,
    *,
    student_layer: str,
) -> dict[str, Any]:
    """Everything that decides the numbers of a run: what `--recipe` repeats, and a resumed run compares."""
    method, normalization, facts = loader.method, loader.normalization, loader.augmentation.to_dict()
    teaching = {
        "method": method.name,
        **{name: value for name, value in asdict(method).items() if name != "name"},
        "teachers": list(loader.teachers) if method.needs_teachers else [],
        "online": loader.cache is None,
        "views": loader.num_views,
        "view_seed": loader.view_seed,
        "hint_layer": [f"{name}={layer}" for name, layer in loader.hint_layers.items()],
        "student_layer": student_layer,
    }
    return {
        "data": str(train) if isinstance(train, str | Path) else f"a {type(train).__name__}",
        "student" if loader.teachers else "network": trainer.name,
        **asdict(config),
        "size": loader.size,
        **trainer.resolved,
        "precision": compute.precision,
        "normalize": [f"{_joined(normalization.mean)}/{_joined(normalization.std)}"],
        **(teaching if loader.teachers else {}),
        **augment_options(facts, usual=loader.dataset.default_augmentation.to_dict()),
        "augmentation": facts,
        "sources": {**_digests(loader.dataset), **loader.fingerprints},
    }


def _joined(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


def _digests(source: Any) -> dict[str, str]:
    return {name: str(value) for name, value in source.provenance().items() if name.endswith("_sha256")}


def _warn_of_two_classes(method: MethodConfig, classes: int, progress: Progress) -> None:
    if method.loss == "dkd" and classes == 2:
        progress.warn("with two classes there is one other class, so the non-target part of the loss is always 0")
    if method.standardize and classes == 2:
        progress.warn("with two classes, standardized logits are always ±0.71: the logit loss has no gradient")
    if method.loss in ("dist", "rank") and classes == 2:
        progress.warn(
            "with two classes, the correlation over the classes is 1 or -1: that part of the loss has no gradient"
        )


@contextmanager
def _processes(device: str, precision: str, progress: bool | Progress) -> Iterator[tuple[Compute, Progress]]:
    """The device, with the other processes that torchrun started; the user's random state is restored at the end.

    Training seeds PyTorch's generators in every epoch; the user's own random numbers must not depend on that.
    """
    cpu, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with process_group(choose_compute(device=device, precision=precision)) as compute:
            yield compute, as_progress(progress) if compute.world.is_rank_zero else SILENT
    finally:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        torch.backends.cudnn.benchmark = benchmark
