"""What stage one is asked for, and everything that must be right before the first answer: pictures, teachers, files.

B in a batch, N samples, V slots.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import CacheShape, Provenance
from demkd.cache.space import FilePlan, plan_file
from demkd.dataset import Normalisation, Pictures, ViewCutter, seeded
from demkd.pipeline import defaults
from demkd.pipeline.compute import Compute
from demkd.pipeline.description import describe_data, describe_device, describe_views
from demkd.pipeline.loading import LoadedNetwork, TeacherSpec, chosen_for, load_split, load_teacher, require_teachers
from demkd.pipeline.progress import Progress
from demkd.teachers import Teacher, feature_key


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingRequest:
    """What `cache-teachers` is asked for.

    Attributes:
        views: V; None for `defaults.VIEWS`, or as many as there are.
        layers: whose features are kept; "last" is each teacher's hint layer.
        normalisations, input_sizes: by teacher name, what was given on the command line; "" stands for all others.
    """

    data: str
    teachers: tuple[TeacherSpec, ...]
    folder: Path
    views: int | None = None
    view_seed: int = defaults.VIEW_SEED
    layers: tuple[str, ...] = defaults.LAYERS
    grid: int = defaults.GRID
    batch_size: int = defaults.BATCH_SIZE
    normalisations: Mapping[str, Normalisation] = field(default_factory=dict)
    input_sizes: Mapping[str, int] = field(default_factory=dict)


class CachingJob:
    """What all teachers share: the pictures, cut into views, and their description."""

    def __init__(self, *, request: CachingRequest, pictures: Pictures, views: int, compute: Compute) -> None:
        self.request, self.pictures, self.views, self.compute = request, pictures, views, compute
        self.cutter = ViewCutter(pictures.pixels, pictures.policy, device=compute.device)
        self._data = describe_data(pictures)

    def view_table(self, slots: int) -> NDArray[np.uint16]:
        """The view (V, N) of every slot and sample."""
        return seeded.view_table(
            view_seed=self.request.view_seed,
            samples=len(self.pictures),
            num_distinct_views=self.pictures.policy.num_distinct_views,
            slots=slots,
        )

    def cut(self, rows: slice, numbers: NDArray[np.uint16]) -> Tensor:
        """Views (B, 3, H, W) of consecutive samples, in the views that the numbers (B,) name."""
        return self.cut_any(np.arange(rows.start, rows.stop), numbers)

    def cut_any(self, indices: NDArray[np.int64], numbers: NDArray[np.uint16]) -> Tensor:
        """Views (B, 3, H, W) of any samples (B,), in the views that the numbers (B,) name."""
        device = self.compute.device
        return self.cutter.cut(
            torch.from_numpy(indices).to(device), torch.from_numpy(numbers.astype(np.int64)).to(device)
        )

    def provenance(self, teacher: Teacher, network: LoadedNetwork) -> Provenance:
        """What this teacher's answers are made from."""
        return Provenance(
            identity={
                "teacher": {
                    "network": network.name,
                    "state_sha256": teacher.state_sha256(),
                    "mean": list(network.normalisation.mean),
                    "std": list(network.normalisation.std),
                    # Absent for views as they are, as in caches of before there was a choice.
                    **({"input_size": network.input_size} if network.input_size else {}),
                },
                "data": self._data,
                "views": describe_views(self.pictures.policy, self.request.view_seed),
                "precision": self.compute.precision,
            },
            notes={
                "data": self.pictures.name,
                "parameters": teacher.parameters,
                "hint_layer": teacher.hint_layer,
                "batch_size": self.request.batch_size,
                "device": describe_device(self.compute),
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            },
        )


def open_job(request: CachingRequest, compute: Compute, progress: Progress) -> CachingJob:
    """Load the pictures and choose the number of views.

    Raises:
        DataError, ViewsError: if there are no such pictures, or not so many views.
    """
    require_teachers(request.normalisations, request.teachers, option="--normalise")
    require_teachers(request.input_sizes, request.teachers, option="--input-size")
    progress.note(f"reading the training pictures of {request.data}")
    pictures = load_split(request.data, "train")
    num_distinct_views = pictures.policy.num_distinct_views
    views = min(defaults.VIEWS, num_distinct_views) if request.views is None else request.views
    seeded.require_slots(views, num_distinct_views)
    return CachingJob(request=request, pictures=pictures, views=views, compute=compute)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTeacher:
    """A teacher that passed every check, and what is asked of it."""

    teacher: Teacher
    network: LoadedNetwork
    shape: CacheShape
    provenance: Provenance


def prepare(job: CachingJob, spec: TeacherSpec) -> PreparedTeacher:
    """Load a teacher, and check that its answers depend on the picture alone.

    Raises:
        CheckpointError, TeacherError: if it cannot be used.
    """
    request, pictures = job.request, job.pictures
    teacher, network = load_teacher(
        spec,
        pictures=pictures,
        compute=job.compute,
        normalisation=chosen_for(request.normalisations, spec),
        input_size=chosen_for(request.input_sizes, spec),
    )
    some = job.cut(slice(0, min(64, len(pictures))), job.view_table(1)[0, :64])
    teacher.require_deterministic(some)
    shape = CacheShape(
        views=job.views,
        samples=len(pictures),
        classes=pictures.classes,
        features=_feature_shapes(request, teacher, some),
    )
    provenance = job.provenance(teacher, network)
    return PreparedTeacher(teacher=teacher, network=network, shape=shape, provenance=provenance)


def plan_teacher(job: CachingJob, prepared: PreparedTeacher) -> FilePlan:
    """What remains to be done for a teacher's file.

    Raises:
        CacheMismatchError, CacheDamagedError: if the file that is there cannot be added to.
    """
    folder, name = job.request.folder, prepared.teacher.name
    return plan_file(folder, name, shape=prepared.shape, provenance=prepared.provenance)


def _feature_shapes(request: CachingRequest, teacher: Teacher, views: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of one sample's features, by key."""
    layers = [teacher.hint_layer if layer == "last" else layer for layer in request.layers]
    keys = [feature_key(layer, request.grid) for layer in layers]
    return {key: tuple(features.shape[1:]) for key, features in teacher.answer(views, features=keys).features.items()}
