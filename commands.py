"""The commands, their errors and exit codes.

A command is a function: options in, one call of the library, its report out. The library is imported when a command
runs, not for --help.
"""

import contextlib
import errno
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from demkd.api import LISTINGS, NEEDS, contradiction
from demkd.cli import INTERRUPTED, last_words
from demkd.config import (
    DATA_VARIABLE,
    METHOD,
    METHODS,
    AugmentConfig,
    CacheConfig,
    ImageConfig,
    MethodConfig,
    TrainConfig,
    choose_method,
    method_options,
)
from demkd.errors import ToldElsewhereError, UserError
from demkd.options import (
    FILE,
    Command,
    config_options,
    field_option,
    flag,
    in_options,
    key_of,
    names,
    recipe_and_settings,
    section,
    split_recipe,
)

if TYPE_CHECKING:
    from demkd.pipeline.progress import Progress
    from demkd.pipeline.sweep import SweepRun

FOLDER = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
_TOGETHER = ("cache-teachers", "train", "distill")  # the commands that several processes share


class _Commands(click.Group):
    """Shows a user's error, or an interrupt, as one sentence, with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not _is_later_rank(ctx):
                raise
            sys.exit(error.exit_code)
        except KeyboardInterrupt as interrupt:
            text, code = last_words(interrupt)
            text = "" if code == INTERRUPTED and _is_later_rank(ctx) else text
        except (ToldElsewhereError, BrokenPipeError):  # the reader of a pipe has seen enough
            text, code = "", 1
        except UserError as error:
            text, code = in_options(str(error), self.commands.get(ctx.invoked_subcommand or "", self)), 1
        except OSError as error:
            if error.filename is None:
                raise
            text, code = f"{error.filename}: {error.strerror}", 1  # a disk that fails, no right to write
            if error.errno == errno.EEXIST and Path(error.filename).is_symlink():
                text = f"{error.filename} is a broken symlink: remove it, or choose another folder (--out)"
        if text:
            _show_error(text)
        sys.exit(code)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """End in one sentence too if the output cannot be written."""
        try:
            try:
                return super().main(*arguments, **{**options, "prog_name": "demkd"})
            finally:
                if sys.stdout is not None:  # closed by the shell: `>&-`
                    sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            with contextlib.suppress(OSError):  # else Python would print again at its end what could not be printed
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):  # else the reader of a pipe has seen enough
                _show_error(f"the output cannot be written ({error.strerror}): free some space")
            sys.exit(1)


def _is_later_rank(ctx: click.Context) -> bool:
    """Whether rank 0 of the same command shows what this process would show.

    Only the commands that run on several ranks have a rank 0. Values that torchrun would not set are left to the
    command, which refuses them in one sentence.
    """
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if ctx.invoked_subcommand not in _TOGETHER or not (rank.isdecimal() and size.isdecimal()):
        return False
    return 0 < int(rank) < int(size)


def _show_error(text: str) -> None:
    from demkd.report.terminal import show_error

    show_error(text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="demkd", prog_name="demkd", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Distill many teachers into one student, from a cache of their logits.

    \b
    The whole pipeline on embedded data, offline, in about a minute:
        demkd demo
    Stage one, once per teacher:
        demkd cache-teachers --data DATA --teacher NETWORK@CHECKPOINT ... --out CACHE
    Stage two, as often as you like:
        demkd distill --data DATA --cache CACHE --student NETWORK --out RUN
    """
    if ctx.invoked_subcommand not in _TOGETHER:
        size = os.environ.get("WORLD_SIZE", "")
        if size.isdecimal() and int(size) > 1:
            raise click.UsageError(f"{ctx.invoked_subcommand} works in one process: start it without torchrun")
    elif _is_later_rank(ctx):
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - results are shown once, by rank 0


