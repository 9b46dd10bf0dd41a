"""The interface of every network here: views in, logits and named features out.

B views of H x W pixels, C classes; D entries of the pooled vector, which is the mean of a map of h x w.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor, nn

from demkd.errors import UserError


class UnknownNetworkError(UserError, ValueError):
    """A name that no network has."""


class NetworkSourceError(UserError, ValueError):
    """A network of another library that cannot be built, or cannot be used."""


class UnknownLayerError(UserError, LookupError):
    """There is no such layer, or it has no features."""


class ImageSizeError(UserError, ValueError):
    """Images that are too small for a network's poolings, or of unknown size."""


class Classifier(nn.Module, ABC):
    """A stem, stages, global average pooling and one linear layer, named as in the published checkpoints."""

    hint_layer: str  # the last map, which a student may have to match
    head: str  # the name of the linear layer's attribute
    least_side: int = 1  # the smallest height and width of a view in pixels

    @abstractmethod
    def forward_maps(self, views: Tensor) -> list[Tensor]:
        """The stem's map and every stage's, in order, each (B, channels, height, width)."""

    @property
    def last_layer(self) -> nn.Module:
        return self.get_submodule(self.head)

    def before_pooling(self, maps: Tensor) -> Tensor:
        """The input (B, D, h, w) of global average pooling from the last stage's map."""
        return maps

    def forward_features(
        self, views: Tensor, layers: Collection[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, C) of views (B, 3, H, W), and the features "stem", "stage1", ..., "pooled" (B, D), in order.

        With `layers`, only these. Under autocast, pooling and the linear layer still compute in float32: in bfloat16
        they make the error of the entropies 1.3 to 1.5 times as large (measured on resnet20, wrn_16_2 and vgg8).
        """
        height, width = views.shape[-2:]
        if min(height, width) < self.least_side:
            raise ImageSizeError(
                f"{type(self).__name__} needs images of at least {self.least_side} x {self.least_side} pixels, these "
                f"have {height} x {width}: enlarge them or choose another network"
            )
        maps = self.forward_maps(views)
        last, device = self.before_pooling(maps[-1]), views.device.type
        # The "meta" device has no autocast, and torch 2.6 cannot export the question whether a device has one.
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                pooled = last.mean(dim=(2, 3), dtype=torch.float32)
                logits: Tensor = self.last_layer(pooled)
        else:
            pooled = last.mean(dim=(2, 3))
            logits = self.last_layer(pooled)
        names = ["stem", *(f"stage{number}" for number in range(1, len(maps))), "pooled"]
        features = dict(zip(names, [*maps, pooled], strict=True))
        for layer in layers or ():
            if layer not in features:
                raise UnknownLayerError(f"there is no layer {layer!r}; name one of {', '.join(features)}")
        return logits, features if layers is None else {layer: features[layer] for layer in layers}

    def forward(self, views: Tensor) -> Tensor:
        """Logits (B, C) of views (B, 3, H, W)."""
        return self.forward_features(views)[0]
