"""Views that are drawn without end: torchvision's distributions and pixels, from numbers that never change."""

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as F

from demkd.dataset import (
    CropFlip,
    CutMix,
    MixUp,
    RandAugment,
    Records,
    ResizedCrop,
    ViewPolicy,
    ViewsError,
    as_policy,
    policy_of,
    records_on,
)
from demkd.dataset.policies import ViewChoice
from demkd.dataset.randaugment import OPERATIONS, apply_operation
from demkd.pipeline.recipe import view_words
from tests.conftest import CHECKOUT
from tests.dataset.photos import photo

DRAWS = 10_000
PHOTO = torch.from_numpy(np.array(photo(0, 0)))  # (70, 90, 3)
OTHER = torch.from_numpy(np.array(photo(1, 1)))  # (110, 66, 3)
POLICIES: dict[str, ViewPolicy] = {
    "resized-crop": ResizedCrop(size=24, interpolation="bicubic"),
    "randaugment": RandAugment(base=ResizedCrop(size=24), num_ops=3, magnitude=14),
    "strong crop-flip": RandAugment(base=CropFlip(padding=4, flip=True)),
    "weak and strong": RandAugment(base=CropFlip(padding=4, flip=True), strong_every=2),
    "mixup": MixUp(base=ResizedCrop(size=24), alpha=0.4),
    "cutmix": CutMix(base=RandAugment(base=ResizedCrop(size=24))),
}


def draw(policy: ViewPolicy, sizes: Any, *, slots: Any = (0,), seed: int = 0, indices: Any = None) -> Records:
    chosen = np.arange(len(sizes)) if indices is None else np.array(indices)
    return policy.draw(view_seed=seed, slots=list(slots), indices=chosen, sizes=np.asarray(sizes, np.int32))


@pytest.mark.parametrize(("height", "width"), [(533, 400), (60, 300), (64, 64)])
def test_boxes_have_torchvisions_distribution(height: int, width: int) -> None:
    """Area, ratio and position of 10,000 boxes each, by Kolmogorov and Smirnov; a wide picture often falls back."""
    policy = ResizedCrop()
    ours = draw(policy, [(height, width)] * DRAWS)[0].astype(float)
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, list(policy.scale), list(policy.ratio)) for _ in range(DRAWS)], float
    )
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] / np.maximum(height - b[:, 2], 1),
    ):
        assert kstest(measure(ours), measure(theirs)).pvalue > 1e-3
    assert abs(ours[:, 4].mean() - 0.5) < 0.02
    other_slot = draw(policy, [(height, width)] * DRAWS, slots=[1])[0]
    assert (other_slot[:, :4] == ours[:, :4]).all(1).mean() < 0.2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 160])
def test_a_view_is_torchvisions_crop_resize_and_flip(interpolation: str, size: int) -> None:
    policy = ResizedCrop(size=size, interpolation=interpolation)
    image = PHOTO.permute(2, 0, 1)
    for record in draw(policy, [PHOTO.shape[:2]] * 50)[0].tolist():
        top, left, height, width, flipped = record
        mode = transforms.InterpolationMode(interpolation)
        expected = F.resized_crop(image, top, left, height, width, [size, size], interpolation=mode, antialias=True)
        expected = F.horizontal_flip(expected) if flipped else expected
        assert torch.equal(policy.render([PHOTO], record, None), expected)


def test_a_box_is_the_same_at_two_sizes() -> None:
    """A teacher at 48 pixels and a student at 24 see one part: averaged to one size, they differ by little."""
    policy = ResizedCrop(size=48)
    for record in draw(policy, [PHOTO.shape[:2]] * 20)[0].tolist():
        large, small = policy.render([PHOTO], record, 48), policy.render([PHOTO], record, 24)
        halved = torch.nn.functional.avg_pool2d(large[None].float(), 2)[0]
        assert (halved - small.float()).abs().mean() < 3
        other = policy.render([PHOTO], [record[0] // 2, record[1] // 2, *record[2:]], 24)
        assert torch.equal(other, small) == (record[:2] == [0, 0])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 14, 30])
@pytest.mark.parametrize("negative", [False, True])
def test_randaugments_operations_are_torchvisions(operation: str, magnitude: int, negative: bool) -> None:
    theirs = transforms.RandAugment(magnitude=magnitude)
    magnitudes, signed = theirs._AUGMENTATION_SPACE[operation]
    table = magnitudes(31, 70, 90)
    value = 0.0 if table is None else float(table[magnitude]) * (-1 if signed and negative else 1)
    image = PHOTO.permute(2, 0, 1)
    expected = theirs._apply_image_or_video_transform(
        image, operation, value, interpolation=theirs.interpolation, fill=theirs._fill
    )
    assert torch.equal(apply_operation(image, operation, magnitude, negative=negative), expected)


