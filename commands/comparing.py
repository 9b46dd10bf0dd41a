"""Several runs: compare and sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from demkd.commands.options import FILE, FOLDER, quiet_option
from demkd.commands.sections import SectionedCommand
from demkd.commands.stages import distill
from demkd.commands.values import choose_progress, key_of

if TYPE_CHECKING:
    from demkd.pipeline.sweeping import SweepOption
    from demkd.report.comparison import FinishedRun

_recipe_argument = click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
_out_option = click.option("--out", required=True, type=FOLDER, help="Folder of the runs. Finished runs are kept.")
_format_option = click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
_seeds_option = click.option("--seeds", is_flag=True, help="Show every run: last and best top-1.")


@click.command(cls=SectionedCommand)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--baseline", metavar="GROUP", help="Group to compare with: its name, or one of its run folders.")
@_format_option
@_seeds_option
@click.option("--html", type=FILE, help="Write an HTML report.")
@click.option("--plot", type=FILE, metavar="FILE.svg|png", help="Plot test top-1 by epoch.")
def compare(runs: tuple[Path, ...], baseline: str | None, **shown: Any) -> None:
    """Compare finished RUNS: means over seeds, and paired differences to a baseline.

    \b
    Example:
        demkd compare runs/sweep/* --baseline runs/sweep/kd-seed0 --html runs.html
    """
    from demkd.report.comparison import read_run

    _show([read_run(folder) for folder in runs], baseline, **shown)


@click.command(cls=SectionedCommand)
@_recipe_argument
@_out_option
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Number of parallel processes.")
@click.option(
    "--together",
    default=1,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="Runs per process, which decode each photo once; they need equal data, views, batch size and order.",
)
@click.option("--leave-one-out", is_flag=True, help="Also train without each teacher.")
@click.option("--baseline", metavar="NAME", help="Group to compare with, or NAME of a table [runs.NAME].")
@_format_option
@_seeds_option
@quiet_option
def sweep(
    recipe: Path,
    out: Path,
    jobs: int,
    together: int,
    leave_one_out: bool,
    baseline: str | None,
    form: str,
    seeds: bool,
    quiet: bool,
) -> None:
    """Run every combination of RECIPE's options that is missing, then compare them all.

    \b
    Example:
        demkd sweep recipes/digits-sweep.toml --out runs/sweep
    """
    from demkd.pipeline.sweeping import find_baseline, plan_sweep, run_sweep
    from demkd.report.comparison import first_of_equal_runs, read_run

    runs = plan_sweep(recipe, out, sweep_options(distill), leave_one_out=leave_one_out)
    base = None if baseline is None else find_baseline(runs, baseline)
    progress = choose_progress(quiet)
    run_sweep(runs, jobs=jobs, together=together, progress=progress)
    shown = first_of_equal_runs([read_run(run.folder) for run in runs])
    same = [f"{folder} and {run.folder}" for folder, run in shown.items() if folder != run.folder]
    if same:
        progress.warn(f"these runs turned out to be the same, and are shown once: {'; '.join(same)}")
    distinct = [run for folder, run in shown.items() if folder == run.folder]
    _show(distinct, baseline if base is None else str(shown[base.folder].folder), form=form, seeds=seeds)


def sweep_options(command: click.Command) -> "dict[str, SweepOption]":
    """The options of a command, as a sweep gives them."""
    from demkd.pipeline.sweeping import SweepOption

    return {
        key_of(option): SweepOption(
            flag=option.opts[0],
            switch=option.is_flag,
            off=option.secondary_opts[0] if option.secondary_opts else None,
            repeatable=option.multiple,
        )
        for option in command.params
        if isinstance(option, click.Option)
    }


def _show(
    runs: Sequence["FinishedRun"],
    baseline: str | None,
    *,
    form: str,
    seeds: bool,
    html: Path | None = None,
    plot: Path | None = None,
) -> None:
    from demkd import console
    from demkd.report import pages
    from demkd.report.comparison import compare_runs

    comparison = compare_runs(runs, baseline=baseline)
    if html is not None:
        console.show_written(pages.write_runs_page(runs, comparison, html), aside=True)
    if plot is not None:
        console.show_written(pages.write_accuracy_plot(runs, comparison, plot), aside=True)
    if form == "json":
        console.show_json(comparison)
    else:
        console.show_comparison(comparison, form=form, seeds=seeds)
