"""Pages and plots as files; what draws them is imported only then, and may not be installed."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demkd.report.comparison import Comparison, FinishedRun
from demkd.report.statistics import CacheStatistics
from demkd.report.writing import PageError, WrittenFile, write_whole
from demkd.untrusted import visible

if TYPE_CHECKING:
    from demkd.report.gallery import Picture

_PLOT_FORMATS = {".svg": "svg", ".png": "png"}


def write_cache_page(statistics: CacheStatistics, path: Path, *, picture: "Picture | None" = None) -> WrittenFile:
    """Write the page of a cache.

    Args:
        picture: gives those of samples, to show in the galleries.

    Raises:
        PageError: if a library is missing, or the file cannot be written.
    """
    require_page_libraries("a page")
    from demkd.report.cache_page import cache_page

    return write_whole(path, _encoded(cache_page(statistics, picture=picture)))


def write_runs_page(runs: Sequence[FinishedRun], comparison: Comparison, path: Path) -> WrittenFile:
    """Write the page of some runs and their comparison.

    Raises:
        PageError: if a library is missing, or the file cannot be written.
        ComparisonError: if the metrics of a run cannot be read.
    """
    require_page_libraries("a page")
    from demkd.report.runs_page import runs_page

    return write_whole(path, _encoded(runs_page(runs, comparison)))


def write_accuracy_plot(runs: Sequence[FinishedRun], comparison: Comparison, path: Path) -> WrittenFile:
    """Write test top-1 against epoch as SVG or PNG, by the file's suffix.

    Raises:
        PageError: if the suffix is another, a library is missing, or the file cannot be written.
        ComparisonError: if the metrics of a run cannot be read.
    """
    if path.suffix.lower() not in _PLOT_FORMATS:
        raise PageError(f"{path} is neither .svg nor .png: give the plot one of these suffixes")
    require_page_libraries("a plot")
    from demkd.report.curves import group_curves
    from demkd.report.run_figures import accuracy_file

    groups = group_curves(runs, comparison)
    return write_whole(path, accuracy_file(groups, file_format=_PLOT_FORMATS[path.suffix.lower()]))


def _encoded(page: str) -> bytes:
    return visible(page).encode()


def require_page_libraries(what: str) -> None:
    """Refuse early where the extra is not installed.

    Raises:
        PageError: saying how to install it.
    """
    if any(importlib.util.find_spec(name) is None for name in ("matplotlib", "jinja2")):
        raise PageError(f"{what} needs matplotlib and jinja2: pip install 'demkd[report]' installs them")
