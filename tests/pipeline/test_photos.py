"""Both stages on photos of many sizes, from files: cached is online, whatever the views, and every box is shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2 as transforms

import demkd
from demkd.cache import CacheMismatchError, open_cache
from demkd.config import AugmentConfig, ConfigError, ImageConfig
from demkd.dataset import DataError, Normalization, load_images
from demkd.pipeline.evaluate import evaluation_views
from demkd.pipeline.stage_one import VIEW_BYTES
from demkd.teachers.checkpoint import read_checkpoint
from demkd.teachers.load import ImageSizeError, NetworkInput
from tests.dataset.photos import write_photos
from tests.pipeline.photos import SILENT, SIZES, TEACHERS, VIEWS, cache_views, student_losses

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _both_workers(slow: dict[str, int]) -> list[Any]:
    """Every augmentation without workers and with two; one of them in the fast tests."""
    return [
        pytest.param(name, workers, marks=[pytest.mark.slow] if workers == slow[name] else [])
        for name in VIEWS
        for workers in (0, 2)
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    ("name", "workers"), _both_workers({"resized-crop": 2, "randaugment": 2, "mixup": 0, "cutmix": 2})
)
def test_cached_equals_online_from_files(photos: Path, tmp_path: Path, name: str, workers: int) -> None:
    """Teachers of two sizes and a student of a third; the first epoch is one step, of all samples."""
    reading, policy = ImageConfig(workers=workers), VIEWS[name]
    cache_views(photos, tmp_path / "cache", policy, images=reading)
    cached = student_losses(photos, tmp_path / "cached", cache=tmp_path / "cache", images=reading)
    online = student_losses(
        photos, tmp_path / "online", live_teachers=TEACHERS, augment=policy, views=3, input_size=SIZES, images=reading
    )
    assert cached[0] == pytest.approx(online[0], rel=5e-4)
    assert cached[1] == pytest.approx(online[1], rel=1e-3)
    other = student_losses(
        photos, tmp_path / "other", live_teachers=TEACHERS, augment=policy, views=3, view_seed=1, input_size=SIZES,
        images=reading, epochs=1,
    )  # fmt: skip
    assert other[0] != pytest.approx(online[0], rel=1e-3), "other views give other losses: the comparison can fail"


def test_the_cache_holds_what_torchvision_and_the_teachers_say(photos: Path, tmp_path: Path) -> None:
    """From the records alone: crop, resize and flip by torchvision, then the module, at the teacher's own size."""
    cache_views(photos, tmp_path, VIEWS["resized-crop"])
    cache, source = open_cache(tmp_path), load_images(str(photos), split="train")
    records = cache.params(2)
    functional = transforms.functional
    views = []
    for index, (top, left, height, width, flipped) in enumerate(records.tolist()):
        image = source.read(index).permute(2, 0, 1)
        mode = transforms.InterpolationMode.BICUBIC
        view = functional.resized_crop(image, top, left, height, width, [48, 48], interpolation=mode, antialias=True)
        views.append(view.flip(2) if flipped else view)
    with torch.no_grad():
        expected = TEACHERS["a"].eval()(IMAGENET.apply(torch.stack(views)))
    found = cache.logits(2, slice(None), temperature=1.0)[0].astype(np.float32)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=2e-3, atol=2e-3)
    assert cache.teachers[0].provenance.identity["teacher"]["input_size"] == 48
    assert cache.teachers[1].provenance.identity["teacher"]["input_size"] == 32


