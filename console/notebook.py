"""Reports and caches in notebooks: what the command line prints, recorded, in its colours, without a background."""

import io
from collections.abc import Callable, Mapping
from html import escape as html_escape
from typing import Any

from rich.text import Text

from demkd.cache import Cache
from demkd.console.cache_results import show_caching, show_merge, show_pack, show_plan, show_verification
from demkd.console.inspection import show_inspection
from demkd.console.networks import show_export, show_networks
from demkd.console.output import PlainConsole, decimal_bytes, escape, plain_table, printing_to, stdout
from demkd.console.runs import show_evaluation, show_run
from demkd.pipeline import results
from demkd.report.classes import ClassListing
from demkd.report.gallery import PicturedSamples
from demkd.report.samples import SampleListing
from demkd.report.single_sample import SampleSummary, SampleViews
from demkd.report.summary import CacheSummary
from demkd.untrusted import visible_line

_WIDTH = 110
_PRE = '<pre style="line-height: 1.25; overflow-x: auto">{code}</pre>'
_FIGURE = (
    '<figure style="display: inline-block; margin: 4px; text-align: center; font-size: 80%">'
    '<img src="{picture}" alt="sample {index}" style="width: 64px; image-rendering: pixelated">'
    "<figcaption>{index}: {label}<br>{answers}</figcaption></figure>"
)


def as_html(value: Any) -> str:
    """A report or a cache as HTML, with small pictures where it has some."""
    pictures = "".join(map(_figure, value.exhibits)) if isinstance(value, PicturedSamples) else ""
    console = _recorded(value)
    return pictures + console.export_html(inline_styles=True, code_format=_PRE)


def as_text(value: Any) -> Text:
    """The same for rich."""
    return Text.from_ansi(_recorded(value).export_text(styles=True).rstrip("\n"))


def _recorded(value: Any) -> PlainConsole:
    console = PlainConsole(
        record=True, file=io.StringIO(), width=_WIDTH, force_terminal=True, force_jupyter=False,
        color_system="truecolor",
    )  # fmt: skip
    with printing_to(console):
        SHOWN[type(value)](value)
    return console


def _figure(exhibit: Any) -> str:
    row = exhibit.row
    answers = ", ".join(f"{teacher.name}: {teacher.prediction}" for teacher in row.teachers)
    return _FIGURE.format(
        picture=exhibit.picture,
        index=row.index,
        label=html_escape(visible_line(row.label)),
        answers=html_escape(visible_line(answers)),
    )


def _show_cache(cache: Cache) -> None:
    """A line a teacher, of the first slot alone: who looks at an object should not wait; `inspect` reads all."""
    console = stdout()
    if not cache.teachers:
        console.print(f"[bold]{escape(str(cache.folder))}[/]: closed")
        return
    console.print(
        f"[bold]{escape(str(cache.folder))}[/]: {cache.samples:,} samples of {cache.classes:,} classes, "
        f"{cache.num_views} views"
    )
    table = plain_table(left=("teacher", "network", "logits", "features"), right=("top-1", "entropy", "size"))
    for teacher in cache.teachers:
        entropy, prediction = teacher.read("entropy", 0), teacher.read("prediction", 0)
        table.add_row(
            escape(teacher.name),
            escape(str(teacher.provenance.identity["teacher"]["network"])),
            "all" if teacher.shape.keep is None else f"{teacher.shape.keep} largest",
            escape(", ".join(teacher.shape.features)) or "none",
            f"{(prediction == teacher.labels).mean():.2%}",
            f"{entropy.mean(dtype='float64'):.3f}",
            decimal_bytes(teacher.file_bytes),
        )
    console.print(table)
    console.print("[dim]top-1 and entropy (nats) of the first view alone; demkd.inspect reads all[/]")


SHOWN: Mapping[type, Callable[[Any], None]] = {
    Cache: _show_cache,
    results.CachingPlan: show_plan,
    results.CachingReport: show_caching,
    results.EvaluationReport: show_evaluation,
    results.ExportReport: show_export,
    results.MergeReport: show_merge,
    results.NetworkListing: show_networks,
    results.PackReport: show_pack,
    results.RunReport: show_run,
    results.VerificationReport: show_verification,
    **dict.fromkeys((CacheSummary, ClassListing, SampleListing, SampleSummary, SampleViews), show_inspection),
    PicturedSamples: lambda pictured: show_inspection(pictured.listing),
}
