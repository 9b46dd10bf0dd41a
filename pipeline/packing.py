"""A copy of a cache for others, or a smaller one: fewer teachers, views or logits, no features; no teacher is asked.

    cache     block of a teacher      -> what is wanted of it, checked
    pipeline  logits (B, C)           -> the k largest, and the sum of the others
    cache     slot, block of rows     -> bytes at their place in the copy's files, then the ledger
    cache     the whole files         -> weights.h5, SHA256SUMS

The copy is an ordinary cache, filled by the writer of stage one: what was killed goes on when called again, and stage
one itself can add views, teachers and features to it. Its identity is that of the answers: with `keep` that of
`cache_teachers` with `keep`, because the numbers are the same but for rounding, of which a note tells.

B in a block, C classes, V slots, k kept logits, T temperatures.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.cache import (
    CacheDamagedError,
    CacheMismatchError,
    CacheShape,
    CacheValueError,
    CacheWriter,
    Provenance,
    TeacherCache,
    open_cache,
)
from demkd.cache.disk import disk_errors_in_words
from demkd.cache.shards import Shard, all_shards, files_by_teacher
from demkd.cache.space import plan_teacher, require_space
from demkd.cache.sums import SUMS_NAME, sums_of, sums_text
from demkd.dataset import ViewsError
from demkd.pipeline import defaults
from demkd.pipeline.answering import kept_logits
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import PackedTeacher, PackReport
from demkd.pipeline.stage_one import precompute_weights

Array = NDArray[Any]

ROUNDED = (
    "the sums of the logits that were not kept were computed from logits rounded to float16, when this copy was packed"
)
_IGNORED = "*.lock\n*.partial\n*.creating\n"  # what git and the hub should leave behind
_LOGITS = ("logits", "classes", "label_logit", "rest")
_SECONDS_BETWEEN_SYNCS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PackRequest:
    """What `pack` is asked for.

    Attributes:
        teachers: by name; None for all.
        views: the first so many slots; None for all.
        keep: how many of the largest logits; None for what there is.
        rest_temperatures: at which the sum of the others is kept; None for what there is, or the usual ones.
        features: layers by name; None for all.
    """

    cache: Path
    out: Path
    teachers: tuple[str, ...] | None = None
    views: int | None = None
    keep: int | None = None
    rest_temperatures: tuple[float, ...] | None = None
    features: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Copy:
    """A teacher, and what its copy is to be."""

    source: TeacherCache
    shape: CacheShape
    provenance: Provenance

    @property
    def shards(self) -> list[Shard]:
        return all_shards(len(self.source.files))

    def answers(self, names: Sequence[str], slot: int, block: int) -> dict[str, Array]:
        """The data sets of a block of the whole, as the copy has them.

        Raises:
            CacheDamagedError: if what was answered is damaged.
        """
        changes = (
            self.shape.keep != self.source.shape.keep
            or self.shape.rest_temperatures != self.source.shape.rest_temperatures
        )
        derived = self._fewer_logits(slot, block) if changes and set(names) & set(_LOGITS) else {}
        return {name: derived[name] if name in derived else self.source.block(name, slot, block) for name in names}

    def _fewer_logits(self, slot: int, block: int) -> dict[str, Array]:
        samples = self.source.shape.samples_of(block)
        labels = self.source.labels[samples.start : samples.stop]
        logits = self.source.block("logits", slot, block).astype(np.float32)
        if self.source.shape.keep is None:
            kept = kept_logits(torch.from_numpy(logits), torch.tensor(labels), self.shape)
            return {name: tensor.numpy() for name, tensor in kept.items()}
        classes, label_logit, rest = (self.source.block(name, slot, block) for name in _LOGITS[1:])
        columns = [self.source.require_temperature(one) for one in self.shape.rest_temperatures]
        others = _others(classes, labels, self.shape.classes)
        sums = np.where(others[:, None] > 0, rest[:, columns], -np.inf)
        return _cut(logits, classes, label_logit, sums, labels, self.shape)


def _others(classes: Array, labels: Array, count: int) -> Array:
    """How many of so many classes are neither among the kept ones (B, k) nor the label (B,)."""
    outside = ~(classes == labels[:, None]).any(1)
    others: Array = count - classes.shape[1] - outside.astype(np.int64)
    return others


def _cut(
    logits: Array, classes: Array, label_logit: Array, sums: Array, labels: Array, shape: CacheShape
) -> dict[str, Array]:
    """The first of kept logits, largest first, and sums (B, T) that count those dropped too; -inf is a sum of none."""
    dropped = np.where(classes[:, shape.keep :] == labels[:, None], -np.inf, logits[:, shape.keep :])  # (B, m - k)
    temperatures = np.asarray(shape.rest_temperatures, np.float32)
    softened = dropped[:, None] / temperatures[:, None]  # (B, T, m - k)
    rest = np.logaddexp(sums, np.logaddexp.reduce(softened, axis=2, initial=-np.inf))
    return {
        "logits": logits[:, : shape.keep],
        "classes": classes[:, : shape.keep],
        "label_logit": label_logit,
        "rest": np.where(np.isfinite(rest), rest, 0.0).astype(np.float32),
    }


def pack(request: PackRequest, progress: Progress) -> PackReport:
    """Write the copy: the teachers' files, then the weights, then the digests of them all.

    Raises:
        CacheError: of the cache, or of what is in the copy's folder already; the same call goes on.
        ViewsError: if there are not so many views.
    """
    if request.out.resolve() == request.cache.resolve():
        raise CacheMismatchError(f"{request.out} is the cache itself: choose another folder (`out`)")
    with open_cache(request.cache, request.teachers, weights=False) as cache:
        copies = [_copy_of(request, teacher, num_views=cache.num_views) for teacher in cache.teachers]
        _require_room(request, copies)
        total = sum(copy.shape.payload_bytes() for copy in copies)
        with progress.task("packing", total=total, unit="bytes") as task:
            for copy in copies:
                for shard in copy.shards:
                    _write(request.out, copy, shard, task)
        precompute_weights(request.out, progress)
        _write_sums(request.out, progress)
    return PackReport(
        folder=request.out,
        source_bytes=sum(copy.source.file_bytes for copy in copies),
        file_bytes=sum(file.stat().st_size for file in request.out.glob("*.h5")),
        teachers=tuple(_report(request.out, copy) for copy in copies),
    )


def _copy_of(request: PackRequest, teacher: TeacherCache, *, num_views: int) -> _Copy:
    has = teacher.shape
    views = num_views if request.views is None else request.views
    if not 1 <= views <= num_views:
        raise ViewsError(f"`views` is {views}, but {request.cache} has {num_views}: choose 1 to {num_views}")
    layers = tuple(has.features) if request.features is None else request.features
    if unknown := [layer for layer in layers if layer not in has.features]:
        have = ", ".join(has.features) or "none"
        raise CacheValueError(f"teacher {teacher.name} has no features {unknown[0]!r}; it has {have} (`features`)")
    keep, temperatures = _kept(request, has)
    shape = replace(
        has,
        num_views=views,
        keep=keep,
        rest_temperatures=temperatures,
        features={layer: has.features[layer] for layer in layers},
    )
    return _Copy(source=teacher, shape=shape, provenance=_provenance_of(teacher, shape))


def _kept(request: PackRequest, has: CacheShape) -> tuple[int | None, tuple[float, ...]]:
    """How many logits the copy has, and at which temperatures the sum of the others."""
    keep, most = request.keep or has.keep, has.keep or has.classes - 1
    if request.keep is not None and not 1 <= request.keep <= most:
        raise CacheValueError(f"`keep` is {request.keep}, and there are {most} to choose from: choose 1 to {most}")
    if keep is None:
        return None, ()
    usual = has.rest_temperatures if has.keep else defaults.REST_TEMPERATURES
    temperatures = request.rest_temperatures or usual
    if not all(0 < one < np.inf for one in temperatures):
        raise CacheValueError(f"`rest_temperatures` are {temperatures}: give numbers above 0, such as 1,2,4")
    if has.keep and not set(temperatures) <= set(usual):
        raise CacheValueError(
            f"`rest_temperatures` are {temperatures}, and the cache has sums at {usual}: choose among these"
        )
    return keep, tuple(map(float, temperatures))


def _provenance_of(teacher: TeacherCache, shape: CacheShape) -> Provenance:
    """The origin of the copy's answers: what `cache_teachers` with the same `keep` would say."""
    origin = teacher.provenance
    if (shape.keep, shape.rest_temperatures) == (teacher.shape.keep, teacher.shape.rest_temperatures):
        return origin
    answers = {"keep": shape.keep, "rest_temperatures": list(shape.rest_temperatures)}
    return replace(origin, identity={**origin.identity, "answers": answers}, notes={**origin.notes, "packed": ROUNDED})


