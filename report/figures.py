"""Figures of the HTML reports, with matplotlib; each becomes an SVG in a data URI.

K teachers, V views, N samples, C classes, E epochs.
"""

import base64
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from demkd.report.statistics import CacheStatistics, by_class, histogram

MOST_PAIRS = 6
MOST_CLASSES = 120
MOST_GROUPS = 10
Curves = Mapping[str, NDArray[np.float64]]  # (seeds, E) by name
Illustration = dict[str, Any]  # title; image, a data URI; caption; alt, for screen readers; width in CSS pixels
_FEWEST_VIEWS = 20
_WIDTH = 5.6  # inches of 72 CSS pixels
_LONGEST_NAME = 24
_STYLE: Any = {
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.fonttype": "none",
    "svg.hashsalt": "demkd",  # the same bytes every time
}
# Okabe and Ito's palette, which color-blind people can tell apart, without yellow.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1b1a")
_DASHES: Any = ("-", (0, (6, 2.5)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (12, 3)))
_MARKERS = "os^DvP"
_TERMS = {
    "loss": "weighted sum of the terms",
    "label_loss": "cross-entropy with the label (nats)",
    "kd_loss": "KL divergence from the soft targets (nats x T²), unweighted",
    "target_class_kd": "binary KL of the target class (nats x T²), unweighted",
    "non_target_class_kd": "KL over the other classes (nats x T²), unweighted",
    "hint_loss": "squared distance of features, unweighted",
}


def cache_figures(statistics: CacheStatistics) -> list[Illustration]:
    """Distributions of entropy and weight, accuracy by entropy, pairs of teachers, and errors by class."""
    with _own_style():
        return [*_distributions(statistics), *_pairs(statistics), *_class_maps(statistics)]


