"""A sweep makes what is missing, one folder a run, and ends in the same table however often it was interrupted."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w

from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.sweeping import SweepError, SweepRun, plan_sweep, run_sweep
from tests.conftest import Cli
from tests.pipeline.stages import TEACHERS, Workshop


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
    runs = plan_sweep(recipe, tmp_path / "out")
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
    teachers = [str(workshop.spec(network).checkpoint) for network in TEACHERS]
    tables = tomllib.loads(recipe.read_text()) | {"seed": 0, "epochs": 1, "nesterov": False}
    cache = tables.pop("cache")
    lines = {"cached": {"cache": cache}, "live": {"online": True, "teacher": teachers, "views": [5, "random"]}}
    recipe.write_text(tomli_w.dumps(tables | {"method": "kd", "runs": lines}))
    runs = plan_sweep(recipe, tmp_path / "out")
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
    one = plan_sweep(recipe, tmp_path / "out")[:1]
    run_sweep(one, jobs=1, progress=SilentProgress())
    assert one[0].finished
    recipe.write_text(f"temperature = 2.0\n{recipe.read_text()}")
    changed = plan_sweep(recipe, tmp_path / "out")[:1]
    assert not changed[0].finished
    with pytest.raises(SweepError, match=r"1 of 1 runs failed .*temperature was 4\.0 and is 2\.0"):
        run_sweep(changed, jobs=1, progress=SilentProgress())


def test_a_failed_run_is_named_and_does_not_stop_the_others(recipe: Path, tmp_path: Path) -> None:
    good, other, *_ = plan_sweep(recipe, tmp_path / "out")
    bad = SweepRun(folder=tmp_path / "bad", options={**good.options, "method": "magic"})
    with pytest.raises(SweepError, match=r"1 of 2 runs failed \(bad\); the first said: .*no method 'magic'"):
        run_sweep([bad, other], jobs=1, progress=(notes := _Notes()))
    assert other.finished
    top1 = json.loads((other.folder / "metrics.jsonl").read_text().splitlines()[-1])["test_top1"]
    assert notes.texts == [f"{bad.folder}: failed", f"{other.folder}: test top-1 {top1:.2%}"]


def test_a_sweep_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("data = 'digits'\n")
    with pytest.raises(SweepError, match=r"has no runs: give each line of the comparison a table \[runs\.NAME\]"):
        plan_sweep(tmp_path / "empty.toml", tmp_path)
