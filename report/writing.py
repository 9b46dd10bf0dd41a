"""Files for people to open, written whole or not at all."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from demkd.errors import UserError


class PageError(UserError, ValueError):
    """A page or plot that cannot be made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """A file that now is there."""

    file: Path
    file_bytes: int


def write_whole(path: Path, content: bytes) -> WrittenFile:
    """Write beside the file, then rename: a reader finds the old content or the new, never a part.

    Raises:
        PageError: if the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.writing")
    try:
        draft.unlink(missing_ok=True)  # a pipe of that name would keep us waiting
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise PageError(
            f"{path} cannot be written ({error.strerror}): choose a file in a folder that is there and may be written"
        ) from error
    return WrittenFile(file=path, file_bytes=len(content))
