"""What photos cost: one decode for many views, an epoch from files, and the workers against the bare decoder.

N images of a folder, at 128 pixels; noise would decode otherwise than photos do.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from demkd.benchmarks.bench import caching_job, epoch_of
from demkd.benchmarks.timing import Measurement, Work, compare
from demkd.config import CROP_PCT, ImageConfig, TrainConfig
from demkd.dataset import ImageDataset, ResizedCrop, StreamedDataset, ViewTask, load_images, params_on
from demkd.networks import build_network
from demkd.pipeline.distributed import Compute, choose_compute
from demkd.pipeline.preparation import CachingJob
from demkd.pipeline.progress import SILENT
from demkd.pipeline.stage_one import fill_shards, precompute_weights
from demkd.pipeline.targets import SoftTargetLoader
from demkd.pipeline.trainer import Trainer

SIDE, VIEWS, STUDENT = 128, 8, "torchvision:mobilenet_v3_small"
POLICY = ResizedCrop(size=SIDE)


def measure_photos(
    data: str, *, device: str, repetitions: int, workers: int | None, samples: int, only: Collection[str] = ()
) -> Iterator[Measurement]:
    """The lines as they are measured, all or `only` some, on so many images, evenly from all."""
    compute = choose_compute(device=device)
    whole = load_images(data, split="train", images=ImageConfig(workers=workers))
    if not isinstance(whole, StreamedDataset):
        raise SystemExit(f"{data} has small images of one size, which are kept in memory: give photos (--data)")
    chosen = torch.linspace(0, len(whole) - 1, min(samples, len(whole))).long()
    photos = _some(whole, chosen)
    files = [Path(data) / "train" / str(whole.file_of(index)) for index in chosen.tolist()]
    with tempfile.TemporaryDirectory(prefix="demkd-photos-") as name:
        bench = _Bench(photos=photos, folder=Path(name), compute=compute, repetitions=repetitions)
        small, usual = "three convolutions", STUDENT
        lines: dict[str, Callable[[], Measurement]] = {
            "P1": lambda: _views_of_one_decode(bench, "P1", small),
            "P1m": lambda: _views_of_one_decode(bench, "P1m", usual),
            "18": lambda: _several_teachers_over_each(bench),
            "P2": lambda: _cached_epoch_over_plain(bench),
            "P3": lambda: _workers_over_bare_decoder(bench, files),
        }
        bench.fill(bench.job(views=VIEWS), folder=Path(name) / "cache")
        precompute_weights(Path(name) / "cache", SILENT)
        for number, measure in lines.items():
            if not only or number in only:
                yield measure()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """Photos, a folder for their caches, and where and how often they are measured."""

    photos: StreamedDataset
    folder: Path
    compute: Compute
    repetitions: int

    def compare(self, number: str, what: str, target: str, one: Work, other: Work) -> Measurement:
        return compare(number, what, target, one, other, repetitions=self.repetitions)

    def job(
        self, *, views: int, teacher: str = STUDENT, view_seed: int = 0, names: Sequence[str] = ("small",)
    ) -> CachingJob:
        modules = {name: _network(teacher, self.photos.classes) for name in names}
        config = {"views": views, "view_seed": view_seed, "features": ()}
        return caching_job(self.compute, self.photos, modules, self.folder, policy=POLICY, **config)

    def fill(self, *jobs: CachingJob, folder: Path | None = None) -> None:
        """Each into a new folder, or the one given."""
        for one in jobs:
            place = folder or Path(tempfile.mkdtemp(dir=self.folder)) / "cache"
            fill_shards(replace(one, folder=place), SILENT)


def _some(source: StreamedDataset, chosen: Tensor) -> StreamedDataset:
    """Some images alone."""
    read = source.reader
    return replace(
        source,
        labels=source.labels[chosen],
        image_sizes=source.sizes[chosen.numpy()],
        digests=source.digests[chosen.numpy()],
        reader=lambda index: read(int(chosen[index])),
    )


def _network(name: str, classes: int) -> nn.Module:
    """A network with fresh weights; what its answers are worth changes no time."""
    torch.manual_seed(0)
    if name != "three convolutions":
        return build_network(name, classes=classes, size=(SIDE, SIDE))
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 7, stride=4), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)),
    )


def _views_of_one_decode(bench: _Bench, number: str, teacher: str) -> Measurement:
    """P1: stage one with 8 views of every image, against 8 times with one; loading the teacher is not counted."""
    jobs = [bench.job(views=1, teacher=teacher, view_seed=seed) for seed in range(VIEWS)]
    job = bench.job(views=VIEWS, teacher=teacher)
    what = f"stage one, {VIEWS} views a decode / {VIEWS} passes with one, {teacher}"
    target = "<= 0.3" if number == "P1" else ""
    return bench.compare(number, what, target, lambda: bench.fill(job), lambda: bench.fill(*jobs))


def _several_teachers_over_each(bench: _Bench) -> Measurement:
    """18: every photo read, and every view cut, once for three teachers, against once for each."""
    network, names = "three convolutions", ("a", "b", "c")
    job = bench.job(views=1, teacher=network, names=names)
    jobs = [bench.job(views=1, teacher=network, names=(name,)) for name in names]
    what = f"stage one for {len(names)} teachers in one call / teacher by teacher, {network}"
    return bench.compare("18", what, "<= 0.5", lambda: bench.fill(job), lambda: bench.fill(*jobs))


def _cached_epoch_over_plain(bench: _Bench) -> Measurement:
    """P2: both decode every image once an epoch."""
    what = f"distill epoch / train epoch, from files, {STUDENT}"
    cached = photo_trainer(bench.photos, bench.compute, cache=bench.folder / "cache", method="de-mkd-logits")
    plain = photo_trainer(bench.photos, bench.compute, method="ce", augment=POLICY)
    return bench.compare("P2", what, "<= 1.03", epoch_of(cached), epoch_of(plain))


def photo_trainer(photos: ImageDataset, compute: Compute, *, cache: Path | None = None, **source: Any) -> Trainer:
    """A student of photos, as `distill` and `train` make it."""
    config = TrainConfig(epochs=1_000_000, learning_rate=0.01, size=SIDE, crop_pct=CROP_PCT)
    loader = SoftTargetLoader(cache, photos, batch_size=config.batch_size, size=config.size, compute=compute, **source)
    return Trainer(STUDENT, loader, config, compute)


def _workers_over_bare_decoder(bench: _Bench, files: Sequence[Path]) -> Measurement:
    """P3: images a second by the workers, against a plain loop of Pillow and torchvision in one process."""
    photos = bench.photos
    everyone = np.arange(len(photos))
    drawn = POLICY.make_params(view_seed=0, view_indices=[0], indices=everyone, sizes=photos.sizes)
    records, workers = params_on(torch.device("cpu"), drawn), max(photos.workers, 1)
    tasks = [
        ViewTask(indices=some, params=records[:, some], sizes=(SIDE,))
        for some in torch.split(torch.arange(len(photos)), 64)
    ]
    boxes = drawn[0].tolist()

    def by_workers() -> None:
        for _ in photos.views(POLICY, tasks, torch.device("cpu")):
            pass

    def bare() -> None:
        """An equal share of the images, which one process would have."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for file, box in list(zip(files, boxes, strict=True))[::workers]:
            _bare_view(file, box)
        torch.set_num_threads(threads)

    what = f"images a second by {workers} workers / {workers} x a bare loop of decode, crop and resize"
    measured = bench.compare("P3", what, ">= 0.9", bare, by_workers)
    rate = len(photos) / float(measured.facts["denominator_s"])
    return replace(measured, facts={**measured.facts, "images_a_second": rate})


def _bare_view(file: Path, box: list[int]) -> Tensor:
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    top, left, height, width, _ = box
    view: Tensor = F.resized_crop(pixels, top, left, height, width, [SIDE, SIDE], antialias=True)
    return view
