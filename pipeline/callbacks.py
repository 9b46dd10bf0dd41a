"""A run told to others while it goes on: one interface, and what puts it into Weights & Biases and MLflow.

    demkd.distill(..., callbacks=[demkd.WandbCallback(project="students")])

Values have the names of TensorBoard's events (`events.py`), steps are epochs. Under torchrun the first process alone
tells. What a callback raises ends the run, which goes on when called again.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from demkd.errors import UserError
from demkd.pipeline.events import scalars
from demkd.pipeline.results import EpochReport, RunReport


class CallbackError(UserError, ImportError):
    """A tracker whose package is not installed."""


class Callback(Protocol):
    """What a run tells: any object with these three methods will do."""

    def on_start(self, recipe: Mapping[str, Any]) -> None:
        """A run begins or goes on; every choice by name."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch is over, and in the run's files; epochs before a run went on are not told again."""

    def on_end(self, report: RunReport) -> None:
        """The run is finished."""


class WandbCallback:
    """A run of Weights & Biases, which needs the package wandb."""

    def __init__(self, **options: Any) -> None:
        """Choose what `wandb.init` takes: project, name, mode, dir, resume, ..."""
        self._options = options

    def on_start(self, recipe: Mapping[str, Any]) -> None:
        """Begin its run, with the recipe as its configuration."""
        try:
            import wandb
        except ImportError as error:
            raise CallbackError("`callbacks` has one for wandb, which is missing: pip install wandb") from error
        self._run = wandb.init(**{**self._options, "config": {**recipe, **self._options.get("config", {})}})

    def on_epoch(self, report: EpochReport) -> None:
        """Log an epoch's values."""
        self._run.log(scalars(asdict(report)), step=report.epoch)

    def on_end(self, report: RunReport) -> None:
        """Note the best epoch, and finish its run."""
        self._run.summary.update({"best_top1": report.best_top1, "best_epoch": report.best_epoch})
        self._run.finish()


class MlflowCallback:
    """A run of MLflow, which needs the package mlflow or mlflow-skinny."""

    def __init__(self, **options: Any) -> None:
        """Choose what `mlflow.start_run` takes: run_name, run_id of a run to go on with, experiment_id, tags, ..."""
        self._options = options

    def on_start(self, recipe: Mapping[str, Any]) -> None:
        """Begin its run, with the recipe as its parameters."""
        try:
            import mlflow
        except ImportError as error:
            raise CallbackError("`callbacks` has one for mlflow, which is missing: pip install mlflow") from error
        self._mlflow = mlflow
        mlflow.start_run(**self._options)
        mlflow.log_params(dict(recipe))

    def on_epoch(self, report: EpochReport) -> None:
        """Log an epoch's values."""
        self._mlflow.log_metrics(scalars(asdict(report)), step=report.epoch)

    def on_end(self, report: RunReport) -> None:
        """Log the best epoch, and end its run."""
        self._mlflow.log_metrics({"best_top1": report.best_top1, "best_epoch": report.best_epoch})
        self._mlflow.end_run()
