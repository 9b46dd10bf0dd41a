"""What every network here is: views in, logits out, and the features on the way by name.

B views, H and W their pixels, C classes; D entries of the pooled vector, h and w the size of the map it is the mean of.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor, nn

from demkd.networks.errors import PictureSizeError, UnknownLayerError


class Classifier(nn.Module, ABC):
    """A stem, stages, global average pooling and one linear layer.

    An architecture says how views become maps (`forward_maps`), what happens to the last map before it is pooled
    (`before_pooling`), and which layer classifies (`head`). Its attributes are named so that the state dict is
    that of the published checkpoints: same names, same shapes, same order.

    Attributes:
        hint_layer: the name of the last map that a student may be asked to match.
        head: the attribute that classifies.
        least_side: the fewest pixels a view's height and width may have.
    """

    hint_layer: str
    head: str
    least_side: int = 1

    @abstractmethod
    def forward_maps(self, views: Tensor) -> list[Tensor]:
        """The stem's map and every stage's, in order, each (B, channels, height, width)."""

    @property
    def last_layer(self) -> nn.Module:
        """The linear layer, D to C."""
        found: nn.Module = getattr(self, self.head)
        return found

    def before_pooling(self, maps: Tensor) -> Tensor:
        """What global average pooling sees of the last stage's map: (B, D, h, w)."""
        return maps

    def forward_features(
        self, views: Tensor, layers: Collection[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, C) of views (B, 3, H, W), and the features "stem", "stage1", ..., "pooled" (B, D), in order.

        Under autocast, pooling and the linear layer still compute in float32: in bfloat16 they make the error of the
        entropies 1.3 to 1.5 times as large (measured on resnet20, wrn_16_2 and vgg8).

        Args:
            layers: hand out only these; all if None.

        Raises:
            PictureSizeError: if the views are smaller than `least_side`.
            UnknownLayerError: if there is no such layer.
        """
        self._check_size(views)
        maps = self.forward_maps(views)
        pooled, logits = self._classify(self.before_pooling(maps[-1]))
        names = ["stem", *(f"stage{number}" for number in range(1, len(maps)))]
        features = {**dict(zip(names, maps, strict=True)), "pooled": pooled}
        return logits, features if layers is None else _chosen(features, layers)

    def forward(self, views: Tensor) -> Tensor:
        """Logits (B, C) of views (B, 3, H, W)."""
        logits, _ = self.forward_features(views)
        return logits

    def _classify(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vector (B, D) and logits (B, C) of maps (B, D, h, w)."""
        device = maps.device.type
        if not _under_autocast(device):
            pooled = maps.mean(dim=(2, 3))
            return pooled, self.last_layer(pooled)
        with torch.autocast(device, enabled=False):
            pooled = maps.mean(dim=(2, 3), dtype=torch.float32)
            return pooled, self.last_layer(pooled)

    def _check_size(self, views: Tensor) -> None:
        height, width = views.shape[-2:]
        if min(height, width) < self.least_side:
            raise PictureSizeError(
                f"{type(self).__name__} needs pictures of at least {self.least_side} x {self.least_side} pixels, these "
                f"have {height} x {width}: enlarge them or choose another network"
            )


def _chosen(features: dict[str, Tensor], layers: Collection[str]) -> dict[str, Tensor]:
    for layer in layers:
        if layer not in features:
            raise UnknownLayerError(f"there is no layer {layer!r}; name one of {', '.join(features)}")
    return {layer: features[layer] for layer in layers}


def _under_autocast(device: str) -> bool:
    """Whether autocast is on; the "meta" device has none, and torch 2.6 cannot export the question whether one has."""
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
