"""Both stages on a folder of small pictures, in this process: what the pipeline's tests share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demkd.pipeline.caching import cache_teachers
from demkd.pipeline.caching_job import CachingRequest
from demkd.pipeline.compute import Compute, choose_compute
from demkd.pipeline.distilling import DistillRequest, distill, train
from demkd.pipeline.loading import TeacherSpec
from demkd.pipeline.methods import choose_method
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.results import CachingReport, EpochReport, RunReport

FLOAT32 = choose_compute(device="cpu", precision="float32")
TEACHERS = ("resnet8", "wrn_16_1", "vgg8")


def training_options(data: Path | str, network: str, **changes: Any) -> TrainingOptions:
    options = TrainingOptions(data=str(data), network=network, epochs=1, batch_size=16, learning_rate=0.02)
    return replace(options, **changes)


def cache_one(
    data: Path,
    checkpoint: Path,
    out: Path,
    *,
    network: str = "resnet8",
    progress: SilentProgress | None = None,
    **changes: Any,
) -> CachingReport:
    """Cache one teacher, called as its file."""
    teacher = TeacherSpec(name=checkpoint.stem, network=network, checkpoint=checkpoint)
    request = CachingRequest(data=str(data), teachers=(teacher,), folder=out, **changes)
    return cache_teachers(request, FLOAT32, progress or SilentProgress())


@dataclass(frozen=True)
class Workshop:
    """A folder of pictures, three teachers trained on it for an epoch, and their cache of five views."""

    data: Path
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def spec(self, network: str) -> TeacherSpec:
        return TeacherSpec(name=network, network=None, checkpoint=self.folder / network)

    def make(self) -> None:
        for seed, network in enumerate(TEACHERS):
            train(training_options(self.data, network, seed=seed), self.folder / network, FLOAT32, SilentProgress())
        self.cache_teachers()

    def cache_teachers(self, *, compute: Compute = FLOAT32, **changes: Any) -> CachingReport:
        request = CachingRequest(
            data=str(self.data),
            teachers=tuple(self.spec(network) for network in TEACHERS),
            folder=self.cache,
            views=5,
            batch_size=32,
        )
        return cache_teachers(replace(request, **changes), compute, SilentProgress())

    def distill(
        self,
        out: Path,
        *,
        method: str = "de-mkd",
        online: bool = False,
        progress: SilentProgress | None = None,
        views: int | str | None = 5,
        method_options: dict[str, Any] | None = None,
        compute: Compute = FLOAT32,
        **changes: Any,
    ) -> RunReport:
        request = DistillRequest(
            options=training_options(self.data, "resnet8", **changes),
            method=choose_method(method, **(method_options or {})),
            folder=out,
            cache=None if online else self.cache,
            live=tuple(self.spec(network) for network in sorted(TEACHERS)) if online else (),
            views=views,
        )
        return distill(request, compute, progress or SilentProgress())


class Recorder(SilentProgress):
    """Keeps the epochs' reports; presses Ctrl-C after some epoch if told to."""

    def __init__(self, *, interrupt_after: int | None = None) -> None:
        self.reports: list[EpochReport] = []
        self._interrupt_after = interrupt_after

    def epoch(self, report: EpochReport) -> None:
        self.reports.append(report)
        if report.epoch == self._interrupt_after:
            raise KeyboardInterrupt
