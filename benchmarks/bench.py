"""What the measurements share: images, caches of random logits, the real loops, and bare ones to hold them against.

N samples, K teachers, V views, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from demkd.benchmarks.synthetic import NORMALIZATION, random_images, write_cache
from demkd.benchmarks.timing import Measurement, Work, compare
from demkd.config import METHODS, CacheConfig, TrainConfig
from demkd.dataset import ArrayDataset, Augmentation, ImageDataset
from demkd.losses import entropy
from demkd.networks import build_network
from demkd.pipeline.distributed import Compute
from demkd.pipeline.optim import OptimizerLike
from demkd.pipeline.preparation import CachingJob, prepare
from demkd.pipeline.progress import SILENT
from demkd.pipeline.targets import SoftTargetLoader
from demkd.pipeline.trainer import Trainer
from demkd.teachers import Teacher
from demkd.teachers.load import TeacherSpec

_HINTS: dict[str, tuple[int, ...]] = {"stage3": (256,)}
_VIEWS = 4  # of the caches that only speed is measured on: an epoch reads one


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
    """The images and caches that the measurements share: the first samples of the images, or noise."""

    def __init__(self, scale: Scale, folder: Path, compute: Compute, images: ArrayDataset | None = None) -> None:
        self.scale, self.folder, self.compute = scale, folder, compute
        whole = random_images(scale.samples) if images is None else images
        pixels, labels = whole.pixels[: scale.samples], whole.labels[: scale.samples]
        self.images = replace(whole, pixels=pixels, labels=labels)

    def smaller(self, samples: int, *, batch_size: int | None = None) -> Self:
        """The same with fewer samples, for what costs the same per sample at any size."""
        scale = replace(self.scale, samples=samples, batch_size=batch_size or self.scale.batch_size)
        return type(self)(scale, self.folder / f"first-{samples}", self.compute, self.images)

    def compare(self, number: str, what: str, target: str, one: Work, other: Work) -> Measurement:
        """One work's time by another's."""
        return compare(number, what, target, one, other, repetitions=self.scale.repetitions)

    def cache(self, teachers: int, *, features: bool = False, views: int = _VIEWS, logits: str = "float16") -> Path:
        """A cache of random logits, made when it is first used."""
        folder = self.folder / f"cache-{teachers}-{views}-{logits}{'-features' if features else ''}"
        if not folder.exists():
            hints = _HINTS if features else None
            write_cache(folder, self.images, teachers=teachers, views=views, features=hints, encoding=logits)
        return folder

    def trainer(self, network: str, *, optimizer: OptimizerLike | None = None, **source: Any) -> Trainer:
        """A student as `distill` and `train` make it.

        Args:
            source: where its targets come from, as `SoftTargetLoader` takes it.
        """
        config = TrainConfig(epochs=1_000_000, batch_size=self.scale.batch_size, learning_rate=0.01)
        loader = SoftTargetLoader(
            source.pop("cache", None),
            self.images,
            batch_size=config.batch_size,
            normalize=NORMALIZATION,
            compute=self.compute,
            **source,
        )
        return Trainer(network, loader, config, self.compute, optimizer=optimizer)

    def student(
        self,
        network: str = "resnet8",
        *,
        teachers: int = 3,
        method: str = "de-mkd-logits",
        views: int = _VIEWS,
        logits: str = "float16",
        optimizer: OptimizerLike | None = None,
    ) -> Trainer:
        """`distill` from a cache; or, without teachers, `train`: labels alone, independent views."""
        if not teachers:
            return self.trainer(network, method="ce")
        cache = self.cache(teachers, features=METHODS[method].needs_features, views=views, logits=logits)
        return self.trainer(network, cache=cache, method=method, optimizer=optimizer)

    def live(self, networks: Sequence[str], student: str, *, views: int = _VIEWS) -> Trainer:
        """`distill` with live teachers of random weights."""
        modules = {f"t{number}": random_network(name) for number, name in enumerate(networks)}
        return self.trainer(student, method="de-mkd-logits", live_teachers=modules, views=views)


def epoch_of(trainer: Trainer) -> Callable[[], object]:
    """One epoch after the other."""
    epochs = iter(range(1_000_000))
    return lambda: trainer.train_epoch(next(epochs), SILENT)


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
    views = bench.images.pixels[: bench.scale.batch_size].to(bench.compute.device).permute(0, 3, 1, 2)

    def run() -> None:
        for _ in range(steps):
            for teacher in teachers:
                entropy(teacher.predict(views).logits)
        bench.compute.wait()

    return run


def random_network(network: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network(network, classes=100)


def caching_job(
    compute: Compute,
    images: ImageDataset,
    teachers: Mapping[str, nn.Module],
    folder: Path,
    *,
    policy: Augmentation | None = None,
    **config: Any,
) -> CachingJob:
    """Stage one, with its teachers loaded and checked."""
    specs = [TeacherSpec(name=name, network=name, module=module) for name, module in teachers.items()]
    chosen = CacheConfig(**config)
    return prepare(specs, images, folder, config=chosen, policy=policy, normalize={}, input_size={}, compute=compute)
