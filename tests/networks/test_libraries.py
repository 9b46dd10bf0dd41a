"""torchvision, timm and the user's own code: found by name, sized to the classes, refused in a sentence."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision

from demkd.errors import UserError
from demkd.networks import (
    Classifier,
    NetworkSourceError,
    UnknownNetworkError,
    WrappedNetwork,
    build_network,
    fetch_published,
    is_own_code,
)

CHECKOUT = Path(__file__).parents[2]
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
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module of its own, which is forgotten afterwards."""
    (tmp_path / "project_module.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "project_module", raising=False)
    yield tmp_path
    sys.modules.pop("project_module", None)


def test_a_torchvision_network_is_torchvisions_sized_to_the_classes() -> None:
    torch.manual_seed(3)
    network = build_network("torchvision:resnet18", classes=7, size=SIZE)
    torch.manual_seed(3)
    own = torchvision.models.resnet18(num_classes=7)
    assert isinstance(network, WrappedNetwork)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize(("wrong", "close"), [("resnet19", "resnet18"), ("fasterrcnn_resnet50_fpn", "alexnet")])
def test_an_unknown_torchvision_network_is_answered_with_others(wrong: str, close: str) -> None:
    """Detectors are of torchvision, but no classifiers."""
    with pytest.raises(UnknownNetworkError, match=f"torchvision has no network '{wrong}'; it has {close}, "):
        build_network(f"torchvision:{wrong}", classes=7, size=SIZE)


def test_published_weights_come_with_their_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From torchvision's folder of downloads, where the file is there already; the download itself needs the world."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    state = torchvision.models.resnet18().state_dict()
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    published = fetch_published("torchvision:resnet18", "IMAGENET1K_V1", classes=1000)
    assert all(torch.equal(published.state[name], tensor) for name, tensor in state.items())
    assert (published.mean, published.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "weights", "classes", "reason"),
    [
        (
            "torchvision:resnet50",
            "IMAGENET1K_V3",
            1000,
            "no file IMAGENET1K_V3, .* it publishes IMAGENET1K_V1, IMAGENET1K_V2",
        ),
        ("torchvision:resnet50", "IMAGENET1K_V2", 100, "was trained for 1000 classes, and the data has 100"),
        ("torchvision:resnet5", "IMAGENET1K_V2", 1000, "torchvision has no network 'resnet5'"),
        ("torchvision:mnasnet0_5", "best.pth", 1000, "no file best.pth, and torchvision:mnasnet0_5 has no weights"),
        ("my_module:build", "best.pth", 1000, "there is no file or run folder best.pth"),
    ],
)
def test_weights_that_are_not_published_or_do_not_fit_are_refused_before_a_download(
    name: str, weights: str, classes: int, reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        fetch_published(name, weights, classes=classes)
    assert "\n" not in str(caught.value)


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(NetworkSourceError, match=r"resnet18@IMAGENET1K_V1 could not be downloaded \(.*\): give a file"):
        fetch_published("torchvision:resnet18", "IMAGENET1K_V1", classes=1000)


def test_a_timm_network_is_sized_to_the_classes() -> None:
    timm = pytest.importorskip("timm")
    network = build_network("timm:resnet18", classes=7, size=SIZE)
    assert isinstance(network, WrappedNetwork)
    assert network.hint_layer == "layer4"
    assert list(network.state_dict()) == list(timm.create_model("resnet18", num_classes=7).state_dict())


@pytest.mark.parametrize(
    ("weights", "classes", "reason"),
    [
        ("a9_in1k", 1000, "no file a9_in1k, .*timm:resnet18 has no weights .*a1_in1k"),
        ("a1_in1k", 10, "for 1000 classes"),
    ],
)
def test_timm_weights_that_do_not_fit_are_refused_before_a_download(weights: str, classes: int, reason: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(NetworkSourceError, match=reason):
        fetch_published("timm:resnet18", weights, classes=classes)


def test_an_unknown_timm_network_is_answered_with_close_ones() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UnknownNetworkError, match="timm has no network 'resnet19'; it has resnet18"):
        build_network("timm:resnet19", classes=7, size=SIZE)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkSourceError, match=r"timm is not installed: pip install 'demkd\[timm\]'"):
        build_network("timm:resnet18", classes=7, size=SIZE)


