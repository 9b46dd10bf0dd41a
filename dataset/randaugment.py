"""RandAugment on top of other views (Cubuk et al. 2020), with torchvision's operations and magnitudes.

A record is that of the views below, then n numbers: twice the operation's place in `OPERATIONS`, plus 1 if its
magnitude is negative. S slots, B samples, n operations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from demkd.dataset import seeded
from demkd.dataset.errors import ViewsError
from demkd.dataset.views import Indices, Records, Sizes, ViewPolicy

# torchvision's names in torchvision's order. A record counts on it: new ones go to the end.
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_STRONGEST = 30  # of 31 magnitudes


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugment(ViewPolicy):
    """n random operations of one magnitude, after the crop and the flip of `base`.

    Attributes:
        base: the views below; where they are finitely many, they are drawn independently here.
        num_ops: n.
        magnitude: 0 to 30.
        strong_every: of n slots, the last has operations, the others are the base's views: with 2, slots are
            weak and strong by turns.

    Raises:
        ViewsError: if a parameter cannot be.
    """

    name: ClassVar[str] = "randaugment"

    base: ViewPolicy
    num_ops: int = 2
    magnitude: int = 9
    strong_every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.num_ops, int) or not 1 <= self.num_ops <= 16:
            raise ViewsError(f"`randaugment_ops` is {self.num_ops}: choose 1 to 16")
        if not isinstance(self.magnitude, int) or not 0 <= self.magnitude <= _STRONGEST:
            raise ViewsError(f"`magnitude` is {self.magnitude}: choose 0 to {_STRONGEST}")
        if not isinstance(self.strong_every, int) or self.strong_every < 1:
            raise ViewsError(f"`strong_every` is {self.strong_every}: choose 1 or more")

    @property
    def record_length(self) -> int:
        return self.base.record_length + self.num_ops

    @property
    def view_size(self) -> int | None:
        return self.base.view_size

    def facts(self) -> dict[str, Any]:
        """Without what has its usual value, which caches from before do not name."""
        found = ViewPolicy.facts(self)
        return {name: value for name, value in found.items() if (name, value) != ("strong_every", 1)}

    def require_pictures(self, sizes: Sizes) -> None:
        self.base.require_pictures(sizes)

    def draw(self, *, view_seed: int, slots: Sequence[int], indices: Indices, sizes: Sizes) -> Records:
        return np.stack([self._draw(view_seed, slot, indices, sizes) for slot in slots])

    def _draw(self, view_seed: int, slot: int, indices: Indices, sizes: Sizes) -> Records:
        below = self.base.draw_epoch(run_seed=view_seed, epoch=slot, indices=indices, sizes=sizes)
        if slot % self.strong_every != self.strong_every - 1:
            identities = np.full((len(indices), self.num_ops), 2 * OPERATIONS.index("Identity"), np.uint16)
            return np.concatenate((below, identities), axis=1)
        draws = seeded.uniforms(seeded.OPERATIONS, view_seed=view_seed, slot=slot, indices=indices, count=self.num_ops)
        return np.concatenate((below, (draws * (2 * len(OPERATIONS))).astype(np.uint16)), axis=1)

    def render(self, pictures: Sequence[Tensor], record: Sequence[int], size: int | None) -> Tensor:
        below = self.base.record_length
        view = self.base.render(pictures, record[:below], size)
        for number in record[below:]:
            operation, negative = divmod(number, 2)
            if operation >= len(OPERATIONS):
                raise ViewsError(f"a record names operation {operation}, and there are {len(OPERATIONS)}")
            view = apply_operation(view, OPERATIONS[operation], self.magnitude, negative=bool(negative))
        return view


def apply_operation(view: Tensor, operation: str, magnitude: int, *, negative: bool) -> Tensor:
    """One of `OPERATIONS` on a view (3, H, W), uint8, at a magnitude of 0 to 30."""
    return _APPLY[operation](view, magnitude, -1 if negative else 1)


def _level(largest: float, magnitude: int) -> float:
    """A share of the largest magnitude, in float32 as torchvision's table."""
    return float(torch.linspace(0.0, largest, _STRONGEST + 1)[magnitude])


def _affine(view: Tensor, *, shear: tuple[float, float] = (0.0, 0.0), move: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    degrees = [math.degrees(math.atan(one)) for one in shear]
    centre = {"center": [0, 0]} if any(shear) else {}
    moved: Tensor = F.affine(view, angle=0.0, translate=[int(one) for one in move], scale=1.0, shear=degrees, **centre)
    return moved


def _function(name: str) -> Callable[..., Tensor]:
    """One of torchvision's functions of a view, found when it is called."""

    def call(view: Tensor, *arguments: Any) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        changed: Tensor = getattr(F, name)(view, *arguments)
        return changed

    return call


def _falling(largest: float, magnitude: int) -> float:
    return largest * float(torch.linspace(1.0, 0.0, _STRONGEST + 1)[magnitude])


def _enhance(name: str) -> Callable[[Tensor, int, int], Tensor]:
    return lambda view, magnitude, sign: _function(name)(view, 1.0 + sign * _level(0.9, magnitude))


_FARTHEST = 150 / 331  # of a translation, as a share of the side
# Of a view, a magnitude and a sign.
_APPLY: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "Identity": lambda view, _, __: view,
    "ShearX": lambda view, level, sign: _affine(view, shear=(sign * _level(0.3, level), 0.0)),
    "ShearY": lambda view, level, sign: _affine(view, shear=(0.0, sign * _level(0.3, level))),
    "TranslateX": lambda view, level, sign: _affine(view, move=(sign * _level(_FARTHEST * view.shape[2], level), 0.0)),
    "TranslateY": lambda view, level, sign: _affine(view, move=(0.0, sign * _level(_FARTHEST * view.shape[1], level))),
    "Rotate": lambda view, level, sign: _function("rotate")(view, sign * _level(30.0, level)),
    "Brightness": _enhance("adjust_brightness"),
    "Color": _enhance("adjust_saturation"),
    "Contrast": _enhance("adjust_contrast"),
    "Sharpness": _enhance("adjust_sharpness"),
    "Posterize": lambda view, level, _: _function("posterize")(view, 8 - round(4 * level / _STRONGEST)),
    "Solarize": lambda view, level, _: _function("solarize")(view, _falling(255.0, level)),
    "AutoContrast": lambda view, _, __: _function("autocontrast")(view),
    "Equalize": lambda view, _, __: _function("equalize")(view),
}
