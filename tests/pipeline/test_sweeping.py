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

import pytest
import tomli_w
from click.testing import CliRunner

from demkd.cache import CacheBusyError, exclusive
from demkd.cli import main
from demkd.commands.comparing import sweep_options
from demkd.pipeline.arguments import MethodOptions, resolve_method
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import RecipeError
from demkd.pipeline.runs import RunFolder
from demkd.pipeline.sweeping import OPTIONS_FILE, SweepError, SweepRun, find_baseline, plan_sweep, run_sweep
from tests.conftest import CHECKOUT, Cli
from tests.pipeline.stages import Workshop

KNOWN = sweep_options(main.commands["distill"])


def plan(path: Path, out: Path) -> list[SweepRun]:
    return plan_sweep(path, out, KNOWN)


def planned(folder: Path, text: str) -> list[SweepRun]:
    """The runs of a sweep of this text, in folder/out."""
    (folder / "sweep.toml").write_text(text)
    return plan(folder / "sweep.toml", folder / "out")


@pytest.mark.parametrize(
    "text",
    [
        'student = "evil:run"\n[runs.a]\nseed = 1\n',
        '[runs.a]\nstudent = "evil:run"\n',
        '[runs.a]\nstudent = ["resnet8", "evil:run"]\n',
        'student = "resnet8"\nonline = true\n[runs.a]\nteacher = ["a=resnet8@FILE", "b=evil:run@FILE"]\n',
        'student = "resnet8"\nonline = true\n[runs.a]\nteacher = "evil:run@FILE"\n',
        'student = "resnet8"\nonline = true\n[runs.a]\nteacher = [["resnet8@FILE"], ["b=evil:run@FILE"]]\n',
    ],
)
def test_a_sweep_never_runs_code_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A TOML file from elsewhere may not choose what is imported from the current folder."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('proof').touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="names evil:run, code of your own, which is only imported when you name it"):
        planned(tmp_path, f'data = "digits"\n{text}')
    (tmp_path / "sweep.toml").write_text(f'data = "digits"\n{text}')
    assert CliRunner().invoke(main, ["sweep", "sweep.toml", "--out", "out"]).exit_code == 1
    assert not (tmp_path / "proof").exists()


class _Notes(SilentProgress):
    """Keeps what is said in passing."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def recipe(workshop: Workshop, tmp_path: Path) -> Path:
    tables = {
        "data": str(workshop.data),
        "cache": str(workshop.cache),
        "student": "resnet8",
        "epochs": 2,
        "batch_size": 16,
        "precision": "float32",
        "seed": [0, 1],
        "runs": {"plain": {"method": "kd"}, "sure": {"method": "dkd", "nckd_weight": [2.0], "online": False}},
    }
    path = tmp_path / "sweep.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def test_a_sweep_is_every_combination(recipe: Path, tmp_path: Path) -> None:
    runs = plan(recipe, tmp_path / "out")
    assert [run.folder.name for run in runs] == [
        "plain-seed0",
        "plain-seed1",
        "sure-seed0-nckd_weight2.0",
        "sure-seed1-nckd_weight2.0",
    ]
    assert runs[3].options["seed"] == 1
    assert "--online" not in runs[3].command()


@pytest.mark.slow
def test_a_sweep_may_turn_switches_off_and_ask_live_teachers(workshop: Workshop, recipe: Path, tmp_path: Path) -> None:
    """Independent views beside a cache's, and one option that is on unless it is turned off."""
    teachers = list(workshop.teachers().values())
    tables = tomllib.loads(recipe.read_text()) | {"seed": 0, "epochs": 1, "nesterov": False}
    cache = tables.pop("cache")
    lines = {"cached": {"cache": cache}, "live": {"online": True, "teacher": teachers, "views": [5, "random"]}}
    recipe.write_text(tomli_w.dumps(tables | {"method": "kd", "runs": lines}))
    runs = plan(recipe, tmp_path / "out")
    run_sweep(runs, jobs=1, progress=SilentProgress())
    made = {run.folder.name: tomllib.loads((run.folder / "recipe.toml").read_text()) for run in runs}
    assert {name: (table["online"], table["views"], table["nesterov"]) for name, table in made.items()} == {
        "cached": (False, 5, False),
        "live-views5": (True, 5, False),
        "live-viewsrandom": (True, "random", False),
    }


