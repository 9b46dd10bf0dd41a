"""Everything that must be right before stage one's first answer: pictures, views, teachers, files.

B in a batch, N samples, V slots, R integers of a view's record.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demkd.cache import CacheShape, CacheValueError, Provenance
from demkd.cache.layout import BLOCK_ROWS
from demkd.cache.space import FilePlan, plan_file
from demkd.dataset import ImageSource, Normalisation, Records, ViewPolicy
from demkd.pipeline import defaults
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import LoadedNetwork, TeacherSpec, chosen_for, load_teacher, require_teachers
from demkd.teachers import Teacher, feature_key


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingRequest:
    """What `cache_teachers` is asked for.

    Attributes:
        views: V; None for `defaults.VIEWS`, or as many as there are.
        policy: None for the data's own.
        features: the layers whose features are kept; "last" is each teacher's hint layer.
        normalise, input_size: by teacher name; "" stands for all others.
    """

    source: ImageSource
    teachers: tuple[TeacherSpec, ...]
    folder: Path
    views: int | None = None
    policy: ViewPolicy | None = None
    view_seed: int = defaults.VIEW_SEED
    features: tuple[str, ...] = defaults.LAYERS
    feature_grid: int = defaults.GRID
    batch_size: int = defaults.BATCH_SIZE
    normalise: Mapping[str, Normalisation] = field(default_factory=dict)
    input_size: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTeacher:
    """A teacher that passed every check, and what is asked of it."""

    teacher: Teacher
    network: str
    shape: CacheShape
    provenance: Provenance

    @property
    def name(self) -> str:
        return self.teacher.name


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingJob:
    """What stage one works on: the pictures, their views, and the teachers, each loaded once."""

    source: ImageSource
    policy: ViewPolicy
    view_seed: int
    num_views: int
    batch_size: int
    folder: Path
    compute: Compute
    teachers: tuple[PreparedTeacher, ...]

    def views(self, slots: Sequence[int], indices: Tensor) -> Iterator[tuple[int, Records, list[Tensor]]]:
        """Some samples (B,) in every slot: the slot, the records (B, R), and their views in batches, (b, 3, H, W).

        The pictures are read once. Batches begin at the first sample, so that a resumed file is the same.
        """
        device = self.compute.device
        render = self.source.block(indices, self.policy, device)
        positions = torch.arange(len(indices), device=device)
        drawn = self.policy.draw(view_seed=self.view_seed, slots=slots, indices=indices.numpy())  # (S, B, R)
        for slot, records in zip(slots, drawn, strict=True):
            on_device = records_on(device, records)
            batches = torch.split(positions, self.batch_size)
            yield slot, records, [render(batch, on_device[batch]) for batch in batches]

    def plans(self) -> list[FilePlan]:
        """What remains to be done for every teacher's file.

        Raises:
            CacheMismatchError, CacheDamagedError: if a file that is there cannot be added to.
        """
        return [plan_file(self.folder, one.name, shape=one.shape, provenance=one.provenance) for one in self.teachers]


def prepare(request: CachingRequest, compute: Compute) -> CachingJob:
    """Choose the views, load every teacher, and check that its answers depend on the picture alone.

    Raises:
        ViewsError: if there are not so many views.
        CacheValueError: if the batch size cannot be.
        CheckpointError, TeacherError, NetworkSourceError: if a teacher cannot be used.
    """
    names = [spec.name for spec in request.teachers]
    require_teachers(request.normalise, names, option="normalise")
    require_teachers(request.input_size, names, option="input_size")
    if not 1 <= request.batch_size <= BLOCK_ROWS:
        raise CacheValueError(
            f"`batch_size` is {request.batch_size}: choose 1 to {BLOCK_ROWS}, because answers are written in blocks of "
            f"{BLOCK_ROWS} samples"
        )
    policy = request.policy or request.source.default_policy
    most = policy.num_distinct_views
    num_views = request.views or min(defaults.VIEWS, most or defaults.VIEWS)
    policy.require(num_views if request.views is None else request.views)
    some = torch.arange(min(64, len(request.source)))
    records = policy.draw(view_seed=request.view_seed, slots=[0], indices=some.numpy())[0]
    render = request.source.block(some, policy, compute.device)
    views = render(some.to(compute.device), records_on(compute.device, records))
    return CachingJob(
        source=request.source,
        policy=policy,
        view_seed=request.view_seed,
        num_views=num_views,
        batch_size=request.batch_size,
        folder=request.folder,
        compute=compute,
        teachers=tuple(_prepare_teacher(request, spec, policy, num_views, views, compute) for spec in request.teachers),
    )


def records_on(device: torch.device, records: Records) -> Tensor:
    """Records (B, R) as a tensor."""
    return torch.from_numpy(records.astype(np.int32)).to(device)


def view_facts(policy: ViewPolicy, seed: int) -> dict[str, object]:
    """What identifies the view of every slot."""
    return {**policy.facts(), "seed": seed}


def _prepare_teacher(
    request: CachingRequest, spec: TeacherSpec, policy: ViewPolicy, num_views: int, views: Tensor, compute: Compute
) -> PreparedTeacher:
    """Load a teacher, and try it on some views (B, 3, H, W)."""
    source = request.source
    teacher, network = load_teacher(
        spec,
        source=source,
        compute=compute,
        normalisation=chosen_for(request.normalise, spec.name),
        input_size=chosen_for(request.input_size, spec.name),
    )
    teacher.require_deterministic(views)
    layers = [teacher.hint_layer if layer == "last" else layer for layer in request.features]
    keys = [feature_key(layer, request.feature_grid) for layer in layers]
    features = teacher.answer(views, features=keys).features
    shape = CacheShape(
        num_views=num_views,
        samples=len(source),
        classes=source.classes,
        record_length=policy.record_length,
        features={key: tuple(summary.shape[1:]) for key, summary in features.items()},
    )
    provenance = _provenance(request, policy, teacher, network, compute)
    return PreparedTeacher(teacher=teacher, network=network.name, shape=shape, provenance=provenance)


def _provenance(
    request: CachingRequest, policy: ViewPolicy, teacher: Teacher, network: LoadedNetwork, compute: Compute
) -> Provenance:
    """What a teacher's answers are made from."""
    return Provenance(
        identity={
            "teacher": {
                "network": network.name,
                "state_sha256": teacher.state_sha256(),
                "mean": list(network.normalisation.mean),
                "std": list(network.normalisation.std),
                **({"input_size": network.input_size} if network.input_size else {}),
            },
            "data": request.source.facts(),
            "views": view_facts(policy, request.view_seed),
            "precision": compute.precision,
        },
        notes={
            "data": request.source.name,
            "parameters": teacher.parameters,
            "hint_layer": teacher.hint_layer,
            "num_distinct_views": policy.num_distinct_views,
            "batch_size": request.batch_size,
            "device": device_name(compute),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        },
    )


def device_name(compute: Compute) -> str:
    """For people."""
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"
