"""What cannot be shown of a cache."""

from demkd.errors import UserError


class InspectionError(UserError, ValueError):
    """A cache does not have what was requested: a sample, a column or a comparison that there is not."""
