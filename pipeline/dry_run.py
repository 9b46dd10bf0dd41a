"""The dry run: what stage one would cost, without writing anything."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from demkd.cache.space import FilePlan, require_space
from demkd.dataset import resting_after
from demkd.pipeline import defaults
from demkd.pipeline.answering import ask, joined
from demkd.pipeline.compute import Compute
from demkd.pipeline.preparation import CachingJob, CachingRequest, PreparedTeacher, prepare
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import CachingPlan, TeacherPlan

_PROBE_SECONDS = 1.0
_MOST_PROBES = 8
_PROBE_VIEWS = 16  # of each picture
_PROBE_PICTURES = 256


def plan_caching(request: CachingRequest, compute: Compute, progress: Progress) -> CachingPlan:
    """Say what `cache_teachers` would do, after the same checks.

    Raises:
        CacheSpaceError: if the disk cannot hold it.
        UserError: whatever else would stop it.
    """
    with resting_after(request.source):
        return _plan_all(request, compute, progress)


def _plan_all(request: CachingRequest, compute: Compute, progress: Progress) -> CachingPlan:
    job = prepare(request, compute)
    plans = job.plans()
    free = require_space(request.folder, plans)
    teachers = tuple(_plan(job, teacher, plan, progress) for teacher, plan in zip(job.teachers, plans, strict=True))
    samples = len(job.source)
    pictures = _picture_seconds(job, plans, progress)
    answers = sum(teacher.seconds for teacher in teachers)
    epochs = sum(plan.pending for plan in plans) / (samples * len(plans))
    return CachingPlan(
        folder=request.folder,
        samples=samples,
        views=job.num_views,
        num_distinct_views=job.policy.num_distinct_views,
        precision=compute.precision,
        teachers=teachers,
        free_bytes=free,
        picture_seconds=pictures,
        # Pictures are made ready beside the teachers' work; on the CPU both need the same cores.
        seconds=max(pictures, answers) if compute.device.type == "cuda" else pictures + answers,
        break_even_epochs=epochs,
        student_epochs=defaults.EPOCHS,
        break_even_runs=epochs / defaults.EPOCHS,
    )


def _plan(job: CachingJob, prepared: PreparedTeacher, plan: FilePlan, progress: Progress) -> TeacherPlan:
    progress.note(f"timing teacher {prepared.name}")
    return TeacherPlan(
        name=prepared.name,
        network=prepared.network,
        parameters=prepared.teacher.parameters,
        views=plan.shape.num_views,
        file_bytes=plan.file_bytes,
        new_bytes=plan.new_bytes,
        pending=plan.pending,
        seconds=plan.pending * _seconds_per_view(job, prepared) if plan.pending else 0.0,
    )


def _seconds_per_view(job: CachingJob, prepared: PreparedTeacher) -> float:
    """The median over a few batches of views that are there already, after one that only warms up."""
    some = torch.arange(min(job.batch_size, len(job.source)))
    labels = job.source.labels[some].to(job.compute.device)
    names = tuple(prepared.shape.answers())
    (views,) = job.views(job.tasks(some, job.draw([0], some)))
    seconds: list[float] = []
    while len(seconds) <= 1 or (len(seconds) <= _MOST_PROBES and sum(seconds) < _PROBE_SECONDS):
        started = time.perf_counter()
        joined([ask(prepared.teacher, views[prepared.view_size][0], names, labels, prepared.shape)])
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:])) / len(some)


def _picture_seconds(job: CachingJob, plans: Sequence[FilePlan], progress: Progress) -> float:
    """Reading every picture that some teacher lacks, and cutting its views, by all workers at once."""
    if job.source.is_resident(job.policy) or not any(plan.pending for plan in plans):
        return 0.0
    progress.note("timing the pictures")
    slots = list(range(min(job.num_views, _PROBE_VIEWS)))
    some = torch.arange(len(job.source))[:: max(len(job.source) // _PROBE_PICTURES, 1)]
    batches = job.tasks(some, job.draw(slots, some))
    warm, *timed = batches if len(batches) > 1 else [batches[0], batches[0]]
    list(job.views([warm]))  # starts the workers
    started = time.perf_counter()
    for _ in job.views(timed):
        pass
    pictures = sum(len(task.indices) for task in timed)
    passes = -(-job.num_views // _PROBE_VIEWS)
    share = max(plan.pending for plan in plans) / (len(job.source) * job.num_views)
    return (time.perf_counter() - started) / pictures * passes * len(job.source) * share
