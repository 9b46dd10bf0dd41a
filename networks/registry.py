"""The networks by name: those of this project, of torchvision and timm, and of the user's own code.

    resnet20                    one of `NETWORKS`; to add one, add its line
    torchvision:resnet50        an architecture of torchvision
    timm:convnext_tiny          one of timm, which the extra `timm` installs
    my_module:build_network     a function of the user's, found from the current directory

Code is imported only for the name that is given.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from demkd.networks.classifier import Classifier, NetworkSourceError, UnknownNetworkError
from demkd.networks.features import WrappedNetwork
from demkd.networks.mobilenet import MobileNetV2
from demkd.networks.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from demkd.networks.shufflenet import ShuffleV1, ShuffleV2
from demkd.networks.vgg import VGG
from demkd.networks.wide_resnet import WideResNet

Network = Classifier | WrappedNetwork

_WIDE = (32, 64, 128, 256)
NETWORKS: dict[str, Callable[[int], Classifier]] = {
    "resnet8": partial(CifarResNet, depth=8),
    "resnet14": partial(CifarResNet, depth=14),
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet44": partial(CifarResNet, depth=44),
    "resnet56": partial(CifarResNet, depth=56),
    "resnet110": partial(CifarResNet, depth=110),
    "resnet8x4": partial(CifarResNet, depth=8, channels=_WIDE),
    "resnet20x4": partial(CifarResNet, depth=20, channels=_WIDE),
    "resnet32x4": partial(CifarResNet, depth=32, channels=_WIDE),
    "wrn_16_1": partial(WideResNet, depth=16, width=1),
    "wrn_16_2": partial(WideResNet, depth=16, width=2),
    "wrn_40_1": partial(WideResNet, depth=40, width=1),
    "wrn_40_2": partial(WideResNet, depth=40, width=2),
    "vgg8": partial(VGG, convolutions=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, convolutions=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, convolutions=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, convolutions=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, convolutions=(2, 2, 4, 4, 4)),
    "ResNet18": partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2), channels=(64, 64, 128, 256, 512)),
    "ResNet50": partial(ResNet, block=Bottleneck, blocks=(3, 4, 6, 3), channels=(64, 256, 512, 1024, 2048)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}

_LIBRARIES = ("torchvision", "timm")
_OWN_CODE = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_CLASSES_WORDS = ("classes", "num_classes")


@overload
def build_network(name: str, *, classes: int) -> Classifier: ...
@overload
def build_network(name: str, *, classes: int, size: tuple[int, int]) -> Network: ...


def build_network(name: str, *, classes: int, size: tuple[int, int] | None = None) -> Network:
    """A network with fresh weights, drawn from torch's generator.

    `name` is one of `NETWORKS`; or, with the height and width of its images, `torchvision:NAME`, `timm:NAME` or the
    user's own `module:function`.
    """
    if size is not None and ":" in name:
        source, _, rest = name.partition(":")
        if source == "torchvision":
            models = _torchvision(rest)
            network: nn.Module = models.get_model(rest, weights=None, num_classes=classes)
        elif source == "timm":
            network = _timm(rest).create_model(rest, pretrained=False, num_classes=classes)
        else:
            network = _build_own(name, classes)
        if isinstance(network, Classifier):  # the user's code may return one of ours
            return network
        return WrappedNetwork(network, name=name, classes=classes, size=size)
    check_network(name)
    return NETWORKS[name](classes)


def check_network(name: str) -> None:
    """Refuse a name that is not one of `NETWORKS`, with those that are like it."""
    if name not in NETWORKS:
        lower = {known.lower(): known for known in NETWORKS}
        close = [lower[match] for match in get_close_matches(name.lower(), lower)]
        meant = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UnknownNetworkError(f"there is no network {name!r}{meant}; there are: {', '.join(NETWORKS)}")


def is_own_code(name: str) -> bool:
    """Whether building this network imports the user's code."""
    return ":" in name and name.partition(":")[0] not in _LIBRARIES


