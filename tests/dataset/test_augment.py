"""Endless views: torchvision's distributions and pixels, from numbers that never change."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as F

from demkd.config import AugmentConfig, ConfigError
from demkd.dataset import (
    Augmentation,
    CropFlip,
    CutMix,
    DataError,
    MixUp,
    Params,
    RandAugment,
    ResizedCrop,
    as_augmentation,
    augmentation_from,
    params_on,
    seeds,
)
from demkd.dataset.randaugment import OPERATIONS, apply_operation
from demkd.dataset.registry import augment_options
from tests.dataset.photos import photo

DRAWS = 10_000
PHOTO = torch.from_numpy(np.array(photo(0, 0)))  # (70, 90, 3)
OTHER = torch.from_numpy(np.array(photo(1, 1)))  # (110, 66, 3)
AUGMENTATIONS: dict[str, Augmentation] = {
    "resized-crop": ResizedCrop(size=24, interpolation="bicubic"),
    "randaugment": RandAugment(base=ResizedCrop(size=24), num_ops=3, magnitude=14),
    "strong crop-flip": RandAugment(base=CropFlip(padding=4, flip=True)),
    "weak and strong": RandAugment(base=CropFlip(padding=4, flip=True), strong_every=2),
    "mixup": MixUp(base=ResizedCrop(size=24), alpha=0.4),
    "cutmix": CutMix(base=RandAugment(base=ResizedCrop(size=24))),
}


def draw(policy: Augmentation, sizes: Any, *, views: Any = (0,), seed: int = 0, indices: Any = None) -> Params:
    chosen = np.arange(len(sizes)) if indices is None else np.array(indices)
    return policy.make_params(
        view_seed=seed, view_indices=list(views), indices=chosen, sizes=np.asarray(sizes, np.int32)
    )


@pytest.mark.parametrize(("height", "width"), [(533, 400), (60, 300), (64, 64)])
def test_boxes_have_torchvisions_distribution(height: int, width: int) -> None:
    """Area, ratio and position of 10,000 boxes each, by Kolmogorov and Smirnov; a wide image often falls back."""
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
    other_view = draw(policy, [(height, width)] * DRAWS, views=[1])[0]
    assert (other_view[:, :4] == ours[:, :4]).all(1).mean() < 0.2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 160])
def test_a_view_is_torchvisions_crop_resize_and_flip(interpolation: str, size: int) -> None:
    policy = ResizedCrop(size=size, interpolation=interpolation)
    image = PHOTO.permute(2, 0, 1)
    for params in draw(policy, [PHOTO.shape[:2]] * 50)[0].tolist():
        top, left, height, width, flipped = params
        mode = transforms.InterpolationMode(interpolation)
        expected = F.resized_crop(image, top, left, height, width, [size, size], interpolation=mode, antialias=True)
        expected = F.horizontal_flip(expected) if flipped else expected
        assert torch.equal(policy.apply([PHOTO], params, None), expected)


def test_a_box_is_the_same_at_two_sizes() -> None:
    """A teacher at 48 pixels and a student at 24 see one part: averaged to one size, they differ by little."""
    policy = ResizedCrop(size=48)
    for params in draw(policy, [PHOTO.shape[:2]] * 20)[0].tolist():
        large, small = policy.apply([PHOTO], params, 48), policy.apply([PHOTO], params, 24)
        halved = torch.nn.functional.avg_pool2d(large[None].float(), 2)[0]
        assert (halved - small.float()).abs().mean() < 3
        other = policy.apply([PHOTO], [params[0] // 2, params[1] // 2, *params[2:]], 24)
        assert torch.equal(other, small) == (params[:2] == [0, 0])


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
    mixture = policy.mixture(params_on(torch.device("cpu"), draw(policy, [(90, 70)] * DRAWS)[0]))
    share = mixture.share.double().numpy()
    assert share.min() >= 0.5 - 1e-4
    theirs = beta.rvs(alpha, alpha, size=DRAWS, random_state=0)
    rounded = np.rint(np.maximum(theirs, 1 - theirs) * 65_535) / 65_535  # as params store them
    assert kstest(share, rounded).pvalue > 1e-3
    assert kstest(mixture.partners.numpy() / DRAWS, "uniform").pvalue > 1e-3


def apply_view(policy: Augmentation, params: list[int], size: int | None = None) -> Tensor:
    images = [PHOTO, OTHER]
    return policy.apply([images[0], *(images[other] for other in policy.partners(params))], params, size)


def test_mixups_images_are_the_formula() -> None:
    base = ResizedCrop(size=24)
    policy = MixUp(base=base, alpha=1.0)
    sizes = [PHOTO.shape[:2], OTHER.shape[:2]]
    for view in range(20):
        params = draw(policy, sizes, views=[view])[0][0].tolist()
        mixture = policy.mixture(torch.tensor([params]))
        partner, share = int(mixture.partners), float(mixture.share)
        own = base.apply([PHOTO], params[:5], None).double()
        other = base.apply([[PHOTO, OTHER][partner]], params[5:10], None).double()
        found = apply_view(policy, params).double()
        assert (found - (share * own + (1 - share) * other)).abs().max() <= 0.5 + 1e-3  # rounded to whole levels


@pytest.mark.parametrize(("alpha", "mean"), [(1.0, 0.721), (0.4, 0.753)])
def test_cutmixs_shares_are_the_published_ones(alpha: float, mean: float) -> None:
    """The larger share of rand_bbox (Yun et al. 2019, clovaai/CutMix-PyTorch), whose box may have any area."""
    side, generator = 2048, np.random.default_rng(0)
    kept = np.sqrt(1 - generator.beta(alpha, alpha, DRAWS))
    cut = (side * kept).astype(int)[:, None]
    centers = generator.integers(side, size=(DRAWS, 2))
    corners = np.clip([centers - cut // 2, centers + cut // 2], 0, side)
    theirs = 1 - (corners[1] - corners[0]).prod(axis=1) / side**2
    theirs = np.maximum(theirs, 1 - theirs)
    policy = CutMix(base=ResizedCrop(size=side), alpha=alpha)
    ours = policy.mixture(params_on(torch.device("cpu"), draw(policy, [(90, 70)] * DRAWS)[0])).share.double().numpy()
    assert ours.min() >= 0.5 - 1e-4
    assert ours.mean() == pytest.approx(mean, abs=0.01)
    assert kstest(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("base", [ResizedCrop(size=64), CropFlip(padding=1, flip=False)], ids=["photos", "8 pixels"])
def test_cutmix_pastes_a_box_and_counts_its_pixels(base: Augmentation) -> None:
    """The box shows the partner, or the sample if it has more than half of the area; the label's share is exact."""
    policy, swapped = CutMix(base=base), 0
    images = [PHOTO, OTHER] if base.view_size else [PHOTO[:8, :8], OTHER[:8, :8]]
    for view in range(40):
        params = draw(policy, [image.shape[:2] for image in images], views=[view])[0][0].tolist()
        length, mixture = base.num_params, policy.mixture(torch.tensor([params]))
        own = base.apply(images[:1], params[:length], None)
        other = base.apply([images[int(mixture.partners)]], params[length : 2 * length], None)
        found = policy.apply([images[0], images[int(mixture.partners)]], params, None)
        side = found.shape[1]
        box_is_own, *box = params[2 * length + 2 :]
        top, left, bottom, right = (round(number / 65_535 * side) for number in box)
        is_own = torch.full((side, side), not box_is_own)
        is_own[top:bottom, left:right] = bool(box_is_own)
        assert torch.equal(found, torch.where(is_own, own, other))
        assert float(mixture.share) == pytest.approx(is_own.float().mean().item(), abs=1e-4)
        swapped += box_is_own
    assert 0 < swapped < 20


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_params_are_a_pure_function_of_seed_view_and_sample(name: str) -> None:
    """Whichever samples and views are drawn together; and it depends on each of the three."""
    policy = AUGMENTATIONS[name]
    sizes = [(90, 70), (66, 110), (80, 80)] * 20
    whole = draw(policy, sizes, views=range(6), seed=5)
    assert whole.shape == (6, 60, policy.num_params)
    assert np.array_equal(draw(policy, sizes, views=[4, 1], seed=5, indices=[33, 2]), whole[[4, 1]][:, [33, 2]])
    assert (whole[0] != whole[1]).any(1).mean() > 0.9
    assert (whole[:, 0] != whole[:, 3]).any()
    assert (draw(policy, sizes, seed=6)[0] != whole[0]).any(1).mean() > 0.9


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_survives_its_dict(name: str) -> None:
    """A provenance, or the words of a recipe, make the same augmentation."""
    policy = AUGMENTATIONS[name]
    assert augmentation_from(policy.to_dict()) == policy
    for default in (CropFlip(padding=4, flip=True), CropFlip(padding=1, flip=False), ResizedCrop(flip=False)):
        options = augment_options(policy.to_dict(), usual=default.to_dict())
        words = {key: value for key, value in options.items() if value is not None}
        assert as_augmentation(AugmentConfig(**words, size=policy.view_size), default) == policy


