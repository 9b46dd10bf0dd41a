"""Errors of a cache; each is also the builtin error that a caller would expect."""

from demkd.errors import UserError


class CacheError(UserError):
    """Something is wrong with a cache, or with its use."""


class CacheMissingError(CacheError, FileNotFoundError):
    """There is no cache, or no such teacher or data set in it."""


class CacheDamagedError(CacheError, OSError):
    """A file does not match its checksums, or is no cache file."""


class CacheFormatError(CacheDamagedError):
    """A file of another version's format."""


def unrepairable(what: str) -> CacheDamagedError:
    """The error of a file with wrong metadata; wrong blocks can be computed again."""
    return CacheDamagedError(f"{what}: remove the file and make it again")


class CacheIncompleteError(CacheError, LookupError):
    """Something is read that was not computed yet."""


class CacheMismatchError(CacheError, ValueError):
    """A cache was made from other weights, pixels, labels, views or options than those in hand."""


class CacheValueError(CacheError, ValueError):
    """A value that a cache cannot hold, or an option that cannot be."""


class CacheBusyError(CacheError, BlockingIOError):
    """Another process writes the same file."""


class CacheSpaceError(CacheError, OSError):
    """The disk cannot hold the file."""
