"""Stage one by several processes: without a word between them, and to the bytes of one."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demkd.cache import CacheIncompleteError, TeacherFile, exclusive, open_cache
from demkd.cache.integrity import DAMAGED, verify_cache
from tests.cache.counting import flip
from tests.reliability.conftest import Run, Together, attempt, outcome_of_run, says
from tests.reliability.sharing import (
    BLOCKS,
    TORCHRUN,
    files,
    finish,
    kill_either,
    merged,
    sharded,
    start,
    write_pictures,
    write_teachers,
)

Command = Callable[..., list[object]]


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A `cache-teachers` command for the tiny pictures and teachers: `sharing(out, "--shards", 3)`."""
    folder = tmp_path_factory.mktemp("sharing")
    data, teachers = write_pictures(folder / "data"), write_teachers(folder)
    return lambda *arguments, **options: sharded(data, teachers, *arguments, **options)


@pytest.fixture(scope="session")
def data(sharing: Command) -> Path:
    return Path(str(sharing(".")[sharing(".").index("--data") + 1]))


@pytest.fixture(scope="session")
def one(run: Run, sharing: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes, unsharded."""
    folder = tmp_path_factory.mktemp("one")
    run(*sharing(folder), code=0)
    return files(folder)


@pytest.fixture(scope="session")
def three(run: Run, sharing: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three shards, which one process made; to look at, and to copy."""
    folder = tmp_path_factory.mktemp("three")
    run(*sharing(folder, "--shards", 3), code=0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_shells_that_start_at_once_make_the_bytes_of_one(
    run: Run, sharing: Command, tmp_path: Path, one: dict[str, bytes], processes: int
) -> None:
    """Every shard once; the last to end says that all is whole, and has computed the weights."""
    shells = [start(sharing(tmp_path, "--shards", BLOCKS, "--json")) for _ in range(processes)]
    reports = [json.loads(finish(shell)[0]) for shell in shells]
    answered = [sum(report["teachers"][number]["answered"] for report in reports) for number in (0, 1)]
    assert answered == [6 * 3172, 6 * 3172]
    assert any(report["weighted"] == ["a", "b"] for report in reports)
    for report in reports:
        assert bool(report["held"]) != bool(report["weighted"])
        assert (report["teachers"][0]["top1"] is None) == bool(report["held"])
    assert sorted(name for name in files(tmp_path) if name.startswith("a")) == [
        f"a.0000{number}-of-00004.h5" for number in range(4)
    ]
    assert merged(run, tmp_path) == one


def test_torchrun_makes_the_bytes_of_one(run: Run, sharing: Command, tmp_path: Path, one: dict[str, bytes]) -> None:
    """As many shards as processes; rank 0 alone speaks, once, of the whole."""
    launcher = (*TORCHRUN, "--nproc-per-node", "2")
    output, errors = finish(start(sharing(tmp_path, "--json"), launcher=launcher))
    report = json.loads(output)
    assert [teacher["shards"] for teacher in report["teachers"]] == [2, 2]
    assert report["weighted"] == ["a", "b"]
    assert report["held"] == []
    assert errors.count("near chance") == 2, "a warning a teacher, though both ranks could give it"
    assert merged(run, tmp_path) == one


@pytest.mark.slow
def test_torchrun_with_another_number_of_processes_goes_on(
    run: Run, sharing: Command, tmp_path: Path, three: Path
) -> None:
    """What is there wins over the number of processes, in growth too."""
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    output, _ = finish(start(sharing(cache, "--json", views=7), launcher=(*TORCHRUN, "--nproc-per-node", "4")))
    assert [teacher["shards"] for teacher in json.loads(output)["teachers"]] == [3, 3]
    run(*sharing(tmp_path / "one"), code=0)
    run(*sharing(tmp_path / "one", views=7), code=0)
    assert merged(run, cache) == files(tmp_path / "one")


def test_no_shards_are_the_file_of_before(run: Run, three: Path, tmp_path: Path, one: dict[str, bytes]) -> None:
    shutil.copytree(three, tmp_path / "cache")
    assert (
        open_cache(three).teachers[0].provenance.fingerprint()
        == TeacherFile(next(three.glob("a.*.h5"))).provenance.fingerprint()
    )
    assert files(three)["weights.h5"] == one["weights.h5"]
    assert merged(run, tmp_path / "cache") == one


def test_another_number_of_processes_goes_on(
    run: Run, together: Together, sharing: Command, tmp_path: Path, three: Path
) -> None:
    """Both of two killed in the middle; then three, without the option; then one, which has nothing left to do."""
    command = {"arguments": sharing(tmp_path, "--shards", 3)}
    outcomes = together([{**command, "kill_at": 30}, {**command, "kill_at": 34}])
    assert {outcome.code for outcome in outcomes} == {-9}
    assert isinstance(attempt(lambda: open_cache(tmp_path)), CacheIncompleteError)
    outcomes = together([{"arguments": sharing(tmp_path)}] * 3)
    assert {outcome.code for outcome in outcomes} == {0}
    report = json.loads(run(*sharing(tmp_path, "--json"), code=0).stdout)
    assert [teacher["answered"] for teacher in report["teachers"]] == [0, 0]
    assert files(tmp_path) == files(three)


def wait_for_shard(folder: Path) -> Path:
    """Until a process fills a shard, and has written some of it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for path in folder.glob("a.*.partial"):
            found = attempt(lambda path=path: TeacherFile(path).blocks_written())
            if isinstance(found, int) and found > 0:
                return path
        time.sleep(0.0005)
    pytest.fail(f"no shard was begun in {folder}")


@pytest.fixture
def stopped(sharing: Command, tmp_path: Path) -> Any:
    """A process that was stopped in the middle of a shard of 18 views."""
    owner = start(sharing(tmp_path, "--shards", 3, "--batch-size", 8, "--features", "none", views=18))
    try:
        wait_for_shard(tmp_path)
        owner.send_signal(signal.SIGSTOP)
        yield owner
    finally:
        owner.kill()
        owner.communicate()


def test_what_a_dead_process_left_is_taken_over(
    run: Run, sharing: Command, tmp_path: Path, stopped: "subprocess.Popen[str]"
) -> None:
    """The others' shards first; then who holds the last one is said; then the owner dies, and the next call ends it."""
    command = sharing(tmp_path, "--batch-size", 8, "--features", "none", views=18)
    said = run(*command, code=0).stdout
    assert f"teacher a: shard 0 is being written by process {stopped.pid} on " in said
    assert f"teacher b: shard 0 is being written by process {stopped.pid} on " in said
    assert sorted(path.name for path in tmp_path.glob("a.*.h5")) == ["a.00001-of-00003.h5", "a.00002-of-00003.h5"]
    says(run("inspect", tmp_path), f"2 of 3 shards are whole; shard 0 is being written by process {stopped.pid} on ")
    says(run("merge", tmp_path), "2 of 3 shards are whole")
    stopped.kill()
    stopped.communicate()
    assert "weights.h5 has the entropy weights of a, b" in run(*command, code=0).stdout
    run(*sharing(tmp_path / "one", "--batch-size", 8, "--features", "none", views=18), code=0)
    expected = files(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    assert merged(run, tmp_path) == expected


@pytest.mark.slow
def test_rank_0_waits_and_takes_over(sharing: Command, tmp_path: Path, stopped: "subprocess.Popen[str]") -> None:
    """Rank 1 ends without a word; rank 0 stays, fills what the dead one left, and reports the whole."""
    command = sharing(tmp_path, "--batch-size", 8, "--features", "none", "--json", views=18)
    assert finish(start(command, RANK="1", WORLD_SIZE="2")) == ("", "")
    waiting = start(command, RANK="0", WORLD_SIZE="2")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=5)
    stopped.kill()
    report = json.loads(finish(waiting)[0])
    assert report["held"] == []
    assert report["weighted"] == ["a", "b"]
    assert report["teachers"][0]["answered"] > 0
    assert verify_cache(tmp_path).sound


def test_one_file_still_has_one_writer(run: Run, sharing: Command, tmp_path: Path) -> None:
    with exclusive(tmp_path / "a.h5"):
        says(run(*sharing(tmp_path)), f"a.h5 is being written by process {os.getpid()} on ")
    with exclusive(tmp_path / "b.00000-of-00003.h5"):
        assert "teacher a: shard 0 is missing" in run(*sharing(tmp_path, "--shards", 3), code=0).stdout
    assert not (tmp_path / "a.00000-of-00003.h5").exists(), "all its files, or none"


def test_machines_without_a_common_disk(
    run: Run, sharing: Command, tmp_path: Path, one: dict[str, bytes], three: Path
) -> None:
    """Each makes the shards it is told; copied into one folder they are the cache, and one more call ends it."""
    for machine, part in (("x", "0-1"), ("y", "2")):
        said = run(*sharing(tmp_path / machine, "--shards", 3, "--only-shards", part), code=0).stdout
        assert "missing" in said
    (tmp_path / "all").mkdir()
    for machine, copied in itertools.product("xy", "ab"):
        for path in (tmp_path / machine).glob(f"{copied}.*.h5"):
            shutil.copy(path, tmp_path / "all")
    assert open_cache(tmp_path / "all").names == ("a", "b")
    report = json.loads(run(*sharing(tmp_path / "all", "--json"), code=0).stdout)
    assert [teacher["answered"] for teacher in report["teachers"]] == [0, 0]
    assert files(tmp_path / "all") == files(three)
    assert merged(run, tmp_path / "all") == one


def learning(data: Path, cache: Path, out: Path, *more: object) -> list[object]:
    """A `distill` command for a tiny student."""
    return [
        *("distill", "--quiet", "--precision", "float32", "--data", data, "--cache", cache, "--out", out),
        *("--student", "tests.reliability.tiny_network:tiny", "--epochs", 2, "--batch-size", 128, *more),
    ]


def test_students_learn_the_same_from_shards(
    run: Run, data: Path, sharing: Command, tmp_path: Path, three: Path
) -> None:
    """Logits, features and weights, gathered across files, give the losses and the student of one file."""
    run(*sharing(tmp_path / "one"), code=0)
    for name, cache in (("from-one", tmp_path / "one"), ("from-shards", three)):
        run(*learning(data, cache, tmp_path / name), code=0)
    assert outcome_of_run(tmp_path / "from-shards") == outcome_of_run(tmp_path / "from-one")


def test_kept_logits_in_shards(run: Run, data: Path, sharing: Command, tmp_path: Path) -> None:
    for name, more in (("one", ()), ("shards", ("--shards", 4))):
        run(*sharing(tmp_path / name, "--keep", 2, *more, views=2), code=0)
        more = ("--method", "de-mkd-logits", "--entropy-temperature", "2")
        run(*learning(data, tmp_path / name, tmp_path / f"from-{name}", *more), code=0)
    assert outcome_of_run(tmp_path / "from-shards") == outcome_of_run(tmp_path / "from-one")
    assert merged(run, tmp_path / "shards") == files(tmp_path / "one")


@pytest.mark.parametrize("call", [2, 8, 15, 30, -3, -2, -1])
def test_a_killed_merge_goes_on(run: Run, tmp_path: Path, three: Path, one: dict[str, bytes], call: int) -> None:
    """At every kind of call: what is there stays readable, whole or in shards, and the next merge ends it."""
    cache = shutil.copytree(three, tmp_path / "cache")
    calls = run("merge", "--quiet", shutil.copytree(three, tmp_path / "trial"), code=0).calls
    outcome = run("merge", "--quiet", cache, kill_at=call if call > 0 else calls + 1 + call)
    assert outcome.code == -9
    assert open_cache(cache).teacher_weights is not None
    assert merged(run, cache) == one


def test_a_merge_killed_before_shards_are_removed(run: Run, tmp_path: Path, three: Path, one: dict[str, bytes]) -> None:
    cache = shutil.copytree(three, tmp_path / "cache")
    for name in ("a.h5", "b.h5"):
        (cache / name).write_bytes(one[name])
    (cache / "a.00001-of-00003.h5").unlink()
    assert open_cache(cache).teacher_weights is not None
    assert merged(run, cache) == one


@pytest.mark.parametrize("name", ["logits", "features/"])
def test_repair_redoes_one_block_of_one_shard(
    run: Run, data: Path, sharing: Command, tmp_path: Path, three: Path, name: str
) -> None:
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    path = cache / "b.00002-of-00003.h5"
    contents = TeacherFile(path).header.contents
    extent = next(contents[key] for key in contents if key.startswith(name))
    flip(path, extent.offset + 2 * extent.slot_bytes + 5)
    damaged = [(file.name, file.shard) for file in verify_cache(cache).files if file.verdict == DAMAGED]
    assert damaged == [("b", "shard 2 of 3")]
    asked = sharing(".")
    asked = ["--data", data, *asked[asked.index("--teacher") :]]
    report = json.loads(run("verify", "--quiet", "--json", cache, "--repair", *asked, code=0).stdout)
    assert [(one["name"], one["answered"]) for one in report["repaired"]] == [("b", 1024)]
    assert files(cache) == files(three)
    report = json.loads(run("verify", "--quiet", "--json", cache, "--recompute", 40, *asked, code=0).stdout)
    assert [one["agrees"] for one in report["recomputed"]] == [True, True]


@pytest.mark.slow
def test_calling_again_redoes_a_damaged_shard(run: Run, sharing: Command, tmp_path: Path, three: Path) -> None:
    """Under torchrun each rank checks its part of what was whole."""
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    path = cache / "a.00001-of-00003.h5"
    flip(path, TeacherFile(path).header.contents["entropy"].offset + 5)
    assert finish(start(sharing(cache), RANK="1", WORLD_SIZE="2")) == ("", "")
    assert files(cache) == files(three)


def test_a_sharded_cache_grows(run: Run, together: Together, sharing: Command, tmp_path: Path, three: Path) -> None:
    """By two processes, while the old slots stay readable; a new teacher joins in shards of its own number."""
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    command = {"arguments": sharing(cache, views=9)}
    together([{**command, "kill_at": 45}, command])
    assert open_cache(cache).num_views in (6, 9)
    together([command, command])
    run(*sharing(tmp_path / "one"), code=0)
    run(*sharing(tmp_path / "one", views=9), code=0)
    assert merged(run, cache) == files(tmp_path / "one")


def test_a_dry_run_counts_what_is_not_there(run: Run, sharing: Command, tmp_path: Path) -> None:
    def plan(*more: object) -> Any:
        return json.loads(run(*sharing(tmp_path, "--dry-run", "--json", *more), code=0).stdout)["teachers"][0]

    whole, part = plan("--shards", 4), plan("--shards", 4, "--only-shards", "3")
    assert (whole["pending"], part["pending"]) == (6 * 3172, 6 * 100)
    assert part["new_bytes"] < whole["new_bytes"] / 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--shards", 0), "--shards is 0, and 3,172 samples are 4 blocks of 1,024: choose 1 to 4"),
        (("--shards", 5), "--shards is 5, and 3,172 samples are 4 blocks of 1,024: choose 1 to 4"),
        (("--shards", 2, "--only-shards", "1-2"), "--only-shards asks for 2, and teacher a is to be in 2 (--shards)"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    run: Run, sharing: Command, tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    says(run(*sharing(tmp_path, *more)), said)
    assert list(tmp_path.iterdir()) == []


def test_another_number_than_there_is_is_refused(run: Run, sharing: Command, three: Path) -> None:
    before = files(three)
    says(
        run(*sharing(three, "--shards", 2)), f"--shards is 2, and teacher a in {three} is in 3: leave it out, or choose"
    )
    assert files(three) == before


@pytest.mark.slow
def test_half_of_an_environment_is_refused(sharing: Command, tmp_path: Path) -> None:
    _, errors = finish(start(sharing(tmp_path), WORLD_SIZE="2"), code=1)
    assert errors.startswith(
        "error: RANK is absent, WORLD_SIZE is 2: start the processes with torchrun, which sets both"
    )
    assert len(errors.splitlines()) == 1


def test_ranks_with_other_data_are_refused(run: Run, sharing: Command, tmp_path: Path, three: Path) -> None:
    """Against what another process made already: named with both values."""
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    (cache / "a.00002-of-00003.h5").unlink()
    other = write_pictures(tmp_path / "other", seed=1)
    command = sharing(cache, "--shards", 3)
    command[command.index("--data") + 1] = other
    says(run(*command), "a.00000-of-00003.h5 was made from something else: data.pixels_sha256 is ")
    assert not (cache / "a.00002-of-00003.h5").exists()


@pytest.mark.slow
def test_two_processes_survive_many_kills_at_random_moments(
    together: Together, run: Run, sharing: Command, tmp_path: Path, three: Path, one: dict[str, bytes]
) -> None:
    """Either or both of two over one sharded cache, killed again and again; at the end the bytes of one process."""
    expected, chance = files(three), random.Random(5)
    whole = together([{"arguments": sharing(tmp_path / "trial", "--shards", 3)}] * 2)
    killed = rounds = 0
    while killed < 60:
        cache = tmp_path / f"round{rounds}"
        killed += kill_either(together, sharing(cache, "--shards", 3), cache, chance, whole)
        assert files(cache) == expected
        rounds += 1
    assert merged(run, cache) == one
    print(f"{killed} kills")  # noqa: T201 - `pytest -rP` shows it
