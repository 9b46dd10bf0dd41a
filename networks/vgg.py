"""VGG for small pictures: vgg8 to vgg19, batch-normalised, with one linear layer instead of three.

Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", arXiv:1409.1556;
batch normalisation from Ioffe and Szegedy 2015, arXiv:1502.03167.

B views of H x W pixels.
"""

from itertools import chain

from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier
from demkd.networks.layers import initialise_convolutions, initialise_linear, rectified


class VGG(Classifier):
    """Five blocks of 3x3 convolutions, with max-pooling between them.

    There are three poolings, and a fourth before the last block for pictures of 64 pixels or more. So the last two
    blocks see 4 x 4 maps of a 32 x 32 picture.

    Args:
        classes: C.
        convolutions: how many in each of the five blocks (table 1; vgg8 is not the paper's).
    """

    hint_layer = "stage4"
    head = "classifier"
    least_side = 8

    def __init__(self, classes: int, *, convolutions: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        self.block0 = _block(3, 64, convolutions=convolutions[0])
        self.block1 = _block(64, 128, convolutions=convolutions[1])
        self.block2 = _block(128, 256, convolutions=convolutions[2])
        self.block3 = _block(256, 512, convolutions=convolutions[3])
        self.block4 = _block(512, 512, convolutions=convolutions[4])
        self.classifier = nn.Linear(512, classes)
        initialise_convolutions(self)
        initialise_linear(self.classifier)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        maps = [self.block0(views)]  # (B, 64, H, W)
        for block in [self.block1, self.block2, self.block3]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))  # H/2, H/4, H/8
        large = min(views.shape[-2:]) >= 64
        maps.append(self.block4(F.max_pool2d(maps[-1], 2) if large else maps[-1]))  # H/16 or H/8
        return maps


def _block(inputs: int, outputs: int, *, convolutions: int) -> nn.Sequential:
    """Convolutions of equal width; with a bias, useless before normalisation, because the checkpoints have it."""
    widths = [inputs, *[outputs] * (convolutions - 1)]
    return nn.Sequential(*chain.from_iterable(rectified(nn.Conv2d(width, outputs, 3, padding=1)) for width in widths))
