"""Stage one: every teacher predicts every view once, and its logits go to the cache.

    dataset    a batch of samples      -> images, read once for all views and teachers
    dataset    view index, images      -> views (B, 3, H, W): the same boxes and flips, today and tomorrow
    teachers   views                   -> logits (B, C), features
    losses     logits                  -> entropy (B,)
    cache      view, block of rows     -> bytes at their place in the shard of <teacher>
    pipeline   entropy of all K        -> weights (K, V, N) in weights.h5

Processes share the work by locks alone: each takes the next shard that is not finished and not locked, for all
teachers, and continues what a killed process left.

B in a batch, N samples, C classes, K teachers, V views, P params of a view, k kept logits.
"""

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import CacheShape, CacheWriter, Shard, ShardFile, TeacherCache, open_cache, write_weights
from demkd.cache.errors import CacheBusyError, CacheDamagedError, CacheMismatchError
from demkd.cache.format import decode_logits
from demkd.cache.reader import describe_shards
from demkd.cache.shards import all_shards, files_by_teacher, is_whole, shard_file
from demkd.cache.writer import check_space, write_files
from demkd.config import TrainConfig
from demkd.dataset import Params, ViewTask
from demkd.losses import entropy
from demkd.losses.weights import DEFAULT_WEIGHTING, entropy_weights
from demkd.pipeline.distributed import is_rank_zero, ranks_from_environment
from demkd.pipeline.preparation import CachingJob, PreparedTeacher
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import CachingPlan, CachingReport, TeacherCachingReport, TeacherPlan, is_near_chance
from demkd.teachers import Teacher

Array = NDArray[Any]
Unit = tuple[Shard, list[PreparedTeacher]]  # a shard, and the teachers that have one of this number and count
Work = tuple[PreparedTeacher, CacheWriter]
HostCopy = Callable[[], dict[str, Array]]  # waits until the arrays have come from the GPU
# Consecutive rows of a block in one view: number of the work, view, block, first row, predictions.
Part = tuple[int, int, int, int, HostCopy]

# As a share of the largest logit: rounding differs between processors and batch sizes, predictions do not.
RECOMPUTE_TOLERANCE = 0.05
_SECONDS_BETWEEN_SYNCS = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0  # at shards that other processes hold
_SECONDS_FOR_WEIGHTS, _SECONDS_BETWEEN_TRIES = 10.0, 0.2  # while another process writes them
# Limits of what is computed ahead, times the number of workers and of tasks in progress.
VIEW_BYTES = 1 << 26  # of a batch in all its views
_BLOCK_BYTES = 1 << 28  # of a block in all its views, before they are written
_PROBE_SECONDS, _MOST_PROBES = 1.0, 8  # of a dry run
_PROBE_VIEWS, _PROBE_IMAGES = 16, 256


@dataclass(slots=True)
class Done:
    """What this process did for a teacher: views, seconds, and whether earlier logits were computed again."""

    views: int = 0
    seconds: float = 0.0
    compared: bool = False


def cache_teachers(job: CachingJob, progress: Progress) -> CachingReport:
    """Compute what is missing and no other process computes, then the weights, if all is finished.

    After an error, what was written stays, and the same call resumes.
    """
    started = time.perf_counter()
    # Raise what is wrong with a file, or with the disk, now and not after hours; `fill_shards` checks the blocks.
    check_space(job.folder, job.plans(checked=False))
    done = fill_shards(job, progress)
    seconds = time.perf_counter() - started
    units = _by_shard((shard, one) for one in job.teachers for shard in all_shards(one.shards))
    # Described first: a shard that another process finishes between the two looks is then finished, not lost.
    held = tuple(_describe(job.folder, units))
    complete = all(_is_finished(job.folder, shard, teachers) for shard, teachers in units)
    finished = complete and is_rank_zero()
    if finished and job.source.files is not None:
        write_files(job.folder, job.teachers[0].provenance, [os.fsdecode(name) for name in job.source.files])
    weighted = precompute_weights(job.folder, progress) if finished else ()
    if weighted and (few := open_cache(job.folder, weighted, weights=False).views_note):
        progress.note(few)
    return CachingReport(
        folder=job.folder,
        samples=len(job.source),
        views=job.num_views,
        num_distinct_views=job.policy.num_distinct_views,
        precision=job.compute.precision,
        teachers=tuple(_report(job, one, done[one.name], progress, finished=finished) for one in job.teachers),
        weighted=weighted,
        seconds=seconds,
        held=() if complete else held,
    )


