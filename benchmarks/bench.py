"""What the measurements share: pictures, caches of random answers, the real loops, and bare ones to hold them against.

N samples, K teachers, V slots, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from demkd.benchmarks.synthetic import NORMALISATION, random_pictures, write_cache
from demkd.benchmarks.timing import Measurement, Work, compare
from demkd.cache import open_cache
from demkd.dataset import CropFlip, MemoryImages
from demkd.losses import entropy
from demkd.networks import build_network
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute
from demkd.pipeline.methods import METHODS, Method
from demkd.pipeline.optimizers import OwnTraining
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import Recipe, Teaching, Training
from demkd.pipeline.target_source import LabelsOnly, TargetSource, independent_views
from demkd.pipeline.training import Trainer
from demkd.teachers import Teacher

_HINTS: dict[str, tuple[int, ...]] = {"stage3": (256,)}
_SLOTS = 4  # of the caches that only speed is measured on: an epoch reads one


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much is measured; `views` are those of the cache whose reading and memory are measured."""

    samples: int
    views: int
    repetitions: int
    batch_size: int = 64


QUICK = Scale(samples=3_200, views=4, repetitions=13)
FULL = Scale(samples=50_000, views=162, repetitions=5)


class Bench:
    """The pictures and caches that the measurements share."""

    def __init__(self, scale: Scale, folder: Path, compute: Compute, pictures: MemoryImages | None = None) -> None:
        """Take the first samples of the pictures, or noise where there are none."""
        self.scale, self.folder, self.compute = scale, folder, compute
        self.pictures = random_pictures(scale.samples) if pictures is None else _first(pictures, scale.samples)
        self.labels = self.pictures.labels.to(compute.device)

    def smaller(self, samples: int, *, batch_size: int | None = None) -> Self:
        """The same with fewer samples, for what costs the same per sample at any size."""
        scale = replace(self.scale, samples=samples, batch_size=batch_size or self.scale.batch_size)
        return type(self)(scale, self.folder / f"first-{samples}", self.compute, self.pictures)

    def compare(self, number: str, what: str, target: str, one: Work, other: Work) -> Measurement:
        """One work's time by another's."""
        return compare(number, what, target, one, other, repetitions=self.scale.repetitions)

    def cache(self, teachers: int, *, features: bool = False, views: int = _SLOTS) -> Path:
        """A cache of random answers, made when it is first asked for."""
        folder = self.folder / f"cache-{teachers}-{views}{'-features' if features else ''}"
        if not folder.exists():
            write_cache(folder, self.pictures, teachers=teachers, views=views, features=_HINTS if features else None)
        return folder

    def trainer(
        self,
        network: str,
        target_source: TargetSource,
        method: Method,
        *,
        teachers: int,
        own: OwnTraining | None = None,
    ) -> Trainer:
        recipe = _recipe(network, method, teachers=teachers, scale=self.scale, compute=self.compute)
        return Trainer(recipe, self.pictures, self.pictures.labels, target_source, self.compute, own=own)

    def plain(self, network: str) -> Trainer:
        """`train`: labels alone, independent views."""
        plan = independent_views(self.pictures.default_policy, self.pictures, run_seed=0)
        return self.trainer(network, LabelsOnly(plan), METHODS["ce"], teachers=0)

    def cached(
        self,
        network: str,
        *,
        teachers: int,
        method: str = "de-mkd-logits",
        views: int = _SLOTS,
        own: OwnTraining | None = None,
    ) -> Trainer:
        """`distill` from a cache."""
        features = METHODS[method].needs_features
        cache = open_cache(self.cache(teachers, features=features, views=views))
        target_source = CachedTeachers(
            cache, self.labels, METHODS[method], views=views, run_seed=0, device=self.compute.device
        )
        return self.trainer(network, target_source, METHODS[method], teachers=teachers, own=own)


def _first(pictures: MemoryImages, samples: int) -> MemoryImages:
    """The first samples; their classes stay as they are."""
    return replace(pictures, pixels=pictures.pixels[:samples], labels=pictures.labels[:samples])


def epoch_of(trainer: Trainer) -> Callable[[], object]:
    """One epoch after the other."""
    epochs = iter(range(1, 1_000_000))
    return lambda: trainer.train_epoch(next(epochs), SilentProgress())


def bare_step(
    bench: Bench,
    *,
    network: str = "resnet8",
    precision: str | None = None,
    layout: torch.memory_format = torch.channels_last,
    steps: int = 20,
) -> Callable[[], object]:
    """Training steps on views that are there already, written as plainly as PyTorch allows."""
    compute = replace(bench.compute, precision=precision or bench.compute.precision)
    model = build_network(network, classes=100).to(compute.device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    views = torch.randn(bench.scale.batch_size, 3, 32, 32, device=compute.device).to(memory_format=layout)
    labels = torch.arange(bench.scale.batch_size, device=compute.device) % 100

    def run() -> None:
        for _ in range(steps):
            with compute.autocast():
                logits = model(views)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        compute.wait()

    return run


def bare_forward(bench: Bench, teachers: list[Teacher], *, steps: int = 20) -> Callable[[], object]:
    """The teachers' forward passes on one batch."""
    views = bench.pictures.pixels[: bench.scale.batch_size].to(bench.compute.device).permute(0, 3, 1, 2)

    def run() -> None:
        for _ in range(steps):
            for teacher in teachers:
                entropy(teacher.answer(views).logits)
        bench.compute.wait()

    return run


def random_teacher(network: str, compute: Compute) -> Teacher:
    torch.manual_seed(0)
    model = compute.place(build_network(network, classes=100))
    return Teacher(network, model, prepare=NORMALISATION.apply, autocast=compute.autocast)


def _recipe(network: str, method: Method, *, teachers: int, scale: Scale, compute: Compute) -> Recipe:
    return Recipe(
        training=Training(
            data="synthetic",
            network=network,
            seed=0,
            epochs=1_000_000,
            batch_size=scale.batch_size,
            learning_rate=0.01,
            schedule="step",
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            precision=compute.precision,
            mean=NORMALISATION.mean,
            std=NORMALISATION.std,
            view_policy=CropFlip(padding=4, flip=True).facts(),
        ),
        teaching=Teaching(
            method=method, teachers=tuple(f"t{n}" for n in range(teachers)), online=False, views=_SLOTS, view_seed=0
        ),
        sources={},
    )
