"""Stage one by two processes of one thread against one process of two, on the same two cores.

Every process loads its pictures and its teacher once, and waits between the turns; a turn is a whole stage one into a
new folder, preparation, checks and weights included.
"""

import contextlib
import multiprocessing
import tempfile
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from demkd.benchmarks.synthetic import random_pictures
from demkd.benchmarks.timing import Measurement, Work, compare
from demkd.networks import build_network
from demkd.pipeline.compute import choose_compute
from demkd.pipeline.loading import teacher_specs
from demkd.pipeline.preparation import CachingRequest
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.stage_one import cache_teachers

_PATIENCE = 600.0  # seconds that a turn may take


def measure_sharing(network: str, *, samples: int, views: int, repetitions: int) -> Iterator[Measurement]:
    """One process' time / that of two, whole turns: above 1, two processes are faster."""
    turns = repetitions + 1  # the first one is not counted
    with tempfile.TemporaryDirectory(prefix="demkd-benchmark-") as name, contextlib.ExitStack() as running:
        size = (network, samples, views)
        one, two = (
            running.enter_context(_processes(Path(name) / f"{count}", count, 2 // count, turns, size))
            for count in (1, 2)
        )
        yield compare(
            "S1",
            f"stage one, one process of two threads / two of one, {network}, {samples:,} samples x {views} views",
            ">= 0.9",
            one,
            two,
            repetitions=repetitions,
        )


@contextlib.contextmanager
def _processes(folder: Path, count: int, threads: int, turns: int, size: tuple[str, int, int]) -> Iterator[Work]:
    """Processes that wait for a turn; what makes them take one."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    started = [
        context.Process(target=_take_turns, args=(folder, count, threads, turns, size, barrier)) for _ in range(count)
    ]
    for process in started:
        process.start()
    barrier.wait(_PATIENCE)

    def turn() -> None:
        barrier.wait(_PATIENCE)
        barrier.wait(_PATIENCE)

    try:
        yield turn
    finally:
        barrier.abort()
        for process in started:
            process.join()


def _take_turns(
    folder: Path, shards: int, threads: int, turns: int, size: tuple[str, int, int], barrier: Barrier
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, samples, views = size
    compute, source, module = (
        choose_compute(device="cpu"),
        random_pictures(samples),
        build_network(network, classes=100),
    )
    barrier.wait(_PATIENCE)
    for number in range(turns):
        request = CachingRequest(
            source=source,
            teachers=teacher_specs({"a": module}),
            folder=folder / f"turn{number}",
            views=views,
            features=(),
            shards=shards,
        )
        barrier.wait(_PATIENCE)
        cache_teachers(request, compute, SilentProgress())
        barrier.wait(_PATIENCE)
