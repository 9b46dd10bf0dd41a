"""Where results go and what they share: stdout, errors, JSON, figures as text."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demkd.report.rows import FlatRows
from demkd.report.writing import WrittenFile


def show_error(text: str) -> None:
    """One sentence on stderr."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def show_json(report: object) -> None:
    """A report as JSON on stdout, for programs."""
    assert is_dataclass(report)
    assert not isinstance(report, type)
    json.dump(asdict(report), sys.stdout, indent=2, default=_jsonable)
    sys.stdout.write("\n")


def show_csv(flat: FlatRows) -> None:
    """Flat rows as CSV on stdout, for programs: a line of headings, though there be no rows."""
    writer = csv.DictWriter(sys.stdout, flat.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat.rows)


def show_written(written: WrittenFile, *, aside: bool = False) -> None:
    """A file that was written; aside, on stderr, where stdout has another result."""
    where = Console(stderr=True, highlight=False) if aside else stdout()
    where.print(f"{escape(str(written.file))}: {decimal_bytes(written.file_bytes)}", soft_wrap=True)


def stdout() -> Console:
    """For results."""
    return Console(highlight=False)


def counted(count: int, one: str, many: str) -> str:
    """`1 class`, `100 classes`."""
    return f"{count} {one if count == 1 else many}"


def decimal_bytes(count: int) -> str:
    """Decimal units, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


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
        sys.stdout.write(f"| {' | '.join(line)} |\n")
