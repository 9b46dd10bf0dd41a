"""Data in Python are a data set of the same images, or are refused with the name of the bad sample."""

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

from demkd.dataset import ArrayDataset, DataError, as_dataset, load_images, with_classes_of
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


def test_tensors_and_arrays_are_images_and_labels() -> None:
    expected = torch.from_numpy(PIXELS)
    for images in (PIXELS, expected, expected.movedim(3, 1)):
        for labels in (torch.from_numpy(LABELS), *(LABELS.astype(kind) for kind in (">i8", "<u2", "int8", "uint64"))):
            source = as_dataset((images, labels), split="train")
            assert torch.equal(source.pixels, expected)
            assert (source.labels.dtype, source.labels.tolist()) == (torch.int64, LABELS.tolist())
    gray = PIXELS[..., :1]
    for images in (gray[..., 0], gray, torch.from_numpy(gray), torch.from_numpy(gray).movedim(3, 1)):
        source = as_dataset((images, LABELS), split="train")
        assert torch.equal(source.read(4)[None], expected[4:5, :, :, :1].expand(1, 16, 16, 3))
    pixels = PIXELS[:, ::-1, ::-1].copy()
    source = as_dataset((pixels[:, ::-1, ::-1], LABELS), split="train")
    pixels[:] = 0
    assert torch.equal(source.pixels, expected), "a copy"
    assert source.name == "a pair of ndarrays"


def test_a_copy_with_other_pixels_makes_its_own_views() -> None:
    source = as_dataset((PIXELS, LABELS), split="train")
    cpu = torch.device("cpu")
    source.batch_apply(source.default_augmentation, cpu)
    other = replace(source, pixels=torch.zeros_like(source.pixels))
    params = torch.zeros(1, 1, dtype=torch.int64)
    assert not other.batch_apply(source.default_augmentation, cpu)(torch.tensor([3]), params).any()


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
def test_a_map_style_data_set_of_images_in_every_form(make: Callable[[int], Any]) -> None:
    source = as_dataset(Pairs(make), split="train", called="train")
    assert torch.equal(source.pixels, torch.from_numpy(PIXELS))
    assert (source.labels.tolist(), source.class_names) == (LABELS.tolist(), ("ant", "bee", "cat"))


def test_the_same_images_have_one_identity_in_whatever_form(picture_folder: Path) -> None:
    """A cache that the command line made of a folder is good for a torchvision data set of it, and for a part too."""
    folder = load_images(str(picture_folder), split="train")
    own = ImageFolder(str(picture_folder / "train"))
    assert as_dataset(own, split="train").provenance() == folder.provenance()
    part = as_dataset(Subset(own, range(30)), split="train")
    assert part.class_names == folder.class_names
    assert torch.equal(torch.stack([part.read(i) for i in range(30)]), torch.stack([folder.read(i) for i in range(30)]))
    assert as_dataset(TensorDataset(folder.pixels, folder.labels), split="train").identity() == folder.identity()


def test_a_hugging_face_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"id": datasets.Value("int64"), "img": datasets.Image(), "fine_label":
                                  datasets.ClassLabel(names=["ant", "bee", "cat"])})  # fmt: skip
    rows = {"id": list(range(6)), "img": [Image.fromarray(image) for image in PIXELS], "fine_label": LABELS}
    data = datasets.Dataset.from_dict(rows, features=features)
    source = as_dataset(data, split="train", called="train")
    assert torch.equal(source.pixels, torch.from_numpy(PIXELS))
    assert (source.labels.tolist(), source.class_names) == (LABELS.tolist(), ("ant", "bee", "cat"))
    with pytest.raises(DataError, match="a Hugging Face data set has no Image column among id, fine_label"):
        as_dataset(data.remove_columns("img"), split="train")


def test_a_random_transform_is_refused() -> None:
    """Teachers would see one crop, and students another."""
    random = transforms.RandomCrop(16, padding=4)
    torch.manual_seed(0)
    with pytest.raises(
        DataError, match=r"`train`, a Pairs gives another image each time .* leave random transforms out"
    ):
        as_dataset(Pairs(lambda i: (random(Image.fromarray(PIXELS[i])), 0)), split="train", called="train")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (3, "`train` is a int, which has no images by number"),
        ((PIXELS / 255, LABELS), r"has images of shape \(6, 16, 16, 3\) and type float64: give 8-bit pixels"),
        ((PIXELS, LABELS[:5]), r"has labels of shape \(5,\)"),
        ((PIXELS, LABELS / 1.0), r"labels of type float64, such as .*: give integers"),
        ((PIXELS, LABELS * 1j), "labels of type complex128"),
        ((PIXELS, LABELS > 0), "labels of type bool"),
        ((PIXELS, np.array(list("abcabc"))), "labels of type text, such as .*'a'.*: give integers"),
        ((PIXELS, np.array(list("abcabc"), object)), "labels of type text, such as 'a'"),
        ((PIXELS, LABELS - 1), "has labels from -1 to 1: number the classes from 0"),
        ((PIXELS, LABELS + 1), "has labels from 1 to 3, but none is 0: number the classes from 0"),
        ((PIXELS, LABELS * 2), "has labels from 0 to 4, but none is 1, 3: number the classes from 0 without gaps"),
        ((PIXELS, LABELS << 40), "has labels from 0 to 2199023255552: number the classes from 0"),
        ((np.ma.masked_array(PIXELS, PIXELS > 9), LABELS), "has masked images: give an array without a mask"),
        ((PIXELS, np.ma.masked_array(LABELS, LABELS > 1)), "has masked labels"),
        (Pairs(lambda i: (PIXELS[i], 2**70)), "has the label 1180591620717411303424"),
        ((PIXELS[:0], LABELS[:0]), "has no images"),
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
def test_what_has_no_images_is_refused_in_a_sentence(data: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        as_dataset(data, split="train", called="train")
    assert "\n" not in str(caught.value)


def test_a_test_split_takes_the_names_of_the_training_split() -> None:
    named = ArrayDataset(name="insects", split="train", pixels=torch.from_numpy(PIXELS),
                         labels=torch.from_numpy(LABELS), class_names=("ant", "bee", "cat"))  # fmt: skip
    numbers = as_dataset((PIXELS[:2], LABELS[:2]), split="test", called="test")
    assert with_classes_of(named, numbers).class_names == ("ant", "bee", "cat")
    other = ArrayDataset(name="birds", split="test", pixels=torch.from_numpy(PIXELS), labels=torch.from_numpy(LABELS),
                         class_names=("owl", "rook", "wren"))  # fmt: skip
    with pytest.raises(DataError, match="of birds has the classes owl, rook, wren, and the train split of insects "):
        with_classes_of(named, other)
