"""What one GPU does: stage one with three resnet32x4, resnet8x4 from their cache by batch size, live teachers.

    python -m benchmarks --gpu --out benchmarks/results/NAME.json

Noise of CIFAR-100's size, random weights: neither changes a time. N samples, V slots, K teachers.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch.optim import SGD

from demkd.benchmarks.bench import Bench, Scale, epoch_of, random_teacher
from demkd.benchmarks.synthetic import synthetic_provenance
from demkd.benchmarks.timing import seconds
from demkd.cache import CacheShape
from demkd.pipeline.compute import Compute
from demkd.pipeline.live_teachers import LiveTeachers
from demkd.pipeline.methods import METHODS
from demkd.pipeline.optimizers import OwnTraining
from demkd.pipeline.preparation import CachingJob, PreparedTeacher
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.stage_one import fill_files
from demkd.pipeline.target_source import scheduled_views
from demkd.pipeline.turns import in_turn
from demkd.teachers import Teacher

_TEACHER, _STUDENT, _TEACHERS = "resnet32x4", "resnet8x4", 3
_ALL_VIEWS, _EPOCHS = 162, 240
_BATCH_SIZES = (64, 128, 256, 512, 1024)
_TOGETHER = (1, 2, 4, 8)


def measure_gpu(compute: Compute, *, samples: int = 50_000, slots: int = 2) -> Iterator[dict[str, Any]]:
    """The rows of the table, as they come."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Scale(samples=samples, views=4, repetitions=3), Path(name), compute)
        teachers = [random_teacher(_TEACHER, compute) for _ in range(_TEACHERS)]
        yield _stage_one(bench, teachers, slots=slots)
        yield from (_student(bench, size) for size in _BATCH_SIZES)
        yield _eager_student(bench)
        yield _live(bench, teachers)
        yield from (_together(bench, count) for count in _TOGETHER)


def _stage_one(bench: Bench, teachers: list[Teacher], *, slots: int) -> dict[str, Any]:
    """Answers a second of three teachers together, everything but loading them, and what all views would take."""

    def job(number: int) -> CachingJob:
        prepared = [
            PreparedTeacher(
                teacher=teacher,
                network=_TEACHER,
                shape=CacheShape(
                    num_views=slots, samples=len(bench.pictures), classes=100, features={"stage3": (256,)}
                ),
                provenance=synthetic_provenance(place, bench.pictures),
            )
            for place, teacher in enumerate(teachers)
        ]
        named = [replace(one, teacher=_named(one.teacher, place)) for place, one in enumerate(prepared)]
        return CachingJob(
            source=bench.pictures,
            policy=bench.pictures.default_policy,
            view_seed=0,
            num_views=slots,
            batch_size=1024,
            folder=bench.folder / f"stage-one-{number}",
            compute=bench.compute,
            teachers=tuple(named),
        )

    times = [seconds(lambda number=number: fill_files(job(number), SilentProgress())) for number in range(3)]  # type: ignore[misc]
    each = min(times[1:]) / slots
    return {
        "what": f"stage one, {_TEACHERS} x {_TEACHER}, batch 1,024: {_ALL_VIEWS} views of {len(bench.pictures):,}",
        "seconds": each * _ALL_VIEWS,
        "answers_per_s": _TEACHERS * len(bench.pictures) / each,
        "target": "<= 360 s",
    }


def _named(teacher: Teacher, place: int) -> Teacher:
    """The same network under a name of its own."""
    made = object.__new__(Teacher)
    made.__dict__.update({**teacher.__dict__, "name": f"t{place}"})
    return made


def _student(bench: Bench, batch_size: int) -> dict[str, Any]:
    """Seconds of an epoch from three cached teachers, and of 240; evaluation not included."""
    epoch = _epoch_seconds(bench, batch_size)
    return {
        "what": f"{_STUDENT} from {_TEACHERS} cached teachers, batch {batch_size}: {_EPOCHS} epochs",
        "seconds": epoch * _EPOCHS,
        "pictures_per_s": len(bench.pictures) / epoch,
        "target": "<= 90 s",
    }


def _epoch_seconds(bench: Bench, batch_size: int, own: OwnTraining | None = None) -> float:
    scaled = Bench(replace(bench.scale, batch_size=batch_size), bench.folder, bench.compute, bench.pictures)
    run = epoch_of(scaled.cached(_STUDENT, teachers=_TEACHERS, own=own))
    run()
    return median(seconds(run) for _ in range(3))


def _eager_student(bench: Bench) -> dict[str, Any]:
    """The same without recorded steps, which the user's own optimiser has."""
    own = OwnTraining(
        optimizer=lambda parameters: SGD(
            parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    )
    epoch = _epoch_seconds(bench, 64, own)
    return {
        "what": f"{_STUDENT}, batch 64, steps launched kernel by kernel: {_EPOCHS} epochs",
        "seconds": epoch * _EPOCHS,
        "pictures_per_s": len(bench.pictures) / epoch,
        "target": "",
    }


def _live(bench: Bench, teachers: list[Teacher]) -> dict[str, Any]:
    """The same three teachers asked in every step."""
    policy, method = bench.pictures.default_policy, METHODS["de-mkd-logits"]
    everyone, sizes = np.arange(len(bench.pictures)), bench.pictures.sizes
    table = policy.draw(view_seed=0, slots=range(2), indices=everyone, sizes=sizes)
    plan = scheduled_views(lambda slot: table[slot], slots=2, run_seed=0)
    source = LiveTeachers(teachers, bench.labels, method, plan)
    run = epoch_of(bench.trainer(_STUDENT, source, method, teachers=_TEACHERS))
    epoch = seconds(run)
    return {
        "what": f"{_STUDENT} from the same {_TEACHERS} teachers live, batch 64: {_EPOCHS} epochs",
        "seconds": epoch * _EPOCHS,
        "pictures_per_s": len(bench.pictures) / epoch,
        "target": "",
    }


def _together(bench: Bench, count: int) -> dict[str, Any]:
    """Several students in turn in one process, each on a stream of its own."""
    trainers = [bench.cached("resnet8", teachers=_TEACHERS) for _ in range(count)]
    for epoch in (1, 2):
        started = time.perf_counter()
        for _ in in_turn([one.epoch_in_steps(epoch, SilentProgress()) for one in trainers], bench.compute.device):
            pass
        bench.compute.wait()
        took = time.perf_counter() - started
    return {
        "what": f"{count} x resnet8 in turn, from {_TEACHERS} cached teachers, batch 64: {_EPOCHS} epochs",
        "seconds": took * _EPOCHS,
        "pictures_per_s": count * len(bench.pictures) / took,
        "students_per_hour": 3600 * count / (took * _EPOCHS),
        "target": "",
    }
