"""What can be wrong with a cache; each error is also the builtin one that a caller would expect."""

from demkd.errors import UserError


class CacheError(UserError):
    """Something is wrong with a cache or with what is asked of it."""


class CacheMissingError(CacheError, FileNotFoundError):
    """There is no cache, or no such teacher in it."""


class CacheDamagedError(CacheError, OSError):
    """A file is not what its checksums say, or not a cache file at all."""


class CacheIncompleteError(CacheError, LookupError):
    """Answers are asked for that no teacher has given yet."""


class CacheMismatchError(CacheError, ValueError):
    """A cache was made from other weights, pixels, labels, views or numbers than those in hand."""


class CacheValueError(CacheError, ValueError):
    """A teacher's answer that a cache cannot hold: not finite, or too large for float16."""


class CacheBusyError(CacheError, BlockingIOError):
    """Another process writes the same file."""


class CacheSpaceError(CacheError, OSError):
    """The disk cannot hold the file."""
