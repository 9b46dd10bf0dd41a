"""What photos cost: one decode for many views, an epoch from files, and the workers against the bare decoder.

N pictures of a folder, at 128 pixels; noise would decode otherwise than photos do.
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

from demkd.benchmarks.bench import epoch_of
from demkd.benchmarks.timing import Measurement, Work, compare
from demkd.cache import open_cache
from demkd.dataset import (
    ImageSource,
    Reading,
    ResizedCrop,
    SharedImages,
    StreamedImages,
    ViewTask,
    load_images,
    records_on,
)
from demkd.networks import build_network
from demkd.pipeline import defaults
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute, choose_compute
from demkd.pipeline.loading import TeacherSpec
from demkd.pipeline.methods import METHODS, Method
from demkd.pipeline.preparation import CachingJob, CachingRequest, prepare
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import Recipe, Teaching, Training
from demkd.pipeline.several_views import in_every_view
from demkd.pipeline.stage_one import fill_files, precompute_weights
from demkd.pipeline.target_source import LabelsOnly, TargetSource, independent_views
from demkd.pipeline.training import Trainer
from demkd.pipeline.turns import in_turn

SIDE, SLOTS, STUDENT = 128, 8, "torchvision:mobilenet_v3_small"
DECODES = 4  # views of a decode, of line 12
POLICY = ResizedCrop(size=SIDE)


def measure_photos(
    data: str, *, device: str, repetitions: int, workers: int | None, samples: int, only: Collection[str] = ()
) -> Iterator[Measurement]:
    """The lines as they are measured, all or `only` some, on so many pictures, evenly from all."""
    compute = choose_compute(device=device)
    whole = load_images(data, split="train", reading=Reading(workers=workers))
    if not isinstance(whole, StreamedImages):
        raise SystemExit(f"{data} has small pictures of one size, which are kept in memory: give photos (--data)")
    chosen = torch.linspace(0, len(whole) - 1, min(samples, len(whole))).long()
    photos = _some(whole, chosen)
    manifest: Any = getattr(whole.reader, "args")[0]  # noqa: B009 - of a folder's reader, whose type does not tell
    files = [manifest.path(index) for index in chosen.tolist()]
    with tempfile.TemporaryDirectory(prefix="demkd-photos-") as name:
        bench = _Bench(photos=photos, folder=Path(name), compute=compute, repetitions=repetitions)
        small, usual = "three convolutions", STUDENT
        lines: dict[str, Callable[[], Measurement]] = {
            "P1": lambda: _views_of_one_decode(bench, "P1", small),
            "P1m": lambda: _views_of_one_decode(bench, "P1m", usual),
            "18": lambda: _several_teachers_over_each(bench),
            "P2": lambda: _cached_epoch_over_plain(bench),
            "12": lambda: _views_of_a_decode_over_plain(bench, "12", small),
            "12m": lambda: _views_of_a_decode_over_plain(bench, "12m", usual),
            "13": lambda: _together_over_alone(bench, "13", small),
            "13m": lambda: _together_over_alone(bench, "13m", usual),
            "P3": lambda: _workers_over_bare_decoder(bench, files),
        }
        bench.fill(bench.job(views=SLOTS), folder=Path(name) / "cache")
        precompute_weights(Path(name) / "cache", SilentProgress())
        for number, measure in lines.items():
            if not only or number in only:
                yield measure()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """Photos, a folder for their caches, and where and how often they are measured."""

    photos: StreamedImages
    folder: Path
    compute: Compute
    repetitions: int

    def compare(self, number: str, what: str, target: str, one: Work, other: Work) -> Measurement:
        return compare(number, what, target, one, other, repetitions=self.repetitions)

    def job(
        self, *, views: int, teacher: str = STUDENT, view_seed: int = 0, names: Sequence[str] = ("small",)
    ) -> CachingJob:
        request = CachingRequest(
            source=self.photos,
            teachers=tuple(
                TeacherSpec(name=name, network=teacher, module=_network(teacher, self.photos.classes)) for name in names
            ),
            folder=self.folder,
            views=views,
            view_seed=view_seed,
            policy=POLICY,
            features=(),
        )
        return prepare(request, self.compute)

    def fill(self, *jobs: CachingJob, folder: Path | None = None) -> None:
        """Each into a new folder, or the one given."""
        for one in jobs:
            place = folder or Path(tempfile.mkdtemp(dir=self.folder)) / "cache"
            fill_files(replace(one, folder=place), SilentProgress())

    def cached(self, source: ImageSource | None = None, *, method: str = "de-mkd-logits", **options: Any) -> Trainer:
        """`distill` from the cache."""
        together, chosen, shown = options.get("views_per_decode", 1), METHODS[method], source or self.photos

        def targets(place: int) -> TargetSource:
            return CachedTeachers(
                open_cache(self.folder / "cache"),
                shown.labels.to(self.compute.device),
                chosen,
                views=SLOTS,
                run_seed=0,
                device=self.compute.device,
                place=place,
                together=together,
            )

        return photo_trainer(shown, in_every_view(targets, together), chosen, self.compute, **options)

    def plain(self, **options: Any) -> Trainer:
        """`train`."""
        plan = independent_views(POLICY, self.photos, run_seed=0)
        return photo_trainer(self.photos, LabelsOnly(plan), METHODS["ce"], self.compute, **options)


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


def _views_of_one_decode(bench: _Bench, number: str, teacher: str) -> Measurement:
    """P1: stage one with 8 views of every picture, against 8 times with one; loading the teacher is not counted."""
    jobs = [bench.job(views=1, teacher=teacher, view_seed=seed) for seed in range(SLOTS)]
    job = bench.job(views=SLOTS, teacher=teacher)
    what = f"stage one, {SLOTS} views a decode / {SLOTS} passes with one, {teacher}"
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
    """P2: both decode every picture once an epoch."""
    what = f"distill epoch / train epoch, from files, {STUDENT}"
    return bench.compare("P2", what, "<= 1.03", epoch_of(bench.cached()), epoch_of(bench.plain()))


def _views_of_a_decode_over_plain(bench: _Bench, number: str, student: str) -> Measurement:
    """12: as many pictures a step, from a quarter of the decodes; whole turns, of which each reads its slots once."""

    def turn(trainer: Trainer) -> Work:
        epoch = epoch_of(trainer)
        return lambda: [epoch() for _ in range(DECODES)]

    several, plain = bench.cached(student=student, views_per_decode=DECODES), bench.plain(student=student)
    what = f"distill epoch, {DECODES} views a decode / train epoch with one, {student}"
    return bench.compare(number, what, "<= 0.6" if number == "12" else "", turn(several), turn(plain))


def _together_over_alone(bench: _Bench, number: str, student: str) -> Measurement:
    """13: four students of different methods and first weights, who see the same views."""
    choices = list(enumerate(("de-mkd-logits", "kd", "ebkd", "de-mkd-logits")))

    def students(source: ImageSource) -> list[Trainer]:
        return [bench.cached(source, student=student, method=method, seed=seed) for seed, method in choices]

    group, alone = students(SharedImages.of(bench.photos)), [epoch_of(one) for one in students(bench.photos)]
    epochs = iter(range(1, 1_000_000))

    def together() -> None:
        epoch = next(epochs)
        list(in_turn([one.epoch_in_steps(epoch, SilentProgress()) for one in group], bench.compute.device))

    what = f"{len(choices)} students together / one after another, {student}"
    target = "<= 0.6" if number == "13" else ""
    return bench.compare(number, what, target, together, lambda: [one() for one in alone])


def photo_trainer(
    photos: ImageSource,
    target_source: TargetSource,
    method: Method,
    compute: Compute,
    *,
    student: str = STUDENT,
    **options: Any,
) -> Trainer:
    """A student of photos, as `distill` and `train` make it."""
    normalisation = photos.usual_normalisation()
    torch.manual_seed(options.get("seed", 0))
    module = None if student == STUDENT else _network(student, photos.classes)
    recipe = Recipe(
        training=Training(
            data=photos.name,
            network=student,
            epochs=1_000_000,
            order_seed=0,
            **options,
            learning_rate=0.01,
            precision=compute.precision,
            mean=normalisation.mean,
            std=normalisation.std,
            view_policy=POLICY.facts(),
            size=SIDE,
            crop_ratio=defaults.CROP_RATIO,
        ),
        teaching=Teaching(method=method, teachers=("small",), online=False, views=SLOTS, view_seed=0),
        sources={},
    )
    return Trainer(recipe, photos, photos.labels, target_source, compute, student=module)


def _workers_over_bare_decoder(bench: _Bench, files: Sequence[Path]) -> Measurement:
    """P3: pictures a second by the workers, against a plain loop of Pillow and torchvision in one process."""
    photos = bench.photos
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

    what = f"pictures a second by {workers} workers / {workers} x a bare loop of decode, crop and resize"
    measured = bench.compare("P3", what, ">= 0.9", bare, by_workers)
    rate = len(photos) / float(measured.facts["denominator_s"])
    return replace(measured, facts={**measured.facts, "pictures_a_second": rate})


def _bare_view(file: Path, box: list[int]) -> Tensor:
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    top, left, height, width, _ = box
    view: Tensor = F.resized_crop(pixels, top, left, height, width, [SIDE, SIDE], antialias=True)
    return view
