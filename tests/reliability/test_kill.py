"""SIGKILL at any moment: what is there opens, and the same command ends with the bytes of an uninterrupted run."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from demkd.cache import Cache, CacheError, CacheIncompleteError, CacheMissingError, TeacherFile, open_cache
from demkd.cache.integrity import DAMAGED, verify_cache
from tests.reliability.conftest import Command, Outcome, Run, attempt, contents, outcome_of_run

_SLOW_KILLS = 60


Whole = tuple[dict[str, bytes], list[Outcome]]


def steps(caching: Command, out: Path) -> list[list[object]]:
    """A cache, which then grows in views and in features."""
    return [caching(out, views=6, features="none"), caching(out, views=20)]


def run_all(run: Run, commands: Sequence[Sequence[object]]) -> list[Outcome]:
    return [run(*command, code=0) for command in commands]


def require_readable(folder: Path) -> None:
    """After a kill, every file opens; finished ones are whole, started ones say how far they are."""
    for file in [*folder.glob("[ab].h5"), *folder.glob("[ab].h5.partial")]:
        cached = TeacherFile(file)
        assert cached.is_partial or cached.is_whole()
        assert 0 <= cached.progress() <= 1
    opened = attempt(lambda: open_cache(folder))
    assert isinstance(opened, Cache | CacheIncompleteError | CacheMissingError), opened


def require_whole(folder: Path, *, views: int) -> None:
    """While it grows, a cache goes on being what it was."""
    with open_cache(folder) as cache:
        assert cache.names == ("a", "b")
        assert cache.num_views >= views
        for slot in range(views):
            assert len(cache.logits(slot, slice(None), temperature=1.0)) == 2


@pytest.fixture(scope="module")
def uninterrupted(run: Run, caching: Command, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The files of a run that nobody killed, and how long its steps took."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "cache"
    outcomes = run_all(run, steps(caching, folder))
    return contents(folder), outcomes


def kill_and_finish(
    run: Run, command: Sequence[object], folder: Path, chance: random.Random, *, kills: int, whole: int, seconds: float
) -> int:
    """Kill a step at random moments until it ends or enough kills were tried; how many there were."""
    killed = 0
    while killed < kills:
        outcome = run(*command, kill_after=chance.uniform(0, seconds))
        if outcome.code == 0:
            return killed
        assert outcome.code == -9
        killed += 1
        require_readable(folder)
        if whole:
            require_whole(folder, views=whole)
    run(*command, code=0)
    return killed


@pytest.mark.parametrize(
    ("seed", "each", "least"), [(1, 2, 1), pytest.param(2, 4, _SLOW_KILLS, marks=pytest.mark.slow)]
)
def test_a_stage_one_killed_at_random_moments_goes_on_to_the_same_bytes(
    run: Run, caching: Command, tmp_path: Path, uninterrupted: Whole, seed: int, each: int, least: int
) -> None:
    """Every round makes a cache and lets it grow, killed again and again, and ends with the same bytes."""
    expected, outcomes = uninterrupted
    chance = random.Random(seed)
    killed = rounds = 0
    while killed < least:
        folder = tmp_path / f"round{rounds}"
        for number, command in enumerate(steps(caching, folder)):
            seconds = outcomes[number].seconds
            killed += kill_and_finish(run, command, folder, chance, kills=each, whole=6 * number, seconds=seconds)
        assert contents(folder) == expected
        assert verify_cache(folder).sound
        rounds += 1
    print(f"{killed} kills")  # noqa: T201 - `pytest -rP` shows it


def sweep(run: Run, command: Sequence[object], folder: Path, calls: Sequence[int], *, whole: int) -> int:
    """Kill a command at one call after the other that changes a file, going on each time; how many kills."""
    killed = 0
    for call in calls:
        outcome = run(*command, kill_at=call)
        assert outcome.code in (0, -9)
        killed += outcome.code == -9
        require_readable(folder)
        if whole:
            require_whole(folder, views=whole)
    return killed


def test_every_kind_of_write_may_be_the_last_one(
    run: Run, caching: Command, tmp_path: Path, uninterrupted: Whole
) -> None:
    """Kills at the first calls, where files are created, with torn writes; resumed runs start there again."""
    expected, outcomes = uninterrupted
    for number, command in enumerate(steps(caching, tmp_path)):
        assert sweep(run, command, tmp_path, range(2, 23, 5), whole=6 * number) >= 4
        run(*command, code=0)
    assert contents(tmp_path) == expected
    assert outcomes[0].calls > 23


@pytest.mark.slow
def test_no_call_of_stage_one_is_a_bad_moment_to_die(
    run: Run, caching: Command, tmp_path: Path, uninterrupted: Whole
) -> None:
    """A fresh cache killed at every third call of the first step, a grown one at every eleventh of the second."""
    expected, outcomes = uninterrupted
    first = caching(tmp_path / "cache", views=6, features="none")
    run(*first, code=0)
    kept = contents(tmp_path / "cache")
    killed = 0
    for call in range(1, outcomes[0].calls, 3):
        folder = tmp_path / f"first{call}"
        command = caching(folder, views=6, features="none")
        killed += sweep(run, command, folder, [call], whole=0)
        run(*command, code=0)
        assert contents(folder) == kept
    for call in range(1, outcomes[1].calls, 11):
        folder = tmp_path / f"second{call}"
        folder.mkdir()
        for name, data in kept.items():
            (folder / name).write_bytes(data)
        command = caching(folder, views=20)
        killed += sweep(run, command, folder, [call], whole=6)
        run(*command, code=0)
        assert contents(folder) == expected
    print(f"{killed} kills")  # noqa: T201 - `pytest -rP` shows it
    assert killed > 60


def test_a_killed_student_goes_on_to_the_same_bytes(run: Run, distilling: Command, tmp_path: Path) -> None:
    """At the start; in the middle of a line of metrics; between metrics and checkpoint; in mid-checkpoint."""
    run(*distilling(tmp_path / "whole", epochs=6), code=0)
    command = distilling(tmp_path / "killed", epochs=6)
    for call in (3, 9, 11, 18):
        assert run(*command, kill_at=call).code == -9
    run(*command, code=0)
    assert outcome_of_run(tmp_path / "killed") == outcome_of_run(tmp_path / "whole")


@pytest.mark.slow
def test_a_student_survives_many_kills(run: Run, distilling: Command, tmp_path: Path) -> None:
    """At random moments, then at every call that changes a file."""
    whole = run(*distilling(tmp_path / "whole", epochs=6), code=0)
    expected = outcome_of_run(tmp_path / "whole")
    chance = random.Random(4)
    killed = 0
    for number in range(8):
        command = distilling(tmp_path / f"random{number}", epochs=6)
        killed += sum(run(*command, kill_after=chance.uniform(0, whole.seconds)).code == -9 for _ in range(3))
        run(*command, code=0)
        assert outcome_of_run(tmp_path / f"random{number}") == expected
    for call in range(1, whole.calls + 1):
        command = distilling(tmp_path / f"call{call}", epochs=6)
        killed += run(*command, kill_at=call).code == -9
        run(*command, code=0)
        assert outcome_of_run(tmp_path / f"call{call}") == expected
    print(f"{killed} kills")  # noqa: T201 - `pytest -rP` shows it
    assert killed >= 50


def test_a_finished_student_is_left_as_it_is(run: Run, distilling: Command, tmp_path: Path) -> None:
    command = distilling(tmp_path, epochs=2)
    run(*command, code=0)
    before = outcome_of_run(tmp_path)
    run(*command, code=0)
    assert outcome_of_run(tmp_path) == before


def test_a_cache_killed_in_mid_write_is_unfinished_and_not_damaged(run: Run, caching: Command, tmp_path: Path) -> None:
    """What `verify` says of a torn file: started, so many per cent, nothing wrong with the rest."""
    command = caching(tmp_path, views=6, features="none")
    run(*command, kill_at=40)
    verdicts = [file.verdict for file in verify_cache(tmp_path).files]
    assert verdicts
    assert DAMAGED not in verdicts
    with pytest.raises(CacheError):
        open_cache(tmp_path, ["a", "b"])
