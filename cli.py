"""The commands: options in, one stage called, errors out. Stages are imported when they are called, not for --help."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from demkd.errors import UserError
from demkd.options import (
    FILE,
    FOLDER,
    METHOD_NUMBERS,
    choose_compute,
    choose_progress,
    chosen_training,
    compute_options,
    data_option,
    input_size_option,
    inspection_options,
    method_options,
    names,
    normalise_option,
    numbers,
    output_options,
    recipe_option,
    refuse_code_of_recipe,
    require_one_inspection,
    sweep_options,
    training_options,
    views_or_random,
)
from demkd.pipeline import defaults
from demkd.pipeline.methods import CHOICES

if TYPE_CHECKING:
    from demkd.cache import Cache
    from demkd.report.comparison import FinishedRun
    from demkd.report.rows import Inspection
    from demkd.report.writing import WrittenFile


class _Commands(click.Group):
    """Turns what a user can repair into one sentence and exit code 1, and Ctrl-C into a calm word."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted; nothing is lost, the same command goes on where it stopped", 130)
        except BrokenPipeError:
            sys.exit(1)  # the reader of a pipe has seen enough
        except OSError as error:  # a folder that may not be written, a disk that fails
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}", 1)


def _fail(text: str, code: int) -> None:
    from demkd import console

    console.show_error(text)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="demkd", prog_name="demkd", message="%(prog)s %(version)s")
def main() -> None:
    """Distil many teachers into one student, from a cache of their answers.

    \b
    The whole pipeline on embedded data, offline, in two minutes:
        demkd demo
    Stage one, once per teacher:
        demkd cache-teachers --data DATA --teacher NETWORK@CHECKPOINT ... --out CACHE
    Stage two, as often as you like:
        demkd distill --data DATA --cache CACHE --student NETWORK --out RUN
    """


