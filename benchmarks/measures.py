"""The measurements, one function a line of the table; `docs/performance.md` says what limits each.

N samples, K teachers, V views, C classes.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from demkd.benchmarks.bench import Bench, Scale, bare_forward, bare_step, caching_job, epoch_of, random_network
from demkd.benchmarks.imagenet import seconds_and_gigabytes
from demkd.benchmarks.synthetic import NORMALIZATION, random_images, write_cache
from demkd.benchmarks.timing import Measurement, compare, seconds
from demkd.cache import open_cache
from demkd.config import BATCH_SIZE
from demkd.dataset import ArrayDataset, params_on, seeds
from demkd.pipeline.distributed import choose_compute
from demkd.pipeline.progress import SILENT
from demkd.pipeline.stage_one import fill_shards
from demkd.report.inspect import overview
from demkd.report.statistics import read_statistics

CHECKOUT = Path(__file__).resolve().parents[1]
_CIFAR_SAMPLES, _USUAL_VIEWS = 50_000, 16


def epoch_over_epoch(bench: Bench, number: str) -> Measurement:
    """1, 2, 10, 19; a fifth of the samples for the larger student."""
    what, target, first, second = _EPOCHS[number]
    bench = bench.smaller(bench.scale.samples // 5) if number == "1x4" else bench
    return bench.compare(number, what, target, epoch_of(bench.student(**first)), epoch_of(bench.student(**second)))


def online_step_of_ideal(bench: Bench) -> Measurement:
    """3: how close both loops are to the bare cost of a student's step and three forward passes."""
    networks = ("resnet20", "wrn_16_2", "vgg8")
    small = bench.smaller(20 * bench.scale.batch_size)
    modules = {name: random_network(name) for name in networks}
    prepared = caching_job(bench.compute, small.images, modules, bench.folder / "step", views=1, batch_size=64).teachers
    teachers = [one.teacher for one in prepared]
    live = small.live(networks, "resnet8", views=4)
    run_live, run_cached = epoch_of(live), epoch_of(small.student())
    student, bare = bare_step(small), bare_forward(small, teachers)
    for work in (run_live, run_cached, student, bare):
        work()
    shares, times = [], []
    for _ in range(bench.scale.repetitions):
        online, cached, step, forward = (seconds(work) for work in (run_live, run_cached, student, bare))
        shares.append((online / cached) / ((step + forward) / step))
        times.append((online, cached, step, forward))
    names = ("online_epoch_s", "cached_epoch_s", "bare_student_s", "bare_teachers_s")
    ratio = median(online / cached for online, cached, *_ in times)
    return Measurement(
        number="3",
        what=f"(online step / cached step: {ratio:.1f}) as a share of (S + sum T) / S, K = 3, resnet8",
        target="0.95 to 1.05",
        ratios=tuple(shares),
        facts={name: median(column) for name, column in zip(names, zip(*times, strict=True), strict=True)},
    )


def caching_over_bare_forward(bench: Bench) -> Measurement:
    """4: throughput of stage one, with entropies, features, writing, syncing and checking, against forward alone."""
    images = random_images(bench.scale.samples)
    modules = {"resnet20": random_network("resnet20")}
    job = caching_job(bench.compute, images, modules, bench.folder / "job", views=1, batch_size=BATCH_SIZE)
    folders = (bench.folder / f"stage-one-{number}" for number in range(1_000))
    policy = images.default_augmentation
    device = bench.compute.device
    render = images.batch_apply(policy, device)
    batches = torch.split(torch.arange(len(images), device=device), BATCH_SIZE)
    views = [render(indices, torch.zeros_like(indices)[:, None]) for indices in batches]

    def stage_one() -> None:
        fill_shards(replace(job, folder=next(folders)), SILENT)

    def forward() -> None:
        for some in views:
            job.teachers[0].teacher.predict(some)
        bench.compute.wait()

    measured = bench.compare(
        "4",
        "cache-teachers throughput / bare forward loop, resnet20, everything but loading",
        ">= 0.95",
        forward,
        stage_one,
    )
    return replace(measured, facts={**measured.facts, "views": len(images)})


def batch_over_step(bench: Bench) -> Measurement:
    """5: cutting and normalizing a batch of views, as a share of a training step on it."""
    batch = 128
    policy, device = bench.images.default_augmentation, bench.compute.device
    render = bench.images.batch_apply(policy, device)
    everyone = np.arange(len(bench.images))
    order = torch.from_numpy(seeds.sample_order(run_seed=0, epoch=1, samples=len(everyone)))
    records = params_on(
        device, policy.make_epoch_params(run_seed=0, epoch=1, indices=everyone, sizes=bench.images.sizes)
    )
    chosen = [indices.to(bench.compute.device) for indices in torch.split(order, batch)[:20]]
    step = bare_step(bench.smaller(batch, batch_size=batch), steps=20)

    def make() -> None:
        for _ in range(10):
            for indices in chosen:
                NORMALIZATION.apply(render(indices, records[indices]))
        bench.compute.wait()

    measured = bench.compare("5", "making 128 views / a resnet8 step on them", "<= 0.05 on CPU", make, step)
    batch_s, step_s = (float(measured.facts[name]) for name in ("numerator_s", "denominator_s"))
    return replace(
        measured,
        ratios=tuple(ratio / 10 for ratio in measured.ratios),
        times=tuple((ten / 10, one) for ten, one in measured.times),
        facts={"batch_ms": batch_s / 200 * 1e3, "step_ms": step_s / 20 * 1e3},
    )


