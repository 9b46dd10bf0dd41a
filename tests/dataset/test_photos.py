"""A folder of photos: listed once, read when needed, and never something else than what was listed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demkd.dataset import (
    CropFlip,
    DataError,
    ImageSource,
    Reading,
    ResizedCrop,
    StreamedImages,
    ViewsError,
    ViewTask,
    as_source,
    load_images,
    manifest,
    records_on,
)
from tests.conftest import CHECKOUT
from tests.dataset.photos import photo, write_photos

CPU = torch.device("cpu")
HERE = Reading(workers=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def read(folder: Path, *, split: str = "train", **options: Any) -> ImageSource:
    return load_images(str(folder), split=split, reading=Reading(**{"workers": 0, **options}))


def test_pictures_are_those_of_the_files_in_their_order(photos: Path) -> None:
    source = read(photos)
    files = sorted((photos / "train").rglob("*.*"))
    assert isinstance(source, StreamedImages)
    assert len(source) == len(files) == 30
    assert source.labels.tolist() == [label for label in range(3) for _ in range(10)]
    for index, file in enumerate(files):
        expected = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(source.read(index).numpy(), expected)
        assert tuple(source.sizes[index]) == expected.shape[:2]
    assert source.picture_size is None
    assert source.default_policy == ResizedCrop(size=224)


def test_workers_give_what_this_process_gives(photos: Path) -> None:
    policy = ResizedCrop(size=32)
    everyone = np.arange(30)
    records = records_on(CPU, policy.draw(view_seed=1, slots=range(3), indices=everyone, sizes=read(photos).sizes))
    tasks = [
        ViewTask(indices=torch.arange(start, start + 10), records=records[:, start : start + 10], sizes=(32, 20))
        for start in (20, 0, 10)
    ]
    here = list(read(photos).views(policy, tasks, CPU))
    source = read(photos, workers=2)
    for _ in range(2):  # workers stay for the next time
        there = list(source.views(policy, tasks, CPU))
        assert [found[32][0].shape for found in there] == [(10, 3, 32, 32)] * 3
        for one, other in zip(here, there, strict=True):
            for size in (32, 20):
                assert all(torch.equal(a, b) for a, b in zip(one[size], other[size], strict=True))


def test_a_second_look_decodes_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, size and time agree: the manifest is reused; a file that was touched is looked at again."""
    first = read(photos)
    looked: list[Path] = []
    monkeypatch.setattr(manifest, "_examine_one", counted(manifest._examine_one, looked))
    assert read(photos).facts() == first.facts()
    assert not looked
    touched = photos / "train" / "bee" / "003.jpg"
    os.utime(touched, (1, 1))
    assert read(photos).facts() == first.facts()
    assert looked == [touched]
    assert read(photos, exif=False).facts() != first.facts()


def counted(function: Callable[..., Any], calls: list[Path]) -> Callable[..., Any]:
    def call(path: Path, **options: Any) -> Any:
        calls.append(path)
        return function(path, **options)

    return call


