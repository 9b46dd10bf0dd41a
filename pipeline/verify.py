"""Verifying a cache: its bytes, and, where teachers are given, whether they would say the same again.

The bytes are checked without PyTorch. `recompute` and `repair` run teachers; they import what runs them when called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheMissingError
from demkd.cache.integrity import DAMAGED, Verification, bytes_to_verify, verify_cache
from demkd.cache.teacher_file import TeacherCache, cache_file
from demkd.cache.weights import WEIGHTS_NAME
from demkd.pipeline import defaults
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import RecomputeReport, RepairReport, VerificationReport

if TYPE_CHECKING:
    from demkd.dataset import Normalisation
    from demkd.pipeline.caching_job import CachingJob, CachingRequest, PreparedTeacher
    from demkd.pipeline.compute import Compute
    from demkd.pipeline.loading import TeacherSpec

Indices = NDArray[np.int64]

# As a share of the largest logit, at least of 1: float16 keeps three digits, another processor or batch size rounds
# otherwise, and bfloat16 has two digits to begin with.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}


@dataclass(frozen=True, kw_only=True, slots=True)
class Witnesses:
    """The teachers whose answers are in a cache, and what they shall look at.

    Attributes:
        device, precision: as on the command line; with precision "auto", that of the cache.
    """

    data: str
    teachers: tuple["TeacherSpec", ...]
    normalisations: Mapping[str, "Normalisation"]
    device: str
    precision: str


def verify(folder: Path, teachers: Sequence[str] | None, progress: Progress) -> VerificationReport:
    """Check every byte of a cache.

    Raises:
        CacheMissingError: if there is nothing to check.
    """
    found = _verify_bytes(folder, teachers, progress)
    return VerificationReport(folder=folder, sound=found.sound, files=found.files)


def repair(folder: Path, witnesses: Witnesses, progress: Progress) -> VerificationReport:
    """Redo the blocks that fail, by the same way on which they came: stage one goes on with a copy of what is sound.

    The damaged file stays until the new one is whole.

    Raises:
        CacheDamagedError: if a file is beyond repair, or its teacher is not given.
        UserError: as stage one.
    """
    from demkd.pipeline.caching import cache_teachers, precompute_weights

    before = _verify_bytes(folder, None, progress)
    # A file that is still being filled needs no repair: going on with it redoes what is torn.
    damaged = {file.name: file for file in before.files if file.verdict == DAMAGED and file.path.suffix != ".partial"}
    specs = [_witness(folder, name, witnesses) for name in damaged if name != WEIGHTS_NAME]
    for spec in specs:
        if not damaged[spec.name].blocks:
            raise CacheDamagedError(f"{damaged[spec.name].faults[0].text} (no single block can be redone)")
    answered = {WEIGHTS_NAME: 0}
    if specs:
        request, compute = _as_cached(folder, specs, witnesses)
        report = cache_teachers(request, compute, progress)
        answered |= {teacher.name: teacher.answered for teacher in report.teachers}
    elif damaged:
        precompute_weights(folder, progress)
    after = _verify_bytes(folder, None, progress)
    repaired = tuple(
        RepairReport(name=name, answered=answered[name], redone=tuple(fault.text for fault in file.faults))
        for name, file in damaged.items()
    )
    return VerificationReport(folder=folder, sound=after.sound, files=after.files, repaired=repaired)


def recompute(
    report: VerificationReport, witnesses: Witnesses, progress: Progress, *, pairs: int, seed: int
) -> VerificationReport:
    """Ask the given teachers again about random samples in random slots, and add what came of it to a report.

    Raises:
        CacheDamagedError: if the bytes of a file are not even sound.
        CacheMissingError: if a teacher is not in the cache.
        CacheMismatchError: if a teacher, the data or the views are not those of the cache.
    """
    sound = {file.name for file in report.files if file.verdict != DAMAGED}
    for spec in witnesses.teachers:
        if spec.name not in sound and cache_file(report.folder, spec.name).exists():
            raise CacheDamagedError(f"teacher {spec.name} in {report.folder} is damaged: repair it before comparing")
    comparisons = tuple(
        _recompute_teacher(report.folder, spec, witnesses, progress, pairs=pairs, seed=seed)
        for spec in witnesses.teachers
    )
    return VerificationReport(
        folder=report.folder,
        sound=report.sound and all(comparison.agrees for comparison in comparisons),
        files=report.files,
        repaired=report.repaired,
        recomputed=comparisons,
    )


def _verify_bytes(folder: Path, teachers: Sequence[str] | None, progress: Progress) -> Verification:
    with progress.task("verifying", total=bytes_to_verify(folder), unit="bytes") as task:
        return verify_cache(folder, teachers, advance=task.advance)


def _witness(folder: Path, name: str, witnesses: Witnesses) -> "TeacherSpec":
    for spec in witnesses.teachers:
        if spec.name == name:
            return spec
    raise CacheDamagedError(
        f"teacher {name} in {folder} is damaged, and no --teacher is called so: add --teacher {name}=NETWORK@CHECKPOINT"
    )


def _as_cached(
    folder: Path, specs: Sequence["TeacherSpec"], witnesses: Witnesses
) -> tuple["CachingRequest", "Compute"]:
    """The request that these teachers were cached with; asking for one view asks for no more than there is."""
    from demkd.pipeline.caching_job import CachingRequest
    from demkd.pipeline.compute import choose_compute

    provenance = TeacherCache(cache_file(folder, specs[0].name)).provenance
    precision = provenance.identity["precision"] if witnesses.precision == "auto" else witnesses.precision
    request = CachingRequest(
        data=witnesses.data,
        teachers=tuple(specs),
        folder=folder,
        views=1,
        view_seed=provenance.identity["views"]["seed"],
        layers=(),
        batch_size=max(1, provenance.notes.get("batch_size", defaults.BATCH_SIZE)),
        normalisations=witnesses.normalisations,
    )
    return request, choose_compute(device=witnesses.device, precision=precision)


def _recompute_teacher(
    folder: Path, spec: "TeacherSpec", witnesses: Witnesses, progress: Progress, *, pairs: int, seed: int
) -> RecomputeReport:
    from demkd.pipeline.caching_job import open_job, prepare

    if not cache_file(folder, spec.name).exists():
        raise CacheMissingError(f"there is no teacher {spec.name!r} in {folder}: name it as it is there")
    file = TeacherCache(cache_file(folder, spec.name))
    request, compute = _as_cached(folder, [spec], witnesses)
    job = open_job(request, compute, progress)
    prepared = prepare(job, spec)
    file.provenance.require(
        prepared.provenance,
        cached=str(file.path),
        cure="Give the --teacher and --data that it was cached with",
        tables=("teacher", "data", "views"),
    )
    generator = np.random.default_rng(seed)
    slots = np.sort(generator.integers(file.shape.views, size=pairs))
    samples = generator.integers(file.shape.samples, size=pairs)
    return _compare(job, prepared, file, samples, slots, progress)


def _compare(
    job: "CachingJob",
    prepared: "PreparedTeacher",
    file: TeacherCache,
    samples: Indices,
    slots: Indices,
    progress: Progress,
) -> RecomputeReport:
    """Answer pairs (P,) again, in the views that the schedule says, and compare with what is stored."""
    views = job.view_table(file.shape.views)[slots, samples]
    if not np.array_equal(views, _stored(file, "view", samples, slots)):
        raise CacheDamagedError(f"{file.path} has other views than its view seed says: remove it and make it again")
    cached = _stored(file, "logits", samples, slots).astype(np.float32)
    now = _answer_pairs(job, prepared, samples, views, progress)
    differences = np.abs(now - cached).max(axis=1)
    differences[np.isnan(differences)] = np.inf
    worst = int(differences.argmax())
    precision = max(job.compute.precision, str(file.provenance.identity["precision"]), key=TOLERANCE.__getitem__)
    tolerance = TOLERANCE[precision] * max(float(np.abs(cached).max()), 1.0)
    return RecomputeReport(
        teacher=file.name,
        pairs=len(samples),
        precision=job.compute.precision,
        largest_difference=float(differences[worst]),
        sample=int(samples[worst]),
        slot=int(slots[worst]),
        tolerance=tolerance,
        agrees=bool(differences[worst] <= tolerance),
        top1_agreement=float((now.argmax(axis=1) == cached.argmax(axis=1)).mean()),
    )


def _stored(file: TeacherCache, name: str, samples: Indices, slots: Indices) -> NDArray[Any]:
    """What a data set holds for pairs (P,), checked."""
    rows = [file.read(name, int(slot))[samples[slots == slot]] for slot in np.unique(slots)]
    return np.concatenate(rows)


def _answer_pairs(
    job: "CachingJob", prepared: "PreparedTeacher", samples: Indices, views: NDArray[np.uint16], progress: Progress
) -> NDArray[np.float32]:
    """Logits (P, C) of samples (P,) in views (P,)."""
    size = job.request.batch_size
    parts: list[NDArray[np.float32]] = []
    with progress.task(f"teacher {prepared.teacher.name}", total=len(samples), unit="views") as task:
        for start in range(0, len(samples), size):
            batch = slice(start, start + size)
            parts.append(prepared.teacher.answer(job.cut_any(samples[batch], views[batch])).logits.cpu().numpy())
            task.advance(len(parts[-1]))
    return np.concatenate(parts)
