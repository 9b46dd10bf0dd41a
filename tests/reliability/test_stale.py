"""Nothing stale is used: whatever bound the answers is compared, and a difference is named with both values.

And the opposite: what did not bind them, paths, processes and times, makes no difference.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demkd.cache import CacheMismatchError, Provenance, TeacherFile, open_cache
from demkd.dataset import CropFlip, Normalisation, load_images
from demkd.pipeline.preparation import view_facts
from demkd.teachers.checkpoint import state_sha256
from tests.pipeline.stages import cache_one
from tests.reliability.conftest import Run, contents, distilling, says, teacher_options, write_teacher


@pytest.fixture
def data(picture_folder: Path, tmp_path: Path) -> Path:
    """A copy of the pictures that a test may change."""
    return Path(shutil.copytree(picture_folder, tmp_path / "data"))


@pytest.fixture
def own_teachers(teachers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teachers, tmp_path / "own-teachers"))


def command(data: Path, teachers: Path, cache: Path, *more: object) -> list[object]:
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--data", data, "--out", cache, "--views", 2),
        *teacher_options(teachers, "a"),
        *more,
    ]


def retrain(data: Path, teachers: Path) -> None:
    write_teacher(teachers / "a.safetensors", seed=77)


def change_a_pixel(data: Path, teachers: Path) -> None:
    file = data / "train" / "bee" / "007.png"
    pixels = np.array(Image.open(file))
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(file)


def relabel_a_picture(data: Path, teachers: Path) -> None:
    """The last ant becomes the first bee: the same pixels in the same order, and one other label."""
    (data / "train" / "ant" / "019.png").rename(data / "train" / "bee" / "!.png")


def rename_a_class(data: Path, teachers: Path) -> None:
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "cow")


def remove_a_picture(data: Path, teachers: Path) -> None:
    (data / "train" / "cat" / "019.png").unlink()


CHANGES: list[tuple[Callable[[Path, Path], None] | None, list[str], str]] = [
    (retrain, [], "teacher.state_sha256 is "),
    (change_a_pixel, [], "data.pixels_sha256 is "),
    (relabel_a_picture, [], "data.labels_sha256 is "),
    (rename_a_class, [], 'data.class_names is ["ant", "bee", "cat"] in the cache and ["ant", "bee", "cow"] now'),
    (remove_a_picture, [], "data.samples is 60 in the cache and 59 now"),
    (None, ["--normalise", "cifar10"], "teacher.mean is "),
    (None, ["--view-seed", "1"], "views.seed is 0 in the cache and 1 now"),
    (None, ["--precision", "bfloat16"], "precision is float32 in the cache and bfloat16 now"),
]


@pytest.mark.parametrize(
    ("change", "options", "field"), CHANGES, ids=[field.partition(" ")[0] for *_, field in CHANGES]
)
def test_stage_one_refuses_to_mix(
    run: Run,
    data: Path,
    own_teachers: Path,
    cache: Path,
    change: Callable[[Path, Path], None] | None,
    options: list[str],
    field: str,
) -> None:
    """Here to grow it; the cure is in the message."""
    before = contents(cache)
    if change:
        change(data, own_teachers)
    outcome = run(*command(data, own_teachers, cache, *options, "--views", 5))
    says(outcome, field)
    says(outcome, "Choose another folder (--out), or another name for the teacher (--teacher)")
    assert contents(cache) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [(change_a_pixel, "data.pixels_sha256 is "), (relabel_a_picture, "data.labels_sha256 is ")],
)
def test_stage_two_refuses_other_data(
    run: Run, data: Path, pristine_cache: Path, tmp_path: Path, change: Callable[[Path, Path], None], field: str
) -> None:
    change(data, tmp_path)
    outcome = run(*distilling(data, pristine_cache, tmp_path / "run", epochs=1))
    says(outcome, field)
    says(outcome, "give the data that they were cached with (--data), or cache them again")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_continued_with_other_teachers_answers(
    run: Run, data: Path, own_teachers: Path, tmp_path: Path
) -> None:
    """A cache made anew from a retrained teacher of the same name is another recipe."""
    cache, folder = tmp_path / "cache", tmp_path / "run"
    run(*command(data, own_teachers, cache), code=0)
    assert run(*distilling(data, cache, folder, epochs=4), kill_at=20).code == -9
    shutil.rmtree(cache)
    retrain(data, own_teachers)
    run(*command(data, own_teachers, cache), code=0)
    says(run(*distilling(data, cache, folder, epochs=4)), "teacher_a was ")


def test_other_views_are_refused(data: Path, own_teachers: Path, cache: Path) -> None:
    with pytest.raises(CacheMismatchError, match=r"views\.padding is 2 in the cache and 1 now"):
        cache_one(data, own_teachers / "a.safetensors", cache, views=2, policy=CropFlip(padding=1, flip=True))


def test_changed_code_of_a_network_is_found_before_rows_are_mixed(
    data: Path, own_teachers: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest sees code: a block that is there already is answered again, and compared."""
    original = Normalisation.apply
    monkeypatch.setattr(Normalisation, "apply", lambda self, views: original(self, views) * 1.5)
    with pytest.raises(CacheMismatchError, match="otherwise than when the cache was started"):
        cache_one(data, own_teachers / "a.safetensors", cache, views=5)
    assert open_cache(cache).num_views == 4


