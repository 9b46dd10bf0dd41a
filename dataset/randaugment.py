"""RandAugment on top of other views (Cubuk et al. 2020), with torchvision's operations and magnitudes.

Params are those of the base, then n numbers: twice the operation's place in `OPERATIONS`, plus 1 if its magnitude is
negative. V views, B samples, n operations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from demkd.dataset import seeds
from demkd.dataset.augment import Augmentation, Indices, Params, Sizes
from demkd.dataset.crop_flip import CropFlip
from demkd.errors import DataError

# torchvision's names in torchvision's order. Params depend on it: new ones go to the end.
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_STRONGEST = 30  # of 31 magnitudes
_FARTHEST = 150 / 331  # of a translation, as a share of the side


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugment(Augmentation):
    """n random operations of one magnitude, after the crop and the flip of `base`.

    Attributes:
        base: the views below; if they are finitely many, they are drawn independently here.
        num_ops: n.
        magnitude: 0 to 30.
        strong_every: of so many views, the last has operations, the others are the base's: with 2, views alternate
            between weak and strong.
    """

    name: ClassVar[str] = "randaugment"

    base: Augmentation = field(default_factory=CropFlip)
    num_ops: int = 2
    magnitude: int = 9
    strong_every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.num_ops, int) or not 1 <= self.num_ops <= 16:
            raise DataError(f"`randaugment_ops` is {self.num_ops}: choose 1 to 16")
        if not isinstance(self.magnitude, int) or not 0 <= self.magnitude <= _STRONGEST:
            raise DataError(f"`magnitude` is {self.magnitude}: choose 0 to {_STRONGEST}")
        if not isinstance(self.strong_every, int) or self.strong_every < 1:
            raise DataError(f"`strong_every` is {self.strong_every}: choose 1 or more")

    @property
    def num_params(self) -> int:
        return self.base.num_params + self.num_ops

    @property
    def view_size(self) -> int | None:
        return self.base.view_size

    def check_images(self, sizes: Sizes) -> None:
        self.base.check_images(sizes)

    def make_params(self, *, view_seed: int, view_indices: Sequence[int], indices: Indices, sizes: Sizes) -> Params:
        views = []
        for view_index in view_indices:
            below = self.base.make_epoch_params(run_seed=view_seed, epoch=view_index, indices=indices, sizes=sizes)
            if view_index % self.strong_every == self.strong_every - 1:
                draws = seeds.uniforms(
                    seeds.OPERATIONS, view_seed=view_seed, view_index=view_index, indices=indices, count=self.num_ops
                )
                operations = (draws * (2 * len(OPERATIONS))).astype(np.uint16)
            else:
                operations = np.full((len(indices), self.num_ops), 2 * OPERATIONS.index("Identity"), np.uint16)
            views.append(np.concatenate((below, operations), axis=1))
        return np.stack(views)

    def apply(self, images: Sequence[Tensor], params: Sequence[int], size: int | None) -> Tensor:
        below = self.base.num_params
        view = self.base.apply(images, params[:below], size)
        for number in params[below:]:
            operation, negative = divmod(number, 2)
            if operation >= len(OPERATIONS):
                raise DataError(f"a view names operation {operation}, and there are {len(OPERATIONS)}")
            view = apply_operation(view, OPERATIONS[operation], self.magnitude, negative=bool(negative))
        return view


def apply_operation(view: Tensor, operation: str, magnitude: int, *, negative: bool) -> Tensor:
    """One of `OPERATIONS` on a view (3, H, W), uint8, at a magnitude of 0 to 30."""
    from torchvision.transforms.v2 import functional as F

    def level(largest: float) -> float:
        """A share of the largest magnitude, in float32 as torchvision's table."""
        return (-1 if negative else 1) * float(torch.linspace(0.0, largest, _STRONGEST + 1)[magnitude])

    def affine(*, shear: tuple[float, float] = (0.0, 0.0), move: tuple[float, float] = (0.0, 0.0)) -> Any:
        degrees = [math.degrees(math.atan(tangent)) for tangent in shear]
        shift, center = [int(pixels) for pixels in move], [0, 0] if any(shear) else None
        return F.affine(view, angle=0.0, translate=shift, scale=1.0, shear=degrees, center=center)

    height, width = view.shape[1:]
    operations: dict[str, Callable[[], Any]] = {
        "Identity": lambda: view,
        "ShearX": lambda: affine(shear=(level(0.3), 0.0)),
        "ShearY": lambda: affine(shear=(0.0, level(0.3))),
        "TranslateX": lambda: affine(move=(level(_FARTHEST * width), 0.0)),
        "TranslateY": lambda: affine(move=(0.0, level(_FARTHEST * height))),
        "Rotate": lambda: F.rotate(view, level(30.0)),
        "Brightness": lambda: F.adjust_brightness(view, 1.0 + level(0.9)),
        "Color": lambda: F.adjust_saturation(view, 1.0 + level(0.9)),
        "Contrast": lambda: F.adjust_contrast(view, 1.0 + level(0.9)),
        "Sharpness": lambda: F.adjust_sharpness(view, 1.0 + level(0.9)),
        "Posterize": lambda: F.posterize(view, 8 - round(4 * magnitude / _STRONGEST)),
        "Solarize": lambda: F.solarize(view, 255.0 * float(torch.linspace(1.0, 0.0, _STRONGEST + 1)[magnitude])),
        "AutoContrast": lambda: F.autocontrast(view),
        "Equalize": lambda: F.equalize(view),
    }
    result: Tensor = operations[operation]()
    return result
