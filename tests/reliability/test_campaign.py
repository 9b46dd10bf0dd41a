"""The campaign of kills and spoilt files: a few of each scenario, and that it says so when one goes wrong."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability.campaign import main
from tests.reliability.conftest import Outcome, examiner
from tests.reliability.kill_scenarios import KillScenario, kill
from tests.reliability.mutation_scenarios import MutationScenario, mutate
from tests.reliability.test_hostile_files import write_pristine

KILLED = (
    "cache",
    "growing cache",
    "photos: manifest",
    "student",
    "student of photos",
    "merge of shards",
    "by two processes",
)
SPOILT = ("dense cache", "shards", "records and top-k", "checkpoint", "manifest")


def test_every_scenario_holds_for_a_few(capsys: pytest.CaptureFixture[str]) -> None:
    """But that of torchrun, which starts processes for seconds: `test_kill_processes` has a few of it."""
    assert main(["--kills", "5", "--mutations", "12", "--seed", "1", "--only", *KILLED, *SPOILT]) == 0
    table = capsys.readouterr().out
    for what, names in (("SIGKILL", KILLED), ("spoilt", SPOILT)):
        for name in names:
            assert [line for line in table.splitlines() if line.startswith(f"| {what} |") and name in line]
    assert "torchrun" not in table
    assert "\n0 failures, " in table


def test_what_is_read_as_something_else_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "pristine").mkdir()
    pristine = write_pristine(tmp_path / "pristine")
    scenario = MutationScenario(
        name="x", pristine=pristine, kind="cache", expected="another digest", files=("a.h5",), ways=[_leave]
    )
    (tmp_path / "case").mkdir()
    with examiner() as examine:
        with pytest.raises(AssertionError, match="failure: read as"):
            mutate(scenario, examine, tmp_path / "case", random.Random(0))
        assert mutate(replace(scenario, kind="counting"), examine, tmp_path / "case", random.Random(0)) == "correct"


def test_other_bytes_after_a_kill_are_a_failure(tmp_path: Path) -> None:
    """Here an outcome that is never the same, the name of its folder, of a command that does nothing."""

    def run(*_: object, **__: object) -> Outcome:
        return Outcome(code=0, seconds=0.1, calls=1, stdout="", stderr="")

    scenario = KillScenario(
        name="x", commands=lambda _data, _out: [[]], outcome=lambda folder: folder.name, data=tmp_path
    )
    with pytest.raises(AssertionError, match="other bytes than of an uninterrupted run"):
        kill(scenario, run, tmp_path, random.Random(0), {})


def _leave(_path: Path, _chance: random.Random) -> None:
    """No harm done."""
