"""A picture drawn in characters: half blocks where the terminal has colours, shades of grey where it has none.

H and W pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

Pixels = NDArray[Any]

_WIDEST = 64
_DARK_TO_LIGHT = " .:-=+*#%@"


def draw(console: Console, pixels: Pixels) -> list[Text]:
    """A picture (H, W, 3), uint8, a line of text for two lines of its pixels."""
    fitting = _resize(pixels, min(_WIDEST, console.width - 1))
    if len(fitting) % 2:
        fitting = np.concatenate([fitting, fitting[-1:]])
    upper, lower = fitting[::2], fitting[1::2]
    if not _has_colours(console):
        return _grey(upper, lower)
    return [_coloured(above, below) for above, below in zip(upper, lower, strict=True)]


def explain(console: Console) -> str:
    """What the characters mean, where that is not plain to see."""
    return "" if _has_colours(console) else "drawn without colours: from dark to light, blank . : - = + * # % @"


def _has_colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _coloured(above: Pixels, below: Pixels) -> Text:
    """A line: the upper half of each character in one colour, the lower in another."""
    line = Text(no_wrap=True)
    for over, under in zip(above, below, strict=True):
        line.append("▀", Style(color=Color.from_rgb(*over), bgcolor=Color.from_rgb(*under)))
    return line


def _grey(upper: Pixels, lower: Pixels) -> list[Text]:
    """Characters by the luminance (ITU-R BT.601) of the two pixels that each stands for."""
    luminance = ((upper / 2 + lower / 2) @ np.array([0.299, 0.587, 0.114])) / 255
    levels = np.minimum((luminance * len(_DARK_TO_LIGHT)).astype(int), len(_DARK_TO_LIGHT) - 1)
    return [Text("".join(_DARK_TO_LIGHT[level] for level in line), no_wrap=True) for line in levels]


def _resize(pixels: Pixels, widest: int) -> Pixels:
    """Small pictures enlarged by whole numbers, up to about 32 pixels; large ones averaged down to fit."""
    height, width = pixels.shape[:2]
    if width <= widest:
        factor = max(1, min(32, widest) // max(width, height))
        return pixels.repeat(factor, 0).repeat(factor, 1)
    columns = widest
    rows = max(1, round(height * columns / width))
    return _average(_average(pixels.astype(np.float64), rows, 0), columns, 1).round().astype(np.uint8)


def _average(pixels: Pixels, parts: int, axis: int) -> Pixels:
    return np.stack([part.mean(axis) for part in np.array_split(pixels, parts, axis)], axis)
