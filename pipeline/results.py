"""What the stages return, print with `--json`, write to metrics.jsonl and give to callbacks. Accuracies are in 0..1."""

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from demkd.errors import read_regular

if TYPE_CHECKING:
    from demkd.cache.verify import FileVerdict


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherStatistics:
    """How K teachers were weighted in an epoch, by teacher; docs/runs.md explains the fields."""

    names: tuple[str, ...]
    top1: tuple[float, ...]
    mean_entropy: tuple[float, ...]
    mean_weight: tuple[float, ...]
    wrong_above_uniform: tuple[float, ...]
    effective_teachers: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """One line of metrics.jsonl; docs/runs.md explains the fields."""

    epoch: int
    epochs: int
    learning_rate: float
    losses: Mapping[str, float]
    train_top1: float
    test_top1: float | None = None
    test_top5: float | None = None
    seconds: float
    data_seconds: float
    test_seconds: float = 0.0
    validation_top1: float | None = None
    validation_top5: float | None = None
    view_index: int | None = None
    teachers: TeacherStatistics | None = None

    @property
    def accuracy(self) -> str:
        """The top-1 of the validation or test images, with its name."""
        name, value = ("validation", self.validation_top1) if self.test_top1 is None else ("test", self.test_top1)
        return f"{name} top-1 {value:.2%}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What `train` and `distill` return; test top-1 and top-5 are those after the last epoch."""

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
    best_split: str  # the images of `best_top1` and `best_epoch`: "validation", or "test" in a run without
    seconds: float
    resumed_after: int
    method_changes: Mapping[str, Any] = field(default_factory=dict)  # options in which the method is not its preset


