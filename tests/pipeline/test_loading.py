"""From a line of the command to a teacher: what is named is what is loaded, and what does not fit is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from demkd.dataset import (
    AsTheyAre,
    CentreCrop,
    CropFlip,
    DataError,
    MemoryImages,
    Normalisation,
    ResizedCrop,
    as_normalisation,
)
from demkd.errors import UserError
from demkd.networks import build_network
from demkd.pipeline.arguments import ArgumentError, sizes_by_teacher
from demkd.pipeline.loading import (
    InputChoice,
    NetworkInput,
    TeacherSpec,
    TeacherSpecError,
    chosen_for,
    load_network,
    load_teacher,
    refuse_own_code,
    require_teachers,
    teacher_specs,
)
from demkd.teachers import TeacherError
from tests.pipeline.stages import FLOAT32

NAMES = ("ant", "bee", "cat")


@pytest.fixture
def pictures() -> MemoryImages:
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return MemoryImages(
        name="insects",
        split="train",
        pixels=pixels,
        labels=torch.arange(6) % 3,
        class_names=NAMES,
        policy=CropFlip(padding=1, flip=True),
    )


@pytest.mark.parametrize(
    ("text", "name", "network", "checkpoint"),
    [
        ("resnet20@a.pth", "resnet20", "resnet20", "a.pth"),
        ("big=resnet20@a.pth", "big", "resnet20", "a.pth"),
        ("torchvision:resnet50@IMAGENET1K_V2", "resnet50", "torchvision:resnet50", "IMAGENET1K_V2"),
        ("a=timm:vit_tiny_patch16_224@runs/a=b.pth", "a", "timm:vit_tiny_patch16_224", "runs/a=b.pth"),
        (
            "my.module:build_network@weights.safetensors",
            "build_network",
            "my.module:build_network",
            "weights.safetensors",
        ),
        ("resnet20@user@host.pth", "resnet20", "resnet20", "user@host.pth"),
    ],
)
def test_a_teacher_is_a_name_a_network_and_a_checkpoint(text: str, name: str, network: str, checkpoint: str) -> None:
    assert TeacherSpec.parse(text) == TeacherSpec(name=name, network=network, checkpoint=Path(checkpoint))


@pytest.mark.parametrize("folder", ["teacher", "teacher@home"])
def test_a_run_folder_needs_no_network(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder
    assert TeacherSpec.parse(f"a={path}") == TeacherSpec(name="a", network=None, checkpoint=path)


@pytest.mark.parametrize("text", ["resnet20", "resnet20@", "@a.pth", "torchvision:resnet50", "a=module:build"])
def test_a_teacher_without_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(TeacherSpecError, match=r"write \[NAME=\]NETWORK@CHECKPOINT"):
        TeacherSpec.parse(text)


def test_choices_are_by_teacher() -> None:
    sizes = sizes_by_teacher({"": 64, "big": 224})
    big, small = teacher_specs(["big=resnet20@a", "resnet8@b"])
    assert [chosen_for(sizes, big.name), chosen_for(sizes, small.name), chosen_for({}, "big")] == [224, 64, None]
    require_teachers(sizes, [big.name, small.name], option="input_size")
    with pytest.raises(TeacherSpecError, match=r"`input_size=big=\.\.\.` names no teacher: there are resnet8"):
        require_teachers(sizes, [small.name], option="input_size")


@pytest.mark.parametrize("size", [0, -3, 2.5, 99999, "64"])
def test_an_input_size_is_a_number_of_pixels(size: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`input_size=big=.*` is not understood"):
        sizes_by_teacher({"big": size})


def test_two_teachers_of_one_name_are_refused() -> None:
    with pytest.raises(TeacherSpecError, match="two teachers are called a"):
        teacher_specs(["a=resnet8@x.pth", "a=vgg8@y.pth"])


@pytest.mark.parametrize(
    "value",
    [
        "nothing",
        "0,0,0/1,nan,1",
        "0,0,0/1,0,1",
        "0,0/1,1,1",
        "inf,0,0/1,1,1",
        "0,0,0/1,1,inf",
        "0,0,0/1e-60,1,1",
        ((0, 0, 0), (1, -1, 1)),
        3,
    ],
)
def test_a_normalisation_that_cannot_be_is_refused_in_a_sentence(value: Any) -> None:
    with pytest.raises(DataError, match=r"is not understood|cannot be: give finite numbers"):
        as_normalisation(value)


def test_a_normalisation_is_a_name_a_text_or_a_pair() -> None:
    expected = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (
        as_normalisation("0.1,0.2,0.3/0.4,0.5,0.6") == as_normalisation(((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))) == expected
    )
    assert as_normalisation("none") == Normalisation(mean=(0, 0, 0), std=(1, 1, 1))


def test_views_are_normalised_then_resized_bilinearly(pictures: MemoryImages) -> None:
    normalisation = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    views = pictures.pixels.permute(0, 3, 1, 2)
    expects = NetworkInput(normalisation=normalisation, size=24)
    normalised = (views / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[
        :, None, None
    ]
    expected = F.interpolate(normalised, (24, 24), mode="bilinear", align_corners=False, antialias=False)
    assert expects.prepare(views).dtype == torch.float32
    torch.testing.assert_close(expects.prepare(views), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_teacher_sees_views_of_its_own_size(pictures: MemoryImages, tmp_path: Path, precision: str) -> None:
    """resnet20's features say how large its input was; vgg8, which needs 8 pixels, is refused 4 by name."""
    spec = TeacherSpec(name="big", network="resnet8", checkpoint=saved_network(tmp_path, "resnet8"))
    teacher, network = load_teacher(spec, source=pictures, compute=FLOAT32, choice=InputChoice(size=40))
    answer = teacher.answer(pictures.pixels.permute(0, 3, 1, 2), features=["stem@40x40"])
    assert answer.features["stem@40x40"].shape == (6, 16, 40, 40)
    assert network.input.size == 40
    spec = TeacherSpec(name="small", network="vgg8", checkpoint=saved_network(tmp_path, "vgg8"))
    teacher, _ = load_teacher(spec, source=pictures, compute=FLOAT32, choice=InputChoice(size=4))
    with pytest.raises(TeacherError, match="teacher small: VGG needs pictures of at least 8 x 8 pixels"):
        teacher.answer(pictures.pixels.permute(0, 3, 1, 2))


