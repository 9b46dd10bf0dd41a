"""Views of crop-flip are exact and complete, and only seeds decide which sample has which."""

import numpy as np
import pytest
import torch

from demkd.dataset import CropFlip, DataError, Params, augmentation_from, seeds

CIFAR = CropFlip(padding=4, flip=True)
SIZES = np.full((100, 2), 32, np.int32)  # crop-flip does not look at them


def table(*, seed: int, samples: int, policy: CropFlip = CIFAR, views: int) -> Params:
    """The view number (V, N) of every view index and sample."""
    return policy.make_params(view_seed=seed, view_indices=range(views), indices=np.arange(samples), sizes=SIZES)[
        ..., 0
    ]


def cut_naively(image: torch.Tensor, policy: CropFlip, number: int) -> torch.Tensor:
    """A view by the definition: pad one image with zeros, crop it, flip it. (3, H, W)"""
    height, width, _ = image.shape
    flips = 2 if policy.flip else 1
    crop, flipped = divmod(number, flips)
    top, left = divmod(crop, 2 * policy.padding + 1)
    margin = policy.padding
    padded = torch.zeros(height + 2 * margin, width + 2 * margin, 3, dtype=torch.uint8)
    padded[margin : margin + height, margin : margin + width] = image
    view = padded[top : top + height, left : left + width]
    return (view.flip(1) if flipped else view).permute(2, 0, 1)


@pytest.mark.parametrize("policy", [CIFAR, CropFlip(padding=1, flip=False), CropFlip(padding=0, flip=True)])
@pytest.mark.parametrize("shape", [(32, 32), (6, 9)])
def test_every_view_is_the_pixels_of_its_definition(policy: CropFlip, shape: tuple[int, int]) -> None:
    pixels = torch.randint(1, 256, (3, *shape, 3), dtype=torch.uint8, generator=torch.manual_seed(3))
    apply = policy.batch_apply(pixels)
    for number in range(policy.num_distinct_views):
        views = apply(torch.arange(3), torch.full((3, 1), number))
        for index in range(3):
            assert torch.equal(views[index], policy.apply([pixels[index]], [number], None))
            assert torch.equal(views[index], cut_naively(pixels[index], policy, number)), (index, number)


def test_the_views_of_a_sample_are_a_permutation_of_all_views() -> None:
    """Over V = 162 views every sample meets every view once; so no view twice in V epochs."""
    whole = table(seed=5, samples=100, views=162)
    assert np.array_equal(np.sort(whole, axis=0), np.tile(np.arange(162)[:, None], (1, 100)))
    assert len({column.tobytes() for column in whole.T}) == 100, "samples have permutations of their own"


def test_fewer_views_are_the_first_ones_and_samples_do_not_depend_on_each_other() -> None:
    """Growing a cache from 2 to 16 views, or a data set, changes nothing that exists; so does drawing some alone."""
    whole = table(seed=5, samples=100, views=16)
    assert np.array_equal(whole[:2], table(seed=5, samples=100, views=2))
    assert np.array_equal(whole[:, :7], table(seed=5, samples=7, views=16))
    some = CIFAR.make_params(view_seed=5, view_indices=[9, 3], indices=np.array([40, 2, 99]), sizes=SIZES)[..., 0]
    assert np.array_equal(some, whole[[9, 3]][:, [40, 2, 99]])


def test_large_tables_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = CropFlip(padding=1, flip=True)
    whole = table(seed=5, samples=1000, policy=policy, views=18)
    monkeypatch.setattr(seeds, "_ELEMENTS_AT_ONCE", 640)
    assert np.array_equal(whole, table(seed=5, samples=1000, policy=policy, views=18))


def test_every_view_is_equally_likely_at_every_view_index() -> None:
    """Chi-squared over 20,000 samples; 45.3 is the 99.9th percentile of 17 degrees of freedom plus a margin."""
    whole = table(seed=0, samples=20_000, policy=CropFlip(padding=1, flip=True), views=18)
    for view in (0, 9, 17):
        counts = np.bincount(whole[view], minlength=18)
        assert ((counts - 20_000 / 18) ** 2 / (20_000 / 18)).sum() < 45.3
    independent = CIFAR.make_epoch_params(run_seed=0, epoch=1, indices=np.arange(20_000), sizes=SIZES)
    assert set(independent[:, 0].tolist()) == set(range(162))


def test_every_round_of_epochs_shows_every_view_once() -> None:
    """In an order of the run's seed; the order of samples is of the seed and the epoch."""
    orders = []
    for seed in (0, 1):
        for turn in range(3):
            epochs = range(turn * 16 + 1, turn * 16 + 17)
            orders.append([seeds.view_of_epoch(run_seed=seed, epoch=epoch, num_views=16) for epoch in epochs])
            assert sorted(orders[-1]) == list(range(16))
    assert orders[0] != orders[3]
    order = seeds.sample_order(run_seed=0, epoch=1, samples=1000)
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, seeds.sample_order(run_seed=1, epoch=1, samples=1000))
    assert not np.array_equal(order, seeds.sample_order(run_seed=0, epoch=2, samples=1000))


def test_shuffles_are_permutations() -> None:
    assert sorted(seeds.shuffled_samples(seed=0, view_index=1, samples=50)) == list(range(50))
    order = seeds.shuffled_teachers(seed=0, view_index=1, samples=50, teachers=4)
    assert (np.sort(order, axis=0) == np.arange(4)[:, None]).all()
    assert len({column.tobytes() for column in order.T}) > 10


@pytest.mark.parametrize("views", [0, -1, 163])
def test_a_number_of_views_that_images_do_not_have_is_refused(views: int) -> None:
    with pytest.raises(DataError, match=f"`views` is {views}, but an image has 162 different views: choose 1 to 162"):
        CIFAR.check_views(views)


def test_more_views_than_16_bits_can_number_are_refused_and_not_wrapped() -> None:
    """A folder of images 736 pixels high had a padding of 92."""
    assert CropFlip(padding=90, flip=True).num_distinct_views == 65_522
    with pytest.raises(DataError, match="a padding of 92 gives 68,450 views, and there may be 65,536"):
        CropFlip(padding=92, flip=True)


def test_an_augmentation_is_known_by_its_dict() -> None:
    assert augmentation_from({**CIFAR.to_dict(), "seed": 3}) == CIFAR
    with pytest.raises(DataError, match="no views called 'polka'"):
        augmentation_from({"policy": "polka"})
    with pytest.raises(DataError, match=r"no views called 'crop-flip' with \{'scale': 2\}"):
        augmentation_from({"policy": "crop-flip", "scale": 2})


def test_noisy_labels_are_wrong_in_exactly_the_share_asked_for() -> None:
    """Of the same seed the same samples, and more of them in the same way with a larger share; every class can come."""
    labels = np.arange(1000) % 10
    few, many = (seeds.noisy_labels(labels, share=share, classes=10, seed=3) for share in (0.2, 0.4))
    assert (few != labels).sum() == 200
    assert (many != labels).sum() == 400
    assert np.array_equal(few[few != labels], many[few != labels])
    assert set(many) == set(range(10))
    assert np.array_equal(seeds.noisy_labels(labels, share=0.0, classes=10, seed=3), labels)
    assert not np.array_equal(seeds.noisy_labels(labels, share=0.2, classes=10, seed=4), few)
    with pytest.raises(DataError, match="with one class no label can be wrong"):
        seeds.noisy_labels(np.zeros(5, np.int64), share=0.5, classes=1, seed=0)
