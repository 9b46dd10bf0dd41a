"""VGG for small images: vgg8 to vgg19, batch-normalized, with one linear layer instead of three.

Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", arXiv:1409.1556;
batch normalization from Ioffe and Szegedy 2015, arXiv:1502.03167.
"""

from itertools import chain

from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier
from demkd.networks.layers import conv_bn_relu, init_convolutions, init_linear


class VGG(Classifier):
    """Five blocks of 3x3 convolutions, with max-pooling between them.

    There are three poolings, and a fourth before the last block for images of 64 pixels or more. So the last two
    blocks see 4 x 4 maps of a 32 x 32 image. `convolutions` has the number in each block (table 1; vgg8 is not the
    paper's).
    """

    hint_layer = "stage4"
    head = "classifier"
    least_side = 8

    def __init__(self, classes: int, *, convolutions: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        inputs = 3
        for number, (outputs, count) in enumerate(zip((64, 128, 256, 512, 512), convolutions, strict=True)):
            # Biases are useless before normalization, but the checkpoints have them.
            layers = (nn.Conv2d(width, outputs, 3, padding=1) for width in [inputs, *[outputs] * (count - 1)])
            self.add_module(f"block{number}", nn.Sequential(*chain.from_iterable(map(conv_bn_relu, layers))))
            inputs = outputs
        self.classifier = nn.Linear(512, classes)
        init_convolutions(self)
        init_linear(self.classifier)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        maps = [self.get_submodule("block0")(views)]  # (B, 64, H, W)
        for number in (1, 2, 3, 4):  # H/2, H/4, H/8, and then H/16 or H/8
            is_pooled = number < 4 or min(views.shape[-2:]) >= 64
            maps.append(self.get_submodule(f"block{number}")(F.max_pool2d(maps[-1], 2) if is_pooled else maps[-1]))
        return maps