class Callback(Protocol):
    """Called during `train` and `distill`: any object with these three methods. Steps are epochs.

    Under torchrun only rank 0 calls them. An exception of a callback ends the run, and the same call resumes it.
    docs/library.md has a callback for Weights & Biases.
    """

    def on_start(self, recipe: Mapping[str, Any]) -> None:
        """Called when a run starts or resumes, with every option by name."""

    def on_epoch(self, report: EpochReport) -> None:
        """Called after an epoch, when it is in the run's files; not again for epochs before a resume."""

    def on_end(self, report: RunReport) -> None:
        """Called when the run is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """What `evaluate` returns."""

    folder: Path
    network: str
    split: str
    samples: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCachingReport:
    """What stage one did for one teacher; None where other processes still compute, or rank 0 reports it."""

    name: str
    network: str
    parameters: int
    views: int
    computed: int  # views of this process; the others existed
    seconds: float
    top1: float | None = None  # over all views
    mean_entropy: float | None = None  # over all views, in nats
    file_bytes: int | None = None  # of all its files
    shards: int = 1  # number of files
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingReport:
    """What `cache_teachers` returns."""

    folder: Path
    samples: int
    views: int  # V, of each sample
    num_distinct_views: int | None  # of the augmentation; None where it is unlimited
    precision: str
    teachers: tuple[TeacherCachingReport, ...]
    weighted: tuple[str, ...]
    seconds: float  # without the weights
    held: tuple[str, ...] = ()  # sentences about what other processes still write

    def __fspath__(self) -> str:
        """The cache's folder: the report can be passed as the cache."""
        return str(self.folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherPlan:
    """What stage one would do for one teacher."""

    name: str
    network: str
    parameters: int
    views: int
    file_bytes: int  # of the finished file, at most
    feature_bytes: int  # of the features in it
    new_bytes: int  # free disk space that it needs
    pending: int  # (sample, view) pairs to compute
    seconds: float  # to compute them, by a short probe, without writing


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingPlan:
    """What a dry run of `cache_teachers` returns."""

    folder: Path
    samples: int
    views: int
    num_distinct_views: int | None
    precision: str
    teachers: tuple[TeacherPlan, ...]
    free_bytes: int
    decode_seconds: float  # of decoding, by all workers; a part of `seconds`
    seconds: float
    break_even_epochs: float  # of one online student, with as many teacher passes as this run of stage one
    student_epochs: int  # of the online runs that `break_even_runs` counts
    break_even_runs: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputeReport:
    """How a teacher's logits of today differ from its cached ones, on some (sample, view) pairs."""

    teacher: str
    pairs: int
    precision: str
    largest_difference: float  # of a logit, at `sample` and `view_index`
    sample: int
    view_index: int
    tolerance: float  # the largest effect of rounding
    agrees: bool  # whether the difference is within the tolerance
    top1_agreement: float  # fraction of pairs with the same prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationReport:
    """What `verify` returns; `sound` if nothing is damaged or unfinished, and no teacher gives other logits today."""

    folder: Path
    sound: bool
    files: "tuple[FileVerdict, ...]"
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
    """What the demo returns: the runs of the teachers, and one run of the student per method."""

    folder: Path
    caching: CachingReport
    teachers: tuple[RunReport, ...]
    students: tuple[RunReport, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What `export` returns."""

    folder: Path
    file: Path
    format: str
    network: str
    classes: int
    input_shape: tuple[int, ...]  # (C, H, W); the batch size is free
    images: int  # number of test images on which the file was compared
    largest_difference: float  # of any logit, between the run's student and the file loaded in a fresh process
    file_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetReport:
    """What `export` returns of a cache: the number of files and rows in a folder."""

    folder: Path
    files: int
    rows: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTeacher:
    """A teacher of a copy; `top_k` is None for all logits, `features` are layers."""

    name: str
    views: int
    top_k: int | None
    features: tuple[str, ...]
    file_bytes: int
    shards: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """What `pack` returns."""

    folder: Path
    source_bytes: int  # of the same teachers in the original
    file_bytes: int  # of the copy, with its weights
    teachers: tuple[PackedTeacher, ...]

    def __fspath__(self) -> str:
        """The copy's folder: the report can be passed as the cache."""
        return str(self.folder)


_SEAL = b', "sha256": "%s"}'  # of the recipe, all earlier lines, and the line itself


def sealed_line(line: Mapping[str, Any], run: Path) -> bytes:
    """The next line of a run's metrics.jsonl, with a digest."""
    metrics, text = run / "metrics.jsonl", json.dumps(line).encode()[:-1]
    before = read_regular(metrics) if metrics.exists() else b""
    return text + _SEAL % hashlib.sha256(_recipe(run) + before + text).hexdigest().encode() + b"\n"


def read_lines(run: Path, limit: int | None = None) -> list[Any]:
    """The lines of a run's metrics.jsonl, or its first ones; a line that a kill cut short is left out.

    Each is checked with its digest; earlier versions wrote none.
    """
    lines, sealed, digest = [], False, hashlib.sha256(_recipe(run))
    for number, line in enumerate(read_regular(run / "metrics.jsonl").split(b"\n")[:-1][:limit], start=1):
        text, mark, seal = line.rpartition(_SEAL[:12])
        digest.update(text)
        sealed = sealed or bool(mark)
        if sealed and mark + seal != _SEAL % digest.hexdigest().encode():
            raise ValueError(f"line {number}, or recipe.toml, was changed after it was written")
        digest.update(mark + seal + b"\n")
        lines.append(json.loads(line))
    return lines


def _recipe(run: Path) -> bytes:
    """The options of a run; comments may change."""
    file = run / "recipe.toml"
    options = tomllib.loads(read_regular(file).decode()) if file.exists() else {}
    return json.dumps(options, sort_keys=True, default=str).encode()


def best_split(line: Mapping[str, Any]) -> str:
    """The images that a run chooses its best epoch on, from a line of metrics.jsonl: "validation" or "test"."""
    return "validation" if "validation_top1" in line and line["validation_top1"] is not None else "test"


def is_near_chance(top1: float, classes: int) -> bool:
    """Whether a teacher's top-1 is below twice that of chance, or with few classes a fifth of the way from it to 1."""
    chance = 1 / classes
    return top1 < min(2 * chance, chance + 0.2 * (1 - chance))