def test_all_operations_come_equally_often() -> None:
    policy = RandAugment(base=ResizedCrop(size=8), num_ops=2)
    codes = draw(policy, [(90, 70)] * DRAWS)[0][:, 5:].ravel()
    counts = np.bincount(codes, minlength=28)
    assert len(counts) == 28
    expected = len(codes) / 28
    assert ((counts - expected) ** 2 / expected).sum() < 56  # the 99.9th percentile of 27 degrees of freedom


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_mixups_shares_are_of_the_beta_distribution(alpha: float) -> None:
    """Of the larger of both shares, which is the sample's own; partners are uniform over all samples."""
    policy = MixUp(base=ResizedCrop(size=8), alpha=alpha)
    mixture = policy.mixture(records_on(torch.device("cpu"), draw(policy, [(90, 70)] * DRAWS)[0]))
    share = mixture.share.double().numpy()
    assert share.min() >= 0.5 - 1e-4
    theirs = beta.rvs(alpha, alpha, size=DRAWS, random_state=0)
    rounded = np.rint(np.maximum(theirs, 1 - theirs) * 65_535) / 65_535  # as a record holds them
    assert kstest(share, rounded).pvalue > 1e-3
    assert kstest(mixture.partners.numpy() / DRAWS, "uniform").pvalue > 1e-3


def render(policy: ViewPolicy, record: list[int], size: int | None = None) -> Tensor:
    pictures = [PHOTO, OTHER]
    return policy.render([pictures[0], *(pictures[other] for other in policy.others(record))], record, size)


def test_mixups_pictures_are_the_formula() -> None:
    base = ResizedCrop(size=24)
    policy = MixUp(base=base, alpha=1.0)
    sizes = [PHOTO.shape[:2], OTHER.shape[:2]]
    for slot in range(20):
        record = draw(policy, sizes, slots=[slot])[0][0].tolist()
        mixture = policy.mixture(torch.tensor([record]))
        partner, share = int(mixture.partners), float(mixture.share)
        own = base.render([PHOTO], record[:5], None).double()
        other = base.render([[PHOTO, OTHER][partner]], record[5:10], None).double()
        found = render(policy, record).double()
        assert (found - (share * own + (1 - share) * other)).abs().max() <= 0.5 + 1e-3  # rounded to whole levels


def test_cutmix_pastes_a_box_and_counts_its_area() -> None:
    base = ResizedCrop(size=64)
    policy = CutMix(base=base)
    sizes = [PHOTO.shape[:2], OTHER.shape[:2]]
    for slot in range(20):
        record = draw(policy, sizes, slots=[slot])[0][0].tolist()
        mixture = policy.mixture(torch.tensor([record]))
        own = base.render([PHOTO], record[:5], None)
        other = base.render([[PHOTO, OTHER][int(mixture.partners)]], record[5:10], None)
        found = render(policy, record)
        top, left, bottom, right = (round(number / 65_535 * 64) for number in record[12:])
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(found[:, inside], other[:, inside])
        assert torch.equal(found[:, ~inside], own[:, ~inside])
        assert float(mixture.share) == pytest.approx(1 - inside.float().mean().item(), abs=0.04)


@pytest.mark.parametrize("name", POLICIES)
def test_a_record_is_a_pure_function_of_seed_slot_and_sample(name: str) -> None:
    """Whichever samples and slots are drawn together; and it depends on each of the three."""
    policy = POLICIES[name]
    sizes = [(90, 70), (66, 110), (80, 80)] * 20
    whole = draw(policy, sizes, slots=range(6), seed=5)
    assert whole.shape == (6, 60, policy.record_length)
    assert np.array_equal(draw(policy, sizes, slots=[4, 1], seed=5, indices=[33, 2]), whole[[4, 1]][:, [33, 2]])
    assert (whole[0] != whole[1]).any(1).mean() > 0.9
    assert (whole[:, 0] != whole[:, 3]).any()
    assert (draw(policy, sizes, seed=6)[0] != whole[0]).any(1).mean() > 0.9


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_survives_its_facts(name: str) -> None:
    """What a provenance keeps, or the words of a recipe, make the same policy."""
    policy = POLICIES[name]
    assert policy_of(policy.facts()) == policy
    words = {key: value for key, value in view_words(policy.facts()).items() if value is not None}
    size = policy.view_size
    default = CropFlip(padding=4, flip=True)
    assert as_policy(ViewChoice(**words, size=size), default) == policy


