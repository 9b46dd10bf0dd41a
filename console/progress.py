"""Progress on stderr: bars on a terminal, one line an epoch where stderr is a file or a pipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from demkd.pipeline.reports import EpochReport


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")


class ConsoleProgress:
    """The pipeline's progress on a terminal: bars there, one line an epoch where stderr is a file or a pipe."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator["_ConsoleTask"]:
        columns = [
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[facts]}"),
        ]
        with RichProgress(
            *columns, console=self._console, disable=not self._console.is_terminal, speed_estimate_period=10
        ) as bars:
            identity = bars.add_task(escape(description), total=total, completed=done, unit=unit, facts="")
            yield _ConsoleTask(bars, identity)

    def epoch(self, report: EpochReport) -> None:
        if not self._console.is_terminal:
            self._console.print(
                f"epoch {report.epoch}/{report.epochs}  loss {report.losses['loss']:.4f}  "
                f"train top-1 {report.train_top1:.2%}  test top-1 {report.test_top1:.2%}  {report.seconds:.1f} s",
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        self._console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)


class _ConsoleTask:
    def __init__(self, bars: RichProgress, identity: Any) -> None:
        self._bars, self._identity = bars, identity

    def advance(self, count: int) -> None:
        self._bars.advance(self._identity, count)

    def tell(self, facts: str) -> None:
        self._bars.update(self._identity, facts=facts)
