"""Errors of a network's name, source, layers or input that a user can correct."""

from demkd.errors import UserError


class UnknownNetworkError(UserError, ValueError):
    """A name that no network has."""


class NetworkSourceError(UserError, ValueError):
    """A network of another maker that cannot be had, or cannot be used as it is."""


class UnknownLayerError(UserError, LookupError):
    """A layer that a network does not have, or that has no features."""


class PictureSizeError(UserError, ValueError):
    """Pictures that are too small for a network's poolings."""
