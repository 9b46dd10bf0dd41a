"""Stage one: every teacher looks once at every view, and its answers go to the cache.

    dataset   a batch of samples     -> pictures, read once for all slots and teachers
    dataset   slot, pictures         -> views (B, 3, H, W): the same boxes and flips, today and tomorrow
    teachers  views                  -> logits (B, C), features
    losses    logits                 -> entropy (B,)
    cache     slot, block of rows    -> bytes at their place in <teacher>.h5
    pipeline  entropy of all K       -> weights (K, V, N) in weights.h5

B in a batch, N samples, C classes, K teachers, V slots.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import (
    Cache,
    CacheBusyError,
    CacheDamagedError,
    CacheMismatchError,
    CacheWriter,
    TeacherCache,
    open_cache,
    write_weights,
)
from demkd.cache.shards import files_by_teacher
from demkd.cache.space import require_space
from demkd.cache.teacher import is_whole, shards_in_words
from demkd.dataset import Records, Views, ViewTask, resting_after
from demkd.losses import entropy_weights
from demkd.pipeline.answering import Answers, Arriving, ask, joined
from demkd.pipeline.comparing import compared, largest_changes, names_compared
from demkd.pipeline.compute import Compute
from demkd.pipeline.preparation import CachingJob, CachingRequest, PreparedTeacher, prepare
from demkd.pipeline.processes import announced, speaks
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import CachingReport, TeacherCachingReport
from demkd.pipeline.sharing import Unit, units_of, work_through
from demkd.pipeline.weighing import DEFAULT_WEIGHTING

Array = NDArray[Any]
Item = TypeVar("Item")

# As a share of the largest logit: rounding differs between processors and batch sizes, answers do not.
RECOMPUTE_TOLERANCE = 0.05
_SECONDS_BETWEEN_SYNCS = 10.0
_PATIENCE_WITH_WEIGHTS, _SECONDS_BETWEEN_LOOKS = 10.0, 0.2  # with another process that writes them
# What is made ahead is bounded by these, times the workers and what each has in hand.
VIEW_BYTES = 1 << 26  # of a batch's views in all its slots
_ANSWER_BYTES = 1 << 28  # to a block in all its slots, before they are written


def cache_teachers(request: CachingRequest, compute: Compute, progress: Progress) -> CachingReport:
    """Let all teachers answer what is missing and no other process is at, then compute the weights, if all is whole.

    Raises:
        UserError: of any room, in words for the user; what was written stays, and the same call goes on.
    """
    with resting_after(request.source):
        return _cache_teachers(request, compute, progress)


def _cache_teachers(request: CachingRequest, compute: Compute, progress: Progress) -> CachingReport:
    started = time.perf_counter()
    job = prepare(request, compute)
    # Whatever is wrong with a file, or with the disk, is said now and not after hours of answers.
    require_space(request.folder, job.plans())
    filled, left = fill_files(job, progress)
    seconds = time.perf_counter() - started
    ends = not left and speaks()
    return CachingReport(
        folder=request.folder,
        samples=len(job.source),
        views=job.num_views,
        num_distinct_views=job.policy.num_distinct_views,
        precision=compute.precision,
        teachers=tuple(_report(job, one, *filled[one.name], progress, whole=ends) for one in job.teachers),
        weighted=precompute_weights(request.folder, progress) if ends else (),
        seconds=seconds,
        held=_held(job, left),
    )


@dataclass(kw_only=True, slots=True, eq=False)
class _Filling:
    """A teacher, its file of a unit, the (slot, block) pairs that the file lacks, and what filling them took so far."""

    prepared: PreparedTeacher
    writer: CacheWriter
    pending: frozenset[tuple[int, int]]
    answered: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.prepared.name

    def write(self, slot: int, block: int, answers: Arriving, records: Records) -> None:
        """Put what was answered to the batches of a block in one slot."""
        started = time.perf_counter()
        self.writer.blocks.write(slot, block, {**answers.arrays(), "view": records})
        self.answered += len(records)
        self.seconds += time.perf_counter() - started

    def ask(self, views: Views, place: int, slot: int, block: int, labels: Tensor) -> Answers:
        """Answers to one batch, in the slot at a place of a task."""
        started = time.perf_counter()
        batch = views[self.prepared.view_size][place]
        answers = ask(self.prepared.teacher, batch, self.writer.blocks.missing(slot, block), labels, self.writer.shape)
        self.seconds += time.perf_counter() - started
        return answers


def _held(job: CachingJob, left: Sequence[Unit]) -> tuple[str, ...]:
    """What is not whole, and which other processes write it, in words."""
    names = dict.fromkeys(one.name for unit in left for one in unit.teachers)
    return tuple(
        f"teacher {name}: {words}"
        for name in names
        for words in shards_in_words(job.folder, name, [unit.shard for unit in left if unit.has(name)])
    )


def fill_files(job: CachingJob, progress: Progress) -> tuple[dict[str, tuple[int, float]], list[Unit]]:
    """Answer every block that is asked for, lacks something, and has no other process at it; finish the files.

    Returns:
        By teacher, how many views it answered, and seconds of answering and writing; and what is not whole.
    """
    done = {one.name: (0, 0.0) for one in job.teachers}
    compared: set[str] = set()

    def fill(unit: Unit) -> None:
        for filling in _fill_unit(job, unit, compared, progress):
            answered, seconds = done[filling.name]
            done[filling.name] = (answered + filling.answered, seconds + filling.seconds)

    def wait(busy: list[Unit]) -> None:
        progress.note(f"waiting for others to finish or to end: {'; '.join(_held(job, busy))}")

    units = units_of(job.teachers)
    here = {shard for one in job.teachers for shard in one.made_here()}
    work_through(job.folder, [unit for unit in units if unit.shard in here], announced(), fill, wait)
    return done, [unit for unit in units if not unit.is_whole(job.folder)]


def _fill_unit(job: CachingJob, unit: Unit, compared: set[str], progress: Progress) -> list[_Filling]:
    """Fill the files of a unit, all teachers side by side.

    Args:
        compared: the teachers whose answers were compared with earlier ones; more are added.

    Raises:
        CacheBusyError: if another process holds one of them.
    """
    labels = job.source.labels.numpy()
    with contextlib.ExitStack() as files:
        writers = []
        for one in unit.teachers:
            shape, provenance = one.shape, one.provenance
            writer = CacheWriter(
                job.folder, one.name, shape=shape, provenance=provenance, labels=labels, shard=unit.shard
            )
            files.callback(writer.release)
            writer.lock()
            writers.append(writer)
        fillings = []
        for one, writer in zip(unit.teachers, writers, strict=True):
            files.enter_context(writer)
            fillings.append(_Filling(prepared=one, writer=writer, pending=frozenset(writer.pending())))
        pending = [filling for filling in fillings if filling.pending]
        for filling in pending:
            if filling.name not in compared:
                _require_same_answers(job, filling)
                compared.add(filling.name)
        if pending:
            _fill(job, unit, pending, progress)
        for filling in fillings:
            filling.writer.finish()
    return fillings


def _fill(job: CachingJob, unit: Unit, fillings: Sequence[_Filling], progress: Progress) -> None:
    """Block after block: its pictures are read once, and every slot of them goes to every teacher that lacks it."""
    blocks = sorted({block for filling in fillings for _, block in filling.pending})
    total = sum(filling.writer.shape.num_views * filling.writer.shape.samples for filling in fillings)
    missing = sum(len(_samples(filling, block)) for filling in fillings for _, block in filling.pending)
    names = ", ".join(filling.name for filling in fillings)
    part = f", {unit.shard}" if unit.shard.count > 1 else ""
    with progress.task(f"asking {names}{part}", total=total, unit="views", done=total - missing) as task:
        synced = time.monotonic()
        answered = _answered(job, fillings, _groups(job, fillings, blocks), task.advance)
        for group, answers in _one_behind(answered) if job.compute.device.type == "cuda" else answered:
            for (number, slot), arriving in answers.items():
                fillings[number].write(slot, group.block, arriving, group.records[group.slots.index(slot)])
            if time.monotonic() - synced > _SECONDS_BETWEEN_SYNCS:
                for filling in fillings:
                    filling.writer.blocks.sync()
                synced = time.monotonic()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """A block of samples (B,) in some slots that some teacher lacks, with the records (S, B, R) of their views."""

    block: int
    slots: Sequence[int]
    indices: Tensor
    records: Records


def _groups(job: CachingJob, fillings: Sequence[_Filling], blocks: Sequence[int]) -> Iterator[_Group]:
    """Block after block, in as many slots at a time as memory allows: a picture is read once for all of them."""
    at_once = _slots_at_once(job, fillings)
    for block in blocks:
        indices = _samples(fillings[0], block)
        slots = sorted({slot for filling in fillings for slot, of in filling.pending if of == block})
        for start in range(0, len(slots), at_once):
            some = slots[start : start + at_once]
            yield _Group(block=block, slots=some, indices=indices, records=job.draw(some, indices))


def _slots_at_once(job: CachingJob, fillings: Sequence[_Filling]) -> int:
    """So many that neither the views of a batch nor the answers to a block take more than the budget."""
    pixels = sum(3 * _area(job, size) for size in job.view_sizes) * job.batch_size
    answers = sum(one.writer.shape.row_bytes() * one.writer.shape.block_rows for one in fillings)
    return max(1, min(VIEW_BYTES // pixels, _ANSWER_BYTES // answers))


def _area(job: CachingJob, size: int | None) -> int:
    height, width = (size, size) if size else job.source.picture_size or (0, 0)
    return height * width


def _answered(
    job: CachingJob, fillings: Sequence[_Filling], groups: Iterator[_Group], advance: Callable[[int], None]
) -> Iterator[tuple[_Group, dict[tuple[int, int], Arriving]]]:
    """Each group with the answers to its batches, by filling and slot; views are made some batches ahead."""
    started: deque[tuple[_Group, int]] = deque()  # groups whose batches are under way, and how many there are

    def tasks() -> Iterator[ViewTask]:
        for group in groups:
            made = job.tasks(group.indices, group.records)
            started.append((group, len(made)))
            yield from made

    labels = job.source.labels.to(job.compute.device)
    shown = job.views(tasks())
    for views in shown:
        group, count = started.popleft()
        answers: dict[tuple[int, int], list[Answers]] = {}
        for number, batch in enumerate(itertools.chain([views], itertools.islice(shown, count - 1))):
            some = labels[group.indices[number * job.batch_size : (number + 1) * job.batch_size].to(labels.device)]
            for place, slot in enumerate(group.slots):
                for filling, one in enumerate(fillings):
                    if (slot, group.block) in one.pending:
                        found = one.ask(batch, place, slot, group.block, some)
                        answers.setdefault((filling, slot), []).append(found)
                        advance(len(some))
        yield group, {key: Arriving(parts) for key, parts in answers.items()}


def _one_behind(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each when the next one was begun: a GPU answers a block while the one before is written."""
    before = next(items)
    for item in items:
        yield before
        before = item
    yield before