def test_a_damaged_manifest_is_made_anew(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    facts = read(photos).facts()
    (kept,) = (tmp_path / "kept").rglob("*.npz")
    whole = kept.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100, whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        kept.write_bytes(damaged)
        assert read(photos).facts() == facts


def test_a_killed_look_goes_on_where_it_was(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at is kept, also when the process ends in the middle."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    code = (
        "import os, signal, sys; from demkd.dataset import manifest, load_images, Reading\n"
        "manifest._SECONDS_BETWEEN_SAVES = 0.0; manifest._AT_ONCE = 1; examine = manifest._examine_one; seen = []\n"
        "def one(path, **options):\n"
        "    seen.append(path)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(seen) == 20 else None\n"
        "    return examine(path, **options)\n"
        "manifest._examine_one = one\n"
        "load_images(sys.argv[1], split='train', reading=Reading(workers=0))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(photos)], cwd=CHECKOUT, check=False, timeout=120)
    assert result.returncode == -9
    looked: list[Path] = []
    monkeypatch.setattr(manifest, "_examine_one", counted(manifest._examine_one, looked))
    read(photos)
    assert len(looked) == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_picture_is_named_when_it_is_read(photos: Path, workers: int) -> None:
    """The digest is compared at every reading, whatever the time of the file says."""
    source = read(photos, workers=workers)
    file = photos / "train" / "bee" / "003.jpg"
    times = file.stat()
    photo(2, 3).save(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    policy = ResizedCrop(size=16)
    records = records_on(CPU, policy.draw(view_seed=0, slots=[0], indices=np.arange(30), sizes=source.sizes))
    with pytest.raises(DataError, match=r"bee/003\.jpg was changed since the pictures were looked at"):
        list(source.views(policy, [ViewTask(indices=torch.arange(30), records=records, sizes=(16,))], CPU))


def test_broken_files_are_named_or_left_out(photos: Path) -> None:
    (photos / "train" / "ant" / "004.png").write_bytes(b"")
    (photos / "train" / "cat" / "002.jpg").write_bytes((photos / "train" / "cat" / "002.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match=r"ant/004\.png has 0 bytes.*, or leave such files out \(`skip_broken`\)"):
        read(photos)
    source = read(photos, skip_broken=True)
    assert len(source) == 28
    assert source.labels.bincount().tolist() == [9, 10, 9]
    assert [text.rpartition("/")[2][:7] for text in source.notes()["left_out"]] == ["004.png", "002.jpg"]
    assert np.array_equal(source.read(27).numpy(), np.asarray(Image.open(photos / "train" / "cat" / "009.png")))


def test_other_layouts_of_folders(photos: Path, tmp_path: Path) -> None:
    """validation/ or val/ for test/, pictures in folders below a class, classes that a split lacks."""
    whole = read(photos).facts()
    below = photos / "train" / "bee" / "more"
    below.mkdir()
    (photos / "train" / "bee" / "009.png").rename(below / "009.png")
    assert read(photos).facts() == whole
    (photos / "test").rename(photos / "val")
    assert len(read(photos, split="test")) == 30
    (photos / "val").rename(photos / "validation")
    for file in (photos / "validation" / "cat").iterdir():
        file.unlink()
    (photos / "validation" / "cat").rmdir()
    with pytest.raises(DataError, match=r"have different classes: cat; .* name all of them in .*classes\.txt"):
        read(photos, split="test")
    (photos / "classes.txt").write_text("dog\nbee\nant\ncat\n")
    source = read(photos, split="test")
    assert source.class_names == ("dog", "bee", "ant", "cat")
    assert source.labels.tolist() == [1] * 10 + [2] * 10
    (photos / "classes.txt").write_text("bee\n")
    with pytest.raises(DataError, match=r"classes\.txt does not name ant of .*validation"):
        read(photos, split="test")


def test_pictures_of_different_sizes_have_no_crop_flip(photos: Path) -> None:
    with pytest.raises(ViewsError, match=r"crop-flip keeps the pictures' own size, and picture 0 is 90 x 70 pixels"):
        CropFlip(padding=4, flip=True).require_pictures(read(photos).sizes)


class Items(torch.utils.data.Dataset[Any]):
    """A map-style data set of photos; `change` alters what an item is from the second time on."""

    def __init__(self, *, change: int | None = None) -> None:
        self.change, self.times = change, 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        self.times += index == self.change
        return photo(index % 3, index + (100 if index == self.change and self.times > 1 else 0)), index % 3


def test_a_data_set_of_photos_is_read_item_by_item() -> None:
    for workers in (0, 2):
        source = as_source(Items(), split="train", reading=Reading(workers=workers))
        assert isinstance(source, StreamedImages)
        assert np.array_equal(source.read(7).numpy(), np.asarray(photo(1, 7)))
        assert source.labels.tolist() == [index % 3 for index in range(12)]
    changing = as_source(Items(change=9), split="train", reading=HERE)
    with pytest.raises(DataError, match="gives another image than before for item 9: leave random transforms out"):
        changing.read(9)