def fill_shards(job: CachingJob, progress: Progress) -> dict[str, Done]:
    """Fill every free shard until none is left, or other processes hold what is left; the work done, by teacher.

    Under torchrun, ranks share the check of what was finished before, and rank 0 stays until all is finished.
    """
    launched = ranks_from_environment()
    rank, size = launched or (0, 1)
    units = _by_shard((shard, one) for one in job.teachers for shard in job.shards_of(one))
    before = {shard for shard, teachers in units if _is_finished(job.folder, shard, teachers)}
    left = [(shard, teachers) for shard, teachers in units if shard not in before or shard.number % size == rank]
    done = {one.name: Done() for one in job.teachers}
    waiting = False
    while left:
        busy = []
        for shard, teachers in left:
            if shard not in before and _is_finished(job.folder, shard, teachers):
                continue  # the process that filled it has checked it
            try:
                _fill_shard(job, shard, teachers, done, progress)
            except CacheBusyError:
                if shard.count == 1 and launched is None:
                    raise
                busy.append((shard, teachers))
        if len(busy) == len(left):
            if launched is None or rank > 0:
                break
            if not waiting:
                progress.note(f"waiting for other processes: {'; '.join(_describe(job.folder, busy))}")
            waiting = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        left = busy
    return done


def _by_shard(pairs: Iterator[tuple[Shard, PreparedTeacher]]) -> list[Unit]:
    units: dict[Shard, list[PreparedTeacher]] = {}
    for shard, teacher in pairs:
        units.setdefault(shard, []).append(teacher)
    return list(units.items())


def _is_finished(folder: Path, shard: Shard, teachers: Sequence[PreparedTeacher]) -> bool:
    """Whether all files of a shard have their final names and all that is wanted; blocks are not checked."""
    files = (ShardFile.open_if_there(shard_file(folder, one.name, shard)) for one in teachers)
    return all(file and file.shape.covers(one.shape.part(shard)) for file, one in zip(files, teachers, strict=True))


def _describe(folder: Path, units: Sequence[Unit]) -> Iterator[str]:
    """What is not finished, and which processes write it."""
    for name in dict.fromkeys(one.name for _, teachers in units for one in teachers):
        shards = [shard for shard, teachers in units if any(one.name == name for one in teachers)]
        if states := describe_shards(folder, name, shards):
            yield f"teacher {name}: {'; '.join(states)}"


def _fill_shard(
    job: CachingJob, shard: Shard, teachers: Sequence[PreparedTeacher], done: Mapping[str, Done], progress: Progress
) -> None:
    """Fill the files of a shard, all teachers side by side; CacheBusyError, if any, before anything is done."""
    labels = job.source.labels.numpy()
    with contextlib.ExitStack() as files:
        writers = []
        for one in teachers:
            writer = CacheWriter(
                job.folder, one.name, shape=one.shape, provenance=one.provenance, labels=labels, shard=shard
            )
            files.callback(writer.release)
            writer.lock()
            writers.append(writer)
        for writer in writers:
            files.enter_context(writer)
        works = [(one, writer) for one, writer in zip(teachers, writers, strict=True) if writer.pending()]
        for one, writer in works:
            if not done[one.name].compared:
                _check_same_logits(job, one, writer.path)
                done[one.name].compared = True
        if works:
            names = ", ".join(one.name for one, _ in works)
            total = sum(writer.shape.num_views * writer.shape.samples for _, writer in works)
            missing = sum(
                len(writer.shape.samples_of(block)) - writer.rows_done(view, block)
                for _, writer in works
                for view, block in writer.pending()
            )
            text = f"predicting {names}{f', {shard}' if shard.count > 1 else ''}"
            with progress.task(text, total=total, unit="views", done=total - missing) as task:
                _fill_blocks(job, works, done, task)
        for writer in writers:
            writer.finish()


