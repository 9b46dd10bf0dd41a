"""Stage one by several processes that share a cache: without messages between them, and with the bytes of one."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from demkd.cache import CacheIncompleteError, ShardFile, exclusive, open_cache
from tests.cache.counting import flip
from tests.conftest import CHECKOUT
from tests.reliability.conftest import Command, Run, Together, attempt, says
from tests.reliability.fork_server import ForkServer
from tests.reliability.scenarios import outcome_of_run
from tests.reliability.tiny_network import tiny

TINY = "tests.reliability.tiny_network:tiny"
Alone = Callable[..., Path]


def write_blocks(folder: Path, *, seed: int = 0) -> Path:
    """3,172 images of noise, which are four blocks, 8 x 8, and 12 to test on; two tiny teachers."""
    rng = np.random.default_rng(seed)
    for split, counts in (("train", (1060, 1056, 1056)), ("test", (4, 4, 4))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            (folder / split / name).mkdir(parents=True)
            for number, pixels in enumerate(rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)):
                Image.fromarray(pixels).save(folder / split / name / f"{number:04}.png", compress_level=0)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_file(tiny().state_dict(), folder / f"{name}.safetensors")
    return folder


def sharded(data: Path, out: Path, *more: object, views: int = 3) -> list[object]:
    """A `cache-teachers` command for the images and teachers of a folder."""
    teachers = [part for name in "ab" for part in ("--teacher", f"{name}={TINY}@{data / name}.safetensors")]
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--device", "cpu", "--data", data, "--out", out),
        *("--views", views, *teachers, *more),
    ]


def files(folder: Path) -> dict[str, bytes]:
    """The files of a cache, without locks and leftovers of creating."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".h5", ".partial")}


class KillsOfTwo:
    """Kills either or both of two processes over one cache, and compares the cache that two others complete."""

    def __init__(self, server: ForkServer, data: Path, folder: Path) -> None:
        self._server, self._data = server, data
        whole = server.together([{"arguments": sharded(data, folder, "--shards", 3)}] * 2)
        self._seconds, self._calls = max(one.seconds for one in whole), max(one.calls for one in whole)
        self.expected = files(folder)

    def kill(self, folder: Path, chance: random.Random) -> int:
        """Up to six kills; how many there were."""
        job = {"arguments": sharded(self._data, folder, "--shards", 3)}

        def moment() -> dict[str, Any]:
            after, at = chance.uniform(0.2, 1) * self._seconds, chance.randrange(1, self._calls)
            return {**job, **chance.choices([{}, {"kill_after": after}, {"kill_at": at}], [1, 3, 3])[0]}

        outcomes = []
        for _ in range(3):
            outcomes += self._server.together([moment(), moment()])
            for path in [*folder.glob("[ab].*.h5"), *folder.glob("[ab].*.partial")]:
                file = ShardFile(path)
                assert file.is_partial or all(blocks.all() for blocks in file.sound().values()), path
        outcomes += self._server.together([job, job])
        assert {outcome.code for outcome in outcomes} <= {0, -9}, outcomes
        assert {outcome.code for outcome in outcomes[-2:]} == {0}, outcomes
        assert files(folder) == self.expected, "other bytes than of two that nobody killed"
        return sum(outcome.code == -9 for outcome in outcomes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="module")
def sharing(data: Path) -> Command:
    """A `cache-teachers` command: `sharing(out, "--shards", 3)`."""
    return partial(sharded, data)