@main.command()
@click.argument("network")
@recipe_option
@data_option
@click.option("--out", required=True, type=FOLDER, help="The run folder; an unfinished run there goes on.")
@training_options
@normalise_option
@compute_options
@output_options
def train(network: str, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train NETWORK on labels: a teacher, or a student's baseline.

    \b
    Example:
        demkd train resnet20 --data cifar100 --out runs/teacher-a --seed 1
    """
    from demkd import console
    from demkd.pipeline.distilling import train as run_training
    from demkd.pipeline.loading import chosen_alone, parse_normalisations

    refuse_code_of_recipe("network", [network])
    compute = choose_compute(options)
    normalisation = chosen_alone(parse_normalisations(options["normalise"]), option="--normalise")
    settings = chosen_training(options, network)
    report = run_training(settings, out, compute, choose_progress(quiet), normalisation=normalisation)
    (console.show_json if as_json else console.show_run)(report)


@main.command("cache-teachers")
@recipe_option
@data_option
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    required=True,
    metavar="[NAME=]NETWORK@CHECKPOINT",
    help="A checkpoint file, or a run folder (which knows its network); repeat for more teachers.",
)
@click.option("--out", required=True, type=FOLDER, help="The cache's folder; what is there already is kept.")
@click.option("--views", type=int, help=f"Views per sample; {defaults.VIEWS} by default, or all there are if fewer.")
@click.option(
    "--view-seed",
    default=defaults.VIEW_SEED,
    show_default=True,
    type=click.IntRange(min=0),
    help="Which views come first.",
)
@click.option(
    "--features",
    multiple=True,
    default=defaults.LAYERS,
    show_default=True,
    metavar="LAYER",
    help="Whose features to keep: last (the last map before pooling), a layer's name, or none; repeatable.",
)
@click.option(
    "--feature-grid",
    default=defaults.GRID,
    show_default=True,
    type=click.IntRange(min=1),
    help="Average maps down to this side.",
)
@click.option("--batch-size", default=defaults.BATCH_SIZE, show_default=True, type=click.IntRange(min=1))
@click.option("--dry-run", is_flag=True, help="Say what it would cost in bytes and time, and write nothing.")
@normalise_option
@input_size_option
@compute_options
@output_options
def cache_teachers(as_json: bool, quiet: bool, dry_run: bool, **options: Any) -> None:
    """Stage one: run each teacher once, and keep its answers.

    \b
    Example:
        demkd cache-teachers --data cifar100 --views 16 --out runs/cache \\
            --teacher resnet20@resnet20.pth --teacher vgg8@vgg8.pth
    """
    from demkd import console
    from demkd.pipeline.caching import cache_teachers as run_caching
    from demkd.pipeline.caching_job import CachingRequest
    from demkd.pipeline.loading import parse_input_sizes, parse_normalisations, parse_teachers

    refuse_code_of_recipe("teachers", options["teachers"])
    layers = tuple(layer for layer in options["features"] if layer != "none")
    request = CachingRequest(
        data=options["data"],
        teachers=tuple(parse_teachers(options["teachers"])),
        folder=options["out"],
        views=options["views"],
        view_seed=options["view_seed"],
        layers=layers,
        grid=options["feature_grid"],
        batch_size=options["batch_size"],
        normalisations=parse_normalisations(options["normalise"]),
        input_sizes=parse_input_sizes(options["input_size"]),
    )
    if dry_run:
        from demkd.pipeline.dry_run import plan_caching

        plan = plan_caching(request, choose_compute(options), choose_progress(quiet))
        (console.show_json if as_json else console.show_plan)(plan)
        return
    report = run_caching(request, choose_compute(options), choose_progress(quiet))
    (console.show_json if as_json else console.show_caching)(report)


@main.command()
@click.argument("cache", type=FOLDER)
@click.option("--teachers", help="Some of them, separated by commas; all by default.")
@inspection_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print its rows as CSV.")
def inspect(cache: Path, teachers: str | None, as_json: bool, as_csv: bool, **options: Any) -> None:
    """Show the cached entropies: how sure, how right and how trusted each teacher is.

    \b
    Example:
        demkd inspect runs/cache
        demkd inspect runs/cache --by-class --sort -top1 --limit 20
        demkd inspect runs/cache --sample 7 --data cifar100
        demkd inspect runs/cache --html cache.html --data cifar100
    """
    from demkd import console
    from demkd.cache import open_cache
    from demkd.report.rows import flat_rows

    require_one_inspection({**options, "json": as_json, "csv": as_csv})
    with open_cache(cache, names(teachers)) as opened:
        if options["html"] is not None:
            console.show_written(_write_cache_page(opened, options["html"], options["data"]))
            return
        found = _look(opened, options)
        if as_json:
            console.show_json(found)
        elif as_csv:
            console.show_csv(flat_rows(found))
        else:
            picture = None if options["data"] is None else _pixels(opened, options["data"])[options["sample"]]
            console.show_inspection(found, picture=picture)


def _look(cache: "Cache", options: dict[str, Any]) -> "Inspection":
    from demkd.report import samples
    from demkd.report.classes import list_classes
    from demkd.report.single_sample import summarise_sample, views_of_sample
    from demkd.report.statistics import read_statistics
    from demkd.report.summary import summarise

    if options["views"]:
        return views_of_sample(cache, options["sample"])
    if options["sample"] is not None:
        return summarise_sample(cache, options["sample"], slot=options["slot"] or 0)
    statistics = read_statistics(cache)
    if options["by_class"]:
        return list_classes(statistics, sort=options["sort"] or "entropy", limit=options["limit"])
    listings = {
        "uncertain": samples.uncertain,
        "disagree": samples.disputed,
        "wrong_and_trusted": samples.wrong_and_trusted,
    }
    chosen = next((name for name in listings if options[name]), None)
    return listings[chosen](statistics, options[chosen]) if chosen else summarise(statistics)


def _write_cache_page(cache: "Cache", path: Path, data: str | None) -> "WrittenFile":
    from demkd.report.pages import require_page_libraries, write_cache_page
    from demkd.report.statistics import read_statistics

    require_page_libraries("a page")  # before the pictures are read
    return write_cache_page(read_statistics(cache), path, pixels=None if data is None else _pixels(cache, data))


def _pixels(cache: "Cache", data: str) -> Any:
    """All samples' pixels (N, H, W, 3), uint8, of the data that the teachers saw."""
    from demkd.pipeline.distilling import require_same_data
    from demkd.pipeline.loading import load_split

    pictures = load_split(data, "train")
    require_same_data(cache.teachers[0], pictures)
    return pictures.pixels.numpy()


@main.command()
@click.argument("cache", type=FOLDER)
@click.option("--teachers", help="Some of them, separated by commas; all by default.")
@click.option(
    "--recompute", type=click.IntRange(min=1), metavar="N", help="Ask the teachers again about N pictures each."
)
@click.option("--repair", is_flag=True, help="Let the teachers redo the blocks that fail, and those alone.")
@click.option("--data", help="With --recompute and --repair: the data that the teachers were cached with.")
@click.option(
    "--teacher",
    "witnesses",
    multiple=True,
    metavar="[NAME=]NETWORK@CHECKPOINT",
    help="With --recompute and --repair: the teachers to ask, as for cache-teachers.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Which pictures, --recompute.")
@normalise_option
@compute_options
@output_options
def verify(cache: Path, teachers: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check every byte of CACHE; exit with 1 if anything is wrong.

    \b
    Examples:
        demkd verify runs/cache
        demkd verify runs/cache --recompute 200 --data cifar100 --teacher resnet20@resnet20.pth
    """
    from demkd import console
    from demkd.pipeline.verify import recompute, repair
    from demkd.pipeline.verify import verify as run_verification

    asks = options["repair"] or options["recompute"] is not None
    if asks != bool(options["data"] and options["witnesses"]):
        raise click.UsageError("--recompute and --repair need --data and --teacher, and nothing else does")
    if options["repair"] and teachers:
        raise click.UsageError("--repair looks at the whole cache: leave --teachers out")
    progress = choose_progress(quiet)
    if options["repair"]:
        report = repair(cache, _witnesses(options), progress)
    else:
        report = run_verification(cache, names(teachers), progress)
    if options["recompute"] is not None:
        report = recompute(report, _witnesses(options), progress, pairs=options["recompute"], seed=options["seed"])
    (console.show_json if as_json else console.show_verification)(report)
    if not report.sound:
        sys.exit(1)


def _witnesses(options: dict[str, Any]) -> Any:
    from demkd.pipeline.loading import parse_normalisations, parse_teachers
    from demkd.pipeline.verify import Witnesses

    return Witnesses(
        data=options["data"],
        teachers=tuple(parse_teachers(options["witnesses"])),
        normalisations=parse_normalisations(options["normalise"]),
        device=options["device"],
        precision=options["precision"],
    )


@main.command()
@recipe_option
@data_option
@click.option("--student", required=True, metavar="NETWORK", help="The network to train.")
@click.option("--out", required=True, type=FOLDER, help="The run folder; an unfinished run there goes on.")
@click.option("--cache", type=FOLDER, help="What cache-teachers wrote.")
@click.option("--teachers", help="Some of the cache's, separated by commas; all by default.")
@click.option("--views", help="Train on the first so many slots, all by default; or random, with --online.")
@method_options
@click.option("--online", is_flag=True, help="Run live teachers in every step instead of reading a cache.")
@click.option("--teacher", multiple=True, metavar="[NAME=]NETWORK@CHECKPOINT", help="A live teacher, with --online.")
@click.option(
    "--view-seed",
    type=click.IntRange(min=0),
    help=f"As cache-teachers', with --online: {defaults.VIEW_SEED} by default. A cache has its own.",
)
@training_options
@normalise_option
@input_size_option
@compute_options
@output_options
def distill(as_json: bool, quiet: bool, **options: Any) -> None:
    """Stage two: train a student from a cache; no teacher is loaded.

    \b
    Example:
        demkd distill --data cifar100 --cache runs/cache --student resnet8 --out runs/student
    """
    from demkd import console
    from demkd.pipeline.distilling import DistillRequest
    from demkd.pipeline.distilling import distill as run_distillation
    from demkd.pipeline.loading import parse_input_sizes, parse_normalisations, parse_teachers
    from demkd.pipeline.methods import choose_method

    if options["online"] == (options["cache"] is not None):
        raise click.UsageError("give either --cache CACHE, or --online with --teacher")
    if options["teacher"] and not options["online"]:
        raise click.UsageError(
            "--teacher runs live teachers, which needs --online; a cache's are chosen with --teachers"
        )
    if options["input_size"] and not options["online"]:
        raise click.UsageError("--input-size is for live teachers, which needs --online; a cache knows its own")
    refuse_code_of_recipe("student", [options["student"]])
    refuse_code_of_recipe("teacher", options["teacher"])
    request = DistillRequest(
        options=chosen_training(options, options["student"]),
        method=choose_method(
            options["method"],
            **{name: options[name] for name in (*METHOD_NUMBERS, *CHOICES, "entropy_temperature")},
            fixed_weights=numbers(options["fixed_weights"]),
        ),
        folder=options["out"],
        cache=options["cache"],
        teachers=names(options["teachers"]) or (),
        live=tuple(parse_teachers(options["teacher"])),
        normalisations=parse_normalisations(options["normalise"]),
        views=views_or_random(options["views"]),
        view_seed=options["view_seed"],
        input_sizes=parse_input_sizes(options["input_size"]),
    )
    report = run_distillation(request, choose_compute(options), choose_progress(quiet))
    (console.show_json if as_json else console.show_run)(report)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@data_option
@click.option("--network", help="The network's name, for a checkpoint that does not know it.")
@normalise_option
@input_size_option
@compute_options
@output_options
def evaluate(run: Path, data: str, network: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure top-1 and top-5 of a finished RUN, or of a checkpoint, on the test split.

    \b
    Example:
        demkd evaluate runs/student --data cifar100
    """
    from demkd import console
    from demkd.pipeline.evaluation import evaluate_run
    from demkd.pipeline.loading import chosen_alone, parse_input_sizes, parse_normalisations

    report = evaluate_run(
        run,
        data=data,
        network=network,
        normalisation=chosen_alone(parse_normalisations(options["normalise"]), option="--normalise"),
        input_size=chosen_alone(parse_input_sizes(options["input_size"]), option="--input-size"),
        compute=choose_compute(options),
        progress=choose_progress(quiet),
    )
    (console.show_json if as_json else console.show_evaluation)(report)


@main.command()
@click.option("--classes", default=100, show_default=True, type=click.IntRange(min=1), help="Of the last layer.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def networks(classes: int, as_json: bool) -> None:
    """List the networks: parameters, multiply-accumulates for a 32 x 32 picture, features and their shapes.

    \b
    Example:
        demkd networks
    Beside these, torchvision:NAME, timm:NAME and your own my_module:function are networks; see docs/networks.md.
    """
    from demkd import console
    from demkd.pipeline.listing import list_networks

    listing = list_networks(classes=classes)
    (console.show_json if as_json else console.show_networks)(listing)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "file_format", required=True, metavar="FORMAT", help="safetensors, onnx or torch-export.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option("--data", help="Whose test pictures it is checked on; by default the data of the run's recipe.")
@click.option("--network", help="The network's name, for a checkpoint that does not know it.")
@output_options
def export(
    run: Path, file_format: str, out: Path, data: str | None, network: str | None, as_json: bool, quiet: bool
) -> None:
    """Write the network of a finished RUN for use elsewhere, and check the file by loading it in a fresh process.

    \b
    Example:
        demkd export runs/student --format onnx --out student.onnx
    """
    from demkd import console
    from demkd.pipeline.exporting import ExportRequest
    from demkd.pipeline.exporting import export as run_export

    request = ExportRequest(run=run, network=network, data=data, format=file_format, out=out)
    report = run_export(request, choose_progress(quiet))
    (console.show_json if as_json else console.show_export)(report)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--baseline", metavar="GROUP", help="Compare the groups with this one: its name, or one of its run folders."
)
@click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
@click.option("--html", type=FILE, help="Also write a page: the table, and accuracy, losses and weights by epoch.")
@click.option("--plot", type=FILE, metavar="FILE.svg|png", help="Also plot test top-1 by epoch.")
def compare(runs: tuple[Path, ...], baseline: str | None, form: str, html: Path | None, plot: Path | None) -> None:
    """Compare finished RUNS: means over seeds, and paired differences to a baseline.

    \b
    Example:
        demkd compare runs/sweep/* --baseline runs/sweep/kd-seed0 --html runs.html
    """
    from demkd.report.comparison import read_run

    _show_comparison([read_run(folder) for folder in runs], baseline, form, html=html, plot=plot)


@main.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=FOLDER, help="The folder of the runs' folders; finished ones are kept.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many runs at once.")
@click.option("--baseline", metavar="NAME", help="As compare's; or the NAME of a table [runs.NAME].")
@click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def sweep(recipe: Path, out: Path, jobs: int, baseline: str | None, form: str, quiet: bool) -> None:
    """Run every combination of RECIPE's options that is missing, then compare them all.

    \b
    Example:
        demkd sweep recipes/digits-sweep.toml --out runs/sweep
    """
    from demkd.pipeline.sweeping import exit_when_terminated, find_baseline, plan_sweep, run_sweep
    from demkd.report.comparison import first_of_equal_runs, read_run

    runs = plan_sweep(recipe, out, sweep_options(distill))
    base = None if baseline is None else find_baseline(runs, baseline)
    progress = choose_progress(quiet)
    with exit_when_terminated():
        run_sweep(runs, jobs=jobs, progress=progress)
    shown = first_of_equal_runs([read_run(run.folder) for run in runs])
    same = [f"{folder} and {run.folder}" for folder, run in shown.items() if folder != run.folder]
    if same:
        progress.warn(f"these runs turned out to be the same, and are shown once: {'; '.join(same)}")
    distinct = [run for folder, run in shown.items() if folder == run.folder]
    _show_comparison(distinct, baseline if base is None else str(shown[base.folder].folder), form)


def _show_comparison(
    runs: Sequence["FinishedRun"],
    baseline: str | None,
    form: str,
    *,
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
        console.show_comparison(comparison, form=form)


@main.command()
@click.option("--out", default="runs/demo", show_default=True, type=FOLDER, help="Where to put everything.")
@compute_options
@output_options
def demo(out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """The whole pipeline on scikit-learn's handwritten digits, offline, in two minutes.

    \b
    Example:
        demkd demo
    """
    from demkd import console
    from demkd.pipeline.demo import run_demo

    report = run_demo(out, choose_compute(options), choose_progress(quiet))
    (console.show_json if as_json else console.show_demo)(report)


if __name__ == "__main__":
    main()
