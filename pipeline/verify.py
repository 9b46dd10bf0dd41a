"""Verifying a cache: its bytes, and, where teachers are given, whether they would say the same again.

The bytes are checked without PyTorch. `recompute` and `repair` run teachers; they import what runs them when called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError, CacheMissingError
from demkd.cache.integrity import DAMAGED, Verification, bytes_to_verify, verify_cache
from demkd.cache.shards import WEIGHTS_NAME, all_shards, cache_file, is_partial, shard_count
from demkd.cache.teacher import TeacherCache, is_whole
from demkd.cache.teacher_file import TeacherFile
from demkd.pipeline import defaults
from demkd.pipeline.comparing import compared, largest_changes
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import RecomputeReport, RepairReport, VerificationReport

if TYPE_CHECKING:
    from demkd.dataset import ImageSource, Normalisation
    from demkd.pipeline.compute import Compute
    from demkd.pipeline.loading import TeacherSpec
    from demkd.pipeline.preparation import CachingJob, CachingRequest

Indices = NDArray[np.int64]

# As a share of the largest logit, at least of 1: float16 keeps three digits, another processor or batch size rounds
# otherwise, and bfloat16 has two digits to begin with.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The teachers whose answers are in a cache, and what they shall look at again.

    Attributes:
        normalise, input_size: by teacher name; what the cache says if left out.
        device, precision: with precision "auto", that of the cache.
    """

    source: "ImageSource"
    teachers: tuple["TeacherSpec", ...]
    normalise: Mapping[str, "Normalisation"] = field(default_factory=dict)
    input_size: Mapping[str, int] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "auto"


def verify(folder: Path, teachers: Sequence[str] | None, progress: Progress) -> VerificationReport:
    """Check every byte of a cache.

    Raises:
        CacheMissingError: if there is nothing to check.
    """
    found = _verify_bytes(folder, teachers, progress)
    return VerificationReport(folder=folder, sound=found.sound, files=found.files)


def repair(folder: Path, asked: Asked, progress: Progress) -> VerificationReport:
    """Redo the blocks that fail, by the same way on which they came: stage one goes on with a copy of what is sound.

    The damaged file stays until the new one is whole.

    Raises:
        CacheDamagedError: if a file is beyond repair, or its teacher is not given.
        UserError: as stage one.
    """
    from demkd.pipeline.stage_one import cache_teachers, precompute_weights

    before = _verify_bytes(folder, None, progress)
    # A file that is still being filled needs no repair: going on with it redoes what is torn.
    damaged = [file for file in before.files if file.verdict == DAMAGED and not is_partial(file.path)]
    specs = [
        _spec(folder, name, asked) for name in dict.fromkeys(file.name for file in damaged) if name != WEIGHTS_NAME
    ]
    for file in damaged:
        if file.name != WEIGHTS_NAME and not file.blocks:
            raise CacheDamagedError(f"{file.faults[0].text} (no single block can be redone)")
    answered = {WEIGHTS_NAME: 0}
    for spec in specs:  # one at a time, because each has a precision of its own
        report = cache_teachers(*_as_cached(folder, spec, asked), progress)
        answered[spec.name] = report.teachers[0].answered
    if damaged and not specs:
        precompute_weights(folder, progress)
    after = _verify_bytes(folder, None, progress)
    repaired = tuple(
        RepairReport(
            name=name,
            answered=answered[name],
            redone=tuple(fault.text for file in damaged if file.name == name for fault in file.faults),
        )
        for name in dict.fromkeys(file.name for file in damaged)
    )
    return VerificationReport(folder=folder, sound=after.sound, files=after.files, repaired=repaired)