@pytest.mark.parametrize("default", [*AUGMENTATIONS.values(), ResizedCrop(size=160, scale=(0.5, 1), flip=False)])
def test_an_option_that_is_left_out_is_the_datas(default: Augmentation) -> None:
    assert as_augmentation(AugmentConfig(), default) == default
    if default.view_size:
        larger = as_augmentation(AugmentConfig(size=30), default)
        assert as_augmentation(AugmentConfig(size=default.view_size), larger) == default != larger
    if not default.mixes:
        assert as_augmentation(AugmentConfig(mix="mixup"), default) == MixUp(base=default)


# Written down once. A cache outlives processes, versions and machines; if one of these changes, every cache is stale.
STORED = """
79 136 41 139 52 7 146 63 48 134 84 67 52 78 121
9 97 17 155 110 32
1 0 2 3 5 4 7670762876882419262
6 8 1 3 7 2 0 5 4 8 1 2 5 7 4 0 3 6
32 25 35 41 0 17 29 24 28 0 34 18 56 48 1 17 6 63 57 1
32 25 35 41 0 6 15 17 29 24 28 0 2 9 0 1 54451 17 29 24 28 0 2 9 17 29 24 28 0 2 9 0 1 58099
34 18 56 48 1 22 20 34 18 56 48 1 22 20 0 0 45929 17 6 63 57 1 12 15 34 18 56 48 1 22 20 0 0 63726
32 25 35 41 0 17 29 24 28 0 0 1 0 0 0 43690 35498 17 29 24 28 0 17 29 24 28 0 0 1 0 46421 32768 65535 65535
34 18 56 48 1 34 18 56 48 1 0 0 1 13653 19114 60074 65535 17 6 63 57 1 34 18 56 48 1 0 0 0 2731 0 35498 19114
"""


