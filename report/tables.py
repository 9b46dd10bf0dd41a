"""Tables of a page: what is shown, and beside it the plain value to sort by."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        value: the plain number, in the unit of the JSON; None for words, and where there is none.
        name: what the value is called, for programs that read the page.
        level: 0..1, how much of the column's colour fills the cell; None for none.
    """

    text: str
    value: float | None = None
    name: str = ""
    strong: bool = False
    level: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A heading; `numeric` columns stand right and sort by value."""

    text: str
    numeric: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows in the order of the first look.

    Attributes:
        key: unique on the page.
        title: names the table for who cannot see it, and above it.
        caption: what to read from it.
        tall: whether it scrolls in a box of its own.
    """

    key: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    tall: bool = False


def word(text: object) -> Cell:
    """A cell of words."""
    return Cell(text=str(text))


def share(value: float | None, name: str = "", *, digits: int = 2, level: float | None = None) -> Cell:
    """A share in 0..1, shown in per cent."""
    text = "-" if value is None else f"{value:.{digits}%}"
    return Cell(text=text, value=value, name=name, level=level)


def number(value: float | None, name: str = "", *, form: str = ".3f", level: float | None = None) -> Cell:
    """A number."""
    return Cell(text="-" if value is None else format(value, form), value=value, name=name, level=level)
