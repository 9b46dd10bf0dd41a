"""Stage one: every teacher looks once at every view, and its answers go to the cache.

    dataset   index, slot       -> view: the same crop and flip, today and tomorrow
    teachers  views (B, 3, H, W) -> logits (B, C), features
    losses    logits            -> entropy (B,)
    cache     slot, rows        -> bytes at their place in <teacher>.h5
    pipeline  entropy of all K  -> weights (K, V, N) in weights.h5

B in a batch, N samples, C classes, K teachers, V slots.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.cache import (
    CacheDamagedError,
    CacheMismatchError,
    CacheWriter,
    TeacherCache,
    open_cache,
    write_weights,
)
from demkd.cache.space import require_space
from demkd.cache.teacher_file import cache_file
from demkd.losses import entropy, entropy_weights
from demkd.pipeline.caching_job import CachingJob, CachingRequest, open_job, plan_teacher, prepare
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import TeacherSpec
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import CachingReport, TeacherCachingReport
from demkd.pipeline.weighing import DEFAULT_WEIGHTING
from demkd.teachers import Teacher

Array = NDArray[Any]

# As a share of the largest logit: rounding differs between processors and batch sizes, answers do not.
RECOMPUTE_TOLERANCE = 0.05


def cache_teachers(request: CachingRequest, compute: Compute, progress: Progress) -> CachingReport:
    """Answer what is missing, teacher by teacher, then compute the weights.

    Raises:
        UserError: of any room, in words for the user; what was written stays, and the same call goes on.
    """
    job = open_job(request, compute, progress)
    # Whatever is wrong with the last teacher, or with the disk, is said now and not after hours of answers.
    require_space(request.folder, [plan_teacher(job, prepare(job, spec)) for spec in request.teachers])
    reports = tuple(_cache_teacher(job, spec, progress) for spec in request.teachers)
    return CachingReport(
        folder=request.folder,
        samples=len(job.pictures),
        views=job.views,
        num_distinct_views=job.pictures.policy.num_distinct_views,
        precision=compute.precision,
        teachers=reports,
        weighted=precompute_weights(request.folder, progress),
    )


def _cache_teacher(job: CachingJob, spec: TeacherSpec, progress: Progress) -> TeacherCachingReport:
    """Everything about one teacher: load, describe, check, answer, finish."""
    started = time.perf_counter()
    request, pictures = job.request, job.pictures
    prepared = prepare(job, spec)
    teacher, labels = prepared.teacher, pictures.labels.numpy()
    with CacheWriter(
        request.folder, spec.name, shape=prepared.shape, provenance=prepared.provenance, labels=labels
    ) as writer:
        answered = answer_pending(job, teacher, writer, progress)
        writer.finish()
    file = TeacherCache(cache_file(request.folder, spec.name))
    slots = range(file.shape.views)
    top1 = float(np.mean([(file.read("prediction", slot) == labels).mean() for slot in slots]))
    if top1 < _near_chance(pictures.classes):
        progress.warn(
            f"teacher {spec.name} is right about {top1:.1%} of {pictures.name}, near chance "
            f"({1 / pictures.classes:.1%}): are its classes in another order, or its normalisation another one?"
        )
    return TeacherCachingReport(
        name=spec.name,
        network=prepared.network.name,
        parameters=teacher.parameters,
        views=file.shape.views,
        answered=answered,
        top1=top1,
        mean_entropy=float(np.mean([file.read("entropy", slot).mean(dtype=np.float64) for slot in slots])),
        file_bytes=file.path.stat().st_size,
        seconds=time.perf_counter() - started,
        features=file.shape.features,
    )


def answer_pending(job: CachingJob, teacher: Teacher, writer: CacheWriter, progress: Progress) -> int:
    """Answer every block that lacks something; how many views that took."""
    pending = writer.pending()
    if not pending:
        return 0
    table = job.view_table(writer.shape.views)
    _require_same_answers(job, teacher, writer, table)
    samples = writer.shape.samples
    rows_of = [writer.shape.rows(block) for _, block in pending]
    total = sum(int(rows.stop) - int(rows.start) for rows in rows_of)
    with progress.task(
        f"teacher {teacher.name}",
        total=writer.shape.views * samples,
        unit="views",
        done=writer.shape.views * samples - total,
    ) as task:
        for position, ((slot, block), rows) in enumerate(zip(pending, rows_of, strict=True)):
            writer.write(slot, block, answer_rows(job, teacher, rows, table[slot], writer.missing(slot, block)))
            task.advance(rows.stop - rows.start)
            if position + 1 == len(pending) or pending[position + 1][0] != slot:
                writer.sync()
    return total


def answer_rows(
    job: CachingJob, teacher: Teacher, rows: slice, numbers: NDArray[np.uint16], names: Sequence[str]
) -> dict[str, Array]:
    """The named data sets of consecutive samples; batches never cross a block, so that a resumed file is the same."""
    keys = [name.removeprefix("features/") for name in names if name.startswith("features/")]
    parts = [
        teacher.answer(job.cut(batch, numbers[batch]), features=keys)
        for batch in _batches(rows, job.request.batch_size)
    ]
    logits = torch.cat([part.logits for part in parts])
    answers = {
        "logits": logits,
        "entropy": entropy(logits),
        "prediction": logits.argmax(1),
        **{f"features/{key}": torch.cat([part.features[key] for part in parts]) for key in keys},
    }
    arrays = {name: answer.cpu().numpy() for name, answer in answers.items()}
    return {**arrays, "view": numbers[rows]}


def _require_same_answers(job: CachingJob, teacher: Teacher, writer: CacheWriter, table: NDArray[np.uint16]) -> None:
    """Before rows join earlier ones, answer one earlier block again: it also catches changed code of the network.

    Raises:
        CacheMismatchError: if the answers differ by more than rounding.
    """
    place = writer.first_written()
    if place is None:
        return
    slot, block = place
    rows = writer.shape.rows(block)
    earlier = writer.written(slot, block)["logits"].astype(np.float32)
    now = answer_rows(job, teacher, rows, table[slot], ["logits"])["logits"]
    change, scale = np.abs(earlier - now).max(), np.abs(earlier).max()
    if change > RECOMPUTE_TOLERANCE * max(scale, 1.0):
        raise CacheMismatchError(
            f"teacher {teacher.name} answers slot {slot}, rows {rows.start} to {rows.stop - 1}, otherwise than when "
            f"the cache was started (logits differ by up to {change:.3g}): its network's code has changed since; "
            "choose another --out"
        )


def precompute_weights(folder: Path, progress: Progress) -> tuple[str, ...]:
    """Write weights.h5 for all whole teachers of a cache, if they fit together; the names of those weighted."""
    with contextlib.suppress(CacheDamagedError, CacheMismatchError):  # of the weights: they are computed anew
        present = open_cache(folder)
        if present.weights is not None and present.weights.weighting == DEFAULT_WEIGHTING:
            return present.names
    try:
        cache = open_cache(folder, weights=False)
    except CacheMismatchError as error:
        progress.warn(f"no weights were computed: {error}")
        return ()
    entropies = [[teacher.read("entropy", slot) for teacher in cache.teachers] for slot in range(cache.views)]
    weights = np.empty((len(cache.teachers), cache.views, cache.samples), np.float32)
    for slot, of_teachers in enumerate(entropies):
        weights[:, slot] = entropy_weights(torch.from_numpy(np.stack(of_teachers))).numpy()
    write_weights(folder, cache.teachers, weights, weighting=DEFAULT_WEIGHTING)
    return cache.names


def _near_chance(classes: int) -> float:
    """The top-1 below which a warning is due: twice that of chance, or with few classes a fifth of the way to 1."""
    chance = 1 / classes
    return min(2 * chance, chance + 0.2 * (1 - chance))


def _batches(rows: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
