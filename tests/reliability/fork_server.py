"""Runs command lines and opens hostile caches in forked processes, after one import of PyTorch.

`ForkServer` starts this module as a program. It reads a line of JSON, a list of jobs to run side by side, and prints a
line of JSON, their outcomes. A forked process starts in milliseconds and can be killed like any other. A job has

    arguments   of the command line
    kill_after  SIGKILL after so many seconds
    kill_at     SIGKILL at the n-th call that changes a file; a write is torn: half of its bytes are written
    file_limit  the largest file that may be written, in bytes
    environment variables that are set, such as those of torchrun

or `examine`, a folder that is opened with little memory and time (kind, expected, verify). The last line of its stdout:

    correct     every value is the expected one
    refused     a `UserError`, with its text
    failure     anything else: another exception, another value
"""

import hashlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import torch
import torch._dynamo  # optimizers import it when first used, which takes a second
from PIL import Image

from demkd.cache import open_cache
from demkd.cache.verify import verify_cache
from demkd.cli import main
from demkd.config import ImageConfig
from demkd.dataset import load_images
from demkd.errors import UserError
from demkd.pipeline import stage_one
from demkd.pipeline.runs import RunFolder
from demkd.report.compare import read_run
from demkd.report.inspect import overview, sample
from demkd.report.statistics import read_statistics
from demkd.teachers import read_checkpoint
from tests.cache.counting import ALL, LABELS, shape, values
from tests.conftest import CHECKOUT

assert h5py, "imported once, not in every fork"
assert Image.init
stage_one._SECONDS_BETWEEN_SYNCS = 0  # every batch is written, so that kills find blocks of which some rows are there

CHANGING_CALLS = ("open", "pwrite", "fsync", "fdatasync", "posix_fallocate", "replace", "ftruncate")
SECONDS = 20
MEMORY = 128 << 20
FEATURES = shape(stage3=(4,))


@dataclass(frozen=True)
class Outcome:
    """The result of a job; the code is -9 after a SIGKILL."""

    code: int
    seconds: float
    calls: int
    stdout: str
    stderr: str


