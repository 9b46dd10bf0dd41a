"""A run folder: its recipe, its metrics line by line, its checkpoint to go on from, and the finished student.

recipe.toml          every choice, resolved; written first
metrics.jsonl        one line an epoch
checkpoint.pt        to resume; sealed by a digest, and replaced as a whole after every epoch
student.safetensors  the finished network, with its name, classes and normalisation
events.out.tfevents* the metrics again, for TensorBoard, where it is installed (`events.py`)

docs/runs.md explains every field.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from demkd.cache import exclusive
from demkd.cache.disk import disk_errors_in_words, replace_durably, write_fully
from demkd.errors import UserError
from demkd.pipeline.recipe import Recipe, require_same_recipe
from demkd.pipeline.results import EpochReport
from demkd.teachers.checkpoint import STUDENT_FILE
from demkd.untrusted import read_regular

_MAGIC = b"demkd checkpoint, sealed by SHA-256\n"
_SEAL_BYTES = len(_MAGIC) + 64 + 1
_UNSEALED = b"PK\x03\x04"  # the archive itself


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
        self._replace(self.checkpoint, data)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            RunError: if it is damaged, or was written before checkpoints had seals.
        """
        if not self.checkpoint.exists():
            return None
        try:
            data = memoryview(read_regular(self.checkpoint))
            sound = data[:_SEAL_BYTES] == _seal(data[_SEAL_BYTES:])
            state = torch.load(io.BytesIO(data[_SEAL_BYTES:]), map_location="cpu", weights_only=True) if sound else None
        except Exception as error:  # the unpickler raises many kinds, all of them for the same reason
            raise self.damaged_checkpoint() from error
        if data[: len(_UNSEALED)] == _UNSEALED:
            raise RunError(
                f"{self.checkpoint} has no seal, which an older version did not write: finish the run with that "
                "version, or remove the file to start the run anew"
            )
        if not isinstance(state, dict) or type(state.get("epoch")) is not int or state["epoch"] < 1:
            raise self.damaged_checkpoint()
        return state

    def damaged_checkpoint(self) -> RunError:
        """What to say of a checkpoint that nothing can be done with."""
        return RunError(f"{self.checkpoint} is damaged: remove it to start the run anew")

    def save_student(self, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the finished network and what it needs to be used."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        data = save(plain, metadata={"demkd": json.dumps(facts)})
        self._replace(self.student, data)

    def add_metrics(self, report: EpochReport) -> None:
        """Append an epoch's line, wholly or not at all, and bring it to the disk before the checkpoint comes there."""
        line = (json.dumps(asdict(report)) + "\n").encode()
        with disk_errors_in_words(self.metrics), self.metrics.open("ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            try:
                write_fully(file.fileno(), line, end)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def read_metrics(self) -> list[dict[str, Any]]:
        """The epochs so far; a line that a kill cut short is left out.

        Raises:
            RunError: if a line is none of ours.
        """
        if not self.metrics.exists():
            return []
        lines = read_regular(self.metrics).split(b"\n")[:-1]
        try:
            epochs: list[dict[str, Any]] = [dict(json.loads(line)) for line in lines]
            sound = all(_is_metrics(line, epoch) for epoch, line in enumerate(epochs, start=1))
        except (ValueError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise RunError(f"{self.metrics} is damaged: remove it and {self.checkpoint.name} to start the run anew")
        return epochs

    def cut_metrics(self, epochs: int) -> None:
        """Forget the lines after an epoch: those of a run that was killed between its metrics and its checkpoint.

        Raises:
            RunError: if an epoch of the checkpoint has no line.
        """
        kept = self.read_metrics()[:epochs]
        if len(kept) < epochs:
            raise RunError(
                f"{self.metrics} ends before the checkpoint, which is of epoch {epochs}: put it back, or remove "
                f"{self.checkpoint.name} to start the run anew"
            )
        self._replace(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def save_recipe(self, recipe: Recipe) -> None:
        """Write the run's choices, which `--recipe` reads."""
        self._replace(self.recipe, recipe.to_toml().encode())

    def _replace(self, target: Path, data: bytes | memoryview) -> None:
        """Write beside the file, sync, then rename over it; a failing write leaves the file as it was."""
        creating = target.with_name(target.name + ".creating")
        with disk_errors_in_words(creating, remove=True):
            creating.unlink(missing_ok=True)  # a pipe of that name would keep us waiting
            with creating.open("wb", buffering=0) as file:
                write_fully(file.fileno(), data, 0)
                os.fsync(file.fileno())
            replace_durably(creating, target)


def _seal(archive: memoryview) -> bytes:
    """What stands in front of a checkpoint: a ZIP archive's own checksums leave out its directory and its headers."""
    return b"%s%s\n" % (_MAGIC, hashlib.sha256(archive).hexdigest().encode())


def _is_metrics(line: Mapping[str, Any], epoch: int) -> bool:
    figures = [line.get(name) for name in ("test_top1", "test_top5", "seconds")]
    return line.get("epoch") == epoch and all(isinstance(figure, int | float) for figure in figures)


@contextmanager
def open_run(path: Path, recipe: Recipe) -> Iterator[RunFolder]:
    """Create a run folder, or go on with one that was started with the same recipe; one process at a time.

    Raises:
        RecipeError: if it was started with another recipe.
        CacheBusyError: if another process is at it.
        CacheSpaceError: if the disk is full.
    """
    with disk_errors_in_words(path):
        path.mkdir(parents=True, exist_ok=True)
    with exclusive(path / "run"):
        folder = RunFolder(path)
        if folder.recipe.exists():
            require_same_recipe(recipe, folder.recipe)
        elif (path / "metrics.jsonl").exists():
            raise RunError(f"{path} has metrics but no recipe: choose another folder (`out`)")
        else:
            folder.save_recipe(recipe)
        yield folder