def test_an_unknown_layer_is_answered_with_the_teacher_and_its_layers(pictures: MemoryImages, tmp_path: Path) -> None:
    spec = TeacherSpec(name="big", network="resnet8", checkpoint=saved_network(tmp_path, "resnet8"))
    teacher, _ = load_teacher(spec, source=pictures, compute=FLOAT32, choice=InputChoice())
    with pytest.raises(TeacherError, match="teacher big: there is no layer 'layer4'; name one of stem, stage1, stage2"):
        teacher.answer(pictures.pixels.permute(0, 3, 1, 2), features=["layer4"])


@pytest.mark.parametrize("network", ["resnet8", "torchvision:resnet18", "vgg8", "MobileNetV2", "ShuffleV2", "ResNet18"])
def test_other_classes_are_named_with_both_numbers(pictures: MemoryImages, tmp_path: Path, network: str) -> None:
    file = saved_network(tmp_path, network, classes=100)
    refused(f"{file} was trained for 100 classes, and insects has 3", file, network, pictures)


def test_another_architecture_is_named_by_its_tensors(pictures: MemoryImages, tmp_path: Path) -> None:
    file = saved_network(tmp_path, "resnet8x4", classes=3)
    refused("conv1.weight is 32x3x3x3 instead of 16x3x3x3", file, "resnet8", pictures)
    refused("layer1.1.conv1.weight is missing", saved_network(tmp_path, "resnet8"), "resnet20", pictures)


def test_class_names_in_another_order_are_refused_where_they_are_known(pictures: MemoryImages, tmp_path: Path) -> None:
    state = build_network("resnet8", classes=3).state_dict()
    file = tmp_path / "a.pth"
    for extra in ({"class_names": ["ant", "cat", "bee"]}, {"class_to_idx": {"ant": 0, "cat": 1, "bee": 2}}):
        torch.save({"model": state, **extra}, file)
        refused("number 1 is 'cat' there and 'bee' in insects", file, "resnet8", pictures)
    torch.save({"model": state, "classes": ["ant", "bee"]}, file)
    refused("was trained for 2 classes, and insects has 3", file, "resnet8", pictures)
    torch.save({"model": state, "class_names": list(NAMES)}, file)
    load_network(file, name="resnet8", source=pictures)


def test_a_checkpoint_may_not_say_which_of_the_users_code_to_run(
    pictures: MemoryImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder from elsewhere must not import a module of the current directory."""
    (tmp_path / "danger.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "student.safetensors", metadata={"demkd": '{"network": "danger:build"}'})
    refused("is of danger:build, code of your own, which is only imported when you name it", tmp_path, None, pictures)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["module:build", "module:build@w.pth", "name=module:build@w.pth"])
def test_a_recipe_may_not_either(text: str) -> None:
    with pytest.raises(UserError, match="the recipe names module:build, code of your own"):
        refuse_own_code(["resnet8", text])
    refuse_own_code(["resnet8", "torchvision:resnet18", "a=timm:x@w.pth"])


def test_a_run_folders_facts_are_used(pictures: MemoryImages, tmp_path: Path) -> None:
    facts = {"network": "torchvision:resnet18", "class_names": NAMES, "mean": [0.1] * 3, "std": [0.2] * 3}
    network = build_network("torchvision:resnet18", classes=3, size=(16, 16))
    save_file(network.state_dict(), tmp_path / "student.safetensors", metadata={"demkd": json.dumps(facts)})
    loaded = load_network(tmp_path, name=None, source=pictures)
    assert (loaded.name, loaded.input.normalisation.mean) == ("torchvision:resnet18", (0.1, 0.1, 0.1))


def saved_network(folder: Path, name: str, *, classes: int = 3) -> Path:
    file = folder / f"{name.replace(':', '-')}.pth"
    torch.save({"model": build_network(name, classes=classes, size=(16, 16)).state_dict()}, file)
    return file


def refused(reason: str, path: Path, network: str | None, pictures: MemoryImages, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_network(path, name=network, source=pictures, **options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_brings_its_own_input_where_somebody_says_it(pictures: MemoryImages) -> None:
    """The user before the checkpoint or publisher, and that before the views; small pictures are never cut."""
    published = {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": 240, "crop_ratio": 0.9, "interpolation": "bicubic"}
    photos = replace(pictures, policy=ResizedCrop(size=128))
    found = InputChoice(view_size=128).resolve(published, photos)
    assert (found.size, found.crop_ratio, found.interpolation) == (240, 0.9, "bicubic")
    assert found.evaluation_views() == CentreCrop(size=240, crop_ratio=0.9, interpolation="bicubic")
    chosen = InputChoice(size=96, crop_ratio=1.0, view_size=128).resolve(published, photos)
    assert (chosen.size, chosen.crop_ratio) == (96, 1.0)
    usual = InputChoice(view_size=128).resolve({}, photos)
    assert (usual.size, usual.crop_ratio) == (128, 0.875)
    small = InputChoice().resolve({}, pictures)
    assert (small.size, small.crop_ratio) == (None, None)
    assert small.evaluation_views() == AsTheyAre()
