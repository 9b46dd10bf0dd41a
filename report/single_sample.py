"""One sample from close by: what every teacher says about it, in one slot and over all of them.

Reads the blocks that hold the sample, and no others. K teachers, V slots, N samples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache, CacheDamagedError, CacheIncompleteError, CacheMissingError, TeacherCache

Array = NDArray[Any]

LIKELIEST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherAnswer:
    """What a teacher says about one sample in one slot.

    Attributes:
        classes: names of the five likeliest classes, with `probabilities`.
        entropy: nats.
        weight: None where no weights were computed.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    entropy: float
    weight: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotTeacher:
    """What a teacher says about one sample in one slot, without its logits."""

    name: str
    prediction: str
    right: bool
    entropy: float
    weight: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotRow:
    """One slot of a sample; `view` is the record of the view that it shows."""

    slot: int
    view: str
    teachers: tuple[SlotTeacher, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleViews:
    """What all teachers say about one sample, slot by slot: V rows."""

    folder: Path
    index: int
    label: str
    teachers: tuple[str, ...]
    rows: tuple[SlotRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """What all teachers say about one sample: in one slot, and in all of them."""

    folder: Path
    index: int
    label: str
    slot: int
    view: str
    answers: tuple[TeacherAnswer, ...]
    views: SampleViews


def summarise_sample(cache: Cache, index: int, *, slot: int = 0) -> SampleSummary:
    """Describe one sample.

    Raises:
        CacheMissingError: if there is no such sample.
        CacheIncompleteError: if there is no such slot.
    """
    views = views_of_sample(cache, index)
    if not 0 <= slot < cache.num_views:
        raise CacheIncompleteError(f"slot {slot} is asked for, and {cache.folder} has slots 0 to {cache.num_views - 1}")
    answers = (
        _teacher_answer(teacher, _logits(teacher, slot, index), said, cache.class_names)
        for teacher, said in zip(cache.teachers, views.rows[slot].teachers, strict=True)
    )
    return SampleSummary(
        folder=cache.folder,
        index=index,
        label=views.label,
        slot=slot,
        view=views.rows[slot].view,
        answers=tuple(answers),
        views=views,
    )


def views_of_sample(cache: Cache, index: int) -> SampleViews:
    """How entropy, weight and prediction change between the views of a sample.

    Raises:
        CacheMissingError: if there is no such sample.
    """
    if not 0 <= index < cache.samples:
        raise CacheMissingError(f"there is no sample {index}: {cache.folder} has samples 0 to {cache.samples - 1}")
    return SampleViews(
        folder=cache.folder,
        index=index,
        label=cache.class_names[int(cache.labels[index])],
        teachers=cache.names,
        rows=tuple(_slot_row(cache, index, slot) for slot in range(cache.num_views)),
    )


def _slot_row(cache: Cache, index: int, slot: int) -> SlotRow:
    shown = {" ".join(map(str, teacher.answer("view", slot, index))) for teacher in cache.teachers}
    if len(shown) > 1:
        raise CacheDamagedError(f"teachers in {cache.folder} saw different views of sample {index} in slot {slot}")
    return SlotRow(
        slot=slot,
        view=shown.pop(),
        teachers=tuple(_slot_teacher(cache, position, index, slot) for position in range(len(cache.teachers))),
    )


def _slot_teacher(cache: Cache, position: int, index: int, slot: int) -> SlotTeacher:
    teacher = cache.teachers[position]
    prediction = int(teacher.answer("prediction", slot, index))
    if prediction >= cache.classes:
        raise CacheDamagedError(f"{teacher.path} predicts class {prediction}: remove it and make it again")
    return SlotTeacher(
        name=teacher.name,
        prediction=cache.class_names[prediction],
        right=prediction == int(cache.labels[index]),
        entropy=float(teacher.answer("entropy", slot, index)),
        weight=None if cache.teacher_weights is None else float(cache.teacher_weights.values[position, slot, index]),
    )


def _logits(teacher: TeacherCache, slot: int, index: int) -> Array:
    """(C,), for a softmax at temperature 1; the smaller ones are evenly spread if they were not kept."""
    teacher.require_softmax()
    for name in ("logits", *(("classes", "label_logit", "rest") if teacher.shape.keep else ())):
        teacher.answer(name, slot, index)  # checks the block
    logits: Array = teacher.logits(slot, np.array([index]), temperature=1.0)[0].astype(np.float64)
    return logits


def _teacher_answer(
    teacher: TeacherCache, logits: Array, said: SlotTeacher, class_names: tuple[str, ...]
) -> TeacherAnswer:
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
    return TeacherAnswer(
        name=teacher.name,
        classes=tuple(class_names[position] for position in best),
        probabilities=tuple(float(probabilities[position]) for position in best),
        entropy=said.entropy,
        weight=said.weight,
    )
