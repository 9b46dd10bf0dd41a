"""weights.h5: the precomputed weights of a cache's teachers, and what they were computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demkd.cache.disk import replace_durably
from demkd.cache.errors import CacheDamagedError, CacheMismatchError
from demkd.cache.file import create_file, open_file
from demkd.cache.lock import exclusive
from demkd.cache.provenance import Provenance
from demkd.cache.shards import WEIGHTS_NAME, cache_file
from demkd.cache.sums import forget_sums
from demkd.cache.teacher import TeacherCache

_MOST = 1 + 1e-4  # of a weight: what rounding may add to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedWeights:
    """Weights (K, V, N) of the cached teachers; they sum to 1 over K."""

    values: NDArray[np.float32]
    weighting: str

    def of_slot(self, slot: int) -> NDArray[np.float32]:
        """(K, N)."""
        return self.values[:, slot]

    @classmethod
    def of(cls, folder: Path, teachers: Sequence[TeacherCache]) -> "CachedWeights | None":
        """The weights of exactly these teachers.

        None if weights.h5 is absent, of another set of teachers, or of fewer slots than the teachers have by now.

        Raises:
            CacheDamagedError: if the file is damaged.
            CacheMismatchError: if it was computed from other answers of these teachers.
        """
        path = cache_file(folder, WEIGHTS_NAME)
        if not path.exists():
            return None
        values, recorded, weighting = _read(path, samples=teachers[0].shape.samples)
        if list(recorded) != sorted(teacher.name for teacher in teachers):
            return None
        slots = values.shape[1]
        for teacher in teachers:
            if recorded[teacher.name] != teacher.content_sha256(slots):
                raise CacheMismatchError(
                    f"{path} was computed from other answers of teacher {teacher.name}: "
                    "run `cache_teachers` again, which computes the weights anew"
                )
        if slots < min(teacher.shape.num_views for teacher in teachers):
            return None
        order = [list(recorded).index(teacher.name) for teacher in teachers]
        return cls(values=values if order == sorted(order) else values[order], weighting=weighting)


def _read(path: Path, *, samples: int) -> tuple[NDArray[np.float32], Mapping[str, str], str]:
    """Weights (K, V, N), the digest of each teacher's answers, and the weighting in words."""
    header, arrays = open_file(path)
    identity = Provenance.from_json(arrays["provenance"].tobytes()).identity
    recorded, weighting = identity.get("teachers"), identity.get("weighting")
    values = arrays.get("weights")
    if (
        arrays.keys() == {"provenance", "weights"}
        and isinstance(recorded, dict)
        and isinstance(weighting, str)
        and values is not None
        and header.contents["weights"].dtype == "<f4"
        and values.ndim == 3
        and values.shape[::2] == (len(recorded), samples)
        and values.size
        and values.min() >= 0  # which NaN is not
        and values.max() <= _MOST
    ):
        return values, recorded, weighting
    raise CacheDamagedError(f"{path} does not hold what it should: run `cache_teachers` again, which makes it anew")


def write_weights(
    folder: Path, teachers: Sequence[TeacherCache], values: NDArray[np.float32], *, weighting: str
) -> Path:
    """Write weights.h5 for these teachers, who must be in the order of their names.

    Args:
        values: (K, V, N), summing to 1 over K.
        weighting: how they were computed, in words.

    Raises:
        CacheBusyError, CacheSpaceError: as the writer of answers.
    """
    names = [teacher.name for teacher in teachers]
    assert names == sorted(names)
    assert values.shape[0] == len(names)
    path = cache_file(folder, WEIGHTS_NAME)
    slots = values.shape[1]
    identity = {
        "teachers": {teacher.name: teacher.content_sha256(slots) for teacher in teachers},
        "weighting": weighting,
    }
    with exclusive(path):
        forget_sums(folder)
        creating = path.with_name(path.name + ".creating")
        create_file(creating, sealed={"weights": values}, opened={}, provenance=Provenance(identity=identity))
        replace_durably(creating, path)
    return path
