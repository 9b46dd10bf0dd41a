"""What an augmentation is: it draws a few integers for (seed, view index, sample), and makes a view from them.

The integers are the view's params. A cache stores them, so that a student sees exactly what the teachers saw. An
augmentation is a frozen dataclass whose fields are its options. N samples, B of a batch, V views, P params of a view,
H and W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.config import plain
from demkd.errors import DataError

Params = NDArray[np.uint16]
Indices = NDArray[np.int64]
Sizes = NDArray[np.int32]  # (N, 2): height and width of every image of the split
BatchApply = Callable[[Tensor, Tensor], Tensor]  # indices (B,), params (B, P) -> views (B, 3, H, W), uint8


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The partners (B,) mixed into the views of a batch, and the share (B,), 0.5 to 1, of the sample itself."""

    partners: Tensor
    share: Tensor


class Augmentation(ABC):
    """How the views of an image are drawn, and what each looks like."""

    name: ClassVar[str]  # in provenances and on the command line
    mixes: ClassVar[bool] = False  # whether a view shows two samples

    @property
    @abstractmethod
    def num_params(self) -> int:
        """P."""

    @property
    def num_distinct_views(self) -> int | None:
        """How many different views an image has; None for endless ones."""
        return None

    @property
    def view_size(self) -> int | None:
        """Default height and width of the views; None for the image's own size."""
        return None

    @abstractmethod
    def make_params(self, *, view_seed: int, view_indices: Sequence[int], indices: Indices, sizes: Sizes) -> Params:
        """The params (V, B, P) of some views of samples (B,), a pure function; `sizes` are those of all N samples."""

    def make_epoch_params(self, *, run_seed: int, epoch: int, indices: Indices, sizes: Sizes) -> Params:
        """The params (B, P) of training without a cache, drawn anew in every epoch 1, 2, ..."""
        params: Params = self.make_params(view_seed=run_seed, view_indices=[epoch], indices=indices, sizes=sizes)[0]
        return params

    @abstractmethod
    def apply(self, images: Sequence[Tensor], params: Sequence[int], size: int | None) -> Tensor:
        """One view (3, H, W), uint8, from its params (P,) and images (H, W, 3), uint8: its own, then its partners'.

        `size` is H and W of the view; None for its default.
        """

    def batch_apply(self, images: Tensor) -> BatchApply | None:  # noqa: ARG002
        """A function that makes the views of a batch at once from images (N, H, W, 3) on a device, if there is one."""
        return None

    def partners(self, params: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002
        """The other samples whose images a view with params (P,) needs."""
        return ()

    def mixture(self, params: Tensor) -> Mixture:
        """Partners and shares for the labels of views with params (B, P), of an augmentation that mixes."""
        raise NotImplementedError

    def check_views(self, num_views: int) -> None:
        """Refuse a number of views that images do not have."""
        most = self.num_distinct_views
        if num_views < 1 or (most is not None and num_views > most):
            there = "" if most is None else f", but an image has {most} different views"
            raise DataError(f"`views` is {num_views}{there}: choose 1 {f'to {most}' if most else 'or more'}")

    def check_images(self, sizes: Sizes) -> None:  # noqa: B027 - most take any
        """Refuse images of sizes that the augmentation cannot use."""

    def size_for(self, input_size: int | None) -> int | None:
        """Height and width of the views for a network with this input size; None for the image's own."""
        return None if self.view_size is None else input_size or self.view_size

    def to_dict(self) -> dict[str, Any]:
        """Its name and options, as provenances and recipes store them: values are those of JSON and TOML."""
        options: dict[str, Any] = {"policy": self.name}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Augmentation):
                value = value.to_dict()
            options[field.name] = list(plain(value)) if isinstance(value, tuple) else plain(value)
        return options


def params_on(device: torch.device, params: Params) -> Tensor:
    """Params (..., P) as a tensor."""
    return torch.from_numpy(params.astype(np.int32)).to(device)
