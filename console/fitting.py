"""Tables that fit: columns come in ranks, and a rank is shown if there is room for all of it.

Figures are never cut or broken; words may continue on a second line. What is left out is said.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.text import Text

from demkd.console.output import plain_table

_GAP = 2
_INDENT = 1


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: of one or two lines.
        rank: 0 is always shown; of the others the lowest come first. Columns of a rank are shown together.
        words: folded where there is no room; figures are not.
        least: what words are not folded below.
        left: how the cells are aligned.
        group: a line above the heading of the first of its columns that is shown.
        name: what the columns of the rank are called together where they are left out.
    """

    heading: str
    cells: Sequence[str | Text]
    _: KW_ONLY
    rank: int = 0
    words: bool = False
    least: int = 10
    left: bool = False
    group: str = ""
    name: str = ""

    def width(self) -> int:
        """The least that it needs."""
        return min(self.full_width(), max(self._heading_width(), self.least)) if self.words else self.full_width()

    def full_width(self) -> int:
        """What it needs if nothing is folded."""
        return max(self._heading_width(), *(cell_len(_as_text(cell).plain) for cell in self.cells))

    def _heading_width(self) -> int:
        return max(cell_len(line) for line in self.heading.split("\n"))


def fitted(console: Console, columns: Sequence[Column], *, more: str = "--json has it") -> RenderableType:
    """A table of the columns that fit, and a line that names the others.

    Args:
        more: where to find what is left out.
    """
    shown = _choose(columns, console.width)
    ranks = {column.rank for column in shown}
    left_out = dict.fromkeys(column.name or column.heading for column in columns if column.rank not in ranks)
    table = plain_table()
    table.show_edge, table.pad_edge = False, True
    table.padding = (0, 0, 0, _GAP - 1)  # the box adds one between columns
    height = max(column.heading.count("\n") for column in shown)
    for column, width in zip(shown, _widths(shown, console.width), strict=True):
        table.add_column(
            _heading(column.heading, height),
            justify="left" if column.left or column.words else "right",
            no_wrap=not column.words,
            overflow="fold",
            width=width,
        )
    for cells in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*map(_as_text, cells))
    if not left_out:
        return Group(Text(), table, Text())
    return Group(Text(), table, Text(), Text(f"no room for {', '.join(left_out)}: {more}", style="dim"))


def words(text: str, style: str = "") -> Text:
    """A text from outside, without control characters, which would reach the terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text), style=style)


def share(value: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{value:.2%}"


def number_text(value: float | None) -> str:
    """An entropy, a weight or a correlation; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def _heading(text: str, height: int) -> Text:
    """A heading that stands on the last of so many lines and one more."""
    return Text("\n" * (height - text.count("\n"))) + Text("\n").join(map(words, text.split("\n")))


def _as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else words(cell)


def _choose(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns of rank 0, and of every further rank that fits beside those before it."""
    chosen: list[Column] = []
    ranks: set[int] = set()
    for rank in sorted({column.rank for column in columns}):
        wanted = _grouped([column for column in columns if column.rank in ranks | {rank}])
        if rank == 0 or room(wanted, width) >= 0:
            chosen = wanted
            ranks.add(rank)
    return chosen


def room(columns: Sequence[Column], width: int) -> int:
    """How many characters are left when each column has the least that it needs."""
    return width - sum(column.width() for column in columns) - _GAP * (len(columns) - 1) - _INDENT


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """What each column gets: what is left goes to the columns of words, to those that need little first."""
    widths = [column.width() for column in columns]
    left = max(0, room(columns, width))
    wanting = sorted((column.full_width() - column.width(), place) for place, column in enumerate(columns))
    wanting = [(wants, place) for wants, place in wanting if wants > 0]
    for number, (wants, place) in enumerate(wanting):
        given = min(wants, left // (len(wanting) - number))
        widths[place] += given
        left -= given
    return widths


def _grouped(columns: Sequence[Column]) -> list[Column]:
    """The columns, the first of each group with the group above its heading."""
    groups = ["", *(column.group for column in columns)]
    return [
        replace(column, heading=f"{column.group}\n{column.heading}") if column.group != before else column
        for before, column in zip(groups, columns, strict=False)
    ]
