"""Many students from one cache: every combination of a sweep's options is a run of `distill`, in a folder of its own.

A sweep is a TOML file: options for all runs, and one table `[runs.NAME]` for each line of the comparison; without
tables, the options are one line. An option that is given a list of values is tried with each of them:

    data = "digits"
    cache = "runs/demo/cache"
    student = "resnet8"
    seed = [0, 1, 2]

    [runs.kd]
    method = "kd"

    [runs.dkd]
    method = "dkd"
    nckd_weight = [2.0, 8.0]

So `teachers = ["resnet8", "vgg8"]` tries one, then the other; to try sets of them, give a list of lists:
`teachers = [["resnet8", "vgg8"], ["wrn_16_1"]]`. Only the list of an option that the command line repeats, such as
`teacher`, is one value. A sweep is checked as a whole before anything runs.

Each run is a process of its own, or with `--together` several runs are, which read a photo once for all that show the
same views in the same order. `--jobs` processes run at once. They end when the sweep ends, also if it is killed.
"""

import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from demkd.cache import open_cache
from demkd.errors import UserError
from demkd.pipeline import defaults
from demkd.pipeline.child_process import child_environment, python_module
from demkd.pipeline.loading import refuse_own_code
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import in_words, read_recipe
from demkd.teachers.checkpoint import STUDENT_FILE
from demkd.untrusted import read_regular, real_path

OPTIONS_FILE = "sweep.toml"  # in a run's folder: the options that the sweep gave it
_OWN = frozenset(
    {"out", "json", "as_json", "quiet", "recipe"}
)  # options that the sweep sets itself, or that have no meaning for it
_PLAIN = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,255}")  # one component of a path, no longer than file systems take
_CHILD = python_module("demkd.pipeline.sweep_child")

# The options that must agree where a photo is to be read once for several runs; of seeds, what decides the order.
_SHARED = ("data", "cache", "batch_size", "views", "views_per_step", "views_per_decode", "exif", "skip_broken")

_Process = subprocess.Popen[str]


class SweepError(UserError, ValueError):
    """A sweep file with an error, or a sweep whose runs failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOption:
    """How an option of `distill` is given.

    Attributes:
        flag: on the command line.
        switch: whether it is true or false, and has no value there.
        off: the flag that turns a switch off; None where leaving it out does.
        repeatable: whether it is a list itself, whose flag comes once for each item.
    """

    flag: str
    switch: bool
    off: str | None
    repeatable: bool

    def alternatives(self, value: Any) -> list[Any] | None:
        """The values to try; None if it is a single one."""
        several = isinstance(value, list) and (not self.repeatable or any(isinstance(one, list) for one in value))
        return value if several else None

    def takes(self, value: Any) -> bool:
        """Whether one alternative has the right type; `distill` checks its value."""
        if self.switch:
            return isinstance(value, bool)
        items = value if isinstance(value, list) else [value]
        return bool(items) and all(
            isinstance(one, str | int | float) and not isinstance(one, bool) and "\0" not in str(one) for one in items
        )

    def words(self, value: Any) -> list[str]:
        """One alternative on the command line."""
        if self.switch:
            return [self.flag] if value else [self.off] if self.off else []
        items = value if self.repeatable and isinstance(value, list) else [value]
        return [word for one in items for word in (self.flag, in_words(one))]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """One run: the NAME of its table [runs.NAME], its folder, and the options of `distill`, as values and as words."""

    line: str
    folder: Path
    options: Mapping[str, Any]
    words: tuple[str, ...]

    @property
    def networks(self) -> list[str]:
        """The student and the live teachers, as they are written."""
        chosen = [self.options[name] for name in ("student", "teacher") if name in self.options]
        return [in_words(item) for value in chosen for item in (value if isinstance(value, list) else [value])]

    @property
    def finished(self) -> bool:
        """Whether it was made with exactly these options; if not, `distill` says what differs."""
        return (self.folder / STUDENT_FILE).exists() and self._made_with() == self._as_text()

    def remember(self) -> None:
        """Write the options into the folder of the finished run."""
        (self.folder / OPTIONS_FILE).write_text(self._as_text(), encoding="utf-8")

    def _made_with(self) -> str | None:
        file = self.folder / OPTIONS_FILE
        return read_regular(file).decode() if file.exists() else None

    def _as_text(self) -> str:
        return tomli_w.dumps(dict(self.options))

    @property
    def shows(self) -> str:
        """Which samples it shows in which views and order: the same text, the same pictures in every step."""
        order = self.options.get("order_seed", self.options.get("seed"))
        return repr([order, *(self.options.get(name) for name in _SHARED)])

    def arguments(self) -> list[str]:
        """What `distill` is given."""
        return ["--quiet", "--json", "--out", str(self.folder), *self.words]

    def command(self) -> list[str]:
        """The command line that makes, or goes on with, this run."""
        return [*_CHILD, "distill", *self.arguments()]


class _Outcome(NamedTuple):
    """What came of a run: its accuracy, or why there is none."""

    run: SweepRun
    top1: float | None
    reason: str = ""


def plan_sweep(
    path: Path, out: Path, known: Mapping[str, SweepOption], *, leave_one_out: bool = False
) -> list[SweepRun]:
    """Every run of a sweep, in the order of the file.

    Args:
        known: the options of `distill`, by name.
        leave_one_out: train every run with all teachers, and without each of them.

    Raises:
        RecipeError, SweepError: if the file cannot be read, has no runs, or has some that cannot be made, or that would
            run code of the user's own; naming them.
    """
    tables = read_recipe(path)
    lines = tables.pop("runs", {"run": {}})
    if not isinstance(lines, Mapping) or not all(isinstance(line, Mapping) for line in lines.values()) or not lines:
        raise SweepError(f"the sweep {path} has no runs: give each line of the comparison a table [runs.NAME]")
    runs: list[SweepRun] = []
    for line, own in lines.items():
        options = {**tables, **own}
        if leave_one_out:
            teachers = _teachers(path, options)
            options["teachers"] = [list(teachers), *([x for x in teachers if x != left] for left in teachers)]
        runs += _runs_of(line, options, out, known)
    _require_own_folders(runs)
    refuse_own_code([name for run in runs for name in run.networks])
    return runs


def _teachers(path: Path, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The teachers of a run's cache, or those of them that it names."""
    if not isinstance(options.get("cache"), str):
        raise SweepError(f"{path} names no cache: --leave-one-out needs the teachers of a cache")
    named = options.get("teachers", ())
    chosen = [name.strip() for name in named.split(",")] if isinstance(named, str) else named
    if not isinstance(chosen, list | tuple) or not all(isinstance(name, str) for name in chosen):
        raise SweepError(f"{path} has teachers = {named!r}: give names of teachers")
    with open_cache(options["cache"], tuple(chosen) or None, weights=False) as cache:
        names = cache.names
    if len(names) < 2:
        raise SweepError(f"the cache in {options['cache']} has one teacher ({names[0]}): nothing can be left out")
    return names


