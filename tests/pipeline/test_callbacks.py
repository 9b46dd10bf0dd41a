"""A run told to others: what they hear is what the run's files say, once and in order; and the trackers themselves."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import demkd
from demkd.pipeline.events import scalars
from demkd.pipeline.results import EpochReport, RunReport
from tests.pipeline.test_top_k import SILENT, data, network

OPTIONS: dict[str, Any] = {"train": data(), "test": data(), "batch_size": 20, "learning_rate": 0.01, **SILENT}


class Heard:
    """Writes down what it is told."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.heard: list[Any] = []
        self.stop_after = stop_after

    def on_start(self, recipe: Mapping[str, Any]) -> None:
        self.heard.append(recipe)

    def on_epoch(self, report: EpochReport) -> None:
        self.heard.append(report)
        if report.epoch == self.stop_after:
            raise KeyboardInterrupt

    def on_end(self, report: RunReport) -> None:
        self.heard.append(report)


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_tells_its_recipe_every_epoch_and_its_end(tmp_path: Path) -> None:
    one, other = Heard(), Heard()
    report = demkd.train(network(1), out=tmp_path, epochs=3, callbacks=[one, other], **OPTIONS)
    recipe, *epochs, end = one.heard
    assert recipe["epochs"] == 3
    assert recipe["learning_rate"] == 0.01
    assert [epoch.test_top1 for epoch in epochs] == [line["test_top1"] for line in lines_of(tmp_path)]
    assert end == report
    assert other.heard == one.heard


def test_an_epoch_is_in_the_files_when_it_is_told_and_is_told_once(tmp_path: Path) -> None:
    """A callback that raises ends the run; the next call tells the epochs that are left."""
    first, second = Heard(stop_after=2), Heard()
    with pytest.raises(KeyboardInterrupt):
        demkd.train(network(1), out=tmp_path, epochs=4, callbacks=[first], **OPTIONS)
    assert len(lines_of(tmp_path)) == 2
    report = demkd.train(network(1), out=tmp_path, epochs=4, callbacks=[second], **OPTIONS)
    assert report.resumed_after == 2
    assert [one.epoch for one in [*first.heard[1:], *second.heard[1:-1]]] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "callback"), [("wandb", demkd.WandbCallback), ("mlflow", demkd.MlflowCallback)])
def test_a_missing_package_is_said_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, callback: Any
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(demkd.UserError, match=f"for {name}, which is missing: pip install {name}"):
        demkd.train(network(1), out=tmp_path, epochs=1, callbacks=[callback()], **OPTIONS)


@pytest.mark.filterwarnings("ignore")  # of the package's own imports
def test_mlflow_keeps_what_the_run_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    demkd.train(network(1), out=tmp_path / "run", epochs=2, callbacks=[demkd.MlflowCallback(run_name="one")], **OPTIONS)
    (found,) = mlflow.search_runs(output_format="list")
    assert found.info.run_name == "one"
    assert found.data.params["learning_rate"] == "0.01"
    for tag, value in scalars(lines_of(tmp_path / "run")[-1]).items():
        assert found.data.metrics[tag] == pytest.approx(value), tag
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "accuracy/test top-1")
    assert [point.step for point in history] == [1, 2]
    assert found.info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")  # of the package's own imports
def test_wandb_keeps_what_the_run_says(tmp_path: Path) -> None:
    """Without a network, in a folder."""
    pytest.importorskip("wandb", reason="pip install wandb")
    callback = demkd.WandbCallback(project="students", mode="offline", dir=str(tmp_path))
    demkd.train(network(1), out=tmp_path / "run", epochs=2, callbacks=[callback], **OPTIONS)
    (log,) = tmp_path.rglob("run-*.wandb")
    wanted = {*scalars(lines_of(tmp_path / "run")[-1]), "learning_rate", "best_epoch"}
    until = time.monotonic() + 30  # a process of its own writes the file
    while (missing := {word for word in wanted if word.encode() not in log.read_bytes()}) and time.monotonic() < until:
        time.sleep(0.1)
    assert not missing
