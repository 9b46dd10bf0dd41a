"""A run of several processes, one of which dies: all end at once, and the same command goes on to the same student."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.pipeline.test_processes import TORCHRUN
from tests.reliability.conftest import distilling, outcome_of_run

_SLOW_KILLS = 30
_PATIENCE = 30.0  # seconds after which all processes must be gone

FAILING = """
import os, signal, sys, torch, demkd
from demkd.errors import UserError

class Failing(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if os.environ["RANK"] == "1" and self.steps == 5:
            exec(sys.argv[4])
        return super().step(closure)

demkd.distill("resnet8", train=sys.argv[1], cache=sys.argv[2], out=sys.argv[3], epochs=50, batch_size=16,
              optimizer=lambda parameters: Failing(parameters, lr=0.01), precision="float32", progress=False)
"""


@contextmanager
def started(*command: object, size: int = 2, **environment: str) -> "Iterator[subprocess.Popen[str]]":
    """Processes under torchrun, in a session of their own; none is left behind."""
    process = subprocess.Popen(
        [*TORCHRUN, str(size), *map(str, command)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
    )
    try:
        yield process
    finally:
        for one in [process.pid, *children(process.pid)]:
            with_signal(one, signal.SIGKILL)
        process.communicate()


def children(pid: int) -> list[int]:
    """The processes that one has started, by rank."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(text) for text in found.read_text().split()] if found.exists() else []


def with_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def training(data: Path, cache: Path, out: Path, *, epochs: int) -> list[object]:
    """What torchrun starts."""
    return ["cli.py", *distilling(data, cache, out, epochs=epochs), "--learning-rate", 0.02]


def epochs_done(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_one(command: list[object], out: Path, *, rank: int, after: int, delay: float, **environment: str) -> bool:
    """SIGKILL a rank some moment after an epoch; whether it was still running, and all others ended in time."""
    with started(*command, **environment) as process:
        while process.poll() is None and epochs_done(out) < after:
            time.sleep(0.005)
        time.sleep(delay)
        ranks = children(process.pid)
        if process.poll() is not None or len(ranks) <= rank:
            return False
        with_signal(ranks[rank], signal.SIGKILL)
        _, errors = process.communicate(timeout=_PATIENCE)
        assert process.returncode != 0
        assert "Traceback" not in errors.partition("torch/distributed")[0]
        return True


def to_the_end(command: list[object], **environment: str) -> None:
    with started(*command, **environment) as process:
        assert process.wait(timeout=200) == 0


def kill_some(
    command: list[object], out: Path, chance: random.Random, *, kills: int, epochs: int, **environment: str
) -> int:
    """Kill a run of two processes again and again, and let it end; how many kills it survived."""
    killed = 0
    for number in range(kills):
        after = 1 + (epochs - 10) * number // kills  # so that every kill finds something to interrupt
        rank, delay = chance.randrange(2), chance.uniform(0, 0.15)
        killed += kill_one(command, out, rank=rank, after=after, delay=delay, **environment)
    to_the_end(command, **environment)
    return killed


def survive(data: Path, cache: Path, tmp_path: Path, *, kills: int, epochs: int, seed: int) -> int:
    """The same, and compare with a run that nobody killed."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    to_the_end(training(data, cache, whole, epochs=epochs))
    command = training(data, cache, out, epochs=epochs)
    killed = kill_some(command, out, random.Random(seed), kills=kills, epochs=epochs)
    assert outcome_of_run(out) == outcome_of_run(whole)
    return killed


def test_a_killed_process_ends_all_and_the_run_goes_on(
    picture_folder: Path, pristine_cache: Path, tmp_path: Path
) -> None:
    assert survive(picture_folder, pristine_cache, tmp_path, kills=2, epochs=20, seed=0) == 2


@pytest.mark.slow
def test_a_run_of_processes_survives_many_kills(picture_folder: Path, pristine_cache: Path, tmp_path: Path) -> None:
    killed = survive(picture_folder, pristine_cache, tmp_path, kills=_SLOW_KILLS, epochs=120, seed=1)
    print(f"{killed} kills")  # noqa: T201 - `pytest -rP` shows it
    assert killed >= _SLOW_KILLS - 3, "a kill may come after the end"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("raise UserError('this rank cannot go on')", "rank 1 of 2: this rank cannot go on"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "another process ended without a word ("),
    ],
)
def test_a_failure_of_one_ends_all_with_its_sentence(
    picture_folder: Path, pristine_cache: Path, tmp_path: Path, failure: str, said: str
) -> None:
    """In Python, where errors are raised and not printed."""
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    begun = time.monotonic()
    with started(
        program, picture_folder, pristine_cache, tmp_path / "run", failure, PYTHONPATH=str(CHECKOUT)
    ) as process:
        _, errors = process.communicate(timeout=_PATIENCE + 30)
        assert process.returncode != 0
    assert time.monotonic() - begun < _PATIENCE + 15, "with some seconds to start"
    assert said in errors
    assert errors.count("ProcessesError") == 1 or "ToldElsewhereError" in errors


def test_ctrl_c_stops_all_with_one_message(picture_folder: Path, pristine_cache: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal; what torchrun itself says of it is not ours."""
    out = tmp_path / "run"
    with started(*training(picture_folder, pristine_cache, out, epochs=500)) as process:
        while process.poll() is None and epochs_done(out) < 2:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=_PATIENCE)
    assert process.returncode != 0
    assert errors.count("error: interrupted; run the same command to resume") == 1
    assert epochs_done(out) >= 2