def test_the_numbers_are_the_stored_ones() -> None:
    crop, box, sizes = CropFlip(padding=4, flip=True), ResizedCrop(size=24), np.array([(90, 70), (110, 66)], np.int32)
    mixed = (box, MixUp(base=RandAugment(base=box), alpha=0.4), CutMix(base=box))
    found = [
        crop.make_params(view_seed=0, view_indices=range(3), indices=np.arange(5), sizes=None),
        crop.make_epoch_params(run_seed=1, epoch=2, indices=np.arange(6), sizes=None),
        seeds.sample_order(run_seed=1, epoch=2, samples=6),
        seeds.epoch_seed(run_seed=1, epoch=2),
        [seeds.view_of_epoch(run_seed=0, epoch=epoch, num_views=9) for epoch in range(1, 19)],
        *(p.make_params(view_seed=3, view_indices=[0, 7], indices=np.arange(2), sizes=sizes) for p in mixed),
    ]
    assert [int(number) for one in found for number in np.ravel(one)] == [int(word) for word in STORED.split()]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"view": "center-crop"}, r"`view` cannot be 'center-crop': choose crop-flip or resized-crop, or either with"),
        ({"view": "resized-crop+autoaugment"}, "cannot be 'resized-crop.autoaugment'"),
        ({"view": "crop-flip", "size": 32}, "`size` is of `view=resized-crop`"),
        ({"view": "resized-crop", "padding": 2}, "`padding` is of `view=crop-flip`, and these views are resized-crop"),
        ({"padding": 128}, "`padding` is 128: give a whole number"),
        ({"magnitude": 3}, "RandAugment's options are given without it: add it"),
        ({"view": "crop-flip+randaugment", "magnitude": 31}, "`magnitude` is 31: give a whole number"),
        ({"mix": "mixout"}, "`mix` is 'mixout': give one of mixup, cutmix"),
        ({"mix_alpha": 0.2}, "`mix_alpha` is of MixUp and CutMix"),
        ({"mix": "mixup", "mix_alpha": 0.0}, "`mix_alpha` is 0.0: give a number above 0 and at most 2"),
        ({"view": "resized-crop", "scale": (0.5, 0.1)}, r"`scale` is \(0.5, 0.1\)"),
        ({"view": "resized-crop", "ratio": (1.0,)}, r"`ratio` is \(1.0,\)"),
        ({"view": "resized-crop", "size": 0}, "`size` is 0: give a whole number"),
        ({"view": "resized-crop", "interpolation": "nearest"}, "`interpolation` is 'nearest': give one of"),
    ],
)
def test_views_that_cannot_be_are_refused_in_a_sentence(choice: dict[str, Any], reason: str) -> None:
    with pytest.raises((DataError, ConfigError), match=reason):
        as_augmentation(AugmentConfig(**choice), CropFlip(padding=4, flip=True))
    with pytest.raises(DataError, match=r"the box 80 x 60 at \(20, 0\) lies outside an image of 90 x 70 pixels"):
        ResizedCrop().apply([PHOTO], [0, 20, 60, 80, 0], 32)


def test_weak_and_strong_views_alternate() -> None:
    """Weak ones are the base's views, strong ones are those of `strong_every=1`; older caches stay valid."""
    base = CropFlip(padding=4, flip=True)
    always, alternating = RandAugment(base=base), RandAugment(base=base, strong_every=2)
    sizes = [(32, 32)] * 50
    strong, mixed = draw(always, sizes, views=range(4)), draw(alternating, sizes, views=range(4))
    assert np.array_equal(strong[[1, 3]], mixed[[1, 3]])
    assert (mixed[[0, 2]][..., 1:] == 0).all(), "the identity"
    image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    for view in (0, 2):
        params = mixed[view, 7].tolist()
        assert torch.equal(alternating.apply([image], params, None), base.apply([image], params[:1], None))
    assert always.to_dict()["strong_every"] == 1
    assert augmentation_from(alternating.to_dict()) == alternating
    with pytest.raises(DataError, match="`strong_every` is 0: choose 1 or more"):
        RandAugment(base=base, strong_every=0)
