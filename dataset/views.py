"""Views: the finite num_distinct_views of crops and flips of a picture, numbered, and cut for a whole batch at once.

A view is a crop of the picture's own size out of the picture padded with zeros, flipped or not: RandomCrop(H, padding)
and RandomHorizontalFlip of the usual recipe have exactly (2 padding + 1)^2 x 2 outcomes; a number names one of them.
B views in a batch, N samples, H and W pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CropFlip:
    """Which views a picture has.

    Number `(top * (2 * padding + 1) + left) * flips + flipped` is the crop at (top, left) of the padded picture, where
    `flips` is 2 with flipping and 1 without.
    """

    padding: int
    flip: bool

    @property
    def num_distinct_views(self) -> int:
        """How many different views a picture has."""
        return self._offsets**2 * self._flips

    @property
    def plain_view(self) -> int:
        """The number of the picture as it is."""
        return (self.padding * self._offsets + self.padding) * self._flips

    @property
    def _offsets(self) -> int:
        return 2 * self.padding + 1

    @property
    def _flips(self) -> int:
        return 2 if self.flip else 1

    def locate(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The top, left and flipped of view numbers (B,)."""
        crop, flipped = numbers // self._flips, numbers % self._flips
        return crop // self._offsets, crop % self._offsets, flipped.bool()


class ViewCutter:
    """Cuts any views of any samples out of one padded tensor, which lives where the training does.

    Costs (N, H + 2 padding, W + 2 padding, 3) bytes; a batch is one gather, without a loop over pictures.
    """

    def __init__(self, pixels: Tensor, policy: CropFlip, *, device: torch.device | str = "cpu") -> None:
        """Pad pixels (N, H, W, 3), uint8, with zeros and put them on the device."""
        self.policy = policy
        margin = policy.padding
        padded = F.pad(pixels.to(device), (0, 0, margin, margin, margin, margin))
        samples, height, width, _ = pixels.shape
        sample, row, column, channel = padded.stride()
        # Every crop as an overlapping window of the same memory: (N, top, left, H, W, 3).
        self._windows = padded.as_strided(
            (samples, 2 * margin + 1, 2 * margin + 1, height, width, 3), (sample, row, column, row, column, channel)
        )

    def __len__(self) -> int:
        return len(self._windows)

    def cut(self, indices: Tensor, numbers: Tensor) -> Tensor:
        """The view `numbers[b]` of sample `indices[b]` for all b: (B, 3, H, W), uint8, channels last in memory."""
        top, left, flipped = self.policy.locate(numbers.long())
        views = self._windows[indices, top, left]  # (B, H, W, 3)
        if self.policy.flip:
            views = torch.where(flipped.view(-1, 1, 1, 1), views.flip(2), views)
        return views.permute(0, 3, 1, 2)

    def cut_plain(self, indices: Tensor) -> Tensor:
        """The pictures as they are, in the same form as `cut`."""
        return self.cut(indices, torch.full_like(indices, self.policy.plain_view))
