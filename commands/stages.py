"""The two stages, and what goes with one network: train, cache-teachers, distill, evaluate, export."""

import json
from pathlib import Path
from typing import Any

import click

from demkd.commands.options import (
    ANY_PATH,
    FOLDER,
    compute_options,
    crop_ratio_option,
    data_option,
    hint_layer_option,
    input_size_option,
    method_options,
    network_option,
    normalise_option,
    output_options,
    reading_options,
    recipe_option,
    run_option,
    teacher_option,
    training_options,
    view_options,
    view_size_option,
)
from demkd.commands.sections import SectionedCommand
from demkd.commands.values import given, in_options, names, number_or, numbers, ranges, refuse_code_of_recipe
from demkd.errors import UserError
from demkd.pipeline import defaults


@click.command(cls=SectionedCommand)
@click.argument("network")
@recipe_option
@data_option
@run_option
@training_options
@view_options
@view_size_option
@crop_ratio_option
@normalise_option
@reading_options
@compute_options
@output_options
def train(network: str, data: str, as_json: bool, **options: Any) -> None:
    """Train NETWORK on labels: a teacher, or a student's baseline.

    \b
    Example:
        demkd train resnet20 --data cifar100 --out runs/teacher-a --seed 1
    """
    from demkd import api, console

    refuse_code_of_recipe("network", [network])
    console.show(api.train(network, train=data, **given(options, view_size=options["size"])), as_json=as_json)


