"""The one error that every room may raise: what a user can repair."""


class UserError(Exception):
    """Something the user can repair; its text is one sentence that says what is wrong and what to do.

    The command line prints the text and exits with 1. Each room derives its own errors from it, together with the
    builtin error a library user would expect.
    """


class ToldElsewhereError(UserError):
    """Another process met what is wrong, and says so; this one ends without a word."""
