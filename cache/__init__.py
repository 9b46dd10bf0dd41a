"""The cache of the teachers' answers: one HDF5 file per teacher, and the precomputed weights of all of them.

    from demkd.cache import open_cache

    with open_cache("runs/digits/cache") as cache:
        answers = cache.read_slot(0)                 # every sample's first view
        answers.entropy, answers.prediction, answers.view, answers.teacher_weights
        cache.logits(0, slice(100), temperature=1.0)  # a list of K arrays (100, C)

`layout.py` says what a file holds and where, `user_block.py` vouches for it, `file.py` makes, opens and maps one,
`disk.py` brings bytes to the disk. `shards.py` says which file holds which samples. `writer.py` fills a file,
`space.py` says before what that will take, `teacher_file.py` reads one, `teacher.py` the one or more of a teacher,
`reader.py` several teachers side by side, `merging.py` makes one file of shards, `sums.py` says which files there are.
`provenance.py` says what answers were made from, `weights.py` keeps the weights, `integrity.py` checks every byte, and
`hdf5_view.py` asks HDF5 whether it sees the same. NumPy and h5py only; never torch.
"""

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
from demkd.cache.integrity import Verification, verify_cache
from demkd.cache.layout import CacheShape
from demkd.cache.lock import exclusive
from demkd.cache.provenance import Provenance
from demkd.cache.reader import Cache, SlotAnswers, open_cache
from demkd.cache.shards import Shard
from demkd.cache.teacher import Rows, TeacherCache
from demkd.cache.teacher_file import TeacherFile
from demkd.cache.weights import write_weights
from demkd.cache.writer import CacheWriter

__all__ = [
    "Cache",
    "CacheBusyError",
    "CacheDamagedError",
    "CacheError",
    "CacheIncompleteError",
    "CacheMismatchError",
    "CacheMissingError",
    "CacheShape",
    "CacheSpaceError",
    "CacheValueError",
    "CacheWriter",
    "Provenance",
    "Rows",
    "Shard",
    "SlotAnswers",
    "TeacherCache",
    "TeacherFile",
    "Verification",
    "exclusive",
    "open_cache",
    "verify_cache",
    "write_weights",
]
