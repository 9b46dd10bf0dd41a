"""One table for everything that is shown or exported, and its printers for JSON, CSV and Markdown.

The terminal's printer is in terminal.py, that of HTML in templates/page.html.j2.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from os import PathLike, fspath
from typing import Any, Self

import numpy as np

from demkd.errors import UserError, visible, visible_line
from demkd.pipeline.progress import decimal_bytes

_BARS = " ▁▂▃▄▅▆▇█"
_MOST_BARS = 20
_MARKUP = re.compile(r"([\\`*_\[\]<>|#])")


class ReportError(UserError, ValueError):
    """A report that cannot be made: a sample, column or library that does not exist, a file that cannot be written."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Where the terminal is too narrow, columns of the highest rank are left out first, and those of rank 0 never; None is
    for JSON and CSV only.
    """

    key: str  # the name in JSON and CSV
    heading: str = ""  # for people; the key if empty. A line break separates a teacher's name from the measure
    # "" for text, "percent" for a fraction, "points" for a signed difference of fractions, "bytes", "bars" for a list
    # of numbers, "image" for a data URI, or a format of Python such as ".3f"
    format: str = ""
    rank: int | None = 0
    note: str = ""  # what it means, below the table where the column is shown

    @property
    def title(self) -> str:
        return self.heading or self.key

    @property
    def is_text(self) -> bool:
        return self.format in ("", "bars", "image")


@dataclass(frozen=True)
class Table(Sequence[dict[str, Any]]):
    """A table; also a sequence of rows as dicts."""

    title: str  # a heading or a sentence above the table
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]  # one value per column, unformatted; None where there is none
    note: str = ""  # what to read from it, below the table, before the notes of the columns
    best: int | None = None  # a row to highlight

    @classmethod
    def from_columns(cls, title: str, columns: Mapping[Column, Iterable[Any]], note: str = "") -> Self:
        """A table of values by column; NumPy's numbers become Python's, and NaN becomes None."""
        rows = [[_plain_value(value) for value in row] for row in zip(*columns.values(), strict=True)]
        return cls(title, list(columns), rows, note)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return dict(zip((column.key for column in self.columns), self.rows[place], strict=True))

    def notes(self, columns: Iterable[Column] | None = None) -> str:
        """The notes of the table and of those columns that are shown, by default all."""
        shown = [column for _, column in self.shown()] if columns is None else columns
        return "; ".join(dict.fromkeys(filter(None, [self.note, *(column.note for column in shown)])))

    def shown(self) -> Iterator[tuple[int, Column]]:
        """Place and column of all that people see."""
        return ((place, column) for place, column in enumerate(self.columns) if column.rank is not None)


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if value != value else value


def format_value(value: Any, form: str) -> str:
    """A value as text in one line, without control characters."""
    if value is None:
        return "-"
    if form == "percent":
        return f"{value:.2%}"
    if form == "points":
        return f"{100 * value:+.2f}"
    if form == "bytes":
        return decimal_bytes(value)
    if form == "bars":
        return bars(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return visible_line(", ".join(map(str, value)))
    return format(value, form) if form else visible_line(str(value))


def bars(values: Sequence[float]) -> str:
    """Numbers from 0 as a line of bars, one per number or per mean of neighbors; only 0 has no bar."""
    parts = np.array_split(np.asarray(values, np.float64), min(len(values), _MOST_BARS))
    means = [float(part.mean()) for part in parts]
    return "".join(_BARS[max(1, round(8 * mean / max(means))) if mean > 0 else 0] for mean in means)


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a dict holds beside tables, as names and texts; digests are shortened, empty values left out."""
    texts = []
    for key, value in result.items():
        if isinstance(value, Table) or value in (None, "", (), [], {}):
            continue
        text = decimal_bytes(value) if key.endswith("_bytes") else format_value(value, "")
        texts.append((key.replace("_", " "), text[:12] if key.endswith("_sha256") else text))
    return texts


def tables(result: Any) -> list[Table]:
    return [result] if isinstance(result, Table) else [value for value in result.values() if isinstance(value, Table)]


def to_json(result: Any) -> str:
    """A table, a dict of tables or a report; a table is a list of objects."""
    return json.dumps(result, indent=2, default=_to_plain) + "\n"


def _to_plain(value: Any) -> Any:
    if isinstance(value, Table):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, PathLike):
        return fspath(value)
    raise TypeError(type(value))


def to_csv(result: Any) -> str:
    """The first table of a result, numbers in full."""
    table = tables(result)[0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(column.key) for column in table.columns])
    writer.writerows([_csv_cell(value) for value in row] for row in table.rows)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Text that begins like a formula gets an apostrophe, so that no spreadsheet runs it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    return visible(f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value)


def to_markdown(table: Table) -> str:
    """A table for GitHub; the best row is bold."""
    shown = list(table.shown())
    lines = [[escape_markdown(column.title.replace("\n", " ")) for _, column in shown], ["---"] * len(shown)]
    for place, row in enumerate(table.rows):
        cells = [escape_markdown(format_value(row[i], column.format)) for i, column in shown]
        lines.append([f"**{cell}**" if place == table.best else cell for cell in cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape_markdown(text: str) -> str:
    """Text from outside in one line of Markdown, without a meaning as markup."""
    return _MARKUP.sub(r"\\\1", visible_line(text))
