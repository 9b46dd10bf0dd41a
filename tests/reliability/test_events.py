"""TensorBoard's events: the same values as metrics.jsonl, each epoch once, whatever happened to the run."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from demkd.pipeline.runs import EVENTS_FILE, EventLog, RunFolder
from tests.reliability.conftest import Command, Run, SmallDisk

pytest.importorskip("tensorboard", reason="pip install 'demkd[tensorboard]' installs what reads events back")

EPOCHS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder without an epoch."""
    (tmp_path / "recipe.toml").touch()
    return tmp_path


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads in a folder: tag -> (step, value) of all epochs."""
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reading.EventAccumulator(str(folder), size_guidance={reading.SCALARS: 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()[reading.SCALARS]
    }


def check_events(folder: Path) -> None:
    """Compare the events with metrics.jsonl, field by field, all epochs once."""
    lines = RunFolder(folder).read_metrics()
    tags = {
        "accuracy/train top-1": "train_top1",
        "accuracy/test top-1": "test_top1",
        "accuracy/test top-5": "test_top5",
        "training/learning rate": "learning_rate",
        "speed/seconds": "seconds",
        "speed/data seconds": "data_seconds",
        "speed/test seconds": "test_seconds",
    }
    wanted = {tag: [line[field] for line in lines] for tag, field in tags.items()}
    wanted["teachers/effective number"] = [line["teachers"]["effective_teachers"] for line in lines]
    for term in ("label_loss", "target_class_kd", "non_target_class_kd", "hint_loss", "loss"):
        wanted[f"loss/{term}"] = [line["losses"][term] for line in lines]
    for field, tag in {
        "top1": "top-1",
        "mean_entropy": "mean entropy",
        "mean_weight": "mean weight",
        "wrong_above_uniform": "wrong above uniform",
    }.items():
        for teacher, name in enumerate("ab"):
            wanted[f"teachers/{tag}/{name}"] = [line["teachers"][field][teacher] for line in lines]
    found = events(folder)
    assert found.keys() == wanted.keys()
    for tag, values in wanted.items():
        assert [step for step, _ in found[tag]] == list(range(1, EPOCHS + 1)), tag
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-6), tag
    assert len(list(folder.glob("events.*"))) == 1


def test_a_killed_and_resumed_run_has_the_events_of_its_metrics(run: Run, distilling: Command, tmp_path: Path) -> None:
    """Killed between metrics and checkpoint, in mid-line, and with a torn last event."""
    command = distilling(tmp_path, epochs=EPOCHS)
    for call in (9, 14, 18):
        assert run(*command, kill_at=call).code == -9
        for file in tmp_path.glob("events.*"):
            os.truncate(file, max(file.stat().st_size - 3 * call, 0))
    run(*command, code=0)
    check_events(tmp_path)
    before = (tmp_path / EVENTS_FILE).read_bytes()
    run(*command, code=0)
    assert (tmp_path / EVENTS_FILE).read_bytes() == before, "a finished run that is called again keeps its events"


def test_a_running_tensorboard_reads_on(folder: Path) -> None:
    """Its file gets the same bytes again, and more, also after a kill tore its end; lost epochs leave it."""
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    log = EventLog(folder, warn=pytest.fail)
    log.write([_line(1)], anew=True)
    log.write([_line(2)])
    running = reading.EventAccumulator(str(folder))
    running.Reload()
    before = (folder / EVENTS_FILE).read_bytes()
    (folder / EVENTS_FILE).write_bytes(before + before[-30:])
    log = EventLog(folder, warn=pytest.fail)
    log.write([_line(1), _line(2), _line(3)], anew=True)
    log.write([_line(4)])
    running.Reload()
    assert [event.step for event in running.Scalars("loss/loss")] == [1, 2, 3, 4]
    assert (folder / EVENTS_FILE).read_bytes().startswith(before)
    seconds = [event.wall_time for event in running.Scalars("loss/loss")]
    assert seconds[1] - seconds[0] == pytest.approx(1.5), "by the clock of a run without pauses"
    EventLog(folder, warn=pytest.fail).write([_line(1, loss=1.0)], anew=True)
    assert events(folder)["loss/loss"] == [(1, 1.0)], "the metrics have one epoch"


def test_events_that_cannot_be_written_are_one_warning(run: Run, distilling: Command, tmp_path: Path) -> None:
    """A folder in the place of the events."""
    (tmp_path / EVENTS_FILE).mkdir()
    command = [part for part in distilling(tmp_path, epochs=1) if part != "--quiet"]
    outcome = run(*command, code=0)
    warnings = [line for line in outcome.stderr.splitlines() if line.startswith("warning: TensorBoard")]
    assert len(warnings) == 1
    place = tmp_path / EVENTS_FILE
    assert f"warning: TensorBoard's events end here, in {place} (Is a directory); training continues" in warnings[0]
    assert len(RunFolder(tmp_path).read_metrics()) == 1
    assert (tmp_path / "student.safetensors").exists()


def test_a_full_disk_ends_the_events_with_one_warning(small_disk: SmallDisk) -> None:
    warned: list[str] = []
    (small_disk.path / "recipe.toml").touch()
    log = EventLog(small_disk.path, warn=warned.append)
    log.write([_line(1)], anew=True)
    room = os.statvfs(small_disk.path)
    (small_disk.path / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize))
    for epoch in range(2, 200):
        log.write([_line(epoch)])
    assert len(warned) == 1
    assert "(No space left on device)" in warned[0]
    steps = [step for step, _ in events(small_disk.path)["loss/loss"]]
    assert 1 < len(steps) < 199
    assert steps == list(range(1, len(steps) + 1)), "what was written before is readable"


@pytest.mark.parametrize(
    ("missing", "warnings"),
    [(["tensorboard"], 0), (["tensorboard.compat.proto", "tensorboard.compat.proto.event_pb2"], 1)],
)
def test_without_tensorboard(folder: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str], warnings: int) -> None:
    """A broken package is one warning."""
    for name in [name for name in sys.modules if name.split(".")[0] in missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    warned: list[str] = []
    log = EventLog(folder, warn=warned.append)
    log.write([_line(1)], anew=True)
    log.write([_line(2)])
    assert len(warned) == warnings
    assert all("ModuleNotFoundError" in text for text in warned)


def _line(epoch: int, *, loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "losses": {"loss": loss}, "seconds": 1.0, "test_seconds": 0.5, "teachers": None}