def _fill_blocks(job: CachingJob, works: Sequence[Work], done: Mapping[str, Done], task: Task) -> None:
    """Block after block, in as many views at a time as memory allows: an image is read once for all of them.

    What takes longer than some seconds is written in parts, so that little is lost if the process ends.
    """
    shape, labels = works[0][1].shape, job.source.labels.to(job.compute.device)
    views_at_once = _views_at_once(job, [writer.shape for _, writer in works])
    begun: deque[tuple[int, Sequence[int], int, ViewTask, bool]] = deque()  # block, views, first row, batch, is last

    def tasks() -> Iterator[ViewTask]:
        """Batches, which are read and cut some time before their turn."""
        pending = sorted({(block, view) for _, writer in works for view, block in writer.pending()})
        for block, pairs in itertools.groupby(pending, lambda pair: pair[0]):
            samples = shape.samples_of(block)
            missing = [view for _, view in pairs]
            for start in range(0, len(missing), views_at_once):
                views = missing[start : start + views_at_once]
                row = min(writer.rows_done(view, block) for _, writer in works for view in views)
                row -= row % job.batch_size  # the batches of an uninterrupted process give the same logits
                _, batches = job.tasks(views, torch.arange(samples.start + row, samples.stop))
                for batch in batches:
                    begun.append((block, views, row, batch, batch is batches[-1]))
                    row += len(batch.indices)
                    yield batch

    # By number of the work and view: the first row, and batches of predictions.
    parts: dict[tuple[int, int], tuple[int, list[Mapping[str, Tensor]]]] = {}
    unwritten: deque[list[Part]] = deque()
    # A GPU computes a block while the one before is copied and written.
    ahead, synced = 1 if job.compute.device.type == "cuda" else 0, time.monotonic()
    for images in job.source.views(job.policy, tasks(), job.compute.device):
        block, views, row, batch, is_last = begun.popleft()
        batch_labels = labels[batch.indices.to(labels.device)]
        wanted = [
            (place, view, number)
            for place, view in enumerate(views)
            for number, (_, writer) in enumerate(works)
            if writer.rows_done(view, block) < row + len(batch_labels)
        ]
        for place, view, number in wanted:
            (one, writer), started = works[number], time.perf_counter()
            names = writer.missing(view, block)
            found = predict(one.teacher, images[one.view_size][place], names, batch_labels, writer.shape)
            parts.setdefault((number, view), (row, []))[1].append({**found, "params": batch.params[place]})
            done[one.name].seconds += time.perf_counter() - started
            task.advance(len(batch_labels))
            overdue = time.monotonic() - synced > _SECONDS_BETWEEN_SYNCS
            if overdue or (is_last and (place, view, number) == wanted[-1]):
                copies = [(*key, block, first, _start_copy(batches)) for key, (first, batches) in parts.items()]
                unwritten.append(copies)
                parts.clear()
                if len(unwritten) > ahead:
                    _write(works, unwritten.popleft(), done)
            if overdue:
                for _, writer in works:
                    writer.sync()
                synced = time.monotonic()
    for some in unwritten:
        _write(works, some, done)


def _write(works: Sequence[Work], parts: Sequence[Part], done: Mapping[str, Done]) -> None:
    """Write rows of a block in some views."""
    for number, view, block, first, on_host in parts:
        started = time.perf_counter()
        one, writer = works[number]
        arrays = on_host()
        writer.write(view, block, arrays, first=first)
        done[one.name].views += len(arrays["params"])
        done[one.name].seconds += time.perf_counter() - started


