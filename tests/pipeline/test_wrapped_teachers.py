"""A network of another maker goes the whole way: cached, met again on the same views, learnt from, and a student."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import demkd
from demkd.cache import CacheMismatchError, open_cache
from demkd.dataset import NORMALISATIONS, load_images
from demkd.networks import build_network
from demkd.pipeline.loading import InputChoice, TeacherSpec, TeacherSpecError, load_teacher
from demkd.pipeline.methods import choose_method
from demkd.pipeline.preparation import CachingRequest
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import RecipeError, TrainingOptions
from demkd.pipeline.requests import DistillRequest
from demkd.pipeline.stage_one import cache_teachers
from demkd.pipeline.stage_two import distill
from demkd.teachers import TeacherError, state_sha256
from tests.pipeline.stages import FLOAT32, Recorder, train_network

HALF = 2.0**-11


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 64-pixel pictures, 5 + 2 each, which differ in their colour."""
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


@pytest.fixture(scope="module")
def request_(
    large_pictures: Path, specs: tuple[TeacherSpec, ...], tmp_path_factory: pytest.TempPathFactory
) -> CachingRequest:
    return CachingRequest(
        source=load_images(str(large_pictures), split="train"),
        teachers=specs,
        folder=tmp_path_factory.mktemp("cache"),
        views=2,
        batch_size=4,
        input_size={"own": 32},
    )


@pytest.fixture(scope="module")
def cached(request_: CachingRequest) -> Path:
    cache_teachers(request_, FLOAT32, SilentProgress())
    return request_.folder


def test_what_is_cached_is_what_the_network_says(
    cached: Path, large_pictures: Path, specs: tuple[TeacherSpec, ...]
) -> None:
    pictures = load_images(str(large_pictures), split="train")
    render = pictures.renderer(pictures.default_policy, FLOAT32.device)
    for spec, size, layer in zip(specs, (None, 32), ("layer4", "stage3"), strict=True):
        teacher, _ = load_teacher(spec, source=pictures, compute=FLOAT32, choice=InputChoice(size=size))
        file = next(file for file in open_cache(cached).teachers if file.name == spec.name)
        for slot in range(2):
            numbers = torch.from_numpy(file.read("view", slot).astype(np.int64))
            live = teacher.answer(render(torch.arange(len(pictures)), numbers), features=[layer])
            for name, tensor in (("logits", live.logits), (f"features/{layer}", live.features[layer])):
                found = torch.from_numpy(np.array(file.read(name, slot), np.float32))
                torch.testing.assert_close(found, tensor, rtol=HALF * 1.01, atol=1e-3)


def test_the_fingerprint_is_of_the_network_without_our_wrapping(cached: Path, specs: tuple[TeacherSpec, ...]) -> None:
    import torchvision

    network = torchvision.models.resnet18(num_classes=2)
    network.load_state_dict(torch.load(specs[0].checkpoint)["state_dict"])
    foreign, own = (file.provenance.identity["teacher"] for file in open_cache(cached).teachers)
    assert foreign["state_sha256"] == state_sha256(network)
    assert foreign["network"] == "torchvision:resnet18"
    assert "input_size" not in foreign
    assert own["input_size"] == 32


@pytest.mark.parametrize("sizes", [{}, {"own": 48}, {"own": 32, "foreign": 32}])
def test_another_input_size_is_another_teacher(cached: Path, request_: CachingRequest, sizes: dict[str, int]) -> None:
    with pytest.raises(CacheMismatchError, match=r"teacher\.input_size is"):
        cache_teachers(replace(request_, input_size=sizes, views=1), FLOAT32, SilentProgress())


def test_features_by_module_path_join_the_cache(request_: CachingRequest, tmp_path: Path) -> None:
    request = replace(request_, folder=tmp_path, teachers=request_.teachers[:1], views=1, input_size={})
    cache_teachers(replace(request, features=("layer2",), feature_grid=2), FLOAT32, SilentProgress())
    report = cache_teachers(replace(request, features=("layer3.1.conv2",)), FLOAT32, SilentProgress())
    assert report.teachers[0].features == {"layer2@2x2": (128, 2, 2), "layer3.1.conv2": (256,)}
    with pytest.raises(
        TeacherError, match=r"teacher foreign: torchvision:resnet18 has no module 'layer5'; name one of conv1"
    ):
        cache_teachers(replace(request, features=("layer5",)), FLOAT32, SilentProgress())


def test_a_choice_for_a_misspelt_teacher_is_refused(request_: CachingRequest) -> None:
    request = replace(request_, normalise={"foriegn": NORMALISATIONS["imagenet"]})
    with pytest.raises(TeacherSpecError, match=r"`normalise=foriegn=\.\.\.` names no teacher: there are foreign, own"):
        cache_teachers(request, FLOAT32, SilentProgress())


def test_a_student_learns_from_it_as_from_the_live_teachers(
    cached: Path, large_pictures: Path, specs: tuple[TeacherSpec, ...], tmp_path: Path
) -> None:
    """Cached and online agree in every term of the loss, with features, each teacher at its own size."""
    request = distilling(large_pictures, tmp_path / "cached", cache=cached)
    from_cache, online = Recorder(), Recorder()
    distill(request, FLOAT32, from_cache)
    live = replace(request, cache=None, live_teachers=specs, input_size={"own": 32}, folder=tmp_path / "online")
    distill(live, FLOAT32, online)
    for one, other in zip(from_cache.reports, online.reports, strict=True):
        assert one.losses.keys() == other.losses.keys()
        assert one.losses == pytest.approx(other.losses, rel=3e-3, abs=1e-4)
    with pytest.raises(RecipeError, match=r"teacher_own_input was .* at 32 pixels and is .* at 48 pixels"):
        distill(replace(live, input_size={"own": 48}), FLOAT32, SilentProgress())


def test_it_is_a_student_too_and_its_run_is_evaluated(cached: Path, large_pictures: Path, tmp_path: Path) -> None:
    """With features; interrupted, resumed, and evaluated from its run folder."""
    request = distilling(large_pictures, tmp_path / "run", cache=cached, network="torchvision:resnet18")
    with pytest.raises(KeyboardInterrupt):
        distill(request, FLOAT32, Recorder(interrupt_after=1))
    report = distill(request, FLOAT32, SilentProgress())
    assert (report.network, report.resumed_after) == ("torchvision:resnet18", 1)
    found = demkd.evaluate(tmp_path / "run", large_pictures, precision="float32", progress=False)
    assert (found.network, found.top1) == ("torchvision:resnet18", report.test_top1)


def test_an_input_that_the_network_cannot_take_is_refused(large_pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"vit_b_32 cannot take pictures of 64 x 64 pixels \(.*Wrong image.*`input_size`"
    ):
        train_network(large_pictures, "torchvision:vit_b_32", tmp_path)


def distilling(data: Path, folder: Path, *, cache: Path, network: str = "resnet8") -> DistillRequest:
    return DistillRequest(
        options=TrainingOptions(data=str(data), network=network, epochs=2, batch_size=5, learning_rate=0.02),
        train=load_images(str(data), split="train"),
        test=load_images(str(data), split="test"),
        method=choose_method("de-mkd"),
        folder=folder,
        cache=cache,
        views=2,
    )
