"""Every report, and the function that prints it."""

from collections.abc import Callable, Mapping
from typing import Any

from demkd.console.cache_results import (
    show_caching,
    show_merge,
    show_pack,
    show_plan,
    show_verification,
)
from demkd.console.inspection import show_inspection
from demkd.console.networks import show_export, show_networks
from demkd.console.output import show_json
from demkd.console.runs import show_demo, show_evaluation, show_run
from demkd.pipeline import results
from demkd.report.classes import ClassListing
from demkd.report.samples import SampleListing
from demkd.report.single_sample import SampleSummary, SampleViews
from demkd.report.summary import CacheSummary

SHOWN: Mapping[type, Callable[[Any], None]] = {
    results.CachingPlan: show_plan,
    results.CachingReport: show_caching,
    results.DemoReport: show_demo,
    results.EvaluationReport: show_evaluation,
    results.ExportReport: show_export,
    results.MergeReport: show_merge,
    results.NetworkListing: show_networks,
    results.PackReport: show_pack,
    results.RunReport: show_run,
    results.VerificationReport: show_verification,
    **dict.fromkeys((CacheSummary, ClassListing, SampleListing, SampleSummary, SampleViews), show_inspection),
}


def show(report: Any, *, as_json: bool = False) -> None:
    """A report on stdout: for people, or as JSON for programs."""
    (show_json if as_json else SHOWN[type(report)])(report)
