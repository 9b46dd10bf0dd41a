"""A copy of a cache, or of a part of it: fewer teachers, views or logits, no features. No teacher runs.

    cache     block of a teacher      -> what is wanted of it, checked
    pipeline  logits (B, C)           -> the k largest, and the sum of the others
    cache     view, block of rows     -> bytes at their place in the copy's files, then their checksums
    cache     the whole files         -> weights.h5, SHA256SUMS

The copy is an ordinary cache, filled by the writer of stage one: the same call resumes it, and stage one can add views,
teachers and features. With `top_k` its identity is that of `cache_teachers` with `top_k`: the numbers are the same but
for rounding, which a note says.

B in a block, C classes, k kept logits, T temperatures.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.cache import CacheShape, CacheWriter, Provenance, TeacherCache, open_cache
from demkd.cache.disk import write_durably
from demkd.cache.errors import CacheDamagedError, CacheMismatchError, CacheValueError
from demkd.cache.format import decode_logits
from demkd.cache.shards import SUMS, all_shards, compute_sums, files_by_teacher, sums_text
from demkd.cache.writer import check_space, plan_teacher
from demkd.config import CacheConfig, check_counts, check_output, plain
from demkd.dataset import DataError
from demkd.pipeline.preparation import check_logits, logits_facts
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import PackedTeacher, PackReport
from demkd.pipeline.stage_one import kept_logits, precompute_weights

Array = NDArray[Any]

ROUNDED = (
    "the logits, or the tail of those that were not kept, were computed from rounded logits when this copy was packed"
)
_IGNORED = "*.lock\n*.partial\n*.creating\n"  # what git and the hub should leave behind
_SECONDS_BETWEEN_SYNCS = 10.0


def pack(
    folder: str | os.PathLike[str],
    out: Path,
    *,
    teachers: Sequence[str] | None,
    views: int | None,
    top_k: int | None,
    tail_temperatures: Sequence[float] | None,
    logits: str | None,
    features: Sequence[str] | None,
    progress: Progress,
) -> PackReport:
    """Write the copy: the teachers' files, then the weights, then the digests of them all; None is what there is."""
    check_output(out)
    check_counts(views=views, top_k=top_k)
    views, top_k, features = plain(views), plain(top_k), (features,) if isinstance(features, str) else features
    with open_cache(folder, teachers, weights=False, task=progress.task) as cache:
        if out.resolve() == cache.folder.resolve():
            raise CacheMismatchError(f"{out} is the cache itself: choose another folder (`out`)")
        views = cache.num_views if views is None else views
        if not 1 <= views <= cache.num_views:
            raise DataError(f"`views` is {views}, but {folder} has {cache.num_views}: choose 1 to {cache.num_views}")
        if others := [name for name in files_by_teacher(out) if name not in cache.names]:
            raise CacheMismatchError(
                f"{out} has teacher {others[0]} already, which is not to be packed: choose another folder (`out`)"
            )
        copies = [(one, *_plan(one, views, top_k, tail_temperatures, logits, features)) for one in cache.teachers]
        plans = [
            plan_teacher(out, one.name, shape=shape, provenance=provenance, shards=all_shards(len(one.files)))
            for one, shape, provenance in copies
        ]
        check_space(out, plans)
        total = sum(shape.payload_bytes() for _, shape, _ in copies)
        with progress.task("packing", total=total, unit="bytes") as task:
            for teacher, shape, provenance in copies:
                _write(out, teacher, shape, provenance, task)
        precompute_weights(out, progress)
    total = sum(file.stat().st_size for file in out.glob("*.h5"))
    with progress.task("computing digests", total=total, unit="bytes") as task:
        sums = compute_sums(out, advance=task.advance)
    if unread := [name for name, digest in sums.items() if not digest]:
        raise CacheDamagedError(f"{out / unread[0]} cannot be read: remove it, and pack again")
    texts = {".gitignore": _IGNORED, SUMS: sums_text(sums)}  # the digests last: with them, the copy is complete
    for name, text in texts.items():
        write_durably(out / name, [text.encode()])
    copied = [TeacherCache.open(out, teacher.name) for teacher, _, _ in copies]
    return PackReport(
        folder=out,
        source_bytes=sum(teacher.file_bytes for teacher, _, _ in copies),
        file_bytes=total,
        teachers=tuple(
            PackedTeacher(
                name=one.name,
                views=one.shape.num_views,
                top_k=one.shape.top_k,
                features=tuple(one.shape.features),
                file_bytes=one.file_bytes,
                shards=len(one.files),
            )
            for one in copied
        ),
    )


