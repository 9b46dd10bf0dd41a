"""A run folder: its recipe, its metrics line by line, its checkpoint, and the finished student.

recipe.toml          every choice, resolved; written first
metrics.jsonl        one line an epoch, each with a digest of the recipe and of the lines so far
checkpoint.pt        to resume; sealed by a digest, and replaced as a whole after every epoch
student.safetensors  the finished network, with its name, classes, normalization and a digest
events.out.tfevents* the metrics again, for TensorBoard, where it is installed

docs/runs.md explains every field.
"""

import hashlib
import importlib.util
import io
import os
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save
from torch import Tensor

from demkd.cache import exclusive
from demkd.cache.disk import disk_errors_in_words, write_durably, write_fully
from demkd.config import ConfigError, read_recipe, recipe_options
from demkd.errors import UserError, read_regular
from demkd.pipeline.results import EpochReport, best_split, read_lines, sealed_line
from demkd.teachers.checkpoint import STUDENT_FILE, sealed_facts

_MAGIC = b"demkd checkpoint, sealed by SHA-256\n"
_SEAL_BYTES = len(_MAGIC) + 64 + 1
_MOST_NAMED = 5
EVENTS_FILE = "events.out.tfevents.demkd"
TAGS = {
    "train_top1": "accuracy/train top-1",
    "validation_top1": "accuracy/validation top-1",
    "validation_top5": "accuracy/validation top-5",
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
    "wrong_above_uniform": "teachers/wrong above uniform",
}


class RunError(UserError, RuntimeError):
    """A run folder that is not what it should be."""


