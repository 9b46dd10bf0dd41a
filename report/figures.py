"""How figures look, and how matplotlib's SVG becomes part of a page: small, unique in its ids, light or dark.

A figure is drawn in points; on a page a point is about a pixel. What is drawn in `INK`, `FAINT` or a colour of `SERIES`
takes the page's CSS variables of those names, so that a dark page has dark figures; a plot in a file of its own keeps
them as they are.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#1b1b1a", "#b9b9b3"
WIDTH, HEIGHT = 380, 235
LONGEST_NAME = 20
_STYLE: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "font.family": ["sans-serif"],
    "font.size": 11.5,
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.facecolor": "none",
    "axes.titlesize": 11.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line's style. Color, dashes and marker each identify the line.

    Attributes:
        colour: of Okabe and Ito's palette, which colour-blind people can tell apart; yellow is left out.
        dashes: on and off in points; solid if empty.
        marker: matplotlib's letter; `marker_path` is the same in SVG, around (0, 0).
    """

    colour: str
    dashes: tuple[float, ...]
    marker: str
    marker_path: str

    @property
    def line_style(self) -> Any:
        """As matplotlib wants it."""
        return (0, self.dashes) if self.dashes else "-"

    @property
    def css_colour(self) -> str:
        """As a page wants it."""
        return _CSS_COLOURS[self.colour]


@dataclass(frozen=True, kw_only=True, slots=True)
class LegendEntry:
    """A line of a legend; with `opacity`, the colour fills an area instead of drawing a line."""

    text: str
    series: Series
    opacity: float | None = None
    marked: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Illustration:
    """A figure with its words.

    Attributes:
        key: unique on the page.
        caption: what to read from it.
        width: at which it was drawn; wider than `WIDTH`, it scrolls in a box of its own on a small screen.
    """

    key: str
    title: str
    caption: str
    legend: tuple[LegendEntry, ...]
    svg: Markup
    width: float = WIDTH

    @property
    def is_wide(self) -> bool:
        """Whether it needs the page's whole width."""
        return self.width > WIDTH


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
_DASHES: tuple[tuple[float, ...], ...] = ((), (6.0, 2.5), (2.0, 2.0), (8.0, 2.0, 2.0, 2.0), (12.0, 3.0))
_MARKERS = (
    ("o", "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z"),
    ("s", "M-3 -3h6v6h-6z"),
    ("^", "M0 -3.5L3.5 3h-7z"),
    ("D", "M0 -4L4 0L0 4L-4 0z"),
    ("v", "M0 3.5L3.5 -3h-7z"),
    ("P", "M-1.2 -3.5h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4v-2.3h-2.3v-2.4h2.3z"),
)
_CSS_COLOURS = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_COLOURS)},
    INK: "var(--ink)",
    FAINT: "var(--faint)",
}


def series(number: int) -> Series:
    """The look of the n-th line of a figure; the first 42 differ in at least one of colour and marker."""
    colour = _COLOURS[number % len(_COLOURS)]
    dashes = _DASHES[(number + number // len(_COLOURS)) % len(_DASHES)]
    marker, path = _MARKERS[number % len(_MARKERS)]
    return Series(colour=colour, dashes=dashes, marker=marker, marker_path=path)


def legend(names: Sequence[str], *, marked: bool = True) -> tuple[LegendEntry, ...]:
    """A legend of the first series, in order."""
    return tuple(LegendEntry(text=name, series=series(number), marked=marked) for number, name in enumerate(names))


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Matplotlib's own defaults and ours, whatever the user's matplotlibrc says; ids are hashed with the salt."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.style.use("default")
        settings: Any = {**_STYLE, "svg.hashsalt": salt}
        mpl.rcParams.update(settings)
        # Letters that DejaVu lacks: a page uses the reader's fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def illustrate(
    draw: Callable[[Figure], None],
    *,
    key: str,
    title: str,
    caption: str,
    description: str,
    entries: tuple[LegendEntry, ...] = (),
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> Illustration:
    """Draw a figure for a page.

    Args:
        draw: fills the figure.
        description: what it shows, for who cannot see it.
        size: in points.
    """
    with drawing(key):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), facecolor="none")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = _for_page(text.getvalue(), key=key, description=description)
    return Illustration(key=key, title=title, caption=caption, legend=entries, svg=svg, width=size[0])


def one_axes(figure: Figure, *, x: str, y: str) -> Axes:
    """A figure's only axes, with their labels."""
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return axes


def printable(text: str) -> str:
    """A name without what XML cannot hold: folders may be called anything."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def short(name: str) -> str:
    """A name that leaves room for the figure beside it."""
    text = printable(name)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _for_page(text: str, *, key: str, description: str) -> Markup:
    """Matplotlib's SVG document as an element of a page: ids of its own, no styles of the whole page.

    Matplotlib has escaped every text that came from outside; the description is escaped here.
    """
    svg = text[text.index(">", text.index("<svg")) + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'((?: id="| xlink:href="#)|url\(#)', rf"\g<1>{key}-", svg).replace(" xlink:href=", " href=")
    svg = re.sub(r' style="[^"]*"', lambda style: _page_style(style[0]), svg)
    svg = re.sub(
        r' (?:d|transform|x|y|width|height)="[^"]*"',
        lambda attribute: re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}", attribute[0]),
        svg,
    )
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    head = f'<svg {box[0]} xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(printable(description))}">'
    return Markup(head + svg)  # noqa: S704 - see above


def _page_style(style: str) -> str:
    coloured = re.sub(r"#[0-9a-f]{6}", lambda colour: _CSS_COLOURS.get(colour[0], colour[0]), style)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", coloured)