def test_teachers_with_other_views_are_not_combined(
    run: Run, picture_folder: Path, teachers: Path, tmp_path: Path
) -> None:
    """Each is sound on its own; together they would be misaligned."""
    run(*command(picture_folder, teachers, tmp_path), code=0)
    other = ["cache-teachers", "--quiet", "--precision", "float32", "--data", picture_folder, "--out", tmp_path]
    outcome = run(*other, "--views", 2, "--view-seed", 9, *teacher_options(teachers, "b"), code=0)
    assert "warning: no weights were computed: " in outcome.stderr, "--quiet hides no warning"
    assert "(--teacher)" in outcome.stderr, "in the command line's words"
    says(run(*distilling(picture_folder, tmp_path, tmp_path / "run", epochs=1)), "views.seed is 0 in the cache and 9")
    says(
        run("inspect", tmp_path), "Cache both teachers with the same data and views, or choose among them (--teachers)"
    )
    assert run("verify", tmp_path, "--quiet").code == 1


def test_a_fingerprint_does_not_depend_on_path_process_or_file_times(
    run: Run, picture_folder: Path, teachers: Path, pristine_cache: Path, tmp_path: Path
) -> None:
    """Copies of pictures and teachers in another place, in another process: the file is the same, byte for byte."""
    data = shutil.copytree(picture_folder, tmp_path / "elsewhere" / "images", copy_function=shutil.copy)
    own = shutil.copytree(teachers, tmp_path / "checkpoints", copy_function=shutil.copy)
    run(*command(Path(data), Path(own), tmp_path / "cache", "--views", 4), code=0)
    first, second = TeacherFile(pristine_cache / "a.h5"), TeacherFile(tmp_path / "cache" / "a.h5")
    assert first.provenance.identity == second.provenance.identity
    assert first.provenance.fingerprint() == second.provenance.fingerprint()
    for name in first.shape.answers():
        assert np.array_equal(first.ledger(name), second.ledger(name))


def test_a_fingerprint_is_the_same_on_every_machine(picture_folder: Path) -> None:
    """Golden values, of tables, pictures, labels and weights that follow from nothing but arithmetic."""
    tables = {
        "teacher": {"mean": [0.5, 0.25, 1e-3], "network": "résnet"},
        "data": {"samples": 3},
        "precision": "float32",
    }
    assert Provenance(identity=tables).fingerprint() == (
        "bc2f3d4764a782b22cfe554b29494fef423fd4e345301301b6bf924f678e4d56"
    )
    assert (
        Provenance(identity=dict(reversed(tables.items()))).fingerprint() == Provenance(identity=tables).fingerprint()
    )
    data = load_images(str(picture_folder), split="train").facts()
    assert data == {
        "split": "train",
        "samples": 60,
        "picture_size": [16, 16],
        "class_names": ["ant", "bee", "cat"],
        "pixels_sha256": "7b3ae4fa146af6af853c642a88dc7f3ade2eeee6057b7d01ace57a0e372d8b14",
        "labels_sha256": "9730f1010bbf52071abf56ae6989965322c03e19a2cc23876ceb70907bee796b",
    }
    assert view_facts(CropFlip(padding=2, flip=True), 5) == {
        "policy": "crop-flip",
        "padding": 2,
        "flip": True,
        "seed": 5,
    }
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for number, tensor in enumerate(network.state_dict().values()):
            tensor.copy_((torch.arange(tensor.numel()) + number).reshape(tensor.shape))
    assert state_sha256(network) == "7c233b05f61722498e1e5da3e38a6b0a2272fdebe7fe71d077addcf8df1e811e"


def test_every_source_of_the_answers_is_in_the_provenance(
    picture_folder: Path, teachers: Path, pristine_cache: Path
) -> None:
    """What is compared, and what is only recorded; no path, no time."""
    provenance = TeacherFile(pristine_cache / "a.h5").provenance
    identity = provenance.identity
    assert identity["teacher"].keys() >= {"network", "state_sha256", "mean", "std"}
    assert identity["data"].keys() >= {"split", "samples", "class_names", "pixels_sha256", "labels_sha256"}
    assert identity["views"].keys() >= {"policy", "padding", "flip", "seed"}
    assert identity["precision"] == "float32"
    assert provenance.notes.keys() >= {"parameters", "batch_size", "device", "versions"}
    assert str(picture_folder) not in provenance.to_json()
    assert str(teachers) not in provenance.to_json()
