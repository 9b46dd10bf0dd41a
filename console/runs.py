"""What came of runs: one, several compared, the demo's."""

import sys
from collections.abc import Iterator, Sequence

from demkd.console.cache_results import show_caching
from demkd.console.fitting import Column, fitted, words
from demkd.console.output import counted, decimal_bytes, escape, plain_table, show_csv, stdout, write_markdown
from demkd.pipeline.results import DemoReport, EvaluationReport, RunReport
from demkd.report.comparison import Comparison, Group
from demkd.report.comparison_text import HEADINGS, NO_PAIRS, difference_texts, percent
from demkd.report.rows import comparison_rows, seed_rows


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


def show_comparison(comparison: Comparison, *, form: str, seeds: bool = False) -> None:
    """Groups of runs: as a table of text or Markdown, the best mean in bold, or as CSV, for programs.

    Args:
        seeds: show every run too; as CSV, a row a run instead of a row a group.
    """
    if form == "csv":
        show_csv(seed_rows(comparison) if seeds else comparison_rows(comparison))
        return
    rows = [_comparison_cells(group, comparison.baseline) for group in comparison.groups]
    best = max(range(len(rows)), key=lambda position: comparison.groups[position].last)
    show = _write_markdown if form == "markdown" else _print_comparison
    show(comparison, rows, best=best)
    if seeds:
        (_write_seeds if form == "markdown" else _print_seeds)(comparison)


def _seed_cells(comparison: Comparison) -> list[list[str]]:
    """A line a run: its group, its seed, last and best."""
    return [
        [group.name, str(seed), percent(last, None), percent(best, None)]
        for group in comparison.groups
        for seed, last, best in zip(group.seeds, group.last_by_seed, group.best_by_seed, strict=True)
    ]


def _write_seeds(comparison: Comparison) -> None:
    sys.stdout.write("\n")
    write_markdown(["runs", "seed", "last top-1 %", "best top-1 %"], _seed_cells(comparison))


def _print_seeds(comparison: Comparison) -> None:
    table = plain_table(left=("runs",), right=("seed", "last top-1 %", "best top-1 %"))
    for row in _seed_cells(comparison):
        table.add_row(*map(escape, row))
    stdout().print(table)


def _write_markdown(comparison: Comparison, rows: Sequence[Sequence[str]], *, best: int) -> None:
    headings = ["runs", "seeds", "last top-1 %", "best top-1 %"]
    if comparison.baseline:
        headings += [f"against {comparison.baseline}", *HEADINGS]
    shown = [[f"**{cell}**" if i == best and cell else cell for cell in row] for i, row in enumerate(rows)]
    write_markdown(headings, shown)


def _print_comparison(comparison: Comparison, rows: Sequence[Sequence[str]], *, best: int) -> None:
    headings = [("runs", 0), ("seeds", 2), ("last\ntop-1 %", 0), ("best\ntop-1 %", 5)]
    if comparison.baseline:
        headings += [("differ-\nence", 0), ("pairs", 2), ("95 %\ninterval", 1), ("corrected", 3), ("p", 5)]
        headings += [("detect-\nable", 6), ("seeds for\n1 point", 4), ("difference\nof best", 7)]
    styled = [[words(cell, "bold" if place == best else "") for cell in row] for place, row in enumerate(rows)]
    columns = [
        Column(
            heading,
            cells,
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
            "corrected: the interval, and p, for all comparisons at once (Holm); detectable: the least that so many "
            "pairs could tell from none; seeds for 1 point: that would find a true one in four of five cases[/]"
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
        return [*cells, *([""] * len(NO_PAIRS) if group.name == baseline else NO_PAIRS)]
    return [*cells, *difference_texts(group.difference, group.best_difference)]


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
    for word, text in _what_it_was(report):
        console.print(f"[bold]{word}[/] {text}", soft_wrap=True)


def _what_it_was(report: DemoReport) -> Iterator[tuple[str, str]]:
    """What was shown, what it means, and what to do next: five lines."""
    caching, folder = report.caching, escape(str(report.folder))
    yield (
        "Shown:",
        f"{len(report.teachers)} teachers answered {caching.views} views of {caching.samples:,} digits once; one "
        f"student then learnt in {len(report.students)} ways, in {report.seconds:.0f} s.",
    )
    yield (
        "Cost: ",
        f"{report.cached_passes} teacher passes, {report.caching_seconds:.1f} s and "
        f"{decimal_bytes(report.cache_bytes)}; with live teachers these students would have cost {report.live_passes}.",
    )
    yield (
        "Means:",
        "the next student, seed or method costs no teacher at all; a few test pictures between methods are chance.",
    )
    yield (
        "Look: ",
        f"demkd inspect {folder}/cache, demkd evaluate {folder}/student-de-mkd --data digits",
    )
    yield (
        "Yours:",
        "demkd cache-teachers --data FOLDER --teacher NETWORK@CHECKPOINT --out runs/cache (docs/tutorial.md)",
    )
