"""ShuffleV1 and ShuffleV2 for small images: the stem is a 1x1 convolution at full size.

Zhang et al. 2018, "ShuffleNet: an extremely efficient convolutional neural network for mobile devices",
arXiv:1707.01083; Ma et al. 2018, "ShuffleNet V2: practical guidelines for efficient CNN architecture design",
arXiv:1807.11164. As in the published distillation code, the first has a ReLU after its depthwise convolutions too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier
from demkd.networks.layers import conv1x1, conv3x3, maps_of, stage

_STEM = 24
_GROUPS = 3


def shuffle(maps: Tensor, *, groups: int) -> Tensor:
    """Interleave the channels of (B, groups * n, h, w): the first of each group, the second of each, ..."""
    batch, channels, height, width = maps.shape
    return maps.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


class GroupedUnit(nn.Module):
    """A bottleneck of grouped convolutions with a shuffle between them (figure 2b of the first paper).

    A strided unit (figure 2c) appends its average-pooled input to its channels instead of adding it.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        added = outputs if stride == 1 else outputs - inputs
        hidden = added // 4
        self.stride = stride
        # The stem has too few channels to be worth grouping.
        self.groups = 1 if inputs == _STEM else _GROUPS
        self.conv1 = conv1x1(inputs, hidden, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride=stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, added, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        hidden = shuffle(F.relu(self.bn1(self.conv1(maps))), groups=self.groups)
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        added = self.bn3(self.conv3(hidden))
        if self.stride == 1:
            return F.relu(added + maps)
        return F.relu(torch.cat([added, F.avg_pool2d(maps, 3, stride=2, padding=1)], dim=1))


class ShuffleV1(Classifier):
    """Three stages of 4, 8 and 4 grouped units (table 1 of the first paper, 3 groups)."""

    hint_layer = "stage3"
    head = "linear"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = stage(GroupedUnit, _STEM, 240, blocks=4, stride=2)
        self.layer2 = stage(GroupedUnit, 240, 480, blocks=8, stride=2)
        self.layer3 = stage(GroupedUnit, 480, 960, blocks=4, stride=2)
        self.linear = nn.Linear(960, classes)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(views)))  # (B, 24, H, W)
        return maps_of([self.layer1, self.layer2, self.layer3], stem)  # H/2, H/4, H/8


class SplitUnit(nn.Module):
    """Half of the channels pass unchanged, half through three convolutions (figure 3c of the second paper)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        unchanged, hidden = maps.chunk(2, dim=1)
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        hidden = self.bn2(self.conv2(hidden))
        hidden = F.relu(self.bn3(self.conv3(hidden)))
        return shuffle(torch.cat([unchanged, hidden], dim=1), groups=2)


class HalvingUnit(nn.Module):
    """Two strided branches with half of the channels each (figure 3d of the second paper)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = conv3x3(inputs, inputs, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv1x1(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps of half the size out: both (B, channels, height, width)."""
        short = self.bn1(self.conv1(maps))
        short = F.relu(self.bn2(self.conv2(short)))
        long = F.relu(self.bn3(self.conv3(maps)))
        long = self.bn4(self.conv4(long))
        long = F.relu(self.bn5(self.conv5(long)))
        return shuffle(torch.cat([short, long], dim=1), groups=2)


class ShuffleV2(Classifier):
    """Three stages of 4, 8 and 4 units, then a 1x1 convolution (table 5 of the second paper, width 1)."""

    hint_layer = "stage3"
    head = "linear"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _halving_stage(_STEM, 116, units=4)
        self.layer2 = _halving_stage(116, 232, units=8)
        self.layer3 = _halving_stage(232, 464, units=4)
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        stem = F.relu(self.bn1(self.conv1(views)))  # (B, 24, H, W)
        return maps_of([self.layer1, self.layer2, self.layer3], stem)  # H/2, H/4, H/8

    def before_pooling(self, maps: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(maps)))  # (B, 1024, H/8, W/8)


def _halving_stage(inputs: int, outputs: int, *, units: int) -> nn.Sequential:
    return nn.Sequential(HalvingUnit(inputs, outputs), *(SplitUnit(outputs) for _ in range(units - 1)))
