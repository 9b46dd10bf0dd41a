"""What each teacher adds, as `ablate` shows it."""

import sys
from collections.abc import Sequence

from demkd.console.fitting import Column, fitted, words
from demkd.console.output import show_csv, stdout, write_markdown
from demkd.report.ablation import Ablation, TeacherValue
from demkd.report.comparison_text import interval_text, percent
from demkd.report.pairs import Difference
from demkd.report.rows import ablation_rows

_EXPLAINED = (
    "in points of top-1 in the last epoch, paired by seed; to all others: all teachers against all but it; on average: "
    "over the sets of every size that it may join; corrected for all teachers at once (Holm)"
)


def show_ablation(ablation: Ablation, *, form: str) -> None:
    """A line a teacher, then a line a set: as tables of text or Markdown, or the first as CSV, for programs."""
    if form == "csv":
        show_csv(ablation_rows(ablation))
        return
    headings = ["teacher", "alone\ntop-1 %", "adds to\nall others", "95 %\ninterval", "corrected"]
    headings += ["adds on\naverage", "95 %\ninterval", "corrected", "seeds"]
    rows = [_cells(teacher) for teacher in ablation.teachers]
    sets = [
        [", ".join(one.teachers), str(len(one.seeds)), percent(one.last, one.last_std), percent(one.best, one.best_std)]
        for one in ablation.sets
    ]
    set_headings = ["students of", "seeds", "last top-1 %", "best top-1 %"]
    if form == "markdown":
        write_markdown([heading.replace("\n", " ") for heading in headings], rows)
        sys.stdout.write("\n")
        write_markdown(set_headings, sets)
        return
    _print(headings, rows, ranks=(0, 4, 0, 2, 3, 1, 2, 3, 5))
    stdout().print(f"[dim]{_EXPLAINED}[/]\n")
    _print(set_headings, sets, ranks=(0, 1, 0, 0))


def _cells(teacher: TeacherValue) -> list[str]:
    seeds = next((one.seeds for one in (teacher.average, teacher.last_in) if one), 0)
    alone = "" if teacher.alone is None else percent(teacher.alone, None)
    return [teacher.name, alone, *_gained(teacher.last_in), *_gained(teacher.average), str(seeds)]


def _gained(one: Difference | None) -> tuple[str, str, str]:
    """Mean, interval, corrected interval."""
    if one is None:
        return "", "", ""
    return f"{100 * one.mean:+.2f}", interval_text(one.low, one.high), interval_text(one.holm_low, one.holm_high)


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]], *, ranks: Sequence[int]) -> None:
    columns = [
        Column(heading, [words(cell) for cell in cells], rank=rank, words=place == 0)
        for place, (heading, cells, rank) in enumerate(zip(headings, zip(*rows, strict=True), ranks, strict=True))
    ]
    console = stdout()
    console.print(fitted(console, columns, more="--format json has it"))