def recompute(
    report: VerificationReport, asked: Asked, progress: Progress, *, pairs: int, seed: int
) -> VerificationReport:
    """Ask the given teachers again about random samples in random slots, and add what came of it to a report.

    Raises:
        CacheDamagedError: if the bytes of a file are not even sound.
        CacheMissingError: if a teacher is not in the cache.
        CacheMismatchError: if a teacher, the data or the views are not those of the cache.
    """
    from demkd.dataset import resting_after

    damaged = {file.name for file in report.files if file.verdict == DAMAGED}
    for spec in asked.teachers:
        if spec.name in damaged and is_whole(report.folder, spec.name):
            raise CacheDamagedError(f"teacher {spec.name} in {report.folder} is damaged: repair it before comparing")
    with resting_after(asked.source):
        comparisons = tuple(
            _recompute_teacher(report.folder, spec, asked, progress, pairs=pairs, seed=seed) for spec in asked.teachers
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


def _spec(folder: Path, name: str, asked: Asked) -> "TeacherSpec":
    for spec in asked.teachers:
        if spec.name == name:
            return spec
    raise CacheDamagedError(
        f"teacher {name} in {folder} is damaged, and no teacher is called so: give it too "
        f"(`teachers={name}=NETWORK@CHECKPOINT`)"
    )


def _as_cached(folder: Path, spec: "TeacherSpec", asked: Asked) -> tuple["CachingRequest", "Compute"]:
    """The request that a teacher was cached with; asking for one view asks for no more than there is."""
    from demkd.dataset import Normalisation
    from demkd.pipeline.compute import choose_compute
    from demkd.pipeline.loading import chosen_for
    from demkd.pipeline.preparation import CachingRequest
    from demkd.pipeline.taught import cached_policy

    shards = all_shards(shard_count(folder, spec.name) or 1)
    paths = (cache_file(folder, spec.name, shard) for shard in shards)
    cached = TeacherFile(next(path for path in paths if path.exists()))  # another shard may be missing
    facts, notes = cached.provenance.identity, cached.provenance.notes
    own = Normalisation(mean=tuple(facts["teacher"]["mean"]), std=tuple(facts["teacher"]["std"]))
    size = chosen_for(asked.input_size, spec.name) or facts["teacher"].get("input_size")
    policy, view_seed = cached_policy(cached)
    request = CachingRequest(
        source=asked.source,
        teachers=(spec,),
        folder=folder,
        views=1,
        policy=policy,
        view_seed=view_seed,
        features=(),
        batch_size=max(1, notes.get("batch_size", defaults.BATCH_SIZE)),
        normalise={spec.name: chosen_for(asked.normalise, spec.name) or own},
        input_size={spec.name: size} if size else {},
        keep=cached.shape.keep,
        rest_temperatures=cached.shape.rest_temperatures or defaults.REST_TEMPERATURES,
    )
    precision = facts["precision"] if asked.precision == "auto" else asked.precision
    return request, choose_compute(device=asked.device, precision=precision)


def _recompute_teacher(
    folder: Path, spec: "TeacherSpec", asked: Asked, progress: Progress, *, pairs: int, seed: int
) -> RecomputeReport:
    from demkd.pipeline.preparation import prepare

    if not is_whole(folder, spec.name):
        raise CacheMissingError(f"there is no teacher {spec.name!r} in {folder}: name it as it is there")
    file = TeacherCache.open(folder, spec.name)
    job = prepare(*_as_cached(folder, spec, asked))
    file.provenance.require(
        job.teachers[0].provenance,
        cached=str(file.path),
        cure="Give the teacher and the data that it was cached with (`teachers`, `data`)",
        tables=("teacher", "data", "views"),
    )
    generator = np.random.default_rng(seed)
    slots = np.sort(generator.integers(file.shape.num_views, size=pairs))
    samples = generator.integers(file.shape.samples, size=pairs)
    return _compare(job, file, samples, slots, progress)


def _compare(
    job: "CachingJob", file: TeacherCache, samples: Indices, slots: Indices, progress: Progress
) -> RecomputeReport:
    """Answer pairs (P,) again, in the views that the policy draws, and compare with what is stored."""
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]] = []
    with progress.task(f"teacher {file.name}", total=len(samples), unit="views") as task:
        for slot in np.unique(slots):
            parts.append(_both_answers(job, file, samples[slots == slot], int(slot)))
            task.advance(len(parts[-1][0]))
    differences, cached, same_class = (np.concatenate(column) for column in zip(*parts, strict=True))
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
        top1_agreement=float(same_class.mean()),
    )


def _both_answers(
    job: "CachingJob", file: TeacherCache, samples: Indices, slot: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """How much the logits have changed (P,), as they are stored (P, k), and whether the class is the same (P,)."""
    import torch

    from demkd.pipeline.stage_one import answer_again

    records, answers = answer_again(job, job.teachers[0], slot, torch.from_numpy(samples))
    if not np.array_equal(records, file.read("view", slot)[samples]):
        raise CacheDamagedError(f"{file.path} has other views than its view seed says: remove it and make it again")

    def rows(name: str) -> NDArray[Any]:
        file.check(name, slot)
        return file.rows(name, slot)[samples]

    stored = compared(rows, file.shape)
    same_class = answers["prediction"] == file.read("prediction", slot)[samples]
    return largest_changes(stored, answers), stored["logits"], same_class