def find_baseline(runs: Sequence[SweepRun], wanted: str) -> SweepRun | None:
    """A run of the baseline, where it is known before anything ran.

    Args:
        wanted: the NAME of a table [runs.NAME], or a run's folder, with or without --out; or else the name of a group
            in the comparison, which is known when the runs are finished: None.

    Raises:
        SweepError: if a table is named whose runs differ in more than the seed.
    """
    of_table: dict[str, SweepRun] = {}  # the first of each choice
    for run in runs:
        if run.line == wanted:
            of_table.setdefault(_beside_seed(run), run)
    if len(of_table) > 1:
        folders = ", ".join(run.folder.name for run in of_table.values())
        raise SweepError(
            f"[runs.{wanted}] has runs that differ in more than the seed: choose a --baseline of {folders}"
        )
    folder = real_path(wanted)
    in_folder = (run for run in runs if wanted == run.folder.name or folder == real_path(run.folder))
    return next(iter([*of_table.values(), *in_folder]), None)


def run_sweep(runs: Sequence[SweepRun], *, jobs: int, progress: Progress, together: int = 1) -> None:
    """Make the runs that are missing; a failed one does not stop the others, an exception ends the running ones.

    Args:
        jobs: processes at once.
        together: runs in a process, of those that show the same pictures in every step.

    Raises:
        SweepError: naming the runs that failed, with what the first one said.
    """
    missing = [run for run in runs if not run.finished]
    failures: list[tuple[SweepRun, str]] = []
    with (
        progress.task("sweep", total=len(runs), unit="runs", done=len(runs) - len(missing)) as task,
        _outcomes(_groups(missing, together), jobs) as outcomes,
    ):
        for run, top1, reason in outcomes:
            task.advance(1)
            if top1 is None:
                progress.note(f"{run.folder}: failed")
                failures.append((run, reason))
            else:
                progress.note(f"{run.folder}: test top-1 {top1:.2%}")
    if failures:
        names = ", ".join(run.folder.name for run, _ in failures)
        raise SweepError(f"{len(failures)} of {len(runs)} runs failed ({names}); the first said: {failures[0][1]}")


def _runs_of(line: str, options: Mapping[str, Any], out: Path, known: Mapping[str, SweepOption]) -> Iterator[SweepRun]:
    for name, value in options.items():
        _require_usable(line, name, value, known)
    for labels, chosen in _combinations(options, known):
        yield SweepRun(
            line=line,
            folder=out / _folder_name(line, labels),
            options=chosen,
            words=tuple(word for name, value in chosen.items() for word in known[name].words(value)),
        )


