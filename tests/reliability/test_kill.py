"""SIGKILL at any moment: what is there opens, and the same command ends with the bytes of an uninterrupted run."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from demkd.cache import Cache, CacheError, CacheIncompleteError, CacheMissingError, ShardFile, open_cache
from demkd.cache.verify import DAMAGED, verify_cache
from tests.reliability.campaign import main
from tests.reliability.conftest import Command, Run, attempt
from tests.reliability.fork_server import ForkServer
from tests.reliability.scenarios import KILLED, SPOILT, Kills, KillScenario, kill_scenarios


@pytest.fixture(scope="module")
def kills(
    server: ForkServer,
    picture_folder: Path,
    photos: Path,
    teachers: Path,
    pristine_cache: Path,
    photo_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Kills]:
    """The scenario of a name, after an uninterrupted run."""
    scenarios = kill_scenarios(picture_folder, photos, teachers, pristine_cache, photo_cache)
    known: dict[str, Kills] = {}

    def find(name: str) -> Kills:
        if name not in known:
            (scenario,) = (one for one in scenarios if one.name == name)
            known[name] = Kills(scenario, server, tmp_path_factory.mktemp("whole") / "out")
        return known[name]

    return find


def check_readable(folder: Path) -> None:
    """After a kill, every file opens; finished ones are whole, started ones show their progress."""
    for path in [*folder.glob("[ab].*.h5"), *folder.glob("[ab].*.partial")]:
        file = ShardFile(path)
        assert file.is_partial or all(blocks.all() for blocks in file.sound().values())
        assert 0 <= file.progress() <= 1
    opened = attempt(lambda: open_cache(folder))
    assert isinstance(opened, Cache | CacheIncompleteError | CacheMissingError), opened


def check_still_three_views(folder: Path) -> None:
    """While it grows, a cache remains what it was, with weights until all teachers have grown."""
    check_readable(folder)
    with open_cache(folder) as cache:
        assert cache.names == ("a", "b")
        assert cache.num_views >= 3
        for view in range(3):
            assert len(cache.logits(view, slice(None), temperature=1.0)) == 2
            assert cache.read_view(view).teacher_weights is not None or cache.num_views == 6


def check_checksums(folder: Path) -> None:
    """`SHA256SUMS` of a copy exists only while it is true."""
    check_readable(folder)
    if (folder / "SHA256SUMS").exists():
        assert verify_cache(folder).sound


CHECKS = {"cache": check_readable, "growing cache": check_still_three_views, "packed copy": check_checksums}


@pytest.mark.parametrize("name", ["growing cache", "cache of photos", "student", "packed copy"])
def test_a_killed_command_ends_with_the_same_bytes(kills: Callable[[str], Kills], tmp_path: Path, name: str) -> None:
    """One kill after the other: where files are created, in the middle, near the end, and at a random time."""
    scenario = kills(name)
    moments = [{"kill_at": max(int(scenario.calls * part), 2)} for part in (0.1, 0.5, 0.8)]
    moments.insert(2, {"kill_after": scenario.seconds * random.Random(name).uniform(0.3, 0.9)})
    assert scenario.kill(tmp_path / "out", moments, check=CHECKS.get(name, bool)) >= 2


# Every call of a student; of the longer commands, whose calls repeat from block to block, some.
EVERY = {"cache": 3, "growing cache": 5, "cache of photos": 10, "student of photos": 3, "packed copy": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_no_call_is_a_bad_moment_to_be_killed(kills: Callable[[str], Kills], tmp_path: Path, name: str) -> None:
    """A fresh folder for every kill, at the n-th call that changes a file."""
    scenario = kills(name)
    for call in range(1, scenario.calls + 1, EVERY.get(name, 1)):
        if not scenario.kill(tmp_path / f"call{call}", [{"kill_at": call}], check=CHECKS.get(name, bool)):
            assert call > scenario.calls / 2, "only the first run writes the index of the photos"
            break


def test_a_cache_killed_in_mid_write_is_unfinished_and_not_damaged(run: Run, caching: Command, tmp_path: Path) -> None:
    run(*caching(tmp_path, views=6, features="none"), kill_at=40)
    verdicts = [file.verdict for file in verify_cache(tmp_path).files]
    assert verdicts
    assert DAMAGED not in verdicts
    with pytest.raises(CacheError):
        open_cache(tmp_path, ["a", "b"])


def test_other_bytes_after_a_kill_are_a_failure(server: ForkServer, tmp_path: Path) -> None:
    """Here an outcome that is never the same: the name of its folder."""
    scenario = KillScenario("x", lambda _: [["--version"]], lambda folder: folder.name)
    with pytest.raises(AssertionError, match="other bytes than of an uninterrupted run"):
        Kills(scenario, server, tmp_path / "whole").kill(tmp_path / "out", [])


@pytest.mark.slow
def test_the_campaign_runs_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """Each several times; the table shows how many."""
    assert main(["--kills", "100", "--mutations", "2300", "--seed", "2"]) == 0
    table = capsys.readouterr().out
    for what, names in (
        ("SIGKILL", (*KILLED, "shards by two processes", "torchrun: a rank of two")),
        ("spoilt", SPOILT),
    ):
        for name in names:
            assert f"\n| {what} | {name} | " in table
    assert "\n0 failures, " in table
