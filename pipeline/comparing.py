"""How far two answers of a teacher to the same views are apart, of whatever a file keeps of its logits.

B views, k logits of each: all C, or the largest with their classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import CacheShape

Array = NDArray[Any]
Floats = NDArray[np.float32]


def names_compared(shape: CacheShape) -> tuple[str, ...]:
    """The data sets that `largest_changes` looks at: the logits, and whose they are where not all are kept."""
    return ("logits",) if shape.keep is None else ("logits", "classes")


def compared(read: Callable[[str], Array], shape: CacheShape) -> dict[str, Array]:
    """What `largest_changes` takes, of a file of this shape: its logits become float32.

    Args:
        read: gives the rows of a data set.
    """
    found = {name: read(name) for name in names_compared(shape)}
    return {**found, "logits": found["logits"].astype(np.float32)}


def largest_changes(before: Mapping[str, Array], now: Mapping[str, Array]) -> Floats:
    """By how much some logit of each view has changed at least: (B,), NaN where one is.

    Where a class is among the largest on one side alone, the other side says that its logit was no larger there than
    the smallest that was kept: classes that change places because of a tie count for no more than rounding.

    Args:
        before, now: "logits" (B, k), and, where not all are kept, "classes" (B, k); of `now` what else there may be.
    """
    old, new = before["logits"], now["logits"]
    with np.errstate(invalid="ignore"):  # an infinite logit of a forged file, which becomes NaN
        if "classes" not in before:
            return _largest(np.abs(old - new))
        classes = np.concatenate((before["classes"], now["classes"]), axis=1, dtype=np.int64, casting="unsafe")
        logits = np.concatenate((old, new), axis=1)
        floors = np.repeat(np.stack((new.min(1), old.min(1)), axis=1), old.shape[1], axis=1)  # of the other side
        order = np.argsort(classes, axis=1, kind="stable")
        classes, logits, floors = (np.take_along_axis(one, order, axis=1) for one in (classes, logits, floors))
        on_both = classes[:, 1:] == classes[:, :-1]
        alone = ~(np.pad(on_both, ((0, 0), (0, 1))) | np.pad(on_both, ((0, 0), (1, 0))))
        moved = np.where(on_both, np.abs(logits[:, 1:] - logits[:, :-1]), 0)
        entered = np.where(alone, np.maximum(logits - floors, 0), 0)
        return np.maximum(_largest(moved), _largest(entered))


def _largest(changes: Array) -> Floats:
    largest: Floats = changes.max(axis=1)
    return largest
