"""Summary of a cache: provenance, and each teacher's entropy, accuracy and weight.

K teachers, V slots, N samples, C classes.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache, CacheError, TeacherFile
from demkd.cache.shards import WEIGHTS_NAME, WHOLE, cache_file, split_name
from demkd.report.statistics import CacheStatistics

HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSummary:
    """One teacher over all slots, and what its answers were made from; entropies in nats, shares in 0..1.

    Attributes:
        fingerprint: SHA-256 of its weights.
        mean, std: its normalisation by channel, for pixels in [0, 1].
        input_size: to how many pixels views were resized for it; None if they were not.
        features: layer -> shape of one sample's features.
        shards: in how many files its answers are.
        views: the slots that they have; the numbers are of those that all teachers have.
        versions: of the software that ran it.
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
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None
    precision: str
    features: Mapping[str, tuple[int, ...]]
    file_bytes: int
    shards: int
    views: int
    device: str | None
    versions: Mapping[str, str]
    top1: float
    mean_entropy: float
    quartiles: tuple[float, float, float]
    histogram: tuple[int, ...]
    mean_weight: float | None
    wrong_and_trusted: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How alike the teachers are, K x K.

    Attributes:
        same_top1: the share of all views in which two of them predict the same class.
        rank_correlation: Spearman's, of the samples' entropies averaged over the slots: do both find the same
            pictures hard? None where a teacher's entropies are all equal.
    """

    names: tuple[str, ...]
    same_top1: tuple[tuple[float, ...], ...]
    rank_correlation: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnfinishedFile:
    """A file that is still being filled, whole or a shard; `progress` in 0..1, None if it cannot be read."""

    name: str
    progress: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSummary:
    """A whole cache.

    Attributes:
        picture_size: height and width in pixels.
        views, num_distinct_views: V, and of how many different views; None where the provenance does not tell.
        policy: the name and parameters of the views, as text.
        file_bytes: of these teachers' files, and of weights.h5 where it is theirs.
        weighting: how the weights were computed; None where there are none of these teachers.
        weights_state: "matches", "absent", or "does not match" if weights.h5 is of other teachers or fewer slots.
        unfinished: files beside the whole ones that `cache-teachers` has not finished.
    """

    folder: Path
    data: str
    split: str | None
    samples: int
    classes: int
    picture_size: tuple[int, ...]
    pixels_sha256: str | None
    labels_sha256: str
    views: int
    num_distinct_views: int | None
    policy: str
    view_seed: int
    precision: str
    file_bytes: int
    weighting: str | None
    weights_state: str
    unfinished: tuple[UnfinishedFile, ...]
    teachers: tuple[TeacherSummary, ...]
    agreement: Agreement


def summarise(statistics: CacheStatistics) -> CacheSummary:
    """Describe a cache."""
    cache = statistics.cache
    first = cache.teachers[0].provenance
    data, views = first.identity["data"], first.identity["views"]
    teachers = tuple(_summarise_teacher(statistics, position) for position in range(len(cache.teachers)))
    return CacheSummary(
        folder=cache.folder,
        data=str(first.notes.get("data", "")),
        split=_kept(data.get("split"), str),
        samples=cache.samples,
        classes=cache.classes,
        picture_size=tuple(int(side) for side in _numbers(data.get("picture_size"))),
        pixels_sha256=_kept(data.get("pixels_sha256", data.get("files_sha256")), str),
        labels_sha256=data["labels_sha256"],
        views=cache.num_views,
        num_distinct_views=_kept(first.notes.get("num_distinct_views"), int),
        policy=_in_words(views),
        view_seed=views["seed"],
        precision=", ".join(dict.fromkeys(teacher.precision for teacher in teachers)),
        file_bytes=sum(teacher.file_bytes for teacher in teachers) + _weights_bytes(cache),
        weighting=cache.teacher_weights.weighting if cache.teacher_weights else None,
        weights_state=_weights_state(cache),
        unfinished=_unfinished(cache.folder),
        teachers=teachers,
        agreement=agreement(statistics),
    )


def agreement(statistics: CacheStatistics) -> Agreement:
    """Compare every teacher with every other."""
    ranks = [_ranks(entropies) for entropies in statistics.mean_entropy]
    return Agreement(
        names=statistics.cache.names,
        same_top1=tuple(tuple(map(float, row)) for row in statistics.same_top1),
        rank_correlation=tuple(tuple(_correlation(mine, theirs) for theirs in ranks) for mine in ranks),
    )


def _summarise_teacher(statistics: CacheStatistics, position: int) -> TeacherSummary:
    teacher = statistics.cache.teachers[position]
    identity, notes = teacher.provenance.identity["teacher"], teacher.provenance.notes
    ordered = np.sort(np.concatenate(statistics.entropy[position]))  # (V x N,); sorted, one look answers the rest
    versions = notes.get("versions")
    return TeacherSummary(
        name=teacher.name,
        network=identity["network"],
        parameters=notes.get("parameters"),
        fingerprint=identity["state_sha256"],
        mean=_numbers(identity.get("mean")),
        std=_numbers(identity.get("std")),
        input_size=_kept(identity.get("input_size"), int),
        precision=teacher.provenance.identity["precision"],
        features=teacher.shape.features,
        file_bytes=teacher.file_bytes,
        shards=len(teacher.files),
        views=teacher.shape.num_views,
        device=_kept(notes.get("device"), str),
        versions={str(key): str(value) for key, value in versions.items()} if isinstance(versions, Mapping) else {},
        top1=float(statistics.top1[position].mean()),
        mean_entropy=float(statistics.mean_entropy[position].mean()),
        quartiles=(_quantile(ordered, 0.25), _quantile(ordered, 0.5), _quantile(ordered, 0.75)),
        histogram=_histogram(ordered, float(np.log(statistics.cache.classes))),
        mean_weight=None if statistics.mean_weight is None else float(statistics.mean_weight[position].mean()),
        wrong_and_trusted=(
            None if statistics.wrong_and_trusted is None else float(statistics.wrong_and_trusted[position].mean())
        ),
    )


def _quantile(ordered: NDArray[np.float32], share: float) -> float:
    """The quantile of sorted values, interpolated linearly."""
    below, rest = divmod(share * (len(ordered) - 1), 1)
    low, high = float(ordered[int(below)]), float(ordered[min(int(below) + 1, len(ordered) - 1)])
    return low + rest * (high - low)


def _histogram(ordered: NDArray[np.float32], highest: float) -> tuple[int, ...]:
    """Counts of sorted values in equal bins from 0 to `highest`; what rounding put beyond an end counts there."""
    edges = np.linspace(0.0, highest, HISTOGRAM_BINS + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    places = [bisect_left(ordered, edge) for edge in edges]
    return tuple(after - before for before, after in pairwise(places))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks (N,); equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], np.float64)


def _correlation(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> float | None:
    """Pearson's; of ranks, Spearman's."""
    one, other = mine - mine.mean(), theirs - theirs.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 0 else None


def _weights_state(cache: Cache) -> str:
    if cache.teacher_weights is not None:
        return "matches"
    return "does not match" if cache_file(cache.folder, WEIGHTS_NAME).exists() else "absent"


def _weights_bytes(cache: Cache) -> int:
    return 0 if cache.teacher_weights is None else cache_file(cache.folder, WEIGHTS_NAME).stat().st_size


def _unfinished(folder: Path) -> tuple[UnfinishedFile, ...]:
    files = sorted(file for file in folder.iterdir() if file.name.endswith(".h5.partial"))
    return tuple(UnfinishedFile(name=_called(file), progress=_progress(file)) for file in files)


def _called(file: Path) -> str:
    """The teacher, and which shard of it."""
    name, shard = split_name(file.name)
    return name if shard == WHOLE else f"{name} ({shard})"


def _progress(file: Path) -> float | None:
    try:
        return TeacherFile(file).progress()
    except (CacheError, OSError):  # damaged, or renamed by the writer since we looked
        return None


def _kept(value: Any, kind: type[Any]) -> Any:
    """A value of the unsealed provenance, if it is of the expected type."""
    return value if type(value) is kind else None


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) and all(type(item) in (int, float) for item in value) else ()


def _in_words(views: Mapping[str, Any]) -> str:
    """A policy and its parameters; that of the views below it in brackets."""
    parameters = [
        f"{name} ({_in_words(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in views.items()
        if name not in ("policy", "seed")
    ]
    return ", ".join([str(views.get("policy")), *parameters])
