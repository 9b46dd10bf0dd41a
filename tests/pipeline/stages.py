"""Both stages on a folder of small pictures, in this process: what the pipeline's tests share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demkd
from demkd import api
from demkd.pipeline.distributed import choose_compute
from demkd.pipeline.progress import SILENT, Progress
from demkd.pipeline.results import CachingReport, EpochReport, RunReport

FLOAT32 = choose_compute(device="cpu", precision="float32")
TEACHERS = ("resnet8", "wrn_16_1", "vgg8")
SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 16, "learning_rate": 0.02, "precision": "float32"}


def train_network(data: Path | str, network: str, out: Path, **changes: Any) -> RunReport:
    options = {**SMALL, "progress": SILENT, **changes}
    return demkd.train(network, train=str(data), out=out, **options)


def cache_one(data: Path, checkpoint: Path, out: Path, *, network: str = "resnet8", **changes: Any) -> CachingReport:
    """Cache one teacher, called as its file."""
    options = {"precision": "float32", "progress": SILENT, **changes}
    return api.cache_teachers({checkpoint.stem: f"{network}@{checkpoint}"}, str(data), out=out, **options)


def cache_run(workshop: "Workshop", name: str, **changes: Any) -> CachingReport:
    """Cache one view of a run folder of a workshop."""
    options = {"views": 1, "precision": "float32", "progress": SILENT, **changes}
    return api.cache_teachers(workshop.teachers((name,)), str(workshop.data), out=workshop.cache, **options)


@dataclass(frozen=True)
class Workshop:
    """A folder of pictures, three teachers trained on it for an epoch, and their cache of five views."""

    data: Path
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def teachers(self, names: tuple[str, ...] = TEACHERS) -> dict[str, str]:
        return {name: str(self.folder / name) for name in names}

    def make(self) -> None:
        for seed, network in enumerate(TEACHERS):
            train_network(self.data, network, self.folder / network, seed=seed)
        self.cache_teachers()

    def cache_teachers(self, *, out: Path | None = None, **changes: Any) -> CachingReport:
        options = {"views": 5, "batch_size": 32, "precision": "float32", "progress": SILENT, **changes}
        return api.cache_teachers(self.teachers(), str(self.data), out=out or self.cache, **options)

    def distill(self, out: Path, *, online: bool = False, **changes: Any) -> RunReport:
        options = {**SMALL, "method": "de-mkd", "views": 5, "progress": SILENT, **changes}
        if online:
            options["live_teachers"] = self.teachers(tuple(sorted(TEACHERS)))
        else:
            options.setdefault("cache", self.cache)
        return demkd.distill("resnet8", train=str(self.data), out=out, **options)


class Recorder(Progress):
    """Keeps the epochs' reports, notes and warnings; presses Ctrl-C after some epoch if wanted."""

    def __init__(self, *, interrupt_after: int | None = None) -> None:
        self.reports: list[EpochReport] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._interrupt_after = interrupt_after

    def epoch(self, report: EpochReport) -> None:
        self.reports.append(report)
        if report.epoch == self._interrupt_after:
            raise KeyboardInterrupt

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)
