"""The adapter: what turns a student's features into guesses of a teacher's, trained with the student, then dropped.

B samples, C channels, h and w the size of a map.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.layers import conv1x1, rectified


class Adapter(nn.Module):
    """FitNets' regressor (Romero et al. 2015, arXiv:1412.6550, section 2.2) between features of any two shapes.

    For a teacher's map, the student's is resized, then Conv1x1, BatchNorm and ReLU (as in CA-MKD, Zhang et al. 2022).
    For a teacher's vector, the student's map is averaged, then Linear. The ReLU presumes a map that is never negative,
    which holds for the ResNets, VGGs and ShuffleNets here. Of the signed maps of a wide ResNet or MobileNetV2 only the
    positive part can be matched: match their mean, a vector, instead.

    Args:
        student_shape: without the batch: a map (C, h, w) or a vector (C,).
        teacher_shape: the same for the teacher.

    Raises:
        ValueError: for a shape that is neither.
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        for shape in (student_shape, teacher_shape):
            if len(shape) not in (1, 3):
                raise ValueError(f"features are maps (C, h, w) or vectors (C,), without the batch; got {shape}")
        self.size = teacher_shape[1:]
        channels, teacher_channels = student_shape[0], teacher_shape[0]
        self.regressor: nn.Module
        if self.size:
            self.regressor = nn.Sequential(*rectified(conv1x1(channels, teacher_channels)))
        else:
            self.regressor = nn.Linear(channels, teacher_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Student's features (B, *student_shape) to the teacher's shape (B, *teacher_shape)."""
        prepared = _resized(_as_map(features), self.size) if self.size else _as_vector(features)
        guess: Tensor = self.regressor(prepared)
        return guess


def _as_map(features: Tensor) -> Tensor:
    """A vector (B, C) is a map (B, C, 1, 1)."""
    return features if features.dim() == 4 else features[:, :, None, None]


def _as_vector(features: Tensor) -> Tensor:
    """A map (B, C, h, w) has a mean (B, C)."""
    return features if features.dim() == 2 else features.mean(dim=(2, 3))


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Average an axis of (B, C, h, w) that is too long, then interpolate one that is too short."""
    smaller = (min(size[0], maps.shape[2]), min(size[1], maps.shape[3]))
    if maps.shape[2:] != smaller:
        maps = F.adaptive_avg_pool2d(maps, smaller)
    if size != smaller:
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps
