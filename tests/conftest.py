"""What all tests share: one thread, no network of the world, and tiny data whose values say where they belong."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from demkd.cli import main
from tests.pipeline.stages import Workshop

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Minutes of real work are a multiple of it on a machine that others use too."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1_800))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Two busy threads on two busy cores wait for each other; one is faster, and its sums always add up the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _own_manifests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept of folders under the user's cache directory is not the tests' to read or write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real checkpoints and pictures, where the checkout has them beside it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared: real checkpoints and pictures, which are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run the command line as a user does: a process of its own."""

    def run(
        *arguments: object, cwd: Path | None = None, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        result = subprocess.run(
            [sys.executable, str(CHECKOUT / "cli.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **(environment or {})},
            timeout=900,
        )
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set of 3 classes, 60 + 12 pictures of 16 x 16, each pixel telling its picture and its place."""
    return write_picture_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def workshop(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Three teachers and their cache, which tests only read."""
    made = Workshop(data=picture_folder, folder=tmp_path_factory.mktemp("workshop"))
    made.make()
    return made


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two digit teachers of one epoch, and their cache of 2 views, made by the command line."""
    folder = tmp_path_factory.mktemp("digits")
    teachers = ("--teacher", folder / "resnet8", "--teacher", f"big=vgg8@{folder / 'vgg8' / 'student.safetensors'}")
    for arguments in (
        ("train", "resnet8", "--epochs", 1, "--seed", 1, "--out", folder / "resnet8"),
        ("train", "vgg8", "--epochs", 1, "--seed", 2, "--out", folder / "vgg8"),
        ("cache-teachers", "--views", 2, "--out", folder / "cache", *teachers),
    ):
        done = CliRunner().invoke(main, [*map(str, arguments), "--data", "digits", "--quiet"])
        assert done.exit_code == 0, done.output
        assert all(line.startswith("warning: ") for line in done.stderr.splitlines()), "--quiet"
    return folder


def write_picture_folder(folder: Path) -> Path:
    for split, count in (("train", 20), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(counting_picture(label, number)).save(folder / split / name / f"{number:03}.png")
    return folder


def counting_picture(label: int, number: int, side: int = 16) -> "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]":
    """A picture (side, side, 3) whose channels are its number, its row and its column (and none of them 0)."""
    rows, columns = np.mgrid[0:side, 0:side]
    number_plane = np.full((side, side), 1 + label * 40 + number)
    return np.stack([number_plane, 1 + rows, 1 + columns + label * 64], axis=2).astype(np.uint8)