def _plan(
    teacher: TeacherCache,
    views: int,
    top_k: int | None,
    temperatures: Sequence[float] | None,
    encoding: str | None,
    layers: Sequence[str] | None,
) -> tuple[CacheShape, Provenance]:
    """What the copy of a teacher has, and its provenance: that of `cache_teachers` with the same `top_k`."""
    has, provenance = teacher.shape, teacher.provenance
    layers = tuple(has.features) if layers is None else layers
    if unknown := [layer for layer in layers if layer not in has.features]:
        have = ", ".join(has.features) or "none"
        raise CacheValueError(f"teacher {teacher.name} has no features {unknown[0]!r}; it has {have} (`features`)")
    most = has.top_k or has.classes - 1
    kept = has.top_k if top_k is None else top_k
    encoding = encoding or ("float16" if kept else has.encoding)
    usual = has.tail_temperatures if has.top_k else CacheConfig.tail_temperatures
    if temperatures and not kept:
        raise CacheValueError("`tail_temperatures` needs `top_k`: give it too, or leave `tail_temperatures` out")
    chosen = tuple(map(float, temperatures or usual))
    check_logits(kept, most, f"there are {most} to choose from", chosen, encoding)
    if encoding == "float16" and has.encoding == "uint8" and not kept:
        raise CacheValueError("`logits` is float16, and the cache has uint8: leave it out")
    if has.top_k and not set(chosen) <= set(usual):
        raise CacheValueError(
            f"`tail_temperatures` are {chosen}, and the cache has sums at {usual}: choose among these"
        )
    shape = replace(
        has,
        num_views=views,
        top_k=kept,
        encoding=encoding,
        tail_temperatures=chosen if kept else (),
        features={layer: has.features[layer] for layer in layers},
    )
    if not _has_same_logits(shape, has):
        identity = {name: table for name, table in provenance.identity.items() if name != "logits"}
        identity |= logits_facts(kept, chosen, encoding)
        provenance = replace(provenance, identity=identity, notes={**provenance.notes, "packed": ROUNDED})
    return shape, provenance


def _has_same_logits(one: CacheShape, other: CacheShape) -> bool:
    ways = [(shape.encoding, shape.top_k, shape.tail_temperatures) for shape in (one, other)]
    return ways[0] == ways[1]


def _write(folder: Path, teacher: TeacherCache, shape: CacheShape, provenance: Provenance, task: Task) -> None:
    """Make the files of a teacher in the copy."""
    name, labels, per_row = teacher.name, teacher.labels, shape.row_bytes()
    for shard in all_shards(len(teacher.files)):
        with CacheWriter(folder, name, shape=shape, provenance=provenance, labels=labels, shard=shard) as writer:
            part = writer.shape
            if part != shape.part(shard):
                raise CacheMismatchError(
                    f"{folder} has more of teacher {name} than is to be packed: choose another folder (`out`)"
                )
            pending = writer.pending()
            task.advance(part.payload_bytes() - per_row * sum(len(part.samples_of(block)) for _, block in pending))
            synced = time.monotonic()
            for view, block in pending:
                values = _block(teacher, shape, writer.missing(view, block), view, part.first_block + block)
                writer.write(view, block, values)
                task.advance(per_row * len(part.samples_of(block)))
                if time.monotonic() - synced > _SECONDS_BETWEEN_SYNCS:
                    writer.sync()
                    synced = time.monotonic()
            writer.finish()


def _block(
    teacher: TeacherCache, shape: CacheShape, names: Sequence[str], view: int, block: int
) -> Mapping[str, Array]:
    """The data sets of a block of the whole, as the copy has them; a damaged one raises CacheDamagedError."""
    has = teacher.shape
    kept = {name: teacher.block(name, view, block) for name in names if name not in shape.logit_sets()}
    if len(kept) == len(names):
        return kept
    stored = {name: teacher.block(name, view, block) for name in has.logit_sets()}
    if _has_same_logits(shape, has):
        return kept | stored
    samples = has.samples_of(block)
    labels = teacher.labels[samples.start : samples.stop]
    if has.top_k is None:
        logits = decode_logits(*stored.values()) if has.encoding == "uint8" else stored["logits"].astype(np.float32)
        fewer = kept_logits(torch.from_numpy(logits), torch.tensor(labels), shape)  # the writer encodes them
        return kept | {name: tensor.numpy() for name, tensor in fewer.items()}
    columns = [teacher.tail_column(temperature) for temperature in shape.tail_temperatures]
    logits, tail = stored["logits"].astype(np.float32), stored["tail"][:, columns]
    return kept | _fewer(logits, stored["classes"], stored["label_logit"], tail, labels, shape)


def _fewer(
    logits: Array, classes: Array, label_logit: Array, rest: Array, labels: Array, shape: CacheShape
) -> dict[str, Array]:
    """Fewer of kept logits (B, m), largest first, with sums of the others (B, T) that count those dropped too."""
    is_label = classes == labels[:, None]
    others = shape.classes - classes.shape[1] - (~is_label.any(1)).astype(np.int64)  # neither kept nor the label
    sums = np.where(others[:, None] > 0, rest, -np.inf)  # -inf is a sum of none
    dropped = np.where(is_label[:, shape.top_k :], -np.inf, logits[:, shape.top_k :])  # (B, m - k)
    softened = dropped[:, None] / np.asarray(shape.tail_temperatures, np.float32)[:, None]  # (B, T, m - k)
    total = np.logaddexp(sums, np.logaddexp.reduce(softened, axis=2, initial=-np.inf))
    return {
        "logits": logits[:, : shape.top_k],
        "classes": classes[:, : shape.top_k],
        "label_logit": label_logit,
        "tail": np.where(np.isfinite(total), total, 0.0).astype(np.float32),
    }
