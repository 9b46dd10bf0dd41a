"""Where results go and what they share: stdout, errors, JSON, figures as text."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich import markup
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from demkd.report.rows import FlatRows
from demkd.report.writing import WrittenFile
from demkd.untrusted import visible, visible_line


class PlainConsole(Console):
    """A terminal to which names from outside do not speak: control characters are spelt out, whoever prints them."""

    def __init__(self, **options: Any) -> None:
        """A console with options of rich's."""
        columns = os.environ.get("COLUMNS", "")
        unknown = columns.isdigit() and int(columns) == 0  # nobody knows; rich would believe it, and print nothing
        width = shutil.get_terminal_size().columns if unknown else None
        super().__init__(**{"highlight": False, "width": width, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def escape(text: str) -> str:
    """A text from outside, in one line and without a meaning as markup."""
    return markup.escape(visible_line(text))


def show_error(text: str) -> None:
    """One sentence on stderr."""
    PlainConsole(stderr=True).print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def show_json(report: object) -> None:
    """A report as JSON on stdout, for programs."""
    assert is_dataclass(report)
    assert not isinstance(report, type)
    json.dump(asdict(report), sys.stdout, indent=2, default=_jsonable)
    sys.stdout.write("\n")


def show_csv(flat: FlatRows) -> None:
    """Flat rows as CSV on stdout, for programs: a line of headings, though there be no rows."""
    writer = csv.DictWriter(sys.stdout, flat.columns, lineterminator="\n")
    writer.writerow({name: visible(name) for name in flat.columns})
    writer.writerows({name: _shown(value) for name, value in row.items()} for row in flat.rows)


def show_written(written: WrittenFile, *, aside: bool = False) -> None:
    """A file that was written; aside, on stderr, where stdout has another result."""
    where = PlainConsole(stderr=True) if aside else stdout()
    where.print(f"{escape(str(written.file))}: {decimal_bytes(written.file_bytes)}", soft_wrap=True)


def stdout() -> PlainConsole:
    """For results."""
    return PlainConsole()


def counted(count: int, one: str, many: str) -> str:
    """`1 class`, `100 classes`."""
    return f"{count} {one if count == 1 else many}"


def decimal_bytes(count: int) -> str:
    """Decimal units, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) else value


def _jsonable(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(type(value))


def plain_table(*, left: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
    """The look of every table: words on the left, then figures on the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def write_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in Markdown, to stdout."""
    for line in (headings, ["---"] * len(headings), *rows):
        sys.stdout.write(f"| {' | '.join(map(visible_line, line))} |\n")
