"""A folder of images: classes and files in a fixed order, read once, and changed files are refused."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demkd.config import ImageConfig
from demkd.dataset import (
    CropFlip,
    DataError,
    ImageDataset,
    ResizedCrop,
    StreamedDataset,
    ViewTask,
    as_dataset,
    folder,
    load_images,
    params_on,
)
from tests.conftest import CHECKOUT, counting_picture
from tests.dataset.photos import photo, write_photos
from tests.pipeline.stages import Recorder

CPU = torch.device("cpu")
TRIED = 3  # files that are decoded at every reading


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def small(picture_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(picture_folder, tmp_path / "small"))


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that are decoded; with an empty index, and files that need not grow two seconds old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.setattr(folder, "_UNSETTLED_NS", -(10**12))
    names: list[str] = []
    monkeypatch.setattr(folder, "decode", counted(folder.decode, names))
    return names


def counted(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def call(data: bytes, path: Path, **options: Any) -> Any:
        names.append(path.name)
        return function(data, path, **options)

    return call


def read(data: Path, *, split: str = "train", progress: Any = folder.SILENT, **options: Any) -> ImageDataset:
    return load_images(str(data), split=split, images=ImageConfig(**{"workers": 0, **options}), progress=progress)


def task(dataset: ImageDataset, augmentation: ResizedCrop, indices: torch.Tensor, **options: Any) -> ViewTask:
    drawn = augmentation.make_params(view_seed=1, view_indices=range(3), indices=indices.numpy(), sizes=dataset.sizes)
    return ViewTask(indices=indices, params=params_on(CPU, drawn), **options)


def test_small_images_are_read_in_the_order_of_names(small: Path) -> None:
    """Sample i is the i-th image of the sorted classes, as its pixels show."""
    dataset = read(small)
    assert (dataset.class_names, len(dataset)) == (("ant", "bee", "cat"), 60)
    for index in range(60):
        label, number = divmod(index, 20)
        assert dataset.labels[index] == label
        assert np.array_equal(dataset.pixels[index].numpy(), counting_picture(label, number))
    assert dataset.default_augmentation == CropFlip(padding=2, flip=True)
    assert dataset.file_of(21) == "bee/001.png"


def test_photos_are_those_of_the_files_in_their_order(photos: Path) -> None:
    dataset = read(photos)
    files = sorted((photos / "train").rglob("*.*"))
    assert isinstance(dataset, StreamedDataset)
    assert len(dataset) == len(files) == 30
    assert dataset.labels.tolist() == [label for label in range(3) for _ in range(10)]
    for index, file in enumerate(files):
        expected = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(dataset.read(index).numpy(), expected)
        assert tuple(dataset.sizes[index]) == expected.shape[:2]
    assert dataset.image_size is None
    assert dataset.default_augmentation == ResizedCrop(size=224)
    assert dataset.file_of(12) == "bee/002.jpg"


def test_the_identity_depends_on_pixels_and_labels_alone(small: Path, tmp_path: Path) -> None:
    """Another path, another order of creation: the same; one pixel, or one label: another."""
    here, copy = read(small).provenance(), tmp_path / "elsewhere"
    for file in sorted(small.rglob("*.png"), reverse=True):
        target = copy / file.relative_to(small)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    assert read(copy).provenance() == here
    pixels = counting_picture(0, 3)
    pixels[5, 5, 0] ^= 1
    Image.fromarray(pixels).save(copy / "train" / "ant" / "003.png")
    assert read(copy).identity()["pixels_sha256"] != here["pixels_sha256"]
    (copy / "train" / "ant" / "019.png").rename(copy / "train" / "bee" / "!first.png")
    assert read(copy).labels_sha256() != here["labels_sha256"]


@pytest.mark.parametrize("method", ["fork", "forkserver"])  # forkserver is Python 3.14's default
def test_workers_give_what_this_process_gives(photos: Path, method: str, request: pytest.FixtureRequest) -> None:
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    request.addfinalizer(lambda: multiprocessing.set_start_method(usual, force=True))
    augmentation = ResizedCrop(size=32)
    here, there = read(photos), read(photos, workers=2)
    tasks = [task(here, augmentation, torch.arange(start, start + 10), sizes=(32, 20)) for start in (20, 0, 10)]
    expected = list(here.views(augmentation, tasks, CPU))
    for _ in range(2):  # workers stay for the next time
        for one, other in zip(expected, there.views(augmentation, tasks, CPU), strict=True):
            assert other[32][0].shape == (10, 3, 32, 32)
            for size in (32, 20):
                assert all(torch.equal(a, b) for a, b in zip(one[size], other[size], strict=True))
    there.close_workers()


@pytest.mark.parametrize("kind", ["small", "photos"])
def test_a_file_is_decoded_once(kind: str, request: pytest.FixtureRequest, examined: list[str]) -> None:
    """Until its name, length, inode or one of its times changes; three files are always decoded."""
    data: Path = request.getfixturevalue(kind)
    first = read(data)
    assert len(examined) == len(first) + TRIED
    examined.clear()
    again = read(data)
    assert len(examined) == TRIED
    assert again.provenance() == first.provenance()
    touched = sorted((data / "train" / "bee").iterdir())[3]
    os.utime(touched, (1, 1))
    examined.clear()
    assert read(data).provenance() == first.provenance()
    assert examined[TRIED:] == [touched.name]
    new = shutil.copy(touched, touched.with_name("077.png"))
    examined.clear()
    assert len(read(data)) == len(first) + 1
    assert examined[TRIED:] == ["077.png"]
    Path(new).unlink()
    assert read(data).provenance() == first.provenance()


def test_a_change_whose_time_was_put_back_is_noticed(small: Path, examined: list[str]) -> None:
    """Same name, length, time of modification and inode: the time of the inode's change tells."""
    file = small / "train" / "ant" / "003.bmp"
    pixels = counting_picture(0, 3)
    Image.fromarray(pixels).save(file)
    before, status = read(small).provenance(), file.stat()
    pixels[5, 5, 0] ^= 1
    with file.open("r+b") as stream:
        Image.fromarray(pixels).save(stream, format="BMP")  # of equal length
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = file.stat()
    assert (changed.st_size, changed.st_mtime_ns, changed.st_ino) == (status.st_size, status.st_mtime_ns, status.st_ino)
    examined.clear()
    assert read(small).provenance() != before
    assert examined[TRIED:] == ["003.bmp"]


