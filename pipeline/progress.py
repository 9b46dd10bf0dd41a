"""How a stage tells what it is doing, without knowing how it is shown; `console/progress.py` shows it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from demkd.pipeline.results import EpochReport


class Task(Protocol):
    """One long piece of work."""

    def advance(self, count: int) -> None:
        """`count` more units are done."""

    def tell(self, facts: Callable[[], str]) -> None:
        """Offer the latest figures; they are asked for as rarely as they are shown, and never where nobody looks."""


class Progress(Protocol):
    """Where a stage reports to."""

    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        """Show a bar while the context lasts."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch is over."""

    def settings(self, chosen: Mapping[str, object]) -> None:
        """Say with what choices, all of them resolved, a run begins."""

    def note(self, text: str) -> None:
        """Say something in passing."""

    def warn(self, text: str) -> None:
        """Say what may be wrong, though the work goes on."""


class SilentProgress:
    """Shows nothing: for library use, and `--quiet`."""

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator["SilentProgress"]:  # noqa: ARG002
        yield self

    def advance(self, count: int) -> None:
        """Nothing to show."""

    def tell(self, facts: Callable[[], str]) -> None:
        """Nothing to show."""

    def epoch(self, report: EpochReport) -> None:
        """Nothing to show."""

    def settings(self, chosen: Mapping[str, object]) -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Nothing to show."""

    def warn(self, text: str) -> None:
        """Nothing to show."""


class OnlyWarnings(SilentProgress):
    """Passes on what may be wrong, and shows nothing else."""

    def __init__(self, told: Progress) -> None:
        self._told = told

    def warn(self, text: str) -> None:
        self._told.warn(text)
