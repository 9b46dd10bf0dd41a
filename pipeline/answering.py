"""A teacher's answers to a batch of views, as a cache keeps them, and their way from the device to arrays.

B in a batch, C classes, k kept logits, T temperatures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import CacheShape
from demkd.losses import entropy
from demkd.teachers import Teacher

Array = NDArray[Any]
Answers = Mapping[str, Tensor]  # data set -> (B, ...)


def ask(teacher: Teacher, views: Tensor, names: Sequence[str], labels: Tensor, shape: CacheShape) -> Answers:
    """A teacher's answers to a batch of views (B, 3, H, W) as a file's data sets, on the device.

    Entropy and prediction are of unrounded, complete logits.

    Args:
        names: of the data sets; of these only the features are chosen, the others always come.
        labels: (B,).
        shape: of the file: all logits, or the largest.
    """
    keys = [name.removeprefix("features/") for name in names if name.startswith("features/")]
    answer = teacher.answer(views, features=keys)
    return {
        **kept_logits(answer.logits, labels, shape),
        "entropy": entropy(answer.logits),
        "prediction": answer.logits.argmax(1),
        **{f"features/{key}": answer.features[key] for key in keys},
    }


def kept_logits(logits: Tensor, labels: Tensor, shape: CacheShape) -> Answers:
    """What a file keeps of logits (B, C): all, or the k largest with their classes, the label's, and the others' sum.

    The others are those beyond the k largest and the label: the logsumexp of their z / T at each temperature (B, T), 0
    where there are none.
    """
    if shape.keep is None:
        return {"logits": logits}
    largest, classes = logits.topk(shape.keep, dim=1)
    others = logits.scatter(1, classes, -torch.inf).scatter(1, labels[:, None], -torch.inf)
    rest = torch.stack([torch.logsumexp(others / temperature, 1) for temperature in shape.rest_temperatures], dim=1)
    return {
        "logits": largest,
        "classes": classes,
        "label_logit": logits.gather(1, labels[:, None])[:, 0],
        "rest": rest.masked_fill(rest == -torch.inf, 0.0),
    }


class Arriving:
    """The answers to batches as those to all of them, on their way from a GPU while it goes on with what is next."""

    def __init__(self, parts: Sequence[Answers]) -> None:
        """Begin to copy."""
        joint = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._copied: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in joint.values()):
            joint = {name: _pinned(tensor) for name, tensor in joint.items()}
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._tensors = joint

    def arrays(self) -> dict[str, Array]:
        """By data set, (B, ...); waits until they are there."""
        if self._copied:
            self._copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


def _pinned(tensor: Tensor) -> Tensor:
    """A copy that is made while the processor goes on."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def joined(parts: Sequence[Answers]) -> dict[str, Array]:
    """The answers to batches as those to all of them."""
    return Arriving(parts).arrays()
