"""A small cache whose every answer follows from its teacher, slot and sample, and whose numbers are exact.

K = 3 teachers, V = 4 slots, N = 14 samples in blocks of 5, C = 4 classes, the last of which has no samples.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from demkd.cache import CacheShape, CacheWriter, Provenance, open_cache, write_weights

TEACHERS = ("ada", "bob", "cleo")
VIEWS, CLASSES = 4, 4
LABELS = np.arange(14) % 3
DATA = {
    "split": "train",
    "samples": len(LABELS),
    "image_size": [6, 8],
    "class_names": ["ant", "bee", "cat", "dog"],
    "pixels_sha256": "cd" * 32,
}
VIEW_POLICY = {"policy": "crop-flip", "padding": 1, "flip": True, "seed": 7}
VERSIONS = {"numpy": "2.0", "python": "3.11", "torch": "2.6"}


def answers(teacher: int, labels: NDArray[np.int64], classes: int = CLASSES) -> dict[str, NDArray[Any]]:
    """What a teacher says: data set -> (V, N, ...). Entropies are 64ths below ln 4; logits are small integers."""
    slot, index = np.mgrid[0:VIEWS, 0 : len(labels)]
    wrong = ((10 + slot) * index + 5 * slot * slot + 3 * teacher) % 7 < 2 + teacher // 2
    prediction = (labels + wrong * (1 + (index + slot * teacher) % (classes - 1))) % classes
    logits = (np.arange(classes) + index[..., None]) % 3 - 2.0
    np.put_along_axis(logits, prediction[..., None], 2.0, axis=2)
    return {
        "logits": logits.astype(np.float32),
        "entropy": ((13 * index + 7 * slot + 29 * teacher) % 80 / 64).astype(np.float32),
        "prediction": prediction,
        "params": ((5 * index + 7 * slot) % 18)[..., None],
        "features/last": np.zeros((VIEWS, len(labels), 2), np.float32),
    }


def weights(samples: int) -> NDArray[np.float32]:
    """(K, V, N): one teacher has a half, the others a quarter."""
    teacher, slot, index = np.mgrid[0:3, 0:VIEWS, 0:samples]
    return np.where((index + slot * slot) % 3 == teacher, 0.5, 0.25).astype(np.float32)


def write_teacher(
    folder: Path,
    number: int,
    *,
    blocks: int | None = None,
    name: str | None = None,
    data: Mapping[str, Any] = DATA,
    policy: Mapping[str, Any] = VIEW_POLICY,
    labels: NDArray[np.int64] = LABELS,
) -> None:
    """Write one teacher's file, or only its first blocks."""
    classes = len(data["class_names"])
    shape = CacheShape(num_views=VIEWS, samples=len(labels), classes=classes, features={"last": (2,)}, block_rows=5)
    origin = Provenance(
        identity={
            "teacher": {
                "network": f"resnet{8 * (number + 1)}",
                "state_sha256": f"{number + 1}{number}" * 32,
                "mean": [0.5, 0.5, 0.25],
                "std": [0.25, 0.25, 0.25],
            },
            "data": {**data, "labels_sha256": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()},
            "views": policy,
            "precision": "float32",
        },
        notes={
            "data": "insects",
            "parameters": 1000 * (number + 1),
            "device": "a processor",
            "versions": VERSIONS,
            "num_distinct_views": 18,
        },
    )
    said = answers(number, labels, classes)
    with CacheWriter(folder, name or TEACHERS[number], shape=shape, provenance=origin, labels=labels) as writer:
        for slot, block in writer.pending()[:blocks]:
            rows = writer.shape.rows(block)
            writer.write(slot, block, {key: values[slot, rows] for key, values in said.items()})
        if blocks is None:
            writer.finish()


def write_inspected(folder: Path, *, weighted: bool = True, **changes: Any) -> Path:
    """Write all three teachers, and their weights."""
    for number in range(len(TEACHERS)):
        write_teacher(folder, number, **changes)
    if weighted:
        cache = open_cache(folder)
        write_weights(folder, cache.teachers, weights(cache.samples), weighting="a half in turn")
    return folder


class Plain:
    """The same files, read by h5py alone: the other half of every comparison.

    Attributes:
        entropy, prediction, weights: (K, V, N).
        logits: (K, V, N, C).
        labels: (N,).
    """

    def __init__(self, folder: Path) -> None:
        names = sorted(file.name.partition(".")[0] for file in folder.glob("*.*.h5"))
        files = [h5py.File(folder / f"{name}.00001-of-00001.h5", locking=False) for name in names]
        self.names = names
        self.entropy, self.prediction, self.logits, self.views = (
            np.stack([file[key][:] for file in files]) for key in ("entropy", "prediction", "logits", "params")
        )
        self.labels = files[0]["label"][:]
        with h5py.File(folder / "weights.h5", locking=False) as file:
            self.weights = file["weights"][:]
        for file in files:
            file.close()
        self.right = self.prediction == self.labels
        self.wrong_above_uniform = ~self.right & (self.weights > 1 / len(names) + 1e-6)
