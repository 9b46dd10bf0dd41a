"""Views replay exactly, all distinct views is complete, and nobody but the seeds decides who sees which."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from demkd.dataset import CropFlip, ViewCutter, ViewsError, seeded

CIFAR = CropFlip(padding=4, flip=True)


def random_pixels(samples: int = 5, side: int = 32) -> torch.Tensor:
    return torch.randint(1, 256, (samples, side, side, 3), dtype=torch.uint8, generator=torch.manual_seed(3))


def cut_naively(picture: torch.Tensor, policy: CropFlip, number: int) -> torch.Tensor:
    """A view by the definition: pad one picture with zeros, crop it, flip it. (3, H, W)"""
    height, width, _ = picture.shape
    flips = 2 if policy.flip else 1
    crop, flipped = divmod(number, flips)
    top, left = divmod(crop, 2 * policy.padding + 1)
    margin = policy.padding
    padded = torch.zeros(height + 2 * margin, width + 2 * margin, 3, dtype=torch.uint8)
    padded[margin : margin + height, margin : margin + width] = picture
    view = padded[top : top + height, left : left + width]
    return (view.flip(1) if flipped else view).permute(2, 0, 1)


@pytest.mark.parametrize("policy", [CIFAR, CropFlip(padding=1, flip=False), CropFlip(padding=0, flip=True)])
def test_every_view_is_the_pixels_of_its_definition(policy: CropFlip) -> None:
    pixels = random_pixels()
    cutter = ViewCutter(pixels, policy)
    for number in range(policy.num_distinct_views):
        views = cutter.cut(torch.arange(5), torch.full((5,), number))
        for index in range(5):
            assert torch.equal(views[index], cut_naively(pixels[index], policy, number)), (index, number)


def test_the_162_views_of_a_picture_are_all_different() -> None:
    cutter = ViewCutter(random_pixels(1), CIFAR)
    views = cutter.cut(torch.zeros(162, dtype=torch.int64), torch.arange(162))
    assert CIFAR.num_distinct_views == 162
    assert len({view.numpy().tobytes() for view in views}) == 162


def test_the_plain_view_is_the_picture() -> None:
    pixels = random_pixels()
    for policy in (CIFAR, CropFlip(padding=1, flip=False)):
        assert torch.equal(ViewCutter(pixels, policy).cut_plain(torch.arange(5)), pixels.permute(0, 3, 1, 2))


def test_views_of_pictures_that_are_not_square() -> None:
    pixels = torch.randint(1, 256, (2, 6, 9, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    policy = CropFlip(padding=2, flip=True)
    views = ViewCutter(pixels, policy).cut(torch.tensor([1, 0]), torch.tensor([7, 31]))
    assert torch.equal(views[0], cut_naively(pixels[1], policy, 7))
    assert torch.equal(views[1], cut_naively(pixels[0], policy, 31))


def test_the_slots_of_a_sample_are_a_permutation_of_the_orbit() -> None:
    """Over V = 162 slots every sample meets every view once; so no view twice in V epochs."""
    table = seeded.view_table(view_seed=5, samples=100, num_distinct_views=162, slots=162)
    assert np.array_equal(np.sort(table, axis=0), np.tile(np.arange(162)[:, None], (1, 100)))
    assert len({column.tobytes() for column in table.T}) == 100, "samples have permutations of their own"


def test_fewer_views_are_the_first_ones_and_samples_do_not_depend_on_each_other() -> None:
    """Growing a cache from 2 to 16 views, or a data set, changes nothing that exists."""
    whole = seeded.view_table(view_seed=5, samples=100, num_distinct_views=162, slots=16)
    assert np.array_equal(whole[:2], seeded.view_table(view_seed=5, samples=100, num_distinct_views=162, slots=2))
    assert np.array_equal(whole[:, :7], seeded.view_table(view_seed=5, samples=7, num_distinct_views=162, slots=16))


def test_large_tables_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seeded.view_table(view_seed=5, samples=1000, num_distinct_views=18, slots=18)
    monkeypatch.setattr(seeded, "_ROWS_AT_ONCE", 64)
    assert np.array_equal(whole, seeded.view_table(view_seed=5, samples=1000, num_distinct_views=18, slots=18))


def test_every_view_is_equally_likely_in_every_slot() -> None:
    """Chi-squared over 20,000 samples; 45.3 is the 99.9th percentile of 17 degrees of freedom plus a margin."""
    table = seeded.view_table(view_seed=0, samples=20_000, num_distinct_views=18, slots=18)
    for slot in (0, 9, 17):
        counts = np.bincount(table[slot], minlength=18)
        assert ((counts - 20_000 / 18) ** 2 / (20_000 / 18)).sum() < 45.3


# Written down once. A cache outlives processes, versions and machines; if one of these changes, every cache is stale.
STORED = {
    "view_table": [[79, 136, 41, 139, 52], [7, 146, 63, 48, 134], [84, 67, 52, 78, 121]],
    "slot_of_epoch": [6, 8, 1, 3, 7, 2, 0, 5, 4, 8, 1, 2, 5, 7, 4, 0, 3, 6],
}


def test_the_numbers_are_the_stored_ones() -> None:
    assert seeded.view_table(view_seed=0, samples=5, num_distinct_views=162, slots=3).tolist() == STORED["view_table"]
    slots = [seeded.slot_of_epoch(run_seed=0, epoch=epoch, slots=9) for epoch in range(1, 19)]
    assert slots == STORED["slot_of_epoch"]


def test_the_numbers_are_the_same_in_another_process() -> None:
    code = (
        "from demkd.dataset import seeded as s;"
        "print(s.view_table(view_seed=0, samples=5, num_distinct_views=162, slots=3).tolist(),"
        "s.random_views(run_seed=1, epoch=2, samples=6, num_distinct_views=162).tolist(),"
        "s.sample_order(run_seed=1, epoch=2, samples=6).tolist(), s.epoch_seed(run_seed=1, epoch=2))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout
    assert (
        printed.split()
        == (
            f"{STORED['view_table']} "
            f"{seeded.random_views(run_seed=1, epoch=2, samples=6, num_distinct_views=162).tolist()} "
            f"{seeded.sample_order(run_seed=1, epoch=2, samples=6).tolist()} "
            f"{seeded.epoch_seed(run_seed=1, epoch=2)}"
        ).split()
    )


def test_every_round_of_epochs_meets_every_slot_once() -> None:
    for seed in (0, 1):
        for turn in range(3):
            epochs = range(turn * 16 + 1, turn * 16 + 17)
            slots = [seeded.slot_of_epoch(run_seed=seed, epoch=epoch, slots=16) for epoch in epochs]
            assert sorted(slots) == list(range(16))


def test_run_seeds_differ_in_the_order_and_not_in_the_views() -> None:
    first, second = (
        [seeded.slot_of_epoch(run_seed=seed, epoch=epoch, slots=16) for epoch in range(1, 17)] for seed in (0, 1)
    )
    assert first != second
    order = seeded.sample_order(run_seed=0, epoch=1, samples=1000)
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, seeded.sample_order(run_seed=1, epoch=1, samples=1000))
    assert not np.array_equal(order, seeded.sample_order(run_seed=0, epoch=2, samples=1000))


def test_independent_views_cover_the_orbit() -> None:
    views = seeded.random_views(run_seed=0, epoch=1, samples=20_000, num_distinct_views=162)
    assert set(views.tolist()) == set(range(162))


def test_shuffles_are_permutations() -> None:
    assert sorted(seeded.shuffled_samples(seed=0, slot=1, samples=50)) == list(range(50))
    order = seeded.shuffled_teachers(seed=0, slot=1, samples=50, teachers=4)
    assert (np.sort(order, axis=0) == np.arange(4)[:, None]).all()
    assert len({column.tobytes() for column in order.T}) > 10


@pytest.mark.parametrize("slots", [0, -1, 163])
def test_a_number_of_views_that_the_orbit_lacks_is_refused(slots: int) -> None:
    with pytest.raises(ViewsError, match=f"--views is {slots}, but a picture has 162 different views: choose 1 to 162"):
        seeded.view_table(view_seed=0, samples=5, num_distinct_views=162, slots=slots)
