"""The printers of tables and images: formats, widths, and what spreadsheets and terminals must not run."""

import csv
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from demkd.report.table import Column, Table, bars, escape_markdown, format_value, to_csv, to_json, to_markdown
from demkd.report.terminal import draw, print_table

GENERATOR = np.random.default_rng(0)


def terminal(width: int = 80, *, colors: bool = True, no_color: bool = False) -> Console:
    system = "truecolor" if colors else None
    return Console(file=io.StringIO(), force_terminal=True, color_system=system, width=width, no_color=no_color)


def triplets(line: Text) -> list[tuple[Any, Any]]:
    """The colors of the upper and the lower half of every character of a line."""
    styles: list[Any] = [span.style for span in line.spans]
    return [(style.color.triplet, style.bgcolor.triplet) for style in styles]


def test_every_pixel_is_half_a_character_of_its_color() -> None:
    pixels = GENERATOR.integers(0, 256, (32, 32, 3), np.uint8)
    lines = draw(terminal(), pixels)
    assert [line.plain for line in lines] == ["▀" * 32] * 16
    for row, line in enumerate(lines):
        for column, (upper, lower) in enumerate(triplets(line)):
            assert upper == tuple(pixels[2 * row, column])
            assert lower == tuple(pixels[2 * row + 1, column])


def test_small_images_are_enlarged_and_large_ones_averaged() -> None:
    pixels = GENERATOR.integers(0, 256, (7, 8, 3), np.uint8)
    lines = draw(terminal(), pixels)
    assert (len(lines), len(lines[0])) == (14, 32), "four times"
    assert triplets(lines[5])[13] == (tuple(pixels[10 // 4, 13 // 4]), tuple(pixels[11 // 4, 13 // 4]))
    odd = draw(terminal(), GENERATOR.integers(0, 256, (17, 20, 3), np.uint8))
    assert [over for over, _ in triplets(odd[8])] == [under for _, under in triplets(odd[8])], "the last row twice"
    pixels = GENERATOR.integers(0, 256, (126, 126, 3), np.uint8)
    assert [len(line) for line in draw(terminal(), pixels.repeat(2, 0).repeat(2, 1))] == [64] * 32
    lines = draw(terminal(43), pixels)
    expected = pixels.reshape(42, 3, 42, 3, 3).mean((1, 3)).round()
    assert [len(line) for line in lines] == [42] * 21
    assert triplets(lines[4])[7] == (tuple(expected[8, 7]), tuple(expected[9, 7]))


def test_without_colors_shades_are_drawn() -> None:
    ramp = np.linspace(0, 255, 32).round().astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (4, 32, 3))
    for console in (terminal(colors=False), terminal(no_color=True)):
        (first, second) = draw(console, pixels)
        assert first.plain == second.plain
        assert (first.plain[0], first.plain[-1]) == (" ", "@")
        places = [" .:-=+*#%@".index(character) for character in first.plain]
        assert places == sorted(places)
        assert set(places) == set(range(10))
        assert not first.spans


COLUMNS = [
    Column("name"),
    Column("top1", "top-1", "percent"),
    Column("gain", "gain", "points", rank=1),
    Column("size", format="bytes", rank=2),
    Column("histogram", format="bars", rank=3),
    Column("p", rank=None),
]
TABLE = Table(
    "A title", COLUMNS, [("ada", 0.5, None, 1234, [0, 1, 8], 0.25), ("=b|c", 1.0, 0.01, 5, [1], None)], "A note", 1
)


def printed(table: Table, width: int) -> list[str]:
    console = terminal(width, colors=False, no_color=True)
    print_table(console, table)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in console.file.getvalue().splitlines()]


def test_a_table_has_the_same_rows_in_every_format() -> None:
    assert TABLE[0] == {"name": "ada", "top1": 0.5, "gain": None, "size": 1234, "histogram": [0, 1, 8], "p": 0.25}
    assert json.loads(to_json({"n": 1, "table": TABLE})) == {"n": 1, "table": list(TABLE)}
    assert to_csv(TABLE).splitlines() == [
        "name,top1,gain,size,histogram,p",
        "ada,0.5,,1234,0 1 8,0.25",
        "'=b|c,1.0,0.01,5,1,",
    ]
    assert to_markdown(TABLE).splitlines() == [
        "| name | top-1 | gain | size | histogram |",
        "| --- | --- | --- | --- | --- |",
        "| ada | 50.00% | - | 1.23 kB |  ▁█ |",
        r"| **=b\|c** | **100.00%** | **+1.00** | **5 B** | **█** |",
    ]
    assert [line.split() for line in printed(TABLE, 80) if "ada" in line] == [
        ["ada", "50.00%", "-", "1.23", "kB", "▁█"]
    ]


@pytest.mark.parametrize(("width", "left_out"), [(80, 0), (37, 1), (26, 2), (16, 3), (10, 3)])
def test_the_terminal_leaves_out_the_columns_of_the_highest_rank(width: int, left_out: int) -> None:
    lines = printed(TABLE, width)
    more = f"; {left_out} more column{'s' if left_out > 1 else ''} in JSON and CSV" if left_out else ""
    assert f"A note{more}" in " ".join(" ".join(lines).split())
    for column in COLUMNS[2:5][::-1][:left_out]:
        assert not any(column.title in line.split() for line in lines)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_text_that_begins_like_a_formula_is_guarded_in_csv(text: str) -> None:
    """Numbers are not."""
    table = Table("", [Column(text), Column("n")], [(text, -1.5)])
    assert all(row[0][0] == "'" for row in csv.reader(io.StringIO(to_csv(table))))
    assert to_csv(table).endswith(",-1.5\n")


def test_text_from_outside_has_no_control_characters() -> None:
    table = Table("a\x1b[2J", [Column("b\x1b[2J"), Column("c")], [("d\x1b[2J\n", "[bold]e")], "f\x1b[2J")
    for text in ("\n".join(printed(table, 80)), to_csv(table), to_json(table), to_markdown(table)):
        assert "\x1b" not in text
    assert "[bold]e" in "\n".join(printed(table, 80))
    assert escape_markdown("<b>|*\n") == r"\<b\>\|\*\\n"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".3f", "-"),
        (True, "", "yes"),
        (0.1234, "percent", "12.34%"),
        (-0.01, "points", "-1.00"),
        (["a", 1], "", "a, 1"),
    ],
)
def test_a_format_says_how_a_value_is_shown(value: object, form: str, text: str) -> None:
    assert format_value(value, form) == text


def test_many_bars_are_means_of_neighbors() -> None:
    assert bars([0] * 20 + [1] * 20) == " " * 10 + "█" * 10
    assert bars([0, 0.01, 1]) == " ▁█", "only 0 has no bar"
    assert bars([0, 0]) == "  "
