"""The data sets that have a name, and normalization."""

from typing import Any

import pytest
import torch

from demkd.dataset import DataError, Normalization, as_normalization, load_images


def test_the_digits_have_a_fixed_stratified_split() -> None:
    train, test = load_images("digits", split="train"), load_images("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.pixels.shape == (1437, 8, 8, 3)
    assert train.augmentation.num_distinct_views == 9
    assert torch.bincount(test.labels).min() >= 35
    assert train.identity()["pixels_sha256"] == "f8aef031a4bc249cfd10edec4aadbe17218a49bb8800262ebfcd61877f3161aa"
    assert Normalization.of(train.pixels) == train.default_normalization()
    assert test.labels_sha256() == "89df99af78caf5801a1854956b5e1f5f907eeb278efe75e5ba9eca6432682e98"


def test_normalization_is_measured_and_applied() -> None:
    pixels = torch.randint(0, 256, (50, 8, 8, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    normalization = Normalization.of(pixels)
    share = pixels.double() / 255
    assert normalization.mean == pytest.approx(share.mean((0, 1, 2)).tolist(), abs=1e-4)
    assert normalization.std == pytest.approx(share.std((0, 1, 2), correction=0).tolist(), abs=1e-4)
    views = pixels.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
    expected = (views / 255 - mean) / std
    torch.testing.assert_close(normalization.apply(views), expected, rtol=0, atol=1e-5)


def test_unknown_data_is_refused_with_the_known() -> None:
    with pytest.raises(DataError, match="no data set or folder 'cifar1000': name one of digits, cifar10, cifar100"):
        load_images("cifar1000", split="train")


@pytest.mark.parametrize(
    "value",
    [
        "nothing",
        "0,0,0/1,nan,1",
        "0,0,0/1,0,1",
        "0,0/1,1,1",
        "inf,0,0/1,1,1",
        "0,0,0/1e-60,1,1",
        ((0,) * 3, (-1,) * 3),
        3,
    ],
)
def test_a_normalization_that_cannot_be_is_refused_in_a_sentence(value: Any) -> None:
    with pytest.raises(DataError, match=r"is not understood|a normalization cannot have mean .*: give finite numbers"):
        as_normalization(value)


def test_a_normalization_is_a_name_a_text_or_a_pair() -> None:
    expected = Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    for value in ("0.1,0.2,0.3/0.4,0.5,0.6", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))):
        assert as_normalization(value) == expected
    assert as_normalization("none") == Normalization(mean=(0, 0, 0), std=(1, 1, 1))
