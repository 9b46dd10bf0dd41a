"""The figures of the runs' page, and the plot of accuracy against epoch in a file of its own."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from demkd.report.curves import BAND, Curve, GroupCurves
from demkd.report.figures import (
    HEIGHT,
    INK,
    WIDTH,
    Illustration,
    LegendEntry,
    drawing,
    illustrate,
    one_axes,
    printable,
    series,
    short,
)

MOST_LINES = 10
_MARKED_EPOCHS = 12
_EVEN = 1e-6
_TERMS = {
    "loss": ("Loss", "weighted sum", "The training loss; its terms depend on the method."),
    "label_loss": ("Label loss", "nats", "Cross-entropy with the label."),
    "kd_loss": ("Distillation loss", "nats x T²", "Divergence from the teachers' softened logits, unweighted."),
    "target_class_kd": ("Target-class loss", "nats x T²", "TCKD: binary KL of the target class, unweighted."),
    "non_target_class_kd": ("Non-target-class loss", "nats x T²", "NCKD: KL over the other classes, unweighted."),
    "hint_loss": (
        "Hint loss",
        "squared distance",
        "Between the student's adapted features and the teachers', unweighted.",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve with its place in the legend."""

    name: str
    number: int
    curve: Curve


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Means as lines and bands around them, over epochs from 1."""
    for line in lines:
        look = series(line.number)
        epochs = range(1, len(line.curve.mean) + 1)
        if line.curve.low is not None and line.curve.high is not None:
            axes.fill_between(epochs, line.curve.low, line.curve.high, color=look.colour, alpha=0.16, linewidth=0)
        axes.plot(
            epochs,
            line.curve.mean,
            color=look.colour,
            linestyle=look.line_style,
            linewidth=1.6,
            marker=look.marker,
            markersize=4,
            markevery=max(1, len(epochs) // _MARKED_EPOCHS),
            label=printable(line.name),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def chosen_groups(groups: Sequence[GroupCurves], baseline: str | None) -> tuple[list[GroupCurves], str]:
    """The groups that figures show, and a sentence if those are not all."""
    if len(groups) <= MOST_LINES:
        return list(groups), ""
    ranked = sorted(groups, key=lambda group: (group.name != baseline, -group.test_top1.mean[-1]))
    kept = {group.name for group in ranked[:MOST_LINES]}
    also = "the baseline and " if baseline else ""
    text = f"Figures show {MOST_LINES} of {len(groups)} groups: {also}those with the best last top-1."
    return [group for group in groups if group.name in kept], text


def accuracy_figures(groups: Sequence[GroupCurves]) -> list[Illustration]:
    """Test top-1, and train top-1 where it is known."""
    test = _lines(groups, lambda group: group.test_top1)
    train = _lines(groups, lambda group: group.train_top1)
    figures = [
        _figure(
            "test-top1", "Test top-1", test, y="test top-1", percent=True, text="Share of the test pictures right."
        ),
    ]
    if train:
        text = "Share of the epoch's training views right, while the student was learning: a low estimate."
        figures.append(_figure("train-top1", "Train top-1", train, y="train top-1", percent=True, text=text))
    return figures


def loss_figures(groups: Sequence[GroupCurves]) -> list[Illustration]:
    """A figure for every term that any group has, the whole loss first."""
    terms = list(dict.fromkeys(term for group in groups for term in group.losses))
    terms.sort(key=lambda term: list(_TERMS).index(term) if term in _TERMS else len(_TERMS))
    figures = []
    for number, term in enumerate(terms):
        lines = _lines(groups, lambda group, term=term: group.losses.get(term))  # type: ignore[misc]
        title, unit, text = _TERMS.get(term, (term, "unweighted", ""))
        figures.append(_figure(f"loss-{number}", title, lines, y=f"{short(term)} ({unit})", text=text))
    return figures


def weight_figures(groups: Sequence[GroupCurves]) -> tuple[list[Illustration], list[str]]:
    """Mean weights of the teachers, a figure a group, and the effective number of teachers.

    Returns:
        the figures, and the names of the groups that weigh all teachers alike, which need none.
    """
    taught = [group for group in groups if group.weights]
    alike = [group.name for group in taught if _is_even(group.weights)]
    weighing = [group for group in taught if group.name not in alike]
    teachers = sorted({teacher for group in weighing for teacher in group.weights})
    figures = [_weights_of(group, number, teachers) for number, group in enumerate(weighing)]
    lines = [line for line in _lines(groups, lambda group: group.effective_teachers) if line.name not in alike]
    if lines:
        most = max(len(group.weights) for group in weighing)
        text = (
            "Exp of the weights' entropy, mean over samples: 1 if one teacher rules, their number if all weigh alike."
        )
        title, limits = "Effective number of teachers", (1.0, most + 0.05)
        figures.append(_figure("effective", title, lines, y="effective teachers", text=text, limits=limits))
    return figures, alike


def accuracy_file(groups: Sequence[GroupCurves], *, file_format: str) -> bytes:
    """Test top-1 against epoch, as SVG or PNG on white with its legend."""
    content = io.BytesIO()
    with drawing("accuracy"):
        figure = Figure(figsize=(7.5, 4.2 + 0.22 * len(groups)), facecolor="white")
        axes = one_axes(figure, x="epoch", y="test top-1")
        draw_lines(axes, _lines(groups, lambda group: group.test_top1))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.set_title("Test top-1 by epoch")
        figure.legend(
            loc="outside lower left",
            handlelength=3.4,
            title=BAND.replace("; a", ";\na"),
            title_fontsize=8,
            alignment="left",
        )
        software = {"Date": None} if file_format == "svg" else {"Software": None}
        figure.savefig(content, format=file_format, dpi=160, metadata=software)
    return content.getvalue()


def _lines(groups: Sequence[GroupCurves], curve_of: Callable[[GroupCurves], Curve | None]) -> list[Line]:
    curves = [(number, group.name, curve_of(group)) for number, group in enumerate(groups)]
    return [Line(name=name, number=number, curve=curve) for number, name, curve in curves if curve is not None]


def _weights_of(group: GroupCurves, number: int, teachers: Sequence[str]) -> Illustration:
    lines = [Line(name=who, number=teachers.index(who), curve=curve) for who, curve in group.weights.items()]
    text = f"Mean weight of each teacher over the samples; the thin line is 1/{len(lines)}, all alike."
    level = 1 / len(lines)
    highest = max(max(line.curve.high or line.curve.mean) for line in lines)
    title, limits = f"Weights: {group.name}", (0.0, 1.15 * highest)
    return _figure(f"weights-{number}", title, lines, y="mean weight", text=text, limits=limits, level=level)


def _figure(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    y: str,
    text: str,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
    level: float | None = None,
) -> Illustration:
    def draw(figure: Figure) -> None:
        axes = one_axes(figure, x="epoch", y=y)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.8)
        draw_lines(axes, lines)
        if limits:
            axes.set_ylim(*limits)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))

    def shown(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.3g}"

    ends = "; ".join(f"{line.name} from {shown(line.curve.mean[0])} to {shown(line.curve.mean[-1])}" for line in lines)
    return illustrate(
        draw,
        key=key,
        title=title,
        caption=text,
        description=f"{title} by epoch, from the first to the last: {ends}",
        entries=tuple(LegendEntry(text=line.name, series=series(line.number)) for line in lines),
        size=(WIDTH, HEIGHT),
    )


def _is_even(weights: Mapping[str, Curve]) -> bool:
    return all(abs(value - 1 / len(weights)) < _EVEN for curve in weights.values() for value in curve.mean)
