"""What the reliability tests share: a process that forks commands, three small teachers, a cache, and a small disk."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from demkd.errors import UserError
from demkd.networks import build_network
from tests.dataset.photos import write_photos
from tests.reliability import scenarios
from tests.reliability.fork_server import ForkServer, Outcome
from tests.reliability.scenarios import teacher_options

Run = Callable[..., Outcome]
Command = Callable[..., list[object]]
Together = Callable[[Sequence[dict[str, Any]]], list[Outcome]]


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="session")
def together(server: ForkServer) -> Together:
    """Run command lines side by side: `together([{"arguments": [...], "kill_at": 3}, ...])`."""
    return server.together


@pytest.fixture(scope="session")
def run(server: ForkServer) -> Run:
    """Run a command line: `run("cache-teachers", ..., kill_after=0.3)`."""
    return server.run


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.safetensors, b.safetensors, c.safetensors: resnet8 of 3 classes."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate("abc"):
        write_teacher(folder / f"{name}.safetensors", seed=seed)
    return folder


def write_teacher(path: Path, *, seed: int) -> None:
    """A resnet8 of 3 classes with random weights."""
    torch.manual_seed(seed)
    save_file(build_network("resnet8", classes=3).state_dict(), path)


@pytest.fixture(scope="session")
def pristine_cache(run: Run, caching: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of a and b, 4 views with features; only read, or copied."""
    folder = tmp_path_factory.mktemp("pristine-cache") / "cache"
    run(*caching(folder, views=4), code=0)
    return folder


@pytest.fixture
def cache(pristine_cache: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(pristine_cache, tmp_path / "cache"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), per_class=8)


@pytest.fixture(scope="session")
def photo_cache(run: Run, photos: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photo-cache") / "cache"
    run(*scenarios.caching_photos(photos, teachers, folder), code=0)
    return folder


@pytest.fixture(scope="session")
def caching(picture_folder: Path, teachers: Path) -> Command:
    """`scenarios.caching` of the small images and teachers."""
    return partial(scenarios.caching, picture_folder, teachers)


@pytest.fixture(scope="session")
def distilling(picture_folder: Path, pristine_cache: Path) -> Command:
    """`scenarios.distilling` from the pristine cache, or another one."""

    def command(out: Path, *, cache: Path = pristine_cache, epochs: int) -> list[object]:
        return scenarios.distilling(picture_folder, cache, out, epochs=epochs)

    return command


@pytest.fixture(scope="session")
def recomputing(picture_folder: Path, teachers: Path) -> Command:
    """The options of `verify --recompute`."""
    return lambda names="ab", folder=teachers: ["--quiet", "--data", picture_folder, *teacher_options(folder, names)]


def says(outcome: Outcome, text: str) -> None:
    """A failure is one sentence on stderr, with exit code 1."""
    assert outcome.code == 1, outcome.stdout + outcome.stderr
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: "), outcome.stderr
    assert text in lines[0], outcome.stderr


def attempt(call: Callable[[], Any]) -> Any:
    """The result of a call, or the `UserError` that it raises; any other error is a failure."""
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
    subprocess.run(["umount", "--lazy", str(disk.path)], check=False)
