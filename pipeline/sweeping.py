"""Many students from one cache: every combination of a sweep's options is a run of `distill`, in a folder of its own.

A sweep is a TOML file: options for all runs, and one table `[runs.NAME]` for each line of the comparison. An option
that is given a list of values is tried with each of them:

    data = "digits"
    cache = "runs/demo/cache"
    student = "resnet8"
    seed = [0, 1, 2]

    [runs.kd]
    method = "kd"

    [runs.dkd]
    method = "dkd"
    nckd_weight = [2.0, 8.0]

Runs are processes: none can disturb another, and any number may run at once.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from demkd.errors import UserError
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import read_recipe
from demkd.teachers.checkpoint import STUDENT_FILE

OPTIONS_FILE = "sweep.toml"  # what a sweep asked of a run
_LISTS = frozenset({"teacher", "normalise", "input_size"})  # options that are lists themselves
_TURNED_OFF = {"nesterov": "--no-nesterov"}  # every other switch is off until it is given
_COMMAND = Path(__file__).resolve().parents[1] / "cli.py"


class SweepError(UserError, ValueError):
    """A sweep that cannot be understood, or whose runs failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """One run: its folder, and the options of `distill`."""

    folder: Path
    options: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it was made, and with these very options; if not, `distill` says what differs."""
        return (self.folder / STUDENT_FILE).exists() and self._made_with() == self._as_text()

    def remember(self) -> None:
        """Keep the options beside the finished run."""
        (self.folder / OPTIONS_FILE).write_text(self._as_text(), encoding="utf-8")

    def _made_with(self) -> str | None:
        file = self.folder / OPTIONS_FILE
        return file.read_text(encoding="utf-8") if file.exists() else None

    def _as_text(self) -> str:
        return tomli_w.dumps(dict(self.options))

    def command(self) -> list[str]:
        """The command line that makes, or goes on with, this run."""
        words = [sys.executable, str(_COMMAND), "distill", "--quiet", "--json", "--out", str(self.folder)]
        for name, value in self.options.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag] if value else [_TURNED_OFF[name]] if name in _TURNED_OFF else []
            else:
                words += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]
        return words


def plan_sweep(path: Path, out: Path) -> list[SweepRun]:
    """Every run of a sweep, in the order of the file.

    Raises:
        RecipeError, SweepError: if the file cannot be read, or has no runs.
    """
    tables = read_recipe(path)
    lines = tables.pop("runs", None)
    if not isinstance(lines, Mapping) or not all(isinstance(line, Mapping) for line in lines.values()) or not lines:
        raise SweepError(f"the sweep {path} has no runs: give each line of the comparison a table [runs.NAME]")
    return [
        SweepRun(folder=out / "-".join([name, *labels]), options=options)
        for name, line in lines.items()
        for labels, options in _combinations({**tables, **line})
    ]


def run_sweep(runs: Sequence[SweepRun], *, jobs: int, progress: Progress) -> None:
    """Make the runs that are missing; a failed one does not stop the others.

    Raises:
        SweepError: naming the runs that failed, with what the first one said.
    """
    missing = [run for run in runs if not run.finished]
    failures: list[tuple[SweepRun, str]] = []
    threads = ThreadPoolExecutor(jobs)  # each waits for a process
    try:
        with progress.task("sweep", total=len(runs), unit="runs", done=len(runs) - len(missing)) as task:
            for run, result in zip(missing, threads.map(_make, missing), strict=True):
                task.advance(1)
                if result.returncode:
                    progress.note(f"{run.folder}: failed")
                    failures.append((run, (result.stderr.strip().splitlines() or ["no reason"])[-1]))
                else:
                    run.remember()
                    progress.note(f"{run.folder}: test top-1 {json.loads(result.stdout)['test_top1']:.2%}")
    finally:
        threads.shutdown(cancel_futures=True)
    if failures:
        names = ", ".join(run.folder.name for run, _ in failures)
        raise SweepError(f"{len(failures)} of {len(runs)} runs failed ({names}); the first said: {failures[0][1]}")


def _combinations(options: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Every choice of one value per option, with labels for those that had several."""
    several = {name: value for name, value in options.items() if isinstance(value, list) and name not in _LISTS}
    for values in itertools.product(*several.values()):
        chosen = dict(zip(several, values, strict=True))
        yield [f"{name}{value}" for name, value in chosen.items()], {**options, **chosen}


def _make(run: SweepRun) -> "subprocess.CompletedProcess[str]":
    """Run one in a process of its own, whose stdout is its report as JSON."""
    return subprocess.run(run.command(), capture_output=True, text=True, check=False)  # noqa: S603 - our own command
