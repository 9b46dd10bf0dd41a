"""Errors of images and views that a user can correct."""

from demkd.errors import UserError


class DataError(UserError, ValueError):
    """A data set that cannot be found, read or used."""


class ViewsError(UserError, ValueError):
    """Views that the data set's augmentation does not have."""
