"""The dry run: what stage one would cost, without writing anything."""

import time

import numpy as np
import torch

from demkd.cache.space import FilePlan, require_space
from demkd.pipeline import defaults
from demkd.pipeline.compute import Compute
from demkd.pipeline.preparation import CachingJob, CachingRequest, PreparedTeacher, prepare
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import CachingPlan, TeacherPlan
from demkd.pipeline.stage_one import ask

_PROBE_SECONDS = 1.0
_MOST_PROBES = 8


def plan_caching(request: CachingRequest, compute: Compute, progress: Progress) -> CachingPlan:
    """Say what `cache_teachers` would do, after the same checks.

    Raises:
        CacheSpaceError: if the disk cannot hold it.
        UserError: whatever else would stop it.
    """
    job = prepare(request, compute)
    plans = job.plans()
    free = require_space(request.folder, plans)
    teachers = tuple(_plan(job, teacher, plan, progress) for teacher, plan in zip(job.teachers, plans, strict=True))
    samples = len(job.source)
    epochs = sum(plan.pending for plan in plans) / (samples * len(plans))
    return CachingPlan(
        folder=request.folder,
        samples=samples,
        views=job.num_views,
        num_distinct_views=job.policy.num_distinct_views,
        precision=compute.precision,
        teachers=teachers,
        free_bytes=free,
        seconds=sum(teacher.seconds for teacher in teachers),
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
    """The median over a few batches, after one that only warms up."""
    some = torch.arange(min(job.batch_size, len(job.source)))
    names = tuple(prepared.shape.answers())
    seconds: list[float] = []
    while len(seconds) <= 1 or (len(seconds) <= _MOST_PROBES and sum(seconds) < _PROBE_SECONDS):
        started = time.perf_counter()
        for _, _, views in job.views([0], some):
            ask(prepared.teacher, views, names)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:])) / len(some)
