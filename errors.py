"""Errors that a user can repair; and reading files and printing names that may be hostile."""

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

# Control characters but for line feed and tab, marks that turn the direction of text, and halves of characters, which
# are what the names of files become that are no text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Something the user can repair; its text is one sentence that says what is wrong and what to do.

    The command line prints the text and exits with 1. Each folder derives its own errors from it, together with the
    builtin error a library user would expect.
    """


class DataError(UserError, ValueError):
    """A data set that cannot be found, read or used; or views that its images do not have."""


class ToldElsewhereError(UserError):
    """Another process prints what is wrong; this one ends silently."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; an OSError for a pipe, a device or a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else opening a pipe waits for a writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """All of a file, with the errors of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def real_path(path: Path | str) -> Path:
    """Where a path leads, as far as its links lead anywhere; `Path.resolve` raises at a loop of links."""
    return Path(os.path.realpath(path))


def shorten(text: str, length: int = 80) -> str:
    """A text that fits in a message: printable, and no longer than `length`."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[: length + 1])
    return printable if len(printable) <= length else f"{printable[: length - 3]}..."


def visible(text: str) -> str:
    """A text whose control characters are spelt out (`\\x1b`, `\\u202e`), in lines as before."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_line(text: str) -> str:
    """The same in one line."""
    return visible(text).replace("\n", "\\n")
