"""Nothing stale is used: whatever the logits depend on is compared, and a difference is named with both values.

And what they do not depend on, paths, processes and times, makes no difference.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demkd.cache import CacheMismatchError, Provenance, ShardFile, open_cache
from demkd.dataset import CropFlip, Normalization, load_images
from demkd.teachers.checkpoint import state_sha256
from tests.pipeline.stages import cache_one
from tests.reliability.conftest import Run, says, write_teacher
from tests.reliability.scenarios import caching, contents, distilling


@pytest.fixture
def data(picture_folder: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(picture_folder, tmp_path / "data"))


@pytest.fixture
def own_teachers(teachers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teachers, tmp_path / "own-teachers"))


def retrain(data: Path, teachers: Path) -> None:
    write_teacher(teachers / "a.safetensors", seed=77)


def change_a_pixel(data: Path, teachers: Path) -> None:
    file = data / "train" / "bee" / "007.png"
    pixels = np.array(Image.open(file))
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(file)


def relabel_an_image(data: Path, teachers: Path) -> None:
    """The last ant becomes the first bee: the same pixels in the same order, and one other label."""
    (data / "train" / "ant" / "019.png").rename(data / "train" / "bee" / "!.png")


def rename_a_class(data: Path, teachers: Path) -> None:
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "cow")


def remove_an_image(data: Path, teachers: Path) -> None:
    (data / "train" / "cat" / "019.png").unlink()


CHANGES: list[tuple[Callable[[Path, Path], None] | None, list[str], str]] = [
    (retrain, [], "teacher.state_sha256 is "),
    (change_a_pixel, [], "data.pixels_sha256 is "),
    (relabel_an_image, [], "data.labels_sha256 is "),
    (rename_a_class, [], 'data.class_names is ["ant", "bee", "cat"] in the cache and ["ant", "bee", "cow"] now'),
    (remove_an_image, [], "data.samples is 60 in the cache and 59 now"),
    (None, ["--normalize", "cifar10"], "teacher.mean is "),
    (None, ["--view-seed", "1"], "views.seed is 0 in the cache and 1 now"),
    (None, ["--precision", "bfloat16"], "precision is float32 in the cache and bfloat16 now"),
]


@pytest.mark.parametrize("case", CHANGES, ids=[field.partition(" ")[0] for *_, field in CHANGES])
def test_stage_one_refuses_to_mix(run: Run, data: Path, own_teachers: Path, cache: Path, case: Any) -> None:
    change, options, field = case
    before = contents(cache)
    if change:
        change(data, own_teachers)
    outcome = run(*caching(data, own_teachers, cache, names="a", views=5), *options)
    says(outcome, field)
    # Other data or views do not fit the other teachers either.
    other_name = field.startswith(("teacher", "precision"))
    says(outcome, "Choose another folder (--out), or another name" if other_name else "choose another folder (--out)")
    assert contents(cache) == before


@pytest.mark.parametrize("case", CHANGES[1:3], ids=["pixel", "label"])
def test_stage_two_refuses_other_data(run: Run, data: Path, pristine_cache: Path, tmp_path: Path, case: Any) -> None:
    change, _, field = case
    change(data, tmp_path)
    outcome = run(*distilling(data, pristine_cache, tmp_path / "run", epochs=1))
    says(outcome, field)
    says(outcome, "Give the data that they were cached with (--data), or cache them again")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_another_teacher(run: Run, data: Path, own_teachers: Path, tmp_path: Path) -> None:
    """A cache of a retrained teacher with the same name is another recipe."""
    cache, folder = tmp_path / "cache", tmp_path / "run"
    command = caching(data, own_teachers, cache, names="a", views=2)
    run(*command, code=0)
    assert run(*distilling(data, cache, folder, epochs=4), kill_at=20).code == -9
    shutil.rmtree(cache)
    retrain(data, own_teachers)
    run(*command, code=0)
    says(run(*distilling(data, cache, folder, epochs=4)), "teacher_a was ")


def test_changed_code_of_a_network_is_found_before_rows_are_mixed(
    data: Path, own_teachers: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest sees code: a finished block is computed again, and compared."""
    original = Normalization.apply
    monkeypatch.setattr(Normalization, "apply", lambda self, views: original(self, views) * 1.5)
    with pytest.raises(CacheMismatchError, match=r"now gives other logits .* than when the cache was started"):
        cache_one(data, own_teachers / "a.safetensors", cache, views=5)
    assert open_cache(cache).num_views == 4


