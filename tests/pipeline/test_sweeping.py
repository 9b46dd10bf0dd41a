"""A sweep makes what is missing, one folder a run, and ends in the same table however often it was interrupted."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

from demkd.cache import CacheBusyError, exclusive
from demkd.cli import main
from demkd.commands import sweep_runs
from demkd.config import ConfigError
from demkd.pipeline.progress import SILENT, Progress
from demkd.pipeline.runs import RunFolder
from demkd.pipeline.sweep import OPTIONS_FILE, SweepError, SweepRun, find_baseline, run_sweep
from tests.conftest import CHECKOUT, Cli
from tests.pipeline.stages import Workshop


def planned(folder: Path, text: str, **options: Any) -> list[SweepRun]:
    """The runs of a sweep of this text, in folder/out."""
    (folder / "sweep.toml").write_text(text)
    return sweep_runs(folder / "sweep.toml", folder / "out", **options)


class Notes(Progress):
    """Keeps notes, and whether each of some runs was finished at that time."""

    def __init__(self, *runs: SweepRun) -> None:
        self.texts: list[str] = []
        self.finished: list[list[bool]] = []
        self._runs = runs

    def note(self, text: str) -> None:
        self.texts.append(text)
        self.finished.append([run.finished for run in self._runs])


@pytest.fixture
def sweep(workshop: Workshop, tmp_path: Path) -> Callable[..., list[SweepRun]]:
    """Writes a sweep of a workshop's cache into sweep.toml, with some options changed, and plans its runs."""

    def write(**changes: Any) -> list[SweepRun]:
        small = {"student": "resnet8", "epochs": 2, "batch_size": 16, "precision": "float32", "method": "kd"}
        tables = {"data": str(workshop.data), "cache": str(workshop.cache), **small, **changes}
        return planned(tmp_path, tomli_w.dumps({name: value for name, value in tables.items() if value is not None}))

    return write


