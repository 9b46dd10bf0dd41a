"""Small pictures are decoded once: the second time they come from a file that stands for nothing that was changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demkd.dataset import decoded, load_images
from tests.conftest import counting_picture


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that are decoded; an own cache directory, and files that need not grow two seconds old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.setattr(decoded, "_UNSETTLED_NS", -(10**12))
    names: list[str] = []
    monkeypatch.setattr(decoded, "decode", counted(decoded.decode, names))
    return names


@pytest.fixture
def folder(picture_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(picture_folder, tmp_path / "pictures")
    return tmp_path / "pictures"


def counted(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def call(data: bytes, path: Path, **options: Any) -> Any:
        names.append(path.name)
        return function(data, path, **options)

    return call


def facts(folder: Path) -> dict[str, Any]:
    return load_images(str(folder), split="train").facts()


def test_pictures_are_decoded_once(folder: Path, decodes: list[str]) -> None:
    first = load_images(str(folder), split="train")
    assert len(decodes) == 1 + len(first)
    decodes.clear()
    second = load_images(str(folder), split="train")
    assert not decodes
    assert second.facts() == first.facts()
    assert np.array_equal(second.pixels.numpy(), first.pixels.numpy())


def test_a_change_whose_time_was_put_back_is_noticed(folder: Path, decodes: list[str]) -> None:
    """Same name, same size, same time of modification, same inode: the time of the inode's change tells."""
    before = facts(folder)
    file = folder / "train" / "ant" / "003.bmp"
    pixels = counting_picture(0, 3)
    Image.fromarray(pixels).save(file)
    kept_with_bitmap = facts(folder)  # a bitmap's size does not depend on its pixels
    status = file.stat()
    pixels[5, 5, 0] ^= 1
    with file.open("r+b") as stream:
        Image.fromarray(pixels).save(stream, format="BMP")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )
    decodes.clear()
    after = facts(folder)
    assert set(decodes) == {"000.png", "003.bmp"}  # the first one says how large all are
    assert len({one["pixels_sha256"] for one in (before, kept_with_bitmap, after)}) == 3
    decodes.clear()
    assert facts(folder) == after
    assert not decodes


def test_a_file_that_changed_a_moment_ago_is_decoded_again(
    folder: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the clock's grain would leave every time as it was."""
    monkeypatch.setattr(decoded, "_UNSETTLED_NS", 10**12)
    before = facts(folder)
    decodes.clear()
    assert facts(folder) == before
    assert len(decodes) == 61


def test_a_damaged_file_is_made_anew(folder: Path, decodes: list[str], tmp_path: Path) -> None:
    before = facts(folder)
    (kept,) = (tmp_path / "kept").rglob("*.npy")
    whole = kept.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100, flipped):
        kept.write_bytes(damaged)
        decodes.clear()
        assert facts(folder) == before
        assert len(decodes) == 61
        decodes.clear()
        assert facts(folder) == before
        assert not decodes
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]


def test_a_new_file_and_a_missing_one_are_noticed(folder: Path, decodes: list[str]) -> None:
    facts(folder)
    Image.fromarray(counting_picture(1, 77)).save(folder / "train" / "bee" / "077.png")
    assert facts(folder)["samples"] == 61
    (folder / "train" / "bee" / "077.png").unlink()
    assert facts(folder)["samples"] == 60
    assert "077.png" in decodes


def test_where_nothing_can_be_kept_pictures_are_decoded(
    folder: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert facts(folder) == facts(folder)
    assert len(decodes) == 122