def pairs(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Texts `[TEACHER=]VALUE` as a mapping; "" stands for all others."""

    def read(_ctx: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> dict[str, Any] | None:
        split = [text.rpartition("=") for text in texts]
        try:
            return {name: kind(value) for name, _, value in split} or None
        except ValueError:
            raise click.BadParameter(f"{' '.join(texts)!r} is not {parameter.metavar}") from None

    return read


def number_or_random(_ctx: click.Context, _parameter: click.Parameter, text: Any) -> int | str | None:
    if text is None or text == "random":
        return text  # type: ignore[no-any-return]
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor random", param_hint="--views") from None


class _FromEnvironment(click.Option):
    """An option that the environment may fill in, where no recipe does: a recipe means the same everywhere."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        from_recipe = ctx.default_map and self.name in ctx.default_map
        return None if from_recipe else super().resolve_envvar_value(ctx)


data_option = click.option(
    "--data",
    required=True,
    cls=_FromEnvironment,
    envvar=DATA_VARIABLE,
    show_envvar=True,
    help="digits, cifar10, cifar100, or a folder with train/<class>/* and test/<class>/*.",
)
CACHE = click.Path(file_okay=False)  # or a URL, which `Path` would change
cache_argument = click.argument("cache", type=CACHE)
teachers_option = click.option(
    "--teachers", type=click.UNPROCESSED, metavar="NAME,...", callback=names, help="Teachers to use (default all)."
)
network_option = click.option("--network", help="Network name, for a plain checkpoint.")
out_option = click.option("--out", required=True, type=FOLDER, help="Output folder. Run the same command to resume.")
json_option = click.option("--json", "as_json", is_flag=True, help="Output JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="Hide progress.")
output_options = section("Output", json_option, quiet_option)
compute_options = section(
    "Device",
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--precision", default="auto", show_default=True, help="float32, bfloat16 or auto (bfloat16 where it is fast)."
    ),
)


def by_teacher(name: str, value: str, kind: Callable[[str], Any], text: str) -> list[Callable[[Any], Any]]:
    """An option of each teacher, and the same for a command with a single network."""
    return [
        click.option(name, multiple=True, metavar=metavar, callback=pairs(kind), help=text)
        for metavar in (f"[TEACHER=]{value}", value)
    ]


normalize_option, network_normalize_option = by_teacher(
    "--normalize",
    "MEAN/STD",
    str,
    "Mean and std of the network's input: cifar10, cifar100, imagenet, none or m,m,m/s,s,s. "
    "Default: its run folder's, else the data's.",
)
input_size_option, network_size_option = by_teacher(
    "--input-size", "PIXELS", int, "Input size of the network. Views are cropped or resized to it."
)


def teacher_option(name: str, text: str, *, required: bool = False) -> Callable[[Any], Any]:
    """Teachers as `[NAME=]NETWORK@CHECKPOINT`."""
    metavar = "[NAME=]NETWORK@CHECKPOINT"
    return click.option("--teacher", name, multiple=True, required=required, metavar=metavar, help=text)


@main.command(cls=Command)
@click.argument("network")
@recipe_and_settings
@data_option
@out_option
@config_options("Training", TrainConfig)
@config_options("Views", AugmentConfig, without=("size",))
@network_normalize_option
@config_options("Images", ImageConfig)
@compute_options
@output_options
def train(network: str, data: str, **options: Any) -> Any:
    """Train NETWORK on labels. It is a teacher, or a student's baseline; `demkd networks` lists the networks.

    \b
    Example:
        demkd train resnet20 --data cifar100 --out runs/teacher-a --seed 1
    """
    import demkd

    return demkd.train(network, train=data, **options)


@main.command("cache-teachers", cls=Command)
@recipe_and_settings
@data_option
@teacher_option("teachers", "A checkpoint file, or a run folder (with the network's name). Repeatable.", required=True)
@out_option
@config_options("Cache", CacheConfig)
@click.option("--dry-run", is_flag=True, help="Print bytes and time; write nothing.")
@config_options("Views", AugmentConfig)
@normalize_option
@input_size_option
@config_options("Images", ImageConfig)
@compute_options
@output_options
def cache_teachers(teachers: tuple[str, ...], data: str, dry_run: bool, **options: Any) -> Any:
    """Stage one: cache the teachers' logits. Each teacher runs once; entropies and features are cached too.

    \b
    Example:
        demkd cache-teachers --data cifar100 --views 16 --out runs/cache \\
            --teacher resnet20@resnet20.pth --teacher vgg8@vgg8.pth
    With --shards, the same command in several processes shares the work; see docs/scaling.md.
    """
    import demkd

    return (demkd.plan_caching if dry_run else demkd.cache_teachers)(teachers, data, **options)


@main.command(cls=Command)
@cache_argument
@click.option("--out", "--to", required=True, type=FOLDER, help="Output folder. Run the same command to resume.")
@teachers_option
@click.option("--views", type=int, help="Copy only the first N views.")
@field_option(CacheConfig, "top_k")
@field_option(CacheConfig, "tail_temperatures", "With --top-k: temperatures of the tail.")
@click.option("--logits", type=click.Choice(["uint8"]), help="Encode all logits in 8 bits.")
@click.option("--features", multiple=True, metavar="LAYER", help="Layer to copy, or none; default all; repeatable.")
@click.option("--license", metavar="TEXT", help="License for the README, such as cc-by-4.0.")
@output_options
def pack(cache: str, features: tuple[str, ...] = (), **options: Any) -> Any:
    """Copy CACHE into a folder to upload. The copy may be a part of it, and has digests and a README; no teacher runs.

    \b
    Examples:
        demkd pack runs/cache --to cifar100-logits
        demkd pack runs/cache --to small --views 8 --top-k 16 --features none
    """
    from demkd import api

    layers = [layer for layer in features if layer != "none"] if features else None
    return api.pack(cache, features=layers, **options)


_inspection_options = section(
    "What to look at",
    click.option("--by-class", is_flag=True, help="List the classes."),
    click.option(
        "--sort",
        metavar="COLUMN",
        help="With --by-class: sort by entropy, top1, disagreement, TEACHER.top1, ..., descending; -COLUMN ascending.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="With --by-class: show N classes."),
    click.option("--sample", type=int, metavar="I", help="Show one sample by its index."),
    click.option("--view-index", type=int, metavar="V", help="With --sample: view to show (default 0)."),
    click.option("--views", is_flag=True, help="With --sample: list all views."),
    click.option(
        "--data", help="Cached data set: show images with --sample and --html, and name files that the cache does not."
    ),
    *(
        click.option(name, type=click.IntRange(min=1), metavar="N", help=f"List the N samples {text}.")
        for name, text in (
            ("--uncertain", "of highest entropy"),
            ("--disagree", "about which teachers disagree most"),
            ("--wrong-above-uniform", "where a wrong teacher weighs most above 1/K"),
            ("--label-issues", "whose label is most likely wrong"),
        )
    ),
    click.option(
        "--score",
        metavar="WORD",
        help="With --label-issues: cross-entropy (default), margin, certainty, disagreement or entropy.",
    ),
    click.option("--html", type=FILE, help="Write an HTML report."),
)
_NEEDS = {**NEEDS, "data": ("sample", "html", *LISTINGS[2:])}
_EXCLUDE = (
    *itertools.combinations((*LISTINGS, "html"), 2),
    *(("html", "json"), ("html", "csv")),
    *(("views", "view_index"), ("views", "data"), ("json", "csv")),
)


@main.command(cls=Command)
@cache_argument
@teachers_option
@_inspection_options
@click.option("--json", is_flag=True, help="Output JSON.")
@click.option("--csv", is_flag=True, help="Output CSV.")
def inspect(cache: str, json: bool, csv: bool, teachers: Sequence[str] | None = None, **options: Any) -> None:
    """Show entropy, accuracy and weight by teacher. Options list classes or samples, or write a report.

    \b
    Example:
        demkd inspect runs/cache
        demkd inspect runs/cache --by-class --sort -top1 --limit 20
        demkd inspect runs/cache --sample 7 --data cifar100
        demkd inspect runs/cache --html cache.html --data cifar100
    """
    from demkd import api
    from demkd.cache import open_cache
    from demkd.cache.remote import local_folder
    from demkd.pipeline.progress import ConsoleProgress
    from demkd.report.table import to_csv
    from demkd.report.terminal import show, show_written

    if wrong := contradiction({**options, "json": json, "csv": csv}, named=flag, needs=_NEEDS, exclude=_EXCLUDE):
        raise click.UsageError(wrong)
    folder = local_folder(cache, teachers, task=ConsoleProgress().task)
    html, data = options.pop("html", None), options.pop("data", None)
    if html is not None:
        from demkd.report.page import check_libraries, write_cache_page
        from demkd.report.statistics import read_statistics

        check_libraries("an HTML report")  # before the images are read
        with open_cache(folder, teachers) as opened:
            statistics = read_statistics(opened)
            sources: dict[str, Any] = {}
            if data is not None:
                from demkd.pipeline.targets import images_of

                dataset = images_of(opened, data)
                sources = {"images": lambda index: dataset.read(index).numpy(), "file_of": dataset.file_of}
            show_written(html, write_cache_page(statistics, html, **sources), stderr=not html.is_file())
        return
    result, image = api.inspect(folder, teachers=teachers, **options), None
    if data is not None:
        from demkd.pipeline.targets import images_of
        from demkd.report.inspect import with_files

        with open_cache(folder, teachers) as opened:
            dataset = images_of(opened, data)
        result = with_files(result, dataset.file_of)
        image = None if "sample" not in options else dataset.read(options["sample"]).numpy()
    if csv:
        sys.stdout.write(to_csv(result))
    else:
        show(result, as_json=json, image=image)


@main.command(cls=Command)
@cache_argument
@click.option("--teachers", "only", callback=names, help="Teachers, separated by commas (default all).")
@click.option(
    "--recompute", type=click.IntRange(1, 10**6), metavar="N", help="Run the teachers again on N samples each."
)
@click.option("--data", help="With --recompute: the cached data set.")
@teacher_option("teachers", "With --recompute: teachers, as for cache-teachers.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 10**18), help="Random seed of --recompute."
)
@normalize_option
@input_size_option
@config_options("Images", ImageConfig)
@compute_options
@output_options
def verify(
    cache: str, only: Sequence[str] | None = None, recompute: int | None = None, data: str = "", **options: Any
) -> Any:
    """Check every byte of CACHE. The exit code is 1 if anything is wrong.

    \b
    Examples:
        demkd verify runs/cache
        demkd verify runs/cache --recompute 200 --data cifar100 --teacher resnet20@resnet20.pth
    """
    import demkd

    context, teachers = click.get_current_context(), options.pop("teachers", ())
    names_of_options = [parameter.name or "" for parameter in context.command.params]
    given = {name: context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in names_of_options}
    needs = {name: ("recompute",) for name in given if name not in ("cache", "only", "as_json", "quiet")}
    if wrong := contradiction(given, named=lambda name: f"`{name}`", needs=needs, exclude=()):
        raise click.UsageError(in_options(wrong, context.command))
    if recompute is not None and not (data and teachers):
        raise click.UsageError("--recompute needs --data and --teacher: give them too")
    if recompute is None:
        report = demkd.verify(cache, teachers=only, progress=options["progress"])
    elif only:
        raise click.UsageError("--recompute checks the whole cache: leave --teachers out")
    else:
        report = demkd.recompute(cache, teachers, data, pairs=recompute, **options)
    return report.translated(lambda text: in_options(text, main.commands["verify"]))


@main.command(cls=Command)
@recipe_and_settings
@data_option
@click.option("--student", required=True, metavar="NETWORK", help="The network to train (see `demkd networks`).")
@out_option
@click.option("--cache", type=CACHE, help="Cache folder, or the URL of one that pack wrote.")
@teachers_option
@click.option(
    "--views", callback=number_or_random, help="Train on the first N views (default all); or random, with --online."
)
@click.option("--method", default=METHOD, show_default=True, help=f"{', '.join(METHODS)}; see docs/methods.md.")
@config_options("Method (default: the preset's)", MethodConfig)
@click.option(
    "--hint-layer",
    multiple=True,
    metavar="[TEACHER=]LAYER",
    callback=pairs(str),
    help="Teacher layer to match, as inspect lists it (default: the last map).",
)
@click.option("--student-layer", help="Student layer to adapt to the teachers' (default: the last map).")
@click.option("--online", is_flag=True, help="Run live teachers instead of reading a cache.")
@teacher_option("live_teachers", "A live teacher, with --online.")
@click.option("--view-seed", type=int, help="Random seed of the views, with --online (default 0).")
@config_options("Training", TrainConfig)
@config_options("Views", AugmentConfig, without=("size",))
@normalize_option
@input_size_option
@config_options("Images", ImageConfig)
@compute_options
@output_options
def distill(data: str, online: bool, **options: Any) -> Any:
    """Stage two: train a student from a cache. No teacher is loaded.

    \b
    Example:
        demkd distill --data cifar100 --cache runs/cache --student resnet8 --out runs/student
    """
    import demkd

    if online == ("cache" in options):
        raise click.UsageError("give either --cache CACHE, or --online with --teacher")
    if "live_teachers" in options and not online:
        raise click.UsageError(
            "--teacher runs live teachers, which needs --online; a cache's are chosen with --teachers"
        )
    if "input_size" in options and not online:
        raise click.UsageError("--input-size needs --online: the input sizes of cached teachers are in the cache")
    return demkd.distill(train=data, **options)


@main.command(cls=Command)
@click.argument("run", type=ANY_PATH)
@click.option(
    "--data",
    cls=_FromEnvironment,
    envvar=DATA_VARIABLE,
    show_envvar=True,
    help="Data set, as train takes it. Default: that of the run folder; required for a checkpoint.",
)
@network_option
@click.option(
    "--split", default="test", show_default=True, type=click.Choice(["test", "train"]), help="Split to evaluate."
)
@network_normalize_option
@network_size_option
@click.option("--crop-pct", type=float, help="Fraction of a photo shown in evaluation (default 0.875).")
@config_options("Images", ImageConfig)
@compute_options
@output_options
def evaluate(run: Path, data: str | None = None, **options: Any) -> Any:
    """Measure top-1 and top-5 of a finished RUN. A checkpoint works too. The images are the test split's.

    \b
    Example:
        demkd evaluate runs/student
        demkd evaluate resnet20.pth --network resnet20 --data cifar100
    """
    import demkd

    return demkd.evaluate(run, data, **options)


@main.command(cls=Command)
@click.option("--classes", default=100, show_default=True, type=click.IntRange(min=1), help="Number of classes.")
@json_option
def networks(classes: int) -> Any:
    """List the networks and their parameters. With the shapes of features for a 32 x 32 image.

    \b
    Example:
        demkd networks
    Beside these, torchvision:NAME, timm:NAME and your own my_module:function are networks; see docs/networks.md.
    """
    import torch

    from demkd.networks import NETWORKS, build_network, feature_shapes
    from demkd.report.table import Column, Table

    rows = []
    for name in NETWORKS:
        with torch.device("meta"):  # no network gets a weight
            network = build_network(name, classes=classes)
        shapes = feature_shapes(network, (3, 32, 32)).items()
        features = "  ".join(f"{layer} {'x'.join(map(str, shape))}" for layer, shape in shapes)
        rows.append((name, sum(parameter.numel() for parameter in network.parameters()), features))
    columns = [Column("network"), Column("parameters", format=",d"), Column("features")]
    note = "features: channels x height x width; others: torchvision:NAME, timm:NAME, or your own my_module:function"
    return Table(f"Networks for {classes} classes and 32 x 32 images", columns, rows, note)


@main.command(cls=Command)
@click.argument("run", type=click.Path())
@click.option(
    "--format", "file_format", required=True, metavar="FORMAT", help="safetensors, onnx, torch-export or parquet."
)
@click.option("--out", required=True, type=ANY_PATH, help="Output file; for parquet, folder.")
@click.option("--data", help="Data set for the check (default: the run's); for parquet, names each image's file.")
@network_option
@config_options("Images", ImageConfig)
@output_options
def export(run: str, **options: Any) -> Any:
    """Write a finished RUN's network to a file. A fresh process loads the file, to check it.

    With --format parquet, write a cache as Parquet: one row per sample and view.

    \b
    Examples:
        demkd export runs/student --format onnx --out student.onnx
        demkd export runs/student --format safetensors --out student.safetensors
        demkd export runs/cache --format parquet --out rows
    """
    import demkd

    return demkd.export(run, **options)


_format_option = click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "markdown", "csv", "json"])
)
_seeds_option = click.option("--seeds", is_flag=True, help="Show every run: last and best top-1.")


