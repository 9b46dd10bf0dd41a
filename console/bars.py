"""Figures drawn in a line of characters: histograms, and values over slots."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = " .:-=+*#@"


def histogram_bars(console: Console, counts: Sequence[int], *, bins: int) -> str:
    """A histogram, a character a bin; a bin that is not empty never looks empty."""
    width = len(counts) // bins
    merged = [sum(counts[start : start + width]) for start in range(0, len(counts), width)]
    highest = max(*merged, 1)
    bars = _bars(console)
    return "".join(bars[0 if count == 0 else max(1, _level(count / highest))] for count in merged)


def value_bars(console: Console, values: Sequence[float], *, highest: float, width: int) -> str:
    """Values from 0 to `highest`, a character a value, or a character a mean of neighbours where there is no room."""
    parts = np.array_split(np.asarray(values, np.float64), min(width, len(values)))
    bars = _bars(console)
    return "".join(bars[max(1, _level(float(part.mean()) / highest if highest > 0 else 0.0))] for part in parts)


def _level(share: float) -> int:
    return round(share * (len(_BARS) - 1))


def _bars(console: Console) -> str:
    return _ASCII_BARS if console.options.ascii_only else _BARS
