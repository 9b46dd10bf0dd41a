"""What can be wrong with a teacher."""

from demkd.errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read safely, or is one of another network."""


class TeacherError(UserError, ValueError):
    """A network whose answers cannot be cached, because they are not a function of the picture alone."""