@main.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--baseline", metavar="GROUP", help="Group to compare with: its name, or one of its run folders.")
@_format_option
@_seeds_option
@click.option("--html", type=FILE, help="Write an HTML report.")
@click.option("--plot", type=FILE, metavar="FILE.svg|png", help="Plot test top-1 by epoch.")
def compare(
    runs: tuple[Path, ...], baseline: str | None = None, html: Path | None = None, plot: Path | None = None, **how: Any
) -> None:
    """Compare finished RUNS over their seeds. Means, and paired differences to a baseline.

    \b
    Example:
        demkd compare runs/sweep/* --baseline runs/sweep/kd-seed0 --html runs.html
    """
    from demkd.report.compare import compare, read_run
    from demkd.report.page import write_accuracy_plot, write_runs_page
    from demkd.report.terminal import show_written

    finished = [read_run(folder) for folder in runs]
    comparison = compare(finished, baseline=baseline)
    if html is not None:
        show_written(html, write_runs_page(finished, comparison, html), stderr=True)
    if plot is not None:
        show_written(plot, write_accuracy_plot(finished, plot), stderr=True)
    _show_comparison(comparison, **how)


def _show_comparison(comparison: Mapping[str, Any], *, form: str, seeds: bool) -> None:
    from demkd.report.table import to_csv, to_markdown
    from demkd.report.terminal import show

    tables = [comparison[name] for name in (("groups", "runs") if seeds else ("groups",))]
    if form == "json":
        show(comparison, as_json=True)
    elif form == "csv":
        sys.stdout.write(to_csv(tables[-1]))
    elif form == "markdown":
        sys.stdout.write("\n".join(map(to_markdown, tables)))
    else:
        for table in tables:
            show(table)


