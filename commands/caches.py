"""What is done with a cache: merge, pack, inspect, verify."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from demkd.cache import open_cache
from demkd.commands.options import (
    FILE,
    FOLDER,
    cache_argument,
    compute_options,
    input_size_option,
    json_option,
    normalise_option,
    output_options,
    reading_options,
    teacher_option,
    teachers_option,
)
from demkd.commands.sections import SectionedCommand, section
from demkd.commands.values import choose_progress, flag, given, in_options, names, numbers
from demkd.pipeline.arguments import LISTINGS, NEEDS, contradiction

if TYPE_CHECKING:
    from demkd.cache import Cache
    from demkd.report.gallery import Picture
    from demkd.report.writing import WrittenFile


@click.command(cls=SectionedCommand)
@cache_argument
@teachers_option
@output_options
def merge(cache: Path, as_json: bool, **options: Any) -> None:
    """Make one file of each teacher's shards in CACHE: the bytes that one process would have written.

    \b
    Example:
        demkd merge runs/cache
    """
    from demkd import api, console

    console.show(api.merge(cache, **given(options)), as_json=as_json)


@click.command(cls=SectionedCommand)
@cache_argument
@click.option("--out", "--to", required=True, type=FOLDER, help="Output folder. Run the same command to resume.")
@teachers_option
@click.option("--views", type=int, help="Copy only the first N views.")
@click.option("--keep", type=int, metavar="K", help="Keep the K largest logits, and the sum of the rest.")
@click.option(
    "--rest-temperatures",
    metavar="T,T,...",
    callback=numbers,
    help="With --keep: temperatures of that sum.",
)
@click.option("--features", multiple=True, metavar="LAYER", help="Layer to copy, or none; default all; repeatable.")
@output_options
def pack(cache: Path, features: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Copy CACHE, or a part of it, into a folder to upload as it is, with digests and a README; no teacher runs.

    \b
    Examples:
        demkd pack runs/cache --to cifar100-answers
        demkd pack runs/cache --to small --views 8 --keep 16 --features none
    """
    from demkd import api, console

    layers = [layer for layer in features if layer != "none"] if features else None
    console.show(api.pack(cache, features=layers, **given(options)), as_json=as_json)


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
    click.option("--slot", type=int, metavar="S", help="With --sample: view to show (default 0)."),
    click.option("--views", is_flag=True, help="With --sample: list all views."),
    click.option(
        "--data", help="With --sample and --html: show images of this data set, which must be the cached one."
    ),
    *(
        click.option(name, type=click.IntRange(min=1), metavar="N", help=f"List the N samples {text}.")
        for name, text in (
            ("--uncertain", "of highest entropy"),
            ("--disagree", "about which teachers disagree most"),
            ("--wrong-and-trusted", "where a wrong teacher is trusted most"),
            ("--suspect", "whose label is likeliest to be wrong"),
        )
    ),
    click.option(
        "--score",
        metavar="WORD",
        help="With --suspect: cross-entropy (default), margin, certainty, disagreement or entropy.",
    ),
    click.option("--html", type=FILE, help="Write an HTML report."),
)
_NEEDS = {**NEEDS, "data": ("sample", "html")}
_EXCLUDE = (
    *itertools.combinations((*LISTINGS, "html"), 2),
    *(("html", "json"), ("html", "csv")),
    *(("views", "slot"), ("views", "data"), ("data", "json"), ("data", "csv"), ("json", "csv")),
)


@click.command(cls=SectionedCommand)
@cache_argument
@teachers_option
@_inspection_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Output CSV.")
def inspect(cache: Path, teachers: Sequence[str] | None, as_json: bool, as_csv: bool, **options: Any) -> None:
    """Show the cached entropies: entropy, accuracy and weight of each teacher.

    \b
    Example:
        demkd inspect runs/cache
        demkd inspect runs/cache --by-class --sort -top1 --limit 20
        demkd inspect runs/cache --sample 7 --data cifar100
        demkd inspect runs/cache --html cache.html --data cifar100
    """
    from demkd import api, console
    from demkd.report.rows import flat_rows

    wrong = contradiction({**options, "json": as_json, "csv": as_csv}, named=flag, needs=_NEEDS, exclude=_EXCLUDE)
    if wrong:
        raise click.UsageError(wrong)
    html, data = options.pop("html"), options.pop("data")
    if html is not None:
        console.show_written(_write_page(cache, teachers, html, data))
        return
    found = api.inspect(cache, teachers=teachers, **options)
    if as_json:
        console.show_json(found)
    elif as_csv:
        console.show_csv(flat_rows(found))
    else:
        with open_cache(cache, teachers) as opened:
            picture = None if data is None else _pictures_of(opened, data)(options["sample"])
        console.show_inspection(found, picture=picture)


def _pictures_of(cache: "Cache", data: str) -> "Picture":
    from demkd.pipeline.cached_pictures import pictures_of

    return pictures_of(cache, data)


def _write_page(cache: Path, teachers: Sequence[str] | None, path: Path, data: str | None) -> "WrittenFile":
    from demkd.report.pages import require_page_libraries, write_cache_page
    from demkd.report.statistics import read_statistics

    require_page_libraries("a page")  # before the pictures are read
    with open_cache(cache, teachers) as opened:
        picture = None if data is None else _pictures_of(opened, data)
        return write_cache_page(read_statistics(opened), path, picture=picture)


@click.command(cls=SectionedCommand)
@cache_argument
@click.option("--teachers", "only", callback=names, help="Teachers, separated by commas (default all).")
@click.option("--recompute", type=click.IntRange(min=1), metavar="N", help="Run the teachers again on N samples each.")
@click.option("--repair", is_flag=True, help="Recompute the blocks that fail.")
@click.option("--data", help="With --recompute and --repair: the cached data set.")
@teacher_option("teachers", "With --recompute and --repair: teachers, as for cache-teachers.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Random seed of --recompute.")
@normalise_option
@input_size_option
@reading_options
@compute_options
@output_options
def verify(
    cache: Path, only: Sequence[str] | None, recompute: int | None, repair: bool, as_json: bool, **options: Any
) -> None:
    """Check every byte of CACHE; exit with 1 if anything is wrong.

    \b
    Examples:
        demkd verify runs/cache
        demkd verify runs/cache --recompute 200 --data cifar100 --teacher resnet20@resnet20.pth
    """
    from demkd import api, console

    asked, seed = (options.pop("teachers"), options.pop("data")), options.pop("seed")
    asks = repair or recompute is not None
    if asks != all(asked):
        raise click.UsageError("--recompute and --repair need --data and --teacher, and nothing else does")
    if asks and only:
        raise click.UsageError("--recompute and --repair look at the whole cache: leave --teachers out")
    if repair and recompute is not None:
        raise click.UsageError("--recompute and --repair exclude each other: repair first, then recompute")
    if recompute is not None:
        report = api.recompute(cache, *asked, pairs=recompute, seed=seed, **given(options))
    elif repair:
        report = api.repair(cache, *asked, **given(options))
    else:
        report = api.verify(cache, teachers=only, progress=choose_progress(options["quiet"]))
    report = report.translated(lambda text: in_options(text, click.get_current_context().command))
    console.show(report, as_json=as_json)
    if not report.sound:
        sys.exit(1)
