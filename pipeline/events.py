"""TensorBoard's events of a run: the same figures as metrics.jsonl, where the package tensorboard is installed.

The package's record writer, and not its `SummaryWriter`: that one writes in a thread, whose errors end as tracebacks.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Line = Mapping[str, Any]

EVENTS_FILE = "events.out.tfevents.demkd"
TAGS = {
    "train_top1": "accuracy/train top-1",
    "test_top1": "accuracy/test top-1",
    "test_top5": "accuracy/test top-5",
    "learning_rate": "training/learning rate",
    "seconds": "speed/seconds",
    "data_seconds": "speed/data seconds",
    "test_seconds": "speed/test seconds",
}
TEACHER_TAGS = {
    "top1": "teachers/top-1",
    "mean_entropy": "teachers/mean entropy",
    "mean_weight": "teachers/mean weight",
    "wrong_and_trusted": "teachers/wrong and trusted",
}


class EventLog:
    """The event file of a run folder. The first failure is one warning, and nothing is written after it."""

    def __init__(self, folder: Path, *, warn: Callable[[str], None]) -> None:
        self._file, self._recipe, self._warn = folder / EVENTS_FILE, folder / "recipe.toml", warn
        found = importlib.util.find_spec("tensorboard")
        self._writes = found is not None and found.origin is not None  # a folder of that name has no origin

    def restart(self, lines: Sequence[Line]) -> None:
        """Write the file anew, from the lines of metrics.jsonl."""
        self._attempt(lambda: self._rewrite(lines))

    def add(self, line: Line) -> None:
        """Append an epoch that is in metrics.jsonl and in the checkpoint."""
        self._attempt(lambda: self._write("ab", [self._epoch(line)]))

    def _attempt(self, work: Callable[[], None]) -> None:
        if not self._writes:
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # some versions warn of their own imports
                work()
        except Exception as error:  # whatever the package or the disk raises
            self._writes = False
            reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            self._warn(
                f"TensorBoard's events end here, in {self._file} ({reason}); the run goes on, metrics.jsonl has all "
                "values, and calling the same command again writes the events anew"
            )

    def _rewrite(self, lines: Sequence[Line]) -> None:
        # The recipe is written once, so the same epochs give the same bytes, and a running TensorBoard can read on.
        self._clock = self._recipe.stat().st_mtime
        if not self._file.is_file():
            self._file.unlink(missing_ok=True)  # a pipe of that name would keep us waiting
        version = {"wall_time": self._clock, "file_version": "brain.Event:2"}
        self._write("wb", [version, *map(self._epoch, lines)])

    def _epoch(self, line: Line) -> dict[str, Any]:
        """An epoch's event: step is the epoch, wall_time that of a run without pauses."""
        self._clock += line["seconds"] + line["test_seconds"]
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars(line).items()]
        return {"wall_time": self._clock, "step": line["epoch"], "summary": {"value": values}}

    def _write(self, mode: Literal["ab", "wb"], events: Sequence[Mapping[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._file.open(mode) as file:
            for event in events:
                RecordWriter(file).write(Event(**event).SerializeToString())


def scalars(line: Line) -> dict[str, float]:
    """The values of a line of metrics.jsonl by TensorBoard's tags."""
    found = {tag: line.get(field) for field, tag in TAGS.items()}
    found |= {f"loss/{term}": value for term, value in line["losses"].items()}
    teachers = line.get("teachers")
    if teachers:
        found["teachers/effective number"] = teachers["effective_teachers"]
        for field, tag in TEACHER_TAGS.items():
            found |= {f"{tag}/{name}": value for name, value in zip(teachers["names"], teachers[field], strict=True)}
    return {tag: float(value) for tag, value in found.items() if value is not None}
