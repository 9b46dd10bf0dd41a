"""What a view is: a record, a few integers that a policy draws for (seed, slot, sample) and turns into pixels.

A policy is a frozen dataclass whose fields are its parameters. To add one, write a module with a class that has `draw`
and `render`, and add its line to `policies.py`. B views in a batch, S slots, R integers in a record, H and W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from demkd.dataset.errors import ViewsError

Records = NDArray[np.uint16]
Indices = NDArray[np.int64]
Renderer = Callable[[Tensor, Tensor], Tensor]  # indices (B,), records (B, R) -> views (B, 3, H, W), uint8


class ViewPolicy(ABC):
    """Which views a picture has, and what each looks like.

    Attributes:
        name: in provenances and on the command line.
        record_length: R.
    """

    name: ClassVar[str]
    record_length: ClassVar[int]

    @property
    def num_distinct_views(self) -> int | None:
        """How many different views a picture has; None where there is no end to them."""
        return None

    @abstractmethod
    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices) -> Records:
        """The records (S, B, R) of samples (B,) in some slots: a pure function of its arguments, the same for ever.

        Raises:
            ViewsError: if there are no such slots.
        """

    def draw_epoch(self, *, run_seed: int, epoch: int, indices: Indices) -> Records:
        """The records (B, R) of training without slots, drawn anew in every epoch 1, 2, ..."""
        records: Records = self.draw(view_seed=run_seed, slots=[epoch], indices=indices)[0]
        return records

    @abstractmethod
    def render(self, pictures: Tensor, records: Tensor) -> Tensor:
        """Views (B, 3, H, W), channels last in memory, of pictures (B, H, W, 3); uint8 both. Records are (B, R)."""

    def renderer(self, pixels: Tensor) -> Renderer:
        """How views of resident pixels (N, H, W, 3) are made; a policy may know a faster way than to gather first."""
        return lambda indices, records: self.render(pixels[indices], records)

    def require(self, slots: int) -> None:
        """Refuse a number of slots that pictures have not enough views for.

        Raises:
            ViewsError: saying what there is.
        """
        most = self.num_distinct_views
        if slots < 1 or (most is not None and slots > most):
            there = "" if most is None else f", but a picture has {most} different views"
            raise ViewsError(f"`views` is {slots}{there}: choose 1 {f'to {most}' if most else 'or more'}")

    def facts(self) -> dict[str, Any]:
        """Its name and parameters, as provenances and recipes keep them."""
        return {"policy": self.name, **asdict(self)}  # type: ignore[call-overload]
