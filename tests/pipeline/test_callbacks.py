"""A run told to others: what they hear is what the run's files say, once and in order."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import demkd
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
