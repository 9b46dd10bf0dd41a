"""A teacher: a frozen network, and its logits and features for a batch of views.

B views of a batch, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.errors import UserError
from demkd.networks import Network
from demkd.teachers.checkpoint import state_sha256


class TeacherError(UserError, ValueError):
    """A network whose logits cannot be cached."""


class Prediction(NamedTuple):
    """The output of a teacher for a batch, in float32."""

    logits: Tensor  # (B, C)
    features: Mapping[str, Tensor]  # by feature key, (B, channels) or (B, channels, grid, grid)


def feature_key(layer: str, grid: int) -> str:
    """The name of features in a cache: `stage3`, or `stage3@4x4` for a grid of 4."""
    return layer if grid == 1 else f"{layer}@{grid}x{grid}"


def parse_feature_key(key: str) -> tuple[str, int]:
    """The layer and grid of a feature key."""
    layer, at, grid = key.partition("@")
    return layer, int(grid.partition("x")[0]) if at else 1


class Teacher:
    """A network in evaluation mode, without gradients, with the input that it was trained for."""

    def __init__(
        self,
        name: str,
        network: Network,
        *,
        prepare: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Freeze a network, which is on its device; `prepare` turns views (B, 3, H, W), uint8, into its input."""
        self.name = name
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._prepare, self._autocast = prepare, autocast

    @property
    def hint_layer(self) -> str:
        """The layer of its last map."""
        return self._network.hint_layer

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def state_sha256(self) -> str:
        return state_sha256(self._network)

    @torch.no_grad()
    def predict(self, views: Tensor, *, features: Sequence[str] = ()) -> Prediction:
        """Logits of views (B, 3, H, W), uint8, and the features of the keys."""
        wanted = {key: parse_feature_key(key) for key in features}
        try:
            with self._autocast():
                logits, layers = self._network.forward_features(
                    self._prepare(views), {layer for layer, _ in wanted.values()}
                )
        except UserError as error:
            raise TeacherError(f"teacher {self.name}: {error}") from error
        if len(logits) != len(views):
            raise TeacherError(f"teacher {self.name} returns {len(logits)} rows of logits for {len(views)} images")
        return Prediction(
            logits=logits.float(),
            features={key: self._summary(layers[layer].float(), layer, grid) for key, (layer, grid) in wanted.items()},
        )

    def _summary(self, features: Tensor, layer: str, grid: int) -> Tensor:
        """Maps averaged to a grid; a vector stays one."""
        if features.dim() != 4:
            return features
        if grid > min(features.shape[2:]):
            raise TeacherError(
                f"`feature_grid={grid}` is finer than {layer} of teacher {self.name}, whose maps have "
                f"{features.shape[2]} x {features.shape[3]} places: choose a smaller grid"
            )
        averaged = F.adaptive_avg_pool2d(features, grid)
        return averaged.flatten(1) if grid == 1 else averaged

    def check_deterministic(self, views: Tensor) -> None:
        """Check on some views (B, 3, H, W) that logits depend on the image alone.

        Finds dropout that stays on, and normalization by the batch's own statistics: a network left in train mode.
        """
        if len(views) == 1:  # with the image's negative, which changes the statistics of the batch
            views = torch.cat((views, 255 - views))
        first, again = self.predict(views).logits, self.predict(views).logits
        if not torch.equal(first.nan_to_num(), again.nan_to_num()):  # NaN is refused where logits are stored
            change = (first - again).abs().max().item()
            raise TeacherError(
                f"teacher {self.name} returns other logits for the same images (by up to {change:.3g}): it draws "
                "random numbers, as dropout does in train mode; a cache needs a frozen network"
            )
        half = self.predict(views[: len(views) // 2]).logits
        scale = first.abs().max().item() + 1e-6
        change = (first[: len(half)] - half).abs().max().item()
        # Other batch sizes may use other kernels, whose rounding differs; batch statistics differ by far more.
        if change > 0.05 * scale:
            raise TeacherError(
                f"teacher {self.name} returns other logits for an image in another batch (by up to {change:.3g}): it "
                "uses statistics of the batch, as batch normalization does in train mode; freeze it first"
            )
