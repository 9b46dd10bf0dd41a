"""Results and errors in the terminal: tables that fit its width, and images in characters."""

import sys
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from demkd.errors import visible_line
from demkd.pipeline.progress import decimal_bytes, escape, open_console
from demkd.report.stages import blocks_of
from demkd.report.table import Table, facts, format_value, tables, to_json

Pixels = NDArray[Any]

_LEAST = 12  # text columns and headings are not folded to fewer characters
_UNFOLDED = 40  # while other columns can be left out, words up to this width are not folded
_WIDEST = 64
_DARK_TO_LIGHT = " .:-=+*#%@"
_ASCII = str.maketrans(" ▁▂▃▄▅▆▇█", " .:-=+*#@")


def show(result: Any, *, as_json: bool = False, image: Pixels | None = None) -> None:
    """Print a table, a dict of facts and tables, or a stage's report on stdout; an image (H, W, 3) below the facts."""
    if as_json:
        sys.stdout.write(to_json(result))
        return
    console = open_console()
    if isinstance(result, Table):
        print_table(console, result)
    elif isinstance(result, dict):
        grid = RichTable.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in facts(result):
            grid.add_row(name, Text(text))
        console.print(grid)
        if image is not None:
            for line in draw(console, image):
                console.print(line, no_wrap=True, overflow="crop", soft_wrap=True)
        console.print()
        for table in tables(result):
            print_table(console, table)
    else:
        for block in blocks_of(result):
            if isinstance(block, Table):
                print_table(console, block)
            else:
                console.print(escape(block), soft_wrap=True)


def show_error(text: str) -> None:
    """Print one sentence on stderr."""
    open_console(stderr=True).print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def show_written(file: Any, file_bytes: int, *, stderr: bool = False) -> None:
    """Print the name of a file that was written; on stderr where stdout has another result."""
    open_console(stderr=stderr).print(f"{escape(str(file))}: {decimal_bytes(file_bytes)}", soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print the title, the columns that fit, and the note.

    Numbers are never cut or wrapped. Columns of the same rank are shown or left out together. Words are folded only
    where the columns of rank 0 do not fit.
    """
    if table.title:
        console.print(Text(visible_line(table.title)), style="bold")
    if not table.rows:
        return
    marks = _ASCII if console.options.ascii_only else {}
    cells = {
        i: [format_value(row[i], column.format).translate(marks) for row in table.rows] for i, column in table.shown()
    }
    headings, least, wanted = {}, {}, {}
    for i, column in table.shown():
        full = max(map(cell_len, cells[i]))
        lines = [visible_line(line) for line in column.title.split("\n")]
        headings[i] = "\n".join(part for line in lines for part in wrap(line, max(full, _LEAST)) or [""])
        width = max(full, *(cell_len(line) for line in headings[i].split("\n")))
        least[i] = min(width, max(_LEAST, *(cell_len(line) for line in lines))) if column.format == "" else width
        word = max((cell_len(word) for text in cells[i] for word in text.split()), default=0)
        wanted[i] = max(least[i], min(word, _UNFOLDED))
    chosen: list[int] = []
    for rank in sorted({column.rank or 0 for _, column in table.shown()}):
        more = [i for i, column in table.shown() if (column.rank or 0) <= rank and (i in chosen or column.rank == rank)]
        if rank == 0 or sum(wanted[i] + 2 for i in more) - 1 <= console.width:
            chosen = more
    rich = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    height = max(headings[i].count("\n") for i in chosen)
    for i in chosen:
        column = table.columns[i]
        rich.add_column(
            Text("\n" * (height - headings[i].count("\n")) + headings[i]),
            justify="left" if column.is_text else "right",
            no_wrap=column.format != "",
            overflow="fold",
        )
    for place in range(len(table.rows)):
        rich.add_row(*(Text(cells[i][place]) for i in chosen), style="bold" if place == table.best else "")
    console.print(rich)
    left_out = len(cells) - len(chosen)
    note = f"{left_out} more {'column' if left_out == 1 else 'columns'} in JSON and CSV" if left_out else ""
    if text := "; ".join(part for part in (table.notes(table.columns[i] for i in chosen), note) if part):
        console.print(Text(visible_line(text)), style="dim")
    console.print()


def draw(console: Console, pixels: Pixels) -> list[Text]:
    """An image (H, W, 3), uint8, one line of text for two of its rows: half blocks in color, or shades of gray."""
    widest = min(_WIDEST, console.width - 1)
    factor = max(1, min(32, widest) // max(pixels.shape[:2]))  # small images are enlarged by whole numbers
    fitting = shrink(pixels, widest).repeat(factor, 0).repeat(factor, 1)
    if len(fitting) % 2:
        fitting = np.concatenate([fitting, fitting[-1:]])
    upper, lower = fitting[::2], fitting[1::2]
    if console.color_system is None or console.no_color:
        luminance = ((upper / 2 + lower / 2) @ np.array([0.299, 0.587, 0.114])) / 255  # ITU-R BT.601
        levels = np.minimum((luminance * len(_DARK_TO_LIGHT)).astype(int), len(_DARK_TO_LIGHT) - 1)
        return [Text("".join(_DARK_TO_LIGHT[level] for level in line), no_wrap=True) for line in levels]
    lines = []
    for above, below in zip(upper, lower, strict=True):
        line = Text(no_wrap=True)
        for over, under in zip(above, below, strict=True):
            line.append("▀", Style(color=Color.from_rgb(*over), bgcolor=Color.from_rgb(*under)))
        lines.append(line)
    return lines


def shrink(pixels: Pixels, longest: int) -> Pixels:
    """An image (H, W, 3), uint8, averaged down until no side is longer."""
    sides = pixels.shape[:2]
    if max(sides) <= longest:
        return pixels
    means: Any = pixels.astype(np.float64)
    for axis, side in enumerate(sides):
        parts = np.array_split(means, max(1, round(side * longest / max(sides))), axis)
        means = np.stack([part.mean(axis) for part in parts], axis)
    return np.asarray(means.round(), np.uint8)
