"""What the tests of shards share: 3,172 tiny pictures, which are four blocks, and two tiny teachers."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from demkd.cache import TeacherFile
from tests.conftest import CHECKOUT
from tests.reliability.conftest import Outcome, Together
from tests.reliability.tiny_network import tiny

BLOCKS = 4
TORCHRUN = (sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone")


def write_pictures(folder: Path, *, seed: int = 0) -> Path:
    """A folder data set of 8 x 8 pictures of noise: 1,060 + 1,056 + 1,056, and four a class to test on."""
    rng = np.random.default_rng(seed)
    for split, counts in (("train", (1060, 1056, 1056)), ("test", (4, 4, 4))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            (folder / split / name).mkdir(parents=True)
            for number, pixels in enumerate(rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)):
                Image.fromarray(pixels).save(folder / split / name / f"{number:04}.png", compress_level=0)
    return folder


def write_teachers(folder: Path) -> Path:
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_file(tiny().state_dict(), folder / f"{name}.safetensors")
    return folder


def sharded(data: Path, teachers: Path, out: Path, *more: object, names: str = "ab", views: int = 6) -> list[object]:
    """A `cache-teachers` command."""
    words = [
        part
        for name in names
        for part in ("--teacher", f"{name}=tests.reliability.tiny_network:tiny@{teachers / name}.safetensors")
    ]
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--device", "cpu", "--data", data, "--out", out),
        *("--views", views, *words, *more),
    ]


def start(command: Sequence[object], *, launcher: Sequence[str] = (), **environment: str) -> "subprocess.Popen[str]":
    """A command in a process of its own, or in those that a launcher starts."""
    return subprocess.Popen(
        [*(launcher or (sys.executable, "-W", "ignore")), str(CHECKOUT / "cli.py"), *map(str, command)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
    )


def finish(process: "subprocess.Popen[str]", *, code: int = 0) -> tuple[str, str]:
    """What it said on stdout and on stderr."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, output + errors
    return output, errors


def kill_either(
    together: Together, arguments: Sequence[object], cache: Path, chance: random.Random, whole: Sequence[Outcome]
) -> int:
    """SIGKILL either or both of two processes over one cache, three times; then two that nobody kills end it.

    Args:
        whole: what came of two that nobody killed from the start.

    Returns:
        How many were killed.
    """
    command = {"arguments": arguments}
    seconds, calls = max(one.seconds for one in whole), max(one.calls for one in whole)

    def fate() -> dict[str, Any]:
        kinds = [{}, {"kill_after": chance.uniform(0.2, 1) * seconds}, {"kill_at": chance.randrange(1, calls)}]
        return chance.choices(kinds, [1, 3, 3])[0]

    killed = 0
    for _ in range(3):
        outcomes = together([{**command, **fate()}, {**command, **fate()}])
        assert {outcome.code for outcome in outcomes} <= {0, -9}, outcomes
        killed += sum(outcome.code == -9 for outcome in outcomes)
        for path in [*cache.glob("[ab].*.h5"), *cache.glob("[ab].*.partial")]:
            file = TeacherFile(path)
            assert file.is_partial or file.is_whole(), path
    outcomes = together([command, command])
    assert {outcome.code for outcome in outcomes} == {0}, outcomes
    return killed


def files(folder: Path) -> dict[str, bytes]:
    """The files of a cache, without locks and what creating left behind."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".h5", ".partial")}


def merged(run: Any, folder: Path) -> dict[str, bytes]:
    """The files of a cache after a merge."""
    run("merge", "--quiet", folder, code=0)
    return files(folder)
