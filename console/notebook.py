"""Reports and caches in notebooks: what the command line prints, recorded, in its colours, without a background."""

import io
from html import escape as html_escape
from typing import Any

from rich.text import Text

from demkd.console.output import PlainConsole, printing_to
from demkd.console.shown import show
from demkd.report.gallery import PicturedSamples
from demkd.untrusted import visible_line

_WIDTH = 110
_PRE = '<pre style="line-height: 1.25; overflow-x: auto">{code}</pre>'
_FIGURE = (
    '<figure style="display: inline-block; margin: 4px; text-align: center; font-size: 80%">'
    '<img src="{picture}" alt="sample {index}" style="width: 64px; image-rendering: pixelated">'
    "<figcaption>{index}: {label}<br>{answers}</figcaption></figure>"
)


def as_html(value: Any) -> str:
    """A report or a cache as HTML, with small pictures where it has some."""
    pictures = "".join(map(_figure, value.exhibits)) if isinstance(value, PicturedSamples) else ""
    console = _recorded(value)
    return pictures + console.export_html(inline_styles=True, code_format=_PRE)


def as_text(value: Any) -> Text:
    """The same for rich."""
    return Text.from_ansi(_recorded(value).export_text(styles=True).rstrip("\n"))


def _recorded(value: Any) -> PlainConsole:
    console = PlainConsole(
        record=True, file=io.StringIO(), width=_WIDTH, force_terminal=True, force_jupyter=False,
        color_system="truecolor",
    )  # fmt: skip
    with printing_to(console):
        show(value)
    return console


def _figure(exhibit: Any) -> str:
    row = exhibit.row
    answers = ", ".join(f"{teacher.name}: {teacher.prediction}" for teacher in row.teachers)
    return _FIGURE.format(
        picture=exhibit.picture,
        index=row.index,
        label=html_escape(visible_line(row.label)),
        answers=html_escape(visible_line(answers)),
    )
