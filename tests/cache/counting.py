"""A cache whose every value follows from its teacher, view and sample, so that no shuffle or off-by-one can hide."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import CacheShape, CacheWriter, Provenance, Shard
from demkd.cache.format import read_header
from demkd.cache.shards import all_shards

SAMPLES, CLASSES, BLOCK_ROWS = 50, 7, 16
LABELS = np.arange(SAMPLES, dtype=np.int64) % CLASSES
ALL = slice(0, SAMPLES)


def file_of(teacher: str = "a", *, number: int = 1, count: int = 1) -> str:
    """The name of a teacher's file."""
    return f"{teacher}.{number:05}-of-{count:05}.h5"


def shape(*, views: int = 3, encoding: str = "float16", **features: tuple[int, ...]) -> CacheShape:
    return CacheShape(
        num_views=views,
        samples=SAMPLES,
        classes=CLASSES,
        num_params=2,
        encoding=encoding,
        features=features,
        block_rows=BLOCK_ROWS,
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


def values(
    names: Iterable[str], view: int, rows: slice, *, teacher: int = 0, features: CacheShape | None = None
) -> dict[str, NDArray[Any]]:
    """What a teacher predicts for some samples in a view; every value is exact in its type."""
    index = np.arange(rows.start, rows.stop)
    made: dict[str, NDArray[Any]] = {
        # float16 counts to 2,048; within that, neighbours in every direction differ.
        "logits": ((index[:, None] * CLASSES + np.arange(CLASSES) + view * 350 + teacher * 131) % 2048).astype(
            np.float32
        ),
        "entropy": (index / 128 + view + teacher * 8).astype(np.float32),
        "prediction": (index + view + teacher) % CLASSES,
        "params": np.stack([index * 3 + view, index + 7], axis=1).astype(np.uint16),
    }
    for name in names:
        if name.startswith("features/"):
            width = features.features[name.removeprefix("features/")] if features else (4,)
            made[name] = np.broadcast_to((index + view * 64).reshape(-1, *[1] * len(width)), (len(index), *width))
    return {name: made[name] for name in names if name in made}


def fill(
    folder: Path,
    wanted: CacheShape,
    *,
    teacher: str = "a",
    number: int = 0,
    blocks: int | None = None,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    origin: Provenance | None = None,
    labels: NDArray[np.int64] = LABELS,
) -> int:
    """Write a counting teacher, or the first `blocks` pending blocks of it; how many were pending."""
    origin = origin or provenance()
    with CacheWriter(folder, teacher, shape=wanted, provenance=origin, labels=labels, shard=shard) as writer:
        pending = writer.pending()
        for view, block in pending[:blocks]:
            samples = writer.shape.samples_of(block)
            names = {"logits", *writer.missing(view, block)}
            rows = slice(samples.start, samples.stop)
            writer.write(view, block, values(names, view, rows, teacher=number, features=writer.shape))
        if not writer.finished:
            writer.sync()
        if blocks is None or blocks >= len(pending):
            writer.finish()
    return len(pending)


def fill_shards(folder: Path, wanted: CacheShape, *, count: int, **how: Any) -> None:
    """Write a counting teacher in shards."""
    for shard in all_shards(count):
        fill(folder, wanted, shard=shard, **how)


def place(path: Path, name: str, view: int = 0, row: int = 0) -> int:
    """Where a row's first byte is."""
    extent = read_header(path).contents[name]
    row_bytes = extent.view_bytes // extent.shape[1] if len(extent.shape) > 1 else 8
    return extent.offset + (view * extent.view_bytes if len(extent.shape) > 1 else 0) + row * row_bytes


def flip(path: Path, offset: int) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
