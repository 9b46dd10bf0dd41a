"""From a line of the command to a teacher: what is named is what is loaded, and what does not fit is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from demkd.config import ConfigError
from demkd.dataset import ArrayDataset, CenterCrop, CropFlip, Normalization, ResizedCrop
from demkd.errors import UserError
from demkd.networks import build_network
from demkd.teachers import TeacherError
from demkd.teachers.load import (
    InputChoice,
    NetworkInput,
    TeacherSpec,
    TeacherSpecError,
    check_teacher_names,
    chosen_for,
    load_network,
    load_teacher,
    sizes_by_teacher,
    teacher_specs,
)
from tests.pipeline.stages import FLOAT32

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def images() -> ArrayDataset:
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(
        name="insects",
        split="train",
        pixels=pixels,
        labels=torch.arange(6) % 3,
        class_names=NAMES,
        augmentation=CropFlip(padding=1, flip=True),
    )


@pytest.mark.parametrize(
    ("text", "name", "network", "checkpoint"),
    [
        ("resnet20@a.pth", "resnet20", "resnet20", "a.pth"),
        ("big=resnet20@a.pth", "big", "resnet20", "a.pth"),
        ("torchvision:resnet50@IMAGENET1K_V2", "resnet50", "torchvision:resnet50", "IMAGENET1K_V2"),
        ("a=timm:vit_tiny_patch16_224@runs/a=b.pth", "a", "timm:vit_tiny_patch16_224", "runs/a=b.pth"),
        ("my.module:build@weights.safetensors", "build", "my.module:build", "weights.safetensors"),
        ("resnet20@user@host.pth", "resnet20", "resnet20", "user@host.pth"),
    ],
)
def test_a_teacher_is_a_name_a_network_and_a_checkpoint(text: str, name: str, network: str, checkpoint: str) -> None:
    assert TeacherSpec.parse(text) == TeacherSpec(name=name, network=network, checkpoint=Path(checkpoint))


def test_a_run_folder_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "teacher@home"
    path.mkdir()
    assert TeacherSpec.parse(f"a={path}") == TeacherSpec(name="a", network=None, checkpoint=path)


def test_choices_are_by_teacher() -> None:
    sizes = sizes_by_teacher({"": 64, "big": 224})
    big, small = teacher_specs(["big=resnet20@a", "resnet8@b"])
    assert [chosen_for(sizes, big.name), chosen_for(sizes, small.name), chosen_for({}, "big")] == [224, 64, None]
    check_teacher_names(sizes, [big.name, small.name], option="input_size")
    with pytest.raises(TeacherSpecError, match=r"`input_size=big=\.\.\.` names no teacher: there are resnet8"):
        check_teacher_names(sizes, [small.name], option="input_size")
    for size in (0, -3, 2.5, 99999, "64"):
        with pytest.raises(ConfigError, match=r"`input_size=big=.*` is not understood"):
            sizes_by_teacher({"big": size})  # type: ignore[dict-item]


@pytest.mark.parametrize("text", ["resnet20", "resnet20@", "@a.pth", "torchvision:resnet50", "a=module:build"])
def test_a_teacher_without_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(TeacherSpecError, match=r"write \[NAME=\]NETWORK@CHECKPOINT"):
        TeacherSpec.parse(text)


@pytest.mark.parametrize(
    ("teachers", "reason"),
    [
        (["a=resnet8@x.pth", "a=vgg8@y.pth"], "two teachers are called a"),
        ({"x" * 300: "resnet8@a.pth"}, r"cannot be called 'x{100}\.\.\.': give it a name of at most 100"),
        ({"weights": "resnet8@a.pth"}, "cannot be called 'weights'"),
        ({"a.00001-of-00004": "resnet8@a.pth"}, "cannot be called 'a.00001-of-00004'"),
        ({"a": lambda views: views}, "the teacher a is a function: give a torch.nn.Module"),
        ({"a": 3}, "the teacher a is a int"),
    ],
)
def test_teachers_that_cannot_be_are_refused(teachers: Any, reason: str) -> None:
    with pytest.raises(TeacherSpecError, match=reason):
        teacher_specs(teachers)


def test_views_are_normalized_then_resized_bilinearly(images: ArrayDataset) -> None:
    normalization = Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    views = images.pixels.permute(0, 3, 1, 2)
    expects = NetworkInput(normalization=normalization, size=24)
    normalized = (views / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[
        :, None, None
    ]
    expected = F.interpolate(normalized, (24, 24), mode="bilinear", align_corners=False, antialias=False)
    assert expects.prepare(views).dtype == torch.float32
    torch.testing.assert_close(expects.prepare(views), expected)


def test_the_teacher_sees_views_of_its_own_size(images: ArrayDataset, tmp_path: Path) -> None:
    """resnet8's features have the size of its input; vgg8, which needs 8 pixels, refuses 4."""
    spec = TeacherSpec(name="big", network="resnet8", checkpoint=saved_network(tmp_path, "resnet8"))
    teacher, network = load_teacher(spec, dataset=images, compute=FLOAT32, choice=InputChoice(size=40))
    predicted = teacher.predict(images.pixels.permute(0, 3, 1, 2), features=["stem@40x40"])
    assert predicted.features["stem@40x40"].shape == (6, 16, 40, 40)
    assert network.input.size == 40
    with pytest.raises(TeacherError, match="teacher big: there is no layer 'layer4'; name one of stem, stage1, stage2"):
        teacher.predict(images.pixels.permute(0, 3, 1, 2), features=["layer4"])
    spec = TeacherSpec(name="small", network="vgg8", checkpoint=saved_network(tmp_path, "vgg8"))
    teacher, _ = load_teacher(spec, dataset=images, compute=FLOAT32, choice=InputChoice(size=4))
    with pytest.raises(TeacherError, match="teacher small: VGG needs images of at least 8 x 8 pixels"):
        teacher.predict(images.pixels.permute(0, 3, 1, 2))


