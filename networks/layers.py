"""The layers that the architectures are made of, and their initial weights."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn


def conv1x1(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A pointwise convolution; without a bias, because batch normalization follows."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, groups=groups, bias=False)


def conv3x3(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; without a bias, because batch normalization follows."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv_bn(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels)]


def conv_bn_relu(convolution: nn.Conv2d) -> list[nn.Module]:
    return [*conv_bn(convolution), nn.ReLU()]


class Block(Protocol):
    """Builds one block of a stage."""

    def __call__(self, inputs: int, outputs: int, /, *, stride: int) -> nn.Module: ...


def stage(block: Block, inputs: int, outputs: int, *, blocks: int, stride: int) -> nn.Sequential:
    """Equal blocks in a row; the first one changes the channels and the size."""
    first = block(inputs, outputs, stride=stride)
    return nn.Sequential(first, *(block(outputs, outputs, stride=1) for _ in range(blocks - 1)))


def maps_of(stages: Iterable[nn.Module], stem: Tensor) -> list[Tensor]:
    """The stem's map and the map after each stage."""
    maps = [stem]
    for module in stages:
        maps.append(module(maps[-1]))
    return maps


def init_convolutions(network: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan-out), with biases of zero (He et al. 2015, arXiv:1502.01852)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_linear(layer: nn.Linear) -> None:
    """Draw a classifier from N(0, 0.01^2), with biases of zero, as the published distillation code does."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
