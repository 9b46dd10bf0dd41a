"""Figures of the cache page: distributions of entropy and weight, and accuracy by entropy.

K teachers, V slots, N samples, C classes.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from demkd.report.distributions import Distribution, entropy_distributions, weight_distributions
from demkd.report.figures import (
    FAINT,
    INK,
    WIDTH,
    Illustration,
    LegendEntry,
    illustrate,
    legend,
    one_axes,
    series,
    short,
)
from demkd.report.statistics import CacheStatistics
from demkd.report.summary import Agreement

MOST_PAIRS = 6
FEWEST_VIEWS = 20
_RELIABILITY_BINS = 15
_WEIGHT_BINS = 100
_STEPS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_NATS = "entropy (nats)"


def entropy_figure(statistics: CacheStatistics) -> Illustration:
    """Every teacher's entropies, a panel each: all views, and those it gets wrong."""
    distributions = entropy_distributions(statistics)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(distributions), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, each in zip(panels, distributions, strict=True):
            total = sum(each.counts)
            wrong = np.subtract(each.counts, each.right)
            axes.stairs(np.divide(each.counts, total), each.edges, fill=True, color=series(0).colour, alpha=0.45)
            axes.stairs(
                wrong / total, each.edges, color=series(1).colour, linewidth=1.6, linestyle=series(1).line_style
            )
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
            axes.set_title(short(each.name), loc="left")
        panels[-1].set_xlabel(_NATS)
        figure.supylabel("share of views", fontsize="medium")

    parts = [f"{each.name} has {_below(each, 0.1):.0%} of its views in the lowest tenth" for each in distributions]
    wrong_look = LegendEntry(text="wrong predictions", series=series(1), marked=False)
    return illustrate(
        draw,
        key="entropy",
        title="Entropy of each teacher",
        caption=(
            "Entropy of all views, from 0 (certain) to ln C (uniform). For a well-calibrated teacher the wrong "
            "predictions lie far to the right."
        ),
        description=f"Histograms of entropy: {'; '.join(parts)} of the range",
        entries=(LegendEntry(text="all views", series=series(0), opacity=0.45), wrong_look),
        size=(WIDTH, 60 + 95 * len(distributions)),
    )


def reliability_figure(statistics: CacheStatistics) -> Illustration:
    """Accuracy by entropy, and below it how many views there are."""
    distributions = entropy_distributions(statistics, bins=_RELIABILITY_BINS)

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
        for number, each in enumerate(distributions):
            middles, accuracy, share = _by_bin(each)
            look = series(number)
            style = {"color": look.colour, "linestyle": look.line_style, "marker": look.marker, "markersize": 4}
            above.plot(middles, accuracy, linewidth=1.6, **style)
            below.plot(middles, share, linewidth=1.2, **style)
        above.set_ylim(-0.03, 1.03)
        above.set_ylabel("top-1")
        below.set_ylabel("views")
        below.set_xlabel(_NATS)
        for axes in (above, below):
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))

    parts = [
        f"{each.name} has top-1 {_accuracy(each, surest):.0%} at lowest entropy"
        for each in distributions
        for surest in [position for position, count in enumerate(each.counts) if count >= FEWEST_VIEWS][:1]
    ]
    return illustrate(
        draw,
        key="reliability",
        title="Accuracy by entropy",
        caption=(
            "Above: top-1 of the views in each entropy bin. A line that falls from near 100 % means that entropy "
            "separates correct from wrong predictions; a line that starts low means confident errors. Bins of fewer "
            f"than {FEWEST_VIEWS} views are left out. Below: the share of views in each bin."
        ),
        description=f"Accuracy against entropy: {'; '.join(parts)}",
        entries=legend(statistics.cache.names),
        size=(WIDTH, 330),
    )


def weight_figure(statistics: CacheStatistics) -> Illustration:
    """How the weights are distributed, a line a teacher."""
    distributions = weight_distributions(statistics, bins=_WEIGHT_BINS)
    even = 1 / len(distributions)
    used = np.flatnonzero(np.sum([each.counts for each in distributions], axis=0))
    low, high = distributions[0].edges[used[0]], distributions[0].edges[used[-1] + 1]

    def draw(figure: Figure) -> None:
        axes = one_axes(figure, x="weight", y="share of views")
        axes.axvline(even, color=INK, linewidth=0.8)
        for number, each in enumerate(distributions):
            look = series(number)
            axes.stairs(
                np.divide(each.counts, sum(each.counts)),
                each.edges,
                color=look.colour,
                linestyle=look.line_style,
                linewidth=1.6,
            )
        axes.set_xlim(max(0.0, low - 0.02), min(1.0, high + 0.02))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))

    spread = f"from {low:.2f} to {high:.2f}"
    return illustrate(
        draw,
        key="weights",
        title="Distribution of weights",
        caption=(
            f"Each teacher's weight over all views, in bins of {1 / _WEIGHT_BINS}; the thin line is "
            f"1/{len(distributions)}, equal weights."
        ),
        description=f"Distribution of the weights of {', '.join(statistics.cache.names)}: {spread}",
        entries=legend(statistics.cache.names, marked=False),
    )


def pair_figures(statistics: CacheStatistics, agreement: Agreement) -> list[Illustration]:
    """Entropy of one teacher against another, for the pairs that agree least."""
    pairs = list(itertools.combinations(range(len(statistics.cache.names)), 2))
    pairs.sort(key=lambda pair: agreement.same_top1[pair[0]][pair[1]])
    return [_pair_figure(statistics, agreement, number, *pair) for number, pair in enumerate(pairs[:MOST_PAIRS])]


