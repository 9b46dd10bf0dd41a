"""What the reliability tests share: a process that forks stages, two small teachers, and a small disk."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from demkd.errors import UserError
from demkd.networks import build_network
from tests.conftest import CHECKOUT


@dataclass(frozen=True)
class Outcome:
    """What came of a command in a process of its own; the code is -9 after a SIGKILL."""

    code: int
    seconds: float
    calls: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]
Command = Callable[..., list[object]]
Together = Callable[[Sequence[dict[str, Any]]], list[Outcome]]


@contextmanager
def stage_runners(**environment: str) -> Iterator[Together]:
    """What runs command lines in forked processes, side by side."""
    with _answering("tests.reliability.stage_runner", {"COLUMNS": "200", **environment}) as request:

        def ask(commands: Sequence[dict[str, Any]]) -> list[Outcome]:
            as_text = [{**command, "arguments": [str(word) for word in command["arguments"]]} for command in commands]
            outcomes = [Outcome(**outcome) for outcome in request(as_text)]
            for outcome in outcomes:  # of a process that was killed, orphaned workers may say what they miss
                assert outcome.code == -9 or "Traceback" not in outcome.stderr, outcome.stderr
            return outcomes

        yield ask


def one_by_one(together: Together) -> Run:
    """The same for one: `run("cache-teachers", ..., kill_after=0.3)`."""

    def ask(*arguments: object, code: int | None = None, **how: Any) -> Outcome:
        (outcome,) = together([{"arguments": arguments, **how}])
        assert code is None or outcome.code == code, f"exit code {outcome.code}: {outcome.stdout}{outcome.stderr}"
        return outcome

    return ask


@contextmanager
def examiner() -> Iterator[Callable[..., str]]:
    """What opens hostile files in forked processes: `examine(folder, verify=True)` gives its verdict."""
    with _answering("tests.reliability.examiner", {}) as request:

        def examine(folder: Path, *, kind: str = "counting", expected: str = "", verify: bool = False) -> str:
            return str(request({"folder": str(folder), "kind": kind, "expected": expected, "verify": verify}))

        yield examine


@contextmanager
def _answering(module: str, environment: dict[str, str]) -> Iterator[Callable[[object], Any]]:
    """A process that answers each line of JSON with another."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.stdin
    assert process.stdout
    asking, answers = process.stdin, process.stdout

    def request(question: object) -> Any:
        print(json.dumps(question), file=asking, flush=True)
        return json.loads(answers.readline())

    try:
        yield request
    finally:
        with suppress(BrokenPipeError):  # it has ended already
            print("null", file=asking, flush=True)  # closing says nothing while a forked worker still holds the pipe
            asking.close()
        process.wait(timeout=30)
        answers.close()


@pytest.fixture(scope="session")
def together() -> Iterator[Together]:
    """Run command lines in forked processes side by side: `together([{"arguments": [...], "kill_at": 3}, ...])`."""
    with stage_runners() as ask:
        yield ask


@pytest.fixture(scope="session")
def run(together: Together) -> Run:
    """Run the command line in a forked process: `run("cache-teachers", ..., kill_after=0.3)`."""
    return one_by_one(together)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.safetensors and b.safetensors: two resnet8 of 3 classes."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate("abc"):
        write_teacher(folder / f"{name}.safetensors", seed=seed)
    return folder


@pytest.fixture(scope="session")
def pristine_cache(run: Run, picture_folder: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of both teachers, 4 views with features; to look at, and to copy."""
    folder = tmp_path_factory.mktemp("pristine-cache") / "cache"
    run(*caching(picture_folder, teachers, folder, views=4, features="last"), code=0)
    return folder


@pytest.fixture
def cache(pristine_cache: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    return Path(shutil.copytree(pristine_cache, tmp_path / "cache"))


@pytest.fixture(scope="session", name="caching")
def _caching(picture_folder: Path, teachers: Path) -> Command:
    """`caching` of the small pictures and teachers."""
    return partial(caching, picture_folder, teachers)


@pytest.fixture(scope="session", name="distilling")
def _distilling(picture_folder: Path, pristine_cache: Path) -> Command:
    """`distilling` from the pristine cache, or another one."""

    def command(out: Path, *, cache: Path = pristine_cache, epochs: int) -> list[object]:
        return distilling(picture_folder, cache, out, epochs=epochs)

    return command


@pytest.fixture(scope="session")
def asking(picture_folder: Path, teachers: Path) -> Command:
    """What `verify` needs to ask some of the small teachers again."""
    return lambda names="ab", folder=teachers: ["--quiet", "--data", picture_folder, *teacher_options(folder, names)]


def write_teacher(path: Path, *, seed: int, classes: int = 3) -> None:
    """A resnet8 with weights drawn from a seed."""
    torch.manual_seed(seed)
    save_file(build_network("resnet8", classes=classes).state_dict(), path)


def teacher_options(folder: Path, names: str = "ab") -> list[str]:
    """`--teacher` for some of the small teachers."""
    return [part for name in names for part in ("--teacher", f"{name}=resnet8@{folder / name}.safetensors")]


def caching(
    data: Path, teachers: Path, out: Path, *, views: int, features: str = "last", names: str = "ab"
) -> list[object]:
    """A `cache-teachers` command for a and b."""
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--data", data, "--out", out),
        *("--views", views, "--features", features, *teacher_options(teachers, names)),
    ]


def distilling(data: Path, cache: Path, out: Path, *, epochs: int) -> list[object]:
    """A `distill` command, whose student learns from logits, features and precomputed weights."""
    return [
        *("distill", "--quiet", "--precision", "float32", "--data", data, "--cache", cache, "--out", out),
        *("--student", "resnet8", "--method", "de-mkd", "--epochs", epochs, "--batch-size", 16, "--seed", 3),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a cache, without locks."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock"}


def outcome_of_run(folder: Path) -> tuple[bytes, list[dict[str, object]]]:
    """The student's bytes, and its metrics without what clocks said."""
    clocks = ("seconds", "data_seconds", "test_seconds")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "student.safetensors").read_bytes(), [
        {name: value for name, value in line.items() if name not in clocks} for line in lines
    ]


def says(outcome: Outcome, text: str) -> None:
    """A failure is one sentence on stderr, with exit code 1."""
    assert outcome.code == 1, outcome.stdout + outcome.stderr
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: "), outcome.stderr
    assert text in lines[0], outcome.stderr


def attempt(call: Callable[[], Any]) -> Any:
    """What a call gives, or the `UserError` that it raises; any other error is a failure."""
    try:
        return call()
    except UserError as error:
        return error


class SmallDisk:
    """A real file system of a few kilobytes in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, size: int) -> bool:
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 256 KiB; `resize` makes it larger."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        mounted = disk.mount(256 * 1024)
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root; the tests with a file-size limit cover the same code")
    yield disk
    disk.unmount()
