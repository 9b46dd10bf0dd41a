"""The cache of the teachers' logits: one or more HDF5 files per teacher, and the precomputed weights of all of them.

    from demkd.cache import open_cache

    with open_cache("runs/digits/cache") as cache:
        view = cache.read_view(0)                    # every sample's first view
        view.entropy, view.prediction, view.params, view.teacher_weights
        cache.check_logits(0, temperatures=[1.0])
        cache.logits(0, slice(100), temperature=1.0)  # a list of K arrays (100, C)

Read in this order: `format.py` (what a file holds), `shards.py` (what files are called), `provenance.py` (what logits
were computed from), `reader.py`, `writer.py`, `verify.py`; `disk.py` has locks and complete writes. NumPy and h5py
only; never torch.
"""

from demkd.cache.disk import exclusive
from demkd.cache.errors import (
    CacheBusyError,
    CacheDamagedError,
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
    CacheSpaceError,
    CacheValueError,
)
from demkd.cache.format import CacheShape
from demkd.cache.provenance import Provenance
from demkd.cache.reader import Cache, Rows, ShardFile, TeacherCache, ViewPredictions, open_cache
from demkd.cache.shards import Shard
from demkd.cache.verify import Verification, verify_cache
from demkd.cache.writer import CacheWriter, write_weights

__all__ = [
    "Cache", "CacheBusyError", "CacheDamagedError", "CacheError", "CacheIncompleteError", "CacheMismatchError",
    "CacheMissingError", "CacheShape", "CacheSpaceError", "CacheValueError", "CacheWriter", "Provenance", "Rows",
    "Shard", "ShardFile", "TeacherCache", "Verification", "ViewPredictions", "exclusive", "open_cache",
    "verify_cache", "write_weights",
]  # fmt: skip
