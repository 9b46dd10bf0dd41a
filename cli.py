"""The commands: options in, one stage called, errors out. Stages are imported when they are called, not for --help."""

if __name__ == "__main__":  # ahead of what takes time to import
    try:
        from demkd.launch import main as launch
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    launch()

import contextlib
import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from demkd.cache import open_cache
from demkd.errors import ToldElsewhereError, UserError
from demkd.launch import INTERRUPTED, last_words
from demkd.option_sections import SectionedCommand
from demkd.options import (
    FILE,
    FOLDER,
    LOG,
    choose_progress,
    compute_options,
    crop_ratio_option,
    data_option,
    hint_layer_option,
    in_options,
    input_size_option,
    inspection_options,
    method_choices,
    method_options,
    names,
    normalise_option,
    numbers,
    output_options,
    ranges,
    reading_of,
    reading_options,
    recipe_option,
    refuse_code_of_recipe,
    require_one_inspection,
    seeds_option,
    sweep_options,
    training_choices,
    training_options,
    view_options,
    view_size_option,
    views_of,
    views_or_random,
)
from demkd.pipeline import defaults

if TYPE_CHECKING:
    from demkd.cache import Cache
    from demkd.report.comparison import FinishedRun
    from demkd.report.gallery import Picture
    from demkd.report.writing import WrittenFile


class _Commands(click.Group):
    """Ends with one sentence and an exit code where a user can repair something, or pressed Ctrl-C."""

    command_class = SectionedCommand

    def invoke(self, ctx: click.Context) -> Any:
        first = os.environ.get("RANK", "0") == "0"
        try:
            if not first:
                sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - results are shown once, by rank 0
            return super().invoke(ctx)
        except click.UsageError as error:
            if first:
                raise
            sys.exit(error.exit_code)
        except (UserError, KeyboardInterrupt, OSError) as error:
            text, code = self._last_words(error, ctx)
        if text and (first or code != INTERRUPTED):
            _show_error(text)
            if LOG in ctx.meta:
                ctx.meta[LOG].error(text)
        sys.exit(code)

    def _last_words(self, error: BaseException, ctx: click.Context) -> tuple[str, int]:
        """What to say, if anything, and the exit code."""
        if isinstance(error, KeyboardInterrupt):
            return last_words(error)
        if isinstance(error, ToldElsewhereError | BrokenPipeError):  # the reader of a pipe has seen enough
            return "", 1
        if isinstance(error, UserError):
            return in_options(str(error), self.commands.get(ctx.invoked_subcommand or "", self)), 1
        if isinstance(error, OSError) and error.filename is not None:  # a disk that fails, no right to write
            return _in_words(error), 1
        raise error

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Also end in a sentence where nobody takes what is printed."""
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            _throw_output_away()
            if not isinstance(error, BrokenPipeError):  # else the reader of a pipe has seen enough
                _show_error(f"the output cannot be written ({error.strerror}): give it a place with room")
            sys.exit(1)


def _in_words(error: OSError) -> str:
    """What is wrong with a file or folder."""
    if error.errno == errno.EEXIST and Path(error.filename).is_symlink():
        return f"{error.filename} is a link that leads nowhere: remove it, or choose another folder (--out)"
    return f"{error.filename}: {error.strerror}"


def _throw_output_away() -> None:
    """What could not be printed, Python would try to print again at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_TOGETHER = ("cache-teachers", "train", "distill")  # the commands that several processes share


