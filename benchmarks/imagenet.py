"""What a cache of ImageNet's shape costs to look at and to learn from: seconds, and the most anonymous memory.

Each is a process of its own: `python -m demkd.benchmarks.imagenet inspect|distill|epochs FOLDER SAMPLES VIEWS` prints
both; `epochs` is for CIFAR's shape. 1.28 million samples, 1,000 classes, the 32 largest logits: 2.5 GB of noise.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from demkd.benchmarks.timing import Measurement, PeakMemory, run_program
from demkd.pipeline.progress import Progress

SAMPLES, _TEACHERS, _VIEWS, _KEEP = 1_280_000, 3, 4, 32
_STEPS = 30  # of an epoch, after which its memory grows no more


def measure_imagenet(*, samples: int, repetitions: int) -> Iterator[Measurement]:
    """16 and 17, and the seconds that an epoch takes to begin."""
    from demkd.benchmarks.synthetic import random_photos, write_cache

    with tempfile.TemporaryDirectory(prefix="demkd-imagenet-") as name:
        write_cache(Path(name), random_photos(samples), teachers=_TEACHERS, views=_VIEWS, top_k=_KEEP)
        for number, what, limits in (("16", "inspect", ("<= 3", "<= 1")), ("17", "distill", ("", "<= 2"))):
            turns = repetitions if what == "inspect" else 1
            found = [seconds_and_gigabytes(what, Path(name), samples, _VIEWS) for _ in range(turns)]
            of = f"{what}, {samples:,} samples x {_VIEWS} views, K = {_TEACHERS}, top-{_KEEP}"
            until = "" if what == "inspect" else " until its first step"
            for suffix, text, target, place in (("s", f"seconds of {of}{until}", limits[0], 0),
                                                ("m", f"peak anonymous GB of {of}", limits[1], 1)):  # fmt: skip
                yield Measurement(
                    number=number + suffix, what=text, target=target, ratios=tuple(one[place] for one in found)
                )


def seconds_and_gigabytes(kind: str, folder: Path, samples: int, views: int) -> tuple[float, float]:
    """Of a process that inspects a cache or learns from it."""
    seconds, peak = run_program("imagenet", kind, folder, samples, views)
    return float(seconds), int(peak) / 1e9


def _inspect(folder: Path, _samples: int, _views: int) -> Callable[[], float]:
    """Look; when that was done."""
    from demkd.cache import open_cache
    from demkd.report.inspect import overview
    from demkd.report.statistics import read_statistics

    def look() -> float:
        overview(read_statistics(open_cache(folder)))
        return time.perf_counter()

    return look


def _distill(folder: Path, samples: int, views: int) -> Callable[[], float]:
    """Take the first steps of an epoch from files; when the first was done. The worker's memory is not counted."""
    from demkd.benchmarks.photos import photo_trainer
    from demkd.benchmarks.synthetic import random_photos
    from demkd.pipeline.distributed import choose_compute

    photos = random_photos(samples, workers=1)
    trainer = photo_trainer(photos, choose_compute(device="cpu"), cache=folder, method="de-mkd-logits", views=views)
    watch = _FirstSteps()

    def learn() -> float:
        with contextlib.suppress(InterruptedError):
            trainer.train_epoch(0, watch)
        photos.close_workers()
        return watch.times[0]

    return learn


def _epochs(folder: Path, samples: int, views: int) -> Callable[[], float]:
    """Two epochs from three teachers, on noise of the size of CIFAR's images."""
    from demkd.benchmarks.bench import Bench, Scale, epoch_of
    from demkd.pipeline.distributed import choose_compute

    def learn() -> float:
        bench = Bench(Scale(samples=samples, views=views, repetitions=1), folder, choose_compute(device="cpu"))
        epoch = epoch_of(bench.student(views=views))
        for _ in range(2):
            epoch()
        return time.perf_counter()

    return learn


class _FirstSteps(Progress):
    """Note when each step of an epoch is done, and end it after some."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, count: int) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())
        if len(self.times) > _STEPS:
            raise InterruptedError


def main(kind: str, folder: str, samples: str, views: str) -> None:
    peak = PeakMemory()
    peak.start()
    work = {"inspect": _inspect, "distill": _distill, "epochs": _epochs}[kind](Path(folder), int(samples), int(views))
    started = time.perf_counter()
    done = work()
    print(done - started, peak.stop())


if __name__ == "__main__":
    main(*sys.argv[1:])
