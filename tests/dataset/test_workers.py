"""Worker processes: how many there are, and what happens when one is killed."""

import os
import signal
import time

import pytest

from demkd.dataset import DataError
from demkd.dataset.workers import Workers, default_workers


@pytest.mark.parametrize(("processes", "workers"), [(None, 4), ("2", 1), ("x", 4), ("0", 4)])
def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch, processes: str | None, workers: int) -> None:
    """Where the system has no affinity, as on macOS; a variable that torchrun would not set counts for nothing."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert default_workers() == workers


def test_a_worker_that_is_killed_while_the_caller_works_is_one_sentence() -> None:
    """Not an error in whatever the caller does, which PyTorch's signal handler would raise."""
    handler = signal.getsignal(signal.SIGCHLD)
    with Workers(lambda _: os.getpid(), 1) as workers:
        results = workers.map(range(100))
        os.kill(next(results), signal.SIGKILL)
        for _ in range(20):
            time.sleep(0.01)
        with pytest.raises(DataError, match=r"a process that decodes images was killed .*lower `workers`"):
            list(results)
        assert len(set(workers.map(range(3)))) == 1, "the next call starts others"
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_worker_that_is_killed_as_it_starts_is_one_sentence() -> None:
    with (
        Workers(lambda _: os.kill(os.getpid(), signal.SIGKILL), 2) as workers,
        pytest.raises(DataError, match="a process that decodes images was killed"),
    ):
        list(workers.map(range(4)))