@pytest.mark.slow
def test_a_sweep_interrupted_and_resumed_gives_the_same_table(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    whole = json.loads(cli("sweep", recipe, "--out", out, "--jobs", 2, "--format", "json").stdout)
    assert [group["seeds"] for group in whole["groups"]] == [[0, 1], [0, 1]]
    kept = (out / "plain-seed0" / "student.safetensors").stat().st_mtime_ns
    shutil.rmtree(out / "plain-seed1")
    (out / "sure-seed0-nckd_weight2.0" / "student.safetensors").unlink()
    again = json.loads(cli("sweep", recipe, "--out", out, "--format", "json").stdout)
    assert again == whole
    assert (out / "plain-seed0" / "student.safetensors").stat().st_mtime_ns == kept, "finished runs are left alone"
    compared = cli("compare", *sorted(out.iterdir()), "--baseline", out / "plain-seed0", "--format", "markdown").stdout
    assert re.search(r"\| \**dkd .*\| [+-]\d+\.\d\d ", compared.replace("**", ""))


@pytest.mark.slow
def test_a_changed_sweep_does_not_pass_old_runs_off_as_its_own(recipe: Path, tmp_path: Path) -> None:
    """The same folder, another temperature: the run that is there is named with both values, and kept."""
    one = plan(recipe, tmp_path / "out")[:1]
    run_sweep(one, jobs=1, progress=SilentProgress())
    assert one[0].finished
    recipe.write_text(f"temperature = 2.0\n{recipe.read_text()}")
    changed = plan(recipe, tmp_path / "out")[:1]
    assert not changed[0].finished
    with pytest.raises(SweepError, match=r"1 of 1 runs failed .*temperature was 4\.0 and is 2\.0"):
        run_sweep(changed, jobs=1, progress=SilentProgress())


def test_a_failed_run_is_named_and_does_not_stop_the_others(recipe: Path, tmp_path: Path) -> None:
    tables = tomllib.loads(recipe.read_text()) | {"seed": 0, "epochs": 1}
    recipe.write_text(tomli_w.dumps(tables | {"runs": {"bad": {"method": "magic"}, "good": {"method": "kd"}}}))
    bad, other = plan(recipe, tmp_path / "out")
    with pytest.raises(SweepError, match=r"1 of 2 runs failed \(bad\); the first said: .*no method 'magic'"):
        run_sweep([bad, other], jobs=1, progress=(notes := _Notes()))
    assert other.finished
    top1 = json.loads((other.folder / "metrics.jsonl").read_text().splitlines()[-1])["test_top1"]
    assert notes.texts == [f"{bad.folder}: failed", f"{other.folder}: test top-1 {top1:.2%}"]


def test_lists_alone_are_a_sweep_and_an_empty_table_of_runs_is_none(tmp_path: Path) -> None:
    runs = planned(tmp_path, 'data = "digits"\nmethod = ["kd", "dkd"]\nseed = [0, 1]\n')
    assert [(run.options["method"], run.options["seed"]) for run in runs] == [
        (method, seed) for method in ("kd", "dkd") for seed in (0, 1)
    ]
    with pytest.raises(SweepError, match=r"has no runs: give each line of the comparison a table \[runs\.NAME\]"):
        planned(tmp_path, 'data = "digits"\n[runs]\n')


def leaving_one_out(folder: Path, workshop: Workshop, **options: object) -> list[SweepRun]:
    tables = {"data": str(workshop.data), "cache": str(workshop.cache), "student": "resnet8", "seed": [0, 1], **options}
    (folder / "sweep.toml").write_text(tomli_w.dumps({name: value for name, value in tables.items() if value != ""}))
    return plan_sweep(folder / "sweep.toml", folder / "out", KNOWN, leave_one_out=True)


def test_one_teacher_is_left_out(workshop: Workshop, tmp_path: Path) -> None:
    """All teachers and each set without one, with every seed; among those that the file names."""
    names = sorted(workshop.teachers())
    runs = leaving_one_out(tmp_path, workshop)
    sets = [set(names), *({*names} - {left} for left in names)]
    assert len(runs) == len({run.folder for run in runs}) == 8
    assert [({*run.options["teachers"]}, run.options["seed"]) for run in runs if run.options["seed"] == 0] == [
        (some, 0) for some in sets
    ]
    for chosen in (names[:2], ",".join(names[:2])):
        two = leaving_one_out(tmp_path, workshop, teachers=chosen, seed=0)
        assert sorted(sorted(run.options["teachers"]) for run in two) == [names[:1], names[:2], names[1:2]]
    for wrong, why in (
        ({"cache": ""}, "names no cache"),
        ({"teachers": 3}, "has teachers = 3: give names"),
        ({"teachers": names[:1]}, rf"has one teacher \({names[0]}\): nothing can be left out"),
    ):
        with pytest.raises(SweepError, match=why):
            leaving_one_out(tmp_path, workshop, **wrong)


def test_options_that_are_lists_are_tried_as_lists(tmp_path: Path) -> None:
    """Joined by commas as in a recipe, in the folder too; the flag comes again only where the command line takes it."""
    runs = planned(
        tmp_path,
        """
        [runs.a]
        teachers = [["resnet8", "vgg8"], ["wrn_16_1"]]
        fixed_weights = [[0.5, 0.25]]
        [runs.live]
        teacher = ["a=x", "b=y"]
        normalise = [["a=cifar10", "b=imagenet"], "cifar100"]
        nesterov = [true, false]
        """,
    )
    assert [run.folder.name for run in runs] == [
        "a-teachersresnet8,vgg8-fixed_weights0.5,0.25",
        "a-teacherswrn_16_1-fixed_weights0.5,0.25",
        "live-normalisea=cifar10,b=imagenet-nesterovTrue",
        "live-normalisea=cifar10,b=imagenet-nesterovFalse",
        "live-normalisecifar100-nesterovTrue",
        "live-normalisecifar100-nesterovFalse",
    ]
    teachers = "--teacher a=x --teacher b=y"
    assert [" ".join(runs[place].words) for place in (0, 1, 2, 5)] == [
        "--teachers resnet8,vgg8 --fixed-weights 0.5,0.25",
        "--teachers wrn_16_1 --fixed-weights 0.5,0.25",
        f"{teachers} --normalise a=cifar10 --normalise b=imagenet --nesterov",
        f"{teachers} --normalise cifar100 --no-nesterov",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[runs.a]\nnckd_wieght = 2",
            r"\[runs\.a\] has an unknown option 'nckd_wieght'; known are batch_size, batch_weight, cache,",
        ),
        ("[runs.a]\nonlin = false", r"\[runs\.a\] has an unknown option 'onlin'"),
        ("[run.a]\nseed = 1\n[runs.b]", r"\[runs\.b\] has an unknown option 'run'"),
        ("[runs.a]\nonline = 'yes'", r"\[runs\.a\] has online = 'yes': give true or false"),
        ("[runs.a]\nonline = [true, 1]", r"\[runs\.a\] has online = \[True, 1\]: give true or false"),
        ("[runs.a]\nseed = true", r"\[runs\.a\] has seed = True: give a text or a number"),
        ("[runs.a]\nseed = {x = 1}", r"has seed = \{'x': 1\}: give a text or a number"),
        ("seed = []\n[runs.a]", r"\[runs\.a\] has seed = \[\]: give a text or a number"),
        ("[runs.a]\nteacher = []", r"\[runs\.a\] has teacher = \[\]"),
        ("[runs.a]\nteachers = [['x'], []]", r"\[runs\.a\] has teachers = \[\['x'\], \[\]\]"),
        *((f"[runs.a]\n{own} = 'x'", f"option '{own}', which is not for a sweep") for own in ("out", "recipe", "json")),
        ("[runs.a]\nas_json = false", "option 'as_json', which is not for a sweep to choose: remove it"),
        ("[runs.a]\nquiet = true", "option 'quiet', which is not for a sweep to choose: remove it"),
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
    with pytest.raises(SweepError, match=said):
        planned(tmp_path, text)


def test_a_baseline_is_a_table_or_a_folder_or_left_to_the_comparison(tmp_path: Path) -> None:
    text = "seed = [0, 1]\n[runs.kd]\n[runs.both]\nmethod = ['ce', 'dkd']\n"
    runs = planned(tmp_path, text)
    assert find_baseline(runs, "kd") == runs[0]
    assert find_baseline(runs, "kd-seed1") == runs[1]
    assert find_baseline(runs, os.path.relpath(runs[1].folder)) == runs[1]
    assert find_baseline(runs, "dkd") is None
    with pytest.raises(
        SweepError, match=r"\[runs\.both\] has .*: choose a --baseline of both-seed0-methodce, both-seed0-m"
    ):
        find_baseline(runs, "both")


@pytest.mark.parametrize("path", sorted((CHECKOUT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_recipes_and_their_baselines_are_understood(path: Path) -> None:
    """As their headers call them; a group's name, which only finished runs have, is a method here."""
    line = re.search(r"^# +demkd sweep (.*)$", path.read_text(), re.MULTILINE)
    if line is None:
        pytest.skip("a recipe of one run")
    given = main.commands["sweep"].make_context("sweep", shlex.split(line[1])).params
    runs = plan(CHECKOUT / given["recipe"], given["out"])
    assert path == CHECKOUT / given["recipe"]
    baseline = given["baseline"]
    assert baseline is None or find_baseline(runs, baseline) or baseline in [run.options["method"] for run in runs]
    for run in runs:
        options = main.commands["distill"].make_context("distill", [*run.words, "--out", "run"]).params
        chosen = {name: options[name] for name in MethodOptions.__annotations__}
        assert resolve_method(options["method"], chosen).name == run.options["method"], "its options fit each other"


@pytest.mark.slow
def test_runs_that_turn_out_to_be_the_same_are_shown_once(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    """And may be the baseline, by any of their names."""
    tables = tomllib.loads(recipe.read_text()) | {"epochs": 1, "seed": 0, "method": "kd"}
    lines = {"usual": {}, "said": {"temperature": 4.0}, "cold": {"temperature": 1.0}}
    recipe.write_text(tomli_w.dumps(tables | {"runs": lines}))
    out = tmp_path / "out"
    result = cli("sweep", recipe, "--out", out, "--baseline", "said", "--format", "json")
    compared = json.loads(result.stdout)
    assert [group["seeds"] for group in compared["groups"]] == [[0], [0]]
    assert compared["baseline"] == compared["groups"][0]["name"]
    assert f"are shown once: {out / 'said'} and {out / 'usual'}" in result.stderr


@pytest.mark.slow
def test_a_run_is_told_and_remembered_when_it_is_done(recipe: Path, tmp_path: Path) -> None:
    """And not when all before it are."""
    tables = tomllib.loads(recipe.read_text()) | {"seed": 0, "method": "kd"}
    recipe.write_text(tomli_w.dumps(tables | {"runs": {"long": {"epochs": 40}, "short": {"epochs": 1}}}))
    long, short = plan(recipe, tmp_path / "out")
    seen = []

    class Watch(_Notes):
        def note(self, text: str) -> None:
            super().note(text)
            seen.append((short.finished, long.finished))

    run_sweep([long, short], jobs=2, progress=(watch := Watch()))
    assert [text.partition(":")[0] for text in watch.texts] == [str(short.folder), str(long.folder)]
    assert seen == [(True, False), (True, True)]


def wait_until(condition: Callable[[], bool], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def start_sweep(recipe: Path, out: Path) -> "subprocess.Popen[bytes]":
    """Start a sweep of two jobs, and wait until both have trained an epoch."""
    command = [sys.executable, CHECKOUT / "cli.py", "sweep", recipe, "--out", out, "--jobs", "2", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)
    metrics = [run.folder / "metrics.jsonl" for run in plan(recipe, out)[:2]]
    wait_until(lambda: all(file.exists() and file.stat().st_size for file in metrics), 120, "the runs do not start")
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_ended_leaves_no_process_behind(number: int, recipe: Path, tmp_path: Path) -> None:
    """Only the sweep's own process is told; its runs would go on for hours, a line of metrics at a time."""
    tables = tomllib.loads(recipe.read_text()) | {"epochs": 100_000}
    recipe.write_text(tomli_w.dumps(tables))
    with start_sweep(recipe, tmp_path / "out") as process:
        process.send_signal(number)
        assert process.wait(30) == {signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(number)]
    metrics = [run.folder / "metrics.jsonl" for run in plan(recipe, tmp_path / "out")[:2]]
    lengths = [file.stat().st_size for file in metrics]
    time.sleep(2)
    assert [file.stat().st_size for file in metrics] == lengths
    assert not (metrics[0].parent / OPTIONS_FILE).exists()


@pytest.mark.slow
def test_the_runs_of_a_killed_sweep_end_and_go_on_when_it_is_called_again(
    recipe: Path, tmp_path: Path, cli: Cli
) -> None:
    """SIGKILL: the sweep can end nothing itself. A run's lock is free when its process is gone."""
    epochs = 100
    recipe.write_text(tomli_w.dumps(tomllib.loads(recipe.read_text()) | {"epochs": epochs, "seed": 0}))
    runs = plan(recipe, tmp_path / "out")
    with start_sweep(recipe, tmp_path / "out") as process:
        assert all(map(is_busy, runs))
        process.kill()
        process.wait(5)
        wait_until(lambda: not any(map(is_busy, runs)), 5, "the runs go on without their sweep")
    trained = [len(run.metrics.read_bytes().splitlines()) for run in map(RunFolder, (run.folder for run in runs))]
    assert all(0 < count < epochs for count in trained), "they were killed half-way"
    shown = json.loads(cli("sweep", recipe, "--out", tmp_path / "out", "--format", "json").stdout)
    assert [group["seeds"] for group in shown["groups"]] == [[0], [0]]
    for run in runs:
        assert [line["epoch"] for line in RunFolder(run.folder).read_metrics()] == list(range(1, epochs + 1))


def is_busy(run: SweepRun) -> bool:
    """Whether a process is at a run."""
    try:
        with exclusive(run.folder / "run"):
            return False
    except CacheBusyError:
        return True


def test_a_run_is_started_wherever_the_sweep_is_and_whatever_lies_there(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    """Its modules are those of the sweep's own process, not files of the current folder that have their names."""
    (tmp_path / "demkd.py").write_text("raise SystemExit('a file of the user')")
    (tmp_path / "torch.py").write_text("raise SystemExit('a file of the user')")
    tables = tomllib.loads(recipe.read_text()) | {"seed": 0, "epochs": 1, "runs": {"only": {"method": "kd"}}}
    recipe.write_text(tomli_w.dumps(tables))
    cli("sweep", recipe, "--out", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "only" / OPTIONS_FILE).exists()