@click.command("cache-teachers", cls=SectionedCommand)
@recipe_option
@data_option
@teacher_option(
    "teachers",
    "A checkpoint file, or a run folder (which knows its network); repeat for more teachers.",
    required=True,
)
@click.option("--out", required=True, type=FOLDER, help="Cache folder. Run the same command to resume.")
@click.option("--views", type=int, help=f"Views per sample (default {defaults.VIEWS}, or all if fewer).")
@click.option(
    "--view-seed",
    default=defaults.VIEW_SEED,
    show_default=True,
    type=click.IntRange(min=0),
    help="Random seed of the views.",
)
@click.option(
    "--features",
    multiple=True,
    default=defaults.LAYERS,
    show_default=True,
    metavar="LAYER",
    help="Layer to cache: last (the last map before pooling), a name, or none; repeatable.",
)
@click.option(
    "--feature-grid",
    default=defaults.GRID,
    show_default=True,
    type=click.IntRange(min=1),
    help="Pool feature maps to this size.",
)
@click.option("--batch-size", type=int, help="Batch size (at most 1,024; default 256, or 64 for photos on a CPU).")
@click.option("--keep", type=int, metavar="K", help="Keep the K largest logits, and the sum of the rest.")
@click.option(
    "--rest-temperatures",
    default=",".join(f"{one:g}" for one in defaults.REST_TEMPERATURES),
    show_default=True,
    metavar="T,T,...",
    callback=numbers,
    help="With --keep: temperatures of that sum.",
)
@click.option(
    "--shards",
    type=int,
    metavar="N",
    help="Files per teacher, for as many processes (default: existing ones, or torchrun's processes).",
)
@click.option(
    "--only-shards",
    metavar="N,N-N",
    callback=ranges,
    help="Compute only these shards, from 0; for machines without a common disk.",
)
@click.option("--dry-run", is_flag=True, help="Print bytes and time; write nothing.")
@view_options
@view_size_option
@normalise_option
@input_size_option
@reading_options
@compute_options
@output_options
def cache_teachers(teachers: tuple[str, ...], data: str, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Stage one: run each teacher once, and keep its answers.

    \b
    Example:
        demkd cache-teachers --data cifar100 --views 16 --out runs/cache \\
            --teacher resnet20@resnet20.pth --teacher vgg8@vgg8.pth
    With --shards, the same command in several processes shares the work; see docs/scaling.md.
    """
    from demkd import api, console

    refuse_code_of_recipe("teachers", teachers)
    options["features"] = [layer for layer in options["features"] if layer != "none"]
    stage = api.plan_caching if dry_run else api.cache_teachers
    console.show(stage(teachers, data, **given(options, view_size=options.pop("size"))), as_json=as_json)


@click.command(cls=SectionedCommand)
@recipe_option
@data_option
@click.option("--student", required=True, metavar="NETWORK", help="The network to train.")
@run_option
@click.option("--cache", type=FOLDER, help="Cache folder.")
@click.option("--teachers", callback=names, help="Teachers of the cache, separated by commas (default all).")
@click.option(
    "--views",
    callback=number_or("random", int, hint="--views"),
    help="Train on the first N views (default all); or random, with --online.",
)
@method_options
@hint_layer_option
@click.option("--student-layer", default="", help="Student layer to adapt to the teachers' (default: the last map).")
@click.option("--online", is_flag=True, help="Run live teachers instead of reading a cache.")
@teacher_option("live_teachers", "A live teacher, with --online.")
@click.option(
    "--view-seed",
    type=click.IntRange(min=0),
    help=f"Random seed of the views, with --online (default {defaults.VIEW_SEED}).",
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
def distill(as_json: bool, **options: Any) -> None:
    """Stage two: train a student from a cache; no teacher is loaded.

    \b
    Example:
        demkd distill --data cifar100 --cache runs/cache --student resnet8 --out runs/student
    """
    from demkd import api, console

    console.show(api.distill(**_for_distill(options)), as_json=as_json)


def _for_distill(options: dict[str, Any]) -> dict[str, Any]:
    """The options as arguments of `api.distill`."""
    online = options.pop("online")
    if online == (options["cache"] is not None):
        raise click.UsageError("give either --cache CACHE, or --online with --teacher")
    if options["live_teachers"] and not online:
        raise click.UsageError(
            "--teacher runs live teachers, which needs --online; a cache's are chosen with --teachers"
        )
    if options["input_size"] and not online:
        raise click.UsageError("--input-size is for live teachers, which needs --online; a cache knows its own")
    refuse_code_of_recipe("student", [options["student"]])
    refuse_code_of_recipe("live_teachers", options["live_teachers"])
    values = given(options, view_size=options["size"] if online else None)
    values["train"], values["teachers"] = values.pop("data"), values["teachers"] or ()
    return values


@click.command(hidden=True, cls=SectionedCommand)
@click.argument("runs")
def distill_together(runs: str) -> None:
    """Several runs of a sweep in one process: RUNS is JSON, what each gives `distill`; so is what came of them."""
    from demkd import api

    found: dict[int, dict[str, Any]] = {}
    asked: dict[int, dict[str, Any]] = {}
    for number, words in enumerate(json.loads(runs)):
        try:
            options = dict(distill.make_context("distill", words).params)
            del options["as_json"], options["quiet"]  # as the sweep wants them, which shows what came of its runs
            asked[number] = _for_distill(options)
        except click.ClickException as error:
            found[number] = {"error": error.format_message()}
    reports = api.distill_together(list(asked.values()), progress=False) if asked else []
    for number, report in zip(asked, reports, strict=True):
        if isinstance(report, UserError):
            found[number] = {"error": in_options(str(report), distill)}
        else:
            found[number] = {"test_top1": report.test_top1}
    click.echo(json.dumps([found[number] for number in sorted(found)]))


@click.command(cls=SectionedCommand)
@click.argument("run", type=ANY_PATH)
@data_option
@network_option
@click.option(
    "--split", default="test", show_default=True, type=click.Choice(["test", "train"]), help="Split to evaluate."
)
@normalise_option
@input_size_option
@crop_ratio_option
@reading_options
@compute_options
@output_options
def evaluate(run: Path, data: str, as_json: bool, **options: Any) -> None:
    """Measure top-1 and top-5 of a finished RUN, or of a checkpoint, on the test split.

    \b
    Example:
        demkd evaluate runs/student --data cifar100
    """
    from demkd import api, console

    console.show(api.evaluate(run, data, **given(options)), as_json=as_json)


@click.command(cls=SectionedCommand)
@click.argument("run", type=ANY_PATH)
@click.option("--format", "file_format", required=True, metavar="FORMAT", help="safetensors, onnx or torch-export.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Output file.")
@click.option("--data", help="Data set for the check (default: the run's).")
@network_option
@reading_options
@output_options
def export(run: Path, as_json: bool, **options: Any) -> None:
    """Write the network of a finished RUN for use elsewhere, and check the file by loading it in a fresh process.

    \b
    Example:
        demkd export runs/student --format onnx --out student.onnx
    """
    from demkd import api, console

    console.show(api.export(run, **given(options)), as_json=as_json)