def _distributions(statistics: CacheStatistics) -> Iterator[Illustration]:
    cache, names, count = statistics.cache, statistics.cache.names, len(statistics.cache.names)
    highest, total = float(np.log(cache.classes)), cache.num_views * cache.samples
    wrong = [  # the entropies of wrong predictions
        [values[classes != cache.labels] for values, classes in zip(*views, strict=True)]
        for views in zip(statistics.entropy, statistics.prediction, strict=True)
    ]

    figure = Figure(figsize=(_WIDTH, 1.0 + 1.3 * count))
    panels = figure.subplots(count, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    edges = np.linspace(0, highest, 51)
    for k, axes in enumerate(panels):
        counts = histogram(statistics.entropy[k], 50, highest)
        axes.stairs(counts / total, edges, fill=True, color=_COLORS[0], alpha=0.45, label="all views")
        counts = histogram(wrong[k], 50, highest)
        axes.stairs(counts / total, edges, color=_COLORS[1], linewidth=1.6, label="wrong predictions")
        axes.set(yscale="log", ylim=(0.5 / total, 1))  # one full bin hides the others on a linear scale
        _percent(axes)
        axes.set_title(_short(names[k]), loc="left")
    panels[0].legend()
    panels[-1].set_xlabel("entropy (nats)")
    figure.supylabel("fraction of views", fontsize="medium")
    caption = (
        "From 0 (certain) to ln C (uniform); the vertical scale is logarithmic. Wrong predictions of a well-calibrated "
        "teacher lie far to the right."
    )
    yield _finish(figure, "Entropy of each teacher", caption)

    figure = Figure(figsize=(_WIDTH, 4.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    middles = (np.arange(15) + 0.5) * highest / 15
    for k, name in enumerate(names):
        counts = histogram(statistics.entropy[k], 15, highest)
        errors = histogram(wrong[k], 15, highest)
        accuracy = np.where(counts >= _FEWEST_VIEWS, 1 - errors / np.maximum(counts, 1), np.nan)
        above.plot(middles, accuracy, label=_short(name), **_line(k))
        below.plot(middles, counts / total, **_line(k))
    above.set(ylim=(-0.03, 1.03), ylabel="top-1")
    below.set(ylabel="views", xlabel="entropy (nats)")
    _percent(above)
    _percent(below)
    above.legend()
    caption = (
        "Above: top-1 of the views in each entropy bin. A line that starts low means confident errors. Bins of fewer "
        f"than {_FEWEST_VIEWS} views are left out. Below: the fraction of views in each bin."
    )
    yield _finish(figure, "Accuracy by entropy", caption)

    if statistics.weights is not None and count > 1:
        weights = [histogram(of_teacher, 100, 1.0) / total for of_teacher in statistics.weights]
        figure = Figure(figsize=(_WIDTH, 3.4))
        axes = figure.subplots()
        axes.axvline(1 / count, color="black", linewidth=0.8)
        for k, name in enumerate(names):
            style = {key: value for key, value in _line(k).items() if not key.startswith("marker")}
            axes.stairs(weights[k], np.linspace(0, 1, 101), label=_short(name), **style)
        used = np.flatnonzero(np.sum(weights, axis=0))
        axes.set(xlim=(used[0] / 100 - 0.02, used[-1] / 100 + 0.03), xlabel="weight", ylabel="fraction of views")
        axes.set(yscale="log", ylim=(0.5 / total, 1))
        _percent(axes)
        axes.legend()
        yield _finish(figure, "Distribution of weights", f"The thin line is 1/{count}, equal weights.")


def _pairs(statistics: CacheStatistics) -> Iterator[Illustration]:
    """Entropy of one teacher against another, for the pairs that agree least."""
    names, same = statistics.cache.names, statistics.same_top1
    pairs = sorted(itertools.combinations(range(len(names)), 2), key=lambda pair: same[pair])
    for i, j in pairs[:MOST_PAIRS]:
        x, y = statistics.mean_entropy[i], statistics.mean_entropy[j]
        highest = float(max(x.max(), y.max(), 0.01))
        figure = Figure(figsize=(_WIDTH, 4.2))
        axes = figure.subplots()
        cells = axes.hexbin(x, y, gridsize=(26, 15), extent=(0, highest, 0, highest), mincnt=1, cmap="Blues")
        cells.set_norm(LogNorm(1, max(2.0, float(np.max(cells.get_array())))))  # type: ignore[arg-type]
        axes.plot((0, highest), (0, highest), color="black", linewidth=0.8)
        axes.set(xlabel=f"{_short(names[i])}: entropy (nats)", ylabel=f"{_short(names[j])}: entropy (nats)")
        axes.set_aspect("equal")
        figure.colorbar(cells, label="samples", format="%g").minorticks_off()
        caption = (
            "Samples by both teachers' entropy, averaged over views. Off the diagonal, one teacher is more certain. "
            f"They predict the same class in {same[i, j]:.1%} of views."
        )
        yield _finish(figure, f"{names[i]} and {names[j]}", caption)


def _class_maps(statistics: CacheStatistics) -> Iterator[Illustration]:
    """Heat maps (K, C) of entropy and errors."""
    entropy, top1 = by_class(statistics, statistics.mean_entropy), by_class(statistics, statistics.top1)
    known = np.flatnonzero(~np.isnan(entropy[0]))
    ranked = known[np.argsort(-entropy[:, known].mean(0), kind="stable")]
    caption = "Classes by mean entropy over the teachers, highest first."
    if len(ranked) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        caption += f" The {half} hardest and {half} easiest of {len(ranked)} classes."
        ranked = np.concatenate([ranked[:half], ranked[-half:]])
    class_names = [_short(statistics.cache.class_names[c]) for c in ranked]
    rotation = 90 if max(map(len, class_names)) > 2 else 0
    errors = f"{caption} Darker here than in the map of entropy: confident errors."
    for title, values, label, text in (
        ("Mean entropy by class", entropy, "nats", caption),
        ("Errors by class", 1 - top1, "1 - top-1", errors),
    ):
        figure = Figure(figsize=(max(5.6, 1.8 + 0.15 * len(ranked)), 1.8 + 0.3 * len(values)))
        axes = figure.subplots()
        axes.grid(visible=False)
        cells = axes.pcolormesh(values[:, ranked], cmap="Blues", vmin=0, edgecolors="white", linewidth=0.4)
        axes.set_xticks(np.arange(len(ranked)) + 0.5, class_names, rotation=rotation, fontsize="x-small")
        axes.set_yticks(np.arange(len(values)) + 0.5, list(map(_short, statistics.cache.names)))
        axes.invert_yaxis()
        figure.colorbar(cells, label=label)
        yield _finish(figure, title, text)


def run_figures(groups: Mapping[str, Curves]) -> list[Illustration]:
    """Accuracy, every loss term, and the teachers' weights by epoch; `groups` has the curves of each by name."""
    captions = {
        "test_top1": ("Test top-1", "Accuracy on the test images."),
        "validation_top1": ("Validation top-1", "Accuracy on the validation images."),
        "train_top1": ("Train top-1", "Accuracy on the training views, while the student learns."),
    }
    terms = dict.fromkeys(key for curves in groups.values() for key in curves if key.startswith("losses."))
    for key in sorted(terms, key=lambda key: key != "losses.loss"):
        term = key.removeprefix("losses.")
        captions[key] = (term, f"Training loss: {_TERMS.get(term, 'unweighted')}.")
    effective = "Exp of the weights' entropy: 1 if one teacher has all the weight, K if all weights are equal."
    captions["effective_teachers"] = ("Effective number of teachers", effective)
    figures: list[tuple[str, str, Curves, list[str]]] = []
    for key, (title, caption) in captions.items():
        figures.append((title, caption, _of_groups(groups, key), list(groups)))
    for name, curves in groups.items():
        weights = {key.removeprefix("weights."): value for key, value in curves.items() if key.startswith("weights.")}
        if len(weights) > 1:
            caption = "Mean weight of each teacher over the samples."
            figures.append((f"Teacher weights: {name}", caption, weights, list(weights)))
    found = []
    with _own_style():
        for title, caption, lines, names in figures:
            if lines:
                figure = Figure(figsize=(_WIDTH, 2.9 + 0.16 * len(lines)))
                _draw_lines(figure.subplots(), lines, names, percent="top-1" in title)
                found.append(_finish(figure, title, caption))
    return found


def _of_groups(groups: Mapping[str, Curves], key: str) -> Curves:
    return {name: curves[key] for name, curves in groups.items() if key in curves}


def _draw_lines(axes: Axes, lines: Curves, names: Sequence[str], *, percent: bool) -> None:
    """Means by epoch, and bands of one standard deviation for two seeds or more; the style is by place in `names`."""
    for name, values in lines.items():
        epochs, mean, style = range(1, values.shape[1] + 1), values.mean(0), _line(names.index(name))
        axes.plot(epochs, mean, label=_short(name, 60), markevery=max(1, len(epochs) // 12), **style)
        if len(values) > 1:
            std = values.std(0, ddof=1)
            axes.fill_between(epochs, mean - std, mean + std, color=style["color"], alpha=0.16, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if percent:
        _percent(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2))


def accuracy_plot(groups: Mapping[str, Curves], file_format: str) -> bytes:
    """Top-1 by epoch, of the test images or else the validation images, as SVG or PNG."""
    with _own_style():
        figure = Figure(figsize=(7.5, 4.2 + 0.25 * len(groups)))
        axes = figure.subplots()
        split = "test" if all("test_top1" in curves for curves in groups.values()) else "validation"
        _draw_lines(axes, _of_groups(groups, f"{split}_top1"), list(groups), percent=True)
        axes.set_ylabel(f"{split} top-1 (mean ± std over seeds)")
        return _content(figure, file_format)


def _finish(figure: Figure, title: str, caption: str) -> Illustration:
    image = f"data:image/svg+xml;base64,{base64.b64encode(_content(figure, 'svg')).decode()}"
    width = round(72 * figure.get_figwidth())
    return {"title": title, "image": image, "caption": caption, "alt": f"{title}. {caption}", "width": width}


def _content(figure: Figure, file_format: str) -> bytes:
    content = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if file_format == "svg" else {"Software": None}
    figure.savefig(content, format=file_format, dpi=160, metadata=metadata)
    return content.getvalue()


@contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.style.use("default")
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a browser has more fonts
        yield


def _line(number: int) -> dict[str, Any]:
    """The style of the n-th line: color, dashes and marker each identify it."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _DASHES[(number + number // len(_COLORS)) % len(_DASHES)],
        "linewidth": 1.6,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
    }


def _percent(axes: Axes) -> None:
    logarithmic = axes.get_yscale() == "log"
    axes.yaxis.set_major_formatter((lambda value, _: f"{100 * value:g}%") if logarithmic else PercentFormatter(xmax=1))


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name without what XML cannot hold, and not too long."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