@pytest.mark.parametrize("dry", [False, True])
def test_a_teacher_with_other_views_is_refused_before_it_runs(
    run: Run, picture_folder: Path, teachers: Path, tmp_path: Path, dry: bool
) -> None:
    """Each would be sound on its own; together they would be misaligned."""
    run(*caching(picture_folder, teachers, tmp_path, names="a", views=2), code=0)
    before = contents(tmp_path)
    other = caching(picture_folder, teachers, tmp_path, names="b", views=2)
    says(
        run(*other, "--view-seed", 9, *(["--dry-run"] if dry else [])),
        "views.seed is 0 in the cache and 9 now. Give the same data and views, or choose another folder",
    )
    assert contents(tmp_path) == before


def test_a_fingerprint_does_not_depend_on_path_process_or_file_times(
    run: Run, picture_folder: Path, teachers: Path, pristine_cache: Path, tmp_path: Path
) -> None:
    """Copies of images and teachers in another place, in another process: the same checksums."""
    data = shutil.copytree(picture_folder, tmp_path / "elsewhere" / "images", copy_function=shutil.copy)
    own = shutil.copytree(teachers, tmp_path / "checkpoints", copy_function=shutil.copy)
    run(*caching(Path(data), Path(own), tmp_path / "cache", names="a", views=4), code=0)
    first, second = (ShardFile(folder / "a.00001-of-00001.h5") for folder in (pristine_cache, tmp_path / "cache"))
    assert first.provenance.identity == second.provenance.identity
    assert first.provenance.fingerprint() == second.provenance.fingerprint()
    for name in first.shape.data_sets():
        assert np.array_equal(first.block_crc(name), second.block_crc(name))


def test_a_fingerprint_is_the_same_on_every_machine(picture_folder: Path) -> None:
    """Golden values of tables, images, labels and weights that follow from arithmetic alone."""
    tables = {
        "teacher": {"mean": [0.5, 0.25, 1e-3], "network": "résnet"},
        "data": {"samples": 3},
        "precision": "float32",
    }
    for identity in (tables, dict(reversed(tables.items()))):
        fingerprint = Provenance(identity=identity).fingerprint()
        assert fingerprint == "bc2f3d4764a782b22cfe554b29494fef423fd4e345301301b6bf924f678e4d56"
    data = load_images(str(picture_folder), split="train").provenance()
    assert data == {
        "split": "train",
        "samples": 60,
        "image_size": [16, 16],
        "class_names": ["ant", "bee", "cat"],
        "pixels_sha256": "7b3ae4fa146af6af853c642a88dc7f3ade2eeee6057b7d01ace57a0e372d8b14",
        "labels_sha256": "9730f1010bbf52071abf56ae6989965322c03e19a2cc23876ceb70907bee796b",
    }
    facts = {"policy": "crop-flip", "padding": 2, "flip": True, "seed": 5}
    assert {**CropFlip(padding=2, flip=True).to_dict(), "seed": 5} == facts
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for number, tensor in enumerate(network.state_dict().values()):
            tensor.copy_((torch.arange(tensor.numel()) + number).reshape(tensor.shape))
    assert state_sha256(network) == "7c233b05f61722498e1e5da3e38a6b0a2272fdebe7fe71d077addcf8df1e811e"


def test_what_logits_depend_on_is_in_the_provenance(picture_folder: Path, teachers: Path, pristine_cache: Path) -> None:
    """`identity` is compared, `notes` are not; neither has a path or a time."""
    provenance = ShardFile(pristine_cache / "a.00001-of-00001.h5").provenance
    identity = provenance.identity
    assert identity["teacher"].keys() >= {"network", "state_sha256", "mean", "std"}
    assert identity["data"].keys() >= {"split", "samples", "class_names", "pixels_sha256", "labels_sha256"}
    assert identity["views"].keys() >= {"policy", "padding", "flip", "seed"}
    assert identity["precision"] == "float32"
    assert provenance.notes.keys() >= {"parameters", "batch_size", "device", "versions"}
    assert str(picture_folder) not in provenance.to_json()
    assert str(teachers) not in provenance.to_json()
