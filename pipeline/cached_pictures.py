"""The pictures that the teachers of a cache saw, by the numbers of samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache
from demkd.dataset import Data, Reading, as_source
from demkd.pipeline.taught import require_same_data


def pictures_of(cache: Cache, data: Data) -> Callable[[int], NDArray[np.uint8]]:
    """What gives the picture (H, W, 3) of a sample, decoded as it was for the teachers.

    Raises:
        CacheMismatchError: if the data are others.
    """
    provenance = cache.teachers[0].provenance
    facts: Any = provenance.identity["data"]
    reading = Reading(exif=facts.get("exif", True), skip_broken="left_out" in provenance.notes)
    source = as_source(data, split="train", called="data", reading=reading)
    require_same_data(cache.teachers[0], source)
    return lambda index: source.read(index).numpy()
