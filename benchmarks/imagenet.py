"""What a cache of ImageNet's shape costs to look at and to learn from: seconds, and the most anonymous memory, each in
a process of its own: `python -m demkd.benchmarks.imagenet FOLDER inspect|distill SAMPLES` prints both.

1.28 million samples, 1,000 classes, 4 views, 3 teachers, the 32 largest logits of each answer: 2.5 GB of noise.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from demkd.benchmarks.memory import PeakMemory
from demkd.benchmarks.timing import Measurement
from demkd.pipeline.distributed import child_environment, python_module
from demkd.pipeline.progress import Progress

SAMPLES, _TEACHERS, _VIEWS, _KEEP = 1_280_000, 3, 4, 32
_STEPS = 30  # of an epoch, after which its memory grows no more


def measure_imagenet(*, samples: int, repetitions: int) -> Iterator[Measurement]:
    """16 and 17, and the seconds that an epoch takes to begin."""
    from demkd.benchmarks.synthetic import random_photos, write_cache

    with tempfile.TemporaryDirectory(prefix="demkd-imagenet-") as name:
        write_cache(Path(name), random_photos(samples), teachers=_TEACHERS, views=_VIEWS, top_k=_KEEP)
        for number, what, limits in (("16", "inspect", ("<= 3", "<= 1")), ("17", "distill", ("", "<= 2"))):
            found = [_in_a_process(name, what, samples) for _ in range(repetitions if what == "inspect" else 1)]
            of = f"{what}, {samples:,} samples x {_VIEWS} views, K = {_TEACHERS}, top-{_KEEP}"
            until = "" if what == "inspect" else " until its first step"
            for suffix, text, target, place in (("s", f"seconds of {of}{until}", limits[0], 0),
                                                ("m", f"peak anonymous GB of {of}", limits[1], 1)):  # fmt: skip
                yield Measurement(
                    number=number + suffix, what=text, target=target, ratios=tuple(one[place] for one in found)
                )


def _in_a_process(folder: str, what: str, samples: int) -> tuple[float, float]:
    """Seconds, and gigabytes."""
    command = [*python_module("demkd.benchmarks.imagenet"), folder, what, str(samples)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak) / 1e9


def _inspect(folder: Path) -> Callable[[], float]:
    """Look; when that was done."""
    from demkd.cache import open_cache
    from demkd.report.inspect import overview
    from demkd.report.statistics import read_statistics

    def look() -> float:
        overview(read_statistics(open_cache(folder)))
        return time.perf_counter()

    return look


def _distill(folder: Path, samples: int) -> Callable[[], float]:
    """Take the first steps of an epoch from files; when the first was done. The worker's memory is not counted."""
    from demkd.benchmarks.photos import photo_trainer
    from demkd.benchmarks.synthetic import random_photos
    from demkd.pipeline.distributed import choose_compute

    photos = random_photos(samples, workers=1)
    trainer = photo_trainer(photos, choose_compute(device="cpu"), cache=folder, method="de-mkd-logits", views=_VIEWS)
    watch = _FirstSteps()

    def learn() -> float:
        with contextlib.suppress(InterruptedError):
            trainer.train_epoch(0, watch)
        photos.close_workers()
        return watch.times[0]

    return learn


class _FirstSteps(Progress):
    """Note when each step of an epoch is done, and end it after some."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, count: int) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())
        if len(self.times) > _STEPS:
            raise InterruptedError


def main() -> None:
    """Look, or learn."""
    folder, what, samples = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    peak = PeakMemory()
    peak.start()
    work = _inspect(folder) if what == "inspect" else _distill(folder, samples)
    started = time.perf_counter()
    done = work()
    print(done - started, peak.stop())


if __name__ == "__main__":
    main()
