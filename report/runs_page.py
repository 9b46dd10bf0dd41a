"""The runs' page: the table of `compare`, and accuracy, losses and teachers' weights by epoch."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from demkd.report.comparison import DIGEST, Comparison, FinishedRun, Group
from demkd.report.comparison_text import HEADINGS, difference_texts, percent
from demkd.report.curves import BAND, group_curves
from demkd.report.rendering import render
from demkd.report.run_figures import accuracy_figures, chosen_groups, loss_figures, weight_figures
from demkd.report.tables import Cell, Column, Table, number, share, word


def runs_page(runs: Sequence[FinishedRun], comparison: Comparison) -> str:
    """The page of these runs and their comparison, as HTML."""
    groups, left_out = chosen_groups(group_curves(runs, comparison), comparison.baseline)
    weights, alike = weight_figures(groups)
    shared, differing = _split_choices(runs)
    return render(
        "runs.html.j2",
        title="Comparison of runs",
        runs=len(runs),
        groups=len(comparison.groups),
        shared=shared,
        final=_final_table(comparison),
        table_of_runs=_table_of_runs(runs, differing),
        accuracy=accuracy_figures(groups),
        losses=loss_figures(groups),
        weights=weights,
        alike=alike,
        left_out=left_out,
        band=BAND,
    )


def _final_table(comparison: Comparison) -> Table:
    columns = [Column(text="runs", numeric=False), Column(text="seeds"), Column(text="last top-1")]
    columns += [Column(text="best top-1")]
    if comparison.baseline:
        columns += [Column(text=text) for text in ("difference", *HEADINGS)]
    best = max(comparison.groups, key=lambda group: group.last)
    caption = "Last epoch and best epoch: mean ± standard deviation over seeds. ★ marks the best mean."
    if comparison.baseline:
        caption += (
            f" Differences to {comparison.baseline}: percentage points in the last epoch, paired by seed. An interval "
            "that contains 0 shows no difference; half its width is the smallest difference that these seeds can "
            "show. Holm: interval and p corrected for all comparisons. Seeds for a point: seeds that detect a true "
            "difference of one point with power 0.8."
        )
    rows = [_final_row(group, best=group is best, baseline=comparison.baseline) for group in comparison.groups]
    return Table(key="final", title="Test top-1", caption=caption, columns=columns, rows=rows)


def _final_row(group: Group, *, best: bool, baseline: str | None) -> list[Cell]:
    cells = [
        Cell(text=f"{group.name} ★" if best else group.name, strong=best),
        number(len(group.seeds), "seeds", form="d"),
        Cell(text=f"{percent(group.last, group.last_std)}%", value=group.last, name="last"),
        Cell(text=f"{percent(group.best, group.best_std)}%", value=group.best, name="best"),
    ]
    if baseline is None:
        return cells
    return [*cells, *_difference_cells(group, is_baseline=group.name == baseline)]


def _difference_cells(group: Group, *, is_baseline: bool) -> list[Cell]:
    difference, best = group.difference, group.best_difference
    if difference is None:
        return [Cell(text="baseline" if is_baseline else "no common seed"), *[number(None)] * len(HEADINGS)]
    values = {
        "difference": difference.mean,
        "pairs": difference.seeds,
        "low": difference.low,
        "holm_low": difference.holm_low,
        "holm_p": difference.holm_p,
        "detectable": difference.detectable,
        "seeds_for_a_point": difference.seeds_for_a_point,
        "best_difference": None if best is None else best.mean,
    }
    texts = difference_texts(difference, best)
    return [
        Cell(text=text or "-", value=value, name=name)
        for text, (name, value) in zip(texts, values.items(), strict=True)
    ]


def _split_choices(runs: Sequence[FinishedRun]) -> tuple[dict[str, str], list[str]]:
    """What all runs chose alike, and the names of the other choices."""
    names = list(dict.fromkeys(name for run in runs for name in run.choices))
    values = {name: {json.dumps(run.choices[name]) for run in runs if name in run.choices} for name in names}
    everywhere = {name for name in names if all(name in run.choices for run in runs)}
    shared = {name: _in_words(runs[0].choices[name]) for name in names if name in everywhere and len(values[name]) == 1}
    # A digest that only some runs have is that of a teacher, and `teachers` says it better.
    told = [name for name in names if name not in shared and (len(values[name]) > 1 or not name.startswith(DIGEST))]
    return shared, told


def _table_of_runs(runs: Sequence[FinishedRun], differing: Sequence[str]) -> Table:
    columns = [Column(text="run", numeric=False), Column(text="seed"), Column(text="last top-1")]
    columns += [Column(text="best top-1"), Column(text="best epoch")]
    columns += [Column(text=name, numeric=_is_numeric(runs, name)) for name in differing]
    rows = [
        [
            word(run.folder),
            number(run.seed, "seed", form="d"),
            share(run.last, "last"),
            share(run.best, "best"),
            number(1 + run.top1.index(run.best), "best_epoch", form="d"),
            *(_choice_cell(run.choices, name) for name in differing),
        ]
        for run in runs
    ]
    caption = "Every run, with the options in which the runs differ."
    return Table(key="runs", title="Runs", caption=caption, columns=columns, rows=rows, tall=True)


def _is_numeric(runs: Sequence[FinishedRun], name: str) -> bool:
    return all(_is_number(run.choices[name]) for run in runs if name in run.choices)


def _choice_cell(choices: Mapping[str, Any], name: str) -> Cell:
    if name not in choices:
        return word("-")
    value = choices[name]
    return Cell(text=_in_words(value), value=float(value) if _is_number(value) else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
