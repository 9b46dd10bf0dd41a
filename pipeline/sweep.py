"""Many students from one cache: each combination of options of a sweep file is a run of `distill`, in its own process.

`demkd sweep -h` has the format of the file, which is checked as a whole before anything runs.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from demkd.cache import open_cache
from demkd.config import DATA_VARIABLE, check_no_own_code, read_recipe
from demkd.errors import UserError, read_regular, real_path
from demkd.pipeline.distributed import child_environment
from demkd.pipeline.progress import Progress
from demkd.teachers.checkpoint import STUDENT_FILE

OPTIONS_FILE = "sweep.toml"  # in a run's folder: the options that the sweep gave it
# Options that the sweep sets itself, or that have no meaning for it.
_OWN = frozenset({"out", "json", "as_json", "quiet", "recipe"})
_PLAIN = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,255}")  # one component of a path, no longer than file systems take
# A run ends when the other end of its stdin is closed, which the system does even where the sweep was killed; it is
# resumed from its checkpoint. -P: a file of the user's in the current folder hides no module.
_CHILD = (
    sys.executable, "-P", "-c",
    "import os, sys, threading\n"
    "def end_with_stdin(): os.read(0, 1); os._exit(1)\n"
    "threading.Thread(target=end_with_stdin, daemon=True).start()\n"
    "sys.argv[0] = 'demkd'\n"
    "from demkd.cli import run\n"
    "run()",
)  # fmt: skip


class SweepError(UserError, ValueError):
    """A sweep file with an error, or a sweep whose runs failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """One run: the NAME of its table [runs.NAME], its folder, and its options of `distill`."""

    line: str
    folder: Path
    options: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it was made with exactly these options; if not, `distill` says what differs."""
        made_with = self.folder / OPTIONS_FILE
        if not (self.folder / STUDENT_FILE).exists() or not made_with.exists():
            return False
        return read_regular(made_with).decode() == tomli_w.dumps(dict(self.options))


def plan_sweep(
    path: Path,
    out: Path,
    lists: Mapping[str, bool],
    check: Callable[[Mapping[str, Any], str], object],
    *,
    leave_one_out: bool = False,
) -> list[SweepRun]:
    """Every run of a sweep, in the order of the file.

    `lists` has the options of `distill`, and whether each is a list itself. `check` raises a ConfigError for the
    options of a run, and names its table. `leave_one_out` trains with all teachers, and without each of them.
    """
    tables = read_recipe(path)
    lines = tables.pop("runs", {"run": {}})
    if not isinstance(lines, Mapping) or not all(isinstance(line, Mapping) for line in lines.values()) or not lines:
        raise SweepError(f"the sweep {path} has no runs: give each line of the comparison a table [runs.NAME]")
    runs: dict[str, SweepRun] = {}  # by folder
    for line, own in lines.items():
        options = {**tables, **own}
        if leave_one_out:
            teachers = _teachers(path, options)
            options["teachers"] = [list(teachers), *([x for x in teachers if x != left] for left in teachers)]
        several: dict[str, list[Any]] = {}
        for name, value in options.items():
            if name in _OWN:
                raise SweepError(f"[runs.{line}] has the option {name!r}, which is set by the sweep: remove it")
            if isinstance(value, list) and (not lists.get(name) or any(isinstance(item, list) for item in value)):
                several[name] = value
            if [] in (value, *several.get(name, ())):
                raise SweepError(f"[runs.{line}] has {name} = {value!r}: give a value, or a list of values to try each")
        for values in itertools.product(*several.values()):
            chosen = dict(zip(several, values, strict=True))
            check({**options, **chosen}, f"[runs.{line}]")
            words = [f"{name}{','.join(map(str, x)) if isinstance(x, list) else x}" for name, x in chosen.items()]
            folder = "-".join([line, *words])
            if not _PLAIN.fullmatch(folder):
                raise SweepError(
                    f"[runs.{line}] would have a run in the folder {folder!r}, which is no plain name of up to 255 "
                    "characters: rename it, or give each such value a table [runs.NAME] of its own"
                )
            if folder in runs:
                raise SweepError(
                    f"two runs would share the folder {folder!r}, of [runs.{runs[folder].line}] and [runs.{line}]: "
                    "give each value once, and tables other names"
                )
            runs[folder] = SweepRun(line=line, folder=out / folder, options={**options, **chosen})
    networks = [run.options[name] for run in runs.values() for name in ("student", "teacher") if name in run.options]
    check_no_own_code(str(item) for value in networks for item in (value if isinstance(value, list) else [value]))
    return list(runs.values())


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

    `wanted` is the NAME of a table [runs.NAME], or a run's folder, with or without --out; or else the name of a group
    in the comparison, which is known when the runs are finished: None.
    """
    of_table: dict[str, SweepRun] = {}  # the first of each choice
    for run in runs:
        if run.line == wanted:
            choice = json.dumps({name: x for name, x in run.options.items() if name != "seed"}, sort_keys=True)
            of_table.setdefault(choice, run)
    if len(of_table) > 1:
        folders = ", ".join(run.folder.name for run in of_table.values())
        raise SweepError(
            f"[runs.{wanted}] has runs that differ in more than the seed: choose a --baseline of {folders}"
        )
    folder = real_path(wanted)
    in_folder = (run for run in runs if wanted == run.folder.name or folder == real_path(run.folder))
    return next(iter([*of_table.values(), *in_folder]), None)