def fetch_published(name: str, weights: str, *, classes: int) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The weights that a library publishes for `torchvision:NAME` or `timm:NAME`; downloaded on first use.

    The state, and as metadata the mean, std, input_size, crop_pct and interpolation of their evaluation. `weights` is
    the library's name of them: `IMAGENET1K_V2` (torchvision), `a1_in1k` (timm).
    """
    source, _, rest = name.partition(":")
    if source == "torchvision":
        entries = {entry.name: entry for entry in _torchvision(rest).get_model_weights(rest)}
    elif source == "timm":
        timm = _timm(rest)
        entries = {full.partition(".")[2]: full for full in timm.list_pretrained(f"{rest}.*")}
    else:
        raise NetworkSourceError(f"there is no file or run folder {weights}: give the weights of {name}")
    if weights not in entries:
        published = f"publishes {', '.join(entries)}" if entries else "publishes none"
        raise NetworkSourceError(f"there is no file {weights}, and {name} has no weights of that name: it {published}")
    entry = entries[weights]
    if source == "torchvision":
        figures, count = entry.transforms(), len(entry.meta["categories"])
        size, crop_pct = figures.crop_size[0], min(figures.crop_size[0] / figures.resize_size[0], 1.0)
        known = {"mean": figures.mean, "std": figures.std, "interpolation": figures.interpolation.value}
    else:
        config = timm.get_pretrained_cfg(entry)
        count, known = config.num_classes, timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
        size, crop_pct = known["input_size"][-1], known["crop_pct"]
    if count != classes:
        raise NetworkSourceError(
            f"{name}@{weights} was trained for {count} classes, and the data has {classes}: use the data set that it "
            "was trained with, or fine-tune it first"
        )
    try:
        if source == "torchvision":
            state = entry.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
        else:
            state = timm.create_model(entry, pretrained=True).state_dict()
    except Exception as error:  # each library has its own errors for being offline
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkSourceError(
            f"{name}@{weights} could not be downloaded ({reason}): give a file, NETWORK@CHECKPOINT"
        ) from error
    normalization = {name: tuple(known[name]) for name in ("mean", "std")}
    return state, {**normalization, "input_size": size, "crop_pct": crop_pct, "interpolation": known["interpolation"]}


def _torchvision(name: str) -> Any:
    from torchvision import models

    _check_known("torchvision", name, models.list_models(module=models))
    return models


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise NetworkSourceError("timm is not installed: pip install 'demkd[timm]' installs it") from None
    if not timm.is_model(name):
        _check_known("timm", name, timm.list_models())
    return timm


def _check_known(source: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        close = get_close_matches(name, names) or names
        raise UnknownNetworkError(f"{source} has no network {name!r}; it has {', '.join(close[:8])}, ...")


def _build_own(name: str, classes: int) -> nn.Module:
    """Import the user's module as `python -m` would, from the current directory first, and call its function."""
    match = _OWN_CODE.fullmatch(name)
    if not match:
        raise NetworkSourceError(f"{name!r} names no network: write module:function for one of your own")
    module_name, function_name = match.groups()
    here = str(Path.cwd())
    # In front, so that the user's own networks/ or cache/ is found before this project's checkout.
    sys.path[:] = [here, *(entry for entry in sys.path if entry != here)]
    importlib.invalidate_caches()
    try:
        module = _guarded(module_name, lambda: importlib.import_module(module_name))
    except NetworkSourceError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing.name}."):
            raise NetworkSourceError(
                f"there is no module {module_name!r} in {here}: call demkd where your code is, or name one of its own "
                "networks, torchvision:NAME or timm:NAME"
            ) from None
        raise
    build = getattr(module, function_name, None)
    if isinstance(build, nn.Module) or not callable(build):
        raise NetworkSourceError(f"{module_name} has no function {function_name!r} that builds a network: define it")
    parameters = inspect.signature(build).parameters
    word = next((word for word in _CLASSES_WORDS if word in parameters), None)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in optional]
    if needed and not word:
        raise NetworkSourceError(
            f"{name} needs {', '.join(needed)}: let it take {' or '.join(_CLASSES_WORDS)}, or no argument"
        )
    network = _guarded(name, lambda: build(**({word: classes} if word else {})))
    if not isinstance(network, nn.Module):
        raise NetworkSourceError(f"{name} returns a {type(network).__name__}: let it return a torch.nn.Module")
    return network


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    """Call the user's code; say in a sentence what it raised and where."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # a script without a main guard leaves with SystemExit
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise NetworkSourceError(
            f"{name} failed with {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error
