"""The architectures, for teachers and students alike, and the adapter between their features.

`classifier.py` says what they have in common, `resnet.py`, `wide_resnet.py`, `vgg.py`, `mobilenet.py` and
`shufflenet.py` hold the families, `layers.py` their layers; `profile.py` counts parameters.
`wrapped.py` makes the same of other makers' networks, which `libraries.py` gets from torchvision, timm or the user.
Names, tensors and features are those of the published CIFAR-100 checkpoints (RepDistiller, mdistiller, CA-MKD), whose
state dicts load unchanged. To add a network, add its line to `NETWORKS`.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import overload

from demkd.networks.adapter import Adapter
from demkd.networks.classifier import Classifier
from demkd.networks.errors import NetworkSourceError, PictureSizeError, UnknownLayerError, UnknownNetworkError
from demkd.networks.libraries import PublishedWeights, build_from_library, fetch_published, is_own_code
from demkd.networks.mobilenet import MobileNetV2
from demkd.networks.profile import NetworkProfile, profile_network
from demkd.networks.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from demkd.networks.shufflenet import ShuffleV1, ShuffleV2
from demkd.networks.vgg import VGG
from demkd.networks.wide_resnet import WideResNet
from demkd.networks.wrapped import WrappedNetwork

__all__ = [
    "NETWORKS",
    "Adapter",
    "Classifier",
    "Network",
    "NetworkProfile",
    "NetworkSourceError",
    "PictureSizeError",
    "PublishedWeights",
    "UnknownLayerError",
    "UnknownNetworkError",
    "WrappedNetwork",
    "build_network",
    "fetch_published",
    "is_own_code",
    "profile_network",
]

Network = Classifier | WrappedNetwork

NETWORKS: dict[str, Callable[[int], Classifier]] = {
    "resnet8": partial(CifarResNet, depth=8),
    "resnet14": partial(CifarResNet, depth=14),
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet44": partial(CifarResNet, depth=44),
    "resnet56": partial(CifarResNet, depth=56),
    "resnet110": partial(CifarResNet, depth=110),
    "resnet8x4": partial(CifarResNet, depth=8, channels=(32, 64, 128, 256)),
    "resnet20x4": partial(CifarResNet, depth=20, channels=(32, 64, 128, 256)),
    "resnet32x4": partial(CifarResNet, depth=32, channels=(32, 64, 128, 256)),
    "wrn_16_1": partial(WideResNet, depth=16, width=1),
    "wrn_16_2": partial(WideResNet, depth=16, width=2),
    "wrn_40_1": partial(WideResNet, depth=40, width=1),
    "wrn_40_2": partial(WideResNet, depth=40, width=2),
    "vgg8": partial(VGG, convolutions=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, convolutions=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, convolutions=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, convolutions=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, convolutions=(2, 2, 4, 4, 4)),
    "ResNet18": partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512)),
    "ResNet50": partial(ResNet, block=Bottleneck, blocks=(3, 4, 6, 3), channels=(256, 512, 1024, 2048)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}


@overload
def build_network(name: str, *, classes: int) -> Classifier: ...
@overload
def build_network(name: str, *, classes: int, size: tuple[int, int]) -> Network: ...


def build_network(name: str, *, classes: int, size: tuple[int, int] | None = None) -> Network:
    """A network of this name with fresh weights, drawn from torch's generator.

    Args:
        name: one of `NETWORKS`; or, with a size, `torchvision:NAME`, `timm:NAME` or the user's own `module:function`.
        size: height and width of the pictures that it will see.

    Raises:
        UnknownNetworkError: if no network has this name.
        NetworkSourceError: if a network of another maker cannot be had or used.
    """
    if size is not None and ":" in name:
        network = build_from_library(name, classes=classes)
        if isinstance(network, Classifier):  # the user's own, but one of ours in kind
            return network
        return WrappedNetwork(network, name=name, classes=classes, size=size)
    if name not in NETWORKS:
        raise UnknownNetworkError(f"there is no network {name!r}{_suggestion(name)}; there are: {', '.join(NETWORKS)}")
    return NETWORKS[name](classes)


def _suggestion(name: str) -> str:
    """Names the user may have meant, in whatever case they were written."""
    lower = {known.lower(): known for known in NETWORKS}
    close = [lower[match] for match in get_close_matches(name.lower(), lower)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
