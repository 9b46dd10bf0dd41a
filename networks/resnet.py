"""Residual networks: CIFAR's resnet8 to resnet110 and their x4 variants, ResNet18 and ResNet50 on a CIFAR stem.

He et al. 2016, "Deep residual learning for image recognition", arXiv:1512.03385. The shortcut is added before a block's
last ReLU, so no map is negative. The two families differ in the names of their layers: `downsample` and `fc` in the
first, `shortcut` and `linear` in the second.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier
from demkd.networks.layers import Block, conv1x1, conv3x3, conv_bn, init_convolutions, maps_of, stage


def _projection(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    """A shortcut: the identity if the shapes agree, else a 1x1 convolution (option B of section 4.1)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_bn(conv1x1(inputs, outputs, stride=stride)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left)."""

    shortcut_name = "shortcut"

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.add_module(self.shortcut_name, _projection(inputs, outputs, stride=stride))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        shortcut: Tensor = self.get_submodule(self.shortcut_name)(maps)
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


class CifarBlock(BasicBlock):
    """A basic block as the CIFAR family names it."""

    shortcut_name = "downsample"


class Bottleneck(nn.Module):
    """A 3x3 convolution on a quarter of the channels, between two 1x1 convolutions (figure 5, right)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.conv1 = conv1x1(inputs, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride=stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _projection(inputs, outputs, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(maps))


class ResNet(Classifier):
    """A stem of one 3x3 convolution at full size and three or four stages, of which all but the first halve the size.

    `blocks` has the number of blocks in each stage, `channels` those of the stem and of the stages.
    """

    head = "linear"

    def __init__(self, classes: int, *, block: Block, blocks: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        for number, count in enumerate(blocks, start=1):
            stride = 1 if number == 1 else 2
            layer = stage(block, channels[number - 1], channels[number], blocks=count, stride=stride)
            self.add_module(f"layer{number}", layer)
        self.hint_layer = f"stage{len(blocks)}"
        self.add_module(self.head, nn.Linear(channels[-1], classes))
        init_convolutions(self)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(views)))  # (B, channels, H, W)
        stages = [self.get_submodule(f"layer{number}") for number in range(1, 1 + int(self.hint_layer[5:]))]
        return maps_of(stages, stem)  # H, H/2, H/4, ...


class CifarResNet(ResNet):
    """Three stages of n basic blocks, depth 6n + 2 (section 4.2): the layers with weights, without shortcuts."""

    head = "fc"

    def __init__(self, classes: int, *, depth: int, channels: Sequence[int] = (16, 16, 32, 64)) -> None:
        assert depth % 6 == 2
        super().__init__(classes, block=CifarBlock, blocks=[depth // 6] * 3, channels=channels)
