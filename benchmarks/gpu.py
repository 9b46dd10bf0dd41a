"""What one GPU does: stage one with three resnet32x4, resnet8x4 from their cache by batch size, live teachers.

    python -m benchmarks --gpu --out benchmarks/results/NAME.json

Noise of CIFAR-100's size, random weights: neither changes a time. N samples, V views, K teachers.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim import SGD

from demkd.benchmarks.bench import Bench, Scale, caching_job, epoch_of, random_network
from demkd.benchmarks.timing import Measurement, seconds
from demkd.pipeline.distributed import Compute
from demkd.pipeline.optim import OptimizerLike
from demkd.pipeline.progress import SILENT
from demkd.pipeline.stage_one import fill_shards

_TEACHER, _STUDENT, _TEACHERS = "resnet32x4", "resnet8x4", 3
_ALL_VIEWS, _EPOCHS = 162, 240


def measure_gpu(compute: Compute, *, samples: int = 50_000, views: int = 2) -> Iterator[Measurement]:
    """Seconds of the whole of each stage; evaluation is not included."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Scale(samples=samples, views=4, repetitions=3), Path(name), compute)
        teachers = {f"t{number}": random_network(_TEACHER) for number in range(_TEACHERS)}
        job = caching_job(compute, bench.images, teachers, bench.folder / "job", views=views, batch_size=1024)
        folders = (bench.folder / f"stage-one-{number}" for number in range(1_000))

        def stage_one() -> None:
            fill_shards(replace(job, folder=next(folders)), SILENT)

        stage_one()
        a_view = min(seconds(stage_one) for _ in range(2)) / views
        yield Measurement(
            number="G1",
            what=f"stage one, {_TEACHERS} x {_TEACHER}, batch 1,024: {_ALL_VIEWS} views of {samples:,}",
            target="<= 360 s",
            ratios=(a_view * _ALL_VIEWS,),
            facts={"views_per_s": _TEACHERS * samples / a_view},
        )
        for size in (64, 128, 256, 512, 1024):
            yield _student(bench, f"from {_TEACHERS} cached teachers, batch {size}", "<= 90 s", batch_size=size)
        # The user's own optimizer has no CUDA graph.
        yield _student(
            bench,
            "batch 64, steps launched kernel by kernel",
            optimizer=lambda parameters: SGD(
                parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
            ),
        )
        # Beside our own replay of a whole step (pipeline/cuda_graph.py): PyTorch's replay of the student alone.
        yield _student(bench, "batch 64, torch.compile(mode='reduce-overhead')", compiled=True)
        live = seconds(epoch_of(bench.live([_TEACHER] * _TEACHERS, _STUDENT, views=2)))
        yield _epochs(bench, f"from the same {_TEACHERS} teachers live, batch 64", "", [live])


def _student(
    bench: Bench,
    what: str,
    target: str = "",
    *,
    batch_size: int = 64,
    optimizer: OptimizerLike | None = None,
    compiled: bool = False,
) -> Measurement:
    scaled = Bench(replace(bench.scale, batch_size=batch_size), bench.folder, bench.compute, bench.images)
    trainer = scaled.student(_STUDENT, teachers=_TEACHERS, optimizer=optimizer)
    if compiled:
        trainer._graph = trainer._resident_graph = None
        trainer._parallel = torch.compile(trainer._parallel, mode="reduce-overhead")  # type: ignore[assignment]
    run = epoch_of(trainer)
    run()
    return _epochs(bench, what, target, [seconds(run) for _ in range(3)])


def _epochs(bench: Bench, what: str, target: str, times: list[float]) -> Measurement:
    """Seconds of 240 epochs by those of one."""
    measured = Measurement(
        number="G2",
        what=f"{_STUDENT} {what}: {_EPOCHS} epochs",
        target=target,
        ratios=tuple(_EPOCHS * one for one in times),
    )
    return replace(measured, facts={"images_per_s": _EPOCHS * len(bench.images) / measured.value})
