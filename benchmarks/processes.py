"""Two processes of one thread each against one process of two threads, in both stages; and what Gloo costs a step.

    python -m benchmarks --processes

Each timing is a process, or two under torchrun, of its own: `python -m demkd.benchmarks.processes KIND ...` is one.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from demkd import api
from demkd.benchmarks.bench import Bench, Scale, epoch_of
from demkd.benchmarks.synthetic import random_images
from demkd.benchmarks.timing import Measurement, of_pairs, run_program, seconds
from demkd.networks import build_network
from demkd.pipeline.distributed import Compute, choose_compute, process_group

_NETWORK, _TEACHER = "resnet8", "resnet20"
_EPOCHS = 3


def measure_processes(*, samples: int, repetitions: int) -> Iterator[Measurement]:
    """One process with two threads / two processes with one: at least 0.9 where work is shared well."""
    for number, kind, what in (("D1", "epoch", f"distill, {_NETWORK}"), ("D2", "stage-one", f"stage one, {_TEACHER}")):
        pairs = [
            (_seconds(kind, samples, threads=2), _seconds(kind, samples, threads=1, processes=2))
            for _ in range(repetitions)
        ]
        yield of_pairs(number, f"{what}: one process of two threads / two processes of one", ">= 0.9", pairs)


def _seconds(kind: str, samples: int, *, threads: int, processes: int = 1) -> float:
    """What a program of its own measured."""
    with tempfile.TemporaryDirectory() as folder:
        words = run_program("processes", kind, samples, folder, processes=processes, OMP_NUM_THREADS=str(threads))
    return float(words[0])


def _epoch(compute: Compute, samples: int, folder: Path) -> float:
    """Seconds of the fastest epoch of a student from three cached teachers."""
    own = folder / str(compute.world.rank)
    bench = Bench(Scale(samples=samples, views=4, repetitions=1), own, compute)
    run = epoch_of(bench.student(_NETWORK))
    run()
    return min(seconds(run) for _ in range(_EPOCHS))


def _stage_one(compute: Compute, samples: int, folder: Path) -> float:
    """Seconds until all ranks have predicted every sample once."""
    torch.manual_seed(0)
    teacher = build_network(_TEACHER, classes=100)
    images = random_images(samples)
    compute.world.all_reduce(torch.zeros(1))  # all begin together
    started = time.perf_counter()
    api.cache_teachers({_TEACHER: teacher}, images, out=folder / "cache", views=1, progress=False)
    compute.world.all_reduce(torch.zeros(1))
    return time.perf_counter() - started


def main(kind: str, samples: int, folder: Path) -> None:
    with process_group(choose_compute(device="cpu")) as compute:
        took = _stage_one(compute, samples, folder) if kind == "stage-one" else _epoch(compute, samples, folder)
        if compute.world.is_rank_zero:
            print(took)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
