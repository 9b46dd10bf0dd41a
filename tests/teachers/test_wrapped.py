"""A network of another library in both stages: cached, compared on the same views, and as teacher and student."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import demkd
from demkd.cache import CacheMismatchError, open_cache
from demkd.config import ConfigError
from demkd.networks import build_network
from demkd.pipeline.results import CachingReport
from demkd.teachers import TeacherError, state_sha256
from demkd.teachers.load import TeacherSpec
from tests.pipeline.stages import Recorder


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 64-pixel images, 5 + 2 each, which differ in their color."""
    folder, generator = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cold", "warm")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (64, 64, 3), dtype=np.uint8)
                pixels[..., 2 * label] += 55
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherSpec, ...]:
    """torchvision's resnet18 and our resnet8, with random weights."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    for name, network in {"foreign": "torchvision:resnet18", "own": "resnet8"}.items():
        state = build_network(network, classes=2, size=(64, 64)).state_dict()
        torch.save({"state_dict": state}, folder / f"{name}.pth")
    return (
        TeacherSpec(name="foreign", network="torchvision:resnet18", checkpoint=folder / "foreign.pth"),
        TeacherSpec(name="own", network="resnet8", checkpoint=folder / "own.pth"),
    )


def cache(images: Path, specs: Sequence[TeacherSpec], out: Path, **options: Any) -> CachingReport:
    teachers = {spec.name: f"{spec.network}@{spec.checkpoint}" for spec in specs}
    settings = {"batch_size": 4, "device": "cpu", "precision": "float32", "progress": False, **options}
    return demkd.cache_teachers(teachers, images, out=out, **settings)


@pytest.fixture(scope="module")
def cached(large_images: Path, specs: tuple[TeacherSpec, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache(large_images, specs, tmp_path_factory.mktemp("cache"), views=2, input_size={"own": 32}).folder


def test_the_fingerprint_is_of_the_network_without_our_wrapping(cached: Path, specs: tuple[TeacherSpec, ...]) -> None:
    import torchvision

    network = torchvision.models.resnet18(num_classes=2)
    network.load_state_dict(torch.load(specs[0].checkpoint)["state_dict"])
    foreign, own = (file.provenance.identity["teacher"] for file in open_cache(cached).teachers)
    assert foreign["state_sha256"] == state_sha256(network)
    assert foreign["network"] == "torchvision:resnet18"
    assert "input_size" not in foreign
    assert own["input_size"] == 32


@pytest.mark.parametrize("sizes", [{"own": 48}, {"own": 32, "foreign": 32}])
def test_another_input_size_is_another_teacher(
    cached: Path, large_images: Path, specs: tuple[TeacherSpec, ...], sizes: dict[str, int]
) -> None:
    with pytest.raises(CacheMismatchError, match=r"teacher\.input_size is"):
        cache(large_images, specs, cached, views=1, input_size=sizes)


def test_features_by_path_join_the_cache(large_images: Path, specs: tuple[TeacherSpec, ...], tmp_path: Path) -> None:
    cache(large_images, specs[:1], tmp_path, views=1, features=("layer2",), feature_grid=2)
    report = cache(large_images, specs[:1], tmp_path, views=1, features=("layer3.1.conv2",))
    assert report.teachers[0].features == {"layer2@2x2": (128, 2, 2), "layer3.1.conv2": (256,)}
    with pytest.raises(
        TeacherError, match=r"teacher foreign: torchvision:resnet18 has no module 'layer5'; name one of conv1"
    ):
        cache(large_images, specs[:1], tmp_path, views=1, features=("layer5",))


def test_cached_equals_online(cached: Path, large_images: Path, specs: tuple[TeacherSpec, ...], tmp_path: Path) -> None:
    """Cached and online agree in every term of the loss, with features, each teacher at its own size."""
    from_cache, online = Recorder(), Recorder()
    live = {spec.name: f"{spec.network}@{spec.checkpoint}" for spec in specs}
    options = {**distilling(large_images), "out": tmp_path / "online", "live_teachers": live}
    demkd.distill("resnet8", cache=cached, out=tmp_path / "cached", progress=from_cache, **distilling(large_images))
    demkd.distill("resnet8", progress=online, input_size={"own": 32}, **options)
    for one, other in zip(from_cache.reports, online.reports, strict=True):
        assert one.losses.keys() == other.losses.keys()
        assert one.losses == pytest.approx(other.losses, rel=3e-3, abs=1e-4)
    with pytest.raises(ConfigError, match=r"teacher_own_input was .* at 32 pixels and is .* at 48 pixels"):
        demkd.distill("resnet8", progress=False, input_size={"own": 48}, **options)


def test_it_is_a_student_too_and_its_run_is_evaluated(cached: Path, large_images: Path, tmp_path: Path) -> None:
    """With features; interrupted, resumed, and evaluated from its run folder."""
    options = {**distilling(large_images), "cache": cached, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        demkd.distill("torchvision:resnet18", progress=Recorder(interrupt_after=1), **options)
    report = demkd.distill("torchvision:resnet18", progress=False, **options)
    assert (report.network, report.resumed_after) == ("torchvision:resnet18", 1)
    found = demkd.evaluate(tmp_path / "run", large_images, precision="float32", progress=False)
    assert (found.network, found.top1) == ("torchvision:resnet18", report.test_top1)


def distilling(data: Path) -> dict[str, Any]:
    options = {"train": str(data), "method": "de-mkd", "views": 2, "precision": "float32", "device": "cpu"}
    return {**options, "epochs": 2, "batch_size": 5, "learning_rate": 0.02}
