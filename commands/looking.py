"""What there is, before there is a cache or a run: networks and demo."""

from pathlib import Path

import click

from demkd.commands.options import FOLDER, compute_options, json_option, output_options
from demkd.commands.sections import SectionedCommand
from demkd.commands.values import choose_progress


@click.command(cls=SectionedCommand)
@click.option("--classes", default=100, show_default=True, type=click.IntRange(min=1), help="Number of classes.")
@json_option
def networks(classes: int, as_json: bool) -> None:
    """List the networks with parameters and feature shapes for a 32 x 32 image.

    \b
    Example:
        demkd networks
    Beside these, torchvision:NAME, timm:NAME and your own my_module:function are networks; see docs/networks.md.
    """
    from demkd import console
    from demkd.pipeline.listing import list_networks

    console.show(list_networks(classes=classes), as_json=as_json)


@click.command(cls=SectionedCommand)
@click.option("--out", default="runs/demo", show_default=True, type=FOLDER, help="Output folder.")
@click.option("--epoch-lines", is_flag=True, help="Print one line per epoch where stderr is no terminal.")
@compute_options
@output_options
def demo(out: Path, device: str, precision: str, quiet: bool, as_json: bool, epoch_lines: bool) -> None:  # noqa: ARG001 - of progress
    """The whole pipeline on scikit-learn's handwritten digits, offline, in two minutes.

    \b
    Example:
        demkd demo
    """
    from demkd import console
    from demkd.pipeline.compute import choose_compute
    from demkd.pipeline.demo import run_demo

    compute = choose_compute(device=device, precision=precision)
    console.show(run_demo(out, compute, choose_progress(quiet)), as_json=as_json)