@pytest.mark.parametrize(
    "text",
    [
        '[runs.a]\nstudent = ["resnet8", "evil:run"]\n',
        'student = "resnet8"\nonline = true\n[runs.a]\nteacher = [["resnet8@FILE"], ["b=evil:run@FILE"]]\n',
    ],
)
def test_a_sweep_never_runs_code_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A TOML file from elsewhere may not choose what is imported from the current folder."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('proof').touch()\n")
    (tmp_path / "sweep.toml").write_text(f'data = "digits"\n{text}')
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["sweep", "sweep.toml", "--out", "out"])
    assert result.exit_code == 1
    assert "names evil:run, code of your own, which is only imported when you name it" in result.stderr
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("text", "folders", "last"),
    [
        (
            'method = ["kd", "dkd"]\nseed = [0, 1]',
            ["run-methodkd-seed0", "run-methodkd-seed1", "run-methoddkd-seed0", "run-methoddkd-seed1"],
            {"method": "dkd", "seed": 1},
        ),
        (
            "seed = [0, 1]\n[runs.kd]\nonline = false\n[runs.b]\nnckd_weight = [2.0]",
            ["kd-seed0", "kd-seed1", "b-seed0-nckd_weight2.0", "b-seed1-nckd_weight2.0"],
            {"seed": 1, "nckd_weight": 2.0},
        ),
        (
            '[runs.a]\nteachers = [["resnet8", "vgg8"], ["vgg8"]]\nfixed_weights = [[0.5, 0.5]]\n'
            'weight_source = "fixed"',
            ["a-teachersresnet8,vgg8-fixed_weights0.5,0.5", "a-teachersvgg8-fixed_weights0.5,0.5"],
            {"teachers": ["vgg8"], "fixed_weights": [0.5, 0.5]},
        ),
        (
            '[runs.b]\nteacher = ["a=x", "b=y"]\nnormalize = [["a=cifar10", "b=imagenet"], ["cifar100"]]\n'
            "nesterov = [true, false]",
            ["b-normalizea=cifar10,b=imagenet-nesterovTrue", "b-normalizea=cifar10,b=imagenet-nesterovFalse",
             "b-normalizecifar100-nesterovTrue", "b-normalizecifar100-nesterovFalse"],
            {"teacher": ["a=x", "b=y"], "normalize": ["cifar100"], "nesterov": False},
        ),
    ],
)  # fmt: skip
def test_a_sweep_is_every_combination(tmp_path: Path, text: str, folders: list[str], last: dict[str, Any]) -> None:
    """In the order of the file; an option that is a list itself is tried with each list of a list of lists."""
    runs = planned(tmp_path, f'data = "digits"\n{text}')
    assert [run.folder.name for run in runs] == folders
    assert runs[-1].options.items() >= last.items()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[runs]", r"has no runs: give each line of the comparison a table \[runs\.NAME\]"),
        (
            "[runs.a]\nnckd_wieght = 2",
            r"\[runs\.a\] has an unknown option 'nckd_wieght'; known are batch_size, batch_weight, cache,",
        ),
        ("[run.a]\nseed = 1\n[runs.b]", r"\[runs\.b\] has an unknown option 'run'"),
        ("[runs.a]\nonline = 'yes'", r"\[runs\.a\] gives online a value of the wrong kind, 'yes'"),
        ("[runs.a]\nseed = true", r"\[runs\.a\]: `seed` is True: give a whole number"),
        ("seed = []\n[runs.a]", r"\[runs\.a\] has seed = \[\]: give a value"),
        ("[runs.a]\nteachers = [['x'], []]", r"\[runs\.a\] has teachers = \[\['x'\], \[\]\]"),
        *(
            (f"[runs.a]\n{own} = 'x'", f"option '{own}', which is set by the sweep")
            for own in ("out", "recipe", "json")
        ),
        ("[runs.a]\nquiet = true", "option 'quiet', which is set by the sweep: remove it"),
        *((f"[runs.'{name}']", "which is no plain name") for name in ("../escaped", "/abs", "..", "", "x" * 256)),
        (
            "[runs.a]\ncache = ['runs/a', 'runs/b']",
            r"folder 'a-cacheruns/a', which is no plain .* a table \[runs\.NAME\]",
        ),
        (
            "seed = [0, 0]\n[runs.a]",
            r"share the folder 'a-seed0', of \[runs\.a\] and \[runs\.a\]: give each value once",
        ),
        ("[runs.a]\nseed = [0]\n[runs.a-seed0]", r"folder 'a-seed0', of \[runs\.a\] and \[runs\.a-seed0\]"),
    ],
)
def test_a_sweep_is_checked_before_anything_runs(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises((SweepError, ConfigError), match=said):
        planned(tmp_path, text)


@pytest.mark.parametrize("path", sorted((CHECKOUT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_recipes_and_their_baselines_are_valid(path: Path) -> None:
    """As their headers call them; a group's name, which only finished runs have, is a method here."""
    line = re.search(r"^# +demkd sweep (.*)$", path.read_text(), re.MULTILINE)
    if line is None:
        pytest.skip("a recipe of one run")
    given = main.commands["sweep"].make_context("sweep", shlex.split(line[1])).params
    runs = sweep_runs(CHECKOUT / given["recipe"], given["out"])
    assert path == CHECKOUT / given["recipe"]
    baseline = given["baseline"]
    assert baseline is None or find_baseline(runs, baseline) or baseline in [run.options["method"] for run in runs]


def test_a_baseline_is_a_table_or_a_folder_or_left_to_the_comparison(tmp_path: Path) -> None:
    runs = planned(tmp_path, "seed = [0, 1]\n[runs.kd]\n[runs.both]\nmethod = ['ce', 'dkd']\n")
    assert find_baseline(runs, "kd") == runs[0]
    assert find_baseline(runs, "kd-seed1") == runs[1]
    assert find_baseline(runs, os.path.relpath(runs[1].folder)) == runs[1]
    assert find_baseline(runs, "dkd") is None
    with pytest.raises(SweepError, match=r"\[runs\.both\] has .*: choose a --baseline of both-seed0-methodce, both-s"):
        find_baseline(runs, "both")


def test_one_teacher_is_left_out(workshop: Workshop, tmp_path: Path) -> None:
    """All teachers and each set without one, with every seed; among those that the file names."""

    def runs(text: str) -> list[tuple[list[str], int]]:
        made = planned(tmp_path, f"data = '{workshop.data}'\nstudent = 'resnet8'\n{text}", leave_one_out=True)
        assert len({run.folder for run in made}) == len(made)
        return [(sorted(run.options["teachers"]), run.options.get("seed", 0)) for run in made]

    names, cache = sorted(workshop.teachers()), f"cache = '{workshop.cache}'\n"
    sets = [names, *([name for name in names if name != left] for left in names)]
    assert sorted(runs(f"{cache}seed = [0, 1]")) == sorted((some, seed) for some in sets for seed in (0, 1))
    for chosen in (names[:2], ",".join(names[:2])):
        two = runs(f"{cache}teachers = {chosen!r}")
        assert sorted(some for some, _ in two) == [names[:1], names[:2], names[1:2]]
    for wrong, why in (
        ("", "names no cache"),
        (f"{cache}teachers = 3", "has teachers = 3: give names"),
        (f"{cache}teachers = {names[:1]}", rf"has one teacher \({names[0]}\): nothing can be left out"),
    ):
        with pytest.raises(SweepError, match=why):
            runs(wrong)


def test_a_failed_run_is_named_and_does_not_stop_the_others(
    sweep: Callable[..., list[SweepRun]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run's modules are those of the sweep's own process, not files of the current folder with their names."""
    for name in ("demkd.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    bad, other = sweep(epochs=1, runs={"bad": {"views": 99}, "good": {}})
    with pytest.raises(SweepError, match=r"1 of 2 runs failed \(bad\); first error: .*--views is 99"):
        run_sweep([bad, other], jobs=1, progress=(notes := Notes()))
    assert other.finished
    top1 = json.loads((other.folder / "metrics.jsonl").read_text().splitlines()[-1])["test_top1"]
    assert notes.texts == [f"{bad.folder}: failed", f"{other.folder}: test top-1 {top1:.2%}"]


@pytest.mark.slow
def test_a_sweep_may_turn_switches_off_and_use_live_teachers(
    sweep: Callable[..., list[SweepRun]], workshop: Workshop
) -> None:
    """Independent views beside a cache's, and one option that is on unless it is turned off."""
    live = {"online": True, "teacher": list(workshop.teachers().values()), "views": [5, "random"]}
    lines = {"cached": {"cache": str(workshop.cache)}, "live": live}
    runs = sweep(epochs=1, nesterov=False, cache=None, runs=lines)
    run_sweep(runs, jobs=1, progress=SILENT)
    made = {run.folder.name: tomllib.loads((run.folder / "recipe.toml").read_text()) for run in runs}
    assert {name: (table["online"], table["views"], table["nesterov"]) for name, table in made.items()} == {
        "cached": (False, 5, False),
        "live-views5": (True, 5, False),
        "live-viewsrandom": (True, "random", False),
    }


@pytest.mark.slow
def test_a_changed_sweep_does_not_pass_old_runs_off_as_its_own(sweep: Callable[..., list[SweepRun]]) -> None:
    """The same folder, another temperature: the run that is there is named with both values, and kept."""
    runs = sweep(epochs=1)
    run_sweep(runs, jobs=1, progress=SILENT)
    assert runs[0].finished
    changed = sweep(epochs=1, temperature=2.0)
    assert not changed[0].finished
    with pytest.raises(SweepError, match=r"1 of 1 runs failed .*temperature was 4\.0 and is 2\.0"):
        run_sweep(changed, jobs=1, progress=SILENT)


@pytest.mark.slow
def test_runs_that_are_the_same_are_shown_once(sweep: Callable[..., list[SweepRun]], tmp_path: Path, cli: Cli) -> None:
    """And may be the baseline, by any of their names."""
    sweep(epochs=1, runs={"usual": {}, "said": {"temperature": 4.0}, "cold": {"temperature": 1.0}})
    out = tmp_path / "out"
    result = cli("sweep", tmp_path / "sweep.toml", "--out", out, "--baseline", "said", "--format", "json")
    compared = json.loads(result.stdout)
    assert [group["seeds"] for group in compared["groups"]] == [1, 1]
    assert compared["baseline"] == compared["groups"][0]["group"]
    assert f"are shown once: {out / 'said'} and {out / 'usual'}" in result.stderr


@pytest.mark.slow
def test_a_run_is_reported_and_marked_when_it_is_done(sweep: Callable[..., list[SweepRun]]) -> None:
    """And not when all before it are."""
    long, short = sweep(runs={"long": {"epochs": 40}, "short": {"epochs": 1}})
    run_sweep([long, short], jobs=2, progress=(notes := Notes(short, long)))
    assert [text.partition(":")[0] for text in notes.texts] == [str(short.folder), str(long.folder)]
    assert notes.finished == [[True, False], [True, True]]


def wait_until(condition: Callable[[], bool], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def start_sweep(runs: list[SweepRun], folder: Path) -> "subprocess.Popen[bytes]":
    """Start a sweep of two jobs, and wait until both have trained an epoch."""
    command = [sys.executable, CHECKOUT / "cli.py", "sweep", folder / "sweep.toml", "--out", folder / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command), "--jobs", "2", "--quiet"], env=environment, stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    metrics = [run.folder / "metrics.jsonl" for run in runs]
    wait_until(lambda: all(file.exists() and file.stat().st_size for file in metrics), 120, "the runs do not start")
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_sweep_that_is_ended_leaves_no_process_behind(
    number: int, code: int, sweep: Callable[..., list[SweepRun]], tmp_path: Path
) -> None:
    """Only the sweep's own process gets the signal; its runs would train for hours."""
    runs = sweep(epochs=100_000, seed=[0, 1])
    with start_sweep(runs, tmp_path) as process:
        process.send_signal(number)
        try:
            assert process.wait(30) == code
        finally:
            process.kill()
    metrics = [run.folder / "metrics.jsonl" for run in runs]
    lengths = [file.stat().st_size for file in metrics]
    time.sleep(2)
    assert [file.stat().st_size for file in metrics] == lengths
    assert not (metrics[0].parent / OPTIONS_FILE).exists()


@pytest.mark.slow
def test_the_runs_of_a_killed_sweep_end_and_are_resumed_by_the_same_command(
    sweep: Callable[..., list[SweepRun]], tmp_path: Path, cli: Cli
) -> None:
    """SIGKILL: the sweep can end nothing itself. A run's lock is free when its process is gone; finished runs stay."""
    epochs = 100
    runs = sweep(epochs=epochs, method=["kd", "dkd"])
    with start_sweep(runs, tmp_path) as process:
        assert all(map(is_busy, runs))
        process.kill()
        process.wait(5)
        wait_until(lambda: not any(map(is_busy, runs)), 5, "the runs outlive their sweep")
    trained = [len(RunFolder(run.folder).metrics.read_bytes().splitlines()) for run in runs]
    assert all(0 < count < epochs for count in trained), "they were killed half-way"
    command = ("sweep", tmp_path / "sweep.toml", "--out", tmp_path / "out", "--format", "json")
    shown = json.loads(cli(*command).stdout)
    assert [group["seeds"] for group in shown["groups"]] == [1, 1]
    for run in runs:
        assert [line["epoch"] for line in RunFolder(run.folder).read_metrics()] == list(range(1, epochs + 1))
    kept = (runs[0].folder / "student.safetensors").stat().st_mtime_ns
    shutil.rmtree(runs[1].folder)
    assert json.loads(cli(*command).stdout) == shown
    assert (runs[0].folder / "student.safetensors").stat().st_mtime_ns == kept


def is_busy(run: SweepRun) -> bool:
    """Whether a process is at a run."""
    try:
        with exclusive(run.folder / "run"):
            return False
    except CacheBusyError:
        return True