def _samples(filling: _Filling, block: int) -> Tensor:
    """The samples (B,) of a block."""
    samples = filling.writer.shape.samples_of(block)
    return torch.arange(samples.start, samples.stop)


def answer_again(
    job: CachingJob, prepared: PreparedTeacher, slot: int, indices: Tensor
) -> tuple[Records, dict[str, Array]]:
    """The records of samples (B,) in a slot, and what a teacher answers to them now."""
    records = job.draw([slot], indices)
    labels = job.source.labels.to(job.compute.device)
    parts, start = [], 0
    for views in job.views(job.tasks(indices, records)):
        batch = views[prepared.view_size][0]
        some = labels[indices[start : start + len(batch)].to(labels.device)]
        parts.append(ask(prepared.teacher, batch, [], some, prepared.shape))
        start += len(batch)
    return records[0], joined(parts)


def _require_same_answers(job: CachingJob, filling: _Filling) -> None:
    """Before rows join earlier ones, answer one earlier block again: it also catches changed code of the network.

    Raises:
        CacheMismatchError: if the answers differ by more than rounding.
    """
    places = (
        (file, place) for file in filling.writer.earlier() if (place := file.first_sound(*names_compared(file.shape)))
    )
    file, place = next(places, (None, None))
    if file is None or place is None:
        return
    slot, block = place
    rows = file.shape.samples_of(block)
    earlier = compared(lambda name: file.block(name, slot, block), file.shape)
    _, now = answer_again(job, filling.prepared, slot, torch.arange(rows.start, rows.stop))
    change, scale = largest_changes(earlier, now).max(), np.abs(earlier["logits"]).max()
    if not change <= RECOMPUTE_TOLERANCE * max(scale, 1.0):  # NaN is no answer either
        raise CacheMismatchError(
            f"teacher {filling.name} answers slot {slot}, rows {rows.start} to {rows.stop - 1}, otherwise than "
            f"when the cache was started (logits differ by up to {change:.3g}): its network's code has changed since; "
            "choose another folder (`out`)"
        )


