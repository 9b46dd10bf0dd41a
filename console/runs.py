"""What came of runs: one, several compared, the demo's."""

import sys
from collections.abc import Sequence

from rich.markup import escape

from demkd.console.cache_results import show_caching
from demkd.console.fitting import Column, fitted, words
from demkd.console.output import counted, decimal_bytes, plain_table, show_csv, stdout
from demkd.pipeline.results import DemoReport, EvaluationReport, RunReport
from demkd.report.comparison import Comparison, Group
from demkd.report.comparison_text import NO_PAIRS, difference_texts, percent
from demkd.report.rows import comparison_rows


def show_run(report: RunReport) -> None:
    """What a run came to."""
    stdout().print(
        f"{report.network}, {report.method}, seed {report.seed}: test top-1 [bold]{report.test_top1:.2%}[/] "
        f"({round(report.test_top1 * report.test_samples)} of {report.test_samples}) after "
        f"{counted(report.epochs, 'epoch', 'epochs')}; "
        f"best {report.best_top1:.2%} in epoch {report.best_epoch}; {report.seconds:.1f} s of training; "
        f"{escape(str(report.folder))}",
        soft_wrap=True,
    )


def show_evaluation(report: EvaluationReport) -> None:
    """How good a network is."""
    stdout().print(
        f"{report.network} in {escape(str(report.folder))}: top-1 [bold]{report.top1:.2%}[/], top-5 {report.top5:.2%} "
        f"of {report.samples:,} test pictures",
        soft_wrap=True,
    )


def show_comparison(comparison: Comparison, *, form: str) -> None:
    """Groups of runs: as a table of text or Markdown, the best mean in bold, or as CSV, for programs."""
    if form == "csv":
        show_csv(comparison_rows(comparison))
        return
    rows = [_comparison_cells(group, comparison.baseline) for group in comparison.groups]
    best = max(range(len(rows)), key=lambda position: comparison.groups[position].last)
    show = _write_markdown if form == "markdown" else _print_comparison
    show(comparison, rows, best=best)


def _write_markdown(comparison: Comparison, rows: Sequence[Sequence[str]], *, best: int) -> None:
    headings = ["runs", "seeds", "last top-1 %", "best top-1 %"]
    if comparison.baseline:
        headings += [f"against {comparison.baseline}", "pairs", "95 % interval", "detectable"]
    shown = [[f"**{cell}**" if i == best and cell else cell for cell in row] for i, row in enumerate(rows)]
    for line in (headings, ["---"] * len(headings), *shown):
        sys.stdout.write(f"| {' | '.join(line)} |\n")


def _print_comparison(comparison: Comparison, rows: Sequence[Sequence[str]], *, best: int) -> None:
    headings = [("runs", 0), ("seeds", 2), ("last\ntop-1 %", 0), ("best\ntop-1 %", 4)]
    if comparison.baseline:
        headings += [("differ-\nence", 0), ("pairs", 2), ("95 %\ninterval", 1), ("detect-\nable", 3)]
    styled = [[words(cell, "bold" if place == best else "") for cell in row] for place, row in enumerate(rows)]
    columns = [
        Column(
            heading=heading,
            cells=cells,
            rank=rank,
            words=heading == "runs",
            least=24,
            name=heading.replace("-\n", "").replace("\n", " "),
        )
        for (heading, rank), cells in zip(headings, zip(*styled, strict=True), strict=True)
    ]
    console = stdout()
    console.print(fitted(console, columns, more="--format json has it"))
    if comparison.baseline:
        console.print(
            f"[dim]differences to {escape(comparison.baseline)} in top-1 points, over the seeds that both have; "
            "detectable: the least that so many pairs could tell from none[/]"
        )


def _comparison_cells(group: Group, baseline: str | None) -> list[str]:
    cells = [
        group.name,
        str(len(group.seeds)),
        percent(group.last, group.last_std),
        percent(group.best, group.best_std),
    ]
    if baseline is None:
        return cells
    if group.difference is None:
        return [*cells, *([""] * 4 if group.name == baseline else NO_PAIRS)]
    return [*cells, *difference_texts(group.difference)]


def show_demo(report: DemoReport) -> None:
    """Teachers, students, and what the cache cost and saved."""
    console = stdout()
    show_caching(report.caching)
    table = plain_table(left=("", "network"), right=("top-1", "right", "training"))
    for name, top1 in report.teachers.items():
        table.add_row("teacher", name, f"{top1:.2%}", str(round(top1 * report.test_samples)), "")
    table.add_section()
    for run in report.students:
        who = "student alone" if run.method == "ce" else f"student, {run.method}"
        right = str(round(run.test_top1 * report.test_samples))
        table.add_row(who, run.network, f"{run.test_top1:.2%}", right, f"{run.seconds:.1f} s")
    console.print(table)
    console.print(f"[dim]of {report.test_samples} test pictures; one is {1 / report.test_samples:.2%}[/]")
    cost = (
        f"{report.cached_passes} teacher passes, {report.caching_seconds:.1f} s and {decimal_bytes(report.cache_bytes)}"
    )
    console.print(
        f"The cache cost {cost}. With live teachers, these students would have cost {report.live_passes} passes; from "
        f"the cache they cost none, and neither does the next one. All of this took {report.seconds:.0f} s."
    )
    folder = escape(str(report.folder))
    console.print(
        f"[dim]Look closer: demkd inspect {folder}/cache, demkd evaluate {folder}/student-de-mkd --data digits[/]"
    )
