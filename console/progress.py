"""Progress on stderr: bars on a terminal; where stderr is a file or a pipe, a line an epoch or a minute."""

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from demkd.console.output import PlainConsole, decimal_bytes, escape
from demkd.pipeline.progress import SilentProgress, Task
from demkd.pipeline.results import EpochReport

_SECONDS_BETWEEN_FACTS = 0.5
_SECONDS_BETWEEN_LINES = 60.0
_WIDE = 100


class ConsoleProgress:
    """The pipeline's progress: bars on a terminal, lines elsewhere."""

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        settings: bool = True,
        epochs: bool = True,
        translate: Callable[[str], str] = str,
    ) -> None:
        """Show progress on a console, by default that of stderr.

        Args:
            quiet: show warnings alone.
            settings: say with what choices a run begins.
            epochs: where there are no bars, a line an epoch, instead of one a run.
            translate: puts the sentences of warnings into other words.
        """
        self._translate = translate
        self._quiet, self._tells_settings, self._tells_epochs = quiet, settings, epochs
        self._console = console or PlainConsole(stderr=True)
        self._has_bars = _can_draw(self._console)
        self._task: _Bar | _Lines | None = None

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        if self._quiet:
            yield SilentProgress()
            return
        if not self._has_bars:
            self._task = _Lines(self._console, description, total=total, unit=unit, done=done)
            yield self._task
            self._task.finish()
            return
        with _Bars(*_columns(self._console.width), console=self._console, speed_estimate_period=10) as bars:
            identity = bars.add_task(escape(description), total=total, completed=done, unit=unit)
            self._task = _Bar(bars, identity)
            yield self._task

    def epoch(self, report: EpochReport) -> None:
        if self._quiet:
            return
        if self._has_bars:
            if isinstance(self._task, _Bar):
                self._task.show_epoch(report)
            return
        if not self._tells_epochs:
            return
        if isinstance(self._task, _Lines):
            self._task.give_way()
        self._console.print(
            f"epoch {report.epoch}/{report.epochs}  loss {report.losses['loss']:.4f}  "
            f"train top-1 {report.train_top1:.2%}  test top-1 {report.test_top1:.2%}  {report.seconds:.1f} s",
            soft_wrap=True,
        )

    def settings(self, chosen: Mapping[str, object]) -> None:
        if self._tells_settings and not self._quiet:
            pairs = (
                f"{name.replace('_', '-')} {f'{value:g}' if isinstance(value, float) else value}"
                for name, value in chosen.items()
            )
            text = escape(f"settings: {', '.join(pairs)}")
            self._console.print(f"[dim]{text}[/]", soft_wrap=not self._has_bars)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"[yellow]warning:[/] {escape(self._translate(text))}", soft_wrap=True)


def _can_draw(console: Console) -> bool:
    """Whether lines can be drawn over: on a terminal, and in a notebook that has the widgets which rich uses there."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


class _Bars(RichProgress):
    """A bar, and below it the latest facts, which so have room on narrow terminals too."""

    facts = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.facts:
            yield Text(f"  {self.facts}", style="dim", no_wrap=True, overflow="ellipsis")


class _Bar:
    """One task on a terminal."""

    def __init__(self, bars: _Bars, identity: TaskID) -> None:
        self._bars, self._identity = bars, identity
        self._running = self._finished = ""
        self._asked = time.monotonic()

    def advance(self, count: int) -> None:
        self._bars.advance(self._identity, count)

    def tell(self, facts: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._asked >= _SECONDS_BETWEEN_FACTS:
            self._asked = now
            self._running = facts()
            self._show()

    def show_epoch(self, report: EpochReport) -> None:
        """Show a finished epoch's figures, until and beside those of the next one."""
        self._running = f"epoch {report.epoch}  loss {report.losses['loss']:.3f}  train top-1 {report.train_top1:.2%}"
        self._finished = f"  test top-1 {report.test_top1:.2%} after epoch {report.epoch}"
        self._show()

    def _show(self) -> None:
        self._bars.facts = self._running + self._finished


class _Lines:
    """One task where nothing can be drawn: a line a minute, and one at the end."""

    def __init__(self, console: Console, description: str, *, total: int, unit: str, done: int) -> None:
        self._console, self._description, self._total, self._unit = console, description, total, unit
        self._before = self._done = done
        self._started = self._said = time.monotonic()
        self._facts: Callable[[], str] | None = None
        self._silent = False

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES and not self._silent:
            self._said = now
            self._say_how_far(now - self._started)

    def tell(self, facts: Callable[[], str]) -> None:
        self._facts = facts

    def give_way(self) -> None:
        """From now on, lines of epochs say it all."""
        self._silent = True

    def finish(self) -> None:
        """Say how long it took."""
        if self._silent or self._done == self._before:
            return
        seconds = time.monotonic() - self._started
        count = _amount(self._done - self._before, self._unit)
        rate = _rate((self._done - self._before) / max(seconds, 1e-9), self._unit)
        self._say(f"{count} in {seconds:.1f} s, {rate}")

    def _say_how_far(self, seconds: float) -> None:
        speed = max(self._done - self._before, 1) / seconds
        left = max(self._total - self._done, 0) / speed
        words = [
            f"{_amount(self._done, self._unit)} of {_amount(self._total, self._unit)} ({self._share:.0%})",
            _rate(speed, self._unit),
            f"{left / 60:.0f} min left",
            *([self._facts()] if self._facts else []),
        ]
        self._say(", ".join(words))

    @property
    def _share(self) -> float:
        return self._done / max(self._total, 1)

    def _say(self, text: str) -> None:
        self._console.print(f"{escape(self._description)}: {text}", soft_wrap=True)


class _Amount(ProgressColumn):
    """How much of how much."""

    def render(self, task: RichTask) -> Text:
        unit = task.fields["unit"]
        done, total = (_count(int(number or 0), unit) for number in (task.completed, task.total))
        return Text(f"{done}/{total}", style="progress.download")


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed, task.fields["unit"]) if speed else "", style="progress.data.speed")


class _Left(TimeRemainingColumn):
    """The time left, in words that the elapsed time is not taken for."""

    def render(self, task: RichTask) -> Text:
        return Text() if task.finished else super().render(task).append(" left")


def _columns(width: int) -> list[ProgressColumn]:
    """What a bar consists of; a narrow terminal has no room for amounts."""
    wide = width >= _WIDE
    return [
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24 if wide else 10),
        _Amount() if wide else TaskProgressColumn(),
        _Rate(),
        TimeElapsedColumn(),
        _Left(),
    ]


def _count(count: int, unit: str) -> str:
    return decimal_bytes(count) if unit == "bytes" else f"{count:,}"


def _amount(count: int, unit: str) -> str:
    return decimal_bytes(count) if unit == "bytes" else f"{count:,} {unit}"


def _rate(speed: float, unit: str) -> str:
    """Units per second, or per minute where it takes that long."""
    if unit == "bytes":
        return f"{decimal_bytes(round(speed))}/s"
    return f"{speed:,.0f} {unit}/s" if speed >= 1 else f"{60 * speed:.1f} {unit}/min"
