"""A run of several processes, one of which dies: all end at once, and the same command resumes to the same student."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.pipeline.test_processes import TORCHRUN
from tests.reliability.scenarios import distilling

PATIENCE = 30.0  # seconds after which all processes must be gone

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
def started(*command: object, watched: float = 0.1, **environment: str) -> "Iterator[subprocess.Popen[str]]":
    """Two processes under torchrun, in a session of their own; none is left behind.

    Args:
        watched: every so many seconds torchrun looks for a rank that has ended, and then ends the other.
    """
    process = subprocess.Popen(
        [*TORCHRUN, "2", "--monitor-interval", str(watched), *map(str, command)],
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
        for pid in [process.pid, *ranks(process)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def ranks(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that torchrun has started, by rank."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(text) for text in found.read_text().split()] if found.exists() else []


def training(data: Path, cache: Path, out: Path, *, epochs: int) -> list[object]:
    """A command for torchrun."""
    return ["cli.py", *distilling(data, cache, out, epochs=epochs), "--learning-rate", 0.02]


def wait_for_epochs(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    metrics = out / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < count):
        time.sleep(0.005)


def to_the_end(command: list[object], **environment: str) -> None:
    with started(*command, **environment) as process:
        assert process.wait(timeout=200) == 0


def kill_a_rank(command: list[object], out: Path, chance: random.Random, *, after: int, **environment: str) -> bool:
    """SIGKILL one of two ranks some moment after an epoch; false if the run ended before.

    All others end in time, without a traceback.
    """
    with started(*command, **environment) as process:
        wait_for_epochs(process, out, after)
        time.sleep(chance.uniform(0, 0.15))
        running, rank = ranks(process), chance.randrange(2)
        if process.poll() is not None or len(running) <= rank:
            return False
        os.kill(running[rank], signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
        assert "Traceback" not in errors.partition("torch/distributed")[0]
        return True


def kill_some(
    command: list[object], out: Path, chance: random.Random, *, kills: int, epochs: int, **environment: str
) -> int:
    """Kill ranks of a run again and again, and let it end; how many kills there were."""
    moments = [1 + (epochs - 10) * number // kills for number in range(kills)]  # every kill interrupts something
    killed = sum(kill_a_rank(command, out, chance, after=after, **environment) for after in moments)
    to_the_end(command, **environment)
    return killed


def test_a_killed_rank_ends_all(picture_folder: Path, pristine_cache: Path, tmp_path: Path) -> None:
    """Within seconds, with a checkpoint to resume from."""
    command = training(picture_folder, pristine_cache, tmp_path, epochs=500)
    assert kill_a_rank(command, tmp_path, random.Random(0), after=2)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "student.safetensors").exists()


@pytest.mark.slow  # tests/pipeline/test_processes.py has a fast one
@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("raise UserError('this rank cannot go on')", "rank 1 of 2: this rank cannot go on"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "another rank exited unexpectedly ("),
    ],
)
def test_a_failure_of_one_ends_all_with_its_sentence(
    picture_folder: Path, pristine_cache: Path, tmp_path: Path, failure: str, said: str
) -> None:
    """In Python, where errors are raised and not printed."""
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    command = [program, picture_folder, pristine_cache, tmp_path / "run", failure]
    # The other rank's own sentence is tested: torchrun must not end it before.
    with started(*command, watched=5, PYTHONPATH=str(CHECKOUT)) as process:
        _, errors = process.communicate(timeout=PATIENCE + 15)  # with some seconds to start
        assert process.returncode != 0
    assert said in errors
    assert errors.count("ProcessesError") == 1 or "ToldElsewhereError" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "pauses", "said"),
    [
        (signal.SIGINT, [], "interrupted"),
        (signal.SIGINT, [0.002], "interrupted"),
        (signal.SIGINT, [0.03, 0.3], "interrupted"),
        (signal.SIGTERM, [], "ended by SIGTERM"),
    ],
)
def test_signals_stop_all_with_one_message(
    picture_folder: Path, pristine_cache: Path, tmp_path: Path, number: int, pauses: list[float], said: str
) -> None:
    """Ctrl-C reaches every process of the terminal, again and again; torchrun adds signals and messages of its own."""
    out = tmp_path / "run"
    with started(*training(picture_folder, pristine_cache, out, epochs=500)) as process:
        wait_for_epochs(process, out, 2)
        os.killpg(process.pid, number)
        for pause in pauses:
            time.sleep(pause)
            os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert errors.count(f"error: {said}; run the same command to resume") == 1
    frames = [line for line in errors.splitlines() if f'File "{CHECKOUT}' in line and "site-packages" not in line]
    assert not frames, "torchrun's traceback is the only one"
