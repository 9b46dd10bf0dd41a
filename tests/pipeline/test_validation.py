"""A run with validation images sees the test images once; which images are held out depends on the seed alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demkd.config import AugmentConfig, ConfigError
from demkd.dataset import DataError, has_validation, load_images, seeds
from demkd.errors import UserError
from demkd.pipeline.evaluate import evaluate
from demkd.pipeline.runs import RunFolder
from demkd.pipeline.targets import SoftTargetLoader
from demkd.report.compare import read_run
from demkd.teachers.load import InputChoice, load_network
from tests.pipeline.stages import FLOAT32, Recorder, Workshop, train_network


@pytest.fixture(scope="module")
def validated_folder(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, with some of `train/` as `validation/` too."""
    folder = tmp_path_factory.mktemp("validated") / "images"
    shutil.copytree(picture_folder, folder)
    for path in sorted((picture_folder / "train").glob("*/00[0-6].png")):
        place = folder / "validation" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


@pytest.mark.parametrize("changes", [{}, {"validation_fraction": 0.25}])
def test_validation_images_are_measured_after_every_epoch_and_test_images_once(
    workshop: Workshop, validated_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The best epoch is that of the validation images; a run that is interrupted ends with the same bytes."""
    data = workshop.data if changes else validated_folder
    report = train_network(data, "resnet8", tmp_path / "run", epochs=3, **changes)
    lines = RunFolder(tmp_path / "run").read_metrics()
    assert [line["test_top1"] is None for line in lines] == [True, True, False]
    validation = [line["validation_top1"] for line in lines]
    assert (report.best_split, report.best_top1) == ("validation", max(validation))
    assert report.best_epoch == 1 + validation.index(max(validation))
    finished = read_run(tmp_path / "run")
    assert (finished.last, list(finished.top1)) == (report.test_top1, validation)

    images = load_images(str(data), split="train" if changes else "validation")
    held = seeds.validation_samples(images.labels.numpy(), fraction=0.25, seed=0) if changes else np.arange(21)
    loaded = load_network(tmp_path / "run", name=None, dataset=images, choice=InputChoice())
    accuracy = evaluate(loaded.network, images, loaded.input, FLOAT32, samples=torch.from_numpy(held))
    assert accuracy.top1 == validation[-1]

    with pytest.raises(KeyboardInterrupt):
        train_network(data, "resnet8", tmp_path / "stopped", epochs=3, progress=Recorder(interrupt_after=2), **changes)
    train_network(data, "resnet8", tmp_path / "stopped", epochs=3, **changes)
    one, other = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("run", "stopped"))
    assert one == other


def test_other_validation_images_do_not_resume_a_run(
    workshop: Workshop, validated_folder: Path, tmp_path: Path
) -> None:
    """Another best epoch would be chosen from a mixture of both."""
    data, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(validated_folder, data)
    with pytest.raises(KeyboardInterrupt):
        train_network(data, "resnet8", out, epochs=3, progress=Recorder(interrupt_after=2))
    next(data.glob("validation/*/*.png")).unlink()
    with pytest.raises(UserError, match="validation_pixels_sha256"):
        train_network(data, "resnet8", out, epochs=3)


def test_a_run_without_validation_measures_test_images_after_every_epoch(workshop: Workshop, tmp_path: Path) -> None:
    report = train_network(workshop.data, "resnet8", tmp_path / "run", epochs=2)
    assert report.best_split == "test"
    lines = RunFolder(tmp_path / "run").read_metrics()
    assert all(line["validation_top1"] is None and line["test_top1"] >= 0 for line in lines)


def test_held_out_samples_are_a_fraction_of_each_class_that_no_batch_has(workshop: Workshop) -> None:
    labels = np.repeat([2, 0, 1], [40, 20, 3])
    held = seeds.validation_samples(labels, fraction=0.25, seed=3)
    assert np.bincount(labels[held]).tolist() == [5, 1, 10]
    assert held.tolist() == sorted(set(held.tolist()))
    assert held.tolist() != seeds.validation_samples(labels, fraction=0.25, seed=4).tolist()
    used = np.delete(np.arange(60), [0, 17, 59])
    loader = SoftTargetLoader(workshop.cache, str(workshop.data), device="cpu", batch_size=16, indices=used)
    assert sorted(torch.cat([batch.indices for batch in loader]).tolist()) == used.tolist()
    assert len(loader) == 4


def test_validation_that_contradicts_itself_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    for changes, why in (
        ({"augment": AugmentConfig(mix="mixup")}, "would train on held-out images"),
        ({"validation": str(workshop.data)}, "there are validation images"),
    ):
        with pytest.raises(ConfigError, match=why):
            train_network(workshop.data, "resnet8", tmp_path / "run", validation_fraction=0.25, **changes)


def test_a_data_set_of_a_name_has_no_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a folder of that name has some, because the name wins; they are never its training images."""
    for name in ("test", "validation"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert has_validation("./digits")
    assert not has_validation("digits")
    with pytest.raises(DataError, match="digits has no validation images: hold out a part of the training images"):
        load_images("digits", split="validation")