def test_views_are_computed_in_groups_that_fit(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes in one group or many, with other workers, or grown later."""
    for name, views, budget, workers in (("whole", 5, VIEW_BYTES, 0), ("parts", 5, 40_000, 2)):
        monkeypatch.setattr("demkd.pipeline.stage_one.VIEW_BYTES", budget)
        options = {"views": views, "batch_size": 8, "images": ImageConfig(workers=workers)}
        cache_views(photos, tmp_path / name, VIEWS["mixup"], **options)
    for views in (2, 5):
        cache_views(photos, tmp_path / "grown", VIEWS["mixup"], views=views, batch_size=8)
    whole, *others = (open_cache(tmp_path / name) for name in ("whole", "parts", "grown"))
    for other in others:
        for mine, its in zip(whole.teachers, other.teachers, strict=True):
            for data_set in mine.shape.data_sets():
                for slot in range(5):
                    assert np.array_equal(mine.read(data_set, slot), its.read(data_set, slot)), data_set


def test_one_decode_is_for_all_views(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    source = load_images(str(photos), split="train", images=ImageConfig(workers=0))
    reader = source.reader  # type: ignore[attr-defined]

    def counted(index: int) -> Tensor:
        read.append(index)
        picture: Tensor = reader(index)
        return picture

    object.__setattr__(source, "reader", counted)
    cache_views(source, tmp_path, VIEWS["resized-crop"], views=6)
    assert sorted(read) == sorted([*range(30)] * 3), "once to try each of two teachers, and once for all 6 slots"


def test_an_evaluation_is_torchvisions_resize_and_centre_crop(photos: Path) -> None:
    source = load_images(str(photos), split="test")
    expected = transforms.Compose([
        transforms.Resize(36, antialias=True), transforms.CenterCrop(32),
    ])  # fmt: skip
    asked = NetworkInput(normalization=IMAGENET, size=32, crop_pct=32 / 36)
    (views,) = evaluation_views(source, asked, [torch.arange(30)], torch.device("cpu"))
    for index in range(30):
        assert torch.equal(views[index], expected(source.read(index).permute(2, 0, 1)))


def test_a_run_knows_its_size_and_goes_on_from_its_recipe(photos: Path, tmp_path: Path) -> None:
    """`evaluate` of a run folder shows pictures as the run did, and a run of another size is another run."""
    run = tmp_path / "run"
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "size": 40, "crop_pct": 1.0, **SILENT}
    options["augment"] = AugmentConfig(interpolation="bicubic")
    report = demkd.train("resnet8", train=photos, out=run, progress=False, **options)
    assert read_checkpoint(run).metadata["interpolation"] == "bicubic"
    again = demkd.evaluate(run, photos, progress=False, **SILENT)
    assert again.top1 == report.test_top1
    with pytest.raises(demkd.UserError, match="size was 40 and is 32"):
        demkd.train("resnet8", train=photos, out=run, progress=False, **{**options, "size": 32})
    caching = demkd.cache_teachers({"t": str(run)}, photos, out=tmp_path / "cache", views=1, progress=False, **SILENT)
    file = open_cache(caching.folder).teachers[0]
    assert file.provenance.identity["teacher"]["input_size"] == 40


def test_changed_data_are_found_in_both_stages(photos: Path, tmp_path: Path) -> None:
    data = write_photos(tmp_path / "data")
    cache_views(data, tmp_path / "cache", VIEWS["resized-crop"])
    file = data / "train" / "cat" / "001.jpg"
    Image.open(file).rotate(90).save(file)
    with pytest.raises(CacheMismatchError, match=r"data\.files_sha256 is .* in the cache and .* now"):
        student_losses(data, tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match=r"data\.exif is true in the cache and false now"):
        student_losses(photos, tmp_path / "run", cache=tmp_path / "cache", images=ImageConfig(exif=False))


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ({"augment": "crop-flip"}, DataError, "crop-flip keeps the images' own size, and image 0 is 90 x 70"),
        ({"top_k": 3}, demkd.UserError, "`top_k` is 3, and photos.* has 3 classes: choose 1 to 2"),
        ({"top_k": 0}, demkd.UserError, "`top_k` is 0"),
        ({"top_k": 1, "tail_temperatures": (0.0,)}, demkd.UserError, "`tail_temperatures` are"),
        ({"images": {"workers": -1}}, demkd.UserError, "`workers` is -1"),
    ],
)
def test_what_cannot_be_cached_is_said_before_anything_is_computed(
    photos: Path, tmp_path: Path, call: dict[str, Any], error: type[Exception], reason: str
) -> None:
    def run() -> None:
        reading = ImageConfig(**call.pop("images")) if "images" in call else None
        cache_views(photos, tmp_path / "cache", **{"augment": VIEWS["resized-crop"], "images": reading, **call})

    with pytest.raises(error, match=reason):
        run()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"method": "ofa"}, ConfigError, "OFA's loss of ofa needs one label an image"),
        ({"method": "crld"}, ConfigError, "CRLD compares two views of an image, and `mix` mixes"),
        ({"method": "de-mkd-logits"}, ConfigError, "the decoupled loss of de-mkd-logits needs one label an image"),
        ({"method": "kd", "weight_source": "cross_entropy"}, ConfigError, "`weight_source=cross_entropy` needs one"),
        ({"method": "kd", "wrong_teacher": "mask"}, ConfigError, "`wrong_teacher=mask` needs one label"),
        ({"augment": VIEWS["resized-crop"]}, DataError, "`interpolation` is bicubic, but the cache in .* was"),
        ({"crop_pct": 2.0}, demkd.UserError, "`crop_pct` is 2.0"),
    ],
)
def test_what_mixed_views_cannot_teach_is_refused(
    photos: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    cache_views(photos, tmp_path / "cache", VIEWS["mixup"], views=2, features=())
    with pytest.raises(error, match=reason):
        student_losses(photos, tmp_path / "run", **{"cache": tmp_path / "cache", **options})


def test_a_network_that_does_not_take_the_size_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(demkd.UserError, match="at least 8 x 8 pixels"):
        demkd.train("vgg8", train=photos, out=tmp_path, epochs=1, size=4, progress=False, **SILENT)
    source = load_images(str(photos), split="train")
    with pytest.raises(ImageSizeError, match="are of different sizes, and the network has no input size"):
        NetworkInput(normalization=IMAGENET).side(source)


def test_targets_for_a_loop_of_ones_own(photos: Path, tmp_path: Path) -> None:
    """Mixed labels come with their shares, and the views are the student's size."""
    cache_views(photos, tmp_path, VIEWS["cutmix"], features=())
    here = demkd.ImageConfig(workers=0)
    loader = demkd.SoftTargetLoader(tmp_path, photos, method="kd", size=20, images=here, batch_size=10, device="cpu")
    batches = list(loader)
    assert [tuple(batch.images.shape) for batch in batches] == [(10, 3, 20, 20)] * 3
    assert batches[0].partner.share.min() >= 0.49
    assert torch.isfinite(demkd.DistillationLoss("kd", epochs=1)(torch.zeros(10, 3), batches[0]))
