"""HTML reports of a cache and of runs, and files written whole or not at all."""

import base64
import importlib.util
import io
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.disk import write_durably
from demkd.errors import real_path, visible
from demkd.report import inspect
from demkd.report.compare import FinishedRun, curves, group_runs, shared_choices
from demkd.report.statistics import CacheStatistics
from demkd.report.table import Column, ReportError, Table, facts, format_value, tables
from demkd.report.terminal import shrink

Images = Callable[[int], NDArray[np.uint8]]  # index of a sample -> (H, W, 3)
Sections = Sequence[tuple[str, Sequence[Any]]]  # headings and their blocks: tables, figures, facts, sentences
Files = Callable[[int], str | None]  # index of a sample -> path
LISTED = 12
_LARGEST_SIDE = 64


def write_cache_page(
    statistics: CacheStatistics, path: Path, *, images: Images | None = None, file_of: Files | None = None
) -> int:
    """Write the report of a cache, with the images and paths of listed samples if they are given; returns its bytes."""
    check_libraries("an HTML report")
    from demkd.report.figures import cache_figures

    overview = inspect.overview(statistics)
    lists = ["uncertain", "label_issues"]
    if len(statistics.cache.teachers) > 1:
        lists += ["disagree"] if statistics.weights is None else ["disagree", "wrong_above_uniform"]
    listed: list[Any] = []
    for by in lists:
        table: Any = inspect.with_files(inspect.samples(statistics, by, LISTED), file_of or statistics.cache.file_of)
        if images is not None:
            rows = [(_data_uri(images(row[0])), *row) for row in table.rows]
            table = replace(table, columns=[Column("image", format="image"), *table.columns], rows=rows)
        listed.append(table)
    sections: Sections = [
        ("Provenance", [facts(overview)]),
        ("Teachers", tables(overview)),
        ("Entropy, weights and classes", cache_figures(statistics)),
        ("Classes", [inspect.classes(statistics)]),
        ("Samples", listed),
    ]
    title = f"Cache report: {overview['data'] or statistics.cache.folder.name}"
    return write_whole(path, _render(title, sections))


def write_runs_page(runs: Sequence[FinishedRun], comparison: dict[str, Any], path: Path) -> int:
    """Write the report of some runs and their comparison; returns its bytes."""
    check_libraries("an HTML report")
    from demkd.report.figures import MOST_GROUPS, run_figures

    table: Table = comparison["groups"]
    ranked = sorted(table, key=lambda row: (row["group"] != comparison["baseline"], -row["last_top1"]))
    kept = {row["group"] for row in ranked[:MOST_GROUPS]}
    groups = {name: curves(members) for name, members in group_runs(runs).items() if name in kept}
    text = "The band is one standard deviation over seeds around the mean."
    if len(table) > MOST_GROUPS:
        text += f" Figures show the {MOST_GROUPS} groups with the best last top-1, and the baseline."
    sections: Sections = [
        ("Results", [table]),
        ("By epoch", [text, *run_figures(groups)]),
        ("Runs", [comparison["runs"]]),
        ("Options of all runs", [facts(shared_choices(runs))]),
    ]
    return write_whole(path, _render("Comparison of runs", sections))


def write_accuracy_plot(runs: Sequence[FinishedRun], path: Path) -> int:
    """Write test top-1 by epoch as SVG or PNG, by the file's suffix; returns its bytes."""
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in ("svg", "png"):
        raise ReportError(f"{path} is neither .svg nor .png: give the plot one of these suffixes")
    check_libraries("a plot")
    from demkd.report.figures import accuracy_plot

    groups = {name: curves(members) for name, members in group_runs(runs).items()}
    return write_whole(path, accuracy_plot(groups, file_format))


def check_libraries(what: str) -> None:
    """Refuse early where the extra is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("matplotlib", "jinja2")):
        raise ReportError(f"{what} needs matplotlib and jinja2: pip install 'demkd[report]' installs them")


def _render(title: str, sections: Sections) -> bytes:
    """The page; everything is escaped, and its content security policy allows no script and no request."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("demkd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = format_value
    environment.tests["table"] = lambda block: isinstance(block, Table)
    return visible(environment.get_template("page.html.j2").render(title=title, sections=sections)).encode()


def _data_uri(image: NDArray[np.uint8]) -> str:
    """An image (H, W, 3) as PNG, at most 64 pixels wide or high."""
    from matplotlib.image import imsave

    content = io.BytesIO()
    settings: dict[str, Any] = {"metadata": {"Software": None}}
    imsave(content, shrink(image, _LARGEST_SIDE), format="png", **settings)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def write_whole(path: Path, content: bytes) -> int:
    """Write a file beside its name, then rename: a reader finds the old content or the new, never a part.

    A symlink stays one, and a pipe or a device is written to. Returns the number of bytes.

    Raises:
        ReportError: if the file cannot be written.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as file:
                file.write(content)
        else:
            write_durably(real_path(path), [content])
    except OSError as error:
        reason = error.strerror or getattr(error.__cause__, "strerror", None)  # a full disk is a CacheSpaceError
        raise ReportError(
            f"{path} cannot be written ({reason}): choose a file in a folder that exists and is writable"
        ) from error
    return len(content)