def default_precision_over_float32(bench: Bench) -> Measurement:
    """6: how much faster training is in the default precision and layout than in float32 NCHW."""
    small = bench.smaller(10 * bench.scale.batch_size)
    fast = epoch_of(small.student("resnet8x4", teachers=0))
    return bench.compare(
        "6",
        f"float32 NCHW / default ({bench.compute.precision}, channels last), training resnet8x4",
        ">= 3",
        bare_step(small, network="resnet8x4", precision="float32", layout=torch.contiguous_format, steps=10),
        fast,
    )


def file_over_payload(bench: Bench) -> Measurement:
    """7: what the format adds to the answers, at CIFAR-100's size."""
    folder, views = bench.folder / "one-teacher", max(bench.scale.views, _USUAL_VIEWS)
    write_cache(folder, random_images(_CIFAR_SAMPLES), teachers=1, views=views)
    file = open_cache(folder).teachers[0]
    size = file.path.stat().st_size
    return Measurement(
        number="7",
        what=f"file size / payload bytes, {_CIFAR_SAMPLES:,} samples x {views} views",
        target="<= 1.01",
        ratios=(size / file.shape.payload_bytes(),),
        facts={"file_bytes": size, "payload_bytes": file.shape.payload_bytes()},
    )


def peak_anonymous_memory(bench: Bench) -> Measurement:
    """8: the most anonymous memory of a process that distills from three teachers."""
    scale, cache = bench.scale, bench.cache(3, views=bench.scale.views)
    _, gigabytes = seconds_and_gigabytes("epochs", cache.parent, scale.samples, scale.views)
    what = f"peak anonymous GB of distill, {scale.samples:,} samples x {scale.views} views, K = 3"
    return Measurement(number="8", what=what, target="<= 1.5", ratios=(gigabytes,))


def start_of_help(bench: Bench) -> Measurement:
    """9a: `--help` above a bare start of Python."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run(
            [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment
        )

    measured = compare(
        "9a",
        "seconds of --help above a bare Python",
        "<= 0.2",
        start(str(CHECKOUT / "cli.py"), "--help"),
        start("-c", "pass"),
        repetitions=2 * bench.scale.repetitions,
    )
    above = float(measured.facts["numerator_s"]) - float(measured.facts["denominator_s"])
    return replace(measured, ratios=(above,), times=())


def inspect_seconds(bench: Bench) -> Measurement:
    """9b: `inspect` of the largest cache, after imports."""
    cache = bench.cache(3, views=bench.scale.views)
    times = tuple(seconds(lambda: overview(read_statistics(open_cache(cache)))) for _ in range(bench.scale.repetitions))
    return Measurement(
        number="9b",
        what=f"seconds of inspect, {bench.scale.samples:,} samples x {bench.scale.views} views, K = 3, after imports",
        target="<= 2",
        ratios=times,
    )


# An epoch of one student by an epoch of another; reading, checking, weighing and fusing included.
_EPOCHS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "1": ("distill epoch, K = 3, logits / train epoch, resnet8", "<= 1.03; GPU 1.05", {}, {"teachers": 0}),
    "1x4": (
        "distill epoch, K = 3, logits / train epoch, resnet8x4",
        "<= 1.03; GPU 1.05",
        {"network": "resnet8x4"},
        {"network": "resnet8x4", "teachers": 0},
    ),
    "2": ("distill epoch, K = 8 / K = 1, logits, resnet8", "<= 1.03", {"teachers": 8}, {"teachers": 1}),
    "10": ("distill epoch with features, grid 1, K = 3 / without, resnet8", "<= 1.25", {"method": "de-mkd"}, {}),
    "19": ("distill epoch, K = 3, uint8 logits / float16 logits, resnet8", "<= 1.02", {"logits": "uint8"}, {}),
}
MEASURES: dict[str, Callable[[Bench], Measurement]] = {
    **{number: partial(epoch_over_epoch, number=number) for number in ("1", "1x4", "2")},
    "3": online_step_of_ideal,
    "4": caching_over_bare_forward,
    "5": batch_over_step,
    "6": default_precision_over_float32,
    "7": file_over_payload,
    "8": peak_anonymous_memory,
    "9a": start_of_help,
    "9b": inspect_seconds,
    **{number: partial(epoch_over_epoch, number=number) for number in ("10", "19")},
}


def measure_all(
    scale: Scale, device: str, *, images: ArrayDataset | None = None, only: Collection[str] = ()
) -> Iterator[Measurement]:
    """The lines of the table as they are measured, all or `only` some; on noise if no images are given."""
    compute = choose_compute(device=device)
    with tempfile.TemporaryDirectory(prefix="demkd-benchmark-") as folder:
        bench = Bench(scale, Path(folder), compute, images)
        for number, measure in MEASURES.items():
            if not only or number in only:
                yield measure(bench)
