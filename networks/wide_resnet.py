"""Wide residual networks: wrn_16_1 to wrn_40_2, named by depth and width.

Zagoruyko and Komodakis 2016, "Wide residual networks", arXiv:1605.07146. Blocks are pre-activated (He et al. 2016,
arXiv:1603.05027): normalization and ReLU come before a convolution. So, unlike a plain residual network's, the maps may
be negative, and the last one is rectified only before pooling.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier
from demkd.networks.layers import conv1x1, conv3x3, init_convolutions, maps_of, stage


class WideBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut, without dropout.

    If the channels change, the shortcut is a 1x1 convolution of the *activated* input; else it is the input itself.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in, maps out: both (B, channels, height, width)."""
        active = F.relu(self.bn1(maps))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (maps if self.convShortcut is None else self.convShortcut(active))


class WideResNet(Classifier):
    """Three stages of n blocks, depth 6n + 4, and `width` times the channels of a thin network (table 1).

    The depth is the number of convolutions, with one shortcut counted in every stage.
    """

    hint_layer = "stage3"
    head = "fc"

    def __init__(self, classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        assert depth % 6 == 4
        self.conv1 = conv3x3(3, 16)
        channels = [16, 16 * width, 32 * width, 64 * width]
        for number, stride in ((1, 1), (2, 2), (3, 2)):
            layer = stage(WideBlock, channels[number - 1], channels[number], blocks=depth // 6, stride=stride)
            # The published checkpoints call the blocks `block1.layer.0`, ...
            self.add_module(f"block{number}", nn.Sequential(OrderedDict(layer=layer)))
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        stem = self.conv1(views)  # (B, 16, H, W)
        return maps_of([self.get_submodule(f"block{number}") for number in (1, 2, 3)], stem)  # H, H/2, H/4

    def before_pooling(self, maps: Tensor) -> Tensor:
        return F.relu(self.bn1(maps))