@pytest.mark.parametrize(
    ("function", "classes"), [("sized", 9), ("as_the_field_says", 9), ("fixed", 6), ("of_any", 6), ("Net", 9)]
)
def test_own_code_takes_the_classes_or_nothing(project: Path, function: str, classes: int) -> None:
    network = build_network(f"project_module:{function}", classes=classes, size=SIZE)
    assert network(torch.zeros(2, 3, *SIZE)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("project_module:two", "needs depth, width: let it take classes or num_classes, or no argument"),
        ("project_module:fixed", r"answers a picture with \(6,\) numbers, where \(5,\) are expected"),
        ("project_module:broken", r"failed with ZeroDivisionError: division by zero \(.*project_module.py, line 20\)"),
        ("project_module:nothing", "returns a NoneType: let it return a torch.nn.Module"),
        ("project_module:absent", "has no function 'absent' that builds a network"),
        ("project_module:instance", "has no function 'instance' that builds a network"),
        ("project_module:number", "has no function 'number' that builds a network"),
        ("no_such_module:build", "there is no module 'no_such_module' in "),
        ("no_such.module:build", "there is no module 'no_such.module' in "),
        ("project module:build", "'project module:build' names no network: write module:function"),
        ("project_module:", "names no network"),
    ],
)
def test_own_code_that_cannot_be_used_is_refused_in_a_sentence(project: Path, name: str, reason: str) -> None:
    with pytest.raises(NetworkSourceError, match=reason) as caught:
        build_network(name, classes=5, size=SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package", "failed with ModuleNotFoundError: No module named 'no_such_package'"),
        ("def broken(:", "failed with SyntaxError"),
        ("import sys; sys.exit(3)", "failed with SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(project: Path, code: str, reason: str) -> None:
    (project / "unfinished.py").write_text(code)
    sys.modules.pop("unfinished", None)
    with pytest.raises(NetworkSourceError, match=reason):
        build_network("unfinished:build", classes=5, size=SIZE)


def test_one_of_ours_from_own_code_keeps_its_features(project: Path) -> None:
    (project / "variant.py").write_text(
        "from demkd.networks import NETWORKS\nbuild = lambda classes: NETWORKS['resnet8'](classes)"
    )
    network = build_network("variant:build", classes=5, size=SIZE)
    sys.modules.pop("variant")
    assert isinstance(network, Classifier)
    assert network.hint_layer == "stage3"


@pytest.mark.parametrize(
    ("name", "own"), [("resnet8", False), ("torchvision:resnet18", False), ("timm:x", False), ("module:build", True)]
)
def test_own_code_is_told_by_its_name(name: str, *, own: bool) -> None:
    assert is_own_code(name) is own


def test_a_project_with_folders_called_as_ours_gets_its_own(tmp_path: Path) -> None:
    """networks/, cache/ and dataset/ of the user's project, in a process started from the checkout's own cli folder."""
    for name in ("networks", "cache", "dataset", "teachers", "pipeline", "losses"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'the user, {name}'\n")
    (tmp_path / "networks" / "mine.py").write_text("import dataset, cache, networks\n" + NETWORK)
    code = f"""
        import sys
        sys.path.insert(0, {str(CHECKOUT)!r})  # as `python cli.py` has it
        from demkd.networks import build_network
        network = build_network("networks.mine:sized", classes=3, size=(32, 32))
        import networks, cache, dataset, demkd.cache, demkd.networks
        assert networks.OWNER == "the user, networks"
        assert (cache.OWNER, dataset.OWNER) == ("the user, cache", "the user, dataset")
        assert not hasattr(demkd.cache, "OWNER") and not hasattr(demkd.networks, "OWNER")
        print(network.hint_layer)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "0\n"