class RunFolder:
    """The folder of one run; open it with `open_run`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.student = path / STUDENT_FILE

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a failing write leaves the last one."""
        buffer = io.BytesIO()  # PyTorch would turn a full disk into an error of its own
        buffer.write(bytes(_SEAL_BYTES))
        torch.save(dict(state), buffer)
        data = buffer.getbuffer()
        data[:_SEAL_BYTES] = _seal(data[_SEAL_BYTES:])
        write_durably(self.checkpoint, [data])

    def load_checkpoint(self) -> dict[str, Any] | None:
        if not self.checkpoint.exists():
            return None
        try:
            data = memoryview(read_regular(self.checkpoint))
            sound = data[:_SEAL_BYTES] == _seal(data[_SEAL_BYTES:])
            state = torch.load(io.BytesIO(data[_SEAL_BYTES:]), map_location="cpu", weights_only=True) if sound else None
        except Exception as error:  # the unpickler raises many kinds, all of them for the same reason
            raise self.damaged_checkpoint() from error
        if not isinstance(state, dict) or type(state.get("epoch")) is not int or state["epoch"] < 1:
            raise self.damaged_checkpoint()
        return state

    def damaged_checkpoint(self) -> RunError:
        """What to say of a checkpoint that nothing can be done with."""
        return RunError(f"{self.checkpoint} is damaged: remove it to start the run anew")

    def save_student(self, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the finished network and what it needs to be used."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        data = save(plain, metadata={"demkd": sealed_facts(facts, plain)})
        write_durably(self.student, [data])

    def add_metrics(self, report: EpochReport) -> None:
        """Append an epoch's line, wholly or not at all, and bring it to the disk before the checkpoint comes there."""
        line = sealed_line(asdict(report), self.path)
        with disk_errors_in_words(self.metrics), self.metrics.open("ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            try:
                write_fully(file.fileno(), line, end)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def read_metrics(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The epochs so far, or the first ones; a line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        try:
            epochs: list[dict[str, Any]] = [dict(line) for line in read_lines(self.path, limit)]
            if not all(_is_metrics(line, epoch) for epoch, line in enumerate(epochs, start=1)):
                raise ValueError("a line has no metrics")
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(
                f"{self.metrics} is damaged ({error}): remove it and {self.checkpoint.name} to start the run anew"
            ) from error
        return epochs

    def cut_metrics(self, epochs: int) -> None:
        """Forget the lines after an epoch: those of a run that was killed between its metrics and its checkpoint."""
        kept = self.read_metrics(epochs)
        if len(kept) < epochs:
            raise RunError(
                f"{self.metrics} ends before the checkpoint, which is of epoch {epochs}: put it back, or remove "
                f"{self.checkpoint.name} to start the run anew"
            )
        lines = read_regular(self.metrics).split(b"\n")[:epochs] if kept else []
        write_durably(self.metrics, [b"".join(line + b"\n" for line in lines)])


def _seal(archive: memoryview) -> bytes:
    """What stands in front of a checkpoint: a ZIP archive's own checksums leave out its directory and its headers."""
    return b"%s%s\n" % (_MAGIC, hashlib.sha256(archive).hexdigest().encode())


def _is_metrics(line: Mapping[str, Any], epoch: int) -> bool:
    split = best_split(line)
    figures = [line.get(name) for name in (f"{split}_top1", f"{split}_top5", "seconds")]
    return line.get("epoch") == epoch and all(isinstance(figure, int | float) for figure in figures)


@contextmanager
def open_run(path: Path, recipe: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Create a run folder, or resume one that was started with the same recipe; one process at a time."""
    with disk_errors_in_words(path):
        path.mkdir(parents=True, exist_ok=True)
    with exclusive(path / "run", called=path):
        folder = RunFolder(path)
        if folder.recipe.exists():
            check_same_recipe(recipe, folder.recipe)
        elif (path / "metrics.jsonl").exists():
            raise RunError(f"{path} has metrics but no recipe: choose another folder (`out`)")
        else:
            write_durably(folder.recipe, [recipe_text(recipe).encode()])
        yield folder


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as TOML; what is None is left out."""
    return tomli_w.dumps({name: value for name, value in recipe.items() if value is not None})


def flat_recipe(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Every choice by name; those of the augmentation by dotted names."""
    views = {f"augmentation.{name}": value for name, value in dict(tables.get("augmentation", {})).items()}
    return {**recipe_options({**tables, "online": False}), **views, **dict(tables.get("sources", {}))}


def check_same_recipe(recipe: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume a run that was started with other choices."""
    started, now = flat_recipe(read_recipe(path)), flat_recipe(tomllib.loads(recipe_text(recipe)))
    different = [
        f"{name} was {started.get(name, '(absent)')} and is {now.get(name, '(absent)')}"
        for name in sorted(started.keys() | now.keys())
        if started.get(name) != now.get(name)
    ]
    if len(different) == 1 and started.get("epochs") != now.get("epochs"):
        raise ConfigError(
            f"the run in {path.parent} has {started.get('epochs')} epochs, and its learning rates follow from that: to "
            "train longer, start a run in another folder (`out`)"
        )
    if different:
        more = f"; and {len(different) - _MOST_NAMED} more" if len(different) > _MOST_NAMED else ""
        raise ConfigError(
            f"the run in {path.parent} was started differently: {'; '.join(different[:_MOST_NAMED])}{more}. "
            "Choose another folder (`out`), or repeat what it was started with"
        )


class EventLog:
    """TensorBoard's events: the metrics again. The first failure is one warning, and nothing is written after it.

    With the package's record writer, and not its `SummaryWriter`, whose thread ends in tracebacks.
    """

    def __init__(self, folder: Path, *, warn: Callable[[str], None]) -> None:
        self._file, self._recipe, self._warn = folder / EVENTS_FILE, folder / "recipe.toml", warn
        found = importlib.util.find_spec("tensorboard")
        self._writes = found is not None and found.origin is not None  # a folder of that name has no origin

    def write(self, lines: Sequence[Mapping[str, Any]], *, anew: bool = False) -> None:
        """Append epochs that are in metrics.jsonl and in the checkpoint; with `anew`, replace the file."""
        if not self._writes:
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # some versions warn of their own imports
                self._write(lines, anew=anew)
        except Exception as error:  # whatever the package or the disk raises
            self._writes = False
            reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            self._warn(
                f"TensorBoard's events end here, in {self._file} ({reason}); training continues, metrics.jsonl has "
                "all values; run the same command again to rewrite the events"
            )

    def _write(self, lines: Sequence[Mapping[str, Any]], *, anew: bool) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        events: list[dict[str, Any]] = []
        if anew:
            # The recipe is written once, so the same epochs give the same bytes, and a running TensorBoard can read on.
            self._clock = self._recipe.stat().st_mtime
            if not self._file.is_file():
                self._file.unlink(missing_ok=True)  # to open a pipe of that name would wait
            events = [{"wall_time": self._clock, "file_version": "brain.Event:2"}]
        for line in lines:
            self._clock += line["seconds"] + line["test_seconds"]  # as of a run without pauses
            values = [{"tag": tag, "simple_value": value} for tag, value in scalars(line).items()]
            events.append({"wall_time": self._clock, "step": line["epoch"], "summary": {"value": values}})
        with self._file.open("wb" if anew else "ab") as file:
            for event in events:
                RecordWriter(file).write(Event(**event).SerializeToString())


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The values of a line of metrics.jsonl by TensorBoard's tags."""
    found = {tag: line.get(field) for field, tag in TAGS.items()}
    found |= {f"loss/{term}": value for term, value in line["losses"].items()}
    teachers = line.get("teachers")
    if teachers:
        found["teachers/effective number"] = teachers["effective_teachers"]
        for field, tag in TEACHER_TAGS.items():
            found |= {f"{tag}/{name}": value for name, value in zip(teachers["names"], teachers[field], strict=True)}
    return {tag: float(value) for tag, value in found.items() if value is not None}
