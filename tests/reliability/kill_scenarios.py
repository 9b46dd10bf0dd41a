"""What the campaign kills: every stage on every kind of data, alone and by several processes.

A scenario is a command and what it leaves: SIGKILL at random moments, or at the n-th call that changes a file, up to
three times; then the same command must end with the bytes of an uninterrupted run. To add one is an entry of the list
in `kill_scenarios`; where several processes are at work, a function of `kill_cases`.
"""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import counting_picture
from tests.dataset.photos import write_photos
from tests.reliability import test_kill_photos as of_photos
from tests.reliability import test_kill_processes as of_ranks
from tests.reliability.conftest import (
    Run,
    Together,
    caching,
    contents,
    distilling,
    one_by_one,
    outcome_of_run,
    write_teacher,
)
from tests.reliability.sharing import files, kill_either, sharded
from tests.reliability.sharing import write_pictures as write_blocks
from tests.reliability.sharing import write_teachers as write_tiny_teachers

_KILLS_A_CASE = 3
_EPOCHS_OF_RANKS = 20

KillCase = Callable[[Path, random.Random], int]  # a folder, chance -> how many kills it was


@dataclass(frozen=True, kw_only=True, slots=True)
class KillScenario:
    """What is killed.

    Attributes:
        commands: what makes a folder; all but the last are run before the kills.
        outcome: what must be as if nothing had happened.
        data: their pictures; `copied` for each case, so that the first look at them is killed as well.
    """

    name: str
    commands: Callable[[Path, Path], Sequence[Sequence[object]]]
    outcome: Callable[[Path], Any]
    data: Path
    copied: bool = False


def kill_scenarios(place: Path, run: Run) -> list[KillScenario]:
    """Every stage on every kind of data; what others need is made here, uninterrupted."""
    pictures, photos, teachers = place / "pictures", place / "data" / "photos", place / "teachers"
    blocks, tiny = place / "blocks", place / "tiny-teachers"
    _write_pictures(pictures)
    write_photos(photos, per_class=8)
    teachers.mkdir()
    for seed, name in enumerate("ab"):
        write_teacher(teachers / f"{name}.safetensors", seed=seed)
    write_blocks(blocks)
    tiny.mkdir()
    write_tiny_teachers(tiny)
    cache, of_records = place / "cache", place / "photo-cache"
    run(*caching(pictures, teachers, cache, views=4, features="last"), code=0)
    run(*of_photos.caching(photos, teachers, of_records), code=0)

    def small(data: Path, out: Path, views: int, features: str) -> list[object]:
        return caching(data, teachers, out, views=views, features=features)

    return [
        KillScenario(
            name="cache",
            commands=lambda data, out: [small(data, out, 6, "none")],
            outcome=contents,
            data=pictures,
        ),
        KillScenario(
            name="growing cache",
            commands=lambda data, out: [small(data, out, 6, "none"), small(data, out, 20, "last")],
            outcome=contents,
            data=pictures,
        ),
        KillScenario(
            name="photos: manifest, records, top-k",
            commands=lambda data, out: [of_photos.caching(data, teachers, out, workers=1)],
            outcome=contents,
            data=photos,
            copied=True,  # a place of its own, so that its manifest is made anew
        ),
        KillScenario(
            name="student",
            commands=lambda data, out: [distilling(data, cache, out, epochs=6)],
            outcome=outcome_of_run,
            data=pictures,
        ),
        KillScenario(
            name="student of photos",
            commands=lambda data, out: [of_photos.distilling(data, of_records, out)],
            outcome=outcome_of_run,
            data=photos,
        ),
        KillScenario(
            name="merge of shards",
            commands=lambda data, out: [sharded(data, tiny, out, "--shards", 3), ["merge", "--quiet", out]],
            outcome=files,
            data=blocks,
        ),
    ]


def kill_cases(place: Path, together: Together, environment: Mapping[str, str]) -> dict[str, KillCase]:
    """What makes a case of each scenario, those of several processes among them."""
    run = one_by_one(together)
    known: dict[str, Any] = {}
    cases: dict[str, KillCase] = {one.name: partial(kill, one, run, known=known) for one in kill_scenarios(place, run)}

    def either_of_two(folder: Path, chance: random.Random) -> int:
        def command(out: Path) -> list[object]:
            return sharded(place / "blocks", place / "tiny-teachers", out, "--shards", 3)

        if "shards" not in known:
            whole = together([{"arguments": command(folder / "whole")}] * 2)
            known["shards"] = (files(folder / "whole"), whole)
        expected, whole = known["shards"]
        killed = kill_either(together, command(folder / "out"), folder / "out", chance, whole)
        assert files(folder / "out") == expected, "other bytes than of two that nobody killed"
        return killed

    def a_rank(folder: Path, chance: random.Random) -> int:
        def command(out: Path) -> list[object]:
            return of_ranks.training(place / "pictures", place / "cache", out, epochs=_EPOCHS_OF_RANKS)

        if "ranks" not in known:
            of_ranks.to_the_end(command(folder / "whole"), **environment)
            known["ranks"] = outcome_of_run(folder / "whole")
        out = folder / "out"
        killed = of_ranks.kill_some(
            command(out), out, chance, kills=_KILLS_A_CASE, epochs=_EPOCHS_OF_RANKS, **environment
        )
        assert outcome_of_run(out) == known["ranks"], "another student than that of ranks that nobody killed"
        return killed

    return {**cases, "shards by two processes": either_of_two, "torchrun: a rank of two": a_rank}


def kill(scenario: KillScenario, run: Run, folder: Path, chance: random.Random, known: dict[str, Any]) -> int:
    """One case; how many kills it was. Raises AssertionError if it did not end as an uninterrupted run."""
    if scenario.name not in known:
        *_, last = [run(*command, code=0) for command in scenario.commands(scenario.data, folder / "whole")]
        known[scenario.name] = (scenario.outcome(folder / "whole"), last.calls, last.seconds)
    expected, calls, seconds = known[scenario.name]
    data = Path(shutil.copytree(scenario.data, folder / "photos")) if scenario.copied else scenario.data
    *before, command = scenario.commands(data, folder / "out")
    for earlier in before:
        run(*earlier, code=0)
    killed = 0
    for _ in range(_KILLS_A_CASE):
        how = {"kill_at": chance.randint(1, max(calls, 1))} if chance.random() < 0.5 else {}
        outcome = run(*command, **(how or {"kill_after": chance.uniform(0, seconds)}))
        assert outcome.code in (0, -9), f"exit code {outcome.code}: {outcome.stderr}"
        killed += outcome.code == -9
    run(*command, code=0)
    assert scenario.outcome(folder / "out") == expected, "other bytes than of an uninterrupted run"
    return killed


def _write_pictures(folder: Path) -> None:
    for split, count in (("train", 20), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.asarray(counting_picture(label, number))).save(
                    folder / split / name / f"{number}.png"
                )
