"""One sample, as `inspect --sample` shows it: the picture, the teachers' likeliest classes, and their views."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from demkd.console.bars import value_bars
from demkd.console.fitting import Column, fitted, number_text, share, words
from demkd.console.output import stdout
from demkd.console.picture import draw, explain
from demkd.report.single_sample import SampleSummary, SampleViews

_LONGEST_BARS = 60


def show_sample(sample: SampleSummary, picture: NDArray[Any] | None) -> None:
    """What every teacher says about one sample, under its picture (H, W, 3), uint8, if there is one."""
    console = stdout()
    slot = f", slot {sample.slot} (view {sample.view})"
    console.print(Text.assemble("sample ", (str(sample.index), "bold"), ", label ", words(sample.label, "bold"), slot))
    _show_picture(console, picture)
    columns = [
        Column("teacher", [answer.name for answer in sample.answers], words=True),
        Column(
            "likeliest classes",
            [_answers(answer.classes, answer.probabilities, sample.label) for answer in sample.answers],
            words=True,
        ),
        Column("entropy", [f"{answer.entropy:.3f}" for answer in sample.answers]),
        Column("weight", [number_text(answer.weight) for answer in sample.answers], rank=1),
    ]
    console.print(fitted(console, columns))
    if len(sample.views.rows) > 1:
        _show_changes(console, sample.views)


def _show_picture(console: Console, picture: NDArray[Any] | None) -> None:
    if picture is None:
        console.print(Text("--data DATA draws the picture", style="dim"))
        return
    for line in draw(console, picture):
        console.print(line, no_wrap=True, overflow="crop", soft_wrap=True)
    if note := explain(console):
        console.print(Text(note, style="dim"))


def _answers(classes: Sequence[str], probabilities: Sequence[float], label: str) -> Text:
    """`orange 55.3%, apple 30.6%`; the label in bold."""
    pairs = [
        Text.assemble(words(name, "bold" if name == label else ""), f" {probability:.1%}")
        for name, probability in zip(classes, probabilities, strict=True)
    ]
    return Text(", ").join(pairs)


def _show_changes(console: Console, views: SampleViews) -> None:
    """Entropy and weight over the slots: how far they reach, and a line of bars."""
    said = [[row.teachers[position] for row in views.rows] for position in range(len(views.teachers))]
    curves: list[tuple[str, str, list[float], str]] = []
    for name, answers in zip(views.teachers, said, strict=True):
        right = share(fmean(answer.right for answer in answers))
        curves.append((name, "entropy", [answer.entropy for answer in answers], right))
        weights = [answer.weight for answer in answers if answer.weight is not None]
        if weights:
            curves.append(("", "weight", weights, ""))
    highest = {kind: max(max(values) for _, other, values, _ in curves if other == kind) for _, kind, _, _ in curves}
    width = _LONGEST_BARS if console.width >= 110 else 20
    columns = [
        Column("teacher", [name for name, _, _, _ in curves], words=True),
        Column("", [kind for _, kind, _, _ in curves], left=True),
        Column("lowest", [f"{min(values):.3f}" for _, _, values, _ in curves], rank=1),
        Column("mean", [f"{fmean(values):.3f}" for _, _, values, _ in curves]),
        Column("highest", [f"{max(values):.3f}" for _, _, values, _ in curves], rank=1),
        Column(
            f"slots 0 to {len(views.rows) - 1}",
            [Text(value_bars(console, values, highest=highest[kind], width=width)) for _, kind, values, _ in curves],
            rank=2,
            left=True,
        ),
        Column("right", [right for _, _, _, right in curves], rank=3),
    ]
    console.print(fitted(console, columns))
    console.print(Text("bars from 0 to the highest of all teachers; --views lists every slot", style="dim"))
