"""TensorBoard's events of a run: what metrics.jsonl says, once more, where the package tensorboard is installed.

Events are written by the library's record writer, but not by its `SummaryWriter`, whose thread loses what is in its
queue when the process is killed, and tells of a full disk late or never.
"""

import importlib.util
import io
import struct
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
EFFECTIVE_TEACHERS = "teachers/effective number"

_CLOCK = struct.Struct("<13xd")  # length and its checksum (12 bytes), tag of the first field (1), wall time


class EventLog:
    """The event file of one run folder; without tensorboard it does nothing.

    Events are no more than a picture of metrics.jsonl: a run that goes on makes them agree with it, and one that cannot
    write them says so once and goes on without them.
    """

    def __init__(self, folder: Path, *, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._file = folder / EVENTS_FILE
        self._writes = _installed()

    def restart(self, lines: Sequence[Line]) -> None:
        """Make the events those of the epochs so far: cut what is not theirs, and add what is missing.

        Args:
            lines: of metrics.jsonl.
        """
        if self._writes:
            self._attempt(lambda: self._agree_with(lines))

    def add(self, line: Line) -> None:
        """Append an epoch; it is to be safe in metrics.jsonl and the checkpoint by then."""
        if self._writes:
            self._attempt(lambda: self._append(_epoch(line, time.time())))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Whatever a file or a package that nothing depends on may raise is a warning."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some versions warn of their own imports, which no user can help
                work()
        except Exception as error:
            self._writes = False
            reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            self._warn(
                f"TensorBoard's events end here, in {self._file} ({reason}); the run goes on, metrics.jsonl has every "
                "figure, and the same command, called again, writes what is missing"
            )

    def _agree_with(self, lines: Sequence[Line]) -> None:
        kept, end = _agreement(self._file.read_bytes() if self._file.exists() else b"", lines)
        with self._file.open("ab") as file:
            file.truncate(end)
        now = time.time()
        missing = [] if end else [_head(now)]
        # metrics.jsonl says how long an epoch took, and not when it was: as if they had just been trained.
        later = [sum(map(_duration, lines[place + 1 :])) for place in range(kept, len(lines))]
        missing += [_epoch(line, now - ago) for line, ago in zip(lines[kept:], later, strict=True)]
        self._append(b"".join(missing))

    def _append(self, records: bytes) -> None:
        with self._file.open("ab") as file:
            file.write(records)


def scalars(line: Line) -> dict[str, float]:
    """The figures of a line of metrics.jsonl under the names that TensorBoard shows: tag -> value."""
    found = {tag: line.get(field) for field, tag in TAGS.items()}
    found |= {f"loss/{term}": value for term, value in line["losses"].items()}
    teachers = line.get("teachers")
    if teachers:
        found[EFFECTIVE_TEACHERS] = teachers["effective_teachers"]
        for field, tag in TEACHER_TAGS.items():
            found |= {f"{tag}/{name}": value for name, value in zip(teachers["names"], teachers[field], strict=True)}
    return {tag: float(value) for tag, value in found.items() if value is not None}


def _installed() -> bool:
    """Whether there is the package; a folder of the user's that is called tensorboard is none."""
    found = importlib.util.find_spec("tensorboard")
    return found is not None and found.origin is not None


def _agreement(data: bytes, lines: Sequence[Line]) -> tuple[int, int]:
    """How many epochs an event file has as metrics.jsonl has them, and how many bytes that is, its head included."""
    end = 0
    for epochs, line in enumerate([None, *lines]):
        if len(data) < end + _CLOCK.size:
            return max(epochs - 1, 0), end
        (clock,) = _CLOCK.unpack_from(data, end)
        record = _head(clock) if line is None else _epoch(line, clock)
        if data[end : end + len(record)] != record:
            return max(epochs - 1, 0), end
        end += len(record)
    return len(lines), end


def _duration(line: Line) -> float:
    return float(line["seconds"] + line["test_seconds"])


def _head(clock: float) -> bytes:
    """The record that every event file begins with."""
    return _record(clock, file_version="brain.Event:2")


def _epoch(line: Line, clock: float) -> bytes:
    """One epoch's record; the step is the epoch."""
    from tensorboard.compat.proto import summary_pb2

    values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
    return _record(clock, step=line["epoch"], summary=summary_pb2.Summary(value=values))


def _record(clock: float, **fields: Any) -> bytes:
    """An event as it lies in a file, with its length and checksums."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(event_pb2.Event(wall_time=clock, **fields).SerializeToString())
    return record.getvalue()
