"""Pictures come in one fixed order, with one fingerprint wherever they lie, and bad ones are named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demkd.dataset import CropFlip, DataError, Normalisation, load_images
from tests.conftest import counting_picture


def test_the_digits_have_a_fixed_stratified_split() -> None:
    train, test = load_images("digits", split="train"), load_images("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.pixels.shape == (1437, 8, 8, 3)
    assert train.policy.num_distinct_views == 9
    assert torch.bincount(test.labels).min() >= 35
    assert train.identity()["pixels_sha256"] == "f8aef031a4bc249cfd10edec4aadbe17218a49bb8800262ebfcd61877f3161aa"
    assert test.labels_sha256() == "89df99af78caf5801a1854956b5e1f5f907eeb278efe75e5ba9eca6432682e98"


def test_the_digits_normalisation_is_that_of_their_training_pictures() -> None:
    train = load_images("digits", split="train")
    assert Normalisation.of(train.pixels) == train.usual_normalisation()


def test_a_folder_is_read_in_the_order_of_names(picture_folder: Path) -> None:
    """Sample i is the i-th picture of the sorted classes, and its pixels say so."""
    pictures = load_images(str(picture_folder), split="train")
    assert pictures.class_names == ("ant", "bee", "cat")
    assert len(pictures) == 60
    for index in range(60):
        label, number = divmod(index, 20)
        assert pictures.labels[index] == label
        assert np.array_equal(pictures.pixels[index].numpy(), counting_picture(label, number))
    assert pictures.default_policy == CropFlip(padding=2, flip=True)


def test_a_fingerprint_depends_on_pixels_and_labels_alone(picture_folder: Path, tmp_path: Path) -> None:
    """Another path, another order of creation: the same; one pixel, or one label: another."""
    here = load_images(str(picture_folder), split="train")
    copy = tmp_path / "elsewhere"
    for file in sorted((picture_folder).rglob("*.png"), reverse=True):
        target = copy / file.relative_to(picture_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    there = load_images(str(copy), split="train")
    assert (here.identity()["pixels_sha256"], here.labels_sha256()) == (
        there.identity()["pixels_sha256"],
        there.labels_sha256(),
    )

    pixels = counting_picture(0, 3)
    pixels[5, 5, 0] ^= 1
    Image.fromarray(pixels).save(copy / "train" / "ant" / "003.png")
    assert load_images(str(copy), split="train").identity()["pixels_sha256"] != here.identity()["pixels_sha256"]
    (copy / "train" / "ant" / "019.png").rename(copy / "train" / "bee" / "!first.png")
    assert load_images(str(copy), split="train").labels_sha256() != here.labels_sha256()


def test_normalisation_is_measured_and_applied() -> None:
    pixels = torch.randint(0, 256, (50, 8, 8, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    normalisation = Normalisation.of(pixels)
    share = pixels.double() / 255
    assert normalisation.mean == pytest.approx(share.mean((0, 1, 2)).tolist(), abs=1e-4)
    assert normalisation.std == pytest.approx(share.std((0, 1, 2), correction=0).tolist(), abs=1e-4)
    views = pixels.permute(0, 3, 1, 2)
    expected = (views / 255 - torch.tensor(normalisation.mean).view(3, 1, 1)) / torch.tensor(normalisation.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(normalisation.apply(views), expected, rtol=0, atol=1e-5)


@pytest.fixture
def broken(picture_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(picture_folder, tmp_path / "broken"))


def test_unknown_data_is_refused_with_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set or folder 'cifar1000': name one of digits, cifar10, cifar100"):
        load_images("cifar1000", split="train")
    with pytest.raises(DataError, match="has no folder 'train'"):
        load_images(str(tmp_path), split="train")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has 0 class folders"):
        load_images(str(tmp_path), split="train")


def test_an_empty_class_is_named(broken: Path) -> None:
    for file in (broken / "train" / "bee").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train/bee has no pictures"):
        load_images(str(broken), split="train")


def test_a_class_that_one_split_lacks_is_named(broken: Path) -> None:
    shutil.rmtree(broken / "test" / "cat")
    with pytest.raises(DataError, match="different classes: cat"):
        load_images(str(broken), split="test")


@pytest.mark.parametrize("content", [b"no picture", "truncated"])
def test_an_unreadable_picture_is_named(broken: Path, content: bytes | str) -> None:
    file = broken / "train" / "cat" / "007.png"
    file.write_bytes(file.read_bytes()[:60] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"cat/007\.png cannot be read as a picture"):
        load_images(str(broken), split="train")