class ForkServer:
    """A process that forks jobs."""

    def __init__(self, **environment: str) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.reliability.fork_server"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # it has ended already
            print("null", file=self._process.stdin, flush=True)  # a forked worker may still hold the pipe
            self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def together(self, jobs: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Run jobs side by side: `together([{"arguments": [...], "kill_at": 3}, ...])`."""
        as_text = [{**job, "arguments": [str(word) for word in job.get("arguments", ())]} for job in jobs]
        try:
            print(json.dumps(as_text, default=str), file=self._process.stdin, flush=True)
            outcomes = [Outcome(**outcome) for outcome in json.loads(self._process.stdout.readline())]
        except BaseException:  # a test that ran out of time: its outcome must not become the next test's
            self._process.kill()
            self._process = self._start()
            raise
        for outcome in outcomes:  # the workers of a killed process may print one
            assert outcome.code == -9 or "Traceback" not in outcome.stderr, outcome.stderr
        return outcomes

    def run(self, *arguments: object, code: int | None = None, **how: Any) -> Outcome:
        """Run one command line: `run("cache-teachers", ..., kill_after=0.3)`."""
        (outcome,) = self.together([{"arguments": arguments, **how}])
        assert code is None or outcome.code == code, f"exit code {outcome.code}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def examine(self, folder: Path, *, kind: str = "counting", expected: str = "", verify: bool = False) -> str:
        """Open a folder; `kind` is one of `DIGESTS`, or "counting" for the cache of `tests/cache/counting.py`."""
        (outcome,) = self.together([{"examine": folder, "kind": kind, "expected": expected, "verify": verify}])
        if outcome.code:
            return f"failure: exit code {outcome.code} after {outcome.seconds:.1f} s"
        return outcome.stdout

    def digest(self, folder: Path, kind: str) -> str:
        """The digest that `examine` should find in an undamaged folder."""
        found, prefix = self.examine(folder, kind=kind), "failure: read as "
        assert found.startswith(prefix), found
        return found.removeprefix(prefix)


def digest_of_cache(folder: Path) -> str:
    """The digest of everything that a reader gives of any cache: params, predictions, logits, labels, weights."""
    found = hashlib.sha256()
    with open_cache(folder) as cache:
        found.update(repr((cache.names, cache.class_names, cache.num_views)).encode() + cache.labels.tobytes())
        for view in range(cache.num_views):
            read = cache.read_view(view)
            cache.check_logits(view, temperatures=())
            temperature = cache.teachers[0].provenance.tail_temperatures or (1.0,)
            logits = cache.logits(view, slice(0, cache.samples), temperature=temperature[0])
            for array in (read.entropy, read.prediction, read.params, read.teacher_weights, *logits):
                found.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def digest_of_run(folder: Path) -> str:
    """The digest of what a run resumes from, of its metrics, of what is compared, and of its student."""
    checkpoint = RunFolder(folder).load_checkpoint()
    run, student = read_run(folder), read_checkpoint(folder)
    figures = (checkpoint["epoch"], RunFolder(folder).read_metrics(), run.identity, run.seed, run.top1, run.last)
    found = hashlib.sha256(repr((*figures, sorted(student.metadata.items()))).encode())
    for name, tensor in [*sorted(checkpoint["student"].items()), *sorted(student.state.items())]:
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def digest_of_photos(folder: Path) -> str:
    """The digest of images whose manifest is in the folder."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    source = load_images(str(folder / "photos"), split="train", images=ImageConfig(workers=0))
    found = hashlib.sha256(repr(source.sizes.tolist()).encode())
    for index in range(0, len(source), 5):
        found.update(source.read(index).numpy().tobytes())
    return found.hexdigest()


DIGESTS = {"cache": digest_of_cache, "run": digest_of_run, "photos": digest_of_photos}


def read_counting_cache(folder: Path) -> str:
    """Use everything that reads a cache, and compare every value."""
    with open_cache(folder) as cache:
        for number, teacher in enumerate(cache.teachers):
            assert teacher.name == "ab"[number]
            for view in range(teacher.shape.num_views):
                truth = values(FEATURES.data_sets(), view, ALL, teacher=number, features=FEATURES)
                for name, expected in truth.items():
                    assert np.array_equal(teacher.read(name, view), expected), f"{name} differs"
        assert np.array_equal(cache.labels, LABELS), "labels differ"
        for view in range(cache.num_views):
            weights = cache.read_view(view).teacher_weights
            assert weights is None or (weights == 0.5).all(), "weights differ"
        json.dumps(str(overview(read_statistics(cache))).encode().decode())
        sample(cache, 7, view_index=1)
    return "correct"


def verdict_on(job: dict[str, Any]) -> str:
    folder = Path(job["examine"])
    signal.alarm(SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        if job["kind"] == "counting":
            verdict = read_counting_cache(folder)
        else:
            found = DIGESTS[job["kind"]](folder)
            verdict = "correct" if found == job["expected"] else f"failure: read as {found}"
        # HDF5's own process needs the address space of an interpreter.
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        if job["verify"]:
            verify_cache(folder)
    except UserError as error:
        return f"refused {error}"
    except BaseException:
        return f"failure {traceback.format_exc()}"
    return verdict


class Fuse:
    """Counts the calls that change files, and kills the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.calls, self.kill_at = 0, kill_at
        for name in CHANGING_CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return call(*arguments, **options)
            self.calls += 1
            if self.calls == self.kill_at:
                if name == "pwrite":
                    descriptor, data, offset = arguments
                    call(descriptor, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted


def run_job(job: dict[str, Any], output: int, errors: int, calls: int) -> None:
    """In the forked process: run one job and exit."""
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.environ |= job.get("environment", {})
    torch.set_num_threads(1)
    if job.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], resource.RLIM_INFINITY))
    fuse = Fuse(job.get("kill_at"))
    code = 70
    try:
        if "examine" in job:
            os.write(1, verdict_on(job).encode(errors="replace")[:60_000])
            code = 0
        else:
            main(job["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(calls, str(fuse.calls).encode())
    os._exit(code)


def run_jobs(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    began = time.monotonic()
    started, doomed, outcomes = [], [], []
    for job in jobs:
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receiving)
            run_job(job, output.fileno(), errors.fileno(), sending)
        os.close(sending)
        started.append((child, output, errors, receiving))
        if job.get("kill_after") is not None:
            doomed.append((job["kill_after"], child))
    for moment, child in sorted(doomed):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        os.kill(child, signal.SIGKILL)
    for child, output, errors, receiving in started:
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - began
        os.set_blocking(receiving, False)  # a killed process' workers hold the other end for seconds more
        with os.fdopen(receiving, "rb", buffering=0) as pipe, output, errors:
            output.seek(0)
            errors.seek(0)
            outcome = Outcome(
                code=os.waitstatus_to_exitcode(status),
                seconds=seconds,
                calls=int(pipe.read(20) or b"0"),
                stdout=output.read().decode(),
                stderr=errors.read().decode(),
            )
        outcomes.append(vars(outcome))
    return outcomes


# What commands import when they need it: once here, and not in every fork.
LATE = (
    *("demkd.api", "demkd.pipeline.stage_one", "demkd.pipeline.stage_two", "demkd.report.compare"),
    *("demkd.report.terminal", "rich.progress", "rich.table", "torchvision"),
    *("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer"),
)

if __name__ == "__main__":
    for name in LATE:
        with suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    Image.init()
    while (asked := json.loads(sys.stdin.readline() or "null")) is not None:
        print(json.dumps(run_jobs(asked)), flush=True)  # noqa: T201 - read by ForkServer
