"""A cache in numbers: how sure, how right and how trusted its teachers are.

Everything comes from the entropies, predictions and weights; logits are read for single samples only.
K teachers, V slots, N samples, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheMissingError
from demkd.cache.reader import Cache
from demkd.cache.teacher_file import TeacherCache

Array = NDArray[Any]

HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSummary:
    """One teacher over all slots; entropies in nats, shares in 0..1.

    Attributes:
        top1: share of right predictions over all V x N views.
        quartiles: of the entropy: 25 %, 50 %, 75 %.
        histogram: counts in `HISTOGRAM_BINS` equal bins from 0 to ln C.
        mean_weight: over all views; None where no weights were computed.
        wrong_and_trusted: share of views where the teacher is wrong and weighs more than 1 / K; likewise.
    """

    name: str
    network: str
    parameters: int | None
    fingerprint: str
    file_bytes: int
    features: Mapping[str, tuple[int, ...]]
    top1: float
    mean_entropy: float
    quartiles: tuple[float, float, float]
    histogram: tuple[int, ...]
    mean_weight: float | None
    wrong_and_trusted: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSummary:
    """A whole cache."""

    folder: Path
    data: str
    samples: int
    classes: int
    views: int
    precision: str
    weighting: str | None
    teachers: tuple[TeacherSummary, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOpinion:
    """What a teacher says about one sample in one slot.

    Attributes:
        classes: names of the five likeliest classes, with `probabilities`.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    entropy: float
    weight: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """What all teachers say about one sample in one slot."""

    folder: Path
    index: int
    label: str
    slot: int
    view: int
    opinions: tuple[TeacherOpinion, ...]


def summarise(cache: Cache) -> CacheSummary:
    """Describe a cache; checks every entropy, prediction and weight that it reads."""
    first = cache.teachers[0].provenance
    return CacheSummary(
        folder=cache.folder,
        data=str(first.noted.get("data", "")),
        samples=cache.samples,
        classes=cache.classes,
        views=cache.views,
        precision=str(first.bound["precision"]),
        weighting=cache.weights.weighting if cache.weights else None,
        teachers=tuple(_summarise_teacher(cache, position) for position in range(len(cache.teachers))),
    )


def summarise_sample(cache: Cache, index: int, *, slot: int = 0) -> SampleSummary:
    """Describe one sample.

    Raises:
        CacheMissingError: if there is no such sample.
    """
    if not 0 <= index < cache.samples:
        raise CacheMissingError(f"there is no sample {index}: {cache.folder} has samples 0 to {cache.samples - 1}")
    slab = cache.slab(slot)
    weights = [None] * len(cache.teachers) if slab.weights is None else [float(w) for w in slab.weights[:, index]]
    opinions = [
        _opinion(teacher, np.asarray(logits[index], np.float64), float(entropy), weight, cache.class_names)
        for teacher, logits, entropy, weight in zip(
            cache.teachers, slab.logits, slab.entropy[:, index], weights, strict=True
        )
    ]
    return SampleSummary(
        folder=cache.folder,
        index=index,
        label=cache.class_names[int(cache.labels[index])],
        slot=slot,
        view=int(slab.view[index]),
        opinions=tuple(opinions),
    )


def _summarise_teacher(cache: Cache, position: int) -> TeacherSummary:
    teacher = cache.teachers[position]
    entropy = np.stack([teacher.slab("entropy", slot) for slot in range(cache.views)])
    prediction = np.stack([teacher.slab("prediction", slot) for slot in range(cache.views)])
    right = prediction == cache.labels
    weight = cache.weights.values[position] if cache.weights else None
    trusted = None if weight is None else _share(~right & (weight > 1 / len(cache.teachers) + 1e-6))
    low, middle, high = (float(q) for q in np.quantile(entropy, (0.25, 0.5, 0.75)))
    counts, _ = np.histogram(entropy, bins=HISTOGRAM_BINS, range=(0.0, float(np.log(cache.classes))))
    parameters = teacher.provenance.noted.get("parameters")
    return TeacherSummary(
        name=teacher.name,
        network=str(teacher.provenance.bound["teacher"]["network"]),
        parameters=None if parameters is None else int(parameters),
        fingerprint=str(teacher.provenance.bound["teacher"]["weights_sha256"]),
        file_bytes=teacher.path.stat().st_size,
        features=teacher.shape.features,
        top1=_share(right),
        mean_entropy=float(entropy.mean(dtype=np.float64)),
        quartiles=(low, middle, high),
        histogram=tuple(int(count) for count in counts),
        mean_weight=None if weight is None else float(weight.mean(dtype=np.float64)),
        wrong_and_trusted=trusted,
    )


def _opinion(
    teacher: TeacherCache, logits: Array, entropy: float, weight: float | None, class_names: tuple[str, ...]
) -> TeacherOpinion:
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:5]
    return TeacherOpinion(
        name=teacher.name,
        classes=tuple(class_names[position] for position in best),
        probabilities=tuple(float(probabilities[position]) for position in best),
        entropy=entropy,
        weight=weight,
    )


def _share(flags: Array) -> float:
    return float(flags.mean(dtype=np.float64))
