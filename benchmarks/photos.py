"""What photos cost: one decode for many views, an epoch from files, and the workers against the bare decoder.

N pictures of a folder, at 128 pixels; noise would decode otherwise than photos do.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from demkd.benchmarks.bench import epoch_of
from demkd.benchmarks.timing import Measurement, compare
from demkd.cache import open_cache
from demkd.dataset import ImageSource, Reading, ResizedCrop, StreamedImages, ViewTask, load_images, records_on
from demkd.networks import build_network
from demkd.pipeline import defaults
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute, choose_compute
from demkd.pipeline.loading import TeacherSpec
from demkd.pipeline.methods import METHODS, Method
from demkd.pipeline.preparation import CachingJob, CachingRequest, prepare
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import Recipe, Teaching, Training
from demkd.pipeline.stage_one import fill_files, precompute_weights
from demkd.pipeline.target_source import LabelsOnly, TargetSource, independent_views
from demkd.pipeline.training import Trainer

SIDE, SLOTS, STUDENT = 128, 8, "torchvision:mobilenet_v3_small"
POLICY = ResizedCrop(size=SIDE)


def measure_photos(
    data: str, *, device: str, repetitions: int, workers: int | None, samples: int
) -> Iterator[Measurement]:
    """The lines as they are measured, on so many pictures, evenly from all."""
    compute = choose_compute(device=device)
    whole = load_images(data, split="train", reading=Reading(workers=workers))
    if not isinstance(whole, StreamedImages):
        raise SystemExit(f"{data} has small pictures of one size, which are kept in memory: give photos (--data)")
    chosen = torch.linspace(0, len(whole) - 1, min(samples, len(whole))).long()
    photos = _some(whole, chosen)
    manifest: Any = getattr(whole.reader, "args")[0]  # noqa: B009 - of a folder's reader, whose type does not tell
    files = [manifest.path(index) for index in chosen.tolist()]
    with tempfile.TemporaryDirectory(prefix="demkd-photos-") as folder:
        for number, teacher in (("P1", "three convolutions"), ("P1m", STUDENT)):
            yield _views_of_one_decode(number, teacher, photos, Path(folder), compute, repetitions)
        yield _cached_epoch_over_plain(photos, Path(folder), compute, repetitions)
        yield _workers_over_bare_decoder(photos, files, repetitions)


def _some(source: StreamedImages, chosen: Tensor) -> StreamedImages:
    """Some pictures alone."""
    read = source.reader
    return replace(
        source,
        labels=source.labels[chosen],
        picture_sizes=source.sizes[chosen.numpy()],
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


def _job(
    photos: ImageSource, folder: Path, compute: Compute, *, teacher: str = STUDENT, views: int, view_seed: int
) -> CachingJob:
    request = CachingRequest(
        source=photos,
        teachers=(TeacherSpec(name="small", network=teacher, module=_network(teacher, photos.classes)),),
        folder=folder,
        views=views,
        view_seed=view_seed,
        policy=POLICY,
        features=(),
    )
    return prepare(request, compute)


def _views_of_one_decode(
    number: str, teacher: str, photos: ImageSource, folder: Path, compute: Compute, repetitions: int
) -> Measurement:
    """P1: stage one with 8 views of every picture, against 8 times with one; loading the teacher is not counted."""
    folders = (folder / f"stage-one-{number}-{count}" for count in range(1_000_000))
    jobs = [_job(photos, folder, compute, teacher=teacher, views=1, view_seed=seed) for seed in range(SLOTS)]
    job = _job(photos, folder, compute, teacher=teacher, views=SLOTS, view_seed=0)

    def fill(*jobs: CachingJob) -> None:
        for one in jobs:
            fill_files(replace(one, folder=next(folders)), SilentProgress())

    return compare(
        number,
        f"stage one, {SLOTS} views a decode / {SLOTS} passes with one, {teacher}",
        "<= 0.3" if number == "P1" else "",
        lambda: fill(job),
        lambda: fill(*jobs),
        repetitions=repetitions,
    )


def _cached_epoch_over_plain(photos: ImageSource, folder: Path, compute: Compute, repetitions: int) -> Measurement:
    """P2: both decode every picture once an epoch."""
    fill_files(_job(photos, folder / "cache", compute, views=2, view_seed=0), SilentProgress())
    precompute_weights(folder / "cache", SilentProgress())
    cache, method = open_cache(folder / "cache"), METHODS["de-mkd-logits"]
    targets = CachedTeachers(
        cache, photos.labels.to(compute.device), method, views=2, run_seed=0, device=compute.device
    )
    plan = independent_views(POLICY, photos, run_seed=0)
    return compare(
        "P2",
        f"distill epoch / train epoch, from files, {STUDENT}",
        "<= 1.03",
        epoch_of(photo_trainer(photos, targets, method, compute)),
        epoch_of(photo_trainer(photos, LabelsOnly(plan), METHODS["ce"], compute)),
        repetitions=repetitions,
    )


def photo_trainer(photos: ImageSource, target_source: TargetSource, method: Method, compute: Compute) -> Trainer:
    normalisation = photos.usual_normalisation()
    recipe = Recipe(
        training=Training(
            data=photos.name,
            network=STUDENT,
            epochs=1_000_000,
            learning_rate=0.01,
            precision=compute.precision,
            mean=normalisation.mean,
            std=normalisation.std,
            view_policy=POLICY.facts(),
            size=SIDE,
            crop_ratio=defaults.CROP_RATIO,
        ),
        teaching=Teaching(method=method, teachers=("small",), online=False, views=2, view_seed=0),
        sources={},
    )
    return Trainer(recipe, photos, photos.labels, target_source, compute)


def _workers_over_bare_decoder(photos: StreamedImages, files: Sequence[Path], repetitions: int) -> Measurement:
    """P3: pictures a second by the workers, against a plain loop of Pillow and torchvision in one process."""
    everyone = np.arange(len(photos))
    drawn = POLICY.draw(view_seed=0, slots=[0], indices=everyone, sizes=photos.sizes)
    records, workers = records_on(torch.device("cpu"), drawn), max(photos.workers, 1)
    tasks = [
        ViewTask(indices=some, records=records[:, some], sizes=(SIDE,))
        for some in torch.split(torch.arange(len(photos)), 64)
    ]
    boxes = drawn[0].tolist()

    def by_workers() -> None:
        for _ in photos.views(POLICY, tasks, torch.device("cpu")):
            pass

    def bare() -> None:
        """An equal share of the pictures, which one process would have."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for file, box in list(zip(files, boxes, strict=True))[::workers]:
            _bare_view(file, box)
        torch.set_num_threads(threads)

    measured = compare(
        "P3",
        f"pictures a second by {workers} workers / {workers} x a bare loop of decode, crop and resize",
        ">= 0.9",
        bare,
        by_workers,
        repetitions=repetitions,
    )
    rate = len(photos) / float(measured.facts["denominator_s"])
    return replace(measured, facts={**measured.facts, "pictures_a_second": rate})


def _bare_view(file: Path, box: list[int]) -> Tensor:
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    top, left, height, width, _ = box
    view: Tensor = F.resized_crop(pixels, top, left, height, width, [SIDE, SIDE], antialias=True)
    return view
