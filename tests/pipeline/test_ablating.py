"""An ablation is a student of every set of teachers and seed; interrupted and resumed, it ends in the same table."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from demkd.cli import main
from demkd.commands.comparing import sweep_options
from demkd.pipeline.ablating import plan_ablation, set_of
from demkd.pipeline.sweeping import SweepError
from demkd.report.ablation import subsets
from tests.conftest import CHECKOUT, Cli
from tests.pipeline.stages import Workshop

KNOWN = sweep_options(main.commands["distill"])


def write(folder: Path, workshop: Workshop, **options: Any) -> Path:
    tables = {
        "data": str(workshop.data),
        "cache": str(workshop.cache),
        "student": "resnet8",
        "method": "kd",
        "epochs": 1,
        "batch_size": 16,
        "precision": "float32",
        "seed": [0, 1],
    }
    path = folder / "ablation.toml"
    path.write_text(tomli_w.dumps({name: value for name, value in {**tables, **options}.items() if value is not None}))
    return path


def all_sets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return subsets(names, leave_one_out=False)


def test_every_set_and_seed_is_a_run(workshop: Workshop, tmp_path: Path) -> None:
    teachers, runs = plan_ablation(write(tmp_path, workshop), tmp_path / "out", KNOWN, all_sets)
    assert len(teachers) == 3
    assert {(set_of(run), run.options["seed"]) for run in runs} == {
        (frozenset(some), seed) for some in all_sets(teachers) for seed in (0, 1)
    }
    assert len({run.folder for run in runs}) == 14
    some = next(run for run in runs if set_of(run) == frozenset(teachers[:2]))
    assert some.words[some.words.index("--teachers") + 1] == ",".join(teachers[:2])


@pytest.mark.parametrize("written", [list, ",".join])
def test_some_teachers_may_be_chosen(workshop: Workshop, tmp_path: Path, written: Any) -> None:
    two = sorted(workshop.teachers())[:2]
    teachers, runs = plan_ablation(write(tmp_path, workshop, teachers=written(two)), tmp_path, KNOWN, all_sets)
    assert teachers == tuple(two)
    assert len(runs) == 6


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"runs": {"a": {"method": "kd"}}}, "has tables .*, and an ablation has one setting"),
        ({"method": ["kd", "dkd"]}, "gives method several values, and an ablation has one setting: choose one"),
        ({"cache": None}, "names no cache: an ablation is of a cache's teachers"),
        ({"teachers": 3}, "has teachers = 3: give the names"),
        ({"nosuch": 3}, "has an unknown option 'nosuch'"),
    ],
)
def test_what_is_no_ablation_is_refused(workshop: Workshop, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(SweepError, match=why):
        plan_ablation(write(tmp_path, workshop, **options), tmp_path / "out", KNOWN, all_sets)


@pytest.mark.parametrize("name", ["digits-ablation", "study-ablation"])
def test_the_recipes_of_ablations_are_understood(name: str, workshop: Workshop, tmp_path: Path) -> None:
    """With another cache, whose teachers are there."""
    tables = tomllib.loads((CHECKOUT / "recipes" / f"{name}.toml").read_text())
    recipe = write(tmp_path, workshop, **{**tables, "cache": str(workshop.cache), "teachers": None})
    _, runs = plan_ablation(recipe, tmp_path / "out", KNOWN, all_sets)
    assert len(runs) == 7 * 5


def test_one_teacher_cannot_be_left_out(workshop: Workshop, tmp_path: Path) -> None:
    one = sorted(workshop.teachers())[0]
    with pytest.raises(SweepError, match=rf"has one teacher \({one}\): nothing can be left out"):
        plan_ablation(write(tmp_path, workshop, teachers=[one]), tmp_path / "out", KNOWN, all_sets)


@pytest.mark.slow
def test_an_ablation_resumes_and_says_the_same(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    recipe, out = write(tmp_path, workshop), tmp_path / "out"
    arguments = ("ablate", recipe, "--out", out, "--subsets", "leave-one-out")
    whole = json.loads(cli(*arguments, "--jobs", 2, "--format", "json").stdout)
    assert [len(some["teachers"]) for some in whole["sets"]] == [2, 2, 2, 3]
    assert all(teacher["last_in"]["seeds"] == 2 for teacher in whole["teachers"])
    kept = sorted(out.iterdir())
    shutil.rmtree(kept[0])
    assert json.loads(cli(*arguments, "--format", "json").stdout) == whole
    text = cli(*arguments).stdout
    assert "all others" in text
    lines = cli(*arguments, "--format", "csv").stdout.splitlines()
    assert len(lines) == 4
    assert "adds on average" in cli(*arguments, "--format", "markdown").stdout
