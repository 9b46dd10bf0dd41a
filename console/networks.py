"""Tables of networks and of exports."""

from demkd.console.output import counted, decimal_bytes, escape, plain_table, stdout
from demkd.pipeline.results import ExportReport, NetworkListing


def show_networks(listing: NetworkListing) -> None:
    """What networks there are."""
    console = stdout()
    _, height, width = listing.picture
    classes = counted(listing.classes, "class", "classes")
    console.print(f"{classes}; features of one {height} x {width} image")
    table = plain_table()
    table.add_column("network", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("features (channels x height x width)")
    for network in listing.networks:
        shapes = "  ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in network.features.items())
        table.add_row(network.name, f"{network.parameters:,}", shapes)
    console.print(table)
    console.print("Others: torchvision:NAME, timm:NAME, or my_module:function of your own")


def show_export(report: ExportReport) -> None:
    """What was written, and how it was checked."""
    shape = ", ".join(str(side) for side in report.input_shape)
    stdout().print(
        f"{escape(str(report.file))}: {report.network} as {report.format}, {decimal_bytes(report.file_bytes)}, "
        f"input (B, {shape}), {counted(report.classes, 'class', 'classes')}. Loaded in a fresh process, its logits of "
        f"{report.pictures} test pictures differ from the student's by {report.largest_difference:.2g} at most",
        soft_wrap=True,
    )