def test_a_small_image_that_changed_a_moment_ago_is_decoded_again(
    small: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the clock's grain would leave every time as it was."""
    monkeypatch.setattr(folder, "_UNSETTLED_NS", 10**12)
    before = read(small).provenance()
    examined.clear()
    assert read(small).provenance() == before
    assert len(examined) == 60 + TRIED


@pytest.mark.parametrize("kind", ["small", "photos"])
def test_a_damaged_index_is_made_anew(
    kind: str, request: pytest.FixtureRequest, examined: list[str], tmp_path: Path
) -> None:
    data: Path = request.getfixturevalue(kind)
    before = read(data).provenance()
    (kept,) = (tmp_path / "kept").rglob("*.npz")
    whole = kept.read_bytes()
    middle = whole.index(b"rows.npy") + 900
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100, flipped):
        kept.write_bytes(damaged)
        examined.clear()
        assert read(data).provenance() == before
        assert len(examined) == before["samples"] + TRIED
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]


def test_where_nothing_can_be_kept_images_are_decoded(
    small: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert read(small).provenance() == read(small).provenance()
    assert len(examined) == 2 * (60 + TRIED)


def test_small_images_of_two_sizes_are_read_when_needed(small: Path, examined: list[str]) -> None:
    """Also the next time, and without decoding them again."""
    Image.fromarray(counting_picture(2, 7)[:9]).save(small / "train" / "cat" / "007.png")
    for count in (60, 0):
        examined.clear()
        dataset = read(small)
        assert isinstance(dataset, StreamedDataset)
        assert len(examined) == count + TRIED
    assert np.array_equal(dataset.read(47).numpy(), counting_picture(2, 7)[:9])


def test_a_killed_reading_goes_on_where_it_was(photos: Path, examined: list[str]) -> None:
    code = (
        "import os, signal, sys; from demkd.dataset import folder, load_images; from demkd.config import ImageConfig\n"
        "folder._SECONDS_BETWEEN_SAVES = 0.0; folder._AT_ONCE = 1; decode = folder.decode; names = []\n"
        "def one(data, path, **options):\n"
        "    names.append(path)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(names) == 21 else None\n"
        "    return decode(data, path, **options)\n"
        "folder.decode = one\n"
        "load_images(sys.argv[1], split='train', images=ImageConfig(workers=0))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(photos)], cwd=CHECKOUT, check=False, timeout=120)
    assert result.returncode == -9
    read(photos)
    assert len(examined) == 30 - (20 - TRIED) + TRIED


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_image_is_named_when_it_is_read(photos: Path, workers: int) -> None:
    """The digest is compared at every reading, whatever the file's times are."""
    dataset = read(photos, workers=workers)
    file = photos / "train" / "bee" / "003.jpg"
    times = file.stat()
    photo(2, 3).save(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    augmentation = ResizedCrop(size=16)
    with pytest.raises(DataError, match=r"bee/003\.jpg was changed since the images were read first"):
        list(dataset.views(augmentation, [task(dataset, augmentation, torch.arange(30))], CPU))


def test_broken_files_are_named_or_left_out(photos: Path) -> None:
    (photos / "train" / "ant" / "004.png").write_bytes(b"")
    (photos / "train" / "cat" / "002.jpg").write_bytes((photos / "train" / "cat" / "002.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match=r"ant/004\.png has 0 bytes.*, or leave such files out \(`skip_broken`\)"):
        read(photos)
    dataset = read(photos, skip_broken=True)
    assert len(dataset) == 28
    assert dataset.labels.bincount().tolist() == [9, 10, 9]
    assert [text.rpartition("/")[2][:7] for text in dataset.notes()["left_out"]] == ["004.png", "002.jpg"]
    assert np.array_equal(dataset.read(27).numpy(), np.asarray(Image.open(photos / "train" / "cat" / "009.png")))


def test_a_broken_small_image_is_named(small: Path) -> None:
    file = small / "train" / "cat" / "007.png"
    for content in (b"no image", file.read_bytes()[:60]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"cat/007\.png cannot be read as an image"):
            read(small)
    assert len(read(small, skip_broken=True)) == 59


def test_files_with_other_endings_are_used_if_they_are_images_and_named_if_not(photos: Path) -> None:
    """JPEG as .jfif, PNG without an ending; a text, a number file and a pipe are none."""
    bee = photos / "train" / "bee"
    (bee / "000.jpg").rename(bee / "000.jfif")
    (bee / "004.png").rename(bee / "004")
    (bee / "005.jpg").rename(bee / "005.photo")
    recorder = Recorder()
    assert len(read(photos, progress=recorder)) == 30
    assert recorder.warnings == []
    (bee / "notes.txt").write_text("not an image")
    (bee / "more.txt").write_text("BM")
    np.save(bee / "pixels.npy", np.zeros(3))
    os.mkfifo(bee / "pipe")
    (bee / ".hidden").write_text("hidden")
    assert len(read(photos, progress=recorder)) == 30
    (text,) = recorder.warnings
    assert "4 of 34 files of" in text
    assert text.endswith("are not images and were left out: bee/more.txt, bee/notes.txt, bee/pipe")


def test_other_layouts_of_folders(photos: Path) -> None:
    """validation/ or val/ for test/, images in folders below a class, classes that a split lacks."""
    whole = read(photos).provenance()
    below = photos / "train" / "bee" / "more"
    below.mkdir()
    (photos / "train" / "bee" / "009.png").rename(below / "009.png")
    assert read(photos).provenance() == whole
    (photos / "test").rename(photos / "val")
    assert len(read(photos, split="test")) == 30
    (photos / "val").rename(photos / "validation")
    shutil.rmtree(photos / "validation" / "cat")
    with pytest.raises(DataError, match=r"have different classes: cat; .* name all of them in .*classes\.txt"):
        read(photos, split="test")
    (photos / "classes.txt").write_text("dog\nbee\nant\ncat\n", encoding="utf-8-sig")  # as some editors write it
    dataset = read(photos, split="test")
    assert dataset.class_names == ("dog", "bee", "ant", "cat")
    assert dataset.labels.tolist() == [1] * 10 + [2] * 10
    (photos / "classes.txt").write_text("bee\n")
    with pytest.raises(DataError, match=r"classes\.txt does not name ant of .*validation"):
        read(photos, split="test")


def test_folders_without_images_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder 'train'"):
        read(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has 0 class folders"):
        read(tmp_path)
    for file in (small / "train" / "bee").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="train/bee has no images"):
        read(small)
    os.mkdir(os.fsencode(small / "train") + b"/\xff")  # noqa: PTH102 - bytes
    with pytest.raises(DataError, match=r"train/\\udcff has a name that is not text: rename it"):
        read(small)


class Items(torch.utils.data.Dataset[Any]):
    """A map-style data set of photos; `change` alters what an item is from the second time on."""

    def __init__(self, *, change: int | None = None) -> None:
        self.change, self.times = change, 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        self.times += index == self.change
        return photo(index % 3, index + (100 if index == self.change and self.times > 1 else 0)), index % 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_of_photos_is_read_item_by_item(workers: int) -> None:
    dataset = as_dataset(Items(), split="train", images=ImageConfig(workers=workers))
    assert isinstance(dataset, StreamedDataset)
    assert np.array_equal(dataset.read(7).numpy(), np.asarray(photo(1, 7)))
    assert dataset.labels.tolist() == [index % 3 for index in range(12)]
    changing = as_dataset(Items(change=9), split="train", images=ImageConfig(workers=0))
    with pytest.raises(DataError, match="gives another image than before for item 9: leave random transforms out"):
        changing.read(9)