def run_sweep(runs: Sequence[SweepRun], *, jobs: int, progress: Progress) -> None:
    """Make missing runs, `jobs` at once; a failed one does not stop the others, an exception ends the running ones.

    The runs have the reading end of a pipe as stdin, and this process alone has the writing end, to which it never
    writes: when this process ends, in whatever way, the system closes it, and the runs end.
    """
    missing = [run for run in runs if not run.finished]
    if finished := len(runs) - len(missing):
        progress.note(f"{finished} of {len(runs)} runs were finished already")
    failures: list[tuple[SweepRun, str]] = []
    processes: list[subprocess.Popen[str]] = []
    stdin, lifeline = os.pipe()
    threads = ThreadPoolExecutor(jobs)  # each waits for a process
    with progress.task("sweep", total=len(runs), unit="runs", done=len(runs) - len(missing)) as task:
        making = {threads.submit(_make, run, stdin, processes): run for run in missing}
        try:
            for future in as_completed(making):
                run, (top1, reason) = making[future], future.result()
                task.advance(1)
                progress.note(f"{run.folder}: {'failed' if top1 is None else f'test top-1 {top1:.2%}'}")
                if top1 is None:
                    failures.append((run, reason))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in making):  # a thread may be about to start another process
                for process in tuple(processes):
                    process.terminate()
                time.sleep(0.05)
            os.close(lifeline)
            os.close(stdin)
    if failures:
        names = ", ".join(run.folder.name for run, _ in failures)
        raise SweepError(f"{len(failures)} of {len(runs)} runs failed ({names}); first error: {failures[0][1]}")


def _make(run: SweepRun, stdin: int, processes: list[subprocess.Popen[str]]) -> tuple[float | None, str]:
    """Make a run in a process of its own, whose stdout is a report as JSON: its top-1, or None and the reason."""
    recipe = run.folder / f"{OPTIONS_FILE}.running"
    run.folder.mkdir(parents=True, exist_ok=True)
    recipe.unlink(missing_ok=True)  # to open a pipe of that name would wait
    recipe.write_text(tomli_w.dumps(dict(run.options)), encoding="utf-8")
    with subprocess.Popen(  # noqa: S603 - our own command
        [*_CHILD, "distill", "--quiet", "--json", "--recipe", str(recipe), "--out", str(run.folder)],
        env={name: text for name, text in child_environment().items() if name != DATA_VARIABLE},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        processes.append(process)
        stdout, stderr = process.communicate()
    if process.returncode:
        return None, (stderr.strip().splitlines() or ["no reason"])[-1]
    recipe.replace(run.folder / OPTIONS_FILE)  # the run was made with these options
    return json.loads(stdout)["test_top1"], ""
