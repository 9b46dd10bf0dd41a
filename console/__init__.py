"""How progress, tables and errors look: the only room that knows rich. Progress goes to stderr, results to stdout."""

from demkd.console.ablation import show_ablation
from demkd.console.cache_results import show_caching, show_merge, show_pack, show_plan, show_verification
from demkd.console.doctor import show_doctor
from demkd.console.inspection import show_inspection
from demkd.console.log import LogFile, TwoProgresses
from demkd.console.networks import show_export, show_networks
from demkd.console.output import show_csv, show_error, show_json, show_written
from demkd.console.progress import ConsoleProgress
from demkd.console.runs import show_comparison, show_demo, show_evaluation, show_run

__all__ = [
    "ConsoleProgress",
    "LogFile",
    "TwoProgresses",
    "show_ablation",
    "show_caching",
    "show_comparison",
    "show_csv",
    "show_demo",
    "show_doctor",
    "show_error",
    "show_evaluation",
    "show_export",
    "show_inspection",
    "show_json",
    "show_merge",
    "show_networks",
    "show_pack",
    "show_plan",
    "show_run",
    "show_verification",
    "show_written",
]
