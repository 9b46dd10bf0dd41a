"""Stage one: every teacher looks once at every view, and its answers go to the cache.

    dataset   a block of samples     -> pictures, read once for all slots and teachers
    dataset   slot, pictures         -> views (B, 3, H, W): the same crops and flips, today and tomorrow
    teachers  views                  -> logits (B, C), features
    losses    logits                 -> entropy (B,)
    cache     slot, block of rows    -> bytes at their place in <teacher>.h5
    pipeline  entropy of all K       -> weights (K, V, N) in weights.h5

B in a batch, N samples, C classes, K teachers, V slots.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from demkd.dataset import Records
from demkd.losses import entropy, entropy_weights
from demkd.pipeline.compute import Compute
from demkd.pipeline.preparation import CachingJob, CachingRequest, PreparedTeacher, prepare
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import CachingReport, TeacherCachingReport
from demkd.pipeline.weighing import DEFAULT_WEIGHTING
from demkd.teachers import Teacher

Array = NDArray[Any]

# As a share of the largest logit: rounding differs between processors and batch sizes, answers do not.
RECOMPUTE_TOLERANCE = 0.05
_SECONDS_BETWEEN_SYNCS = 10.0


def cache_teachers(request: CachingRequest, compute: Compute, progress: Progress) -> CachingReport:
    """Let all teachers answer what is missing, then compute the weights.

    Raises:
        UserError: of any room, in words for the user; what was written stays, and the same call goes on.
    """
    started = time.perf_counter()
    job = prepare(request, compute)
    # Whatever is wrong with a file, or with the disk, is said now and not after hours of answers.
    require_space(request.folder, job.plans())
    filled = fill_files(job, progress)
    seconds = time.perf_counter() - started
    return CachingReport(
        folder=request.folder,
        samples=len(job.source),
        views=job.num_views,
        num_distinct_views=job.policy.num_distinct_views,
        precision=compute.precision,
        teachers=tuple(_report(job, one, *filled[one.name], progress) for one in job.teachers),
        weighted=precompute_weights(request.folder, progress),
        seconds=seconds,
    )


@dataclass(kw_only=True, slots=True, eq=False)
class _Filling:
    """A teacher, its file, the (slot, block) pairs that the file lacks, and what filling them took so far."""

    teacher: Teacher
    writer: CacheWriter
    pending: frozenset[tuple[int, int]]
    answered: int = 0
    seconds: float = 0.0

    def fill(self, slot: int, block: int, views: Sequence[Tensor], records: Records) -> None:
        """Answer one block of one slot."""
        started = time.perf_counter()
        names = self.writer.blocks.missing(slot, block)
        self.writer.blocks.write(slot, block, {**ask(self.teacher, views, names), "view": records})
        self.answered += len(records)
        self.seconds += time.perf_counter() - started


def fill_files(job: CachingJob, progress: Progress) -> dict[str, tuple[int, float]]:
    """Answer every block that lacks something, for all teachers side by side, and finish the files.

    Returns:
        By teacher, how many views it answered, and seconds of answering and writing.
    """
    labels = job.source.labels.numpy()
    with contextlib.ExitStack() as files:
        fillings = []
        for one in job.teachers:
            writer = CacheWriter(job.folder, one.name, shape=one.shape, provenance=one.provenance, labels=labels)
            files.enter_context(writer)
            fillings.append(_Filling(teacher=one.teacher, writer=writer, pending=frozenset(writer.pending())))
        _fill(job, [filling for filling in fillings if filling.pending], progress)
        for filling in fillings:
            filling.writer.finish()
    return {filling.teacher.name: (filling.answered, filling.seconds) for filling in fillings}


def _fill(job: CachingJob, fillings: Sequence[_Filling], progress: Progress) -> None:
    """Block after block: its pictures are read once, and every slot of them goes to every teacher that lacks it."""
    for filling in fillings:
        _require_same_answers(job, filling)
    blocks = sorted({block for filling in fillings for _, block in filling.pending})
    total = sum(filling.writer.shape.num_views for filling in fillings) * len(job.source)
    missing = sum(len(_samples(filling, block)) for filling in fillings for _, block in filling.pending)
    names = ", ".join(filling.teacher.name for filling in fillings)
    with progress.task(f"asking {names}", total=total, unit="views", done=total - missing) as task:
        synced = time.monotonic()
        for block in blocks:
            _fill_block(job, fillings, block, task)
            if time.monotonic() - synced > _SECONDS_BETWEEN_SYNCS:
                for filling in fillings:
                    filling.writer.blocks.sync()
                synced = time.monotonic()


def _fill_block(job: CachingJob, fillings: Sequence[_Filling], block: int, task: Task) -> None:
    slots = sorted({slot for filling in fillings for slot, of in filling.pending if of == block})
    indices = _samples(fillings[0], block)
    for slot, records, views in job.views(slots, indices):
        for filling in fillings:
            if (slot, block) in filling.pending:
                filling.fill(slot, block, views, records)
                task.advance(len(indices))


def _samples(filling: _Filling, block: int) -> Tensor:
    """The samples (B,) of a block."""
    rows = filling.writer.shape.rows(block)
    return torch.arange(rows.start, rows.stop)


def ask(teacher: Teacher, views: Sequence[Tensor], names: Sequence[str]) -> dict[str, Array]:
    """A teacher's answers to batches of views as a file's data sets; entropy and prediction are of unrounded logits.

    Args:
        names: of the data sets; of these only the features are chosen, the others always come.
    """
    keys = [name.removeprefix("features/") for name in names if name.startswith("features/")]
    parts = [teacher.answer(batch, features=keys) for batch in views]
    logits = torch.cat([part.logits for part in parts])
    answers = {
        "logits": logits,
        "entropy": entropy(logits),
        "prediction": logits.argmax(1),
        **{f"features/{key}": torch.cat([part.features[key] for part in parts]) for key in keys},
    }
    return {name: answer.cpu().numpy() for name, answer in answers.items()}


def _require_same_answers(job: CachingJob, filling: _Filling) -> None:
    """Before rows join earlier ones, answer one earlier block again: it also catches changed code of the network.

    Raises:
        CacheMismatchError: if the answers differ by more than rounding.
    """
    place = filling.writer.blocks.first_written()
    if place is None:
        return
    slot, block = place
    earlier = filling.writer.blocks.written(slot, block)["logits"].astype(np.float32)
    ((_, _, views),) = job.views([slot], _samples(filling, block))
    now = ask(filling.teacher, views, [])["logits"]
    change, scale = np.abs(earlier - now).max(), np.abs(earlier).max()
    if change > RECOMPUTE_TOLERANCE * max(scale, 1.0):
        rows = filling.writer.shape.rows(block)
        raise CacheMismatchError(
            f"teacher {filling.teacher.name} answers slot {slot}, rows {rows.start} to {rows.stop - 1}, otherwise than "
            f"when the cache was started (logits differ by up to {change:.3g}): its network's code has changed since; "
            "choose another folder (`out`)"
        )


def precompute_weights(folder: Path, progress: Progress) -> tuple[str, ...]:
    """Write weights.h5 for all whole teachers of a cache, if they fit together; the names of those weighted."""
    with contextlib.suppress(CacheDamagedError, CacheMismatchError):  # of the weights: they are computed anew
        present = open_cache(folder)
        if present.teacher_weights is not None and present.teacher_weights.weighting == DEFAULT_WEIGHTING:
            return present.names
    try:
        cache = open_cache(folder, weights=False)
    except CacheMismatchError as error:
        progress.warn(f"no weights were computed: {error}")
        return ()
    weights = np.empty((len(cache.teachers), cache.num_views, cache.samples), np.float32)
    for slot in range(cache.num_views):
        entropies = np.stack([teacher.read("entropy", slot) for teacher in cache.teachers])
        weights[:, slot] = entropy_weights(torch.from_numpy(entropies)).numpy()
    write_weights(folder, cache.teachers, weights, weighting=DEFAULT_WEIGHTING)
    return cache.names


def _report(
    job: CachingJob, prepared: PreparedTeacher, answered: int, seconds: float, progress: Progress
) -> TeacherCachingReport:
    file = TeacherCache(cache_file(job.folder, prepared.name))
    labels, classes = job.source.labels.numpy(), job.source.classes
    slots = range(file.shape.num_views)
    top1 = float(np.mean([(file.read("prediction", slot) == labels).mean() for slot in slots]))
    if top1 < _near_chance(classes):
        progress.warn(
            f"teacher {prepared.name} is right about {top1:.1%} of {job.source.name}, near chance ({1 / classes:.1%}): "
            "are its classes in another order, or its normalisation another one?"
        )
    return TeacherCachingReport(
        name=prepared.name,
        network=prepared.network,
        parameters=prepared.teacher.parameters,
        views=file.shape.num_views,
        answered=answered,
        top1=top1,
        mean_entropy=float(np.mean([file.read("entropy", slot).mean(dtype=np.float64) for slot in slots])),
        file_bytes=file.path.stat().st_size,
        seconds=seconds,
        features=file.shape.features,
    )


def _near_chance(classes: int) -> float:
    """The top-1 below which a warning is due: twice that of chance, or with few classes a fifth of the way to 1."""
    chance = 1 / classes
    return min(2 * chance, chance + 0.2 * (1 - chance))
