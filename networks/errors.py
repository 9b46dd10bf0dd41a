"""What can be wrong with a network's name or its pictures, in words a user can act on."""

from demkd.errors import UserError


class UnknownNetworkError(UserError, ValueError):
    """A name that no network has."""


class PictureSizeError(UserError, ValueError):
    """Pictures that are too small for a network's poolings."""