def _require_room(request: PackRequest, copies: Sequence[_Copy]) -> None:
    """Refuse a folder with other teachers, and a disk that is too small.

    Raises:
        CacheMismatchError, CacheSpaceError: naming what is in the way.
    """
    names = [copy.source.name for copy in copies]
    if others := [name for name in files_by_teacher(request.out) if name not in names]:
        raise CacheMismatchError(
            f"{request.out} has teacher {others[0]} already, which is not to be packed: choose another folder (`out`)"
        )
    plans = [
        plan_teacher(request.out, one.source.name, shape=one.shape, provenance=one.provenance, shards=one.shards)
        for one in copies
    ]
    require_space(request.out, plans)


def _write(folder: Path, copy: _Copy, shard: Shard, task: Task) -> None:
    """Make one file of the copy."""
    writer = CacheWriter(
        folder,
        copy.source.name,
        shape=copy.shape,
        provenance=copy.provenance,
        labels=copy.source.labels,
        shard=shard,
    )
    with writer:
        if writer.shape != copy.shape.part(shard):
            raise CacheMismatchError(
                f"{folder} has more of teacher {copy.source.name} than is to be packed: choose another folder (`out`)"
            )
        pending = writer.pending()
        per_row = copy.shape.row_bytes()
        task.advance(writer.shape.payload_bytes() - sum(per_row * len(writer.shape.samples_of(b)) for _, b in pending))
        synced = time.monotonic()
        for slot, block in pending:
            names = writer.blocks.missing(slot, block)
            writer.blocks.write(slot, block, copy.answers(names, slot, writer.shape.first_block + block))
            task.advance(per_row * len(writer.shape.samples_of(block)))
            if time.monotonic() - synced > _SECONDS_BETWEEN_SYNCS:
                writer.blocks.sync()
                synced = time.monotonic()
        writer.finish()


def _write_sums(folder: Path, progress: Progress) -> None:
    """The digests, last: a folder that has them is complete."""
    total = sum(file.stat().st_size for file in folder.glob("*.h5"))
    with progress.task("computing digests", total=total, unit="bytes") as task:
        sums = sums_of(folder, advance=task.advance)
    if unread := [name for name, digest in sums.items() if not digest]:
        raise CacheDamagedError(f"{folder / unread[0]} cannot be read: remove it, and pack again")
    for name, content in ((".gitignore", _IGNORED), (SUMS_NAME, sums_text(sums))):
        creating = folder / f"{name}.creating"
        with disk_errors_in_words(creating, remove=True):
            creating.write_text(content, encoding="utf-8")
            creating.replace(folder / name)


def _report(folder: Path, copy: _Copy) -> PackedTeacher:
    copied = TeacherCache.open(folder, copy.source.name)
    return PackedTeacher(
        name=copied.name,
        views=copied.shape.num_views,
        keep=copied.shape.keep,
        features=tuple(copied.shape.features),
        file_bytes=copied.file_bytes,
        shards=len(copied.files),
    )