def _show_error(text: str) -> None:
    from demkd import console

    console.show_error(text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="demkd", prog_name="demkd", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Distil many teachers into one student, from a cache of their answers.

    \b
    The whole pipeline on embedded data, offline, in two minutes:
        demkd demo
    Stage one, once per teacher:
        demkd cache-teachers --data DATA --teacher NETWORK@CHECKPOINT ... --out CACHE
    Stage two, as often as you like:
        demkd distill --data DATA --cache CACHE --student NETWORK --out RUN
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and ctx.invoked_subcommand not in _TOGETHER:
        raise click.UsageError(f"{ctx.invoked_subcommand} works in one process: start it without torchrun")


@main.command()
@click.argument("network")
@recipe_option
@data_option
@click.option("--out", required=True, type=FOLDER, help="The run folder; an unfinished run there goes on.")
@training_options
@view_options
@view_size_option
@crop_ratio_option
@normalise_option
@reading_options
@compute_options
@output_options
def train(network: str, data: str, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train NETWORK on labels: a teacher, or a student's baseline.

    \b
    Example:
        demkd train resnet20 --data cifar100 --out runs/teacher-a --seed 1
    """
    from demkd import api, console

    refuse_code_of_recipe("network", [network])
    report = api.train(
        network,
        train=data,
        out=out,
        normalise=options["normalise"],
        policy=views_of(options, size=options["size"]),
        reading=reading_of(options),
        device=options["device"],
        precision=options["precision"],
        progress=choose_progress(quiet),
        **training_choices(options),
    )
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
@click.option("--batch-size", type=int, help="At most 1,024; 256 by default, or 64 for photos on a CPU.")
@click.option(
    "--keep", type=int, metavar="K", help="Of every answer only the K largest logits, and the sum of the others."
)
@click.option(
    "--rest-temperatures",
    default=",".join(f"{one:g}" for one in defaults.REST_TEMPERATURES),
    show_default=True,
    metavar="T,T,...",
    help="With --keep: at which temperatures that sum is kept.",
)
@click.option(
    "--shards",
    type=int,
    metavar="N",
    help="Keep each teacher's answers in N files, for as many processes; by default as there are, or as torchrun says.",
)
@click.option(
    "--only-shards",
    metavar="N,N-N",
    callback=lambda _ctx, _parameter, text: ranges(text),
    help="Of those, from 0, make only these here: for machines without a common disk.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost in bytes and time, and write nothing.")
@view_options
@view_size_option
@normalise_option
@input_size_option
@reading_options
@compute_options
@output_options
def cache_teachers(
    teachers: tuple[str, ...], data: str, out: Path, as_json: bool, quiet: bool, dry_run: bool, **options: Any
) -> None:
    """Stage one: run each teacher once, and keep its answers.

    \b
    Example:
        demkd cache-teachers --data cifar100 --views 16 --out runs/cache \\
            --teacher resnet20@resnet20.pth --teacher vgg8@vgg8.pth
    With --shards, the same command in several processes shares the work; see docs/scaling.md.
    """
    from demkd import api, console

    refuse_code_of_recipe("teachers", teachers)
    chosen: dict[str, Any] = {
        **{name: options[name] for name in ("views", "view_seed", "feature_grid", "batch_size", "keep")},
        **{name: options[name] for name in ("shards", "only_shards")},
        **{name: options[name] for name in ("normalise", "input_size", "device", "precision")},
        "features": [layer for layer in options["features"] if layer != "none"],
        "rest_temperatures": numbers(options["rest_temperatures"], "--rest-temperatures"),
        "policy": views_of(options, size=options["size"]),
        "reading": reading_of(options),
        "progress": choose_progress(quiet),
    }
    if dry_run:
        plan = api.plan_caching(teachers, data, out=out, **chosen)
        (console.show_json if as_json else console.show_plan)(plan)
        return
    report = api.cache_teachers(teachers, data, out=out, **chosen)
    (console.show_json if as_json else console.show_caching)(report)


@main.command()
@click.argument("cache", type=FOLDER)
@click.option("--teachers", help="Some of them, separated by commas; all by default.")
@output_options
def merge(cache: Path, teachers: str | None, as_json: bool, quiet: bool) -> None:
    """Make one file of each teacher's shards in CACHE: the bytes that one process would have written.

    \b
    Example:
        demkd merge runs/cache
    """
    from demkd import api, console

    report = api.merge(cache, teachers=names(teachers), progress=choose_progress(quiet))
    (console.show_json if as_json else console.show_merge)(report)


@main.command()
@click.argument("cache", type=FOLDER)
@click.option("--out", "--to", required=True, type=FOLDER, help="The copy's folder; an unfinished copy goes on.")
@click.option("--teachers", help="Some of them, separated by commas; all by default.")
@click.option("--views", type=int, help="Only the first so many.")
@click.option("--keep", type=int, metavar="K", help="Of every answer only the K largest logits, and the others' sum.")
@click.option("--rest-temperatures", metavar="T,T,...", help="With --keep: at which temperatures that sum is kept.")
@click.option(
    "--features", multiple=True, metavar="LAYER", help="Whose features to copy, or none; all by default; repeatable."
)
@output_options
def pack(cache: Path, out: Path, teachers: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Copy CACHE, or a part of it, into a folder to upload as it is, with digests and a README; no teacher is asked.

    \b
    Examples:
        demkd pack runs/cache --to cifar100-answers
        demkd pack runs/cache --to small --views 8 --keep 16 --features none
    """
    from demkd import api, console

    layers, temperatures = options["features"], options["rest_temperatures"]
    report = api.pack(
        cache,
        out=out,
        teachers=names(teachers),
        views=options["views"],
        keep=options["keep"],
        rest_temperatures=None if temperatures is None else numbers(temperatures, "--rest-temperatures"),
        features=[layer for layer in layers if layer != "none"] if layers else None,
        progress=choose_progress(quiet),
    )
    (console.show_json if as_json else console.show_pack)(report)


@main.command()
@click.argument("cache", type=FOLDER)
@click.option("--out", type=FILE, help="The file to write; README.md in the cache's folder by default.")
@click.option("--teachers", help="Some of them, separated by commas; all by default.")
def card(cache: Path, out: Path | None, teachers: str | None) -> None:
    """Write a README for people who may use CACHE: what it is, from what, how good, how large, how to use it.

    \b
    Example:
        demkd card runs/cache
    """
    from demkd import api, console

    console.show_written(api.card(cache, out=out, teachers=names(teachers)))


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
    from demkd import api, console
    from demkd.report.rows import flat_rows

    require_one_inspection({**options, "json": as_json, "csv": as_csv})
    html, data = options.pop("html"), options.pop("data")
    if html is not None:
        console.show_written(_write_cache_page(cache, names(teachers), html, data))
        return
    found = api.inspect(cache, teachers=names(teachers), **options)
    if as_json:
        console.show_json(found)
    elif as_csv:
        console.show_csv(flat_rows(found))
    else:
        with open_cache(cache, names(teachers)) as opened:
            picture = None if data is None else _pictures_of(opened, data)(options["sample"])
        console.show_inspection(found, picture=picture)


def _pictures_of(cache: "Cache", data: str) -> "Picture":
    from demkd.pipeline.cached_pictures import pictures_of

    return pictures_of(cache, data)


def _write_cache_page(cache: Path, teachers: Sequence[str] | None, path: Path, data: str | None) -> "WrittenFile":
    from demkd.report.pages import require_page_libraries, write_cache_page
    from demkd.report.statistics import read_statistics

    require_page_libraries("a page")  # before the pictures are read
    with open_cache(cache, teachers) as opened:
        picture = None if data is None else _pictures_of(opened, data)
        return write_cache_page(read_statistics(opened), path, picture=picture)


@main.command()
@click.argument("cache", type=FOLDER)
@click.option("--teachers", "only", help="Some of them, separated by commas; all by default.")
@click.option(
    "--recompute", type=click.IntRange(min=1), metavar="N", help="Ask the teachers again about N pictures each."
)
@click.option("--repair", is_flag=True, help="Let the teachers redo the blocks that fail, and those alone.")
@click.option("--data", help="With --recompute and --repair: the data that the teachers were cached with.")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="[NAME=]NETWORK@CHECKPOINT",
    help="With --recompute and --repair: the teachers to ask, as for cache-teachers.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Which pictures, --recompute.")
@normalise_option
@input_size_option
@reading_options
@compute_options
@output_options
def verify(cache: Path, only: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check every byte of CACHE; exit with 1 if anything is wrong.

    \b
    Examples:
        demkd verify runs/cache
        demkd verify runs/cache --recompute 200 --data cifar100 --teacher resnet20@resnet20.pth
    """
    from demkd import api, console

    asks = options["repair"] or options["recompute"] is not None
    if asks != bool(options["data"] and options["teachers"]):
        raise click.UsageError("--recompute and --repair need --data and --teacher, and nothing else does")
    if asks and only:
        raise click.UsageError("--recompute and --repair look at the whole cache: leave --teachers out")
    if options["repair"] and options["recompute"] is not None:
        raise click.UsageError("--recompute and --repair exclude each other: repair first, then recompute")
    progress = choose_progress(quiet)
    again = {name: options[name] for name in ("normalise", "input_size", "device", "precision")}
    if asks:
        again["reading"] = reading_of(options)
    if options["repair"]:
        report = api.repair(cache, options["teachers"], options["data"], progress=progress, **again)
    elif asks:
        count, seed = options["recompute"], options["seed"]
        report = api.recompute(
            cache, options["teachers"], options["data"], pairs=count, seed=seed, progress=progress, **again
        )
    else:
        report = api.verify(cache, teachers=names(only), progress=progress)
    report = report.translated(lambda text: in_options(text, click.get_current_context().command))
    (console.show_json if as_json else console.show_verification)(report)
    if not report.sound:
        sys.exit(1)


@main.command()
@recipe_option
@data_option
@click.option("--student", required=True, metavar="NETWORK", help="The network to train.")
@click.option("--out", required=True, type=FOLDER, help="The run folder; an unfinished run there goes on.")
@click.option("--cache", type=FOLDER, help="What cache-teachers wrote.")
@click.option("--teachers", help="Some of the cache's, separated by commas; all by default.")
@click.option("--views", help="Train on the first so many slots, all by default; or random, with --online.")
@method_options
@hint_layer_option
@click.option("--student-layer", default="", help="Whose features are adapted to the teachers'; the last map's.")
@click.option("--online", is_flag=True, help="Run live teachers in every step instead of reading a cache.")
@click.option(
    "--teacher",
    "live_teachers",
    multiple=True,
    metavar="[NAME=]NETWORK@CHECKPOINT",
    help="A live teacher, with --online.",
)
@click.option(
    "--view-seed",
    type=click.IntRange(min=0),
    help=f"As cache-teachers', with --online: {defaults.VIEW_SEED} by default. A cache has its own.",
)
@training_options
@view_options
@view_size_option
@crop_ratio_option
@normalise_option
@input_size_option
@reading_options
@compute_options
@output_options
def distill(student: str, data: str, cache: Path | None, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Stage two: train a student from a cache; no teacher is loaded.

    \b
    Example:
        demkd distill --data cifar100 --cache runs/cache --student resnet8 --out runs/student
    """
    from demkd import api, console

    report = api.distill(**_distill_arguments(student, data, cache, out, options), progress=choose_progress(quiet))
    (console.show_json if as_json else console.show_run)(report)


def _distill_arguments(
    student: str, data: str, cache: Path | None, out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `api.distill` is given, but for how it is shown."""
    if options["online"] == (cache is not None):
        raise click.UsageError("give either --cache CACHE, or --online with --teacher")
    if options["live_teachers"] and not options["online"]:
        raise click.UsageError(
            "--teacher runs live teachers, which needs --online; a cache's are chosen with --teachers"
        )
    if options["input_size"] and not options["online"]:
        raise click.UsageError("--input-size is for live teachers, which needs --online; a cache knows its own")
    refuse_code_of_recipe("student", [student])
    refuse_code_of_recipe("live_teachers", options["live_teachers"])
    return {
        "student": student,
        "train": data,
        "cache": cache,
        "out": out,
        "teachers": names(options["teachers"]) or (),
        "views": views_or_random(options["views"]),
        "policy": views_of(options, size=options["size"] if options["online"] else None),
        "reading": reading_of(options),
        **{name: options[name] for name in ("live_teachers", "view_seed", "hint_layer", "student_layer")},
        **{name: options[name] for name in ("normalise", "input_size", "device", "precision")},
        **training_choices(options),
        **method_choices(options),
    }


@main.command(hidden=True)
@click.argument("runs")
def distill_together(runs: str) -> None:
    """Several runs of a sweep in one process: RUNS is JSON, what each gives `distill`; so is what came of them."""
    from demkd import api

    found: dict[int, dict[str, Any]] = {}
    asked: dict[int, dict[str, Any]] = {}
    for number, words in enumerate(json.loads(runs)):
        try:
            given = dict(distill.make_context("distill", words).params)
            student, data, cache, out = (given.pop(name) for name in ("student", "data", "cache", "out"))
            asked[number] = _distill_arguments(student, data, cache, out, given)
        except click.ClickException as error:
            found[number] = {"error": error.format_message()}
    reports = api.distill_together(list(asked.values()), progress=False) if asked else []
    for number, report in zip(asked, reports, strict=True):
        if isinstance(report, UserError):
            found[number] = {"error": in_options(str(report), distill)}
        else:
            found[number] = {"test_top1": report.test_top1}
    click.echo(json.dumps([found[number] for number in sorted(found)]))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@data_option
@click.option("--network", help="The network's name, for a checkpoint that does not know it.")
@click.option(
    "--split", default="test", show_default=True, type=click.Choice(["test", "train"]), help="Whose pictures."
)
@normalise_option
@input_size_option
@crop_ratio_option
@reading_options
@compute_options
@output_options
def evaluate(run: Path, data: str, network: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure top-1 and top-5 of a finished RUN, or of a checkpoint, on the test split.

    \b
    Example:
        demkd evaluate runs/student --data cifar100
    """
    from demkd import api, console

    report = api.evaluate(
        run,
        data,
        network=network,
        normalise=options["normalise"],
        input_size=options["input_size"],
        crop_ratio=options["crop_ratio"],
        split=options["split"],
        reading=reading_of(options),
        device=options["device"],
        precision=options["precision"],
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
@reading_options
@output_options
def export(
    run: Path,
    file_format: str,
    out: Path,
    data: str | None,
    network: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write the network of a finished RUN for use elsewhere, and check the file by loading it in a fresh process.

    \b
    Example:
        demkd export runs/student --format onnx --out student.onnx
    """
    from demkd import api, console

    report = api.export(
        run,
        file_format=file_format,
        out=out,
        data=data,
        network=network,
        reading=reading_of(options),
        progress=choose_progress(quiet),
    )
    (console.show_json if as_json else console.show_export)(report)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--baseline", metavar="GROUP", help="Compare the groups with this one: its name, or one of its run folders."
)
@click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
@seeds_option
@click.option("--html", type=FILE, help="Also write a page: the table, and accuracy, losses and weights by epoch.")
@click.option("--plot", type=FILE, metavar="FILE.svg|png", help="Also plot test top-1 by epoch.")
def compare(
    runs: tuple[Path, ...], baseline: str | None, form: str, seeds: bool, html: Path | None, plot: Path | None
) -> None:
    """Compare finished RUNS: means over seeds, and paired differences to a baseline.

    \b
    Example:
        demkd compare runs/sweep/* --baseline runs/sweep/kd-seed0 --html runs.html
    """
    from demkd.report.comparison import read_run

    _show_comparison([read_run(folder) for folder in runs], baseline, form, seeds=seeds, html=html, plot=plot)


@main.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=FOLDER, help="The folder of the runs' folders; finished ones are kept.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many processes at once.")
@click.option(
    "--together",
    default=1,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="So many runs in a process, which decode a photo once: those of equal data, views, batch size and order.",
)
@click.option("--baseline", metavar="NAME", help="As compare's; or the NAME of a table [runs.NAME].")
@click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
@seeds_option
@click.option("--quiet", is_flag=True, help="Show no progress.")
def sweep(
    recipe: Path, out: Path, jobs: int, together: int, baseline: str | None, form: str, seeds: bool, quiet: bool
) -> None:
    """Run every combination of RECIPE's options that is missing, then compare them all.

    \b
    Example:
        demkd sweep recipes/digits-sweep.toml --out runs/sweep
    """
    from demkd.pipeline.sweeping import find_baseline, plan_sweep, run_sweep
    from demkd.report.comparison import first_of_equal_runs, read_run

    runs = plan_sweep(recipe, out, sweep_options(distill))
    base = None if baseline is None else find_baseline(runs, baseline)
    progress = choose_progress(quiet)
    run_sweep(runs, jobs=jobs, together=together, progress=progress)
    shown = first_of_equal_runs([read_run(run.folder) for run in runs])
    same = [f"{folder} and {run.folder}" for folder, run in shown.items() if folder != run.folder]
    if same:
        progress.warn(f"these runs turned out to be the same, and are shown once: {'; '.join(same)}")
    distinct = [run for folder, run in shown.items() if folder == run.folder]
    _show_comparison(distinct, baseline if base is None else str(shown[base.folder].folder), form, seeds=seeds)


@main.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=FOLDER, help="The folder of the runs' folders; finished ones are kept.")
@click.option(
    "--subsets",
    default="all",
    show_default=True,
    type=click.Choice(["all", "leave-one-out"]),
    help="Which sets of teachers: every one (2^K - 1), or all teachers and all but one (K + 1).",
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many runs at once.")
@click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def ablate(recipe: Path, out: Path, subsets: str, jobs: int, form: str, quiet: bool) -> None:
    """What each teacher of a cache adds: a student of every set of teachers and seed of RECIPE, compared.

    \b
    Example:
        demkd ablate recipes/digits-ablation.toml --out runs/ablation
    """
    from demkd import console
    from demkd.pipeline.ablating import plan_ablation, set_of
    from demkd.pipeline.sweeping import run_sweep
    from demkd.report.ablation import measure_ablation
    from demkd.report.ablation import subsets as sets_of
    from demkd.report.comparison import read_run

    teachers, runs = plan_ablation(
        recipe, out, sweep_options(distill), lambda names: sets_of(names, leave_one_out=subsets != "all")
    )
    run_sweep(runs, jobs=jobs, progress=choose_progress(quiet))
    last: dict[frozenset[str], dict[int, float]] = {}
    best: dict[frozenset[str], dict[int, float]] = {}
    for run in runs:
        finished = read_run(run.folder)
        last.setdefault(set_of(run), {})[finished.seed] = finished.last
        best.setdefault(set_of(run), {})[finished.seed] = finished.best
    ablation = measure_ablation(last, best, teachers)
    if form == "json":
        console.show_json(ablation)
    else:
        console.show_ablation(ablation, form=form)


def _show_comparison(
    runs: Sequence["FinishedRun"],
    baseline: str | None,
    form: str,
    *,
    seeds: bool = False,
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


@main.command()
@click.argument("folder", default=".", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(folder: Path, as_json: bool) -> None:
    """Say what this machine has: versions, devices, precision, cores, decoding, and free disk at FOLDER.

    \b
    Example:
        demkd doctor runs
    """
    from demkd import console
    from demkd.pipeline.doctor import examine

    (console.show_json if as_json else console.show_doctor)(examine(folder))


@main.command()
@click.option("--out", default="runs/demo", show_default=True, type=FOLDER, help="Where to put everything.")
@click.option("--epoch-lines", is_flag=True, help="Where stderr is no terminal: a line an epoch, not one a run.")
@compute_options
@output_options
def demo(out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """The whole pipeline on scikit-learn's handwritten digits, offline, in two minutes.

    \b
    Example:
        demkd demo
    """
    from demkd import console
    from demkd.pipeline.compute import choose_compute
    from demkd.pipeline.demo import run_demo

    compute = choose_compute(device=options["device"], precision=options["precision"])
    report = run_demo(out, compute, choose_progress(quiet))
    (console.show_json if as_json else console.show_demo)(report)
