"""Verifying a cache: its bytes, and, where teachers are given, whether they give the same logits again.

The bytes are checked without PyTorch. `recompute` runs teachers, and imports what runs them when it is called.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from demkd.cache.errors import CacheDamagedError, CacheMissingError
from demkd.cache.format import BLOCK_ROWS
from demkd.cache.reader import TeacherCache
from demkd.cache.remote import local_folder
from demkd.cache.shards import is_whole
from demkd.cache.verify import DAMAGED, verify_cache
from demkd.config import BATCH_SIZE, CacheConfig, Folder, ImageConfig, check_counts
from demkd.pipeline.progress import Progress, as_progress
from demkd.pipeline.results import RecomputeReport, VerificationReport

if TYPE_CHECKING:
    from demkd.dataset import Data
    from demkd.pipeline.preparation import CachingJob
    from demkd.teachers.load import ByTeacher, NormalizeLike, Teachers


# As a share of the largest logit, at least of 1: float16 keeps three digits, another processor or batch size rounds
# otherwise, and bfloat16 has two digits to begin with.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}


def verify(
    cache: Folder, *, teachers: Sequence[str] | None = None, progress: bool | Progress = True
) -> VerificationReport:
    """Check every byte of a cache; `sound` if nothing is damaged or unfinished.

    Args:
        teachers: some of them, by name.

    Raises:
        CacheMissingError: if there is nothing to check.
    """
    shown = as_progress(progress)
    folder = local_folder(cache, teachers, task=shown.task)
    total = sum(file.stat().st_size for pattern in ("*.h5", "*.h5.partial") for file in folder.glob(pattern))
    with shown.task("verifying", total=total, unit="bytes") as task:
        found = verify_cache(folder, teachers, advance=task.advance)
    return VerificationReport(folder=folder, sound=found.sound, files=found.files)


def recompute(
    cache: Folder,
    teachers: "Teachers",
    data: "Data",
    *,
    pairs: int = 200,
    seed: int = 0,
    normalize: "ByTeacher[NormalizeLike]" = None,
    input_size: "ByTeacher[int]" = None,
    images: ImageConfig | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool | Progress = True,
) -> VerificationReport:
    """Check a cache, then run its teachers again on random samples in random views, `pairs` of them each.

    Args:
        normalize, input_size: what the cache says if left out.
        precision: "auto" is that of the cache.

    Raises:
        CacheDamagedError: if the bytes of a file are not even sound.
        CacheMissingError: if a teacher is not in the cache.
        CacheMismatchError: if a teacher, the data or the views are not those of the cache.
    """
    from demkd.dataset import Normalization, as_dataset, closing_workers
    from demkd.pipeline.distributed import choose_compute
    from demkd.pipeline.preparation import prepare
    from demkd.pipeline.targets import cached_views
    from demkd.teachers import load

    check_counts(pairs=pairs)
    shown = as_progress(progress)
    report, specs = verify(cache, progress=shown), load.teacher_specs(teachers)
    source = as_dataset(data, split="train", called="data", images=images, progress=shown)
    normalizations, sizes = load.normalizations_by_teacher(normalize), load.sizes_by_teacher(input_size)
    names, folder = [spec.name for spec in specs], report.folder
    load.check_teacher_names(normalizations, names, option="normalize")
    load.check_teacher_names(sizes, names, option="input_size")
    damaged = {file.name for file in report.files if file.verdict == DAMAGED}
    for name in names:
        if not is_whole(folder, name):
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}: use the name it has there")
        if name in damaged:
            raise CacheDamagedError(
                f"teacher {name} in {folder} is damaged: run `cache_teachers` again first, which repairs it"
            )
    found = []
    with closing_workers(source):
        for spec in specs:
            cached = TeacherCache.open(folder, spec.name)
            identity, notes = cached.provenance.identity, cached.provenance.notes
            was: dict[str, Any] = identity["teacher"]
            policy, view_seed = cached_views(cached)
            size = load.chosen_for(sizes, spec.name) or was.get("input_size")
            usual = Normalization(mean=tuple(was["mean"]), std=tuple(was["std"]))
            job = prepare(
                [spec],
                source,
                folder,
                config=CacheConfig(
                    views=1,
                    view_seed=view_seed,
                    features=(),
                    batch_size=min(max(1, notes.get("batch_size", BATCH_SIZE)), BLOCK_ROWS),
                    top_k=cached.shape.top_k,
                    tail_temperatures=cached.shape.tail_temperatures or CacheConfig.tail_temperatures,
                    logits=cached.shape.encoding,
                ),
                policy=policy,
                normalize={spec.name: load.chosen_for(normalizations, spec.name) or usual},
                input_size={spec.name: size} if size else {},
                compute=choose_compute(
                    device=device, precision=identity["precision"] if precision == "auto" else precision
                ),
            )
            cached.provenance.check_same(
                job.teachers[0].provenance,
                cached=str(cached.path),
                cure="Give the teacher and the data that it was cached with (`teachers`, `data`)",
                tables=("teacher", "data", "views"),
            )
            found.append(_compare(job, cached, shown, pairs=pairs, seed=seed))
    return replace(report, sound=report.sound and all(one.agrees for one in found), recomputed=tuple(found))


def _compare(job: "CachingJob", cached: TeacherCache, progress: Progress, *, pairs: int, seed: int) -> RecomputeReport:
    """Compute random pairs (P,) again, in the views that the augmentation gives, and compare with what is stored."""
    import torch

    from demkd.pipeline.stage_one import compared, largest_changes, predict_again

    generator = np.random.default_rng(seed)
    views = np.sort(generator.integers(cached.shape.num_views, size=pairs))
    samples = generator.integers(cached.shape.samples, size=pairs)
    sets = cached.shape.logit_sets()
    differences, same_class = np.empty(pairs, np.float32), np.empty(pairs, bool)
    largest, half_step = 1.0, 0.0  # the largest logit; half a step of 8-bit logits
    with progress.task(f"teacher {cached.name}", total=pairs, unit="views") as task:
        for view in np.unique(views).tolist():
            rows = views == view
            indices = samples[rows]
            params, now = predict_again(job, job.teachers[0], view, torch.from_numpy(indices))
            if not np.array_equal(params, cached.read("params", view)[indices]):
                raise CacheDamagedError(
                    f"{cached.path} has other views than its view seed says: remove it and make it again"
                )
            cached.check_logits(view)
            stored = compared({name: cached.rows(name, view)[indices] for name in sets}, cached.shape)
            differences[rows] = largest_changes(stored, now)
            if cached.shape.encoding == "uint8":
                half_step = max(half_step, float(cached.rows("logit_scale", view)[indices].max()) / 255)
            largest = max(largest, float(np.abs(stored["logits"]).max()))
            same_class[rows] = now["prediction"] == cached.read("prediction", view)[indices]
            task.advance(len(indices))
    differences[np.isnan(differences)] = np.inf
    worst = int(differences.argmax())
    precision = max(job.compute.precision, str(cached.provenance.identity["precision"]), key=TOLERANCE.__getitem__)
    tolerance = TOLERANCE[precision] * largest + half_step
    return RecomputeReport(
        teacher=cached.name,
        pairs=pairs,
        precision=job.compute.precision,
        largest_difference=float(differences[worst]),
        sample=int(samples[worst]),
        view_index=int(views[worst]),
        tolerance=tolerance,
        agrees=bool(differences[worst] <= tolerance),
        top1_agreement=float(same_class.mean()),
    )
