"""What a view is: a record, a few integers that a policy draws for (seed, slot, sample) and turns into pixels.

A policy is a frozen dataclass whose fields are its parameters. To add one, write a module with a class that has `draw`
and `render`, and add its line to `policies.py`. B views in a batch, S slots, R integers in a record, H and W pixels,
N samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.dataset.errors import ViewsError

Records = NDArray[np.uint16]
Indices = NDArray[np.int64]
Sizes = NDArray[np.int32]  # (N, 2): height and width of every picture of the split
Renderer = Callable[[Tensor, Tensor], Tensor]  # indices (B,), records (B, R) -> views (B, 3, H, W), uint8


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Which samples (B,) are mixed into the views of a batch, and the share (B,), 0.5 to 1, that stays their own."""

    partners: Tensor
    share: Tensor


class ViewPolicy(ABC):
    """Which views a picture has, and what each looks like.

    Attributes:
        name: in provenances and on the command line.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def record_length(self) -> int:
        """R."""

    @property
    def num_distinct_views(self) -> int | None:
        """How many different views a picture has; None where there is no end to them."""
        return None

    @property
    def view_size(self) -> int | None:
        """Height and width of its views, unless a network asks for others; None where they are the pictures' own."""
        return None

    @property
    def mixes(self) -> bool:
        """Whether its views are of two samples."""
        return False

    @abstractmethod
    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices, sizes: Sizes) -> Records:
        """The records (S, B, R) of samples (B,) in some slots: a pure function of its arguments, the same for ever.

        Args:
            sizes: (N, 2), of all samples.

        Raises:
            ViewsError: if there are no such slots.
        """

    def draw_epoch(self, *, run_seed: int, epoch: int, indices: Indices, sizes: Sizes) -> Records:
        """The records (B, R) of training without slots, drawn anew in every epoch 1, 2, ..."""
        records: Records = self.draw(view_seed=run_seed, slots=[epoch], indices=indices, sizes=sizes)[0]
        return records

    @abstractmethod
    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:
        """One view (3, H, W), uint8, of a record (R,).

        Args:
            pictures: the sample's own (H, W, 3), uint8, and then those of `others`.
            size: H and W of the view; None for the pictures' own size.
        """

    def others(self, record: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002 - most policies look at one picture
        """The other samples whose pictures a record (R,) needs."""
        return ()

    def mixture(self, records: Tensor) -> Mixture:
        """What the records (B, R) of a policy that mixes say of the labels."""
        raise NotImplementedError

    def renderer(self, pixels: Tensor) -> Renderer | None:  # noqa: ARG002
        """How views of resident pixels (N, H, W, 3) are made all at once, for a policy that can."""
        return None

    def require(self, slots: int) -> None:
        """Refuse a number of slots that pictures have not enough views for.

        Raises:
            ViewsError: naming the available ones.
        """
        most = self.num_distinct_views
        if slots < 1 or (most is not None and slots > most):
            there = "" if most is None else f", but a picture has {most} different views"
            raise ViewsError(f"`views` is {slots}{there}: choose 1 {f'to {most}' if most else 'or more'}")

    def require_pictures(self, sizes: Sizes) -> None:  # noqa: B027 - most take any
        """Refuse pictures that it has no views of.

        Raises:
            ViewsError: with the cure.
        """

    def side_for(self, input_size: int | None) -> int | None:
        """Height and width of the views for a network that takes pictures of this size; None for the pictures' own."""
        return None if self.view_size is None else input_size or self.view_size

    def facts(self) -> dict[str, Any]:
        """Its name and parameters, as provenances and recipes keep them."""
        parameters = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            "policy": self.name,
            **{
                name: value.facts() if isinstance(value, ViewPolicy) else _plain(value)
                for name, value in parameters.items()
            },
        }


def records_on(device: torch.device, records: Records) -> Tensor:
    """Records (..., R) as a tensor."""
    return torch.from_numpy(records.astype(np.int32)).to(device)


def _plain(value: Any) -> Any:
    """A value as JSON and TOML give it back."""
    if isinstance(value, ViewPolicy):
        return value.facts()
    return list(value) if isinstance(value, tuple) else value
