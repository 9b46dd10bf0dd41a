"""MobileNetV2 at half width for small images.

Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks", arXiv:1801.04381. As in the published
distillation code, ReLU replaces ReLU6, a block without expansion keeps its first 1x1 convolution, the first strided
stage is not strided, and there is no dropout. Blocks end without ReLU, so the maps may be negative.
"""

from functools import partial

from torch import Tensor, nn

from demkd.networks.classifier import Classifier
from demkd.networks.layers import (
    conv1x1,
    conv3x3,
    conv_bn,
    conv_bn_relu,
    init_convolutions,
    init_linear,
    maps_of,
    stage,
)

_STEM, _LAST = 16, 1280

# Table 2 of the paper with half the channels: expansion, channels, blocks, stride.
_STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; with a shortcut if the shapes agree (figure 4d)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn_relu(conv1x1(inputs, hidden)),
            *conv_bn_relu(conv3x3(hidden, hidden, stride=stride, groups=hidden)),
            *conv_bn(conv1x1(hidden, outputs)),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        narrow: Tensor = self.conv(maps)
        return maps + narrow if self.has_shortcut else narrow


class MobileNetV2(Classifier):
    """Seven stages of inverted residuals, whose last map at each size is a feature; then a 1x1 convolution."""

    hint_layer = "stage4"
    head = "classifier"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn_relu(conv3x3(3, _STEM, stride=2)))
        self.blocks = nn.ModuleList()
        inputs = _STEM
        for expansion, outputs, blocks, stride in _STAGES:
            block = partial(InvertedResidual, expansion=expansion)
            self.blocks.append(stage(block, inputs, outputs, blocks=blocks, stride=stride))
            inputs = outputs
        self.conv2 = nn.Sequential(*conv_bn_relu(conv1x1(inputs, _LAST)))
        linear = nn.Linear(_LAST, classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        init_linear(linear)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        maps = maps_of(self.blocks, self.conv1(views))
        return [maps[0], maps[2], maps[3], maps[5], maps[7]]  # H/2, H/2, H/4, H/8, H/16

    def before_pooling(self, maps: Tensor) -> Tensor:
        wide: Tensor = self.conv2(maps)  # (B, 1280, H/16, W/16)
        return wide