@main.command(cls=Command)
@click.argument("recipe", type=FILE)
@click.option("--out", required=True, type=FOLDER, help="Folder of the runs. Finished runs are kept.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Number of parallel processes.")
@click.option("--leave-one-out", is_flag=True, help="Also train without each teacher.")
@click.option("--baseline", metavar="NAME", help="Group to compare with, or NAME of a table [runs.NAME].")
@_format_option
@_seeds_option
@quiet_option
def sweep(
    recipe: Path,
    out: Path,
    jobs: int,
    leave_one_out: bool,
    progress: "Progress",
    baseline: str | None = None,
    **how: Any,
) -> None:
    """Run the missing combinations of the options in RECIPE. Then compare them all.

    RECIPE is a TOML file: options for all runs, and a table [runs.NAME] for each line of the comparison. An option with
    a list of values is tried with each value; teachers = [["a", "b"], ["c"]] tries two sets. Only the list of an option
    that distill repeats, such as teacher, is one value. With --jobs, runs are parallel; they end with the sweep.

    \b
    Recipe:
        cache = "runs/demo/cache"
        seed = [0, 1, 2]
        [runs.dkd]
        method = "dkd"
        nckd_weight = [2.0, 8.0]

    \b
    Example:
        demkd sweep recipes/digits-sweep.toml --out runs/sweep
    """
    from demkd.pipeline.sweep import find_baseline, run_sweep
    from demkd.report.compare import compare, first_of_equal_runs, read_run

    runs = sweep_runs(recipe, out, leave_one_out=leave_one_out)
    base = None if baseline is None else find_baseline(runs, baseline)
    run_sweep(runs, jobs=jobs, progress=progress)
    shown = first_of_equal_runs([read_run(run.folder) for run in runs])
    same = [f"{folder} and {run.folder}" for folder, run in shown.items() if folder != run.folder]
    if same:
        progress.warn(f"these runs turned out to be the same, and are shown once: {'; '.join(same)}")
    distinct = [run for folder, run in shown.items() if folder == run.folder]
    _show_comparison(compare(distinct, baseline=str(shown[base.folder].folder) if base else baseline), **how)