def precompute_weights(folder: Path, progress: Progress) -> tuple[str, ...]:
    """Write weights.h5 for all whole teachers of a cache, if they fit together.

    Returns:
        The names of those whose weights are there; none where another process does not come to an end with them.
    """
    whole = [name for name in files_by_teacher(folder) if is_whole(folder, name)]
    end = time.monotonic() + _PATIENCE_WITH_WEIGHTS
    while True:
        with contextlib.suppress(CacheDamagedError, CacheMismatchError):  # of the weights: they are computed anew
            present = open_cache(folder, whole)
            if present.teacher_weights is not None and present.teacher_weights.weighting == DEFAULT_WEIGHTING:
                return present.names
        try:
            return _write_weights(open_cache(folder, whole, weights=False))
        except CacheMismatchError as error:
            progress.warn(f"no weights were computed: {error}")
            return ()
        except CacheBusyError as error:  # another process, which ended just now, writes the same
            if time.monotonic() > end:
                progress.warn(f"no weights were computed: {error}")
                return ()
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _write_weights(cache: Cache) -> tuple[str, ...]:
    """Compute the weights of all teachers of a cache, and write them; the teachers' names."""
    weights = np.empty((len(cache.teachers), cache.num_views, cache.samples), np.float32)
    for slot in range(cache.num_views):
        entropies = np.stack([teacher.read("entropy", slot) for teacher in cache.teachers])
        weights[:, slot] = entropy_weights(torch.from_numpy(entropies)).numpy()
    write_weights(cache.folder, cache.teachers, weights, weighting=DEFAULT_WEIGHTING)
    return cache.names