def _views_at_once(job: CachingJob, shapes: Sequence[CacheShape]) -> int:
    """How many views of a batch, and of a block until it is written, memory allows."""
    image_area = math.prod(job.source.image_size or (0, 0))
    areas = [size**2 if size else image_area for size in {one.view_size for one in job.teachers}]
    pixels = 3 * job.batch_size * sum(areas)
    rows = sum(shape.row_bytes() * shape.block_rows for shape in shapes)
    return max(1, min(VIEW_BYTES // pixels, _BLOCK_BYTES // rows))


def predict(
    teacher: Teacher, images: Tensor, names: Sequence[str], labels: Tensor, shape: CacheShape
) -> dict[str, Tensor]:
    """A teacher's predictions for images (B, 3, H, W) with labels (B,), as the data sets of a file, on the device.

    Entropy and prediction are of unrounded, complete logits. `names` choose among the features; all else always comes.
    """
    keys = [name.removeprefix("features/") for name in names if name.startswith("features/")]
    found = teacher.predict(images, features=keys)
    return {
        **kept_logits(found.logits, labels, shape),
        "entropy": entropy(found.logits),
        "prediction": found.logits.argmax(1),
        **{f"features/{key}": found.features[key] for key in keys},
    }


def kept_logits(logits: Tensor, labels: Tensor, shape: CacheShape) -> dict[str, Tensor]:
    """What a file keeps of logits (B, C): all, or the k largest with their classes, the label's, and the others' tail.

    The others are those beyond the k largest and the label: the logsumexp of their z / T at each temperature (B, T), 0
    where there are none.
    """
    if shape.top_k is None:
        return {"logits": logits}
    largest, classes = logits.topk(shape.top_k, dim=1)
    others = logits.scatter(1, classes, -torch.inf).scatter(1, labels[:, None], -torch.inf)
    tail = torch.stack([torch.logsumexp(others / temperature, 1) for temperature in shape.tail_temperatures], dim=1)
    return {
        "logits": largest,
        "classes": classes,
        "label_logit": logits.gather(1, labels[:, None])[:, 0],
        "tail": tail.masked_fill(tail == -torch.inf, 0.0),
    }


def _start_copy(batches: Sequence[Mapping[str, Tensor]]) -> HostCopy:
    """Join batches, and start to copy them from a GPU, which computes the next ones meanwhile."""
    joint = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    if not any(tensor.is_cuda for tensor in joint.values()):
        return lambda: {name: tensor.numpy() for name, tensor in joint.items()}
    pinned = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in joint.items()
    }
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> dict[str, Array]:
        copied.synchronize()
        return {name: tensor.numpy() for name, tensor in pinned.items()}

    return wait


def _check_same_logits(job: CachingJob, teacher: PreparedTeacher, path: Path) -> None:
    """Before rows join earlier ones, compute one earlier block again, of the file at `path` if it has one.

    It also catches changed code of the network.
    """
    paths = sorted(files_by_teacher(job.folder).get(teacher.name, []), key=lambda other: other != path)
    sound = (
        (file, view, block)
        for file in map(ShardFile.open_if_there, paths)
        if file
        for view, block in np.argwhere(file.block_crc("logits") != 0).tolist()
        if not any(file.block_fault(name, view, block) for name in file.shape.logit_sets())
    )
    first = next(sound, None)
    if first is None:
        return
    file, view, block = first
    rows = file.shape.samples_of(block)
    earlier = compared({name: file.block(name, view, block) for name in file.shape.logit_sets()}, file.shape)
    _, now = predict_again(job, teacher, view, torch.arange(rows.start, rows.stop))
    change, scale = largest_changes(earlier, now).max(), np.abs(earlier["logits"]).max()
    if not change <= RECOMPUTE_TOLERANCE * max(scale, 1.0):  # NaN differs too
        raise CacheMismatchError(
            f"teacher {teacher.name} now gives other logits for view {view}, rows {rows.start} to {rows.stop - 1}, "
            f"than when the cache was started (they differ by up to {change:.3g}): its network's code has changed; "
            "choose another folder (`out`)"
        )


def predict_again(
    job: CachingJob, teacher: PreparedTeacher, view: int, indices: Tensor
) -> tuple[Params, dict[str, Array]]:
    """The params of samples (B,) in a view, and what a teacher predicts for them now."""
    labels = job.source.labels.to(job.compute.device)
    params, tasks = job.tasks([view], indices)
    batches = []
    for task, images in zip(tasks, job.source.views(job.policy, tasks, job.compute.device), strict=True):
        batch_labels = labels[task.indices.to(labels.device)]
        batches.append(predict(teacher.teacher, images[teacher.view_size][0], [], batch_labels, teacher.shape))
    return params[0], _start_copy(batches)()


def compared(stored: Mapping[str, Array], shape: CacheShape) -> dict[str, Array]:
    """What `largest_changes` takes, from rows of a file's data sets of logits."""
    if shape.encoding == "uint8":
        return {"logits": decode_logits(stored["logits"], stored["logit_max"], stored["logit_scale"])}
    return {**stored, "logits": stored["logits"].astype(np.float32)}


def largest_changes(before: Mapping[str, Array], now: Mapping[str, Array]) -> NDArray[np.float32]:
    """How much the logits of each view differ at least: (B,), NaN where a logit is NaN.

    A class may be among the k largest on one side only. The other side then says that its logit was at most the
    smallest one kept there: classes that change places because of a tie count for no more than rounding. Both sides
    have "logits" (B, k), and, where not all are kept, "classes" (B, k).
    """
    old, new = before["logits"], now["logits"]
    with np.errstate(invalid="ignore"):  # an infinite logit of a forged file, which becomes NaN
        if "classes" not in before:
            changes: Array = np.abs(old - new)
            return changes.max(1)  # type: ignore[no-any-return]
        classes = np.concatenate((before["classes"], now["classes"]), axis=1, dtype=np.int64, casting="unsafe")
        logits = np.concatenate((old, new), axis=1)
        floors = np.repeat(np.stack((new.min(1), old.min(1)), axis=1), old.shape[1], axis=1)  # of the other side
        order = np.argsort(classes, axis=1, kind="stable")
        classes, logits, floors = (np.take_along_axis(array, order, axis=1) for array in (classes, logits, floors))
        on_both = classes[:, 1:] == classes[:, :-1]
        alone = ~(np.pad(on_both, ((0, 0), (0, 1))) | np.pad(on_both, ((0, 0), (1, 0))))
        moved = np.where(on_both, np.abs(logits[:, 1:] - logits[:, :-1]), 0)
        entered = np.where(alone, np.maximum(logits - floors, 0), 0)
        return np.maximum(moved.max(1), entered.max(1))  # type: ignore[no-any-return]


def precompute_weights(folder: Path, progress: Progress) -> tuple[str, ...]:
    """Write weights.h5 for all finished teachers of a cache, if they fit together; the names of these teachers.

    None where another process writes the file for too long.
    """
    names = [name for name in files_by_teacher(folder) if is_whole(folder, name)]
    end = time.monotonic() + _SECONDS_FOR_WEIGHTS
    while True:
        with contextlib.suppress(CacheDamagedError, CacheMismatchError):  # of the weights: they are computed again
            present = open_cache(folder, names)
            if present.teacher_weights is not None and present.teacher_weights.weighting == DEFAULT_WEIGHTING:
                return present.names
        try:
            cache = open_cache(folder, names, weights=False)
            weights = np.empty((len(cache.teachers), cache.num_views, cache.samples), np.float32)
            for view in range(cache.num_views):
                entropies = np.stack([teacher.read("entropy", view) for teacher in cache.teachers])
                weights[:, view] = entropy_weights(torch.from_numpy(entropies)).numpy()
            write_weights(folder, cache.teachers, weights, weighting=DEFAULT_WEIGHTING)
            return cache.names
        except (CacheMismatchError, CacheBusyError) as error:
            # Another process, which ended just now, may write the same.
            if isinstance(error, CacheMismatchError) or time.monotonic() > end:
                progress.warn(f"no weights were computed: {error}")
                return ()
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _report(
    job: CachingJob, teacher: PreparedTeacher, done: Done, progress: Progress, *, finished: bool
) -> TeacherCachingReport:
    report = TeacherCachingReport(
        name=teacher.name,
        network=teacher.network,
        parameters=teacher.teacher.parameters,
        views=teacher.shape.num_views,
        computed=done.views,
        seconds=done.seconds,
        shards=teacher.shards,
        features=teacher.shape.features,
    )
    if not finished:
        return report
    cached, labels = TeacherCache.open(job.folder, teacher.name), job.source.labels.numpy()
    views = range(cached.shape.num_views)
    top1 = float(np.mean([(cached.read("prediction", view) == labels).mean() for view in views]))
    classes = job.source.classes
    if is_near_chance(top1, classes):
        progress.warn(
            f"teacher {teacher.name} has top-1 {top1:.1%} on {job.source.name}, near chance ({1 / classes:.1%}): "
            "check the class order and the normalization"
        )
    return replace(
        report,
        views=cached.shape.num_views,
        top1=top1,
        mean_entropy=float(np.mean([cached.read("entropy", view).mean(dtype=np.float64) for view in views])),
        file_bytes=cached.file_bytes,
        features=cached.shape.features,
    )


def plan_caching(job: CachingJob, progress: Progress) -> CachingPlan:
    """The dry run: what `cache_teachers` would cost, or the error that would stop it. Nothing is written."""
    plans = job.plans()
    free = check_space(job.folder, plans)
    teachers = []
    for one, plan in zip(job.teachers, plans, strict=True):
        progress.note(f"timing teacher {one.name}")
        teachers.append(
            TeacherPlan(
                name=one.name,
                network=one.network,
                parameters=one.teacher.parameters,
                views=plan.shape.num_views,
                file_bytes=plan.file_bytes,
                feature_bytes=plan.shape.payload_bytes() - replace(plan.shape, features={}).payload_bytes(),
                new_bytes=plan.new_bytes,
                pending=plan.pending,
                seconds=plan.pending * _seconds_per_view(job, one) if plan.pending else 0.0,
            )
        )
    samples, pending = len(job.source), [plan.pending for plan in plans]
    image_seconds = 0.0
    if any(pending) and not job.source.is_resident(job.policy):
        progress.note("timing the images")
        image_seconds = _image_seconds(job) * max(pending) / (samples * job.num_views)
    times = (image_seconds, sum(teacher.seconds for teacher in teachers))
    epochs = sum(pending) / (samples * len(plans))
    return CachingPlan(
        folder=job.folder,
        samples=samples,
        views=job.num_views,
        num_distinct_views=job.policy.num_distinct_views,
        precision=job.compute.precision,
        teachers=tuple(teachers),
        free_bytes=free,
        decode_seconds=image_seconds,
        # Images are decoded beside the teachers' work; on the CPU both need the same cores.
        seconds=max(times) if job.compute.device.type == "cuda" else sum(times),
        break_even_epochs=epochs,
        student_epochs=TrainConfig.epochs,
        break_even_runs=epochs / TrainConfig.epochs,
    )


def _seconds_per_view(job: CachingJob, teacher: PreparedTeacher) -> float:
    """The median over a few batches of views that are there already, after one that only warms up."""
    indices = torch.arange(min(job.batch_size, len(job.source)))
    labels = job.source.labels[indices].to(job.compute.device)
    names = list(teacher.shape.data_sets())
    _, tasks = job.tasks([0], indices)
    (images,) = job.source.views(job.policy, tasks, job.compute.device)
    seconds: list[float] = []
    while len(seconds) <= 1 or (len(seconds) <= _MOST_PROBES and sum(seconds) < _PROBE_SECONDS):
        started = time.perf_counter()
        for tensor in predict(teacher.teacher, images[teacher.view_size][0], names, labels, teacher.shape).values():
            tensor.cpu()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:])) / len(indices)


def _image_seconds(job: CachingJob) -> float:
    """Reading every image and cutting all its views, by all workers at once."""
    views = range(min(job.num_views, _PROBE_VIEWS))
    indices = torch.arange(len(job.source))[:: max(len(job.source) // _PROBE_IMAGES, 1)]
    _, tasks = job.tasks(views, indices)
    warm, *timed = tasks if len(tasks) > 1 else [tasks[0], tasks[0]]
    list(job.source.views(job.policy, [warm], job.compute.device))  # starts the workers
    started = time.perf_counter()
    for _ in job.source.views(job.policy, timed, job.compute.device):
        pass
    seconds = time.perf_counter() - started
    passes = -(-job.num_views // _PROBE_VIEWS)
    return seconds / sum(len(task.indices) for task in timed) * passes * len(job.source)
