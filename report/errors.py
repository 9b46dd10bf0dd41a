"""What cannot be shown of a cache."""

from demkd.errors import UserError


class InspectionError(UserError, ValueError):
    """Something is asked of a cache that it cannot answer: a sample, a column or a comparison that there is not."""
