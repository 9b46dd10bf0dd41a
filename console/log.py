"""What a command tells, told twice: as before, and as lines of a file with the time of each."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from rich.console import Console

from demkd.console.progress import ConsoleProgress
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import EpochReport


class LogFile:
    """A file that lines are added to; a run that goes on adds to the lines of the last one."""

    def __init__(self, path: Path) -> None:
        """Open it at once, so that a wrong path is an error in the first second."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def progress(self, *, translate: Callable[[str], str]) -> ConsoleProgress:
        """What adds the lines of a command's progress, whatever is shown elsewhere."""
        console = Console(file=cast("IO[str]", _Stamped(self._file)), highlight=False, color_system=None, width=200)
        return ConsoleProgress(console, translate=translate)

    def close(self) -> None:
        self._file.close()

    def error(self, text: str) -> None:
        """The command's last words."""
        _Stamped(self._file).write(f"error: {text}\n")


class _Stamped(io.TextIOBase):
    """Writes the time in front of every line."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rest = file, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line.rstrip()}\n")
        return len(text)

    def writable(self) -> bool:
        return True


class TwoProgresses:
    """Tells everything to two."""

    def __init__(self, one: Progress, other: Progress) -> None:
        self._both = (one, other)

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        one, other = self._both
        with (
            one.task(description, total=total, unit=unit, done=done) as first,
            other.task(description, total=total, unit=unit, done=done) as second,
        ):
            yield _TwoTasks(first, second)

    def epoch(self, report: EpochReport) -> None:
        for each in self._both:
            each.epoch(report)

    def settings(self, chosen: Mapping[str, object]) -> None:
        for each in self._both:
            each.settings(chosen)

    def note(self, text: str) -> None:
        for each in self._both:
            each.note(text)

    def warn(self, text: str) -> None:
        for each in self._both:
            each.warn(text)


class _TwoTasks:
    def __init__(self, one: Task, other: Task) -> None:
        self._both = (one, other)

    def advance(self, count: int) -> None:
        for each in self._both:
            each.advance(count)

    def tell(self, facts: Callable[[], str]) -> None:
        for each in self._both:
            each.tell(facts)
