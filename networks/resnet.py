"""Residual networks: CIFAR's resnet8 to resnet110 with their wide x4 kin, and ResNet18 and ResNet50 on a CIFAR stem.

He et al. 2016, "Deep residual learning for image recognition", arXiv:1512.03385. The shortcut is added before a block's
last ReLU, so no map handed out is negative. The two families differ in the names of their layers: `downsample` and `fc`
in the first, `shortcut` and `linear` in the second.

B views of H x W pixels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier
from demkd.networks.layers import Block, conv1x1, conv3x3, initialise_convolutions, normalised, stage, through


def projection(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    """A shortcut: the identity where the shapes agree, else a 1x1 convolution (option B of section 4.1)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*normalised(conv1x1(inputs, outputs, stride=stride)))


class TwoConvolutions(nn.Module):
    """What a basic block adds to its shortcut (figure 5, left)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def residual(self, maps: Tensor) -> Tensor:
        """The maps to add, normalised but not rectified."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        added: Tensor = self.bn2(self.conv2(hidden))
        return added


class CifarBlock(TwoConvolutions):
    """A basic block as the CIFAR family names it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__(inputs, outputs, stride=stride)
        self.downsample = projection(inputs, outputs, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        return F.relu(self.residual(maps) + self.downsample(maps))


class BasicBlock(TwoConvolutions):
    """A basic block as ResNet18 names it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__(inputs, outputs, stride=stride)
        self.shortcut = projection(inputs, outputs, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        return F.relu(self.residual(maps) + self.shortcut(maps))


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
        self.shortcut = projection(inputs, outputs, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(maps))


class CifarResNet(Classifier):
    """Three stages of n basic blocks, depth 6n + 2 (section 4.2).

    Args:
        classes: C.
        depth: the number of layers with weights; shortcuts do not count.
        channels: of the stem and of the three stages.
    """

    hint_layer = "stage3"
    head = "fc"

    def __init__(self, classes: int, *, depth: int, channels: tuple[int, int, int, int] = (16, 16, 32, 64)) -> None:
        super().__init__()
        assert depth % 6 == 2
        blocks = depth // 6
        stem, first, second, third = channels
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(CifarBlock, stem, first, blocks=blocks, stride=1)
        self.layer2 = stage(CifarBlock, first, second, blocks=blocks, stride=2)
        self.layer3 = stage(CifarBlock, second, third, blocks=blocks, stride=2)
        self.fc = nn.Linear(third, classes)
        initialise_convolutions(self)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(views)))  # (B, channels, H, W)
        return through([self.layer1, self.layer2, self.layer3], stem)  # H, H/2, H/4


class ResNet(Classifier):
    """ImageNet's four stages (table 1) on CIFAR's stem: 3x3, stride 1, no pooling.

    Args:
        classes: C.
        block: `BasicBlock` or `Bottleneck`.
        blocks: how many in each stage.
        channels: of the four stages.
    """

    hint_layer = "stage4"
    head = "linear"

    def __init__(
        self, classes: int, *, block: Block, blocks: tuple[int, int, int, int], channels: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(block, 64, first, blocks=blocks[0], stride=1)
        self.layer2 = stage(block, first, second, blocks=blocks[1], stride=2)
        self.layer3 = stage(block, second, third, blocks=blocks[2], stride=2)
        self.layer4 = stage(block, third, fourth, blocks=blocks[3], stride=2)
        self.linear = nn.Linear(fourth, classes)
        initialise_convolutions(self)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(views)))  # (B, 64, H, W)
        return through([self.layer1, self.layer2, self.layer3, self.layer4], stem)  # H, H/2, H/4, H/8
