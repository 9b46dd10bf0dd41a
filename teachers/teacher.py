"""A teacher: a frozen network, and its answer to a batch of views.

B views in a batch, C classes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demkd.errors import UserError
from demkd.teachers.checkpoint import state_sha256
from demkd.teachers.errors import TeacherError


class ClassifierWithFeatures(Protocol):
    """What a teacher needs of a network; every network of this project has it."""

    hint_layer: str

    def forward_features(
        self, views: Tensor, layers: Collection[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


def feature_key(layer: str, grid: int) -> str:
    """What features are called in an answer and in a cache: `stage3`, or `stage3@4x4` for a grid of 4."""
    return layer if grid == 1 else f"{layer}@{grid}x{grid}"


def parse_feature_key(key: str) -> tuple[str, int]:
    """The layer and grid of a feature key."""
    layer, at, grid = key.partition("@")
    return layer, int(grid.partition("x")[0]) if at else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a teacher says about a batch.

    Attributes:
        logits: (B, C), float32.
        features: feature key -> (B, channels) or (B, channels, grid, grid), float32.
    """

    logits: Tensor
    features: Mapping[str, Tensor]


class Teacher:
    """A network in evaluation mode, without gradients, with the input that it was trained for."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        prepare: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Freeze a network.

        Args:
            network: a `ClassifierWithFeatures`, on the device where it shall run.
            prepare: turns views (B, 3, H, W), uint8, into its input.
            autocast: makes the context of its precision.
        """
        self.name = name
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._forward_features = cast(ClassifierWithFeatures, network).forward_features
        self._prepare = prepare
        self._autocast = autocast

    @property
    def hint_layer(self) -> str:
        """The last map before pooling."""
        return str(self._network.hint_layer)

    @property
    def parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def state_sha256(self) -> str:
        """Digest of the state dict."""
        return state_sha256(self._network)

    @torch.no_grad()
    def answer(self, views: Tensor, *, features: Sequence[str] = ()) -> Answer:
        """Logits of views (B, 3, H, W), uint8, and the features that the keys name.

        Raises:
            TeacherError: if there is no such layer, its map is smaller than the grid, or the views too small.
        """
        wanted = {parse_feature_key(key)[0] for key in features}
        try:
            with self._autocast():
                logits, layers = self._forward_features(self._prepare(views), wanted)
        except UserError as error:
            raise TeacherError(f"teacher {self.name}: {error}") from error
        return Answer(logits=logits.float(), features={key: self._summary(key, layers) for key in features})

    def _summary(self, key: str, layers: Mapping[str, Tensor]) -> Tensor:
        """A layer's features in float32, its maps averaged to the key's grid; a vector stays one."""
        layer, grid = parse_feature_key(key)
        features = layers[layer].float()
        if features.dim() != 4:
            return features
        if grid > min(features.shape[2:]):
            raise TeacherError(
                f"`feature_grid={grid}` is finer than {layer} of teacher {self.name}, whose maps have "
                f"{features.shape[2]} x {features.shape[3]} places: choose a smaller grid"
            )
        summary = F.adaptive_avg_pool2d(features, grid)
        return summary.flatten(1) if grid == 1 else summary

    def require_deterministic(self, views: Tensor) -> None:
        """Check on some views (B, 3, H, W) that an answer depends on the picture alone.

        Catches dropout that stays on, and normalisation by the batch's own statistics: a network left in train mode.

        Raises:
            TeacherError: if two passes differ, or a picture is answered differently in other company.
        """
        if len(views) == 1:  # company for the only view: its negative, which changes the statistics of the batch
            views = torch.cat((views, 255 - views))
        first, again = self.answer(views).logits, self.answer(views).logits
        if not torch.equal(first.nan_to_num(), again.nan_to_num()):  # NaN is no draw: whoever keeps answers refuses it
            change = (first - again).abs().max().item()
            raise TeacherError(
                f"teacher {self.name} answers the same pictures differently twice (by up to {change:.3g}): "
                "it draws random numbers, as dropout does in train mode; a cache needs a frozen network"
            )
        half = self.answer(views[: len(views) // 2]).logits
        scale = first.abs().max().item() + 1e-6
        change = (first[: len(half)] - half).abs().max().item()
        # Other batch sizes may use other kernels, whose rounding differs; batch statistics differ by far more.
        if change > 0.05 * scale:
            raise TeacherError(
                f"teacher {self.name} answers a picture differently in other company (by up to {change:.3g}): "
                "it uses statistics of the batch, as batch normalisation does in train mode; freeze it first"
            )