def heat_map(
    key: str,
    title: str,
    *,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    edges: Sequence[float],
    shown: Callable[[float], str],
    caption: str,
) -> Illustration:
    """A field of K x C values, more colour for more.

    Args:
        values: (K, C), NaN where there is none.
        edges: of the steps of colour.
        shown: a value as text.
    """
    colours, norm = _ink_scale(len(edges) - 1), BoundaryNorm(edges, len(edges) - 1)
    longest = max(len(short(name)) for name in columns)
    height = 22 * len(rows) + 6 * longest + 25

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.pcolormesh(values, cmap=colours, norm=norm, edgecolors=FAINT, linewidth=0.4)
        axes.set_xticks(np.arange(len(columns)) + 0.5, list(map(short, columns)), rotation=90 if longest > 2 else 0)
        axes.set_yticks(np.arange(len(rows)) + 0.5, list(map(short, rows)))
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelsize=9.5)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)

    averages = np.nanmean(values, axis=0)
    most, least = (f"{columns[int(at)]} with {shown(averages[at])}" for at in (averages.argmax(), averages.argmin()))
    return illustrate(
        draw,
        key=key,
        title=title,
        caption=caption,
        description=f"{title}, mean over teachers: most {most}, least {least}",
        entries=_scale_legend([f"{shown(a)} to {shown(b)}" for a, b in itertools.pairwise(edges)]),
        size=(max(WIDTH, 75 + 11 * len(columns)), height),
    )


def _pair_figure(statistics: CacheStatistics, agreement: Agreement, number: int, one: int, other: int) -> Illustration:
    names = statistics.cache.names
    mine, theirs = statistics.mean_entropy[one], statistics.mean_entropy[other]
    highest = float(max(mine.max(), theirs.max(), 0.01)) * 1.02
    count = _most_in_a_cell(mine, theirs, highest)
    edges = [step for step in _STEPS if step <= count]
    edges.append(next(step for step in (*_STEPS, count + 1) if step > edges[-1]))

    def draw(figure: Figure) -> None:
        axes = one_axes(figure, x=f"{short(names[one])}: {_NATS}", y=f"{short(names[other])}: {_NATS}")
        axes.plot((0, highest), (0, highest), color=INK, linewidth=0.8)
        _hexagons(axes, mine, theirs, highest).set(
            cmap=_ink_scale(len(edges) - 1), norm=BoundaryNorm(edges, len(edges) - 1)
        )
        axes.set_aspect("equal")

    correlation = agreement.rank_correlation[one][other]
    same = agreement.same_top1[one][other]
    alike = "" if correlation is None else f", and the rank correlation of their entropies is {correlation:.2f}"
    return illustrate(
        draw,
        key=f"pair-{number}",
        title=f"{names[one]} against {names[other]}",
        caption=(
            f"All {len(mine):,} samples by both teachers' entropy, averaged over {statistics.cache.num_views} views. "
            f"Off the diagonal, one teacher is more certain. They predict the same class in {same:.1%} of views{alike}."
        ),
        description=f"Entropy of {names[one]} against {names[other]}: same prediction in {same:.1%} of views{alike}",
        entries=_scale_legend([f"{a:,} to {b - 1:,}" for a, b in itertools.pairwise(edges)], unit="samples"),
        size=(WIDTH, WIDTH),
    )


def _hexagons(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], highest: float) -> PolyCollection:
    return axes.hexbin(x, y, gridsize=(26, 15), extent=(0, highest, 0, highest), mincnt=1, linewidths=0.2)


def _most_in_a_cell(x: NDArray[np.float64], y: NDArray[np.float64], highest: float) -> int:
    counts = _hexagons(Figure().subplots(), x, y, highest).get_array()
    assert counts is not None
    return int(counts.max())


def _ink_scale(steps: int) -> ListedColormap:
    """One colour in rising opacity, so that more is more ink on a light page and on a dark one."""
    return ListedColormap([(*to_rgba(series(0).colour)[:3], opacity) for opacity in _opacities(steps)])


def _opacities(steps: int) -> list[float]:
    return [round(float(opacity), 2) for opacity in np.linspace(0.1, 1.0, steps)] if steps > 1 else [1.0]


def _scale_legend(texts: Sequence[str], *, unit: str = "") -> tuple[LegendEntry, ...]:
    named = [*texts[:-1], f"{texts[-1]} {unit}".rstrip()]
    return tuple(
        LegendEntry(text=text, series=series(0), opacity=opacity)
        for text, opacity in zip(named, _opacities(len(texts)), strict=True)
    )


def _by_bin(each: Distribution) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Middles, shares right and shares of views of the bins that have enough views; NaN breaks the line elsewhere."""
    edges, counts = np.asarray(each.edges), np.asarray(each.counts, np.float64)
    enough = counts >= FEWEST_VIEWS
    accuracy = np.where(enough, np.asarray(each.right) / np.maximum(counts, 1), np.nan)
    return (edges[:-1] + edges[1:]) / 2, accuracy, counts / counts.sum()


def _accuracy(each: Distribution, position: int) -> float:
    return each.right[position] / max(each.counts[position], 1)


def _below(each: Distribution, share: float) -> float:
    return sum(each.counts[: round(share * len(each.counts))]) / sum(each.counts)
