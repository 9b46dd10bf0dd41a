"""A run folder: its recipe, its metrics line by line, its checkpoint to go on from, and the finished student.

recipe.toml          every choice, resolved; written first
metrics.jsonl        one line an epoch
checkpoint.pt        to resume; replaced as a whole after every epoch
student.safetensors  the finished network, with its name, classes and normalisation
"""

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
from demkd.cache.layout import replace_durably, space_error
from demkd.errors import UserError
from demkd.pipeline.recipe import Recipe, require_same_recipe, write_recipe
from demkd.pipeline.reports import EpochReport
from demkd.teachers.checkpoint import STUDENT_FILE


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
        self._replace(self.checkpoint, lambda file: torch.save(dict(state), file))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            RunError: if it cannot be read.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises many kinds, all of them for the same reason
            raise RunError(f"{self.checkpoint} is damaged: remove it to start the run anew") from error
        return state

    def save_student(self, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the finished network and what it needs to be used."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        data = save(plain, metadata={"demkd": json.dumps(facts)})
        self._replace(self.student, lambda file: file.write(data))

    def add_metrics(self, report: EpochReport) -> None:
        """Append an epoch's line."""
        line = json.dumps(asdict(report)) + "\n"
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise space_error(self.metrics, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The epochs so far; a line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def cut_metrics(self, epochs: int) -> None:
        """Forget the lines after an epoch: those of a run that was killed between its metrics and its checkpoint."""
        kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line["epoch"] <= epochs]
        self._replace(self.metrics, lambda file: file.write("".join(kept).encode()))

    def _replace(self, target: Path, write: Any) -> None:
        """Write beside the file, sync, then rename over it."""
        creating = target.with_name(target.name + ".creating")
        try:
            with creating.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            replace_durably(creating, target)
        except (OSError, RuntimeError) as error:
            creating.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise space_error(target, error) from error
            raise


@contextmanager
def open_run(path: Path, recipe: Recipe) -> Iterator[RunFolder]:
    """Create a run folder, or go on with one that was started with the same recipe; one process at a time.

    Raises:
        RecipeError: if it was started with another recipe.
        CacheBusyError: if another process is at it.
    """
    path.mkdir(parents=True, exist_ok=True)
    with exclusive(path / "run"):
        folder = RunFolder(path)
        if folder.recipe.exists():
            require_same_recipe(recipe, folder.recipe)
        elif (path / "metrics.jsonl").exists():
            raise RunError(f"{path} has metrics but no recipe: choose another --out")
        else:
            write_recipe(recipe, folder.recipe)
        yield folder
