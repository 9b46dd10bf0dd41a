"""Two processes of one thread each against one process of two threads, in both stages; and what Gloo costs a step.

    python -m benchmarks --processes

Each timing is a process, or two under torchrun, of its own: `python -m demkd.benchmarks.processes KIND ...` is one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from demkd import api
from demkd.benchmarks.bench import Bench, Scale, epoch_of
from demkd.benchmarks.synthetic import random_images
from demkd.benchmarks.timing import Measurement
from demkd.networks import build_network
from demkd.pipeline.distributed import Compute, choose_compute, process_group

CHECKOUT = Path(__file__).resolve().parents[1]
_NETWORK, _TEACHER = "resnet8", "resnet20"
_EPOCHS = 3


def measure_processes(*, samples: int, repetitions: int) -> Iterator[Measurement]:
    """One process with two threads / two processes with one: at least 0.9 where work is shared well."""
    for number, kind, what in (("D1", "epoch", f"distill, {_NETWORK}"), ("D2", "stage-one", f"stage one, {_TEACHER}")):
        times = [
            (_seconds(kind, samples, threads=2), _seconds(kind, samples, threads=1, processes=2))
            for _ in range(repetitions)
        ]
        yield Measurement(
            number=number,
            what=f"{what}: one process of two threads / two processes of one",
            target=">= 0.9",
            ratios=tuple(one / two for one, two in times),
            times=tuple(times),
        )
    steps = samples // 64
    pairs = [
        (_seconds("epoch", samples, threads=1, processes=2), _seconds("half-batches", samples, threads=1))
        for _ in range(repetitions)
    ]
    yield Measurement(
        number="D3",
        what=f"a step of {_NETWORK} in two processes, 32 samples each / of one process with 32",
        target="",
        ratios=tuple(both / half for both, half in pairs),
        times=tuple(pairs),
        facts={"gloo_ms_a_step": 1e3 * median(both - half for both, half in pairs) / steps},
    )


def _seconds(kind: str, samples: int, *, threads: int, processes: int = 1) -> float:
    """What a program of its own measured."""
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(together if processes > 1 else []), "-m", "demkd.benchmarks.processes"]
        done = subprocess.run(
            [*command, kind, str(samples), folder],
            cwd=CHECKOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _epoch(compute: Compute, samples: int, folder: Path, *, batch_size: int) -> float:
    """Seconds of the fastest epoch of a student from three cached teachers."""
    own = folder / str(compute.world.rank)
    bench = Bench(Scale(samples=samples, views=4, repetitions=1, batch_size=batch_size), own, compute)
    run = epoch_of(bench.cached(_NETWORK, teachers=3))
    run()
    return min(_timed(run) for _ in range(_EPOCHS))


def _stage_one(compute: Compute, samples: int, folder: Path) -> float:
    """Seconds until all processes have answered all samples once."""
    torch.manual_seed(0)
    teacher = build_network(_TEACHER, classes=100)
    images = random_images(samples)
    compute.world.all_reduce(torch.zeros(1))  # all begin together
    started = time.perf_counter()
    api.cache_teachers({_TEACHER: teacher}, images, out=folder / "cache", views=1, progress=False)
    compute.world.all_reduce(torch.zeros(1))
    return time.perf_counter() - started


def _timed(run: object) -> float:
    started = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - started


def main(kind: str, samples: int, folder: Path) -> None:
    with process_group(choose_compute(device="cpu")) as compute:
        if kind == "stage-one":
            took = _stage_one(compute, samples, folder)
        elif kind == "half-batches":
            took = _epoch(compute, samples // 2, folder, batch_size=32)
        else:
            took = _epoch(compute, samples, folder, batch_size=64)
        if compute.world.is_rank_zero:
            print(json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
