"""How progress, tables and errors look: the only room that knows rich. Progress goes to stderr, results to stdout."""

from demkd.console.inspection import show_inspection
from demkd.console.output import show_csv, show_error, show_json, show_written
from demkd.console.progress import ConsoleProgress
from demkd.console.runs import show_comparison
from demkd.console.shown import show

__all__ = [
    "ConsoleProgress",
    "show",
    "show_comparison",
    "show_csv",
    "show_error",
    "show_inspection",
    "show_json",
    "show_written",
]