@pytest.mark.parametrize("network", ["resnet8", "torchvision:resnet18", "vgg8"])
def test_other_classes_are_named_with_both_numbers(images: ArrayDataset, tmp_path: Path, network: str) -> None:
    file = saved_network(tmp_path, network, classes=100)
    refused(f"{file} was trained for 100 classes, and insects has 3", file, network, images)


def test_class_names_in_another_order_are_refused_where_they_are_known(images: ArrayDataset, tmp_path: Path) -> None:
    state = build_network("resnet8", classes=3).state_dict()
    file = tmp_path / "a.pth"
    for extra in ({"class_names": ["ant", "cat", "bee"]}, {"class_to_idx": {"ant": 0, "cat": 1, "bee": 2}}):
        torch.save({"model": state, **extra}, file)
        refused("number 1 is 'cat' there and 'bee' in insects", file, "resnet8", images)
    torch.save({"model": state, "classes": ["ant", "bee"]}, file)
    refused("was trained for 2 classes, and insects has 3", file, "resnet8", images)
    torch.save({"model": state, "class_names": list(NAMES)}, file)
    load_network(file, name="resnet8", dataset=images)


def test_a_checkpoint_may_not_say_which_of_the_users_code_to_run(
    images: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder from elsewhere must not import a module of the current directory."""
    (tmp_path / "danger.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "student.safetensors", metadata={"demkd": '{"network": "danger:build"}'})
    refused("is of danger:build, code of your own, which is only imported when you name it", tmp_path, None, images)
    assert not (tmp_path / "ran").exists()


def saved_network(folder: Path, name: str, *, classes: int = 3) -> Path:
    file = folder / f"{name.replace(':', '-')}.pth"
    torch.save({"model": build_network(name, classes=classes, size=(16, 16)).state_dict()}, file)
    return file


def refused(reason: str, path: Path, network: str | None, images: ArrayDataset, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_network(path, name=network, dataset=images, **options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_brings_its_own_input_where_somebody_says_it(images: ArrayDataset) -> None:
    """The user before the checkpoint or publisher, and that before the views; small images are never cut."""
    published = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": 240, "crop_pct": 0.9, "interpolation": "bicubic"}
    photos = replace(images, augmentation=ResizedCrop(size=128))
    found = InputChoice(view_size=128).resolve(published, photos)
    assert (found.size, found.crop_pct, found.interpolation) == (240, 0.9, "bicubic")
    assert found.evaluation_views() == CenterCrop(size=240, crop_pct=0.9, interpolation="bicubic")
    chosen = InputChoice(size=96, crop_pct=1.0, view_size=128).resolve(published, photos)
    assert (chosen.size, chosen.crop_pct) == (96, 1.0)
    usual = InputChoice(view_size=128).resolve({}, photos)
    assert (usual.size, usual.crop_pct) == (128, 0.875)
    small = InputChoice().resolve({}, images)
    assert (small.size, small.crop_pct) == (None, None)
    assert small.evaluation_views() == CropFlip(padding=0, flip=False)
