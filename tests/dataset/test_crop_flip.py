"""Views replay exactly, all of them are there, and nobody but the seeds decides who sees which."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from demkd.dataset import CropFlip, Records, ViewsError, policy_of, seeded

CIFAR = CropFlip(padding=4, flip=True)
SIZES = np.full((100, 2), 32, np.int32)  # crop-flip does not look at them


def random_pixels(samples: int = 5, side: int = 32) -> torch.Tensor:
    return torch.randint(1, 256, (samples, side, side, 3), dtype=torch.uint8, generator=torch.manual_seed(3))


def table(*, seed: int, samples: int, policy: CropFlip = CIFAR, slots: int) -> Records:
    """The view (V, N) of every slot and sample."""
    return policy.draw(view_seed=seed, slots=range(slots), indices=np.arange(samples), sizes=SIZES)[..., 0]


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
    render = policy.renderer(pixels)
    for number in range(policy.num_distinct_views):
        views = render(torch.arange(5), torch.full((5, 1), number))
        for index in range(5):
            assert torch.equal(views[index], policy.render([pixels[index]], [number], None))
            assert torch.equal(views[index], cut_naively(pixels[index], policy, number)), (index, number)


def test_the_162_views_of_a_picture_are_all_different() -> None:
    views = CIFAR.renderer(random_pixels(1))(torch.zeros(162, dtype=torch.int64), torch.arange(162)[:, None])
    assert CIFAR.num_distinct_views == 162
    assert len({view.numpy().tobytes() for view in views}) == 162


def test_views_of_pictures_that_are_not_square() -> None:
    pixels = torch.randint(1, 256, (2, 6, 9, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    policy = CropFlip(padding=2, flip=True)
    views = policy.renderer(pixels)(torch.tensor([1, 0]), torch.tensor([[7], [31]]))
    assert torch.equal(views[0], cut_naively(pixels[1], policy, 7))
    assert torch.equal(views[1], cut_naively(pixels[0], policy, 31))


def test_the_slots_of_a_sample_are_a_permutation_of_all_views() -> None:
    """Over V = 162 slots every sample meets every view once; so no view twice in V epochs."""
    whole = table(seed=5, samples=100, slots=162)
    assert np.array_equal(np.sort(whole, axis=0), np.tile(np.arange(162)[:, None], (1, 100)))
    assert len({column.tobytes() for column in whole.T}) == 100, "samples have permutations of their own"


def test_fewer_views_are_the_first_ones_and_samples_do_not_depend_on_each_other() -> None:
    """Growing a cache from 2 to 16 views, or a data set, changes nothing that exists; so does drawing some alone."""
    whole = table(seed=5, samples=100, slots=16)
    assert np.array_equal(whole[:2], table(seed=5, samples=100, slots=2))
    assert np.array_equal(whole[:, :7], table(seed=5, samples=7, slots=16))
    some = CIFAR.draw(view_seed=5, slots=[9, 3], indices=np.array([40, 2, 99]), sizes=SIZES)[..., 0]
    assert np.array_equal(some, whole[[9, 3]][:, [40, 2, 99]])


def test_large_tables_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = CropFlip(padding=1, flip=True)
    whole = table(seed=5, samples=1000, policy=policy, slots=18)
    monkeypatch.setattr(seeded, "_ELEMENTS_AT_ONCE", 640)
    assert np.array_equal(whole, table(seed=5, samples=1000, policy=policy, slots=18))


def test_every_view_is_equally_likely_in_every_slot() -> None:
    """Chi-squared over 20,000 samples; 45.3 is the 99.9th percentile of 17 degrees of freedom plus a margin."""
    whole = table(seed=0, samples=20_000, policy=CropFlip(padding=1, flip=True), slots=18)
    for slot in (0, 9, 17):
        counts = np.bincount(whole[slot], minlength=18)
        assert ((counts - 20_000 / 18) ** 2 / (20_000 / 18)).sum() < 45.3


# Written down once. A cache outlives processes, versions and machines; if one of these changes, every cache is stale.
STORED = {
    "view_table": [[79, 136, 41, 139, 52], [7, 146, 63, 48, 134], [84, 67, 52, 78, 121]],
    "slot_of_epoch": [6, 8, 1, 3, 7, 2, 0, 5, 4, 8, 1, 2, 5, 7, 4, 0, 3, 6],
}


def test_the_numbers_are_the_stored_ones() -> None:
    assert table(seed=0, samples=5, slots=3).tolist() == STORED["view_table"]
    slots = [seeded.slot_of_epoch(run_seed=0, epoch=epoch, slots=9) for epoch in range(1, 19)]
    assert slots == STORED["slot_of_epoch"]


def test_the_numbers_are_the_same_in_another_process() -> None:
    code = (
        "import numpy; from demkd.dataset import CropFlip, seeded; policy = CropFlip(padding=4, flip=True);"
        "print(policy.draw(view_seed=0, slots=range(3), indices=numpy.arange(5), sizes=None)[..., 0].tolist(),"
        "policy.draw_epoch(run_seed=1, epoch=2, indices=numpy.arange(6), sizes=None)[:, 0].tolist(),"
        "seeded.sample_order(run_seed=1, epoch=2, samples=6).tolist(), seeded.epoch_seed(run_seed=1, epoch=2))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout
    here = (
        STORED["view_table"],
        CIFAR.draw_epoch(run_seed=1, epoch=2, indices=np.arange(6), sizes=SIZES)[:, 0].tolist(),
        seeded.sample_order(run_seed=1, epoch=2, samples=6).tolist(),
        seeded.epoch_seed(run_seed=1, epoch=2),
    )
    assert printed.split() == " ".join(map(str, here)).split()


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


def test_independent_views_cover_all_there_are() -> None:
    views = CIFAR.draw_epoch(run_seed=0, epoch=1, indices=np.arange(20_000), sizes=SIZES)
    assert set(views[:, 0].tolist()) == set(range(162))


def test_shuffles_are_permutations() -> None:
    assert sorted(seeded.shuffled_samples(seed=0, slot=1, samples=50)) == list(range(50))
    order = seeded.shuffled_teachers(seed=0, slot=1, samples=50, teachers=4)
    assert (np.sort(order, axis=0) == np.arange(4)[:, None]).all()
    assert len({column.tobytes() for column in order.T}) > 10


@pytest.mark.parametrize("slots", [0, -1, 163])
def test_a_number_of_views_that_pictures_do_not_have_is_refused(slots: int) -> None:
    with pytest.raises(ViewsError, match=f"`views` is {slots}, but a picture has 162 different views: choose 1 to 162"):
        CIFAR.require(slots)


def test_more_views_than_a_record_can_number_are_refused_and_not_wrapped() -> None:
    """A folder of pictures 736 pixels high had a padding of 92."""
    assert CropFlip(padding=90, flip=True).num_distinct_views == 65_522
    with pytest.raises(ViewsError, match="a padding of 92 gives 68,450 views, and there may be 65,536"):
        CropFlip(padding=92, flip=True)


def test_a_policy_is_known_by_its_facts() -> None:
    assert policy_of({**CIFAR.facts(), "seed": 3}) == CIFAR
    with pytest.raises(ViewsError, match="no views called 'polka'"):
        policy_of({"policy": "polka"})
    with pytest.raises(ViewsError, match=r"no views called 'crop-flip' with \{'scale': 2\}"):
        policy_of({"policy": "crop-flip", "scale": 2})
