"""What the stages report: values for the console, for `--json` and for metrics.jsonl."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from demkd.cache.integrity import FileVerdict


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
        data_seconds: of `seconds`, what starting the epoch took: reading by_slot, weighing, fusing.
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
        answered: views answered now, by this process; the others were there already.
        top1, mean_entropy: over all slots; the share of right predictions, and nats. None where other processes still
            answer, or rank 0 tells it.
        file_bytes: of all its files; likewise.
        seconds: of answering and writing.
        shards: in how many files the answers are.
    """

    name: str
    network: str
    parameters: int
    views: int
    answered: int
    seconds: float
    top1: float | None = None
    mean_entropy: float | None = None
    file_bytes: int | None = None
    shards: int = 1
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingReport:
    """What `cache_teachers` returns.

    Attributes:
        views: V, of a sample.
        num_distinct_views: that the policy has; None where there is no end to them.
        seconds: of everything but the weights.
        held: what is not whole yet, and who writes it, in words.
    """

    folder: Path
    samples: int
    views: int
    num_distinct_views: int | None
    precision: str
    teachers: tuple[TeacherCachingReport, ...]
    weighted: tuple[str, ...]
    seconds: float
    held: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        """The cache's folder: the report stands for the cache wherever one is wanted."""
        return str(self.folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherPlan:
    """What stage one would do for one teacher.

    Attributes:
        file_bytes: of the finished file, at most.
        new_bytes: that the disk must have free for it.
        pending: (sample, slot) pairs that lack an answer.
        seconds: for answering them, as a short probe says; writing is not in it.
    """

    name: str
    network: str
    parameters: int
    views: int
    file_bytes: int
    new_bytes: int
    pending: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingPlan:
    """What a dry run of `cache_teachers` returns.

    Attributes:
        break_even_epochs: epochs of one online student that cost as many teacher passes as this run of stage one.
        student_epochs: of the online run that `break_even_runs` counts.
        picture_seconds: of decoding, by all workers; `seconds` counts them, and what the teachers take.
    """

    folder: Path
    samples: int
    views: int
    num_distinct_views: int | None
    precision: str
    teachers: tuple[TeacherPlan, ...]
    free_bytes: int
    picture_seconds: float
    seconds: float
    break_even_epochs: float
    student_epochs: int
    break_even_runs: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputeReport:
    """How a teacher's answers of today compare with its cached ones, on some (sample, slot) pairs.

    Attributes:
        largest_difference: of a logit, at `sample` in `slot`.
        tolerance: what rounding may come to; `agrees` if the largest difference is within it.
        top1_agreement: share of pairs whose first answer is the same.
    """

    teacher: str
    pairs: int
    precision: str
    largest_difference: float
    sample: int
    slot: int
    tolerance: float
    agrees: bool
    top1_agreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """What `repair` redid of a file.

    Attributes:
        answered: (sample, slot) pairs that the teacher answered again.
        redone: the places, in words.
    """

    name: str
    answered: int
    redone: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationReport:
    """What `verify` returns; `sound` if nothing is damaged, unfinished or answered otherwise today."""

    folder: Path
    sound: bool
    files: tuple[FileVerdict, ...]
    repaired: tuple[RepairReport, ...] = ()
    recomputed: tuple[RecomputeReport, ...] = ()

    def translated(self, translate: Callable[[str], str]) -> "VerificationReport":
        """The same with its sentences in other words."""
        files = (
            replace(
                file,
                cure=translate(file.cure),
                faults=tuple(replace(fault, text=translate(fault.text)) for fault in file.faults),
            )
            for file in self.files
        )
        return replace(self, files=tuple(files))


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


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkReport:
    """A network: its parameters, and the shapes of its features by name."""

    name: str
    parameters: int
    features: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkListing:
    """What `networks` returns.

    Attributes:
        picture: channels, height and width of the pictures that the figures are for.
    """

    picture: tuple[int, int, int]
    classes: int
    networks: tuple[NetworkReport, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What `export` returns.

    Attributes:
        input_shape: channels, height and width; the batch is free.
        pictures: how many test pictures the file was compared on.
        largest_difference: of any logit, between the run's student and the file loaded in a fresh process.
    """

    folder: Path
    file: Path
    format: str
    network: str
    classes: int
    input_shape: tuple[int, ...]
    pictures: int
    largest_difference: float
    file_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedTeacher:
    """A teacher that is in one file now; `shards` is how many were put together, 0 if it was already."""

    name: str
    shards: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeReport:
    """What `merge` returns."""

    folder: Path
    teachers: tuple[MergedTeacher, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTeacher:
    """A teacher of a copy; `keep` is None where it has all logits, `features` are layers."""

    name: str
    views: int
    keep: int | None
    features: tuple[str, ...]
    file_bytes: int
    shards: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """What `pack` returns.

    Attributes:
        source_bytes: of the same teachers in the cache that was copied.
        file_bytes: of the copy, with its weights.
    """

    folder: Path
    source_bytes: int
    file_bytes: int
    teachers: tuple[PackedTeacher, ...]

    def __fspath__(self) -> str:
        """The copy's folder: the report stands for the cache wherever one is wanted."""
        return str(self.folder)
