"""A student in training: its network, and the adapters that guess the teachers' features.

B images in a batch, C classes, K teachers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from demkd.networks import Adapter, Network


class StudentWithAdapters(nn.Module):
    """One module with everything that is trained, called through `forward` alone, as data-parallel training asks.

    Attributes:
        student: what remains when training is over.
        adapters: one for each teacher whose features are matched, or none.
    """

    def __init__(self, student: Network, hint_shapes: Sequence[tuple[int, ...]], some: Tensor, *, layer: str) -> None:
        """Fit adapters between the student's layer and the teachers'.

        Args:
            hint_shapes: of one sample's features by teacher; empty for no adapters.
            some: a student's input (B, 3, H, W), to learn the shape of its layer.
            layer: whose features are adapted; "" for the last map.
        """
        super().__init__()
        self.student = student
        self._layer = ""
        self.adapters = nn.ModuleList()
        if hint_shapes:
            self._layer = layer or student.hint_layer
            student.eval()
            with torch.no_grad():
                _, features = student.forward_features(some, [self._layer])
            shape = tuple(features[self._layer].shape[1:])
            self.adapters.extend(Adapter(shape, hint) for hint in hint_shapes)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C) of normalised images (B, 3, H, W), and K guesses of the teachers' features."""
        if not self.adapters:
            logits: Tensor = self.student(images)
            return logits, []
        logits, features = self.student.forward_features(images, [self._layer])
        return logits, [adapter(features[self._layer]) for adapter in self.adapters]
