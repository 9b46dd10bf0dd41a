"""The interface of callbacks: any object with these three methods.

Steps are epochs. Under torchrun only rank 0 calls them. An exception of a callback ends the run, and the same call
resumes it. docs/library.md has a callback for Weights & Biases.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from demkd.pipeline.results import EpochReport, RunReport


class Callback(Protocol):
    """Called during `train` and `distill`."""

    def on_start(self, recipe: Mapping[str, Any]) -> None:
        """Called when a run starts or resumes, with every option by name."""

    def on_epoch(self, report: EpochReport) -> None:
        """Called after an epoch, when it is in the run's files; not again for epochs before a resume."""

    def on_end(self, report: RunReport) -> None:
        """Called when the run is finished."""