def _report(
    job: CachingJob, prepared: PreparedTeacher, answered: int, seconds: float, progress: Progress, *, whole: bool
) -> TeacherCachingReport:
    report = TeacherCachingReport(
        name=prepared.name,
        network=prepared.network,
        parameters=prepared.teacher.parameters,
        views=prepared.shape.num_views,
        answered=answered,
        seconds=seconds,
        shards=prepared.shards,
        features=prepared.shape.features,
    )
    if not whole:
        return report
    cached = TeacherCache.open(job.folder, prepared.name)
    labels, classes = job.source.labels.numpy(), job.source.classes
    slots = range(cached.shape.num_views)
    top1 = float(np.mean([(cached.read("prediction", slot) == labels).mean() for slot in slots]))
    if top1 < _near_chance(classes):
        progress.warn(
            f"teacher {prepared.name} is right about {top1:.1%} of {job.source.name}, near chance ({1 / classes:.1%}): "
            "are its classes in another order, or its normalisation another one?"
        )
    return replace(
        report,
        views=cached.shape.num_views,
        top1=top1,
        mean_entropy=float(np.mean([cached.read("entropy", slot).mean(dtype=np.float64) for slot in slots])),
        file_bytes=cached.file_bytes,
        features=cached.shape.features,
    )


def _near_chance(classes: int) -> float:
    """The top-1 below which a warning is due: twice that of chance, or with few classes a fifth of the way to 1."""
    chance = 1 / classes
    return min(2 * chance, chance + 0.2 * (1 - chance))
