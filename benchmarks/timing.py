"""Alternating repetitions and their ratios, which stay true while the machine's speed drifts; memory; processes."""

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

Work = Callable[[], object]
_of_processors = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One line of the table.

    Attributes:
        target: what the ratio should be, in words; empty where it is only reported.
        ratios: one per repetition, or a single figure that was computed.
        times: seconds of every repetition, numerator and denominator; none where no work was timed against another.
        facts: seconds, bytes and what else explains the ratio.
    """

    number: str
    what: str
    target: str
    ratios: tuple[float, ...]
    times: tuple[tuple[float, float], ...] = ()
    facts: dict[str, float | str] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return median(self.ratios)


def seconds(work: Work) -> float:
    """Wall time of some work, or its processor time."""
    clock = time.process_time if _of_processors else time.perf_counter
    started = clock()
    work()
    return clock() - started


def count_processor_time() -> None:
    """From now on, for a machine that others keep busy; without workers, whose time is not this process'."""
    global _of_processors
    _of_processors = True


def compare(number: str, what: str, target: str, first: Work, second: Work, *, repetitions: int) -> Measurement:
    """The ratio first / second, timed in turn, A B A B ..., after one uncounted turn of each."""
    first()
    second()
    return of_pairs(number, what, target, [(seconds(first), seconds(second)) for _ in range(repetitions)])


def of_pairs(number: str, what: str, target: str, pairs: Sequence[tuple[float, float]]) -> Measurement:
    """The ratios of pairs of times."""
    facts: dict[str, float | str] = {"numerator_s": median(a for a, _ in pairs)}
    facts["denominator_s"] = median(b for _, b in pairs)
    ratios = tuple(a / b for a, b in pairs)
    return Measurement(number=number, what=what, target=target, ratios=ratios, times=tuple(pairs), facts=facts)


def run_program(name: str, *arguments: object, processes: int = 1, **environment: str) -> list[str]:
    """The last words that a module of this folder prints, in a process of its own or in several under torchrun."""
    from demkd.pipeline.distributed import child_environment, python_module

    command = python_module(f"demkd.benchmarks.{name}")
    if processes > 1:
        command = [
            *python_module("torch.distributed.run"),
            "--standalone",
            f"--nproc-per-node={processes}",
            *command[2:],
        ]
    environment = {**child_environment(), **environment}
    command += map(str, arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


class PeakMemory(threading.Thread):
    """The most anonymous memory of this process, looked at every five milliseconds.

    That is what the process cannot give back; pages of a mapped cache are not counted. OSError where there is no /proc.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._bytes, self._done = 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.005):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
            self._bytes = max(self._bytes, int(kilobytes) * 1024)

    def stop(self) -> int:
        """Stop looking; the bytes."""
        self._done.set()
        self.join()
        return self._bytes