def _require_usable(line: str, name: str, value: Any, known: Mapping[str, SweepOption]) -> None:
    if name in _OWN:
        raise SweepError(f"[runs.{line}] has the option {name!r}, which is not for a sweep to choose: remove it")
    if name not in known:
        choices = ", ".join(sorted(known.keys() - _OWN))
        raise SweepError(f"[runs.{line}] has an unknown option {name!r}; known are {choices}")
    alternatives = known[name].alternatives(value)
    tried = [value] if alternatives is None else alternatives
    if not tried or not all(map(known[name].takes, tried)):
        wanted = "true or false" if known[name].switch else "a text or a number"
        raise SweepError(f"[runs.{line}] has {name} = {value!r}: give {wanted}, or a list of such to try each")


def _combinations(
    options: Mapping[str, Any], known: Mapping[str, SweepOption]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Every choice of one value per option, with labels for those that had several."""
    found = {name: known[name].alternatives(value) for name, value in options.items()}
    several = {name: values for name, values in found.items() if values is not None}
    for values in itertools.product(*several.values()):
        chosen = dict(zip(several, values, strict=True))
        yield [f"{name}{in_words(value)}" for name, value in chosen.items()], {**options, **chosen}


def _folder_name(line: str, labels: Sequence[str]) -> str:
    name = "-".join([line, *labels])
    if not _PLAIN.fullmatch(name):
        raise SweepError(
            f"[runs.{line}] would have a run in the folder {name!r}, which is no plain name of up to 255 characters: "
            "rename it, or give each such value a table [runs.NAME] of its own"
        )
    return name


def _require_own_folders(runs: Sequence[SweepRun]) -> None:
    lines: dict[Path, str] = {}
    for run in runs:
        if run.folder in lines:
            raise SweepError(
                f"two runs would share the folder {run.folder.name!r}, of [runs.{lines[run.folder]}] and "
                f"[runs.{run.line}]: give each value once, and tables other names"
            )
        lines[run.folder] = run.line


def _beside_seed(run: SweepRun) -> str:
    return json.dumps({name: value for name, value in run.options.items() if name != "seed"}, sort_keys=True)


def _groups(runs: Sequence[SweepRun], together: int) -> list[list[SweepRun]]:
    """The runs that a process makes, at most so many: such as show the same pictures in every step.

    One at a time they are made in the order of the file.
    """
    if together == 1:
        return [[run] for run in runs]
    alike: dict[str, list[SweepRun]] = {}
    for run in runs:
        alike.setdefault(run.shows, []).append(run)
    return [some[start : start + together] for some in alike.values() for start in range(0, len(some), together)]


@contextmanager
def _outcomes(groups: Sequence[Sequence[SweepRun]], jobs: int) -> Iterator[Iterator[_Outcome]]:
    """Make runs, and give the result of each as soon as it is there; runs that have not finished on leaving are ended.

    The runs have the reading end of a pipe as stdin, and this process alone has the writing end, to which it never
    writes: when this process ends, in whatever way, the system closes it, and the runs end (`sweep_child.py`).
    """
    processes: list[_Process] = []
    stdin, lifeline = os.pipe()
    threads = ThreadPoolExecutor(jobs)  # each waits for a process
    making = [threads.submit(_make, group, stdin, processes) for group in groups]
    try:
        yield (outcome for future in as_completed(making) for outcome in future.result())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        _terminate(processes, making)
        os.close(lifeline)
        os.close(stdin)


def _terminate(processes: Sequence[_Process], making: Collection[Future[list[_Outcome]]]) -> None:
    """End all processes; repeatedly, because a thread may be about to start another."""
    while not all(future.done() for future in making):
        for process in tuple(processes):
            process.terminate()
        time.sleep(0.05)


def _make(runs: Sequence[SweepRun], stdin: int, processes: list[_Process]) -> list[_Outcome]:
    """Make some runs in a process of their own, whose stdout is a report as JSON, or a list of one for each."""
    words = json.dumps([run.arguments() for run in runs])
    with subprocess.Popen(  # noqa: S603 - our own command
        runs[0].command() if len(runs) == 1 else [*_CHILD, "distill-together", words],
        env={name: text for name, text in child_environment().items() if name != defaults.DATA_VARIABLE},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        processes.append(process)
        stdout, stderr = process.communicate()
    if process.returncode:
        reason = (stderr.strip().splitlines() or ["no reason"])[-1]
        return [_Outcome(run, None, reason) for run in runs]
    reports = json.loads(stdout)
    outcomes = [
        _Outcome(run, report.get("test_top1"), report.get("error", ""))
        for run, report in zip(runs, [reports] if len(runs) == 1 else reports, strict=True)
    ]
    for run in (outcome.run for outcome in outcomes if outcome.top1 is not None):
        run.remember()
    return outcomes
