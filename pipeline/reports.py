"""What the stages report: values for the console, for `--json` and for metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherStatistics:
    """How K teachers were weighted in an epoch; lists are by teacher.

    Attributes:
        mean_entropy: nats.
        wrong_and_trusted: share of samples where the teacher is wrong and weighs more than 1 / K.
        effective_teachers: exp of the weights' entropy, mean over samples, from 1 to K.
    """

    names: tuple[str, ...]
    top1: tuple[float, ...]
    mean_entropy: tuple[float, ...]
    mean_weight: tuple[float, ...]
    wrong_and_trusted: tuple[float, ...]
    effective_teachers: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """One line of metrics.jsonl.

    Attributes:
        losses: mean over the epoch's samples of every term, unweighted, and of their weighted sum, "loss".
        train_top1, test_top1: shares, in 0..1; the former over the epoch's views while the student was learning.
        seconds: training alone; `test_seconds` for the test split.
        data_seconds: of `seconds`, what starting the epoch took: reading slabs, weighing, fusing.
    """

    epoch: int
    epochs: int
    learning_rate: float
    losses: Mapping[str, float]
    train_top1: float
    test_top1: float
    test_top5: float
    seconds: float
    data_seconds: float
    test_seconds: float
    slot: int | None = None
    teachers: TeacherStatistics | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What `train` and `distill` return."""

    folder: Path
    network: str
    method: str
    seed: int
    epochs: int
    test_samples: int
    test_top1: float
    test_top5: float
    best_top1: float
    best_epoch: int
    seconds: float
    resumed_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """What `evaluate` returns; shares in 0..1."""

    folder: Path
    network: str
    samples: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCachingReport:
    """What stage one did for one teacher.

    Attributes:
        answered: views answered now; the others were there already.
        top1: share of right predictions over the first slot.
        seconds: of answering and writing.
    """

    name: str
    network: str
    parameters: int
    views: int
    answered: int
    top1: float
    mean_entropy: float
    file_bytes: int
    seconds: float
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingReport:
    """What `cache-teachers` returns."""

    folder: Path
    samples: int
    views: int
    orbit: int
    precision: str
    teachers: tuple[TeacherCachingReport, ...]
    weighted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What the demo came to.

    Attributes:
        teachers: test top-1 by name.
        students: one run a method.
        cached_passes: teacher forward passes over the training set that stage one took, all teachers together.
        live_passes: those that the distilled students would have taken with live teachers.
        caching_seconds: of stage one.
        cache_bytes: of all files.
    """

    folder: Path
    caching: CachingReport
    teachers: Mapping[str, float]
    students: tuple[RunReport, ...]
    test_samples: int
    cached_passes: int
    live_passes: int
    caching_seconds: float
    cache_bytes: int
    seconds: float
