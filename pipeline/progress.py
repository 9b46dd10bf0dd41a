"""Progress of a stage on stderr: a bar on a terminal; where stderr is a file or a pipe, a line per epoch or minute."""

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from demkd.errors import visible_line
from demkd.pipeline.results import EpochReport

if TYPE_CHECKING:  # rich is imported when something is shown
    from rich.console import Console

_SECONDS_BETWEEN_FACTS = 0.5
_SECONDS_BETWEEN_LINES = 60.0
_WIDE = 100


class Task:
    """One long piece of work; this class shows nothing."""

    def advance(self, count: int) -> None:
        """`count` more units are done."""

    def show(self, facts: Callable[[], str]) -> None:
        """Offer the latest figures; they are computed only as often as they are shown."""

    def epoch(self, report: EpochReport) -> None:
        """Show the end of an epoch."""


class Progress(Task):
    """Where a stage reports to; this class shows nothing."""

    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:  # noqa: ARG002
        """Show a bar while the context lasts."""
        return nullcontext(self)

    def settings(self, chosen: Mapping[str, object]) -> None:
        """Report the resolved choices of a run."""

    def note(self, text: str) -> None:
        """Print a note."""

    def warn(self, text: str) -> None:
        """Print a warning."""


SILENT = Progress()


class ConsoleProgress(Progress):
    """A bar on a terminal, lines elsewhere."""

    def __init__(
        self,
        console: "Console | None" = None,
        *,
        quiet: bool = False,
        settings: bool = True,
        epochs: bool = True,
        translate: Callable[[str], str] = str,
    ) -> None:
        """Show progress on a console, by default that of stderr; if `quiet`, only warnings, which `translate` changes.

        `settings` shows the choices of a run; `epochs` prints one line per epoch where there are no bars.
        """
        self._console = console or open_console(stderr=True)
        self._quiet, self._settings, self._epochs, self._translate = quiet, settings, epochs, translate
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        if self._console.is_jupyter:  # rich draws with its widgets
            self._draws = importlib.util.find_spec("ipywidgets") is not None
        self._task = Task()

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        description = escape(description)
        if self._quiet:
            yield Task()
        elif self._draws:
            with _bars(self._console, unit) as bars:
                bars.add_task(description, total=total, completed=done)
                self._task = _Bar(bars)
                yield self._task
        else:
            lines = self._task = _Lines(self._console, description, total=total, unit=unit, done=done)
            yield lines
            lines.finish()

    def epoch(self, report: EpochReport) -> None:
        if not self._quiet and (self._draws or self._epochs):
            self._task.epoch(report)

    def settings(self, chosen: Mapping[str, object]) -> None:
        if self._settings and not self._quiet:
            text = ", ".join(f"{name.replace('_', '-')} {_in_words(value)}" for name, value in chosen.items())
            self._console.print(f"[dim]{escape(f'settings: {text}')}[/]", soft_wrap=not self._draws)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"[yellow]warning:[/] {escape(self._translate(text))}", soft_wrap=True)


def _in_words(value: object) -> str:
    """The value of a setting."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_progress(progress: bool | Progress) -> Progress:
    """What a user gives as `progress`; False shows warnings only."""
    return ConsoleProgress(quiet=not progress) if isinstance(progress, bool) else progress


def open_console(*, stderr: bool = False) -> "Console":
    """A rich console of stdout or stderr. Callers escape text from outside."""
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    unknown = columns.isdigit() and int(columns) == 0  # rich would print nothing
    return Console(stderr=stderr, highlight=False, width=shutil.get_terminal_size().columns if unknown else None)


def escape(text: str) -> str:
    """A text from outside in one line, without control characters and markup."""
    from rich.markup import escape as escape_markup

    return escape_markup(visible_line(text))


def decimal_bytes(count: int) -> str:
    """`1.48 MB`: decimal units, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


