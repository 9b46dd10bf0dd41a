"""What a user holds in Python is a source of the same pictures, or is refused with the sample that is to blame."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from demkd.dataset import DataError, MemoryImages, as_source, load_images
from demkd.dataset.objects import with_classes_of
from tests.conftest import counting_picture

PIXELS = np.stack([counting_picture(number % 3, number) for number in range(6)])  # (6, 16, 16, 3)
LABELS = np.arange(6) % 3


class Pairs(Dataset[Any]):
    """A map-style data set of what it is given."""

    classes = ("ant", "bee", "cat")

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def test_tensors_and_arrays_are_pictures_and_labels() -> None:
    expected = torch.from_numpy(PIXELS)
    for pictures in (PIXELS, expected, expected.movedim(3, 1)):
        for labels in (LABELS, torch.from_numpy(LABELS)):
            source = as_source((pictures, labels), split="train")
            assert torch.equal(torch.stack(source.fetch(range(6))), expected)
            assert source.labels.tolist() == LABELS.tolist()
    gray = PIXELS[..., :1]
    for pictures in (gray[..., 0], gray, torch.from_numpy(gray), torch.from_numpy(gray).movedim(3, 1)):
        source = as_source((pictures, LABELS), split="train")
        assert torch.equal(torch.stack(source.fetch([4])), expected[4:5, :, :, :1].expand(1, 16, 16, 3))


def test_a_copy_with_other_pixels_makes_its_own_views() -> None:
    source = as_source((PIXELS, LABELS), split="train")
    assert isinstance(source, MemoryImages)
    cpu = torch.device("cpu")
    source.renderer(source.default_policy, cpu)
    other = replace(source, pixels=torch.zeros_like(source.pixels))
    record = torch.zeros(1, 1, dtype=torch.int64)
    assert not other.renderer(source.default_policy, cpu)(torch.tensor([3]), record).any()


def test_a_later_change_of_the_users_array_does_not_reach_the_source() -> None:
    pixels = PIXELS.copy()
    source = as_source((pixels, LABELS), split="train")
    before = source.identity()
    pixels[:] = 0
    assert torch.equal(torch.stack(source.fetch(range(6))), torch.from_numpy(PIXELS))
    assert source.identity() == before
    assert as_source((pixels, LABELS), split="train").identity() != before


@pytest.mark.parametrize(
    "make",
    [
        lambda i: (Image.fromarray(PIXELS[i]), int(LABELS[i])),
        lambda i: (PIXELS[i], LABELS[i]),
        lambda i: (torch.from_numpy(PIXELS[i]).movedim(2, 0), torch.tensor(LABELS[i])),
        lambda i: (transforms.functional.to_tensor(Image.fromarray(PIXELS[i])), int(LABELS[i])),
    ],
    ids=["PIL", "arrays", "tensors", "ToTensor"],
)
def test_a_map_style_data_set_of_pictures_in_every_form(make: Callable[[int], Any]) -> None:
    source = as_source(Pairs(make), split="train", called="train")
    assert torch.equal(torch.stack(source.fetch(range(6))), torch.from_numpy(PIXELS))
    assert (source.labels.tolist(), source.class_names) == (LABELS.tolist(), ("ant", "bee", "cat"))


def test_the_same_pictures_have_one_identity_in_whatever_form(picture_folder: Path) -> None:
    """A cache that the command line made of a folder is good for a torchvision data set of it, and for a part too."""
    folder = load_images(str(picture_folder), split="train")
    own = ImageFolder(str(picture_folder / "train"))
    assert as_source(own, split="train").facts() == folder.facts()
    part = as_source(Subset(own, range(30)), split="train")
    assert part.class_names == folder.class_names
    assert torch.equal(torch.stack(part.fetch(range(30))), torch.stack(folder.fetch(range(30))))
    assert as_source(TensorDataset(folder.pixels, folder.labels), split="train").identity() == folder.identity()


def test_a_hugging_face_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"id": datasets.Value("int64"), "img": datasets.Image(), "fine_label":
                                  datasets.ClassLabel(names=["ant", "bee", "cat"])})  # fmt: skip
    rows = {"id": list(range(6)), "img": [Image.fromarray(picture) for picture in PIXELS], "fine_label": LABELS}
    data = datasets.Dataset.from_dict(rows, features=features)
    source = as_source(data, split="train", called="train")
    assert torch.equal(torch.stack(source.fetch(range(6))), torch.from_numpy(PIXELS))
    assert (source.labels.tolist(), source.class_names) == (LABELS.tolist(), ("ant", "bee", "cat"))
    with pytest.raises(DataError, match="a Hugging Face data set has no Image column among id, fine_label"):
        as_source(data.remove_columns("img"), split="train")


def test_a_random_transform_is_refused() -> None:
    """Teachers would answer one crop, and students see another."""
    random = transforms.RandomCrop(16, padding=4)
    torch.manual_seed(0)
    with pytest.raises(
        DataError, match=r"`train`, a Pairs gives another image each time .* leave random transforms out"
    ):
        as_source(Pairs(lambda i: (random(Image.fromarray(PIXELS[i])), 0)), split="train", called="train")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (3, "`train` is a int, which has no pictures by number"),
        ((PIXELS / 255, LABELS), r"has pictures of shape \(6, 16, 16, 3\) and type torch.float64: give 8-bit pixels"),
        ((PIXELS, LABELS[:5]), r"has labels of shape \(5,\)"),
        ((PIXELS, LABELS / 1.0), "type torch.float64: give one integer a picture"),
        ((PIXELS, LABELS - 1), "has labels from -1 to 1 for 2 classes: number them from 0"),
        ((PIXELS[:0], LABELS[:0]), "has no pictures"),
        ((PIXELS[..., :2], LABELS), "give 1 or 3 channels"),
        (Pairs(lambda i: PIXELS[i]), "gives a ndarray as item 0: let it give"),
        (Pairs(lambda i: (PIXELS[i], i)), "has labels from 0 to 5 for 3 classes"),
        (Pairs(lambda i: (PIXELS[i], "ant")), "item 0 of `train`, a Pairs has the label 'ant': give the number"),
        (Pairs(lambda i: (PIXELS[i], 0.5)), "has the label 0.5"),
        (Pairs(lambda i: (torch.full((3, 4, 4), i - 0.5), 0)), "no 8-bit pixels: leave Normalize out"),
        (Pairs(lambda i: (PIXELS[i // 0], 0)), "cannot give item 0 .ZeroDivisionError"),
        (Pairs(lambda i: ([1, 2][i], 0)), "type int64: give a PIL image"),
    ],
)  # fmt: skip
def test_what_has_no_pictures_is_refused_in_a_sentence(data: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        as_source(data, split="train", called="train")
    assert "\n" not in str(caught.value)


def test_a_test_split_takes_the_names_of_the_training_split() -> None:
    named = MemoryImages(name="insects", split="train", pixels=torch.from_numpy(PIXELS),
                         labels=torch.from_numpy(LABELS), class_names=("ant", "bee", "cat"))  # fmt: skip
    numbers = as_source((PIXELS[:2], LABELS[:2]), split="test", called="test")
    assert with_classes_of(named, numbers).class_names == ("ant", "bee", "cat")
    other = MemoryImages(name="birds", split="test", pixels=torch.from_numpy(PIXELS), labels=torch.from_numpy(LABELS),
                         class_names=("owl", "rook", "wren"))  # fmt: skip
    with pytest.raises(DataError, match="birds has the classes owl, rook, wren, and insects has ant, bee, cat"):
        with_classes_of(named, other)