def sweep_runs(recipe: Path, out: Path, *, leave_one_out: bool = False) -> "list[SweepRun]":
    """The runs of a sweep, each checked as `distill` would."""
    from demkd.pipeline.sweep import plan_sweep

    command = distill
    assert isinstance(command, Command)
    lists = {name: "tuple" in str(entry.type) for name, (_, entry) in command.settings.items()}
    lists |= {key_of(option): option.multiple for option in command.params if isinstance(option, click.Option)}

    def check(options: Mapping[str, Any], source: str) -> None:
        split_recipe(command, options, source=source)
        choose_method(options.get("method", METHOD), **method_options(options))

    return plan_sweep(recipe, out, lists, check, leave_one_out=leave_one_out)


@main.command(cls=Command)
@click.option("--out", default="runs/demo", show_default=True, type=FOLDER, help="Output folder.")
@click.option("--epoch-lines", is_flag=True, help="Print one line per epoch where stderr is no terminal.")
@compute_options
@output_options
def demo(out: Path, **options: Any) -> Any:
    """Run both stages on handwritten digits. Three teachers and small students, offline, in about a minute.

    \b
    Example:
        demkd demo
    """
    import torch

    import demkd
    from demkd.pipeline.results import DemoReport

    # Networks this small gain nothing from a second thread, and on a busy machine every operation waits for it.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    training = {"train": "digits", "epochs": 4, "schedule": "one-cycle", **options}
    networks = {"resnet20": 11, "wrn_16_2": 12, "vgg8": 13}  # and their seeds
    try:
        teachers = [demkd.train(name, out=out / name, seed=seed, **training) for name, seed in networks.items()]
        checkpoints = {name: out / name for name in networks}
        caching = demkd.cache_teachers(checkpoints, "digits", out=out / "cache", views=4, **options)
        # Wrong labels are what teachers are for; with right ones, labels alone are nearly as good (docs/results.md).
        training |= {"cache": out / "cache", "label_noise": 0.4}
        students = [
            demkd.distill("resnet8", method=method, seed=seed, out=out / f"{method}-seed{seed}", **training)
            for method in ("ce", "de-mkd")
            for seed in range(3)
        ]
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - started
    return DemoReport(folder=out, caching=caching, teachers=tuple(teachers), students=tuple(students), seconds=seconds)