# Written down once. A cache outlives processes, versions and machines; if one of these changes, every cache is stale.
STORED = """
32 25 35 41 0 17 29 24 28 0 34 18 56 48 1 17 6 63 57 1
32 25 35 41 0 6 15 17 29 24 28 0 2 9 0 1 54451 17 29 24 28 0 2 9 17 29 24 28 0 2 9 0 1 58099
34 18 56 48 1 22 20 34 18 56 48 1 22 20 0 0 45929 17 6 63 57 1 12 15 34 18 56 48 1 22 20 0 0 63726
32 25 35 41 0 17 29 24 28 0 0 1 0 0 31473 24428 17 29 24 28 0 17 29 24 28 0 0 1 45392 33281 65535 65535
34 18 56 48 1 34 18 56 48 1 0 0 13211 20289 58997 65535 17 6 63 57 1 34 18 56 48 1 0 0 3009 0 36054 18842
"""


def test_the_numbers_are_the_stored_ones_in_another_process_too() -> None:
    code = (
        "import numpy; from demkd.dataset import *\n"
        "sizes = numpy.array([(90, 70), (110, 66)], numpy.int32)\n"
        "box = ResizedCrop(size=24)\n"
        "for policy in (box, MixUp(base=RandAugment(base=box), alpha=0.4), CutMix(base=box)):\n"
        "    print(policy.draw(view_seed=3, slots=[0, 7], indices=numpy.arange(2), sizes=sizes).ravel().tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert re.findall(r"\d+", result.stdout) == STORED.split(), result.stderr


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"view": "center-crop"}, r"`view` cannot be 'center-crop': choose crop-flip or resized-crop, or either with"),
        ({"view": "resized-crop+autoaugment"}, "cannot be 'resized-crop.autoaugment'"),
        ({"view": "crop-flip", "size": 32}, "`size` is of `view=resized-crop`"),
        ({"magnitude": 3}, "RandAugment's options are given without it: add it"),
        ({"view": "crop-flip+randaugment", "magnitude": 31}, "`magnitude` is 31: choose 0 to 30"),
        ({"mix": "mixout"}, "`mix` cannot be 'mixout': choose mixup or cutmix"),
        ({"mix_alpha": 0.2}, "`mix_alpha` is of MixUp and CutMix"),
        ({"mix": "mixup", "mix_alpha": 0.0}, "`mix_alpha` is 0.0: choose above 0, at most 2"),
        ({"view": "resized-crop", "scale": (0.5, 0.1)}, r"`scale` is \(0.5, 0.1\)"),
        ({"view": "resized-crop", "ratio": (1.0,)}, r"`ratio` is \(1.0,\)"),
        ({"view": "resized-crop", "size": 0}, "`size` is 0: give pixels"),
        ({"view": "resized-crop", "interpolation": "nearest"}, "`interpolation` cannot be 'nearest'"),
    ],
)
def test_views_that_cannot_be_are_refused_in_a_sentence(choice: dict[str, Any], reason: str) -> None:
    with pytest.raises(ViewsError, match=reason):
        as_policy(ViewChoice(**choice), CropFlip(padding=4, flip=True))


def test_a_box_outside_its_picture_is_refused() -> None:
    with pytest.raises(ViewsError, match=r"the box 80 x 60 at \(20, 0\) lies outside a picture of 90 x 70 pixels"):
        ResizedCrop().render([PHOTO], [0, 20, 60, 80, 0], 32)


def test_weak_and_strong_slots_take_turns() -> None:
    """Weak ones are the base's views, strong ones as without turns; caches of before stay what they were."""
    base = CropFlip(padding=4, flip=True)
    always, turns = RandAugment(base=base), RandAugment(base=base, strong_every=2)
    sizes = [(32, 32)] * 50
    every, some = draw(always, sizes, slots=range(4)), draw(turns, sizes, slots=range(4))
    assert np.array_equal(every[[1, 3]], some[[1, 3]])
    assert (some[[0, 2]][..., 1:] == 0).all(), "the identity"
    picture = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    for slot in (0, 2):
        record = some[slot, 7].tolist()
        assert torch.equal(turns.render([picture], record, None), base.render([picture], record[:1], None))
    assert "strong_every" not in always.facts()
    assert policy_of(turns.facts()) == turns
    with pytest.raises(ViewsError, match="`strong_every` is 0: choose 1 or more"):
        RandAugment(base=base, strong_every=0)
