"""Weights of torchvision and timm in one argument: the network is shown what their own transforms would show it.

There is no network here: the files that would be downloaded are random ones, with the figures that are published.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import demkd
from demkd.dataset import ArrayDataset
from demkd.pipeline.evaluate import evaluation_views
from demkd.teachers.load import load_network

CLASSES = 1000


@pytest.fixture(scope="module")
def source() -> ArrayDataset:
    """Two smooth photos of 300 x 260: what an interpolation does to noise is another question."""
    coarse = torch.rand(2, 3, 6, 5, generator=torch.manual_seed(0))
    fine = nn.functional.interpolate(coarse, (300, 260), mode="bicubic").clamp(0, 1)
    pixels = (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    names = tuple(f"{number:04}" for number in range(CLASSES))
    return ArrayDataset(name="x", split="train", pixels=pixels, labels=torch.tensor([0, 999]), class_names=names)


def shown(source: ArrayDataset, name: str, weights: str) -> Tensor:
    """What an evaluation gives the network as its input (2, 3, H, W)."""
    loaded = load_network(Path(weights), name=name, dataset=source)
    (views,) = evaluation_views(source, loaded.input, [torch.arange(2)], torch.device("cpu"))
    return loaded.input.prepare(views)


def require_alike(mine: Tensor, theirs: Tensor) -> None:
    """Both resize with antialiasing, in 8 bits; Pillow and torch round some pixels to other sides."""
    assert mine.shape == theirs.shape
    difference = (mine - theirs).abs() * 0.23 * 255  # in gray levels, near enough
    assert difference.mean() < 0.3
    assert difference.max() < 3
    assert (mine - theirs.flip(-1)).abs().mean() > 0.05, "it can tell images apart"


@pytest.fixture
def random_timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """timm, whose downloads are random weights."""
    timm = pytest.importorskip("timm")
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: build(name, **{**options, "pretrained": False}))
    return timm


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("resnet18", "a1_in1k"),  # 95 % of the side
        ("resnet10t", "c3_in1k"),  # a side of its own
        ("mobilenetv3_small_050", "lamb_in1k"),
        ("vit_tiny_patch16_224", "augreg_in21k_ft_in1k"),  # a mean and deviation of one half
        ("mobilenetv4_conv_small", "e2400_r224_in1k"),
    ],
)
def test_timms_weights_see_timms_transform(random_timm: Any, source: ArrayDataset, name: str, tag: str) -> None:
    config = random_timm.data.resolve_data_config(
        pretrained_cfg=random_timm.get_pretrained_cfg(f"{name}.{tag}").to_dict()
    )
    transform = random_timm.data.create_transform(**config)
    theirs = torch.stack([transform(Image.fromarray(np.asarray(image))) for image in source.pixels])
    require_alike(shown(source, f"timm:{name}", tag), theirs)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        ("mobilenet_v3_large", torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V2),  # of 232 pixels
        ("efficientnet_b1", torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V2),  # 240 of 255
        ("efficientnet_b0", torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1),  # bicubic
    ],
)
def test_torchvisions_weights_see_what_torchvisions_transform_shows(
    source: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, weights: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.get_model(name).state_dict(), file)
    transform = weights.transforms()
    theirs = torch.stack([transform(Image.fromarray(np.asarray(image))) for image in source.pixels])
    require_alike(shown(source, f"torchvision:{name}", weights.name), theirs)


def test_one_argument_makes_a_cache(random_timm: Any, source: ArrayDataset, tmp_path: Path) -> None:
    """Its normalization and size are in the file; a second argument may change them."""
    options: dict[str, Any] = {"views": 1, "features": (), "progress": False, "precision": "float32"}
    demkd.cache_teachers(["a=timm:mobilenetv3_small_050@lamb_in1k"], source, out=tmp_path, **options)
    (teacher,) = demkd.inspect(tmp_path)["provenance"]
    assert teacher["network"] == "timm:mobilenetv3_small_050"
    found = (teacher["mean"], teacher["std"], teacher["input_size"])
    assert found == ("0.485 0.456 0.406", "0.229 0.224 0.225", 224)
