"""A cache whose every value follows from its teacher, slot and sample, so that no shuffle or off-by-one can hide."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import CacheShape, CacheWriter, Provenance, Shard
from demkd.cache.shards import WHOLE, all_shards

SAMPLES, CLASSES, BLOCK_ROWS = 50, 7, 16
LABELS = np.arange(SAMPLES, dtype=np.int64) % CLASSES


def shape(*, views: int = 3, **features: tuple[int, ...]) -> CacheShape:
    return CacheShape(
        num_views=views, samples=SAMPLES, classes=CLASSES, record_length=2, features=features, block_rows=BLOCK_ROWS
    )


def provenance(**changes: Any) -> Provenance:
    identity: dict[str, Any] = {
        "teacher": {"network": "resnet8", "state_sha256": "ab" * 32, "mean": [0.5, 0.5, 0.5]},
        "data": {
            "samples": SAMPLES,
            "class_names": list("abcdefg"),
            "pixels_sha256": "cd" * 32,
            "labels_sha256": hashlib.sha256(LABELS.tobytes()).hexdigest(),
        },
        "views": {"policy": "crop-flip", "padding": 4, "flip": True, "seed": 0},
        "precision": "float32",
    }
    for name, value in changes.items():
        table, _, key = name.partition("__")
        identity[table] = {**identity[table], key: value} if key else value
    return Provenance(identity=identity, notes={"data": "counting"})


def answers(
    names: Iterable[str], slot: int, rows: slice, *, teacher: int = 0, features: CacheShape | None = None
) -> dict[str, NDArray[Any]]:
    """What a teacher says about some samples in a slot; every value is exact in its type."""
    index = np.arange(rows.start, rows.stop)
    made: dict[str, NDArray[Any]] = {
        # float16 counts to 2,048; within that, neighbours in every direction differ.
        "logits": ((index[:, None] * CLASSES + np.arange(CLASSES) + slot * 350 + teacher * 131) % 2048).astype(
            np.float32
        ),
        "entropy": (index / 128 + slot + teacher * 8).astype(np.float32),
        "prediction": (index + slot + teacher) % CLASSES,
        "view": np.stack([index * 3 + slot, index + 7], axis=1).astype(np.uint16),
    }
    for name in names:
        if name.startswith("features/"):
            width = features.features[name.removeprefix("features/")] if features else (4,)
            made[name] = np.broadcast_to((index + slot * 64).reshape(-1, *[1] * len(width)), (len(index), *width))
    return {name: made[name] for name in names}


def fill(
    folder: Path,
    wanted: CacheShape,
    *,
    teacher: str = "a",
    number: int = 0,
    blocks: int | None = None,
    shard: Shard = WHOLE,
    origin: Provenance | None = None,
    labels: NDArray[np.int64] = LABELS,
) -> int:
    """Write a counting teacher, or the first `blocks` pending blocks of it; how many were pending."""
    origin = origin or provenance()
    with CacheWriter(folder, teacher, shape=wanted, provenance=origin, labels=labels, shard=shard) as writer:
        pending = writer.pending()
        for slot, block in pending[:blocks]:
            samples = writer.shape.samples_of(block)
            rows = slice(samples.start, samples.stop)
            names = writer.blocks.missing(slot, block)
            writer.blocks.write(slot, block, answers(names, slot, rows, teacher=number, features=writer.shape))
        if not writer.whole:
            writer.blocks.sync()
        if blocks is None or blocks >= len(pending):
            writer.finish()
    return len(pending)


def fill_shards(folder: Path, wanted: CacheShape, *, count: int, **how: Any) -> None:
    """Write a counting teacher in shards."""
    for shard in all_shards(count):
        fill(folder, wanted, shard=shard, **how)


def flip(path: Path, offset: int) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
