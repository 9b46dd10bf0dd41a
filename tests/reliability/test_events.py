"""TensorBoard's events: the metrics once more, each epoch once, whatever happened to the run."""

import importlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from demkd.pipeline.events import EVENTS_FILE, EventLog
from tests.reliability.conftest import Command, Run, SmallDisk

pytest.importorskip("tensorboard", reason="pip install 'demkd[tensorboard]' installs what reads events back")

EPOCHS = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder in which nothing was trained yet."""
    (tmp_path / "recipe.toml").touch()
    return tmp_path


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads in a folder: tag -> (step, value)."""
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reading.EventAccumulator(str(folder), size_guidance={reading.SCALARS: 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()[reading.SCALARS]
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected(folder: Path) -> dict[str, list[float]]:
    """What events should say, spelt out from metrics.jsonl by hand: tag -> value by epoch."""
    lines = metrics(folder)
    wanted = {
        "accuracy/train top-1": [line["train_top1"] for line in lines],
        "accuracy/test top-1": [line["test_top1"] for line in lines],
        "accuracy/test top-5": [line["test_top5"] for line in lines],
        "training/learning rate": [line["learning_rate"] for line in lines],
        "speed/seconds": [line["seconds"] for line in lines],
        "speed/data seconds": [line["data_seconds"] for line in lines],
        "speed/test seconds": [line["test_seconds"] for line in lines],
        "teachers/effective number": [line["teachers"]["effective_teachers"] for line in lines],
    }
    for term in ("label_loss", "target_class_kd", "non_target_class_kd", "hint_loss", "loss"):
        wanted[f"loss/{term}"] = [line["losses"][term] for line in lines]
    for teacher, name in enumerate("ab"):
        for tag, field in (
            ("top-1", "top1"),
            ("mean entropy", "mean_entropy"),
            ("mean weight", "mean_weight"),
            ("wrong and trusted", "wrong_and_trusted"),
        ):
            wanted[f"teachers/{tag}/{name}"] = [line["teachers"][field][teacher] for line in lines]
    return wanted


def require_events_of_metrics(folder: Path, *, epochs: int) -> None:
    found, wanted = events(folder), expected(folder)
    assert found.keys() == wanted.keys()
    for tag, values in wanted.items():
        assert [step for step, _ in found[tag]] == list(range(1, epochs + 1)), tag
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-6), tag
    assert len(list(folder.glob("events.*"))) == 1


def test_events_say_what_metrics_say(run: Run, distilling: Command, tmp_path: Path) -> None:
    run(*distilling(tmp_path, epochs=EPOCHS), code=0)
    require_events_of_metrics(tmp_path, epochs=EPOCHS)
    before = (tmp_path / EVENTS_FILE).read_bytes()
    run(*distilling(tmp_path, epochs=EPOCHS), code=0)
    assert (tmp_path / EVENTS_FILE).read_bytes() == before, "a finished run that is called again keeps its events"


def test_a_killed_and_resumed_run_has_every_epoch_once(run: Run, distilling: Command, tmp_path: Path) -> None:
    """Killed at random moments, between metrics and checkpoint among them, and with a torn last event."""
    command = distilling(tmp_path, epochs=EPOCHS)
    for call in (9, 18):
        assert run(*command, kill_at=call).code == -9
    chance = random.Random(7)
    for _ in range(8):
        if run(*command, kill_after=chance.uniform(0.1, 0.4)).code == 0:
            break
        for file in tmp_path.glob("events.*"):
            os.truncate(file, max(file.stat().st_size - chance.randrange(64), 0))
    run(*command, code=0)  # on a busy machine it did not come to its end before the kills
    require_events_of_metrics(tmp_path, epochs=EPOCHS)


def test_epochs_that_the_metrics_lost_leave_the_events(folder: Path) -> None:
    """A run started anew in its folder does not keep the events of the one before."""
    warned: list[str] = []
    log = EventLog(folder, warn=warned.append)
    log.restart([_line(epoch, loss=9.0) for epoch in (1, 2, 3)])
    log = EventLog(folder, warn=warned.append)
    log.restart([_line(1, loss=1.0)])
    log.add(_line(2, loss=2.0))
    assert events(folder)["loss/loss"] == [(1, 1.0), (2, 2.0)]
    assert not warned


def test_a_running_tensorboard_sees_a_run_go_on(folder: Path) -> None:
    """The file that it reads gets the same bytes again, and more, also after a kill tore its end."""
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    log = EventLog(folder, warn=pytest.fail)
    log.restart([_line(1)])
    log.add(_line(2))
    running = reading.EventAccumulator(str(folder))
    running.Reload()
    before = (folder / EVENTS_FILE).read_bytes()
    (folder / EVENTS_FILE).write_bytes(before + before[-30:])
    log = EventLog(folder, warn=pytest.fail)
    log.restart([_line(1), _line(2), _line(3)])
    log.add(_line(4))
    running.Reload()
    assert [event.step for event in running.Scalars("loss/loss")] == [1, 2, 3, 4]
    assert (folder / EVENTS_FILE).read_bytes().startswith(before)
    seconds = [event.wall_time for event in running.Scalars("loss/loss")]
    assert seconds[1] - seconds[0] == pytest.approx(1.5), "by the clock of a run without pauses"


def test_events_that_cannot_be_written_are_said_once_and_the_run_goes_on(
    run: Run, distilling: Command, tmp_path: Path
) -> None:
    """A folder in the events' place: one warning, and a finished run with all its metrics."""
    (tmp_path / EVENTS_FILE).mkdir()
    command = [part for part in distilling(tmp_path, epochs=2) if part != "--quiet"]
    outcome = run(*command, code=0)
    warnings = [line for line in outcome.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    place = tmp_path / EVENTS_FILE
    assert f"warning: TensorBoard's events end here, in {place} (Is a directory); the run goes on" in warnings[0]
    assert len(metrics(tmp_path)) == 2
    assert (tmp_path / "student.safetensors").exists()


def test_a_full_disk_ends_the_events_with_one_warning(small_disk: SmallDisk) -> None:
    warned: list[str] = []
    (small_disk.path / "recipe.toml").touch()
    log = EventLog(small_disk.path, warn=warned.append)
    log.restart([_line(1)])
    room = os.statvfs(small_disk.path)
    (small_disk.path / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize))
    for epoch in range(2, 200):
        log.add(_line(epoch))
    assert len(warned) == 1
    assert "(No space left on device)" in warned[0]
    steps = [step for step, _ in events(small_disk.path)["loss/loss"]]
    assert 1 < len(steps) < 199
    assert steps == list(range(1, len(steps) + 1)), "what was written before is readable"


def test_without_tensorboard_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    log = EventLog(folder, warn=pytest.fail)
    log.restart([_line(1)])
    log.add(_line(2))
    assert [file.name for file in folder.iterdir()] == ["recipe.toml"]


def test_a_broken_tensorboard_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard.compat.proto", "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    warned: list[str] = []
    log = EventLog(folder, warn=warned.append)
    log.restart([_line(1)])
    log.add(_line(2))
    assert len(warned) == 1
    assert "ModuleNotFoundError" in warned[0]


def _line(epoch: int, *, loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "losses": {"loss": loss}, "seconds": 1.0, "test_seconds": 0.5, "teachers": None}