@pytest.fixture(scope="module")
def alone(run: Run, sharing: Command, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The cache that one uninterrupted process makes: `alone("--shards", 3)`; only read, or copied."""
    known: dict[str, Path] = {}

    def make(*arguments: object, **options: Any) -> Path:
        if repr((arguments, options)) not in known:
            folder = tmp_path_factory.mktemp("alone")
            run(*sharing(folder, *arguments, **options), code=0)
            known[repr((arguments, options))] = folder
        return known[repr((arguments, options))]

    return make


@pytest.fixture(scope="module")
def three(alone: Alone) -> Path:
    return alone("--shards", 3)


def test_shells_make_the_bytes_of_one(together: Together, sharing: Command, tmp_path: Path, alone: Alone) -> None:
    """Every shard once; the last to end reports the whole, and has computed the weights."""
    outcomes = together([{"arguments": sharing(tmp_path, "--shards", 4, "--json")}] * 3)
    reports = [json.loads(outcome.stdout) for outcome in outcomes]
    for number in (0, 1):
        assert sum(report["teachers"][number]["computed"] for report in reports) == 3 * 3172
    assert any(report["weighted"] == ["a", "b"] for report in reports)
    for report in reports:
        assert bool(report["held"]) != bool(report["weighted"])
        assert (report["teachers"][0]["top1"] is None) == bool(report["held"])
    assert files(tmp_path) == files(alone("--shards", 4))


def as_ranks(command: list[object]) -> list[dict[str, Any]]:
    """Jobs with the variables that torchrun sets; stage one sends no messages."""
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    return [{"arguments": command, "environment": rank} for rank in ranks]


def test_two_ranks_make_the_bytes_of_one(together: Together, sharing: Command, tmp_path: Path, alone: Alone) -> None:
    """As many shards as processes; only rank 0 reports, once, the whole."""
    first, second = together(as_ranks(sharing(tmp_path, "--json")))
    report = json.loads(first.stdout)
    assert (second.code, second.stdout, second.stderr) == (0, "", "")
    assert [teacher["shards"] for teacher in report["teachers"]] == [2, 2]
    assert report["weighted"] == ["a", "b"]
    assert report["held"] == []
    assert first.stderr.count("near chance") == 2, "a warning a teacher, though both ranks could give it"
    assert files(tmp_path) == files(alone("--shards", 2))


def test_other_processes_resume(run: Run, together: Together, sharing: Command, tmp_path: Path, three: Path) -> None:
    """Both of two killed in the middle; then three, without the option; then one, which has nothing left to do."""
    command = {"arguments": sharing(tmp_path, "--shards", 3)}
    outcomes = together([{**command, "kill_at": 24}, {**command, "kill_at": 28}])
    assert {outcome.code for outcome in outcomes} == {-9}
    assert isinstance(attempt(lambda: open_cache(tmp_path)), CacheIncompleteError)
    outcomes = together([{"arguments": sharing(tmp_path)}] * 3)
    assert {outcome.code for outcome in outcomes} == {0}
    report = json.loads(run(*sharing(tmp_path, "--json"), code=0).stdout)
    assert [teacher["computed"] for teacher in report["teachers"]] == [0, 0]
    assert files(tmp_path) == files(three)


LONG = ("--batch-size", 8, "--features", "none")


@pytest.fixture
def stopped(sharing: Command, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that was stopped in the middle of a shard of 9 views."""
    command = [CHECKOUT / "cli.py", *sharing(tmp_path, "--shards", 3, *LONG, views=9)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    owner = subprocess.Popen([sys.executable, *map(str, command)], cwd=CHECKOUT, env=environment)
    try:
        end = time.monotonic() + 60
        while not any(
            isinstance(found := attempt(ShardFile(path).progress), float) and found > 0
            for path in tmp_path.glob("a.*.partial")
        ):
            assert time.monotonic() < end, f"no shard was begun in {tmp_path}"
            time.sleep(0.0005)
        owner.send_signal(signal.SIGSTOP)
        yield owner
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.slow
def test_the_shard_of_a_dead_process_is_resumed(
    run: Run, sharing: Command, tmp_path: Path, stopped: "subprocess.Popen[str]", alone: Alone
) -> None:
    """The others' shards first; a message names who holds the last one; that one dies, and the next call ends it."""
    command = sharing(tmp_path, *LONG, views=9)
    said = run(*command, code=0).stdout
    for name in "ab":
        state = rf"teacher {name}: shard 1 of 3 is (\d+% done, )?being written by process {stopped.pid} on "
        assert re.search(state, said), said
    assert sorted(path.name for path in tmp_path.glob("a.*.h5")) == ["a.00002-of-00003.h5", "a.00003-of-00003.h5"]
    says(run("inspect", tmp_path), f"being written by process {stopped.pid} on ")
    stopped.kill()
    stopped.wait()
    assert "weights.h5 has the entropy weights of a, b" in run(*command, code=0).stdout
    assert files(tmp_path) == files(alone("--shards", 3, *LONG, views=9))


def test_one_file_still_has_one_writer(run: Run, sharing: Command, tmp_path: Path) -> None:
    with exclusive(tmp_path / "a.00001-of-00001.h5"):
        says(run(*sharing(tmp_path)), f"a.00001-of-00001.h5 is being written by process {os.getpid()} on ")
    with exclusive(tmp_path / "b.00001-of-00003.h5"):
        assert "teacher a: shard 1 of 3 is missing" in run(*sharing(tmp_path, "--shards", 3), code=0).stdout
    assert not (tmp_path / "a.00001-of-00003.h5").exists(), "all its files, or none"


def test_machines_without_a_common_disk(run: Run, sharing: Command, tmp_path: Path, three: Path) -> None:
    """Each makes its shards; copied into one folder they are the cache, and one more call ends it."""
    for machine in "123":
        assert "missing" in run(*sharing(tmp_path / machine, "--shard", f"{machine}/3"), code=0).stdout
    (tmp_path / "all").mkdir()
    for machine, copied in itertools.product("123", "ab"):
        for path in (tmp_path / machine).glob(f"{copied}.*.h5"):
            shutil.copy(path, tmp_path / "all")
    assert open_cache(tmp_path / "all").names == ("a", "b")
    report = json.loads(run(*sharing(tmp_path / "all", "--json"), code=0).stdout)
    assert [teacher["computed"] for teacher in report["teachers"]] == [0, 0]
    assert files(tmp_path / "all") == files(three)


def test_students_learn_the_same_from_shards(run: Run, data: Path, tmp_path: Path, alone: Alone, three: Path) -> None:
    """Logits, features and weights, gathered across files, give the losses and the student of one file."""
    for name, cache in (("one", alone()), ("shards", three)):
        command = ["distill", "--quiet", "--precision", "float32", "--data", data, "--cache", cache, "--student", TINY]
        run(*command, "--out", tmp_path / name, "--epochs", 2, "--batch-size", 128, code=0)
    assert outcome_of_run(tmp_path / "shards") == outcome_of_run(tmp_path / "one")


def test_a_damaged_shard_is_computed_again(together: Together, sharing: Command, tmp_path: Path, three: Path) -> None:
    """Each rank checks its part of what was whole."""
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    path = cache / "a.00001-of-00003.h5"
    flip(path, ShardFile(path).header.contents["entropy"].offset + 5)
    (outcome,) = together(as_ranks(sharing(cache))[1:])
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")
    assert files(cache) == files(three)


def test_a_sharded_cache_grows(together: Together, sharing: Command, tmp_path: Path, three: Path, alone: Alone) -> None:
    """By two processes, one of them killed, while the old views stay readable."""
    cache = Path(shutil.copytree(three, tmp_path / "cache"))
    command = {"arguments": sharing(cache, views=5)}
    together([{**command, "kill_at": 45}, command])
    assert open_cache(cache).num_views in (3, 5)
    together([command, command])
    assert files(cache) == files(alone("--shards", 3, views=5))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--shards", 5), "--shards asks for 5 files, and 3,172 samples are 4 blocks of 1,024: choose 1 to 4"),
        (("--shard", "5/5"), "--shard asks for 5 files, and 3,172 samples are 4 blocks of 1,024: choose 1 to 4"),
        (("--shards", 3, "--shard", "1/2"), "--shard is one of 2, and --shards is 3: leave --shards out"),
        *((("--shard", text), f"--shard is '{text}': give the number and the count") for text in ("0/2", "3/2", "1")),
    ],
)
def test_impossible_numbers_are_refused(
    run: Run, sharing: Command, tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    says(run(*sharing(tmp_path, *more)), said)
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_shards_is_refused(run: Run, sharing: Command, three: Path) -> None:
    before = files(three)
    said = f"--shards asks for 2 files, and teacher a in {three} is in 3: give 3, or choose"
    says(run(*sharing(three, "--shards", 2)), said)
    assert files(three) == before
