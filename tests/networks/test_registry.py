"""Networks of this project, torchvision, timm and the user's own code: found by name, or refused in a sentence."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from demkd.errors import UserError
from demkd.networks import Classifier, NetworkSourceError, build_network, fetch_published, is_own_code
from demkd.networks.classifier import UnknownNetworkError

SIZE = (32, 32)

NETWORK = """
from torch import nn

def sized(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def as_the_field_says(num_classes=10):
    return sized(num_classes)

def fixed():
    return sized(6)

def of_any(**options):
    return sized(6, **options)

def two(depth, width):
    return sized(6)

def broken():
    return 1 / 0

def nothing():
    return None

class Net(nn.Sequential):
    def __init__(self, classes, depth=1):
        super().__init__(nn.Flatten(), nn.Linear(3072, classes))

instance = sized(6)
number = 6
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules of its own, which are forgotten afterwards."""
    (tmp_path / "project_module.py").write_text(NETWORK)
    variant = "from demkd.networks import NETWORKS\nbuild = lambda classes: NETWORKS['resnet8'](classes)"
    (tmp_path / "variant.py").write_text(variant)
    (tmp_path / "no_package.py").write_text("import no_such_package")
    (tmp_path / "no_syntax.py").write_text("def broken(:")
    (tmp_path / "no_guard.py").write_text("import sys; sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_a_torchvision_network_is_torchvisions_sized_to_the_classes() -> None:
    torch.manual_seed(3)
    network = build_network("torchvision:resnet18", classes=7, size=SIZE)
    torch.manual_seed(3)
    own = torchvision.models.resnet18(num_classes=7)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in own.state_dict().items())


def test_a_timm_network_is_sized_to_the_classes() -> None:
    timm = pytest.importorskip("timm")
    network = build_network("timm:resnet18", classes=7, size=SIZE)
    assert network.hint_layer == "layer4"
    assert list(network.state_dict()) == list(timm.create_model("resnet18", num_classes=7).state_dict())


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkSourceError, match=r"timm is not installed: pip install 'demkd\[timm\]'"):
        build_network("timm:resnet18", classes=7, size=SIZE)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("torchvision:resnet19", "torchvision has no network 'resnet19'; it has resnet18, "),
        ("torchvision:fasterrcnn_resnet50_fpn", "it has alexnet, "),  # a detector is no classifier
        ("timm:resnet19", "timm has no network 'resnet19'; it has resnet18"),
        ("resnet-20", r"no network 'resnet-20' \(did you mean resnet20.*\?\); there are: resnet8, .*ShuffleV2$"),
        ("mobilenetv2", "did you mean MobileNetV2"),
        ("WRN_40_2", "did you mean wrn_40_2"),
        ("transformer", "there is no network 'transformer'; there are: resnet8, "),
    ],
)
def test_an_unknown_name_is_refused_with_close_ones(wrong: str, reason: str) -> None:
    if wrong.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UnknownNetworkError, match=reason) as caught:
        build_network(wrong, classes=7, size=SIZE)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


def test_published_weights_come_with_their_normalization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From torchvision's folder of downloads, which has the file already; the download itself needs the internet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    saved = torchvision.models.resnet18().state_dict()
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(saved, file)
    state, metadata = fetch_published("torchvision:resnet18", "IMAGENET1K_V1", classes=1000)
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    assert metadata == {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "input_size": 224,
        "crop_pct": 224 / 256,
        "interpolation": "bilinear",
    }


@pytest.mark.parametrize(
    ("name", "weights", "classes", "reason"),
    [
        ("torchvision:resnet50", "V3", 1000, "no file V3, .* it publishes IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:resnet50", "IMAGENET1K_V2", 100, "was trained for 1000 classes, and the data has 100"),
        ("torchvision:resnet5", "IMAGENET1K_V2", 1000, "torchvision has no network 'resnet5'"),
        ("torchvision:mnasnet0_5", "best.pth", 1000, "no file best.pth, and torchvision:mnasnet0_5 has no weights"),
        ("my_module:build", "best.pth", 1000, "there is no file or run folder best.pth"),
        ("timm:resnet18", "a9_in1k", 1000, "no file a9_in1k, .*timm:resnet18 has no weights .*a1_in1k"),
        ("timm:resnet18", "a1_in1k", 10, "for 1000 classes"),
    ],
)
def test_weights_that_do_not_fit_are_not_downloaded(name: str, weights: str, classes: int, reason: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=reason) as caught:
        fetch_published(name, weights, classes=classes)
    assert "\n" not in str(caught.value)


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(NetworkSourceError, match=r"resnet18@IMAGENET1K_V1 could not be downloaded \(.*\): give a file"):
        fetch_published("torchvision:resnet18", "IMAGENET1K_V1", classes=1000)


@pytest.mark.parametrize(
    ("function", "classes"), [("sized", 9), ("as_the_field_says", 9), ("fixed", 6), ("of_any", 6), ("Net", 9)]
)
def test_own_code_takes_the_classes_or_nothing(project: Path, function: str, classes: int) -> None:
    assert is_own_code(f"project_module:{function}")
    assert not any(map(is_own_code, ("resnet8", "torchvision:resnet18", "timm:x")))
    network = build_network(f"project_module:{function}", classes=classes, size=SIZE)
    assert network(torch.zeros(2, 3, *SIZE)).shape == (2, classes)


def test_one_of_ours_from_own_code_keeps_its_features(project: Path) -> None:
    network = build_network("variant:build", classes=5, size=SIZE)
    assert isinstance(network, Classifier)
    assert network.hint_layer == "stage3"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("project_module:two", "needs depth, width: let it take classes or num_classes, or no argument"),
        ("project_module:fixed", r"returns \(6,\) numbers for an image, where \(5,\) are expected"),
        ("project_module:broken", r"failed with ZeroDivisionError: division by zero \(.*project_module.py, line 20\)"),
        ("project_module:nothing", "returns a NoneType: let it return a torch.nn.Module"),
        ("project_module:absent", "has no function 'absent' that builds a network"),
        ("project_module:instance", "has no function 'instance' that builds a network"),
        ("project_module:number", "has no function 'number' that builds a network"),
        ("no_such_module:build", "there is no module 'no_such_module' in "),
        ("no_such.module:build", "there is no module 'no_such.module' in "),
        ("project module:build", "'project module:build' names no network: write module:function"),
        ("project_module:", "names no network"),
        ("no_package:build", "failed with ModuleNotFoundError: No module named 'no_such_package'"),
        ("no_syntax:build", "failed with SyntaxError"),
        ("no_guard:build", "failed with SystemExit: 3"),
    ],
)
def test_own_code_that_cannot_be_used_is_refused_in_a_sentence(project: Path, name: str, reason: str) -> None:
    with pytest.raises(NetworkSourceError, match=reason) as caught:
        build_network(name, classes=5, size=SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg13", "ResNet18", "MobileNetV2"])
def test_convolutions_start_as_he_et_al_say(name: str) -> None:
    """Mean 0 and std sqrt(2 / fan-out), to five standard errors of the estimates; biases 0."""
    torch.manual_seed(0)
    for layer in build_network(name, classes=10).modules():
        if isinstance(layer, nn.Conv2d):
            count, std = layer.weight.numel(), math.sqrt(2 / (layer.out_channels * math.prod(layer.kernel_size)))
            assert abs(layer.weight.mean().item()) < 5 * std / math.sqrt(count)
            assert layer.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))
            assert layer.bias is None or not layer.bias.any()