class _Bar(Task):
    """One task on a terminal; below the bar are the latest figures."""

    def __init__(self, bars: Any) -> None:
        self._bars, self._finished, self._shown = bars, "", time.monotonic()

    def advance(self, count: int) -> None:
        self._bars.advance(self._bars.task_ids[0], count)

    def show(self, facts: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_FACTS:
            self._shown, self._bars.facts = now, facts() + self._finished

    def epoch(self, report: EpochReport) -> None:
        running = f"epoch {report.epoch}  loss {report.losses['loss']:.3f}  train top-1 {report.train_top1:.2%}"
        self._finished = f"  {report.accuracy} after epoch {report.epoch}"
        self._bars.facts = running + self._finished


class _Lines(Task):
    """One task where nothing can be redrawn: a line per epoch or minute, and one at the end."""

    def __init__(self, console: "Console", description: str, *, total: int, unit: str, done: int) -> None:
        self._console, self._description, self._total, self._unit = console, description, total, unit
        self._before = self._done = done
        self._started = self._printed = time.monotonic()
        self._facts: Callable[[], str] | None = None
        self._has_epochs = False  # a line per epoch instead of one per minute

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._printed < _SECONDS_BETWEEN_LINES or self._has_epochs:
            return
        self._printed = now
        speed = max(self._done - self._before, 1) / (now - self._started)
        words = [
            f"{_amount(self._done, self._unit)} of {_amount(self._total, self._unit)}"
            f" ({self._done / max(self._total, 1):.0%})",
            _rate(speed, self._unit),
            f"{max(self._total - self._done, 0) / speed / 60:.0f} min left",
            *([self._facts()] if self._facts else []),
        ]
        self._print(f"{self._description}: {', '.join(words)}")

    def show(self, facts: Callable[[], str]) -> None:
        self._facts = facts

    def epoch(self, report: EpochReport) -> None:
        self._has_epochs = True
        self._print(
            f"epoch {report.epoch}/{report.epochs}  loss {report.losses['loss']:.4f}  "
            f"train top-1 {report.train_top1:.2%}  {report.accuracy}  {report.seconds:.1f} s"
        )

    def finish(self) -> None:
        """Print how long it took."""
        done, seconds = self._done - self._before, max(time.monotonic() - self._started, 1e-9)
        if done and not self._has_epochs:
            rate = _rate(done / seconds, self._unit)
            self._print(f"{self._description}: {_amount(done, self._unit)} in {seconds:.1f} s, {rate}")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _bars(console: "Console", unit: str) -> Any:
    """rich's bar with our columns; a narrow terminal has no room for amounts."""
    from rich import progress as rich
    from rich.text import Text

    class Rate(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(_rate(speed, unit) if speed else "", style="progress.data.speed")

    class Left(rich.TimeRemainingColumn):
        def render(self, task: rich.Task) -> Text:
            return Text() if task.finished else super().render(task).append(" left")

    class Bars(rich.Progress):
        facts = ""

        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            if self.facts:
                yield Text(f"  {self.facts}", style="dim", no_wrap=True, overflow="ellipsis")

    wide = console.width >= _WIDE
    counts = rich.TextColumn("{task.completed:,.0f}/{task.total:,.0f}", style="progress.download")
    amount = rich.DownloadColumn() if unit == "bytes" else counts
    return Bars(
        rich.SpinnerColumn(finished_text=" "),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=24 if wide else 10),
        amount if wide else rich.TaskProgressColumn(),
        Rate(),
        rich.TimeElapsedColumn(),
        Left(),
        console=console,
        speed_estimate_period=10,
    )


def _amount(count: int, unit: str) -> str:
    return decimal_bytes(count) if unit == "bytes" else f"{count:,} {unit}"


def _rate(speed: float, unit: str) -> str:
    """Units per second, or per minute where it takes that long."""
    if unit == "bytes":
        return f"{decimal_bytes(round(speed))}/s"
    return f"{speed:,.0f} {unit}/s" if speed >= 1 else f"{60 * speed:.1f} {unit}/min"
