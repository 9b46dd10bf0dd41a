"""Runs the command line in forked processes after one import, and kills them where it is told to.

A program: a line of JSON in is a list of commands to run side by side, a line of JSON out is what came of each. A fresh
interpreter imports PyTorch for seconds; a forked one starts in milliseconds and is as real a process to kill.

    arguments   of the command line
    kill_after  SIGKILL after so many seconds
    kill_at     SIGKILL at the n-th call that changes a file; a write is torn: half of its bytes are written
    file_limit  the largest file that may be written, in bytes
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import torch
import torch._dynamo  # optimisers import it when first used, which takes a second

import demkd.console
import demkd.pipeline.dry_run
import demkd.pipeline.stage_one
import demkd.pipeline.stage_two
import demkd.pipeline.verify
from demkd.cli import main

assert h5py
assert demkd.console

_CHANGING_CALLS = ("open", "pwrite", "fsync", "fdatasync", "posix_fallocate", "replace", "ftruncate")


class _Fuse:
    """Counts the calls that change files, and ends the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.calls, self.kill_at = 0, kill_at
        for name in _CHANGING_CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
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


def _child(command: dict[str, Any], output: int, errors: int, calls: int) -> None:
    """Run one command and leave; the number of changing calls goes down the pipe."""
    os.dup2(output, 1)
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    if command.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_limit"], resource.RLIM_INFINITY))
    fuse = _Fuse(command.get("kill_at"))
    code = 70
    try:
        main(command["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(calls, str(fuse.calls).encode())
    os._exit(code)


@dataclass(frozen=True)
class _Started:
    """A forked command, and where it writes."""

    process: int
    kill_after: float | None
    output: IO[bytes]
    errors: IO[bytes]
    calls: int


def _start(command: dict[str, Any]) -> _Started:
    output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has ended
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _child(command, output.fileno(), errors.fileno(), sending)
    os.close(sending)
    return _Started(child, command.get("kill_after"), output, errors, receiving)


def _finish(child: _Started, began: float) -> dict[str, Any]:
    _, status = os.waitpid(child.process, 0)
    seconds = time.monotonic() - began
    os.set_blocking(child.calls, False)  # a killed process' workers hold the other end for seconds more
    with os.fdopen(child.calls, "rb", buffering=0) as pipe, child.output, child.errors:
        child.output.seek(0)
        child.errors.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": seconds,
            "calls": int(pipe.read(20) or b"0"),
            "stdout": child.output.read().decode(),
            "stderr": child.errors.read().decode(),
        }


def _run(commands: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    began = time.monotonic()
    children = [_start(command) for command in commands]
    doomed = [(child.kill_after, child.process) for child in children if child.kill_after is not None]
    for moment, process in sorted(doomed):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        os.kill(process, signal.SIGKILL)
    return [_finish(child, began) for child in children]


if __name__ == "__main__":
    assert Path.cwd().joinpath("cli.py").exists(), "runs in the checkout"
    while (commands := json.loads(sys.stdin.readline() or "null")) is not None:
        print(json.dumps(_run(commands)), flush=True)  # noqa: T201 - that is its answer
