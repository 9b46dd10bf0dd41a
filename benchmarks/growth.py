"""How the cache's own cost grows with samples N, views V, classes C and teachers K; the networks' cost left out."""

import itertools
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from demkd.benchmarks.synthetic import random_pictures, write_cache
from demkd.benchmarks.timing import seconds
from demkd.cache import open_cache
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.compute import Compute
from demkd.pipeline.methods import METHODS


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One point of the table; the base from which one dimension at a time departs."""

    samples: int = 50_000
    views: int = 2
    classes: int = 100
    teachers: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What a size costs.

    Attributes:
        write_s: stage one without the teachers: reserving, writing, checksums, syncing, the final check, weights.h5.
        epoch_s: what stage two adds to an epoch: reading a slot, checking, weighing, fusing.
        open_s: opening the cache.
    """

    size: Size
    write_s: float
    epoch_s: float
    open_s: float
    file_bytes: int


_WRITES = 3
BASE = Size()
SIZES = [
    *(replace(BASE, samples=n) for n in (10_000, 50_000, 200_000)),
    *(replace(BASE, samples=10_000, views=v) for v in (1, 16, 162)),
    *(replace(BASE, classes=c) for c in (10, 100, 1000)),
    *(replace(BASE, teachers=k) for k in (1, 3, 8)),
]


def measure_growth(size: Size, compute: Compute, *, repetitions: int = 5) -> Growth:
    """Write a synthetic cache of a size, and start epochs from it."""
    pictures = random_pictures(size.samples, classes=size.classes, side=2)
    with tempfile.TemporaryDirectory(prefix="demkd-growth-") as name:
        copies = [Path(name) / str(number) for number in range(_WRITES)]
        write_s = median(
            seconds(partial(write_cache, copy, pictures, teachers=size.teachers, views=size.views)) for copy in copies
        )
        folder = copies[0]
        open_s = median(seconds(lambda: open_cache(folder)) for _ in range(repetitions))
        labels = pictures.labels.to(compute.device)
        source = CachedTeachers(
            open_cache(folder), labels, METHODS["de-mkd-logits"], views=size.views, run_seed=0, device=compute.device
        )

        epochs = itertools.count(1)

        def start_epoch() -> None:
            source.start_epoch(next(epochs))
            compute.wait()

        start_epoch()
        epoch_s = median(seconds(start_epoch) for _ in range(repetitions))
        file_bytes = sum(file.stat().st_size for file in folder.glob("*.h5"))
    return Growth(size=size, write_s=write_s, epoch_s=epoch_s, open_s=open_s, file_bytes=file_bytes)
