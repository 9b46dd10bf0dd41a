"""The whole pipeline on the embedded digits: three small teachers, a cache, and one student three ways.

The settings were fixed once and are not tuned until a method wins; one of 360 test pictures is 0.28 points.
"""

import time
from pathlib import Path

from demkd.dataset import load_images
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import TeacherSpec
from demkd.pipeline.methods import METHODS
from demkd.pipeline.preparation import CachingRequest
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.requests import DistillRequest, StudentRequest
from demkd.pipeline.results import DemoReport, RunReport
from demkd.pipeline.stage_one import cache_teachers
from demkd.pipeline.stage_two import distill, train

TEACHERS = {"resnet20": 11, "wrn_16_2": 12, "vgg8": 13}  # network -> seed
STUDENT = "resnet8"
METHODS_SHOWN = ("ce", "kd", "de-mkd")
_TEACHER_EPOCHS = 4
_STUDENT_EPOCHS = 18  # every one of the 9 views twice
_VIEWS = 9


def run_demo(folder: Path, compute: Compute, progress: Progress) -> DemoReport:
    """Run everything, or what is still missing of it.

    Raises:
        UserError: of any room.
    """
    started = time.perf_counter()
    training, test = load_images("digits", split="train"), load_images("digits", split="test")

    def teacher(network: str, seed: int) -> RunReport:
        options = _options(network, seed=seed, epochs=_TEACHER_EPOCHS)
        return train(
            StudentRequest(options=options, train=training, test=test, folder=folder / network), compute, progress
        )

    def student(method: str) -> RunReport:
        request = DistillRequest(
            options=_options(STUDENT, seed=0, epochs=_STUDENT_EPOCHS),
            train=training,
            test=test,
            method=METHODS[method],
            folder=folder / f"student-{method}",
            cache=folder / "cache",
        )
        return distill(request, compute, progress)

    teachers = {network: teacher(network, seed) for network, seed in TEACHERS.items()}
    caching = cache_teachers(
        CachingRequest(
            source=training,
            teachers=tuple(TeacherSpec(name=name, checkpoint=folder / name) for name in TEACHERS),
            folder=folder / "cache",
            views=_VIEWS,
        ),
        compute,
        progress,
    )
    students = tuple(student(method) for method in METHODS_SHOWN)
    distilled = [run for run in students if METHODS[run.method].needs_teachers]
    return DemoReport(
        folder=folder,
        caching=caching,
        teachers={name: run.test_top1 for name, run in teachers.items()},
        students=students,
        test_samples=students[0].test_samples,
        cached_passes=len(TEACHERS) * _VIEWS,
        live_passes=len(TEACHERS) * sum(run.epochs for run in distilled),
        caching_seconds=sum(teacher.seconds for teacher in caching.teachers),
        cache_bytes=sum(file.stat().st_size for file in (folder / "cache").glob("*.h5")),
        seconds=time.perf_counter() - started,
    )


def _options(network: str, *, seed: int, epochs: int) -> TrainingOptions:
    return TrainingOptions(data="digits", network=network, seed=seed, epochs=epochs, schedule="one-cycle")
